//! The mappings of a process and what they take of memory: `/proc/PID/smaps` (proc_pid_smaps(5)).

use std::ops::Range;

/// One mapping. Sizes are in KiB.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Its addresses.
    pub range: Range<usize>,
    /// Whether the process may write to it.
    pub is_writable: bool,
    /// Whether others see what is written to it.
    pub is_shared: bool,
    /// The file behind it, or the kernel's name for it; empty if there is none.
    pub name: String,
    /// Size in addresses.
    pub size_kib: u64,
    /// In memory.
    pub rss_kib: u64,
    /// In memory, pages that others have as well in equal parts.
    pub pss_kib: u64,
    /// In memory, and of no file: what a private mapping of a file was written to is that, too.
    pub anonymous_kib: u64,
}

/// The mappings that `smaps` tells of; lines of another shape are left out.
pub fn parse(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let Some((first, rest)) = line.split_once(' ') else {
            continue;
        };
        let Some(field) = first.strip_suffix(':') else {
            mappings.extend(mapping(first, rest));
            continue;
        };
        let Some(current) = mappings.last_mut() else {
            continue;
        };
        let kib = || rest.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        match field {
            "Size" => current.size_kib = kib(),
            "Rss" => current.rss_kib = kib(),
            "Pss" => current.pss_kib = kib(),
            "Anonymous" => current.anonymous_kib = kib(),
            _ => {}
        }
    }
    mappings
}

/// A mapping's first line: its range; access, offset, device, inode and name.
fn mapping(range: &str, rest: &str) -> Option<Mapping> {
    let (start, end) = range.split_once('-')?;
    let address = |hex| usize::from_str_radix(hex, 16).ok();
    let mut words = rest.splitn(4, ' ');
    let access = words.next()?.as_bytes();
    // Offset and device. Inode and name are apart by blanks, and a name may have some.
    let of_file = words.nth(2).unwrap_or_default();
    let name = of_file.split_once(' ').map_or("", |(_, name)| name.trim());
    Some(Mapping {
        range: address(start)?..address(end)?,
        is_writable: access.get(1) == Some(&b'w'),
        is_shared: access.get(3) == Some(&b's'),
        name: name.to_owned(),
        ..Mapping::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_all_kinds_are_understood() {
        let smaps = "\
558d58af0000-558d58ec9000 r-xp 000fe000 fe:00 1234                       /opt/my program
Size:               3940 kB
KernelPageSize:        4 kB
Rss:                3048 kB
Pss:                1524 kB
Anonymous:             4 kB
VmFlags: rd ex mr mw me
7fab71fb8000-7fab71fbb000 rw-s 00000000 00:0e 2                          anon_inode:kvm-vcpu:0
Size:                 12 kB
7fab725c1000-7fab725c3000 rw-p 00000000 00:00 0 
Size:                  8 kB
";
        let program = Mapping {
            range: 0x558d_58af_0000..0x558d_58ec_9000,
            is_writable: false,
            is_shared: false,
            name: "/opt/my program".into(),
            size_kib: 3940,
            rss_kib: 3048,
            pss_kib: 1524,
            anonymous_kib: 4,
        };

        let [first, second, third] = parse(smaps).try_into().unwrap();

        assert_eq!(first, program);
        assert!(second.is_shared && second.is_writable);
        assert_eq!(
            (second.name.as_str(), second.size_kib),
            ("anon_inode:kvm-vcpu:0", 12)
        );
        assert_eq!((third.name.as_str(), third.size_kib), ("", 8));
        assert_eq!(parse("Size: 4 kB\nnonsense\n\nx-y z\n"), []);
    }
}
