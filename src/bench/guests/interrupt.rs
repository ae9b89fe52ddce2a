//! Ctrl-C and its like: noted, and looked for wherever something is waited for, so that everything is
//! cleared away in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::{GuestsError, io_error};

/// The signal that is to end the run, if one came.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicUsize>);

impl Interrupt {
    /// Notes signals from now on, for the rest of the process.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn install() -> Result<Self, GuestsError> {
        let interrupt = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            let number = usize::try_from(signal).unwrap_or_default();
            signal_hook::flag::register_usize(signal, Arc::clone(&interrupt.0), number)
                .map_err(io_error("catch signals"))?;
        }
        Ok(interrupt)
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// [`GuestsError::Interrupted`] if a signal came.
    pub fn check(&self) -> Result<(), GuestsError> {
        match self.0.load(Relaxed) {
            0 => Ok(()),
            signal => Err(GuestsError::Interrupted {
                signal: u8::try_from(signal).unwrap_or(u8::MAX),
            }),
        }
    }

    /// As if `signal` had come.
    #[cfg(test)]
    pub fn raise(&self, signal: usize) {
        self.0.store(signal, Relaxed);
    }
}
