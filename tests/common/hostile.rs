//! Guests that attack the host with `vbus_hostile.ko`, and what the module says of it.

use std::ops::AddAssign;

use super::guest::{Outcome, Running};

/// Of the first round; each further one adds one. Others are as good: whatever comes of one is a failure
/// of the host.
const SEED: u32 = 4;

/// What the module found: the host's answer to each case is one of these.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Lines of the kernel's log that this is the sum of.
    pub rounds: u32,
    pub tried: u64,
    pub cut_off: u64,
    pub stopped: u64,
    pub refused: u64,
    pub harmless: u64,
    pub failed: u64,
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.rounds += other.rounds;
        self.tried += other.tried;
        self.cut_off += other.cut_off;
        self.stopped += other.stopped;
        self.refused += other.refused;
        self.harmless += other.harmless;
        self.failed += other.failed;
    }
}

impl Report {
    /// The reports about `mode` in the kernel's log, together.
    #[track_caller]
    pub fn find(outcome: &Outcome, mode: &str) -> Self {
        let start = format!("vbus_hostile: {mode}: seed ");
        let mut sum = Report::default();
        for line in outcome.stdout.lines() {
            if let Some((_, numbers)) = line.split_once(&start) {
                sum += Self::parse(numbers);
            }
        }
        assert!(sum.rounds > 0, "no report of {mode}\n{outcome:?}");
        sum
    }

    /// Of a seed and what was found with it.
    #[track_caller]
    fn parse(line: &str) -> Self {
        let numbers: Vec<u64> = line
            .split([' ', ','])
            .filter_map(|word| word.parse().ok())
            .collect();
        let [_, tried, cut_off, stopped, refused, harmless, failed] = numbers[..] else {
            panic!("not a report: {line}");
        };
        Report {
            rounds: 1,
            tried,
            cut_off,
            stopped,
            refused,
            harmless,
            failed,
        }
    }

    /// All of `modes`, each with a report for each round, none of which may have found fault with the host.
    #[track_caller]
    pub fn all(outcome: &Outcome, modes: &[&str], rounds: u32) -> Self {
        let mut all = Report::default();
        for mode in modes {
            let report = Self::find(outcome, mode);
            println!("{mode}: {report:?}");
            assert!(
                report.rounds == rounds && report.tried > 0 && report.failed == 0,
                "{mode}: {outcome:?}"
            );
            all += report;
        }
        all
    }
}

/// For the guest's shell: runs all of `attacks`, that many times, and prints what the module has to say.
pub fn attack(attacks: &[&str], rounds: u32) -> String {
    let attacks = attacks.join(" ");
    let last = SEED + rounds - 1;
    format!(
        "while [ -d /sys/bus/vbus ]; do rmmod venet vbus_pci vbus; usleep 200000; done 2>/dev/null
         for seed in $(seq {SEED} {last}); do for mode in {attacks}; do
             echo attack: $mode
             modprobe vbus_hostile mode=$mode seed=$seed || exit 3
             rmmod vbus_hostile
             dmesg -c | grep vbus_hostile:
         done; done"
    )
}

/// Waits until the last of these attacks has begun.
#[track_caller]
pub fn wait_for_attacks(attacker: &Running, attacks: &[&str], rounds: u32) {
    for round in 1..=rounds as usize {
        for mode in attacks {
            attacker.wait_for_times(&format!("attack: {mode}\n"), round);
        }
    }
}
