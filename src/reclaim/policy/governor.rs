//! Takes memory without being asked each time: down to a target, before a cgroup reaches its limit, and
//! when tasks of the host wait for memory.
//!
//! | wish | how much | by which means |
//! |---|---|---|
//! | target | what the guest takes more than that | all |
//! | limit of a cgroup | what is missing to its head room | all |
//! | stalls | what the [`Pace`] allows, for 2 s | those that write nothing |
//!
//! All are soft: a guest that needs its pages gets them back, and then less is taken.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use alacrity_devices::error;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;
use vbus::eventfd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::pace::Pace;
use super::pressure::{Cgroup, PressureError, StallTrigger};
use super::{Order, Outcome, Policy};
use crate::reclaim::ram::PAGE_BYTES;
use crate::reclaim::reclaimer::ReclaimError;
use vbus::threads::{self, ThreadClass};

const PAGE_LEN: u64 = PAGE_BYTES as u64;

/// How often is looked while there is a wish, and while there is none.
const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(1);
/// How long stalls count.
const STALL_TIME: Duration = Duration::from_secs(2);
/// How often the guest is asked to release what is free, at most.
const ASK_TIME: Duration = Duration::from_secs(10);
/// Pages that are looked at in a step by each means: 64 MiB.
const MAX_TRIES: u64 = 1 << 14;

/// What a governor looks at, and acts on.
pub trait Surroundings {
    /// The time.
    fn now(&self) -> Instant;
    /// Memory of the host that the guest takes.
    fn resident_bytes(&self) -> u64;
    /// What has to go so that the limits of cgroups have their head room, in bytes.
    fn excess_bytes(&self) -> u64;
    /// Pages of the guest, and how many it brought back so far because it accessed them.
    fn pages(&self) -> (u64, u64);
    /// Takes memory.
    ///
    /// # Errors
    /// [`ReclaimError`].
    fn carry_out(&mut self, order: &Order) -> Result<Outcome, ReclaimError>;
}

/// What a governor wishes and does, for `alacrity stat`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GovernorStat {
    /// The target.
    pub target_bytes: Option<u64>,
    /// What was to be taken when it looked last.
    pub wanted_bytes: u64,
    /// What it took.
    pub taken_bytes: u64,
    /// Pages that may be taken in a second.
    pub rate: u64,
    /// Words of the guest that are younger do not count.
    pub min_age: u8,
    /// Pages that came back in a second, of late.
    pub refaults: u64,
    /// Times that too many did.
    pub num_halvings: u64,
    /// Times that tasks of the host waited for memory.
    pub num_stalls: u64,
    /// The cgroup whose limits count, or why none does.
    pub cgroup: String,
    /// Whose stalls count, or why none do.
    pub stalls: String,
}

/// Decides when and how much.
#[derive(Debug, Default)]
struct Governor {
    pace: Pace,
    target: Option<u64>,
    stalled_until: Option<Instant>,
    asked_at: Option<Instant>,
}

impl Governor {
    /// Tasks of the host waited for memory.
    fn stalled(&mut self, now: Instant) {
        self.stalled_until = Some(now + STALL_TIME);
    }

    fn set_target(&mut self, target: Option<u64>) {
        if self.target != target {
            self.target = target;
            self.pace.restart();
        }
    }

