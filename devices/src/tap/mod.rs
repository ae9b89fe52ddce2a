//! A TAP interface of the host: where virtio-net and venet exchange frames with it.
//!
//! An existing persistent TAP that belongs to the user needs no privilege; making one, and setting
//! address, MTU or link state where they differ, needs `CAP_NET_ADMIN`. A TAP made here is not
//! persistent: it vanishes with the last descriptor, however the process ends.
//!
//! # Source
//! Linux `Documentation/networking/tuntap.rst` and `drivers/net/tun.c`.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use sys::{IF_NAME_BYTES, IfReq};

mod error;
mod sys;

pub use error::TapError;

/// Most queue pairs of one TAP.
pub const MAX_QUEUE_PAIRS: u16 = 8;

/// Size in bytes of `struct virtio_net_hdr_v1`, which precedes each frame (VIRTIO 1.2 §5.1.6).
pub(crate) const HEADER_BYTES: u32 = 12;

const TUN_PATH: &str = "/dev/net/tun";

/// `AF_INET` as `struct sockaddr` has it.
const AF_INET: libc::sa_family_t = 2;
const _: () = assert!(AF_INET as libc::c_int == libc::AF_INET);

/// An open TAP interface with its queues. The interface is released on drop.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<Arc<File>>,
    /// Any socket: interface ioctls need one.
    socket: UdpSocket,
    is_created: bool,
    has_uso: bool,
}

impl Tap {
    /// Opens the TAP `name`, or makes it if there is no such interface, with `num_queue_pairs`
    /// queues (1 to [`MAX_QUEUE_PAIRS`]), of which the first one is active.
    ///
    /// # Errors
    /// [`TapError`], and no interface is left behind.
    pub fn open(name: &str, num_queue_pairs: u16) -> Result<Self, TapError> {
        check_name(name)?;
        if num_queue_pairs == 0 || num_queue_pairs > MAX_QUEUE_PAIRS {
            return Err(TapError::BadQueueCount {
                name: name.into(),
                num_queue_pairs,
            });
        }
        let socket =
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(|source| TapError::Setting {
                name: name.into(),
                what: "socket",
                source,
            })?;
        let is_created = !exists(&socket, name);
        let (first, flags) = open_first(name, num_queue_pairs, is_created)?;
        let mut tap = Tap {
            name: name.into(),
            queues: vec![Arc::new(first)],
            socket,
            is_created,
            has_uso: false,
        };
        for _ in 1..num_queue_pairs {
            let file = open_tun()?;
            set_iff(&file, name, flags).map_err(|error| tap.queue_error(error, num_queue_pairs))?;
            tap.queues.push(Arc::new(file));
        }
        for queue in &tap.queues {
            sys::ioctl_int(&**queue, libc::TUNSETVNETHDRSZ, HEADER_BYTES.cast_signed())
                .map_err(|source| tap.setting("header size", source))?;
        }
        tap.has_uso = tap
            .set_offloads(libc::TUN_F_CSUM | libc::TUN_F_USO4 | libc::TUN_F_USO6)
            .is_ok();
        tap.set_offloads(0)
            .map_err(|source| tap.setting("offloads", source))?;
        tap.set_active_queues(1)
            .map_err(|source| tap.setting("queues", source))?;
        Ok(tap)
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True if there was no such interface before; it vanishes with this value then.
    pub fn is_created(&self) -> bool {
        self.is_created
    }

    /// Number of queues.
    pub fn num_queue_pairs(&self) -> u16 {
        // `open` made at most MAX_QUEUE_PAIRS.
        u16::try_from(self.queues.len()).unwrap_or(MAX_QUEUE_PAIRS)
    }

    /// The interface's MTU in bytes.
    ///
    /// # Errors
    /// [`TapError::Setting`]: the interface is gone.
    pub fn mtu(&self) -> Result<u32, TapError> {
        let request = self
            .interface(libc::SIOCGIFMTU, &[])
            .map_err(|source| self.setting("MTU", source))?;
        let [a, b, c, d, ..] = *request.argument();
        Ok(u32::from_ne_bytes([a, b, c, d]))
    }

    /// Sets the interface's MTU to `mtu` bytes; asks for no privilege if it has that already.
    ///
    /// # Errors
    /// [`TapError::NotPermitted`], or [`TapError::Setting`] if the kernel refuses the value.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), TapError> {
        if self.mtu()? == u32::from(mtu) {
            return Ok(());
        }
        self.interface(libc::SIOCSIFMTU, &u32::from(mtu).to_ne_bytes())
            .map(drop)
            .map_err(|source| {
                let remedy = format!("ip link set {} mtu {mtu}", self.name);
                self.change_error("MTU", remedy, source)
            })
    }

