//! The control queue (VIRTIO 1.2 §5.1.6.5): receive filter, hardware address, queue pairs, offloads.

use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI,
    VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};
use vm_memory::Bytes;

use super::batch::{Batch, Progress};
use super::device::tun_offloads;
use super::metrics::NetMetrics;
use super::queue::{Direction, NetQueue, QueueFault, Segment};
use super::state::Shared;

/// Class and number of a command.
const COMMAND_BYTES: usize = 2;
/// Most bytes of a command; address tables have over 600 entries then.
const MAX_COMMAND_BYTES: usize = 4096;

/// The control queue, owned by the worker of the first queue pair.
#[derive(Debug)]
pub(super) struct ControlQueue {
    pub(super) queue: NetQueue,
    shared: Arc<Shared>,
    segments: Vec<Segment>,
}

impl ControlQueue {
    pub(super) fn new(queue: NetQueue, shared: Arc<Shared>) -> Self {
        ControlQueue {
            queue,
            shared,
            segments: Vec::new(),
        }
    }

    /// Answers the commands on the queue, until there is none or the budget is spent.
    pub(super) fn serve(&mut self) -> Result<Progress, QueueFault> {
        let mut batch = Batch::default();
        self.queue.disable_doorbell()?;
        while batch.has_budget() {
            batch.num_rounds += 1;
            if self.answer_next()? {
                continue;
            }
            self.queue.publish()?;
            if !self.queue.enable_doorbell()? {
                return Ok(Progress::Idle);
            }
            self.queue.disable_doorbell()?;
        }
        self.queue.publish()?;
        Ok(Progress::More)
    }

    /// Answers one command; false if there is none.
    fn answer_next(&mut self) -> Result<bool, QueueFault> {
        self.segments.clear();
        let Some(chain) = self.queue.pop(Direction::Command, &mut self.segments)? else {
            return Ok(false);
        };
        let ack_gpa = self
            .segments
            .iter()
            .find(|segment| segment.is_writable && segment.len > 0)
            .map(|segment| segment.gpa);
        let Some(ack_gpa) = ack_gpa else {
            return Err(QueueFault::ShortChain {
                queue_idx: self.queue.index(),
                head: chain.head,
                len: 0,
                want: 1,
            });
        };
        let command = self.copy_command()?;
        let metrics = self.queue.metrics();
        let is_done = command.is_some_and(|command| run(&self.shared, metrics, &command).is_some());
        metrics.control_commands.add(1);
        if !is_done && metrics.control_refused.count_sparsely() {
            tracing::debug!("{}: control command refused", self.shared.interrupt.name());
        }
        let ack = if is_done {
            VIRTIO_NET_OK
        } else {
            VIRTIO_NET_ERR
        };
        self.queue
            .ram()
            .write_obj(ack.to_le_bytes()[0], ack_gpa)
            .map_err(QueueFault::Copy)?;
        self.queue.put_used(chain.head, 1)?;
        Ok(true)
    }

    /// The readable part of the chain, read once; `None` if it is longer than any command.
    fn copy_command(&self) -> Result<Option<Vec<u8>>, QueueFault> {
        let mut command = Vec::new();
        for segment in self.segments.iter().take_while(|s| !s.is_writable) {
            let start = command.len();
            let end = start + segment.len as usize;
            if end > MAX_COMMAND_BYTES {
                return Ok(None);
            }
            command.resize(end, 0);
            if let Some(space) = command.get_mut(start..) {
                self.queue
                    .ram()
                    .read_slice(space, segment.gpa)
                    .map_err(QueueFault::Copy)?;
            }
        }
        Ok(Some(command))
    }
}

/// Runs one command; `None` if it is unknown, malformed or refused by the host.
fn run(shared: &Shared, metrics: &NetMetrics, command: &[u8]) -> Option<()> {
    let logged = |what, result: std::io::Result<()>| {
        let name = shared.interrupt.name();
        result
            .inspect_err(|error| {
                if metrics.backend_refusals.count_sparsely() {
                    tracing::warn!("{name}: cannot set {what}: {error}");
                }
            })
            .ok()
    };
    let (&[class, number], data) = command.split_first_chunk::<COMMAND_BYTES>()?;
    let needs = |feature| shared.has_feature(feature).then_some(());
    match (u32::from(class), u32::from(number)) {
        (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC) => {
            needs(VIRTIO_NET_F_CTRL_RX)?;
            let is_on = flag(data)?;
            shared.update_filter(|filter| filter.is_promiscuous = is_on);
        }
        (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI) => {
            needs(VIRTIO_NET_F_CTRL_RX)?;
            let is_on = flag(data)?;
            shared.update_filter(|filter| filter.is_all_multicast = is_on);
        }
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
            needs(VIRTIO_NET_F_CTRL_RX)?;
            let (unicast, data) = mac_table(data)?;
            let (multicast, _) = mac_table(data)?;
            shared.update_filter(|filter| filter.set_tables(unicast, multicast));
        }
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
            needs(VIRTIO_NET_F_CTRL_MAC_ADDR)?;
            let mac = *data.first_chunk::<6>()?;
            shared.mac.set(mac);
            shared.update_filter(|filter| filter.mac = mac);
        }
        (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
            needs(VIRTIO_NET_F_MQ)?;
            let num_pairs = u16::from_le_bytes(*data.first_chunk()?);
            if num_pairs == 0 || num_pairs > shared.num_pairs() {
                return None;
            }
            logged("queue pairs", shared.set_active_pairs(num_pairs))?;
        }
        (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
            needs(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)?;
            let offloads = u64::from_le_bytes(*data.first_chunk()?);
            if offloads & !shared.features != 0 {
                return None;
            }
            let result = shared.backend.set_offloads(tun_offloads(offloads));
            logged("offloads", result)?;
        }
        _ => return None,
    }
    Some(())
}

fn flag(data: &[u8]) -> Option<bool> {
    match data {
        [0, ..] => Some(false),
        [1, ..] => Some(true),
        _ => None,
    }
}

/// Splits `data` into the addresses of one table (a little-endian `u32` count, then 6 bytes each)
/// and what follows.
fn mac_table(data: &[u8]) -> Option<(&[[u8; 6]], &[u8])> {
    let (count, data) = data.split_first_chunk::<4>()?;
    let len_bytes = usize::try_from(u32::from_le_bytes(*count))
        .ok()?
        .checked_mul(6)?;
    let (table, rest) = data.split_at_checked(len_bytes)?;
    let (addresses, _) = table.as_chunks::<6>();
    Some((addresses, rest))
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
