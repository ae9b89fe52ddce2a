//! Members: processes that are on a bus.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::io::Errno;

use super::client::Client;
use super::host::Host;
use super::housekeeper::Jobs;
use super::identity::{Idents, Stamp};
use super::instance::Bus;
use super::quota::{Charge, Limits, Quota};
use super::report::Report;
use crate::memory::MemoryContext;
use crate::verbs::EventSink;

/// One join of a process. The process is a member until the last of them, and the last client, is
/// dropped.
pub struct Member {
    host: Arc<Host>,
    record: Arc<MemberRecord>,
}

/// What is known of a process on a bus.
#[derive(Debug)]
pub(crate) struct MemberRecord {
    pub pid: u32,
    pub bus: Arc<Bus>,
    /// With [`MemberRecord::NUM_IDENTS`] identities.
    pub stamp: Stamp,
    pub clients: Arc<Quota>,
    pub connections: Arc<Quota>,
    pub shms: Arc<Quota>,
    pub shared_bytes: Arc<Quota>,
    /// Times that it was cut off.
    pub faults: AtomicU64,
    /// Verbs that it asked for, refused ones included.
    pub verbs: AtomicU64,
    pub report: Report,
}

impl MemberRecord {
    pub const NUM_IDENTS: u64 = 8;

    pub fn new(pid: u32, bus: Arc<Bus>, limits: Limits, idents: &Idents) -> Self {
        MemberRecord {
            pid,
            bus,
            stamp: Stamp::new(idents.allocate(Self::NUM_IDENTS)),
            clients: Quota::new(limits.clients),
            connections: Quota::new(limits.connections),
            shms: Quota::new(limits.shms),
            shared_bytes: Quota::new(limits.shared_bytes),
            faults: AtomicU64::new(0),
            verbs: AtomicU64::new(0),
            report: Report::new(idents),
        }
    }
}

impl Member {
    pub(super) fn new(host: Arc<Host>, record: Arc<MemberRecord>) -> Self {
        Member { host, record }
    }

    /// A client of the bus: first `events` gets one [`crate::verbs::Event::DeviceAdded`] for each
    /// interface, in ascending order, then every change. Devices find its memory in `memory`.
    ///
    /// The process stays a member for as long as the client lives.
    ///
    /// # Errors
    /// `EDQUOT`: the process has too many.
    pub fn attach(
        &self,
        memory: Arc<dyn MemoryContext>,
        events: Arc<dyn EventSink>,
    ) -> Result<Client, Errno> {
        let member = self.host.join_again(&self.record);
        Client::attach(member, memory, events)
    }

    /// Counts `len` bytes that the process shares outside of any connection, until the result is
    /// dropped.
    ///
    /// An shm is counted by the bus, also when it lies in such memory.
    ///
    /// # Errors
    /// `EDQUOT`: too many.
    pub fn charge_bytes(&self, len: u64) -> Result<Charge, Errno> {
        self.record.shared_bytes.charge(len)
    }

    /// Shows what the process says about itself in `sys/vms`, instead of what it said before: lines
    /// of `NAME VALUE` or `DIRECTORY/NAME VALUE`, names of lower case letters, digits and `_`, values of
    /// printable ASCII. The bounds are [`crate::abi::wire::MAX_REPORT_NAMES`] and its neighbours.
    ///
    /// # Errors
    /// `EINVAL`: anything else. `EDQUOT`: more names than that, counted over all its reports.
    pub fn report(&self, text: &str) -> Result<(), Errno> {
        let was_empty = self.record.report.is_empty();
        self.record.report.set(text)?;
        if was_empty != self.record.report.is_empty() {
            self.host.stamps.vms.touch();
        }
        Ok(())
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.record.pid
    }

    /// Name of the bus.
    pub fn bus(&self) -> &str {
        &self.record.bus.name
    }

    pub(super) fn record(&self) -> &Arc<MemberRecord> {
        &self.record
    }

    pub(super) fn jobs(&self) -> &Jobs {
        self.host.jobs()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.host.leave(&self.record);
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("pid", &self.record.pid)
            .field("bus", &self.record.bus.name)
            .finish_non_exhaustive()
    }
}
