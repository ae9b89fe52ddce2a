//! A client's connection: set-up order, negotiation, rings.

use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;
use vbus::abi::venet::{
    Capabilities, LinkInfo, MAX_SEGMENT_POOL_BYTES, VERSION, cap_group, event_cap, func, rx_cap,
    shm_id, tx_cap,
};
use vbus::device::{Connection, Interface, Peer, Shm};
use vbus::memory::Region;
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

use super::frame::{Limits, Scratch};
use super::handler::{Doorbells, EventQueue, Handler};
use super::path::Backend;
use super::poll::Poll;
use super::port::Port;
use super::rx::Receiver;
use super::tx::Sender;
use crate::client::{Client, RingEnd};
use crate::worker::Worker;

/// One interface: a port and what is behind it.
pub(super) struct VenetInterface {
    pub(super) port: Arc<Port>,
    pub(super) backend: Arc<dyn Backend>,
}

impl Interface for VenetInterface {
    fn connect(&self, peer: Peer) -> Result<Arc<dyn Connection>, Errno> {
        if peer.version != VERSION {
            return Err(Errno::INVAL);
        }
        self.backend.check_open()?;
        self.port.open()?;
        Ok(Arc::new(VenetConnection {
            port: Arc::clone(&self.port),
            backend: Arc::clone(&self.backend),
            client: Arc::new(Client::new(Arc::clone(&peer.faults))),
            peer,
            state: Mutex::new(Some(State::default())),
        }))
    }
}

/// Capabilities by group.
#[derive(Debug, Clone, Copy, Default)]
struct Caps {
    tx: u32,
    events: u32,
    rx: u32,
}

/// What a connection has until it is closed. Dropped in this order: rings before their memory.
#[derive(Default)]
struct State {
    caps: Caps,
    /// While the link is up.
    worker: Option<Worker>,
    /// While the link is down; the port has it otherwise.
    receiver: Option<Receiver>,
    sender: Option<Arc<Mutex<Sender>>>,
    events: Option<Arc<Mutex<EventQueue>>>,
    pool: Option<Region>,
    rx_doorbell: Option<Arc<EventFd>>,
    tx_doorbell: Option<Arc<EventFd>>,
    event_doorbell: Option<Arc<EventFd>>,
    shms: Vec<Shm>,
}

/// One client's connection.
struct VenetConnection {
    port: Arc<Port>,
    backend: Arc<dyn Backend>,
    client: Arc<Client>,
    peer: Peer,
    /// `None` once it is closed.
    state: Mutex<Option<State>>,
}

impl VenetConnection {
    fn link_up(&self, state: &mut State) -> Result<u32, Errno> {
        if state.worker.is_some() {
            return Err(Errno::EXIST);
        }
        let has_events = state.caps.events & event_cap::LINK_STATE != 0;
        let is_pool_missing = state.caps.tx & tx_cap::SG != 0 && state.pool.is_none();
        if is_pool_missing || (has_events && state.events.is_none()) {
            return Err(Errno::INVAL);
        }
        let (Some(sender), Some(rx), Some(tx)) =
            (&state.sender, &state.rx_doorbell, &state.tx_doorbell)
        else {
            return Err(Errno::INVAL);
        };
        let residency = self.peer.memory.residency();
        let access = || match &residency {
            Some(residency) => residency.access().map(Some).ok_or(Errno::NOSPC),
            None => Ok(None),
        };
        let (rx_access, tx_access) = (access()?, access()?);
        let mut receiver = state.receiver.take().ok_or(Errno::INVAL)?;
        let ram = self.peer.memory.snapshot();
        let limits = Limits {
            caps: state.caps.tx,
            mtu: self.backend.mtu(),
        };
        receiver.configure(ram.clone(), state.caps.rx, rx_access);
        let pool = state.pool.clone();
        sender.lock().configure(ram, limits, pool, tx_access);
        let events = state.events.clone().filter(|_| has_events);
        if let Some(events) = &events {
            events.lock().start();
        }
        let mut path = Arc::clone(&self.backend).path(&self.port);
        path.set_caps(state.caps.rx);
        let handler = Handler {
            port: Arc::clone(&self.port),
            backend: Arc::clone(&self.backend),
            client: Arc::clone(&self.client),
            sender: Arc::clone(sender),
            doorbells: Doorbells {
                rx: Arc::clone(rx),
                tx: Arc::clone(tx),
                event: events.as_ref().and(state.event_doorbell.clone()),
                served: residency.map(|residency| Arc::clone(residency.served())),
            },
            events,
            path,
            scratch: Scratch::new(),
            source: None,
            poll: Poll::default(),
            has_more: false,
        };
        self.port.set_receiver(Some(receiver));
        match Worker::spawn(thread_name(self.port.name()), handler) {
            Ok(worker) => state.worker = Some(worker),
            Err(error) => {
                tracing::error!("{}: no worker: {error}", self.port.name());
                state.receiver = self.port.set_receiver(None);
                return Err(Errno::AGAIN);
            }
        }
        Ok(0)
    }

    fn link_down(&self, state: &mut State) -> Result<u32, Errno> {
        let worker = state.worker.take().ok_or(Errno::NOENT)?;
        worker.stop();
        state.receiver = self.port.set_receiver(None);
        if let Some(receiver) = &mut state.receiver {
            // Whoever filled its buffers finds nobody here when he wants to say so.
            receiver.notify(&self.port.metrics);
            // There are only so many numbers of sections.
            receiver.end_access();
        }
        if let Some(sender) = &state.sender {
            sender.lock().end_access();
        }
        Ok(0)
    }

