//! What is mounted where, from `/proc/self/mountinfo`: reading it calls into no file system, so it
//! also works where a mount no longer answers.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The type of our mounts.
pub const OUR_TYPE: &str = "fuse.alacrity";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Identity of the mount while it exists.
    pub mount_id: u64,
    /// Where.
    pub mount_point: PathBuf,
    /// Type of the file system, e.g. `fuse.alacrity`.
    pub fs_type: String,
    /// What is mounted; of ours, the [`super::daemon_id::DaemonId`].
    pub source: String,
}

/// The mount that one sees at exactly `path` (absolute, without links); `None` if nothing is
/// mounted there.
///
/// # Errors
/// `/proc` is not there.
pub fn topmost_at(path: &Path) -> io::Result<Option<MountEntry>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(find_topmost(&table, path))
}

/// The last of several mounts at one place is the one on top.
fn find_topmost(table: &[u8], path: &Path) -> Option<MountEntry> {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .rfind(|entry| entry.mount_point == path)
}

/// One line: `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
/// (Linux `Documentation/filesystems/proc.rst`, 3.5).
fn parse(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mount_id = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let mount_point = PathBuf::from(OsString::from_vec(unescape(fields.nth(3)?)));
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let mut text = || Some(String::from_utf8_lossy(fields.next()?).into_owned());
    Some(MountEntry {
        mount_id,
        mount_point,
        fs_type: text()?,
        source: text()?,
    })
}

/// Undoes the octal escapes of blanks and backslashes: `\040` is a space.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
21 1 254:0 / / rw,relatime - ext4 /dev/root rw
30 21 0:26 / /run rw,nosuid shared:5 - tmpfs tmpfs rw,mode=755
41 30 0:30 / /run/my\\040bus rw - fuse.alacrity alacrity rw,user_id=0
42 30 0:31 / /run/twice rw - tmpfs tmpfs rw
43 42 0:32 / /run/twice rw shared:9 master:1 - fuse.alacrity alacrity rw
not a line
";

    #[test]
    fn mount_is_found_at_its_place_only() {
        let root = find_topmost(TABLE, Path::new("/")).unwrap();

        assert_eq!((root.mount_id, root.fs_type.as_str()), (21, "ext4"));
        assert_eq!(root.source, "/dev/root");
        assert_eq!(find_topmost(TABLE, Path::new("/run/other")), None);
    }

    #[test]
    fn mount_on_top_hides_the_one_below() {
        let top = find_topmost(TABLE, Path::new("/run/twice")).unwrap();

        assert_eq!((top.mount_id, top.fs_type.as_str()), (43, OUR_TYPE));
    }

    #[test]
    fn blanks_in_names_are_unescaped() {
        let entry = find_topmost(TABLE, Path::new("/run/my bus")).unwrap();

        assert_eq!(entry.fs_type, OUR_TYPE);
    }

    #[test]
    fn backslash_without_digits_stays() {
        assert_eq!(unescape(b"a\\b\\134c\\"), b"a\\b\\c\\");
    }

    #[test]
    fn root_of_this_machine_is_a_mount() {
        assert!(topmost_at(Path::new("/")).unwrap().is_some());
    }
}
