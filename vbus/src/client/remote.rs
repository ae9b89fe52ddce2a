//! A member of a bus in another process than the host.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::Timespec;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

use super::inbox::Device;
use super::link::Link;
use crate::abi::wire::{
    Call, Close, MAX_TEXT_BYTES, MemAdd, MemDrop, Open, Opened, Pages, Shm, cap, kind, shm_flag,
};
use crate::eventfd;
use crate::loan;
use crate::memory::Region;
use crate::residency::{PageMap, Visit};
use crate::verbs::{Event, Handle, InterfaceId, MAX_CALL_BYTES, ShmRequest, Verbs};

/// The verbs over a socket. Dropping it closes all that it has open.
pub struct Remote {
    link: Arc<Link>,
    memory: Mutex<Vec<Registered>>,
}

/// Memory that the daemon knows by address.
struct Registered {
    base: u64,
    region: Region,
}

/// What [`Shm`] says of the memory, and the file if it has to go along.
struct Location<'a> {
    start: u64,
    file: Option<&'a File>,
}

impl Remote {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Remote {
            link,
            memory: Mutex::default(),
        }
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Interfaces on the bus now, with what they speak, by id.
    ///
    /// # Errors
    /// `ECONNRESET`: the daemon is gone.
    pub fn devices(&self) -> Result<Vec<(InterfaceId, String)>, Errno> {
        let devices = self.placed_devices()?.into_iter();
        Ok(devices.map(|device| (device.id, device.kind)).collect())
    }

    /// As [`Remote::devices`], and where they are plugged in.
    ///
    /// # Errors
    /// As of [`Remote::devices`].
    pub fn placed_devices(&self) -> Result<Vec<Device>, Errno> {
        self.link.pump()?;
        Ok(self.link.devices())
    }

    /// The next event, if there is one. Never waits.
    ///
    /// # Errors
    /// `ECONNRESET`: the daemon is gone, and there are no more events.
    pub fn try_next_event(&self) -> Result<Option<Event>, Errno> {
        self.link.next_event()
    }