    fn negotiate(state: &mut State, data: &mut [u8]) -> Result<u32, Errno> {
        let wanted = Capabilities::read_from_bytes(data).map_err(|_| Errno::INVAL)?;
        if state.worker.is_some() {
            return Err(Errno::BUSY);
        }
        let bits = wanted.bits.get();
        let given = match wanted.group.get() {
            cap_group::TX => {
                state.caps.tx = consistent(bits & TX_CAPS);
                state.caps.tx
            }
            cap_group::EVENTS => {
                state.caps.events = bits & event_cap::LINK_STATE;
                state.caps.events
            }
            cap_group::RX => {
                state.caps.rx = consistent(bits & RX_CAPS);
                state.caps.rx
            }
            _ => 0,
        };
        let answer = Capabilities {
            bits: given.into(),
            ..wanted
        };
        data.copy_from_slice(answer.as_bytes());
        Ok(0)
    }
}

const TSO: u32 = tx_cap::TSO4 | tx_cap::TSO6;
const OFFLOADS: u32 = TSO | tx_cap::ECN | tx_cap::USO | tx_cap::CSUM;
const TX_CAPS: u32 = tx_cap::SG | OFFLOADS;
const RX_CAPS: u32 = rx_cap::MERGED | OFFLOADS;
// One set of rules for both groups.
const _: () = assert!(
    rx_cap::TSO4 == tx_cap::TSO4
        && rx_cap::TSO6 == tx_cap::TSO6
        && rx_cap::ECN == tx_cap::ECN
        && rx_cap::USO == tx_cap::USO
        && rx_cap::CSUM == tx_cap::CSUM
);

/// Takes away what needs something that was not asked for.
fn consistent(bits: u32) -> u32 {
    let mut bits = bits;
    if bits & tx_cap::CSUM == 0 {
        bits &= !OFFLOADS;
    }
    if bits & TSO == 0 {
        bits &= !tx_cap::ECN;
    }
    bits
}

/// The kernel shows 15 bytes of a thread's name.
fn thread_name(port: &str) -> String {
    format!("venet-{port}").replace('\0', "")
}

impl Connection for VenetConnection {
    fn call(&self, func: u32, data: &mut [u8]) -> Result<u32, Errno> {
        let mut state = self.state.lock();
        let state = state.as_mut().ok_or(Errno::NODEV)?;
        let has_no_data = data.is_empty();
        match func {
            func::LINK_UP if has_no_data => self.link_up(state),
            func::LINK_DOWN if has_no_data => self.link_down(state),
            func::MAC_QUERY => {
                let mac: &mut [u8; 6] = data.try_into().map_err(|_| Errno::INVAL)?;
                *mac = self.port.mac().0;
                Ok(0)
            }
            func::NEGOTIATE => Self::negotiate(state, data),
            func::FLUSH_RX if has_no_data => {
                let flush = |receiver: &mut Receiver| {
                    receiver.flush();
                    receiver.notify(&self.port.metrics);
                };
                self.port.with_receiver(flush).ok_or(Errno::INVAL)?;
                Ok(0)
            }
            func::LINK_QUERY => {
                let info = LinkInfo {
                    mtu: self.backend.mtu().into(),
                    is_up: u32::from(self.backend.is_link_up()).into(),
                };
                info.write_to(data).map_err(|_| Errno::INVAL)?;
                Ok(0)
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn shm(&self, mut shm: Shm) -> Result<(), Errno> {
        let mut state = self.state.lock();
        let state = state.as_mut().ok_or(Errno::NODEV)?;
        let is_there = match shm.id {
            shm_id::RX_RING => state.rx_doorbell.is_some(),
            shm_id::TX_RING => state.tx_doorbell.is_some(),
            shm_id::EVENT_RING => state.event_doorbell.is_some(),
            shm_id::TX_SEGMENTS => state.pool.is_some(),
            _ => return Err(Errno::INVAL),
        };
        if is_there {
            return Err(Errno::EXIST);
        }
        match shm.id {
            shm_id::RX_RING => {
                let (end, doorbell) = RingEnd::take(&mut shm)?;
                state.receiver = Some(Receiver::new(end, Arc::clone(&self.client)));
                state.rx_doorbell = Some(doorbell);
            }
            shm_id::TX_RING => {
                let (end, doorbell) = RingEnd::take(&mut shm)?;
                state.sender = Some(Arc::new(Mutex::new(Sender::new(end))));
                state.tx_doorbell = Some(doorbell);
            }
            shm_id::EVENT_RING => {
                if state.caps.events & event_cap::LINK_STATE == 0 {
                    return Err(Errno::INVAL);
                }
                let (end, doorbell) = RingEnd::take(&mut shm)?;
                state.events = Some(Arc::new(Mutex::new(EventQueue::new(end))));
                state.event_doorbell = Some(doorbell);
            }
            _ => {
                let is_negotiated = state.caps.tx & tx_cap::SG != 0;
                let is_too_long = shm.region.len() > MAX_SEGMENT_POOL_BYTES as usize;
                if !is_negotiated || is_too_long || shm.signal.is_some() {
                    return Err(Errno::INVAL);
                }
                state.pool = Some(shm.region.clone());
            }
        }
        state.shms.push(shm);
        Ok(())
    }

    fn close(&self) {
        let Some(mut state) = self.state.lock().take() else {
            return;
        };
        // ENOENT: the link is down already.
        let _ = self.link_down(&mut state);
        drop(state);
        self.port.close();
        self.backend.closed(&self.port);
    }
}

impl Drop for VenetConnection {
    fn drop(&mut self) {
        self.close();
    }
}
