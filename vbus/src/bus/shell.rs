//! Devices as the administrator made them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

use super::identity::{Idents, Stamp};
use super::{name, quota::Quota};
use crate::attribute::Attribute;
use crate::device::{Device, DeviceClass};

/// Names in a device's directory that its class cannot use.
const RESERVED_ATTRIBUTES: [&str; 2] = ["class", "interfaces"];

/// A device: a name first, and what its class made of it once it has a type.
pub(crate) struct Shell {
    pub name: String,
    /// With [`Shell::NUM_IDENTS`] identities.
    pub stamp: Stamp,
    /// When its type was set.
    pub type_stamp: Stamp,
    typed: OnceLock<Typed>,
    /// Shared with connections, whose faults must not keep the device alive.
    pub faults: Arc<FaultCount>,
    /// Connections that the device has open.
    pub connections: Arc<Quota>,
}

/// What the class made.
pub(crate) struct Typed {
    pub class_name: &'static str,
    pub device: Arc<dyn Device>,
    /// In the order in which the device named them.
    pub attributes: Vec<ShellAttribute>,
}

/// An attribute of a device.
pub(crate) struct ShellAttribute {
    pub name: &'static str,
    pub stamp: Stamp,
    pub attribute: Arc<dyn Attribute>,
}

/// How often clients were cut off from a device.
#[derive(Debug)]
pub(crate) struct FaultCount {
    /// Name of the device.
    pub device: String,
    count: AtomicU64,
}

impl FaultCount {
    /// Counts one; how many there are now.
    pub fn add(&self) -> u64 {
        self.count.fetch_add(1, Relaxed).wrapping_add(1)
    }

    pub fn get(&self) -> u64 {
        self.count.load(Relaxed)
    }
}

impl Shell {
    pub const NUM_IDENTS: u64 = 8;

    pub fn new(name: &str, idents: &Idents) -> Self {
        let ident = idents.allocate(Self::NUM_IDENTS);
        Shell {
            name: name.to_owned(),
            stamp: Stamp::new(ident),
            type_stamp: Stamp::new(ident + 1),
            typed: OnceLock::new(),
            faults: Arc::new(FaultCount {
                device: name.to_owned(),
                count: AtomicU64::new(0),
            }),
            connections: Quota::new(u64::MAX),
        }
    }

    pub fn typed(&self) -> Option<&Typed> {
        self.typed.get()
    }

    /// Lets the class make the device. The caller sees to it that this runs once at a time.
    ///
    /// # Errors
    /// Of the class; `EBUSY`: it has a type; `EINVAL`: the class gives bad attribute names.
    pub fn set_type(&self, class: &dyn DeviceClass, idents: &Idents) -> Result<(), Errno> {
        let device = class.create(&self.name)?;
        let mut names = BTreeSet::new();
        let mut attributes = Vec::new();
        for (name, attribute) in device.attributes() {
            name::check(name)?;
            if RESERVED_ATTRIBUTES.contains(&name) || !names.insert(name) {
                return Err(Errno::INVAL);
            }
            attributes.push(ShellAttribute {
                name,
                stamp: Stamp::new(idents.allocate(1)),
                attribute,
            });
        }
        let typed = Typed {
            class_name: class.name(),
            device,
            attributes,
        };
        self.typed.set(typed).map_err(|_| Errno::BUSY)?;
        self.stamp.touch();
        self.type_stamp.touch();
        Ok(())
    }
}

impl fmt::Debug for Shell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shell")
            .field("name", &self.name)
            .field("class", &self.typed().map(|typed| typed.class_name))
            .finish_non_exhaustive()
    }
}
