//! The MTU of a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use rustix::io::Errno;
use vbus::attribute::Attribute;

use crate::attributes::{number, read_write};

/// What an Ethernet has.
const DEFAULT: u32 = 1500;
/// What IPv4 demands (RFC 791).
const LEAST: u32 = 68;
/// What fits a length of 16 bits.
const MOST: u32 = 65_535;

/// Bytes of payload that a frame has at most; set by the administrator.
#[derive(Debug)]
pub(super) struct Mtu(AtomicU32);

impl Default for Mtu {
    fn default() -> Self {
        Mtu(AtomicU32::new(DEFAULT))
    }
}

impl Mtu {
    pub(super) fn get(&self) -> u32 {
        self.0.load(Relaxed)
    }
}

/// The attribute `mtu` of a device; a write is refused with `EBUSY` while `is_busy` says so: drivers
/// ask once.
pub(super) fn attribute<D: Send + Sync + 'static>(
    device: &Arc<D>,
    mtu: impl Fn(&D) -> &Mtu + Copy + Send + Sync + 'static,
    is_busy: impl Fn(&D) -> bool + Send + Sync + 'static,
) -> Arc<dyn Attribute> {
    let (reader, writer) = (Arc::clone(device), Arc::clone(device));
    read_write(
        move || Ok(mtu(&reader).get().to_string()),
        move |text| {
            let value = number(text, LEAST, MOST)?;
            if is_busy(&writer) {
                return Err(Errno::BUSY);
            }
            mtu(&writer).0.store(value, Relaxed);
            Ok(())
        },
    )
}
