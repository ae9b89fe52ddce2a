//! What each call does.

use std::sync::Arc;

use rustix::io::Errno;
use vbus::abi::pci::{
    Channel, Close, DeviceCall, DeviceInfo, EventQueue as EventQueueArgs, KIND_BYTES,
    MAX_CALL_BYTES, NO_SIGNAL, NO_VECTOR, NUM_VECTORS, Negotiate, Open, Shm, VERSION, cap, func,
};
use vbus::memory::{Region, RegionError};
use vbus::verbs::{Handle, InterfaceId, ShmRequest, SignalRequest, Verbs, WakeUp};
use vm_memory::GuestAddress;

use super::OnLoss;
use super::connector::{Connector, Phase, Session};
use super::events::EventWakeUp;
use super::mailbox::{Args, Place, change_bytes};
use super::queue::EventQueue;

/// Capabilities offered.
pub(super) const CAPABILITIES: u64 = cap::DEVICE_LOST | cap::SIGNAL_PORTS;

impl Connector {
    /// A call that changes what the session is; no other call runs meanwhile.
    pub(super) fn set_up(
        &self,
        session: &mut Session,
        func: u32,
        args: &mut Args,
    ) -> Result<u32, Errno> {
        if func == func::NEGOTIATE {
            return negotiate(session, args);
        }
        if session.phase < Phase::Negotiated {
            return Err(Errno::INVAL);
        }
        match func {
            func::EVENT_QUEUE => self.add_event_queue(session, args.get()),
            func::START => self.start(session),
            func::CHANNEL => self.add_channel(session, args.get()),
            _ => Err(Errno::INVAL),
        }
    }

    /// A call of a started session; others run at the same time. It is at `near`, if that is known.
    pub(super) fn work(
        &self,
        session: &Session,
        func: u32,
        args: &mut Args,
        near: Option<&Place>,
    ) -> Result<u32, Errno> {
        let verbs = session.verbs.as_deref().ok_or(Errno::INVAL)?;
        match func {
            func::DEVICE_INFO => device_info(session, args),
            func::OPEN => open(session, verbs, args),
            func::DEVICE_CALL => self.device_call(verbs, args.get(), near),
            func::SHM => self.share(session, verbs, args),
            func::CLOSE => close(session, verbs, args.get()),
            _ => Err(Errno::INVAL),
        }
    }

    fn add_event_queue(&self, session: &Session, args: EventQueueArgs) -> Result<u32, Errno> {
        let vector = args.vector.get();
        if vector >= NUM_VECTORS {
            return Err(Errno::INVAL);
        }
        let region = self.region(args.addr.get(), args.len.get())?;
        let queue = EventQueue::attach(region, vector)?;
        session.events.add_queue(args.queue.get(), queue)?;
        Ok(0)
    }

    fn start(&self, session: &mut Session) -> Result<u32, Errno> {
        if session.phase == Phase::Started {
            return Err(Errno::BUSY);
        }
        if !session.events.has_all_queues() {
            return Err(Errno::INVAL);
        }
        let events = Arc::clone(&session.events);
        session.verbs = Some(self.uplink().attach(events, session.on_loss)?);
        session.phase = Phase::Started;
        Ok(0)
    }

    fn add_channel(&self, session: &mut Session, args: Channel) -> Result<u32, Errno> {
        let idx = usize::try_from(args.channel.get()).map_err(|_| Errno::INVAL)?;
        match session.channels.get_mut(idx).ok_or(Errno::INVAL)? {
            Some(_) => Err(Errno::BUSY),
            channel => {
                let addr = args.addr.get();
                let place = Place::find(&self.ram, addr);
                *channel = Some(super::connector::Channel { addr, place });
                Ok(0)
            }
        }
    }

    fn device_call(
        &self,
        verbs: &dyn Verbs,
        args: DeviceCall,
        near: Option<&Place>,
    ) -> Result<u32, Errno> {
        // The bus looks whether there is one: this client's handles are those of the session.
        let handle = Handle(args.handle.get());
        if args.len.get() > MAX_CALL_BYTES {
            return Err(Errno::INVAL);
        }
        let len = usize::try_from(args.len.get()).map_err(|_| Errno::INVAL)?;
        change_bytes(&self.ram, near, args.addr.get(), len, |data| {
            verbs.call(handle, args.func.get(), data)
        })
    }

