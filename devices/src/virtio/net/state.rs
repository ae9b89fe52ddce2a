//! What the threads of one active device share.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use parking_lot::RwLock;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::backend::Backend;
use super::filter::MacFilter;
use super::queue::QueueFault;
use crate::virtio::VirtioInterrupt;

/// A hardware address that one thread changes and others read.
#[derive(Debug)]
pub(super) struct SharedMac(AtomicU64);

impl SharedMac {
    pub(super) fn new(mac: [u8; 6]) -> Self {
        let shared = SharedMac(AtomicU64::new(0));
        shared.set(mac);
        shared
    }

    pub(super) fn set(&self, [a, b, c, d, e, f]: [u8; 6]) {
        let bits = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        self.0.store(bits, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> [u8; 6] {
        let [a, b, c, d, e, f, _, _] = self.0.load(Ordering::Relaxed).to_le_bytes();
        [a, b, c, d, e, f]
    }
}

/// State of one activation, shared by the workers of all queue pairs.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) backend: Arc<Backend>,
    pub(super) interrupt: Arc<VirtioInterrupt>,
    pub(super) mac: Arc<SharedMac>,
    pub(super) features: u64,
    pub(super) filter: RwLock<MacFilter>,
    /// Queue pairs that the driver switched on, at least one.
    num_active_pairs: AtomicU16,
    is_broken: AtomicBool,
    /// One per queue pair: wakes its worker.
    kicks: Vec<EventFd>,
}

impl Shared {
    pub(super) fn new(
        backend: Arc<Backend>,
        interrupt: Arc<VirtioInterrupt>,
        mac: Arc<SharedMac>,
        features: u64,
        num_pairs: u16,
    ) -> io::Result<Self> {
        let filter = RwLock::new(MacFilter::new(mac.get()));
        let kicks = (0..num_pairs)
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<io::Result<_>>()?;
        Ok(Shared {
            backend,
            interrupt,
            mac,
            features,
            filter,
            num_active_pairs: AtomicU16::new(1),
            is_broken: AtomicBool::new(false),
            kicks,
        })
    }

    /// Number of queue pairs that have a worker.
    pub(super) fn num_pairs(&self) -> u16 {
        // `new` made them from a u16.
        u16::try_from(self.kicks.len()).unwrap_or(u16::MAX)
    }

    pub(super) fn has_feature(&self, bit: u32) -> bool {
        self.features >> bit & 1 == 1
    }

    pub(super) fn kick(&self, pair_idx: u16) -> Option<&EventFd> {
        self.kicks.get(usize::from(pair_idx))
    }

    pub(super) fn is_active(&self, pair_idx: u16) -> bool {
        pair_idx < self.num_active_pairs.load(Ordering::Acquire)
    }

    /// Switches the first `num_pairs` pairs on and the others off.
    pub(super) fn set_active_pairs(&self, num_pairs: u16) -> io::Result<()> {
        self.backend.set_active_pairs(num_pairs)?;
        self.num_active_pairs.store(num_pairs, Ordering::Release);
        self.kick_all();
        Ok(())
    }

    /// Stops all workers' work: the driver broke the rules.
    pub(super) fn fail(&self, fault: &QueueFault) {
        self.is_broken.store(true, Ordering::Release);
        self.interrupt.needs_reset(fault);
        self.kick_all();
    }

    pub(super) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Acquire)
    }

    /// Changes the filter.
    pub(super) fn update_filter(&self, change: impl FnOnce(&mut MacFilter)) {
        change(&mut self.filter.write());
    }

    fn kick_all(&self) {
        for kick in &self.kicks {
            // It fails only when the counter is full, and then the worker wakes up anyway.
            let _ = kick.write(1);
        }
    }
}
