//! Attributes that all devices with ports have.

use std::sync::Arc;

use super::mac::MacAddress;
use super::metrics::PortMetrics;
use super::port::Port;
use crate::attributes::{Attributes, read_only, read_write};

/// `client_mac` and the counters of a device with one port.
pub(super) fn of_port(port: &Arc<Port>) -> Attributes {
    let (reader, writer) = (Arc::clone(port), Arc::clone(port));
    let client_mac = read_write(
        move || Ok(reader.mac().to_string()),
        move |text| writer.set_mac(text.parse::<MacAddress>()?),
    );
    let mut attributes = vec![("client_mac", client_mac)];
    for (name, pick) in PortMetrics::ALL {
        let port = Arc::clone(port);
        let counter = read_only(move || Ok(pick(&port.metrics).get().to_string()));
        attributes.push((name, counter));
    }
    attributes
}
