//! What the host counts while a guest works.
//!
//! | value | where it comes from |
//! |---|---|
//! | exits | KVM's counters of these VMs (debugfs) |
//! | CPU time | `/proc/stat`: all that the host's CPUs did, which includes guests |
//! | system calls | `/proc/PID/io` of VMM and daemon: only those that read or write |
//! | doorbells, exits to the VMM | our own VMM's counters |
//! | instructions | the lab's counter, where there is one ([`InstructionClock`]): of host and guests |
//! | drops | `/proc/net/dev`: what a TAP had no room for |

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::bench::instructions::{InstructionClock, Instructions};
use crate::control_socket::client;
use crate::control_socket::place::Place;
use crate::smaps::{self, Mapping};

/// Where KVM shows its counters.
const KVM: &str = "/sys/kernel/debug/kvm";
/// Counters of KVM, each of which counts exits for a reason, and what the reason is called.
const REASONS: [(&str, &str); 6] = [
    ("halt_exits", "halt"),
    ("io_exits", "io"),
    ("mmio_exits", "mmio"),
    ("irq_window_exits", "irq_window"),
    ("irq_exits", "host_irq"),
    ("hypercalls", "hypercall"),
];
/// Units of `/proc/stat` in a second, on x86.
const TICKS_PER_S: u64 = 100;
/// Mappings from this size on are guest memory, which has 512 MiB.
const RAM_KIB: u64 = 500_000;

/// Whose counters are read.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// Processes of VMMs.
    pub vmms: Vec<u32>,
    /// Processes that work for them.
    pub helpers: Vec<u32>,
    /// Whether the VMMs are ours.
    pub is_ours: bool,
    /// Counts instructions.
    pub clock: Option<Arc<InstructionClock>>,
}

/// All counters at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    exits: Option<u64>,
    reasons: BTreeMap<&'static str, u64>,
    busy_us: Option<u64>,
    calls: Option<u64>,
    doorbells: Option<u64>,
    user_exits: Option<u64>,
    drops: u64,
    executed: Option<Instructions>,
}

impl Snapshot {
    /// Reads them.
    pub fn take(watched: &Watched) -> Self {
        let place = kvm_directories(Path::new(KVM), &watched.vmms);
        let count = |name: &str| sum(place.iter().map(|dir| number_in(&dir.join(name))));
        let reason = |(file, name): (&str, &'static str)| Some((name, count(file)?));
        let processes = watched.vmms.iter().chain(&watched.helpers);
        let io = |pid: &u32| calls(&fs::read_to_string(format!("/proc/{pid}/io")).ok()?);
        let told: Vec<Value> = match watched.is_ours {
            true => watched
                .vmms
                .iter()
                .filter_map(|pid| told_by(*pid))
                .collect(),
            false => Vec::new(),
        };
        // As many as there are VMMs, or the sum would be too small.
        let told = (told.len() == watched.vmms.len()).then_some(told);
        let told = told.unwrap_or_default();
        Snapshot {
            exits: count("exits"),
            reasons: REASONS.into_iter().filter_map(reason).collect(),
            busy_us: busy_us(&fs::read_to_string("/proc/stat").unwrap_or_default()),
            calls: sum(processes.map(io)),
            doorbells: sum(told.iter().map(|stat| count_named("doorbells", stat))),
            user_exits: sum(told.iter().map(user_exits)),
            drops: drops(&fs::read_to_string("/proc/net/dev").unwrap_or_default()),
            executed: watched.clock.as_ref().map(|clock| clock.counts()),
        }
    }

    /// What happened since `before`, for `packets` packets.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub fn since(&self, before: &Snapshot, packets: u64) -> Vec<(String, f64)> {
        let mut values = Vec::new();
        if packets == 0 {
            return values;
        }
        let per_1000 = |much: u64| much as f64 * 1000.0 / packets as f64;
        let less = |now: Option<u64>, then: Option<u64>| Some(now?.saturating_sub(then?));
        if let Some(exits) = less(self.exits, before.exits) {
            values.push(("exits_per_1000".into(), per_1000(exits)));
            let mut known = 0;
            for (reason, now) in &self.reasons {
                let Some(then) = before.reasons.get(reason) else {
                    continue;
                };
                let much = now.saturating_sub(*then);
                known += much;
                values.push((format!("exits.{reason}"), per_1000(much)));
            }
            let rest = exits.saturating_sub(known);
            values.push(("exits.other".into(), per_1000(rest)));
        }
        if let Some(doorbells) = less(self.doorbells, before.doorbells) {
            values.push(("doorbells_per_1000".into(), per_1000(doorbells)));
        }
        if let Some(calls) = less(self.calls, before.calls) {
            values.push(("syscalls_per_1000".into(), per_1000(calls)));
        }
        if let Some(busy) = less(self.busy_us, before.busy_us) {
            values.push(("cpu_us_per_packet".into(), busy as f64 / packets as f64));
        }
        if let Some((now, then)) = self.executed.zip(before.executed) {
            let executed = now - then;
            values.push((
                "insns_per_packet".into(),
                executed.all() as f64 / packets as f64,
            ));
            for (who, much) in [
                ("host_user", executed.host_user),
                ("host_kernel", executed.host_kernel),
                ("guest_user", executed.guest_user),
                ("guest_kernel", executed.guest_kernel),
            ] {
                values.push((format!("insns.{who}"), much as f64 / packets as f64));
            }
        }
        values
    }

