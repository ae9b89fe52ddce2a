//! Features, configuration space, activation and reset.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::backend::{Backend, SharedPort};
use super::control::ControlQueue;
use super::event::PairHandler;
use super::metrics::NetMetrics;
use super::queue::NetQueue;
use super::rx::RxQueue;
use super::state::{Shared, SharedMac};
use super::tx::TxQueue;
use crate::virtio::{ActivateError, Activation, ActiveQueue, VirtioDevice};
use crate::worker::Worker;

/// Receive buffers that the guest can lay out. A frame of 64 KiB takes 16 to 43 of them, and the
/// driver refills in bursts of some 100, so that 256 run dry under load.
const RX_QUEUE_SIZE: u16 = 512;
/// Frames that the guest can have underway.
const TX_QUEUE_SIZE: u16 = 256;
/// Commands that the guest can have underway; Linux has one at a time.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// Size in bytes of `struct virtio_net_config` up to `mtu` (VIRTIO 1.2 §5.1.4).
const CONFIG_BYTES: usize = 12;

/// A virtio network device.
#[derive(Debug)]
pub struct NetDevice {
    name: String,
    backend: Arc<Backend>,
    ports: Vec<SharedPort>,
    /// The address after a reset.
    configured_mac: [u8; 6],
    mac: Arc<SharedMac>,
    mtu: Option<u16>,
    metrics: Arc<NetMetrics>,
    workers: Vec<Worker>,
}

impl NetDevice {
    /// A device called `name` in the log, with `backend`'s number of queue pairs.
    ///
    /// `mac` is its hardware address until the driver changes it; `mtu`, if any, is the MTU in bytes
    /// that the driver is told (68 to 65,535).
    ///
    /// # Errors
    /// The host is out of file descriptors.
    pub fn new(
        name: String,
        backend: Backend,
        mac: [u8; 6],
        mtu: Option<u16>,
    ) -> io::Result<NetDevice> {
        Ok(NetDevice {
            name,
            ports: backend.ports()?,
            metrics: Arc::new(NetMetrics::new(backend.num_queue_pairs())),
            backend: Arc::new(backend),
            configured_mac: mac,
            mac: Arc::new(SharedMac::new(mac)),
            mtu,
            workers: Vec::new(),
        })
    }

    /// The device's counters, for whoever collects them.
    pub fn metrics(&self) -> Arc<NetMetrics> {
        Arc::clone(&self.metrics)
    }

    fn config_bytes(&self) -> [u8; CONFIG_BYTES] {
        let [m0, m1, m2, m3, m4, m5] = self.mac.get();
        let [s0, s1, _, _] = VIRTIO_NET_S_LINK_UP.to_le_bytes();
        let [p0, p1] = self.backend.num_queue_pairs().to_le_bytes();
        let [u0, u1] = self.mtu.unwrap_or(0).to_le_bytes();
        [m0, m1, m2, m3, m4, m5, s0, s1, p0, p1, u0, u1]
    }

    /// Splits the queues into pairs and the control queue, and starts a worker for each pair.
    fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let num_pairs = if activation.has_feature(VIRTIO_NET_F_MQ) {
            self.backend.num_queue_pairs()
        } else {
            1
        };
        let control_idx = 2 * num_pairs;
        let has_merged_buffers = activation.has_feature(VIRTIO_NET_F_MRG_RXBUF);
        let has_control = activation.has_feature(VIRTIO_NET_F_CTRL_VQ);
        let shared = Shared::new(
            Arc::clone(&self.backend),
            Arc::clone(&activation.interrupt),
            Arc::clone(&self.mac),
            activation.features,
            num_pairs,
        )
        .map_err(ActivateError::Worker)?;
        let shared = Arc::new(shared);
        let mut queues = Queues::new(activation, control_idx, &self.metrics);
        let mut control = if has_control {
            let queue = queues.take(control_idx)?;
            Some(ControlQueue::new(queue, Arc::clone(&shared)))
        } else {
            None
        };
        for (pair_idx, port) in (0..num_pairs).zip(&self.ports) {
            if pair_idx > 0 && !queues.has_pair(pair_idx) {
                // The driver may use fewer pairs than there are.
                continue;
            }
            let handler = PairHandler::new(
                Arc::clone(&shared),
                pair_idx,
                RxQueue::new(queues.take(2 * pair_idx)?, has_merged_buffers),
                TxQueue::new(queues.take(2 * pair_idx + 1)?),
                control.take(),
                Arc::clone(port),
            );
            let worker = Worker::spawn(format!("{}-{pair_idx}", self.name), handler)
                .map_err(ActivateError::Worker)?;
            self.workers.push(worker);
        }
        Ok(())
    }
}

