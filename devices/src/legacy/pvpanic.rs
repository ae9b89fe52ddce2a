//! The paravirtual panic port (QEMU `docs/specs/pvpanic.rst`): reading tells which events the
//! device takes, writing reports one.

use std::sync::Arc;

use super::{GuestEvent, GuestEventSink};
use crate::bus::BusDevice;

const PANICKED: u8 = 1 << 0;

/// The port.
pub struct PvPanic {
    sink: Arc<dyn GuestEventSink>,
}

impl std::fmt::Debug for PvPanic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PvPanic").finish_non_exhaustive()
    }
}

impl PvPanic {
    /// A port that reports to `sink`.
    pub fn new(sink: Arc<dyn GuestEventSink>) -> Self {
        PvPanic { sink }
    }
}

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(PANICKED);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let [bits] = data
            && bits & PANICKED != 0
        {
            self.sink.guest_event(GuestEvent::Panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::tests::Recorder;

    #[test]
    fn panicked_bit_reports_a_panic() {
        let recorder = Arc::new(Recorder::default());
        let port = PvPanic::new(recorder.clone());

        port.write(0, &[0x02]);
        assert_eq!(recorder.events(), []);
        port.write(0, &[0x01]);

        assert_eq!(recorder.events(), [GuestEvent::Panic]);
    }
}
