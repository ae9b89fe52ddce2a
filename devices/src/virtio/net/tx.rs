//! The transmit queue: frames from the guest to the backend.

use super::backend::{Port, Sent, TxFrame};
use super::batch::{Batch, Progress};
use super::queue::{Direction, NetQueue, QueueFault, Segment, USUAL_SEGMENTS};
use super::{HEADER_BYTES, MAX_FRAME_BYTES};
use crate::iovec::GuestIoVecs;

/// One transmit queue, owned by the worker of its pair.
#[derive(Debug)]
pub(super) struct TxQueue {
    pub(super) queue: NetQueue,
    segments: Vec<Segment>,
    iovecs: GuestIoVecs,
}

impl TxQueue {
    pub(super) fn new(queue: NetQueue) -> Self {
        TxQueue {
            iovecs: GuestIoVecs::with_capacity(queue.ram().clone(), USUAL_SEGMENTS),
            queue,
            segments: Vec::with_capacity(USUAL_SEGMENTS),
        }
    }

    /// Sends what the guest offers, until there is no more, `port` is full or the budget is spent.
    pub(super) fn serve(&mut self, port: &mut dyn Port) -> Result<Progress, QueueFault> {
        let mut batch = Batch::default();
        let progress = self.send_all(port, &mut batch)?;
        let metrics = self.queue.metrics();
        metrics.tx_packets.add(batch.num_frames);
        metrics.tx_bytes.add(batch.num_bytes);
        match port.flush() {
            Ok(true) => Ok(progress),
            Ok(false) => Ok(Progress::Blocked),
            Err(error) => Ok(Progress::Gone(error)),
        }
    }

    fn send_all(&mut self, port: &mut dyn Port, batch: &mut Batch) -> Result<Progress, QueueFault> {
        self.queue.disable_doorbell()?;
        while batch.has_budget() {
            match self.send_next(port, batch)? {
                Step::Done => {
                    if batch.is_publish_due() {
                        self.queue.publish()?;
                    }
                }
                Step::Blocked => {
                    self.queue.publish()?;
                    return Ok(Progress::Blocked);
                }
                Step::NoChain => {
                    self.queue.publish()?;
                    if !self.queue.enable_doorbell()? {
                        return Ok(Progress::Idle);
                    }
                    self.queue.disable_doorbell()?;
                    // A driver that moves its index to and fro shall not hold us here.
                    batch.num_rounds += 1;
                }
            }
        }
        self.queue.publish()?;
        Ok(Progress::More)
    }

    fn send_next(&mut self, port: &mut dyn Port, batch: &mut Batch) -> Result<Step, QueueFault> {
        self.segments.clear();
        let Some(chain) = self.queue.pop(Direction::DeviceReads, &mut self.segments)? else {
            return Ok(Step::NoChain);
        };
        batch.num_rounds += 1;
        let metrics = self.queue.metrics();
        if chain.len_bytes <= HEADER_BYTES || chain.len_bytes > MAX_FRAME_BYTES {
            if metrics.tx_errors.count_sparsely() {
                tracing::debug!("tx: frame of {} bytes, refused", chain.len_bytes);
            }
        } else {
            let mut frame = TxFrame {
                ram: self.queue.ram(),
                segments: &self.segments,
                len_bytes: chain.len_bytes,
                iovecs: &mut self.iovecs,
            };
            match port.send(&mut frame)? {
                Sent::Done => batch.add(u64::from(chain.len_bytes - HEADER_BYTES)),
                Sent::Full => {
                    self.queue.unpop();
                    return Ok(Step::Blocked);
                }
                Sent::Refused(error) => {
                    if metrics.tx_errors.count_sparsely() {
                        tracing::debug!("tx: frame of {} bytes: {error}", chain.len_bytes);
                    }
                }
                Sent::Lost(error) => {
                    if metrics.tx_drops.count_sparsely() {
                        tracing::debug!("tx: frame of {} bytes: {error}", chain.len_bytes);
                    }
                }
            }
        }
        self.queue.put_used(chain.head, 0)?;
        Ok(Step::Done)
    }
}

/// How far one chain got.
enum Step {
    /// It is used.
    Done,
    /// It is back on the ring.
    Blocked,
    /// There was none.
    NoChain,
}

#[cfg(test)]
#[path = "tx_tests.rs"]
mod tests;
