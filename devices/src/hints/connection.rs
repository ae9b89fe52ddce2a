//! A client's connection: set-up order, negotiation, rings and tables.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;
use rustix::io::Errno;
use vbus::abi::hints::{DiskData, HelloData, TABLE_PAGES, VERSION, feature, func, shm_id};
use vbus::device::{Connection, Interface, Peer, Shm};
use vbus::memory::Region;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use zerocopy::{FromBytes, IntoBytes};

use super::handle::{Session, Shared};
use super::release::{Handler, ReleaseQueue};
use super::table::{Disks, MAX_TABLE_BYTES, Tables};
use crate::client::{Client, RingEnd};
use crate::worker::Worker;

const FEATURES: u32 = feature::RELEASE | feature::TABLE | feature::DROPPED;
/// A block that is worth a slot and a call of the kernel. Guest memory is in pages of 4 KiB.
const RELEASE_BYTES: u32 = 256 << 10;

/// The interface; one client at a time.
pub(super) struct HintsInterface {
    pub(super) shared: Arc<Shared>,
    pub(super) is_open: Arc<Mutex<bool>>,
}

impl Interface for HintsInterface {
    fn connect(&self, peer: Peer) -> Result<Arc<dyn Connection>, Errno> {
        if peer.version != VERSION {
            return Err(Errno::INVAL);
        }
        if std::mem::replace(&mut *self.is_open.lock(), true) {
            return Err(Errno::BUSY);
        }
        Ok(Arc::new(HintsConnection {
            shared: Arc::clone(&self.shared),
            is_open: Arc::clone(&self.is_open),
            client: Arc::new(Client::new(peer.faults)),
            state: Mutex::new(Some(State::default())),
        }))
    }
}

/// One client's connection.
struct HintsConnection {
    shared: Arc<Shared>,
    is_open: Arc<Mutex<bool>>,
    client: Arc<Client>,
    /// `None` once it is closed.
    state: Mutex<Option<State>>,
}

/// What a connection has until it is closed. Dropped in this order: rings before their memory.
#[derive(Default)]
struct State {
    features: u32,
    /// The session has them as well: disks may come later.
    disks: Arc<Disks>,
    tables: Tables,
    /// While it is not started; the session has it otherwise.
    events: Option<RingEnd>,
    release: Option<(Arc<Mutex<ReleaseQueue>>, Arc<EventFd>)>,
    started: Option<Started>,
    shms: Vec<Shm>,
}

struct Started {
    /// Serves the release ring, if that was negotiated.
    worker: Option<Worker>,
    is_stopping: Arc<AtomicBool>,
}

impl State {
    fn has(&self, feature: u32) -> bool {
        self.features & feature != 0
    }

    /// # Errors
    /// `EBUSY`.
    fn check_stopped(&self) -> Result<(), Errno> {
        match self.started {
            Some(_) => Err(Errno::BUSY),
            None => Ok(()),
        }
    }
}

impl HintsConnection {
    fn hello(&self, state: &mut State, data: &mut [u8]) -> Result<u32, Errno> {
        let wanted = HelloData::read_from_bytes(data).map_err(|_| Errno::INVAL)?;
        state.check_stopped()?;
        state.features = wanted.features.get() & FEATURES;
        let answer = HelloData {
            features: state.features.into(),
            release_bytes: RELEASE_BYTES.into(),
            num_pages: self.shared.keeper.num_pages().into(),
        };
        data.copy_from_slice(answer.as_bytes());
        Ok(0)
    }

    fn disk(&self, state: &State, data: &mut [u8]) -> Result<u32, Errno> {
        let asked = DiskData::read_from_bytes(data).map_err(|_| Errno::INVAL)?;
        let slot = usize::from(asked.slot).checked_sub(1);
        let entry = slot.and_then(|slot| state.disks.get(slot));
        let entry = entry.filter(|_| asked.reserved == [0; 3]);
        let entry = entry.ok_or(Errno::INVAL)?;
        if entry.get().is_some() {
            return Err(Errno::EXIST);
        }
        let disk = self.shared.keeper.disk(&asked.serial).ok_or(Errno::NOENT)?;
        entry.set(disk).map_err(|_| Errno::EXIST)?;
        let answer = DiskData {
            num_sectors: disk.num_sectors.into(),
            ..asked
        };
        data.copy_from_slice(answer.as_bytes());
        Ok(0)
    }