    /// Exits since `before`, by KVM.
    pub fn exits_since(&self, before: &Snapshot) -> Option<u64> {
        Some(self.exits?.saturating_sub(before.exits?))
    }

    /// Those of them that reached our VMM.
    pub fn user_exits_since(&self, before: &Snapshot) -> Option<u64> {
        Some(self.user_exits?.saturating_sub(before.user_exits?))
    }

    /// Instructions that were executed since `before`.
    pub fn executed_since(&self, before: &Snapshot) -> Option<u64> {
        Some((self.executed? - before.executed?).all())
    }

    /// Microseconds that CPUs were busy since `before`.
    pub fn busy_since(&self, before: &Snapshot) -> Option<u64> {
        Some(self.busy_us?.saturating_sub(before.busy_us?))
    }

    /// Frames that TAPs dropped since `before`.
    pub fn drops_since(&self, before: &Snapshot) -> u64 {
        self.drops.saturating_sub(before.drops)
    }
}

/// Adds up; `None` if one is missing, or there are none.
fn sum(numbers: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    let numbers: Vec<u64> = numbers.collect::<Option<_>>()?;
    (!numbers.is_empty()).then(|| numbers.iter().sum())
}

fn number_in(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The directories of the VMs that the processes made: `PID-DESCRIPTOR`.
fn kvm_directories(kvm: &Path, pids: &[u32]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(kvm) else {
        return Vec::new();
    };
    let is_theirs = |name: &str| {
        let pid = name.split_once('-').and_then(|(pid, _)| pid.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(is_theirs)
        })
        .collect()
}

/// Whether KVM's counters can be read here.
pub fn has_kvm_counters() -> bool {
    Path::new(KVM).join("exits").exists()
}

/// Time of all CPUs that was neither idle nor waiting for disks, from `/proc/stat`.
fn busy_us(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; guests are a part of user.
    let &[user, nice, system, _, _, irq, softirq, ..] = ticks.as_slice() else {
        return None;
    };
    Some((user + nice + system + irq + softirq) * (1_000_000 / TICKS_PER_S))
}

/// Calls that read or wrote, from `/proc/PID/io`.
fn calls(io: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = io.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse::<u64>().ok()
    };
    Some(field("syscr:")? + field("syscw:")?)
}

/// Frames that all interfaces together had no room for, from `/proc/net/dev`.
fn drops(dev: &str) -> u64 {
    let of_line = |line: &str| {
        let (_, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        Some(numbers.get(3)? + numbers.get(11)?)
    };
    dev.lines().filter_map(of_line).sum()
}

/// What a VMM of ours tells about itself.
fn told_by(pid: u32) -> Option<Value> {
    let stat = client::stat(&Place::default_one().ok()?, pid).ok()?;
    Some(stat.metrics)
}

/// Exits of all vCPUs that a VMM of ours was told of, by what it tells.
fn user_exits(metrics: &Value) -> Option<u64> {
    // Accesses that nobody answers are counted as such once more.
    let of_reasons = |(reason, count): (&String, &Value)| match reason.as_str() {
        "unclaimed" => None,
        _ => count.as_u64(),
    };
    let vcpus = metrics.get("vcpus")?.as_object()?;
    let of_vcpu = |vcpu: &Value| -> u64 {
        let reasons = vcpu.as_object().into_iter().flatten();
        reasons.filter_map(of_reasons).sum()
    };
    Some(vcpus.values().map(of_vcpu).sum())
}

/// The sum of all numbers that are called `name`, however deep.
fn count_named(name: &str, json: &Value) -> Option<u64> {
    let mut found = Vec::new();
    let mut rest = vec![json];
    while let Some(value) = rest.pop() {
        match value {
            Value::Object(map) => {
                found.extend(map.get(name).and_then(Value::as_u64));
                rest.extend(map.values());
            }
            Value::Array(list) => rest.extend(list),
            _ => {}
        }
    }
    (!found.is_empty()).then(|| found.iter().sum())
}

/// Memory in KiB of the process without guest memory: its share of what it shares (PSS), but all of its
/// program. That is in memory for one VM as for many, and the benchmark, which is the same program as our
/// VMM, does not take half of it away.
pub fn own_kib(pid: u32) -> Option<u64> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    own_kib_of(&smaps::parse(&smaps), program.to_str()?)
}

