//! The VM of this process, for those who ask about it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alacrity_devices::{GuestRam, error};

use super::{PageCounts, Refusal, VmControl, VmStat, VmState};
use crate::control::Control;
use crate::memory::resident_bytes;
use crate::metrics::Metrics;
use crate::reclaim::census::MemoryMap;
use crate::reclaim::policy::governor::TargetHandle;
use crate::reclaim::policy::{Policy, Reclaimed};
use crate::reclaim::reclaimer::Reclaimer;
use crate::reclaim::word::PageState;

/// What of a VM does not change.
#[derive(Debug, Clone)]
pub struct VmIdentity {
    /// What its user calls it.
    pub name: Option<String>,
    /// The kernel's file.
    pub kernel: PathBuf,
    /// Its vCPUs.
    pub cpus: u32,
    /// Its RAM.
    pub memory_bytes: u64,
}

/// The VM of this process.
#[derive(Debug)]
pub struct RunningVm {
    /// What does not change.
    pub identity: VmIdentity,
    /// How far it is.
    pub control: Arc<Control>,
    /// Its counters.
    pub metrics: Arc<Metrics>,
    /// Its memory.
    pub ram: GuestRam,
    /// Takes its memory, if that is allowed.
    pub policy: Option<Arc<Policy>>,
    /// Sets how much of it is to stay.
    pub target: Option<TargetHandle>,
}

impl RunningVm {
    fn state(&self) -> VmState {
        let timeline = self.control.timeline();
        match (timeline.end_us.get(), timeline.first_run_us.get()) {
            (Some(_), _) => VmState::Ending,
            (None, Some(_)) => VmState::Running,
            (None, None) => VmState::Starting,
        }
    }
}

impl VmControl for RunningVm {
    fn stat(&self) -> VmStat {
        let VmIdentity {
            name,
            kernel,
            cpus,
            memory_bytes,
        } = self.identity.clone();
        VmStat {
            pid: std::process::id(),
            name,
            kernel,
            cpus,
            state: self.state(),
            uptime_us: micros(self.control.uptime()),
            memory_bytes,
            resident_bytes: resident_bytes(&self.ram),
            target_bytes: self.target.as_ref().and_then(TargetHandle::get),
            pages: self
                .policy
                .as_ref()
                .map(|policy| count_pages(policy.reclaimer())),
            metrics: self.metrics.snapshot(&self.control),
        }
    }

    fn reclaim(&self, bytes: u64, is_wanted: &dyn Fn() -> bool) -> Result<Reclaimed, Refusal> {
        let policy = self.policy.as_ref().ok_or(Refusal::ReclaimDisabled)?;
        policy
            .reclaim(bytes, is_wanted)
            .map_err(|failure| Refusal::ReclaimFailed {
                reason: error::chain(&failure),
            })
    }

    fn set_target(&self, bytes: Option<u64>) -> Result<(), Refusal> {
        let target = self.target.as_ref().ok_or(Refusal::ReclaimDisabled)?;
        target.set(bytes);
        Ok(())
    }

    fn memory_map(&self, most_cells: u64) -> Result<MemoryMap, Refusal> {
        let policy = self.policy.as_ref().ok_or(Refusal::ReclaimDisabled)?;
        let map = policy.reclaimer().census(policy.hints(), most_cells);
        map.map_err(|failure| Refusal::ReclaimFailed {
            reason: failure.to_string(),
        })
    }
}

/// Pages by state; each is looked at at another moment.
fn count_pages(reclaimer: &Reclaimer) -> PageCounts {
    let mut counts = PageCounts::default();
    for page in 0..reclaimer.num_pages() {
        let count = match reclaimer.state(page) {
            Some(PageState::Hole) => &mut counts.untracked,
            Some(PageState::Resident) => &mut counts.resident,
            Some(PageState::Pinned(_)) => &mut counts.pinned,
            Some(PageState::Proved(_)) => &mut counts.proved,
            Some(PageState::Dropped(_)) => &mut counts.dropped,
            Some(PageState::Swapped(_)) => &mut counts.swapped,
            Some(PageState::Kept) => &mut counts.kept,
            None => continue,
        };
        *count += 1;
    }
    counts
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
