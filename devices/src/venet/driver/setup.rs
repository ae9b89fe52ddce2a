//! What it takes to open a device: negotiation, rings, the pool of segments.

use std::os::fd::{AsFd, AsRawFd};

use vbus::abi::venet::{Capabilities, cap_group, event_cap, func, shm_id, tx_cap};
use vbus::client::{Ring, RingRequest};
use vbus::memory::Region;
use vbus::verbs::{Handle, ShmRequest, Verbs};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use zerocopy::IntoBytes;

use super::error::DriverError;
use super::options::Options;
use super::{NUM_EVENTS, POOL_STRIDE, memory, refused};

/// What opening a device makes.
pub(super) struct Parts {
    pub(super) rx: Ring,
    pub(super) tx: Ring,
    pub(super) events: Option<Ring>,
    pub(super) pool: Option<Region>,
    pub(super) epoll: Epoll,
    pub(super) tx_caps: u32,
    pub(super) rx_caps: u32,
}

impl Parts {
    pub(super) fn new(
        bus: &impl Verbs,
        handle: Handle,
        options: &Options,
    ) -> Result<Self, DriverError> {
        let tx_caps = negotiate(bus, handle, cap_group::TX, options.tx_caps)?;
        let rx_caps = negotiate(bus, handle, cap_group::RX, options.rx_caps)?;
        let wanted = if options.has_link_events {
            event_cap::LINK_STATE
        } else {
            0
        };
        let event_caps = negotiate(bus, handle, cap_group::EVENTS, wanted)?;
        let ring = |id, num_slots| {
            let request = RingRequest {
                id,
                priority: 0,
                cookie: cookie(handle, id),
                num_slots,
            };
            Ring::share(bus, handle, request).map_err(|source| DriverError::Ring { source })
        };
        let events = if event_caps == 0 {
            None
        } else {
            Some(ring(shm_id::EVENT_RING, NUM_EVENTS)?)
        };
        let pool = if tx_caps & tx_cap::SG == 0 {
            None
        } else {
            Some(share_pool(bus, handle, options.num_slots)?)
        };
        let rx = ring(shm_id::RX_RING, options.num_slots)?;
        let tx = ring(shm_id::TX_RING, options.num_slots)?;
        let io = |source| DriverError::Events { source };
        let epoll = Epoll::new().map_err(io)?;
        for ring in [Some(&rx), Some(&tx), events.as_ref()]
            .into_iter()
            .flatten()
        {
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
            let fd = ring.as_fd().as_raw_fd();
            epoll.ctl(ControlOperation::Add, fd, event).map_err(io)?;
        }
        Ok(Parts {
            rx,
            tx,
            events,
            pool,
            epoll,
            tx_caps,
            rx_caps,
        })
    }
}

/// Tells shared memory of one client apart: ids are below 8, handles are never used again.
fn cookie(handle: Handle, id: u32) -> u64 {
    handle.0.wrapping_mul(8).wrapping_add(id.into())
}

fn negotiate(bus: &impl Verbs, handle: Handle, group: u32, bits: u32) -> Result<u32, DriverError> {
    let mut caps = Capabilities {
        group: group.into(),
        bits: bits.into(),
    };
    bus.call(handle, func::NEGOTIATE, caps.as_mut_bytes())
        .map_err(refused("negotiate"))?;
    Ok(caps.bits.get())
}

fn share_pool(bus: &impl Verbs, handle: Handle, num_slots: u32) -> Result<Region, DriverError> {
    let len = num_slots as usize * POOL_STRIDE;
    let (pool, _) = Region::new_shared(len).map_err(memory)?;
    let request = ShmRequest {
        id: shm_id::TX_SEGMENTS,
        priority: 0,
        cookie: cookie(handle, shm_id::TX_SEGMENTS),
        region: pool.clone(),
        signal: None,
    };
    bus.shm(handle, request)
        .map_err(refused("share the pool of segments"))?;
    Ok(pool)
}