impl VirtioDevice for NetDevice {
    fn device_type(&self) -> u16 {
        // The number is 1.
        VIRTIO_ID_NET.to_le_bytes()[0].into()
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        let pairs =
            (0..self.backend.num_queue_pairs()).flat_map(|_| [RX_QUEUE_SIZE, TX_QUEUE_SIZE]);
        pairs.chain([CONTROL_QUEUE_SIZE]).collect()
    }

    fn device_features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_CTRL_MAC_ADDR,
            VIRTIO_NET_F_CTRL_RX,
        ];
        if self.backend.has_offloads() {
            bits.extend([
                VIRTIO_NET_F_CSUM,
                VIRTIO_NET_F_HOST_TSO4,
                VIRTIO_NET_F_HOST_TSO6,
                VIRTIO_NET_F_HOST_ECN,
                VIRTIO_NET_F_GUEST_CSUM,
                VIRTIO_NET_F_GUEST_TSO4,
                VIRTIO_NET_F_GUEST_TSO6,
                VIRTIO_NET_F_GUEST_ECN,
                VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
            ]);
        }
        if self.backend.has_uso() {
            bits.extend([
                VIRTIO_NET_F_HOST_USO,
                VIRTIO_NET_F_GUEST_USO4,
                VIRTIO_NET_F_GUEST_USO6,
            ]);
        }
        if self.mtu.is_some() {
            bits.push(VIRTIO_NET_F_MTU);
        }
        if self.backend.num_queue_pairs() > 1 {
            bits.push(VIRTIO_NET_F_MQ);
        }
        bits.into_iter().fold(0, |all, bit| all | 1 << bit)
    }

    fn config(&self) -> Vec<u8> {
        self.config_bytes().to_vec()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        self.backend
            .set_offloads(tun_offloads(activation.features))
            .map_err(ActivateError::Backend)?;
        self.start(activation).inspect_err(|_| self.workers.clear())
    }

    fn reset(&mut self) {
        // Dropping a worker stops and joins it.
        self.workers.clear();
        self.mac.set(self.configured_mac);
        // The next driver may know less than this one.
        let backend = &self.backend;
        let result = backend
            .set_active_pairs(1)
            .and_then(|()| backend.set_offloads(0));
        if let Err(error) = result
            && self.metrics.backend_refusals.count_sparsely()
        {
            tracing::warn!("{}: cannot reset its backend: {error}", self.name);
        }
    }
}

/// The queues of one activation, to be taken by index.
struct Queues<'a> {
    activation: Activation,
    control_idx: u16,
    metrics: &'a Arc<NetMetrics>,
}

impl<'a> Queues<'a> {
    fn new(activation: Activation, control_idx: u16, metrics: &'a Arc<NetMetrics>) -> Self {
        Queues {
            activation,
            control_idx,
            metrics,
        }
    }

    fn position(&self, index: u16) -> Option<usize> {
        let mut queues = self.activation.queues.iter();
        queues.position(|active| active.index == index)
    }

    fn has_pair(&self, pair_idx: u16) -> bool {
        self.position(2 * pair_idx).is_some() && self.position(2 * pair_idx + 1).is_some()
    }

    fn take(&mut self, index: u16) -> Result<NetQueue, ActivateError> {
        let position = self
            .position(index)
            .ok_or(ActivateError::QueueMissing { index })?;
        let active: ActiveQueue = self.activation.queues.swap_remove(position);
        Ok(NetQueue::new(
            active,
            self.activation.has_feature(VIRTIO_RING_F_EVENT_IDX),
            self.control_idx,
            self.activation.ram.clone(),
            Arc::clone(&self.activation.interrupt),
            Arc::clone(self.metrics),
        ))
    }
}

/// What a TAP may leave to the guest (a set of `TUN_F_*`), given the negotiated `features`.
pub(super) fn tun_offloads(features: u64) -> u32 {
    let has = |bit: u32| features >> bit & 1 == 1;
    if !has(VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let mut offloads = libc::TUN_F_CSUM;
    for (feature, offload) in [
        (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
        (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
        (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
    ] {
        if has(feature) {
            offloads |= offload;
        }
    }
    // The TAP driver knows them only together.
    if has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6) {
        offloads |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
    }
    offloads
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