    /// The next event; `None` after `timeout`.
    ///
    /// # Errors
    /// As of [`Remote::try_next_event`].
    pub fn next_event(&self, timeout: Duration) -> Result<Option<Event>, Errno> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            if let Some(event) = self.try_next_event()? {
                return Ok(Some(event));
            }
            if !wait_readable(&[self.as_fd()], deadline)? {
                return Ok(None);
            }
        }
    }

    /// Registers new zeroed memory of `len` bytes at the address `base`; both are multiples of
    /// 4096. Devices find there what slots point to.
    ///
    /// # Errors
    /// `EINVAL`: not whole pages. `EEXIST`: overlaps. `EDQUOT`: too much. `ENOMEM`: this host is out
    /// of memory or descriptors. `ECONNRESET`.
    pub fn add_memory(&self, base: u64, len: usize) -> Result<Region, Errno> {
        let (region, _) = Region::new_shared(len).map_err(|_| Errno::NOMEM)?;
        self.add_region(base, &region)?;
        Ok(region)
    }

    /// Registers memory that is in a sealed memfd already. Parts of it can be shared as a
    /// [`ShmRequest::region`] without another descriptor. [`loan::is_lent`] tells when the daemon has
    /// let go of it.
    ///
    /// # Errors
    /// As of [`Remote::add_memory`]. `EINVAL` also for private memory, and for memory that is not
    /// sealed, whereupon the daemon hangs up.
    pub fn add_region(&self, base: u64, region: &Region) -> Result<(), Errno> {
        let (file, offset) = region.memfd().ok_or(Errno::INVAL)?;
        let lent = loan::lend(file)?;
        let body = MemAdd {
            base: base.into(),
            len: (region.len() as u64).into(),
            offset: offset.into(),
        };
        self.request(kind::MEM_ADD, &[body.as_bytes()], &[lent.as_fd()])?;
        self.memory.lock().push(Registered {
            base,
            region: region.clone(),
        });
        Ok(())
    }

    /// Says which pages of the memory that is registered are there, before any interface is opened: they
    /// are those of `map`. The daemon uses what `visit` lends it, writes to `asked` when it wishes for
    /// pages there, and wants `served` to be written to when it got them.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: the daemon does not take it. `EEXIST`: it was said before. `EDQUOT`, `ENOMEM`,
    /// `ECONNRESET`.
    pub fn add_pages(
        &self,
        map: &PageMap,
        visit: &Visit,
        (asked, served): (&EventFd, &EventFd),
    ) -> Result<(), Errno> {
        if self.link.caps() & cap::PAGES == 0 {
            return Err(Errno::OPNOTSUPP);
        }
        let body = Pages {
            num_pages: map.num_pages().into(),
        };
        let lent = visit.lend()?;
        let events = [asked, served].map(eventfd::as_fd);
        let [asked, served] = events;
        let fds = [map.as_fd(), lent.as_fd(), asked, served];
        self.request(kind::PAGES, &[body.as_bytes()], &fds)
            .map(drop)
    }

    /// Takes the memory at `base` back from the devices. What they already use, they go on using
    /// until they are done: close their connections first.
    ///
    /// # Errors
    /// `ENOENT`: nothing was registered there. `ECONNRESET`.
    pub fn drop_memory(&self, base: u64) -> Result<(), Errno> {
        let body = MemDrop { base: base.into() };
        self.request(kind::MEM_DROP, &[body.as_bytes()], &[])?;
        self.memory
            .lock()
            .retain(|registered| registered.base != base);
        Ok(())
    }

    /// Says something about this process, for `sys/vms` of the control tree; see
    /// [`crate::bus::Member::report`].
    ///
    /// # Errors
    /// `EOPNOTSUPP`: the daemon does not take it. `EINVAL`, `EDQUOT`: it cannot be shown.
    /// `ECONNRESET`.
    pub fn report(&self, text: &str) -> Result<(), Errno> {
        if self.link.caps() & cap::REPORT == 0 {
            return Err(Errno::OPNOTSUPP);
        }
        if text.len() > MAX_TEXT_BYTES {
            return Err(Errno::INVAL);
        }
        self.request(kind::REPORT, &[text.as_bytes()], &[])
            .map(drop)
    }

    /// Hangs up without asking the daemon, also while other threads wait for it: they and all later
    /// requests get `ECONNRESET`.
    pub fn hang_up(&self) {
        self.link.hang_up();
    }

    /// True once the connection is of no use any more. Then nobody knows whether the daemon did what
    /// it was asked for at last.
    pub fn is_broken(&self) -> bool {
        self.link.is_broken()
    }

    fn request(
        &self,
        kind: u16,
        body: &[&[u8]],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(u32, Vec<u8>), Errno> {
        let reply = self.link.exchange(kind, body, fds)?;
        Ok((reply.result?, reply.body))
    }

    fn locate<'a>(&self, region: &'a Region) -> Result<Location<'a>, Errno> {
        let memory = self.memory.lock();
        let known = memory.iter().find_map(|registered| {
            let offset = region.offset_in(&registered.region)?;
            registered.base.checked_add(offset as u64)
        });
        if let Some(start) = known {
            return Ok(Location { start, file: None });
        }
        let (file, start) = region.memfd().ok_or(Errno::INVAL)?;
        Ok(Location {
            start,
            file: Some(file),
        })
    }
}

impl Verbs for Remote {
    fn open(&self, id: InterfaceId, version: u32) -> Result<Handle, Errno> {
        let body = Open {
            interface: id.0.into(),
            version: version.into(),
        };
        let (_, result) = self.request(kind::OPEN, &[body.as_bytes()], &[])?;
        let opened = Opened::read_from_bytes(&result).map_err(|_| Errno::PROTO)?;
        let handle = Handle(opened.handle.get());
        self.link.opened(handle, id);
        Ok(handle)
    }

