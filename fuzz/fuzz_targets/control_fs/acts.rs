//! What programs do to the mounted tree.

use arbitrary::Arbitrary;

const NAMES: [&str; 14] = [
    "config",
    "devices",
    "instances",
    "sys",
    "a",
    "b",
    "lan",
    "type",
    "mtu",
    "ports",
    "macs",
    ".",
    "..",
    "port_macs",
];
pub const TARGETS: [&str; 5] = [
    "/mnt/vbus/config/devices/a",
    "../../devices/b",
    "/mnt/vbus/../vbus/config/devices/a",
    "/etc/passwd",
    "",
];
pub const PATHS: [&str; 6] = [
    "config/devices/a",
    "config/devices/a/type",
    "config/devices/b/type",
    "config/instances/lan",
    "sys/devices/a/mtu",
    "sys/instances/lan/devices",
];
pub const VALUES: [&[u8]; 4] = [b"venet-switch\n", b"venet-loopback", b"1500\n", b"\n"];
#[derive(Debug, Arbitrary)]
pub enum Name<'a> {
    Known(u8),
    Wild(&'a [u8]),
}

impl Name<'_> {
    /// As the kernel gives them: not empty, without a slash or a zero.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Name::Known(nth) => NAMES[usize::from(*nth) % NAMES.len()].into(),
            Name::Wild(bytes) => {
                let bytes = bytes.iter().filter(|byte| !matches!(byte, 0 | b'/'));
                let name: Vec<u8> = bytes.copied().take(1024).collect();
                // The one that reaches for an interface of the host is not for a test.
                if name.is_empty() || name == b"uplink" {
                    b"x".into()
                } else {
                    name
                }
            }
        }
    }
}

#[derive(Debug, Arbitrary)]
pub enum Act<'a> {
    /// Looks all parts of a path up.
    Walk(u8),
    Lookup(u8, Name<'a>),
    Mkdir(u8, Name<'a>),
    Rmdir(u8, Name<'a>),
    Unlink(u8, Name<'a>),
    Symlink(u8, Name<'a>, Result<u8, &'a [u8]>),
    Readlink(u8),
    Getattr(u8),
    Setattr {
        node: u8,
        valid: u8,
        size: u64,
    },
    Open {
        node: u8,
        flags: u16,
        is_directory: bool,
    },
    Read {
        handle: u8,
        offset: u32,
        size: u16,
    },
    ReadFrom {
        handle: u8,
        offset: u64,
        size: u32,
    },
    Write {
        handle: u8,
        offset: u64,
        is_append: bool,
        data: Result<u8, &'a [u8]>,
    },
    Release(u8),
    Forget(u8, u8),
    /// Rename, link, create, mknod: never here.
    Refused(u8, u8, Name<'a>),
}
