//! The one function of the keyboard controller that matters: pulsing the CPU's reset line.

use std::sync::Arc;

use super::{GuestEvent, GuestEventSink};
use crate::bus::BusDevice;

/// Command "pulse output line 0", the reset line.
const PULSE_RESET: u8 = 0xfe;

/// The command and status port, `0x64` on a PC. There is no keyboard: the status reads as idle.
pub struct I8042 {
    sink: Arc<dyn GuestEventSink>,
}

impl std::fmt::Debug for I8042 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("I8042").finish_non_exhaustive()
    }
}

impl I8042 {
    /// A controller that reports to `sink`.
    pub fn new(sink: Arc<dyn GuestEventSink>) -> Self {
        I8042 { sink }
    }
}

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data == [PULSE_RESET] {
            self.sink.guest_event(GuestEvent::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::tests::Recorder;

    #[test]
    fn only_the_reset_pulse_resets() {
        let recorder = Arc::new(Recorder::default());
        let i8042 = I8042::new(recorder.clone());

        i8042.write(0, &[0xaa]);
        assert_eq!(recorder.events(), []);
        i8042.write(0, &[0xfe]);

        assert_eq!(recorder.events(), [GuestEvent::Reset]);
    }
}
