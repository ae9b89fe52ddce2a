//! `alacrity bench ring`: the ring of vbus beside the split virtqueue.

use super::harness::{self, Load, Outcome, Reclaim, SouthMode, Transport};
use super::report::{Comparison, Report, Signals};
use super::ring::Ring;
use super::virtqueue::Virtqueue;
use super::{BenchError, Case, Effort};

const BATCHES: [usize; 3] = [1, 8, 32];
const RECLAIMS: [(Reclaim, &str); 2] = [
    (Reclaim::EachBatch, "reclaim each"),
    (Reclaim::WhenFull, "reclaim full"),
];
/// How many times better the ring shall be.
const GOAL: f64 = 2.0;
/// Most wake-ups per 1,000 descriptors.
const SIGNAL_GOAL: f64 = 1.0;
/// Bytes that the south copies out of each buffer when wake-ups are counted.
const FRAME_BYTES: usize = 1500;

/// Ring beside virtqueue.
#[derive(Debug)]
pub struct RingCase;

type Run = fn(Load) -> Result<Outcome, BenchError>;

/// A transport with its name.
#[derive(Clone, Copy)]
struct Subject {
    name: &'static str,
    run: Run,
}

fn subject<T: Transport>(name: &'static str) -> Subject {
    Subject {
        name,
        run: harness::run::<T>,
    }
}

impl Case for RingCase {
    fn run(&self, effort: Effort) -> Result<Report, BenchError> {
        let (num_rounds, num_descriptors) = match effort {
            Effort::Quick => (3, 32 << 10),
            Effort::Full => (11, 256 << 10),
        };
        let ring = subject::<Ring>("ring");
        let virtqueue = subject::<Virtqueue>("virtqueue");
        let mut comparisons = Vec::new();
        for (theirs, goal) in [(virtqueue, Some(GOAL)), (ring, None)] {
            for (reclaim, how) in RECLAIMS {
                for batch in BATCHES {
                    let load = Load {
                        num_descriptors,
                        batch,
                        reclaim,
                        mode: SouthMode::Poll,
                    };
                    let name = match goal {
                        Some(_) => format!("batch {batch}, {how}"),
                        None => format!("control: batch {batch}, {how}"),
                    };
                    comparisons.push(compare(name, [ring, theirs], goal, load, num_rounds)?);
                }
            }
        }
        let mut signals = Vec::new();
        for (subject, goal) in [(ring, Some(SIGNAL_GOAL)), (virtqueue, None)] {
            for (reclaim, how) in RECLAIMS {
                for batch in BATCHES {
                    let load = Load {
                        num_descriptors,
                        batch,
                        reclaim,
                        mode: SouthMode::CopyAndSleep {
                            frame_bytes: FRAME_BYTES,
                        },
                    };
                    let name = format!("{}, batch {batch}, {how}", subject.name);
                    signals.push(count_signals(name, subject, goal, load, num_rounds)?);
                }
            }
        }
        Ok(Report {
            case: "ring",
            what: "descriptors to the other CPU and back, 256 at most under way; the ring of vbus \
                   beside the split virtqueue",
            comparisons,
            signals,
        })
    }
}

fn compare(
    name: String,
    [ours, theirs]: [Subject; 2],
    goal: Option<f64>,
    load: Load,
    num_rounds: usize,
) -> Result<Comparison, BenchError> {
    let run = |subject: Subject| {
        let once = move || (subject.run)(load).map(|outcome| outcome.ns_per_descriptor);
        (subject.name, once)
    };
    let comparison = Comparison::measure(name, num_rounds, run(ours), run(theirs))?;
    Ok(Comparison { goal, ..comparison })
}

fn count_signals(
    name: String,
    subject: Subject,
    goal: Option<f64>,
    load: Load,
    num_rounds: usize,
) -> Result<Signals, BenchError> {
    let mut signals = Signals {
        name,
        num_descriptors: load.num_descriptors,
        goal,
        wake_ups: Vec::new(),
        ns_per_descriptor: Vec::new(),
    };
    for _ in 0..num_rounds {
        let outcome = (subject.run)(load)?;
        signals.wake_ups.push(outcome.wake_ups);
        signals.ns_per_descriptor.push(outcome.ns_per_descriptor);
    }
    Ok(signals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_descriptor_comes_back_over_either_transport() {
        for subject in [subject::<Ring>("ring"), subject::<Virtqueue>("virtqueue")] {
            for mode in [SouthMode::Poll, SouthMode::CopyAndSleep { frame_bytes: 64 }] {
                for batch in BATCHES {
                    let load = Load {
                        num_descriptors: 4096,
                        batch,
                        reclaim: Reclaim::WhenFull,
                        mode,
                    };
                    let outcome = (subject.run)(load).unwrap();
                    assert!(outcome.ns_per_descriptor > 0.0, "{}", subject.name);
                }
            }
        }
    }
}
