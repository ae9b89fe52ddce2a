//! ACPI sleep control, sleep status and reset register of a hardware-reduced platform
//! (ACPI 6.5 §4.8.3.7 and §4.8.3.6).

use std::sync::Arc;

use super::{GuestEvent, GuestEventSink};
use crate::bus::BusDevice;

/// I/O ports that the device takes.
pub const NUM_PORTS: u64 = 3;
/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register.
pub const RESET: u64 = 2;
/// What the guest writes to the reset register.
pub const RESET_VALUE: u8 = 1;
/// Sleep type of S5 (soft off), as the `\_S5` object announces it.
pub const SLEEP_TYPE_S5: u8 = 5;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;

/// The three registers.
pub struct AcpiPower {
    sink: Arc<dyn GuestEventSink>,
}

impl std::fmt::Debug for AcpiPower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AcpiPower").finish_non_exhaustive()
    }
}

impl AcpiPower {
    /// Registers that report to `sink`.
    pub fn new(sink: Arc<dyn GuestEventSink>) -> Self {
        AcpiPower { sink }
    }
}

impl BusDevice for AcpiPower {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        const POWER_OFF: u8 = SLEEP_ENABLE | SLEEP_TYPE_S5 << SLEEP_TYPE_SHIFT;
        match (offset, data) {
            (SLEEP_CONTROL, [POWER_OFF]) => self.sink.guest_event(GuestEvent::PowerOff),
            (RESET, [RESET_VALUE]) => self.sink.guest_event(GuestEvent::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::tests::Recorder;

    #[test]
    fn s5_with_sleep_enable_is_poweroff_and_nothing_else_is() {
        let recorder = Arc::new(Recorder::default());
        let power = AcpiPower::new(recorder.clone());

        power.write(SLEEP_CONTROL, &[5 << 2]);
        power.write(SLEEP_CONTROL, &[1 << 5 | 3 << 2]);
        power.write(SLEEP_STATUS, &[0x34]);
        assert_eq!(recorder.events(), []);
        power.write(SLEEP_CONTROL, &[0x34]);

        assert_eq!(recorder.events(), [GuestEvent::PowerOff]);
    }

    #[test]
    fn reset_register_resets() {
        let recorder = Arc::new(Recorder::default());

        AcpiPower::new(recorder.clone()).write(RESET, &[RESET_VALUE]);

        assert_eq!(recorder.events(), [GuestEvent::Reset]);
    }
}
