//! What a VM that did not do what it should is doing: whether its vCPUs run, wait or exit, and
//! where its threads are.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

/// How long the VM is watched.
const WATCH: Duration = Duration::from_secs(1);
/// Fewer VM exits of all vCPUs in that time are those of a guest that only keeps its own time.
const FEW_EXITS: u64 = 50;
const KVM_COUNTERS: &str = "/sys/kernel/debug/kvm";

/// Watches process `pid` for a moment and says what it does. Needs root for most of it; what cannot
/// be read is left out.
pub fn diagnosis(pid: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    if stat
        .rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with('Z'))
    {
        return format!("--- process {pid} has ended");
    }
    mount_debugfs();
    let (counters, ticks) = (kvm_counters(pid), cpu_ticks(pid));
    thread::sleep(WATCH);
    let new_ticks = cpu_ticks(pid);
    let new_counters = kvm_counters(pid);
    let num_exits = |counters: &BTreeMap<_, _>| counters.get("exits").copied().unwrap_or(0);
    let is_still = num_exits(&new_counters).saturating_sub(num_exits(&counters)) < FEW_EXITS;
    let does = if is_still { "stands still" } else { "goes on" };
    let mut text = format!("--- process {pid} {does}, watched for {WATCH:?}:\n");
    for (tid, now) in &new_ticks {
        let num_ticks = now.saturating_sub(ticks.get(tid).copied().unwrap_or(0));
        text += &thread_state(pid, tid, num_ticks);
    }
    text += "KVM counters that moved:";
    for (name, now) in new_counters {
        let before = counters.get(&name).copied().unwrap_or(0);
        if now != before {
            let _ = write!(text, " {name} +{}", now.saturating_sub(before));
        }
    }
    text + "\n---"
}

/// Name, state and stack of a thread in the kernel, and the ticks (10 ms) it had a CPU.
fn thread_state(pid: u32, tid: &str, num_ticks: u64) -> String {
    let read = |name| fs::read_to_string(format!("/proc/{pid}/task/{tid}/{name}"));
    let field = |name| read(name).unwrap_or_default().trim().to_owned();
    let status = field("status");
    let state = status.lines().find(|line| line.starts_with("State:"));
    let stack: Vec<_> = field("stack")
        .lines()
        .map(|line| line.trim_start_matches("[<0>] ").to_owned())
        .collect();
    format!(
        "{} {tid}: {}, {num_ticks} ticks of CPU, in {}\n",
        field("comm"),
        state.unwrap_or_default().replace('\t', " "),
        stack.join(" < ")
    )
}

/// Ticks of CPU time that each thread has had.
fn cpu_ticks(pid: u32) -> BTreeMap<String, u64> {
    names(format!("/proc/{pid}/task"))
        .into_iter()
        .filter_map(|tid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
            // After the name, which may hold anything: state is field 3, utime 14, stime 15.
            let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            let ticks = fields.get(11..13)?.iter().flat_map(|it| it.parse::<u64>());
            Some((tid, ticks.sum()))
        })
        .collect()
}

/// KVM's counters of the VM and of its vCPUs, those of the latter summed up.
fn kvm_counters(pid: u32) -> BTreeMap<String, u64> {
    let vms = names(KVM_COUNTERS);
    let vm = vms
        .iter()
        .filter(|name| name.starts_with(&format!("{pid}-")));
    vm.flat_map(|vm| {
        let dir = Path::new(KVM_COUNTERS).join(vm);
        names(&dir).into_iter().filter_map(move |name| {
            let value = fs::read_to_string(dir.join(&name)).ok()?;
            Some((name, value.trim().parse().ok()?))
        })
    })
    .collect()
}

fn mount_debugfs() {
    if !Path::new(KVM_COUNTERS).exists() {
        let _ = Command::new("mount")
            .args(["-t", "debugfs", "none", "/sys/kernel/debug"])
            .output();
    }
}

fn names(dir: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}