    fn call(&self, handle: Handle, func: u32, data: &mut [u8]) -> Result<u32, Errno> {
        if data.len() > MAX_CALL_BYTES {
            return Err(Errno::INVAL);
        }
        let body = Call {
            handle: handle.0.into(),
            func: func.into(),
            ..Call::default()
        };
        let (status, result) = self.request(kind::CALL, &[body.as_bytes(), data], &[])?;
        if result.len() != data.len() {
            return Err(Errno::PROTO);
        }
        data.copy_from_slice(&result);
        Ok(status)
    }

    /// The region is in memory that was registered, or at a page of a sealed memfd, else `EINVAL`.
    /// Cookies of one [`Remote`] differ. A wake-up that is more than an eventfd runs in whatever
    /// thread takes events or calls.
    fn shm(&self, handle: Handle, request: ShmRequest) -> Result<(), Errno> {
        let location = self.locate(&request.region)?;
        let mut flags = 0;
        let mut fds = Vec::with_capacity(3);
        if let Some(file) = location.file {
            flags |= shm_flag::MEMFD;
            fds.push(file.as_fd());
        }
        let mut signal_offset = 0;
        if let Some(signal) = &request.signal {
            signal_offset = signal.offset;
            flags |= shm_flag::DOORBELL;
            fds.push(eventfd::as_fd(&signal.doorbell));
            let can_post = self.link.caps() & cap::WAKE_UP_EVENTFD != 0;
            if let Some(eventfd) = signal.wake_up.as_eventfd().filter(|_| can_post) {
                flags |= shm_flag::WAKE_UP;
                fds.push(eventfd::as_fd(eventfd));
            }
            // Before it is shared: the first signal can overtake the answer.
            let wake_up = Arc::clone(&signal.wake_up);
            self.link.shared(request.cookie, handle, wake_up);
        }
        let mut body = Shm {
            handle: handle.0.into(),
            cookie: request.cookie.into(),
            start: location.start.into(),
            len: (request.region.len() as u64).into(),
            id: request.id.into(),
            priority: request.priority.into(),
            signal_offset: signal_offset.into(),
            flags: flags.into(),
        };
        let mut shared = self.request(kind::SHM, &[body.as_bytes()], &fds);
        if flags & shm_flag::WAKE_UP != 0 && matches!(shared, Err(Errno::OPNOTSUPP)) {
            // The daemon has no more means for eventfds: let it send messages.
            fds.pop();
            body.flags = (flags & !shm_flag::WAKE_UP).into();
            shared = self.request(kind::SHM, &[body.as_bytes()], &fds);
        }
        if shared.is_err() && request.signal.is_some() {
            self.link.unshared(request.cookie, handle);
        }
        shared.map(drop)
    }

    fn close(&self, handle: Handle) -> Result<(), Errno> {
        let body = Close {
            handle: handle.0.into(),
        };
        let closed = self.request(kind::CLOSE, &[body.as_bytes()], &[]);
        self.link.closed(handle);
        closed.map(drop)
    }
}

/// Readable when [`Remote::try_next_event`] may have something to tell: an event, or that the daemon
/// is gone. It can be readable for nothing.
impl AsFd for Remote {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.events_fd()
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

/// Waits until one of up to two descriptors is readable; false if the deadline came first.
///
/// # Errors
/// The kernel refuses.
pub(super) fn wait_readable(
    fds: &[BorrowedFd<'_>],
    deadline: Option<Instant>,
) -> Result<bool, Errno> {
    let mut fds: Vec<PollFd<'_>> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    loop {
        let timeout = deadline.map(|deadline| {
            let time_left = deadline.saturating_duration_since(Instant::now());
            Timespec::try_from(time_left).unwrap_or(Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            })
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(num_ready) => return Ok(num_ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}
