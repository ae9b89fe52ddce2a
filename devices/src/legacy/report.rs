//! Where the guest image reports its progress: two write-only ports that its init writes to after
//! `ioperm(2)`, so that a stock kernel needs no driver.
//!
//! | offset | value | means |
//! |---|---|---|
//! | 0 | 1 | init has started |
//! | 0 | 2 | the `--exec` command is about to run |
//! | 1 | 0-255 | the command ended with this exit status |

use std::sync::Arc;

use super::{GuestEvent, GuestEventSink};
use crate::bus::BusDevice;

/// I/O ports that the device takes.
pub const NUM_PORTS: u64 = 2;

/// The two ports.
pub struct Report {
    sink: Arc<dyn GuestEventSink>,
}

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Report").finish_non_exhaustive()
    }
}

impl Report {
    /// Ports that report to `sink`.
    pub fn new(sink: Arc<dyn GuestEventSink>) -> Self {
        Report { sink }
    }
}

impl BusDevice for Report {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, offset: u64, data: &[u8]) {
        let event = match (offset, data) {
            (0, [1]) => GuestEvent::InitStarted,
            (0, [2]) => GuestEvent::CommandStarted,
            (1, [status]) => GuestEvent::CommandEnded(*status),
            _ => return,
        };
        self.sink.guest_event(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::tests::Recorder;

    #[test]
    fn milestones_and_status_arrive_and_noise_does_not() {
        let recorder = Arc::new(Recorder::default());
        let report = Report::new(recorder.clone());

        report.write(0, &[1]);
        report.write(0, &[9]);
        report.write(0, &[2, 0]);
        report.write(1, &[7]);

        let expected = [GuestEvent::InitStarted, GuestEvent::CommandEnded(7)];
        assert_eq!(recorder.events(), expected);
    }
}