    fn share(&self, session: &Session, verbs: &dyn Verbs, args: &mut Args) -> Result<u32, Errno> {
        let mut shm: Shm = args.get();
        let handle = session.handles.lock().check(shm.handle.get())?;
        let region = self.region(shm.addr.get(), shm.len.get())?;
        let has_signal = shm.signal_offset.get() != NO_SIGNAL;
        let vector = shm.vector.get();
        if has_signal && vector != NO_VECTOR && vector >= NUM_VECTORS {
            return Err(Errno::INVAL);
        }
        let cookie = self.new_cookie();
        let events = &session.events;
        let number = events.add_shm(cookie, shm.cookie.get(), shm.priority.get(), has_signal)?;
        let signal = number.map(|number| self.signal_request(session, cookie, number, &shm));
        let shared = signal.transpose().and_then(|signal| {
            let request = ShmRequest {
                id: shm.id.get(),
                priority: shm.priority.get(),
                cookie,
                region,
                signal,
            };
            verbs.shm(handle, request)
        });
        if let Err(error) = shared {
            events.remove_shm(cookie);
            return Err(error);
        }
        shm.signal = number.unwrap_or(NO_SIGNAL).into();
        args.set(&shm);
        Ok(0)
    }

    /// # Errors
    /// `EMFILE`: the host is out of file descriptors.
    fn signal_request(
        &self,
        session: &Session,
        cookie: u64,
        number: u32,
        shm: &Shm,
    ) -> Result<SignalRequest, Errno> {
        let doorbell = self.around.signals.doorbell(number).ok_or(Errno::INVAL)?;
        let wake_up: Arc<dyn WakeUp> = match self.around.vectors.irqfd(shm.vector.get()) {
            Some(irqfd) => Arc::new(irqfd.try_clone().map_err(|_| Errno::MFILE)?),
            None => Arc::new(EventWakeUp {
                events: Arc::clone(&session.events),
                cookie,
            }),
        };
        Ok(SignalRequest {
            offset: shm.signal_offset.get(),
            doorbell: doorbell.try_clone().map_err(|_| Errno::MFILE)?,
            wake_up,
        })
    }

    /// # Errors
    /// `EFAULT`: not all of it is memory of one range. `EINVAL`: not at a multiple of 8.
    fn region(&self, addr: u64, len: u32) -> Result<Region, Errno> {
        let len = usize::try_from(len).map_err(|_| Errno::INVAL)?;
        Region::from_ram(&self.ram, GuestAddress(addr), len).map_err(|error| match error {
            RegionError::Unaligned { .. } => Errno::INVAL,
            _ => Errno::FAULT,
        })
    }
}

fn negotiate(session: &mut Session, args: &mut Args) -> Result<u32, Errno> {
    if session.phase != Phase::Initial {
        return Err(Errno::BUSY);
    }
    let mut negotiate: Negotiate = args.get();
    if negotiate.version.get() != VERSION {
        return Err(Errno::INVAL);
    }
    let given = negotiate.capabilities.get() & CAPABILITIES;
    if given & cap::DEVICE_LOST != 0 {
        session.on_loss = OnLoss::Keep;
    }
    negotiate.capabilities = given.into();
    args.set(&negotiate);
    session.phase = Phase::Negotiated;
    Ok(0)
}

fn device_info(session: &Session, args: &mut Args) -> Result<u32, Errno> {
    let mut info: DeviceInfo = args.get();
    let kind = session.events.kind(info.id.get()).ok_or(Errno::NOENT)?;
    info.kind = [0; KIND_BYTES];
    // The last byte stays zero, however long it is.
    let places = info.kind.iter_mut().take(KIND_BYTES - 1);
    for (place, byte) in places.zip(kind.bytes()) {
        *place = byte;
    }
    args.set(&info);
    Ok(0)
}

fn open(session: &Session, verbs: &dyn Verbs, args: &mut Args) -> Result<u32, Errno> {
    let mut open: Open = args.get();
    session.handles.lock().reserve()?;
    let opened = verbs.open(InterfaceId(open.id.get()), open.version.get());
    session.handles.lock().settle(opened.as_ref().ok().copied());
    open.handle = opened?.0.into();
    args.set(&open);
    Ok(0)
}

fn close(session: &Session, verbs: &dyn Verbs, args: Close) -> Result<u32, Errno> {
    let handle = session.handles.lock().remove(args.handle.get())?;
    verbs.close(handle)?;
    Ok(0)
}
