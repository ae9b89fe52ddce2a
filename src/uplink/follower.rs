//! The thread that keeps a VM on the bus of a daemon.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alacrity_devices::GuestRam;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vbus::client::Remote;
use vbus::loan;

use super::daemon::{Place, Report, Shared};
use super::session::Session;
use crate::reclaim::visitors::Lender;

/// Between attempts to join again: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Between looks whether a daemon that was lost has let go of the memory: at first, and at most.
const LOOKS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// How often the VM says something about itself.
const REPORT_PERIOD: Duration = Duration::from_secs(1);

/// The thread that follows the bus.
pub(super) struct Follower {
    pub shared: Arc<Shared>,
    pub place: Place,
    pub ram: GuestRam,
    pub lender: Option<Lender>,
    pub report: Report,
}

/// Why a connection to the daemon is of no more use.
enum Ended {
    /// The daemon is gone.
    Lost,
    /// The guest let go of its client, whose connection it was.
    Over,
    /// The VM ends.
    Stopped,
}

impl Follower {
    /// Runs until the VM ends; `remote` is joined, and the daemon has the memory.
    pub fn run(self, remote: Remote) {
        let mut connected = Some(remote);
        while !self.shared.is_stopped() {
            let Some(remote) = connected.take().or_else(|| self.join_again()) else {
                return;
            };
            self.shared.set_daemon(true);
            match self.serve(Arc::new(remote)) {
                Ended::Lost => self.shared.metrics.losses.add(1),
                Ended::Over | Ended::Stopped => {}
            }
        }
    }

    /// Joins as soon as there is a daemon with the bus; `None` if the VM ends before.
    fn join_again(&self) -> Option<Remote> {
        let (mut pause, longest) = PAUSES;
        let mut reported = None;
        while !self.shared.is_stopped() {
            let joined = self.place.join().and_then(|remote| {
                self.place
                    .register(&remote, &self.ram, self.lender.as_ref())?;
                Ok(remote)
            });
            match joined {
                Ok(remote) => {
                    tracing::info!("vbus0: joined bus {}", self.place.bus);
                    self.shared.metrics.joins.add(1);
                    return Some(remote);
                }
                Err(error) => {
                    self.shared.set_daemon(false);
                    // Once for each reason: it is tried for as long as the VM runs.
                    let text = alacrity_devices::error::chain(&error).to_string();
                    if reported.as_ref() != Some(&text) {
                        tracing::warn!("{text}; trying again");
                        reported = Some(text);
                    }
                }
            }
            self.sleep(pause);
            pause = (pause * 2).min(longest);
        }
        None
    }

    /// Follows the bus over one connection to its daemon.
    fn serve(&self, remote: Arc<Remote>) -> Ended {
        let mut next_report = Instant::now();
        // Until the guest wants to know, events are only taken in.
        let session = loop {
            if self.shared.is_stopped() {
                return Ended::Stopped;
            }
            if let Some(session) = self.shared.session() {
                break session;
            }
            loop {
                match remote.try_next_event() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(errno) => return self.lose(None, errno),
                }
            }
            next_report = self.report(&remote, next_report);
            self.wait(Some(&remote), Some(next_report));
        };
        if let Err(errno) = session.begin(Arc::clone(&remote)) {
            return self.lose(Some(&session), errno);
        }
        self.shared.set_daemon(true);
        loop {
            if self.shared.is_stopped() {
                // Nobody uses the memory any more, so nobody needs to wait for it.
                session.tell_closed(session.lose());
                return Ended::Stopped;
            }
            if session.is_over() {
                return Ended::Over;
            }
            match remote.try_next_event() {
                Ok(Some(event)) => session.on_event(event),
                Ok(None) => {
                    next_report = self.report(&remote, next_report);
                    self.wait(Some(&remote), Some(next_report));
                }
                Err(errno) => {
                    // So that the daemon notices, if it lives.
                    remote.hang_up();
                    return self.lose(Some(&session), errno);
                }
            }
        }
    }

    /// Reports if it is time to; when it is the next time.
    fn report(&self, remote: &Remote, due: Instant) -> Instant {
        let now = Instant::now();
        if now < due {
            return due;
        }
        if let Err(errno) = remote.report(&(self.report)()) {
            // If the daemon is gone, that is noticed elsewhere.
            tracing::debug!("vbus0: no report to the daemon: {errno}");
        }
        now + REPORT_PERIOD
    }

    fn lose(&self, session: Option<&Session>, errno: Errno) -> Ended {
        if self.shared.is_stopped() {
            if let Some(session) = session {
                session.tell_closed(session.lose());
            }
            return Ended::Stopped;
        }
        self.shared.set_daemon(false);
        let bus = &self.place.bus;
        tracing::warn!("vbus0: lost the daemon of bus {bus} ({errno}); waiting for it");
        let shms = session.map(Session::lose).unwrap_or_default();
        self.await_memory();
        if let Some(session) = session {
            session.tell_closed(shms);
        }
        Ended::Lost
    }

    /// Waits until the daemon cannot write to the guest's memory any more: it has died, or has noticed
    /// that this connection is over. One that was stopped does neither, until it is killed or goes on.
    fn await_memory(&self) {
        let (mut pause, longest) = LOOKS;
        while !self.shared.is_stopped() && loan::is_lent(&self.ram) {
            self.sleep(pause);
            pause = (pause * 2).min(longest);
        }
    }

    /// Sleeps for `time`, or until the VM ends.
    fn sleep(&self, time: Duration) {
        let deadline = Instant::now() + time;
        while !self.shared.is_stopped() && Instant::now() < deadline {
            self.wait(None, Some(deadline));
        }
    }

    /// Waits until the daemon says something, somebody wakes us, or the deadline.
    fn wait(&self, remote: Option<&Remote>, deadline: Option<Instant>) {
        let mut fds = vec![PollFd::from_borrowed_fd(
            vbus::eventfd::as_fd(&self.shared.wake),
            PollFlags::IN,
        )];
        fds.extend(remote.map(|remote| PollFd::from_borrowed_fd(remote.as_fd(), PollFlags::IN)));
        let timeout = deadline.and_then(|deadline| {
            Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok()
        });
        // The loops around look at everything, whatever woke us.
        let _ = poll(&mut fds, timeout.as_ref());
        vbus::eventfd::drain(&self.shared.wake);
    }
}