    /// Looks, and takes what is due; what to tell of it.
    ///
    /// # Errors
    /// [`ReclaimError`]; it may be tried again.
    fn step(
        &mut self,
        around: &mut dyn Surroundings,
        stat: &mut GovernorStat,
    ) -> Result<(), ReclaimError> {
        let now = around.now();
        let (num_pages, num_refaults) = around.pages();
        self.pace.learn(now, num_refaults);
        let above_target = self
            .target
            .map_or(0, |target| around.resident_bytes().saturating_sub(target));
        let by_all_means = above_target.max(around.excess_bytes());
        let allowed = self.pace.allowance(now).saturating_mul(PAGE_LEN);
        let is_stalled = self.stalled_until.is_some_and(|until| now < until);
        let wanted = if is_stalled {
            by_all_means.max(allowed)
        } else {
            by_all_means
        };
        *stat = GovernorStat {
            target_bytes: self.target,
            wanted_bytes: wanted,
            rate: self.pace.rate(),
            min_age: self.pace.min_age(),
            refaults: self.pace.refaults(),
            num_halvings: self.pace.num_halvings(),
            ..std::mem::take(stat)
        };
        let bytes = wanted.min(allowed);
        if bytes == 0 {
            return Ok(());
        }
        let asks_guest = self
            .asked_at
            .is_none_or(|at| now.saturating_duration_since(at) >= ASK_TIME);
        if asks_guest {
            self.asked_at = Some(now);
        }
        let outcome = around.carry_out(&Order {
            bytes,
            max_tries: Some(MAX_TRIES),
            asks_guest,
            min_age: self.pace.min_age(),
            may_swap: by_all_means > 0,
        });
        // What failed was tried as well: it must not be all that is ever tried.
        let outcome = outcome.inspect_err(|_| self.pace.tried(now, num_pages, 0, num_pages))?;
        let taken = outcome.reclaimed;
        let num_taken = (taken.dropped_bytes + taken.swapped_bytes) / PAGE_LEN;
        self.pace
            .tried(now, outcome.num_tried, num_taken, num_pages);
        stat.taken_bytes = stat.taken_bytes.saturating_add(taken.total_bytes());
        Ok(())
    }
}

/// What the thread and its owners share.
struct Shared {
    state: Mutex<State>,
    stat: Arc<Mutex<GovernorStat>>,
    /// Readable when others have changed `state`.
    wake: EventFd,
}

#[derive(Default)]
struct State {
    target: Option<u64>,
    is_over: bool,
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        // Fails only when the counter is full, and then it is readable.
        let _ = self.wake.write(1);
    }
}

/// Sets what a governor aims at.
#[derive(Clone)]
pub struct TargetHandle(Arc<Shared>);

impl fmt::Debug for TargetHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TargetHandle").field(&self.get()).finish()
    }
}

impl TargetHandle {
    /// From now on the guest shall take no more than `target` bytes of the host, or what it likes.
    pub fn set(&self, target: Option<u64>) {
        self.0.change(|state| state.target = target);
    }

    /// What [`TargetHandle::set`] set.
    pub fn get(&self) -> Option<u64> {
        self.0.state.lock().target
    }
}

/// A thread that takes memory of one guest by itself. Dropping it ends that.
pub struct GovernorThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for GovernorThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GovernorThread").finish_non_exhaustive()
    }
}

impl GovernorThread {
    /// Takes by `policy`, down to `target` if there is one; `resident_bytes` tells how much memory of
    /// the host the guest takes.
    ///
    /// # Errors
    /// The host is out of threads or descriptors.
    pub fn start(
        policy: Arc<Policy>,
        target: Option<u64>,
        resident_bytes: impl Fn() -> u64 + Send + 'static,
    ) -> io::Result<Self> {
        let cgroup = Cgroup::own();
        let stalls = [
            match &cgroup {
                Ok(cgroup) => StallTrigger::of_cgroup(cgroup).transpose(),
                Err(_) => None,
            },
            Some(StallTrigger::of_host()),
        ];
        let [of_cgroup, of_host] = stalls.map(Option::transpose);
        let stat = GovernorStat {
            cgroup: match &cgroup {
                Ok(cgroup) => cgroup.name(),
                Err(error) => format!("off: {}", error::chain(error)),
            },
            stalls: stalls_text(&of_cgroup, &of_host),
            ..GovernorStat::default()
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                target,
                is_over: false,
            }),
            stat: Arc::new(Mutex::new(stat)),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        });
        let mut host = Host {
            policy,
            resident_bytes: Box::new(resident_bytes),
            cgroup: cgroup.ok(),
            shared: Arc::clone(&shared),
        };
        let triggers = [of_cgroup, of_host].into_iter().filter_map(Result::ok);
        let triggers = triggers.flatten().collect();
        let govern = move || host.govern(triggers);
        let thread = threads::spawn(ThreadClass::Governor, "governor", govern)?;
        Ok(GovernorThread {
            shared,
            thread: Some(thread),
        })
    }

    /// What it does.
    pub fn stat(&self) -> Arc<Mutex<GovernorStat>> {
        Arc::clone(&self.shared.stat)
    }

    /// To set what it aims at.
    pub fn target(&self) -> TargetHandle {
        TargetHandle(Arc::clone(&self.shared))
    }

    /// Ends it, and waits for nobody: the process is about to end.
    pub fn abandon(mut self) {
        self.shared.change(|state| state.is_over = true);
        self.thread = None;
    }
}

