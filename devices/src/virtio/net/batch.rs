//! How much work one turn of a queue may do, and how it ended.

use std::io;

/// Most frames handled before the other queues of the worker get their turn.
const BUDGET_FRAMES: u64 = 128;
/// Most bytes before that: some 16 of the largest frames, a tenth of a millisecond or two.
const BUDGET_BYTES: u64 = 1 << 20;
/// Frames after which the guest sees them, so that it works while we do.
const PUBLISH_FRAMES: u64 = 16;
/// Bytes after which it sees them.
const PUBLISH_BYTES: u64 = 32 << 10;

/// Why a queue stopped being served.
#[derive(Debug)]
pub(super) enum Progress {
    /// Nothing is left to do.
    Idle,
    /// The budget is spent and there may be more to do.
    More,
    /// Sending: the port is full. Receiving: the guest has too few buffers.
    Blocked,
    /// The backend has ended or failed.
    Gone(io::Error),
}

/// What one turn of a queue did so far.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) num_frames: u64,
    pub(super) num_bytes: u64,
    /// Turns of the loop, whatever came of them.
    pub(super) num_rounds: u64,
    frames_unpublished: u64,
    bytes_unpublished: u64,
}

impl Batch {
    /// Counts one frame of `num_bytes` bytes.
    pub(super) fn add(&mut self, num_bytes: u64) {
        self.num_frames += 1;
        self.num_bytes += num_bytes;
        self.frames_unpublished += 1;
        self.bytes_unpublished += num_bytes;
    }

    pub(super) fn has_budget(&self) -> bool {
        self.num_rounds < BUDGET_FRAMES && self.num_bytes < BUDGET_BYTES
    }

    /// True if the guest should see the used buffers now; starts to count anew then.
    pub(super) fn is_publish_due(&mut self) -> bool {
        let is_due =
            self.frames_unpublished >= PUBLISH_FRAMES || self.bytes_unpublished >= PUBLISH_BYTES;
        if is_due {
            self.frames_unpublished = 0;
            self.bytes_unpublished = 0;
        }
        is_due
    }
}