    /// Gives the host's end the IPv4 address `address` with a network of `prefix_len` bits (0 to
    /// 32); asks for no privilege if it has that already.
    ///
    /// # Errors
    /// [`TapError::NotPermitted`], or [`TapError::Setting`] if the kernel refuses the address.
    pub fn set_address(&self, address: Ipv4Addr, prefix_len: u8) -> Result<(), TapError> {
        let mask = u32::MAX
            .checked_shl(32 - u32::from(prefix_len.min(32)))
            .unwrap_or(0);
        let settings = [
            (libc::SIOCGIFADDR, libc::SIOCSIFADDR, address),
            (
                libc::SIOCGIFNETMASK,
                libc::SIOCSIFNETMASK,
                Ipv4Addr::from(mask),
            ),
        ];
        for (get, set, value) in settings {
            let sockaddr = sockaddr_in(value);
            let is_set = self
                .interface(get, &[])
                .is_ok_and(|request| request.argument()[..8] == sockaddr);
            if is_set {
                continue;
            }
            self.interface(set, &sockaddr).map_err(|source| {
                let remedy = format!("ip addr add {address}/{prefix_len} dev {}", self.name);
                self.change_error("address", remedy, source)
            })?;
        }
        Ok(())
    }

    /// The Ethernet address of the host's end.
    ///
    /// # Errors
    /// [`TapError::Setting`]: the interface is gone.
    pub fn mac(&self) -> Result<[u8; 6], TapError> {
        let request = self
            .interface(libc::SIOCGIFHWADDR, &[])
            .map_err(|source| self.setting("address", source))?;
        // Behind the two bytes of the address family.
        let [_, _, a, b, c, d, e, f, ..] = *request.argument();
        Ok([a, b, c, d, e, f])
    }

    /// Switches the interface on; asks for no privilege if it is on already.
    ///
    /// # Errors
    /// [`TapError::NotPermitted`] or [`TapError::Setting`].
    pub fn bring_up(&self) -> Result<(), TapError> {
        // The kernel keeps 16 bits of flags here; this one is the lowest.
        let [up_low, up_high, ..] = libc::IFF_UP.to_ne_bytes();
        let up = u16::from_ne_bytes([up_low, up_high]);
        let change_error = |source| {
            let remedy = format!("ip link set {} up", self.name);
            self.change_error("link state", remedy, source)
        };
        let request = self
            .interface(libc::SIOCGIFFLAGS, &[])
            .map_err(change_error)?;
        let [low, high, ..] = *request.argument();
        let flags = u16::from_ne_bytes([low, high]);
        if flags & up != 0 {
            return Ok(());
        }
        self.interface(libc::SIOCSIFFLAGS, &(flags | up).to_ne_bytes())
            .map(drop)
            .map_err(change_error)
    }

    /// True if the host's kernel segments UDP and takes UDP to be segmented (Linux 6.2 and later).
    pub(crate) fn has_uso(&self) -> bool {
        self.has_uso
    }

    /// What the frames from this TAP may leave to their reader: a set of `TUN_F_*`.
    pub(crate) fn set_offloads(&self, tun_offloads: u32) -> io::Result<()> {
        match self.queues.first() {
            Some(queue) => sys::ioctl_value(&**queue, libc::TUNSETOFFLOAD, tun_offloads.into()),
            None => Ok(()),
        }
    }