impl Drop for GovernorThread {
    fn drop(&mut self) {
        self.shared.change(|state| state.is_over = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has ended the process already
        }
    }
}

/// Whose stalls count, or why none do.
fn stalls_text(
    of_cgroup: &Result<Option<StallTrigger>, PressureError>,
    of_host: &Result<Option<StallTrigger>, PressureError>,
) -> String {
    match (of_cgroup, of_host) {
        (Ok(Some(_)), Ok(_)) => "of cgroup and host".into(),
        (Ok(Some(_)), Err(_)) => "of cgroup".into(),
        (_, Ok(_)) => "of host".into(),
        (_, Err(error)) => format!("off: {}", error::chain(error)),
    }
}

/// The real surroundings.
struct Host {
    policy: Arc<Policy>,
    resident_bytes: Box<dyn Fn() -> u64 + Send>,
    cgroup: Option<Cgroup>,
    shared: Arc<Shared>,
}

impl Surroundings for Host {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn resident_bytes(&self) -> u64 {
        (self.resident_bytes)()
    }

    fn excess_bytes(&self) -> u64 {
        self.cgroup.as_ref().map_or(0, Cgroup::excess)
    }

    fn pages(&self) -> (u64, u64) {
        let reclaimer = self.policy.reclaimer();
        let metrics = reclaimer.metrics();
        let num_read = metrics.refilled.get() + metrics.swapped_in.get();
        let num_refaults = num_read.saturating_sub(metrics.read_ahead.get());
        (reclaimer.num_pages(), num_refaults)
    }

    fn carry_out(&mut self, order: &Order) -> Result<Outcome, ReclaimError> {
        // A slow disk must not keep it from seeing what changes.
        let deadline = Instant::now() + LONG;
        let is_wanted = || Instant::now() < deadline && !self.shared.state.lock().is_over;
        self.policy.carry_out(order, &is_wanted)
    }
}

impl Host {
    /// Until it is over.
    fn govern(&mut self, mut triggers: Vec<StallTrigger>) {
        let mut governor = Governor::default();
        let shared = Arc::clone(&self.shared);
        let mut num_failures = 0_u64;
        loop {
            let State { target, is_over } = *shared.state.lock();
            if is_over {
                return;
            }
            governor.set_target(target);
            let mut stat = shared.stat.lock().clone();
            if let Err(error) = governor.step(self, &mut stat) {
                num_failures += 1;
                if num_failures.is_power_of_two() {
                    tracing::warn!("cannot take memory: {}", error::chain(&error));
                }
            }
            let pause = if stat.wanted_bytes > 0 { SHORT } else { LONG };
            let has_stalled = self.wait(&mut triggers, pause);
            if has_stalled {
                governor.stalled(Instant::now());
                stat.num_stalls += 1;
            }
            *shared.stat.lock() = stat;
        }
    }

    /// Waits for `pause`, or until something is new; true if that is a stall.
    fn wait(&self, triggers: &mut Vec<StallTrigger>, pause: Duration) -> bool {
        let wake: BorrowedFd<'_> = eventfd::as_fd(&self.shared.wake);
        let mut fds = vec![PollFd::from_borrowed_fd(wake, PollFlags::IN)];
        let stalls = triggers.iter();
        fds.extend(stalls.map(|trigger| PollFd::from_borrowed_fd(trigger.as_fd(), PollFlags::PRI)));
        let timeout = Timespec::try_from(pause).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            // Nothing will be heard of; time goes on all the same.
            Err(_) => std::thread::sleep(pause),
        }
        let events: Vec<_> = fds.iter().skip(1).map(PollFd::revents).collect();
        eventfd::drain(&self.shared.wake);
        let has_stalled = events.iter().any(|event| event.contains(PollFlags::PRI));
        // Those of a cgroup that is gone would be ready for ever.
        let mut events = events.into_iter();
        triggers.retain(|_| {
            let event = events.next().unwrap_or(PollFlags::empty());
            !event.intersects(PollFlags::ERR | PollFlags::NVAL)
        });
        has_stalled
    }
}

#[cfg(test)]
mod tests;
