//! A connection: calls that may be in flight, and the end of it.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::client::Attachment;
use super::housekeeper::Jobs;
use super::quota::Charge;
use super::shell::{FaultCount, Shell};
use crate::device::{self, FaultReporter};
use crate::verbs::InterfaceId;

/// One client's connection to one interface.
///
/// The device's `close` is called once, when no call is in flight and none can start: by whoever
/// closes, or by the housekeeping thread if a call was still running then.
pub(crate) struct Connection {
    pub interface: InterfaceId,
    client: Weak<Attachment>,
    jobs: Jobs,
    faults: Arc<FaultCount>,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    in_flight: u32,
    is_closing: bool,
    /// The device, for as long as the connection needs it; gone once it is closed, so that a handle
    /// that is never closed pins nothing.
    shell: Option<Arc<Shell>>,
    opened: Option<Opened>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Opening,
    Open,
    /// Takes no more calls.
    Dropped,
}

struct Opened {
    /// Before the connection, so that whoever sees that end sees it counted out.
    _gauge: Option<Charge>,
    connection: Arc<dyn device::Connection>,
}

impl Connection {
    pub fn new(
        interface: InterfaceId,
        shell: Arc<Shell>,
        client: Weak<Attachment>,
        jobs: Jobs,
    ) -> Arc<Self> {
        Arc::new(Connection {
            interface,
            client,
            jobs,
            faults: Arc::clone(&shell.faults),
            state: Mutex::new(State {
                phase: Phase::Opening,
                in_flight: 0,
                is_closing: false,
                shell: Some(shell),
                opened: None,
            }),
        })
    }

    /// The device has accepted it. Calls start after [`Connection::open`].
    pub fn establish(&self, connection: Arc<dyn device::Connection>) {
        let mut state = self.state.lock();
        let gauge = state
            .shell
            .as_ref()
            .map(|shell| shell.connections.charge(1));
        state.opened = Some(Opened {
            connection,
            _gauge: gauge.and_then(Result::ok),
        });
    }

    /// Lets calls start; false if it was dropped while the device connected it.
    pub fn open(&self) -> bool {
        let mut state = self.state.lock();
        if state.phase == Phase::Opening {
            state.phase = Phase::Open;
        }
        state.phase == Phase::Open
    }

    /// Lets no more calls start; false if none could before.
    pub fn drop_calls(&self) -> bool {
        let mut state = self.state.lock();
        let was_dropped = state.phase == Phase::Dropped;
        state.phase = Phase::Dropped;
        !was_dropped
    }

    /// Runs a call of the device.
    ///
    /// # Errors
    /// `ENODEV`: it was dropped. Those of `call`.
    pub fn run<R>(
        self: &Arc<Self>,
        call: impl FnOnce(&dyn device::Connection) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        let (_leave, connection) = {
            let mut state = self.state.lock();
            if state.phase != Phase::Open {
                return Err(Errno::NODEV);
            }
            let opened = state.opened.as_ref().ok_or(Errno::NODEV)?;
            let connection = Arc::clone(&opened.connection);
            state.in_flight += 1;
            (Leave(self), connection)
        };
        call(&*connection)
    }

    /// Closes the connection on the device's side, now or as soon as no call is in flight.
    pub fn close(&self) {
        let (opened, shell) = {
            let mut state = self.state.lock();
            state.phase = Phase::Dropped;
            state.is_closing = true;
            if state.in_flight > 0 {
                return; // `Leave` comes back to this.
            }
            (state.opened.take(), state.shell.take())
        };
        if let Some(opened) = opened {
            opened.connection.close();
        }
        drop(shell);
    }

    /// The client broke the rules. Runs on the device's threads: nothing that ends a device may be
    /// dropped here.
    fn fault(self: &Arc<Self>, reason: &dyn fmt::Display) {
        let Some(client) = self.client.upgrade() else {
            return; // It is gone, and the connection with it.
        };
        let record = client.record();
        let cut_off = record
            .bus
            .if_registered(self.interface, || client.cut_off(self));
        // Otherwise all clients were told that it left, and this connection is not open yet.
        let doomed = cut_off.unwrap_or_else(|| self.drop_calls().then(|| vec![Arc::clone(self)]));
        let Some(doomed) = doomed else {
            return;
        };
        record.faults.fetch_add(1, Relaxed);
        let faults = self.faults.add();
        if faults.is_power_of_two() {
            tracing::warn!(
                "{}: cut off process {} on bus {}: {reason} ({faults} faults so far)",
                self.faults.device,
                record.pid,
                record.bus.name,
            );
        }
        for connection in doomed {
            self.jobs.close(connection);
        }
    }
}

/// Ends a call, and closes the connection if that was all it waited for.
struct Leave<'a>(&'a Arc<Connection>);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let is_due = {
            let mut state = self.0.state.lock();
            state.in_flight -= 1;
            state.in_flight == 0 && state.is_closing
        };
        if is_due {
            self.0.jobs.close(Arc::clone(self.0));
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("interface", &self.interface)
            .finish_non_exhaustive()
    }
}

/// What a device reports faults to; keeps nothing alive.
pub(super) struct Reporter(pub Weak<Connection>);

impl FaultReporter for Reporter {
    fn report(&self, reason: &dyn fmt::Display) {
        if let Some(connection) = self.0.upgrade() {
            connection.fault(reason);
        }
    }
}