    /// Lets the kernel spread frames over the first `num_queues` queues only.
    pub(crate) fn set_active_queues(&self, num_queues: u16) -> io::Result<()> {
        for (queue_idx, queue) in self.queues.iter().enumerate().skip(1) {
            let flag = if queue_idx < usize::from(num_queues) {
                libc::IFF_ATTACH_QUEUE
            } else {
                libc::IFF_DETACH_QUEUE
            };
            let mut request = IfReq::default().with(&flag.to_ne_bytes());
            match sys::ioctl_ifreq(&**queue, libc::TUNSETQUEUE, &mut request) {
                // EINVAL: it is in that state already.
                Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Asks the kernel whether the interface is still there.
    ///
    /// # Errors
    /// `EBADFD` if it is not.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.queues.first() {
            Some(queue) => sys::ioctl_ifreq(&**queue, libc::TUNGETIFF, &mut IfReq::new("")),
            None => Ok(()),
        }
    }

    /// The interface's queues, each without blocking: frames with a `struct virtio_net_hdr_v1` in front.
    pub fn queues(&self) -> &[Arc<File>] {
        &self.queues
    }

    fn interface(&self, request: libc::Ioctl, argument: &[u8]) -> io::Result<IfReq> {
        let mut ifreq = IfReq::new(&self.name).with(argument);
        sys::ioctl_ifreq(&self.socket, request, &mut ifreq)?;
        Ok(ifreq)
    }

    fn setting(&self, what: &'static str, source: io::Error) -> TapError {
        TapError::Setting {
            name: self.name.clone(),
            what,
            source,
        }
    }

    fn change_error(&self, what: &'static str, remedy: String, source: io::Error) -> TapError {
        match source.kind() {
            ErrorKind::PermissionDenied => TapError::NotPermitted {
                name: self.name.clone(),
                what,
                remedy,
            },
            _ => self.setting(what, source),
        }
    }

    fn queue_error(&self, error: io::Error, num_queue_pairs: u16) -> TapError {
        match error.raw_os_error() {
            Some(libc::EINVAL) => TapError::SingleQueue {
                name: self.name.clone(),
                num_queue_pairs,
            },
            Some(libc::EBUSY | libc::E2BIG) => TapError::Busy {
                name: self.name.clone(),
            },
            _ => self.setting("queues", error),
        }
    }
}

/// Refuses what the kernel refuses (`dev_valid_name`), and `%`, which it takes for a pattern.
pub(crate) fn check_name(name: &str) -> Result<(), TapError> {
    let is_bad = |byte: u8| {
        byte.is_ascii_whitespace() || byte == 0x0b || matches!(byte, b'/' | b':' | b'%' | 0)
    };
    if name.is_empty()
        || name.len() >= IF_NAME_BYTES
        || name == "."
        || name == ".."
        || name.bytes().any(is_bad)
    {
        return Err(TapError::BadName { name: name.into() });
    }
    Ok(())
}

fn exists(socket: &UdpSocket, name: &str) -> bool {
    sys::ioctl_ifreq(socket, libc::SIOCGIFINDEX, &mut IfReq::new(name)).is_ok()
}

fn open_tun() -> Result<File, TapError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN_PATH)
        .map_err(|source| match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoTunDevice,
            _ => TapError::OpenTun { source },
        })
}

fn set_iff(file: &File, name: &str, flags: libc::c_int) -> io::Result<()> {
    // The kernel reads 16 bits of flags.
    let mut request = IfReq::new(name).with(&flags.to_ne_bytes()[..2]);
    sys::ioctl_ifreq(file, libc::TUNSETIFF, &mut request)
}

/// Opens the first queue; answers the flags that the other queues need too.
fn open_first(
    name: &str,
    num_queue_pairs: u16,
    is_new: bool,
) -> Result<(File, libc::c_int), TapError> {
    let file = open_tun()?;
    let base = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let flags = if num_queue_pairs > 1 {
        base | libc::IFF_MULTI_QUEUE
    } else {
        base
    };
    // With EXCL nobody can slip an interface in between our look and our making one.
    let exclusive = if is_new { libc::IFF_TUN_EXCL } else { 0 };
    let name_owned = || name.to_owned();
    let error = match set_iff(&file, name, flags | exclusive) {
        Ok(()) => return Ok((file, flags)),
        Err(error) => error,
    };
    match error.raw_os_error() {
        Some(libc::EPERM) if is_new => Err(TapError::CannotMake {
            name: name_owned(),
            mode: if num_queue_pairs > 1 {
                "mode tap multi_queue"
            } else {
                "mode tap"
            },
        }),
        Some(libc::EPERM) => Err(TapError::NotOwner { name: name_owned() }),
        Some(libc::EBUSY) => Err(TapError::Busy { name: name_owned() }),
        Some(libc::EINVAL) if !is_new => open_other_kind(file, name, num_queue_pairs, flags),
        _ => Err(TapError::Setting {
            name: name_owned(),
            what: "name and flags",
            source: error,
        }),
    }
}

/// The interface exists and does not match: it is no TAP, or has the other number of queues.
fn open_other_kind(
    file: File,
    name: &str,
    num_queue_pairs: u16,
    flags: libc::c_int,
) -> Result<(File, libc::c_int), TapError> {
    let name_owned = || name.to_owned();
    let flags = flags ^ libc::IFF_MULTI_QUEUE;
    let result = set_iff(&file, name, flags);
    let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
    if errno == Some(libc::EINVAL) {
        return Err(TapError::NotTap { name: name_owned() });
    }
    if num_queue_pairs > 1 {
        return Err(TapError::SingleQueue {
            name: name_owned(),
            num_queue_pairs,
        });
    }
    match errno {
        None => Ok((file, flags)),
        Some(libc::EPERM) => Err(TapError::NotOwner { name: name_owned() }),
        Some(_) => Err(TapError::Busy { name: name_owned() }),
    }
}

/// The first 8 bytes of `struct sockaddr_in`: family, port 0, address.
fn sockaddr_in(address: Ipv4Addr) -> [u8; 8] {
    let [f0, f1] = AF_INET.to_ne_bytes();
    let [a, b, c, d] = address.octets();
    [f0, f1, 0, 0, a, b, c, d]
}

#[cfg(test)]
mod tests;