    fn start(&self, state: &mut State) -> Result<u32, Errno> {
        if state.started.is_some() {
            return Err(Errno::EXIST);
        }
        let is_release_missing = state.has(feature::RELEASE) && state.release.is_none();
        let is_table_missing = state.has(feature::TABLE) && state.tables.regions.is_empty();
        if state.events.is_none() || is_release_missing || is_table_missing {
            return Err(Errno::INVAL);
        }
        let is_stopping = Arc::<AtomicBool>::default();
        let worker = match &state.release {
            Some((queue, doorbell)) if state.has(feature::RELEASE) => {
                let kick = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|_| Errno::MFILE)?;
                let handler = Handler {
                    shared: Arc::clone(&self.shared),
                    client: Arc::clone(&self.client),
                    queue: Arc::clone(queue),
                    doorbell: Arc::clone(doorbell),
                    kick,
                    is_stopping: Arc::clone(&is_stopping),
                };
                let worker = Worker::spawn("page-hints".into(), handler);
                Some(worker.map_err(|error| {
                    tracing::error!("page hints: no worker: {error}");
                    Errno::AGAIN
                })?)
            }
            _ => None,
        };
        let events = state.events.take().ok_or(Errno::INVAL)?;
        let tables = state.tables.clone();
        self.shared.start(Session {
            client: Arc::clone(&self.client),
            features: state.features,
            events,
            tables,
            disks: Arc::clone(&state.disks),
        });
        state.started = Some(Started {
            worker,
            is_stopping,
        });
        Ok(0)
    }

    fn stop(&self, state: &mut State) -> Result<u32, Errno> {
        let started = state.started.take().ok_or(Errno::NOENT)?;
        started.is_stopping.store(true, Relaxed);
        if let Some(worker) = started.worker {
            worker.stop();
        }
        let session = self.shared.stop();
        state.events = session.map(|session| session.events);
        Ok(0)
    }

    /// Gives back the blocks that nobody looked at.
    fn keep_all(&self, state: &State) {
        if let Some((queue, _)) = &state.release
            && !self.client.is_cut_off()
            && let Err(fault) = queue.lock().keep_all(&self.shared.metrics)
        {
            self.client.cut_off("release", fault);
        }
    }

    fn table(&self, state: &mut State, shm: &Shm) -> Result<(), Errno> {
        let number = shm.id.checked_sub(shm_id::TABLE).ok_or(Errno::INVAL)?;
        let num_pages = self.shared.keeper.num_pages();
        let is_needed = u64::from(number) * u64::from(TABLE_PAGES) < num_pages;
        let is_table = shm.region.len() <= MAX_TABLE_BYTES && shm.signal.is_none();
        if !state.has(feature::TABLE) || !is_needed || !is_table {
            return Err(Errno::INVAL);
        }
        let number = usize::try_from(number).map_err(|_| Errno::INVAL)?;
        let regions = &mut state.tables.regions;
        if regions.len() <= number {
            regions.resize(number + 1, None::<Region>);
        }
        let place = regions.get_mut(number).ok_or(Errno::INVAL)?;
        if place.is_some() {
            return Err(Errno::EXIST);
        }
        *place = Some(shm.region.clone());
        Ok(())
    }
}

impl Connection for HintsConnection {
    fn call(&self, func: u32, data: &mut [u8]) -> Result<u32, Errno> {
        let mut state = self.state.lock();
        let state = state.as_mut().ok_or(Errno::NODEV)?;
        match func {
            func::HELLO => self.hello(state, data),
            func::DISK => self.disk(state, data),
            func::START if data.is_empty() => self.start(state),
            func::STOP if data.is_empty() => {
                self.stop(state)?;
                self.keep_all(state);
                Ok(0)
            }
            func::RELEASED => {
                let number: &mut [u8; 8] = data.try_into().map_err(|_| Errno::INVAL)?;
                self.shared.answer(u64::from_le_bytes(*number))?;
                Ok(0)
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn shm(&self, mut shm: Shm) -> Result<(), Errno> {
        let mut state = self.state.lock();
        let state = state.as_mut().ok_or(Errno::NODEV)?;
        state.check_stopped()?;
        match shm.id {
            shm_id::RELEASE_RING if state.release.is_some() => return Err(Errno::EXIST),
            shm_id::RELEASE_RING if state.has(feature::RELEASE) => {
                let (end, doorbell) = RingEnd::take(&mut shm)?;
                let queue = Arc::new(Mutex::new(ReleaseQueue { end }));
                state.release = Some((queue, doorbell));
            }
            shm_id::EVENT_RING if state.events.is_some() => return Err(Errno::EXIST),
            shm_id::EVENT_RING => state.events = Some(RingEnd::take(&mut shm)?.0),
            _ => self.table(state, &shm)?,
        }
        state.shms.push(shm);
        Ok(())
    }

    fn close(&self) {
        let Some(mut state) = self.state.lock().take() else {
            return;
        };
        // ENOENT: it is stopped already. Blocks in the ring are the client's again, like the ring.
        let _ = self.stop(&mut state);
        drop(state);
        *self.is_open.lock() = false;
    }
}

impl Drop for HintsConnection {
    fn drop(&mut self) {
        self.close();
    }
}
