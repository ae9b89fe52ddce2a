//! The few non-PCI devices that a stock kernel needs, each a handful of I/O ports.
//!
//! | module | ports | why |
//! |---|---|---|
//! | [`serial`] | 8 each | console, and the clean output channel of `--exec` |
//! | [`power`] | 3 | ACPI sleep control, sleep status and reset register |
//! | [`i8042`] | 1 | reset, the kernel's fallback |
//! | [`pvpanic`] | 1 | the guest says that it panicked |
//! | [`report`] | 2 | the guest image reports its progress and a command's exit status |

pub mod i8042;
pub mod power;
pub mod pvpanic;
pub mod report;
pub mod serial;

/// What a guest tells the VMM through these ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestEvent {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's CPU gave up after a fault in a fault in a fault.
    TripleFault,
    /// The guest's kernel panicked.
    Panic,
    /// The guest image's init has started.
    InitStarted,
    /// The guest image is about to run the `--exec` command.
    CommandStarted,
    /// The `--exec` command ended with this status.
    CommandEnded(u8),
}

/// Takes guest events. Called by vCPU threads; must not block.
pub trait GuestEventSink: Send + Sync {
    /// `event` happened.
    fn guest_event(&self, event: GuestEvent);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// Remembers every event.
    #[derive(Debug, Default)]
    pub(crate) struct Recorder(Mutex<Vec<GuestEvent>>);

    impl Recorder {
        pub(crate) fn events(&self) -> Vec<GuestEvent> {
            self.0.lock().clone()
        }
    }

    impl GuestEventSink for Recorder {
        fn guest_event(&self, event: GuestEvent) {
            self.0.lock().push(event);
        }
    }
}
