//! The object model: who may use which device.
//!
//! | object | made by | lives until |
//! |---|---|---|
//! | class | [`Host::register_class`] | the host |
//! | device | [`Host::create_device`], then [`Host::set_type`] once | [`Host::remove_device`] and its last connection |
//! | bus | [`Host::create_bus`] | [`Host::remove_bus`], refused while it has links or members |
//! | interface | [`Host::link`], which asks the device what it offers | [`Host::unlink`] |
//! | member | [`Host::join`], one bus per process | the last [`Member`] and [`Client`] of the process |
//! | client | [`Member::attach`] | its drop, which closes all that it opened |
//! | connection | [`Verbs::open`](crate::verbs::Verbs::open) | close, death of the client, or the end of its interface |
//!
//! A client names interfaces by id on its own bus and connections by its own handles; nothing else
//! can be named.
//!
//! # The end of an interface
//! [`Host::unlink`] takes the interface off the bus and then tells every client. Of their open
//! connections only `close` works from then on, and the device's `close` is called at once, by the
//! host's housekeeping thread: `unlink` waits for no client, and no client can keep an orphan alive.
//! What remains is a handle, until the client closes it too. The same happens to one client alone when
//! a device reports a fault of it; it cannot open that interface again until it attaches anew.
//!
//! # Locks
//! Taken in this order, each for a short and bounded time:
//!
//! 1. registry of the host: names, links, members;
//! 2. bus: interfaces and listeners, so that every listener sees the same order of events;
//! 3. client: handles, and what it was cut off from;
//! 4. connection: whether calls may start, how many are in flight;
//! 5. leaves that take no other: quotas, notices, the queue of the housekeeping thread.
//!
//! No device code runs under any of them, not even the drop of a device's object. Where a change has
//! to be prepared by a device (the class makes it, it joins or leaves a bus), the name is reserved
//! first: others get `EBUSY` or `EEXIST` until it is done or undone. [`EventSink`]s are called under
//! the locks of bus and client; they must not block or call back.
//!
//! [`EventSink`]: crate::verbs::EventSink

mod client;
mod connection;
mod host;
mod housekeeper;
mod identity;
mod instance;
mod link;
mod member;
mod name;
mod notice;
mod quota;
mod registry;
mod report;
mod shell;
mod view;

pub use client::Client;
pub use host::Host;
pub use member::Member;
pub use quota::{Charge, Limits};

pub(crate) use identity::Stamp;
pub(crate) use instance::{Bus, RegisteredInterface};
pub(crate) use member::MemberRecord;
pub(crate) use notice::ClosedNotice;
pub(crate) use registry::{ClassRecord, LinkView};
pub(crate) use shell::{Shell, ShellAttribute};
pub(crate) use view::Snapshot;
