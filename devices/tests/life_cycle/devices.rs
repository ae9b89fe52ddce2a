//! The devices whose lives are tested, and a good request of each.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use alacrity_devices::virtio::VirtioDevice;
use alacrity_devices::virtio::balloon::BalloonDevice;
use alacrity_devices::virtio::blk::{BlkDevice, Disk, Serial};
use alacrity_devices::virtio::net::{Backend, NetDevice};
use alacrity_devices::virtio::rng::RngDevice;

/// Bytes of a virtio-net header (VIRTIO 1.2 §5.1.6) and of the smallest frame.
const HEADER_BYTES: usize = 12;
const FRAME_BYTES: usize = 60;
const SECTOR_BYTES: usize = 512;

/// Which device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Rng,
    Blk,
    Balloon,
    /// Of two queue pairs.
    Net,
}

/// A buffer of a request.
pub enum Part {
    /// The driver wrote it.
    Driver(Vec<u8>),
    /// The device shall write so many bytes.
    Device(usize),
}

/// The other ends of a network interface's queue pairs, if it is one.
pub struct Peer(Vec<UnixDatagram>);

impl Peer {
    /// Sends a frame on each.
    pub fn send(&self) {
        for socket in &self.0 {
            // Full is good enough: then there are frames.
            let _ = socket.send(&[0; HEADER_BYTES + FRAME_BYTES]);
        }
    }

    /// Takes all that has come.
    pub fn drain(&self) {
        for socket in &self.0 {
            while socket.recv(&mut [0; 1 << 16]).is_ok() {}
        }
    }
}

impl Kind {
    /// A device called `name`.
    pub fn make(self, name: &str) -> (Box<dyn VirtioDevice>, Peer) {
        let name = name.to_owned();
        let device: Box<dyn VirtioDevice> = match self {
            Kind::Rng => Box::new(RngDevice::new(name, Arc::default()).unwrap()),
            Kind::Balloon => Box::new(BalloonDevice::new(name, Arc::default())),
            Kind::Blk => {
                let image = tempfile::NamedTempFile::new().unwrap();
                image.as_file().set_len(1 << 20).unwrap();
                let disk = Arc::new(Disk::open(image.path(), false).unwrap());
                let serial = Serial::new("life").unwrap();
                Box::new(BlkDevice::new(name, disk, serial, Arc::default()))
            }
            Kind::Net => {
                let pairs = [(); 2].map(|()| UnixDatagram::pair().unwrap());
                let (ours, theirs) = pairs.into_iter().unzip::<_, _, Vec<_>, Vec<_>>();
                for socket in &theirs {
                    socket.set_nonblocking(true).unwrap();
                }
                let backend = Backend::Datagram(ours);
                let device = NetDevice::new(name, backend, [2, 0, 0, 0, 0, 1], None).unwrap();
                return (Box::new(device), Peer(theirs));
            }
        };
        (device, Peer(Vec::new()))
    }

    /// The queue of a good request, and its buffers.
    pub fn request(self) -> (u16, Vec<Part>) {
        match self {
            Kind::Rng => (0, vec![Part::Device(64)]),
            // A read of the first sector (§5.2.6).
            Kind::Blk => {
                let parts = [
                    Part::Driver(vec![0; 16]),
                    Part::Device(SECTOR_BYTES),
                    Part::Device(1),
                ];
                (0, parts.into())
            }
            // The number of page 15, which nothing is in (§5.5.6).
            Kind::Balloon => (0, vec![Part::Driver(vec![15, 0, 0, 0])]),
            Kind::Net => (1, vec![Part::Driver(vec![0; HEADER_BYTES + FRAME_BYTES])]),
        }
    }

    /// Whether `last` may be the last byte of a request's buffers when it is done.
    pub fn is_good(self, last: u8) -> bool {
        match self {
            // Its status.
            Kind::Blk => last == 0,
            Kind::Rng | Kind::Balloon | Kind::Net => true,
        }
    }
}
