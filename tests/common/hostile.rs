//! Guests that attack the host with `vbus_hostile.ko`, and what the module says of it.

use std::ops::AddAssign;

use super::guest::Outcome;

/// Of the random ones. Another one is as good: whatever comes of it is a failure of the host.
const SEED: u32 = 4;

/// What the module found: the host's answer to each case is one of these.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    pub tried: u64,
    pub cut_off: u64,
    pub stopped: u64,
    pub refused: u64,
    pub harmless: u64,
    pub failed: u64,
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.tried += other.tried;
        self.cut_off += other.cut_off;
        self.stopped += other.stopped;
        self.refused += other.refused;
        self.harmless += other.harmless;
        self.failed += other.failed;
    }
}

impl Report {
    /// The report about `mode` in the kernel's log.
    #[track_caller]
    pub fn find(outcome: &Outcome, mode: &str) -> Self {
        let start = format!("vbus_hostile: {mode}: seed {SEED}, ");
        let Some((_, rest)) = outcome.stdout.split_once(&start) else {
            panic!("no report of {mode}\n{outcome:?}");
        };
        let line = rest.lines().next().unwrap();
        let numbers: Vec<u64> = line
            .split([' ', ','])
            .filter_map(|word| word.parse().ok())
            .collect();
        let [tried, cut_off, stopped, refused, harmless, failed] = numbers[..] else {
            panic!("not a report: {line}");
        };
        Report {
            tried,
            cut_off,
            stopped,
            refused,
            harmless,
            failed,
        }
    }

    /// All of `modes`, none of which may have found fault with the host.
    #[track_caller]
    pub fn all(outcome: &Outcome, modes: &[&str]) -> Self {
        let mut all = Report::default();
        for mode in modes {
            let report = Self::find(outcome, mode);
            println!("{mode}: {report:?}");
            assert!(
                report.tried > 0 && report.failed == 0,
                "{mode}: {outcome:?}"
            );
            all += report;
        }
        all
    }
}

/// For the guest's shell: runs each of `attacks`, and prints what the module has to say.
pub fn attack(attacks: &[&str]) -> String {
    let attacks = attacks.join(" ");
    format!(
        "while [ -d /sys/bus/vbus ]; do rmmod venet vbus_pci vbus; usleep 200000; done 2>/dev/null
         for mode in {attacks}; do
             echo attack: $mode
             modprobe vbus_hostile mode=$mode seed={SEED} || exit 3
             rmmod vbus_hostile
         done
         dmesg | grep vbus_hostile:"
    )
}
