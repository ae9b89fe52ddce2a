//! Why a driver cannot go on.

use std::io;

use rustix::io::Errno;
use vbus::client::RingSetupError;
use vbus::memory::RegionError;
use vbus::ring::RingFault;

/// Why a driver cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The device or the bus refused a step.
    #[error("cannot {what}")]
    Refused {
        /// The step.
        what: &'static str,
        /// Why.
        source: Errno,
    },
    /// The buffer memory is too short for the rings.
    #[error("buffer memory of {len} bytes, {needed} are needed")]
    TooLittleMemory {
        /// What was given.
        len: usize,
        /// What the options ask for.
        needed: usize,
    },
    /// A frame does not fit its buffer.
    #[error("frame of {len} bytes in {num_parts} parts, buffers hold {most}")]
    TooLong {
        /// Bytes of the frame.
        len: usize,
        /// Its parts.
        num_parts: usize,
        /// Bytes of a buffer.
        most: usize,
    },
    /// A ring cannot be made like that, or the device does not take it.
    #[error("cannot share a ring")]
    Ring {
        /// Why.
        source: RingSetupError,
    },
    /// Memory cannot be had, or is shorter than it was said to be.
    #[error("cannot use shared memory")]
    Memory {
        /// Why.
        source: RegionError,
    },
    /// No event descriptors.
    #[error("cannot make event descriptors")]
    Events {
        /// Why.
        source: io::Error,
    },
    /// The device broke the rules of the ring; close the connection.
    #[error("the device broke a ring")]
    Fault {
        /// How.
        source: RingFault,
    },
    /// The device says that it wrote more than there was room for.
    #[error("the device returned {len} bytes in a buffer of {most}")]
    Overlong {
        /// What it says.
        len: u32,
        /// Bytes of a buffer.
        most: u32,
    },
}
