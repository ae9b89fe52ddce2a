//! For tests: a device class that serves one ring and reverses the buffers in it.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::attribute::Attribute;
use crate::device::{Connection, Device, DeviceClass, Interface, InterfaceOffer, Peer, Shm};
use crate::eventfd;
use crate::ring::{Slot, South};

/// Kind of the interfaces, and name of the class.
pub const KIND: &str = "ring-echo";
/// Version of their ABI.
pub const VERSION: u32 = 1;
/// Id of the ring, which has a signal.
pub const RING_ID: u32 = 0;
/// Most bytes of a buffer.
pub const MAX_BUFFER_BYTES: usize = 4096;

/// Functions.
pub mod func {
    /// Reverses the data; the result is their length.
    pub const REVERSE: u32 = 0;
}

/// Slots that are served at a time.
const BATCH: usize = 16;

/// A class of devices that return every slot with the bytes of its buffer reversed.
#[derive(Debug, Clone, Copy)]
pub struct RingEchoClass;

impl DeviceClass for RingEchoClass {
    fn name(&self) -> &'static str {
        KIND
    }

    fn create(&self, _name: &str) -> Result<Arc<dyn Device>, Errno> {
        Ok(Arc::new(RingEcho))
    }
}

struct RingEcho;

impl Device for RingEcho {
    fn attributes(&self) -> Vec<(&'static str, Arc<dyn Attribute>)> {
        Vec::new()
    }

    fn connect_bus(&self, _bus: &str) -> Result<Vec<InterfaceOffer>, Errno> {
        Ok(vec![InterfaceOffer {
            name: "default".to_owned(),
            kind: KIND,
            interface: Arc::new(RingEcho),
        }])
    }

    fn disconnect_bus(&self, _bus: &str) {}
}

impl Interface for RingEcho {
    fn connect(&self, peer: Peer) -> Result<Arc<dyn Connection>, Errno> {
        if peer.version != VERSION {
            return Err(Errno::INVAL);
        }
        Ok(Arc::new(EchoConnection {
            peer,
            worker: Mutex::default(),
        }))
    }
}

struct EchoConnection {
    peer: Peer,
    worker: Mutex<Option<Worker>>,
}

struct Worker {
    stop: EventFd,
    thread: JoinHandle<()>,
}

impl Connection for EchoConnection {
    fn call(&self, func: u32, data: &mut [u8]) -> Result<u32, Errno> {
        match func {
            func::REVERSE => {
                data.reverse();
                u32::try_from(data.len()).map_err(|_| Errno::INVAL)
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn shm(&self, shm: Shm) -> Result<(), Errno> {
        let mut worker = self.worker.lock();
        if shm.id != RING_ID || shm.signal.is_none() {
            return Err(Errno::INVAL);
        }
        if worker.is_some() {
            return Err(Errno::EXIST);
        }
        let south = South::attach(shm.region.clone()).map_err(|_| Errno::INVAL)?;
        let stop =
            EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(|_| Errno::MFILE)?;
        let their_stop = stop.try_clone().map_err(|_| Errno::MFILE)?;
        let peer = self.peer.clone();
        let thread = std::thread::Builder::new()
            .name("ring-echo".to_owned())
            .spawn(move || serve(&peer, &shm, south, &their_stop))
            .map_err(|_| Errno::AGAIN)?;
        *worker = Some(Worker { stop, thread });
        Ok(())
    }

    fn close(&self) {
        let worker = self.worker.lock().take();
        if let Some(worker) = worker {
            let _ = worker.stop.write(1);
            let _ = worker.thread.join();
        }
    }
}

/// Serves the ring until the connection is closed or the client breaks the rules.
fn serve(peer: &Peer, shm: &Shm, mut south: South, stop: &EventFd) {
    let Some(signal) = &shm.signal else { return };
    let stopped = |timeout| {
        let mut fds = [
            PollFd::from_borrowed_fd(eventfd::as_fd(stop), PollFlags::IN),
            PollFd::from_borrowed_fd(eventfd::as_fd(&signal.doorbell), PollFlags::IN),
        ];
        let _ = poll(&mut fds, timeout);
        let [stop, _] = fds;
        !stop.revents().is_empty()
    };
    let no_time = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    loop {
        signal.drain_doorbell();
        signal.receiver.disable();
        let mut slots = [Slot::default(); BATCH];
        match south.take(&mut slots) {
            Err(fault) => {
                peer.faults.report(&fault);
                return;
            }
            Ok(0) => {
                if signal.receiver.enable() && stopped(None) || stopped(Some(&no_time)) {
                    return;
                }
            }
            Ok(num_slots) => {
                let slots = slots.get_mut(..num_slots).unwrap_or_default();
                for slot in &mut *slots {
                    reverse(peer, slot);
                }
                south.give_back_filled(slots);
                signal.notify();
                if stopped(Some(&no_time)) {
                    return;
                }
            }
        }
    }
}

/// Reverses the buffer; a slot with a bad one comes back with length 0.
fn reverse(peer: &Peer, slot: &mut Slot) {
    let mut bytes = [0; MAX_BUFFER_BYTES];
    let ram = peer.memory.snapshot();
    let gpa = GuestAddress(slot.addr);
    let done = bytes.get_mut(..slot.len as usize).is_some_and(|bytes| {
        ram.read_slice(bytes, gpa).is_ok() && {
            bytes.reverse();
            ram.write_slice(bytes, gpa).is_ok()
        }
    });
    if !done {
        slot.len = 0;
    }
}