fn own_kib_of(mappings: &[Mapping], program: &str) -> Option<u64> {
    let kib = |mapping: &Mapping| match mapping.name == program {
        true => mapping.rss_kib,
        false => mapping.pss_kib,
    };
    let own = mappings.iter().filter(|it| it.size_kib < RAM_KIB);
    (!mappings.is_empty()).then(|| own.map(kib).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_understood() {
        let stat = "cpu  10 20 30 400 50 6 7 8 9 0\ncpu0 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy_us(stat), Some((10 + 20 + 30 + 6 + 7) * 10_000));
        assert_eq!(busy_us("cpu 1 2"), None);
        assert_eq!(calls("rchar: 5\nsyscr: 3\nsyscw: 4\n"), Some(7));
        assert_eq!(calls("rchar: 5\n"), None);
        let dev = "Inter-| Receive\n face |bytes\n tap0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n lo: 0 0 0 1 0 0 0 0 0 0 0 1\n";
        assert_eq!(drops(dev), 4 + 12 + 2);
        let mapping = |name: &str, size_kib, rss_kib, pss_kib| Mapping {
            name: name.into(),
            size_kib,
            rss_kib,
            pss_kib,
            ..Mapping::default()
        };
        let mappings = [
            mapping("", 524_288, 400_000, 400_000),
            mapping("/bin/vmm", 8, 6, 3),
            mapping("/lib/libc.so.6", 8, 6, 2),
        ];
        assert_eq!(own_kib_of(&mappings, "/bin/vmm"), Some(6 + 2));
        assert_eq!(own_kib_of(&[], "/bin/vmm"), None);
    }

    #[test]
    fn own_processes_have_counters_and_memory() {
        let pid = std::process::id();
        let watched = Watched {
            vmms: vec![pid],
            ..Watched::default()
        };

        let snapshot = Snapshot::take(&watched);

        assert!(
            snapshot.calls > Some(0) && snapshot.busy_us > Some(0),
            "{snapshot:?}"
        );
        assert_eq!(snapshot.exits, None, "it made no VM");
        assert!(own_kib(pid) > Some(100));
    }

    #[test]
    fn counters_of_other_vms_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["12-7", "123-7", "12x", "exits"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }

        let found = kvm_directories(dir.path(), &[12]);

        assert_eq!(found, [dir.path().join("12-7")]);
    }

    #[test]
    fn counters_are_for_each_thousand_packets() {
        let before = Snapshot {
            exits: Some(100),
            reasons: [("halt", 10)].into(),
            busy_us: Some(1000),
            calls: Some(5),
            drops: 1,
            ..Snapshot::default()
        };
        let after = Snapshot {
            exits: Some(150),
            reasons: [("halt", 30)].into(),
            busy_us: Some(3000),
            calls: Some(7),
            drops: 3,
            ..Snapshot::default()
        };

        let expected = [
            ("exits_per_1000", 500.0),
            ("exits.halt", 200.0),
            ("exits.other", 300.0),
            ("syscalls_per_1000", 20.0),
            ("cpu_us_per_packet", 20.0),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        assert_eq!(after.since(&before, 100), expected);
        assert_eq!(after.since(&before, 0), []);
        assert_eq!(after.drops_since(&before), 2);
        assert_eq!(after.exits_since(&before), Some(50));
        assert_eq!(after.user_exits_since(&before), None);
    }

    #[test]
    fn doorbells_are_found_wherever_they_are() {
        let metrics = serde_json::json!({"devices": {"net0": {"pairs": [{"tx": {"doorbells": 3}},
            {"rx": {"doorbells": 4}}], "doorbells": 1}}});

        assert_eq!(count_named("doorbells", &metrics), Some(8));
        assert_eq!(count_named("bells", &metrics), None);
        assert_eq!(user_exits(&metrics), None);
        let metrics = serde_json::json!({"vcpus": {"0": {"io_out": 3, "unclaimed": 2, "other": 1},
            "1": {"io_in": 4}}});
        assert_eq!(user_exits(&metrics), Some(8));
    }
}
