//! The class `page-hints`, and its only device.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;
use rustix::io::Errno;
use vbus::abi::hints::KIND;
use vbus::device::{Device, DeviceClass, InterfaceOffer};

use super::connection::HintsInterface;
use super::handle::{HintsHandle, Shared};
use super::keeper::Keeper;
use super::metrics::HintsMetrics;
use crate::attributes::{Attributes, read_only};
use crate::metrics::Named;

/// The class `page-hints` of one guest: it makes one device.
pub struct HintsClass {
    shared: Arc<Shared>,
    is_made: AtomicBool,
}

impl HintsClass {
    /// For the guest whose memory `keeper` keeps.
    pub fn new(keeper: Arc<dyn Keeper>) -> Self {
        HintsClass {
            shared: Arc::new(Shared::new(keeper)),
            is_made: AtomicBool::new(false),
        }
    }

    /// What the device is asked through.
    pub fn handle(&self) -> HintsHandle {
        HintsHandle(Arc::clone(&self.shared))
    }
}

impl fmt::Debug for HintsClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HintsClass").finish_non_exhaustive()
    }
}

impl DeviceClass for HintsClass {
    fn name(&self) -> &'static str {
        KIND
    }

    /// `EBUSY` for a second one.
    fn create(&self, _name: &str) -> Result<Arc<dyn Device>, Errno> {
        if self.is_made.swap(true, Relaxed) {
            return Err(Errno::BUSY);
        }
        Ok(Arc::new(Hints {
            shared: Arc::clone(&self.shared),
            is_open: Arc::default(),
            bus: Mutex::default(),
        }))
    }
}

struct Hints {
    shared: Arc<Shared>,
    is_open: Arc<Mutex<bool>>,
    bus: Mutex<Option<String>>,
}

impl Device for Hints {
    fn attributes(&self) -> Attributes {
        let attribute = |(name, pick): Named<HintsMetrics>| {
            let shared = Arc::clone(&self.shared);
            let read = move || Ok(pick(&shared.metrics).get().to_string());
            (name, read_only(read))
        };
        HintsMetrics::ALL.map(attribute).into()
    }

    fn connect_bus(&self, bus: &str) -> Result<Vec<InterfaceOffer>, Errno> {
        let mut place = self.bus.lock();
        if place.is_some() {
            return Err(Errno::BUSY);
        }
        *place = Some(bus.into());
        Ok(vec![InterfaceOffer {
            name: "default".into(),
            kind: KIND,
            interface: Arc::new(HintsInterface {
                shared: Arc::clone(&self.shared),
                is_open: Arc::clone(&self.is_open),
            }),
        }])
    }

    fn disconnect_bus(&self, bus: &str) {
        let mut place = self.bus.lock();
        if place.as_deref() == Some(bus) {
            *place = None;
        }
    }
}
