//! The configuration of a host as plain data, to be saved and restored.

use std::collections::BTreeMap;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::bus::{Host, ShellAttribute, Snapshot};

/// Devices, buses and links of a [`Host`].
///
/// As TOML:
///
/// ```toml
/// [[device]]
/// name = "net0"
/// type = "venet-tap"
///
/// [device.attributes]
/// ifname = "tap0"
///
/// [[bus]]
/// name = "lan"
///
/// [[bus.link]]
/// name = "net0"
/// device = "net0"
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// All devices, by name in ascending order.
    #[serde(default, rename = "device", skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceState>,
    /// All buses, by name in ascending order.
    #[serde(default, rename = "bus", skip_serializing_if = "Vec::is_empty")]
    pub buses: Vec<BusState>,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceState {
    /// Its name.
    pub name: String,
    /// Name of its class, once it has one.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Values of the attributes that can be written.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// A bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusState {
    /// Its name.
    pub name: String,
    /// Its links, in the order in which they were made: interfaces get their ids in this order.
    #[serde(default, rename = "link", skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<LinkState>,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkState {
    /// Its name.
    pub name: String,
    /// Name of the device.
    pub device: String,
}

/// What cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The device cannot be made.
    #[error("cannot create device {device}")]
    Device {
        /// Its name.
        device: String,
        /// Why.
        source: Errno,
    },
    /// The device cannot get its type.
    #[error("cannot make device {device} a {class}")]
    Type {
        /// Its name.
        device: String,
        /// The class.
        class: String,
        /// Why.
        source: Errno,
    },
    /// The attribute does not exist or does not take its value.
    #[error("cannot set {attribute} of device {device} to {value:?}")]
    Attribute {
        /// The device.
        device: String,
        /// The attribute.
        attribute: String,
        /// The value.
        value: String,
        /// Why.
        source: Errno,
    },
    /// The bus cannot be made.
    #[error("cannot create bus {bus}")]
    Bus {
        /// Its name.
        bus: String,
        /// Why.
        source: Errno,
    },
    /// The device does not get onto the bus.
    #[error("cannot link device {device} to bus {bus} as {link}")]
    Link {
        /// The bus.
        bus: String,
        /// The link.
        link: String,
        /// The device.
        device: String,
        /// Why.
        source: Errno,
    },
}

impl Host {
    /// The configuration as it is now. Attributes that cannot be read are left out.
    pub fn state(&self) -> State {
        let Snapshot { devices, buses } = self.snapshot();
        let devices = devices.iter().map(|shell| {
            let attributes = shell.typed().map_or(&[][..], |typed| &typed.attributes);
            let writable = attributes.iter().filter(|own| own.attribute.is_writable());
            DeviceState {
                name: shell.name.clone(),
                class: shell.typed().map(|typed| typed.class_name.to_owned()),
                attributes: writable
                    .filter_map(|own| Some((own.name.to_owned(), own.attribute.read().ok()?)))
                    .collect(),
            }
        });
        let buses = buses.into_iter().map(|(name, links)| {
            let links = links.into_iter().map(|link| LinkState {
                name: link.name,
                device: link.device,
            });
            BusState {
                name,
                links: links.collect(),
            }
        });
        State {
            devices: devices.collect(),
            buses: buses.collect(),
        }
    }

    /// Makes all that `state` describes, in addition to what there is: devices with their types and
    /// attributes (in the order in which the class names them, those that differ), then buses and
    /// links. Observers are told once, at the end.
    ///
    /// # Errors
    /// The first thing that failed. What was restored before it stays, and observers are not told,
    /// so that a saved state is not overwritten with half of it.
    pub fn restore(&self, state: &State) -> Result<(), RestoreError> {
        for device in &state.devices {
            self.restore_device(device)?;
        }
        for bus in &state.buses {
            self.add_bus(&bus.name)
                .map_err(|source| RestoreError::Bus {
                    bus: bus.name.clone(),
                    source,
                })?;
            for link in &bus.links {
                self.add_link(&bus.name, &link.name, &link.device)
                    .map_err(|source| RestoreError::Link {
                        bus: bus.name.clone(),
                        link: link.name.clone(),
                        device: link.device.clone(),
                        source,
                    })?;
            }
        }
        self.changed();
        Ok(())
    }

    fn restore_device(&self, state: &DeviceState) -> Result<(), RestoreError> {
        let failed = |source| RestoreError::Device {
            device: state.name.clone(),
            source,
        };
        self.add_device(&state.name).map_err(failed)?;
        let shell = self
            .device(&state.name)
            .ok_or(Errno::NOENT)
            .map_err(failed)?;
        if let Some(class) = &state.class {
            self.set_type_of(&shell, class)
                .map_err(|source| RestoreError::Type {
                    device: state.name.clone(),
                    class: class.clone(),
                    source,
                })?;
        }
        let known = shell.typed().map_or(&[][..], |typed| &typed.attributes);
        let failed = |attribute: &str, value: &str, source| RestoreError::Attribute {
            device: state.name.clone(),
            attribute: attribute.to_owned(),
            value: value.to_owned(),
            source,
        };
        for (name, value) in &state.attributes {
            if known.iter().all(|own| own.name != name) {
                return Err(failed(name, value, Errno::NOENT));
            }
        }
        for own in known {
            if let Some(value) = state.attributes.get(own.name) {
                set_if_different(own, value).map_err(|source| failed(own.name, value, source))?;
            }
        }
        Ok(())
    }
}

fn set_if_different(own: &ShellAttribute, value: &str) -> Result<(), Errno> {
    if own.attribute.read().is_ok_and(|current| current == value) {
        return Ok(());
    }
    own.attribute.write(value)
}
