//! The receive queue: frames from the backend to the guest.

use super::backend::{Port, Received};
use super::batch::{Batch, Progress};
use super::filter::MacFilter;
use super::queue::{Direction, NetQueue, QueueFault, Segment, USUAL_SEGMENTS};
use super::window::RxWindow;
use super::{HEADER_BYTES, MAX_FRAME_BYTES, NUM_BUFFERS_OFFSET};

/// One receive queue, owned by the worker of its pair.
#[derive(Debug)]
pub(super) struct RxQueue {
    pub(super) queue: NetQueue,
    window: RxWindow,
    segments: Vec<Segment>,
    has_merged_buffers: bool,
    is_doorbell_on: bool,
}

impl RxQueue {
    /// `has_merged_buffers`: `VIRTIO_NET_F_MRG_RXBUF` was negotiated.
    pub(super) fn new(queue: NetQueue, has_merged_buffers: bool) -> Self {
        RxQueue {
            window: RxWindow::new(queue.ram().clone()),
            queue,
            segments: Vec::with_capacity(USUAL_SEGMENTS),
            has_merged_buffers,
            is_doorbell_on: true,
        }
    }

    /// Passes on what `port` has, until there is no more, the guest is out of buffers or the budget
    /// is spent.
    pub(super) fn serve(
        &mut self,
        port: &mut dyn Port,
        filter: &MacFilter,
    ) -> Result<Progress, QueueFault> {
        let mut batch = Batch::default();
        let progress = self.receive_all(port, filter, &mut batch)?;
        self.queue.publish()?;
        let metrics = self.queue.metrics();
        metrics.rx_packets.add(batch.num_frames);
        metrics.rx_bytes.add(batch.num_bytes);
        Ok(progress)
    }

    fn receive_all(
        &mut self,
        port: &mut dyn Port,
        filter: &MacFilter,
        batch: &mut Batch,
    ) -> Result<Progress, QueueFault> {
        while batch.has_budget() {
            if !self.gather()? {
                return Ok(Progress::Blocked);
            }
            batch.num_rounds += 1;
            match port.receive(&mut self.window)? {
                Received::Frame(len_bytes) => self.deliver(len_bytes, filter, batch)?,
                Received::TooLarge => self.drop_large(),
                Received::Empty => return Ok(Progress::Idle),
                Received::Gone(error) => return Ok(Progress::Gone(error)),
            }
            if batch.is_publish_due() {
                self.queue.publish()?;
            }
        }
        Ok(Progress::More)
    }

    /// Fills the window; false if the guest's buffers do not suffice, and then its doorbell is on.
    fn gather(&mut self) -> Result<bool, QueueFault> {
        if self.is_window_full() {
            return Ok(true);
        }
        let mut is_full = self.take_buffers()?;
        if !is_full {
            // Show what is used before we wait, or the guest may have nothing to refill.
            self.queue.publish()?;
        }
        while !is_full {
            // With event index the doorbell is armed for the next buffer only, so every buffer that
            // we take means to arm it anew. Each turn takes one or more, which bounds the loop.
            self.is_doorbell_on = true;
            if !self.queue.enable_doorbell()? {
                return Ok(false);
            }
            let num_buffers = self.window.num_buffers();
            is_full = self.take_buffers()?;
            if self.window.num_buffers() == num_buffers {
                return Err(self.queue.index_fault());
            }
        }
        if self.is_doorbell_on {
            self.is_doorbell_on = false;
            self.queue.disable_doorbell()?;
        }
        Ok(true)
    }

    /// Moves buffers from the ring to the window until it is full; false if there are too few.
    fn take_buffers(&mut self) -> Result<bool, QueueFault> {
        while !self.is_window_full() {
            self.segments.clear();
            let Some(chain) = self
                .queue
                .pop(Direction::DeviceWrites, &mut self.segments)?
            else {
                return Ok(false);
            };
            if chain.len_bytes < HEADER_BYTES {
                return Err(QueueFault::ShortChain {
                    queue_idx: self.queue.index(),
                    head: chain.head,
                    len: chain.len_bytes,
                    want: HEADER_BYTES,
                });
            }
            self.window.push(chain, &self.segments)?;
        }
        Ok(true)
    }

    /// Whether a frame of any size fits, or nothing can be added: without merged buffers a frame
    /// gets one buffer, and a driver with all its buffers here has no more to give.
    fn is_window_full(&self) -> bool {
        let num_buffers = self.window.num_buffers();
        if self.has_merged_buffers {
            self.window.len_bytes() >= u64::from(MAX_FRAME_BYTES)
                || num_buffers >= usize::from(self.queue.size())
        } else {
            num_buffers >= 1
        }
    }

    fn deliver(
        &mut self,
        len_bytes: u32,
        filter: &MacFilter,
        batch: &mut Batch,
    ) -> Result<(), QueueFault> {
        if len_bytes <= HEADER_BYTES {
            self.queue.metrics().rx_errors.add(1);
            return Ok(());
        }
        if !filter.is_promiscuous {
            let mut destination = [0xff; 6];
            self.window.read_at(HEADER_BYTES, &mut destination)?;
            if !filter.accepts(&destination) {
                self.queue.metrics().rx_filtered.add(1);
                return Ok(());
            }
        }
        self.use_buffers(len_bytes)?;
        batch.add(u64::from(len_bytes - HEADER_BYTES));
        Ok(())
    }

    /// Gives the buffers that hold the first `len_bytes` back to the guest.
    fn use_buffers(&mut self, len_bytes: u32) -> Result<(), QueueFault> {
        let num_buffers = self.window.num_buffers_for(len_bytes);
        self.window
            .write_at(NUM_BUFFERS_OFFSET, &num_buffers.to_le_bytes())?;
        let mut left = len_bytes;
        for _ in 0..num_buffers {
            let Some(chain) = self.window.pop() else {
                break;
            };
            let len = left.min(chain.len_bytes);
            left -= len;
            self.queue.put_used(chain.head, len)?;
        }
        Ok(())
    }

    fn drop_large(&self) {
        if self.queue.metrics().rx_drops.count_sparsely() {
            tracing::debug!(
                "rx: a frame is larger than the guest's buffers, {} bytes",
                self.window.len_bytes()
            );
        }
    }
}

#[cfg(test)]
#[path = "rx_tests.rs"]
mod tests;
