//! A port: one interface, with the client that has it open.

use parking_lot::Mutex;
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::frame::{Frame, Scratch};
use super::mac::MacAddress;
use super::metrics::PortMetrics;
use super::rx::Receiver;

/// One interface of a device.
pub(super) struct Port {
    /// Device and bus, for the log.
    name: String,
    admin: Mutex<Admin>,
    /// There while the link is up. Its lock is held for one frame, by whoever delivers that.
    receiver: Mutex<Option<Receiver>>,
    /// Makes the worker look at everything.
    kick: EventFd,
    pub(super) metrics: PortMetrics,
}

struct Admin {
    mac: MacAddress,
    is_open: bool,
}

impl Port {
    /// A port called `name` with a random address.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(super) fn new(name: String) -> Result<Self, Errno> {
        Ok(Port {
            name,
            admin: Mutex::new(Admin {
                mac: MacAddress::random(),
                is_open: false,
            }),
            receiver: Mutex::new(None),
            kick: EventFd::new(EFD_NONBLOCK).map_err(|_| Errno::MFILE)?,
            metrics: PortMetrics::default(),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn mac(&self) -> MacAddress {
        self.admin.lock().mac
    }

    /// Gives the port another address.
    ///
    /// # Errors
    /// `EINVAL` for one that no station can have, `EBUSY` while a client is connected.
    pub(super) fn set_mac(&self, mac: MacAddress) -> Result<(), Errno> {
        if !mac.is_station() {
            return Err(Errno::INVAL);
        }
        let mut admin = self.admin.lock();
        if admin.is_open {
            return Err(Errno::BUSY);
        }
        admin.mac = mac;
        Ok(())
    }

    pub(super) fn is_open(&self) -> bool {
        self.admin.lock().is_open
    }

    /// Takes the port for a client.
    ///
    /// # Errors
    /// `EBUSY` if another has it.
    pub(super) fn open(&self) -> Result<(), Errno> {
        let mut admin = self.admin.lock();
        if admin.is_open {
            return Err(Errno::BUSY);
        }
        admin.is_open = true;
        Ok(())
    }

    pub(super) fn close(&self) {
        self.admin.lock().is_open = false;
    }

    pub(super) fn set_receiver(&self, receiver: Option<Receiver>) -> Option<Receiver> {
        std::mem::replace(&mut *self.receiver.lock(), receiver)
    }

    /// Runs `action` on the receiver, if the link is up.
    pub(super) fn with_receiver<R>(&self, action: impl FnOnce(&mut Receiver) -> R) -> Option<R> {
        self.receiver.lock().as_mut().map(action)
    }

    pub(super) fn is_link_up(&self) -> bool {
        self.receiver.lock().is_some()
    }

    /// Copies `frame` to the client, or counts it as dropped; what that took, in frames copied.
    pub(super) fn deliver(&self, frame: &Frame<'_>, scratch: &mut Scratch) -> u32 {
        match &mut *self.receiver.lock() {
            Some(receiver) if !receiver.is_cut_off() => {
                receiver.deliver(frame, scratch, &self.metrics)
            }
            _ => {
                self.metrics.rx_dropped.add(1);
                1
            }
        }
    }

    /// Wakes the client if it has received something.
    pub(super) fn flush(&self) {
        self.with_receiver(|receiver| receiver.notify(&self.metrics));
    }

    /// What makes the worker look at everything.
    pub(super) fn kick_evt(&self) -> &EventFd {
        &self.kick
    }

    pub(super) fn kick(&self) {
        // Fails only when the counter is full, and then it is readable.
        let _ = self.kick.write(1);
    }
}
