//! What a VM tells the daemon of its bus about itself: `sys/vms/PID` in the control tree.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;

use crate::control::Control;
use crate::kvm::stats::KvmStats;
use crate::kvm::vcpu::ExitMetrics;

/// KVM's counters that are told, of some fifty.
const KVM_COUNTERS: [&str; 5] = ["exits", "halt_exits", "io_exits", "irq_exits", "mmio_exits"];

/// State, memory and exits of one VM.
#[derive(Debug)]
pub struct VmReport {
    control: Arc<Control>,
    memory: u64,
    vcpus: Mutex<Vec<VcpuCounters>>,
}

/// Of one vCPU.
#[derive(Debug)]
struct VcpuCounters {
    /// Those that reached this process.
    exits: Arc<ExitMetrics>,
    /// All.
    kvm: Option<Arc<KvmStats>>,
}

impl VmReport {
    /// Of the VM behind `control`, with `memory` bytes of RAM and no vCPUs yet.
    pub fn new(control: Arc<Control>, memory: u64) -> Self {
        VmReport {
            control,
            memory,
            vcpus: Mutex::default(),
        }
    }

    /// Adds the counters of a vCPU.
    pub fn add_vcpu(&self, exits: Arc<ExitMetrics>, kvm: Option<Arc<KvmStats>>) {
        let mut vcpus = self.vcpus.lock();
        vcpus.push(VcpuCounters { exits, kvm });
    }

    /// The report now, as [`vbus::bus::Member::report`] takes it; exits are sums over all vCPUs.
    pub fn text(&self) -> String {
        let mut exits = BTreeMap::new();
        let vcpus = self.vcpus.lock();
        for vcpu in vcpus.iter() {
            add(&mut exits, "user_", &*vcpu.exits, |_| true);
            if let Some(kvm) = &vcpu.kvm {
                add(&mut exits, "kvm_", &**kvm, |name| {
                    KVM_COUNTERS.contains(&name)
                });
            }
        }
        drop(vcpus);
        let state = match self.control.timeline().first_run_us.get() {
            Some(_) => "running",
            None => "starting",
        };
        let mut text = format!("state {state}\nmemory {}\n", self.memory);
        for (name, count) in exits {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "exits/{name} {count}");
        }
        text
    }
}

/// Adds the numbers among `counters` whose names are wanted.
fn add(
    sums: &mut BTreeMap<String, u64>,
    prefix: &str,
    counters: &impl Serialize,
    is_wanted: impl Fn(&str) -> bool,
) {
    let Ok(Value::Object(counters)) = serde_json::to_value(counters) else {
        return;
    };
    for (name, value) in counters.iter().filter(|(name, _)| is_wanted(name)) {
        if let Some(count) = value.as_u64() {
            let sum = sums.entry(format!("{prefix}{name}")).or_default();
            *sum = sum.saturating_add(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn report_has_state_memory_and_the_sums_of_exits() {
        let control = Arc::new(Control::new(Instant::now()).unwrap());
        let report = VmReport::new(control, 64 << 20);
        for _ in 0..2 {
            let exits = Arc::new(ExitMetrics::default());
            exits.io_out.add(3);
            report.add_vcpu(exits, None);
        }

        let text = report.text();

        assert!(
            text.starts_with("state starting\nmemory 67108864\n"),
            "{text}"
        );
        assert!(text.contains("\nexits/user_io_out 6\n"), "{text}");
        assert!(text.len() < vbus::abi::wire::MAX_TEXT_BYTES);
    }
}
