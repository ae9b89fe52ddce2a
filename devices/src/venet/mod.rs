//! The devices of the kind `virtual-ethernet` on the virtual bus.
//!
//! | class | where frames go |
//! |---|---|
//! | [`LoopbackClass`] | back to the sender |
//! | [`SwitchClass`] | to the other buses that the device is on |
//! | [`TapClass`] | to an interface of the host |
//!
//! | module | what lives there |
//! |---|---|
//! | [`driver`] | the north: what a host process uses a device with |
//! | `connection` | set-up order, negotiation, rings of one client |
//! | `handler`, `poll` | one connection on its worker: what is ready, what to serve, when to sleep |
//! | `tx`, `rx` | the two rings of a connection |
//! | `frame`, `offload` | a frame on its way, checked, and what its sender left to be done |
//! | `packet` | headers, checksums and segmentation in software |
//! | `port`, `path` | one interface, and the seams to the class behind it |
//! | `switch`, `switch_path`, `mac_table`, `bucket`, `uplink` | the switch |
//! | `tap_device`, `tap_end`, `tap_fetch` | the TAP |
//! | `attributes`, `mtu`, `mac`, `metrics` | what the administrator sees |
//!
//! Each connection has one worker while its link is up, which does what the client asks for: it
//! copies a frame from the memory of the sender straight to that of the receiver, whose receive ring
//! it locks for this one frame. To and from a TAP, the kernel does that copy. Nobody waits for a
//! client: a receiver without buffers loses frames, and only its own; from a TAP that it has for
//! itself, they wait in the TAP.
//!
//! A frame that makes no sense is counted, dropped, and its slot returned. A broken ring cuts the
//! client off.

mod attributes;
mod bucket;
mod connection;
pub mod driver;
mod frame;
#[cfg(any(test, feature = "test-utils"))]
pub mod fuzz;
#[cfg(any(test, feature = "test-utils"))]
mod fuzz_frame;
mod handler;
mod loopback;
mod mac;
mod mac_table;
mod metrics;
mod mtu;
mod offload;
mod packet;
mod path;
mod poll;
mod port;
mod rx;
mod switch;
#[cfg(any(test, feature = "test-utils"))]
pub mod switch_fuzz;
mod switch_path;
mod tap_device;
mod tap_end;
mod tap_fetch;
#[cfg(any(test, feature = "test-utils"))]
pub mod tap_fuzz;
mod tx;
mod uplink;

pub use loopback::LoopbackClass;
pub use mac::MacAddress;
pub use metrics::PortMetrics;
pub use switch::SwitchClass;
pub use tap_device::TapClass;
