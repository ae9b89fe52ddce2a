//! A run: its steps one after the other, each with further tries, and where values go.

use std::cell::RefCell;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::command_line::CommandLine;
use super::counters::Watched;
use super::plan::{Group, Progress, Step};
use super::record::{Place, Recorder};
use super::servers::Servers;
use super::start::{Started, Starter};
use super::{GuestsError, boot, counters, io_error, net, notes::Notes, script, verbs};
use crate::bench::instructions::InstructionClock;

/// Tries of a step: guests are known to stand still in an emulated lab.
const TRIES: u32 = 3;
/// Seconds that a guess allows for each guest to start and to end.
const BOOT_SECONDS: f64 = 7.0;

/// Everything that steps need.
#[derive(Debug)]
pub struct Run {
    /// Starts guests.
    pub starter: Starter,
    /// `traffic` for the host's end.
    pub traffic: PathBuf,
    /// Length of a measurement.
    pub seconds: u64,
    /// Cases that are wanted; all if empty.
    pub cases: Vec<String>,
    /// Where values go.
    pub recorder: Recorder,
    /// What the report says about the run.
    pub notes: Notes,
    /// What the run is called in messages.
    pub name: &'static str,
    /// Steps that gave nothing.
    pub num_failed: usize,
    clock: Option<Arc<InstructionClock>>,
    said: RefCell<io::Stderr>,
}

impl Run {
    /// A run that records to `recorder`.
    pub fn new(
        name: &'static str,
        starter: Starter,
        traffic: PathBuf,
        (seconds, cases): (u64, Vec<String>),
        recorder: Recorder,
        notes: Notes,
    ) -> Self {
        Run {
            starter,
            traffic,
            seconds,
            cases,
            recorder,
            notes,
            name,
            num_failed: 0,
            clock: InstructionClock::open().map(Arc::new),
            said: RefCell::new(io::stderr()),
        }
    }

    /// Whose counters tell about what was started.
    pub fn watched(&self, started: &Started) -> Watched {
        Watched {
            clock: self.clock.clone(),
            ..started.watched()
        }
    }

    /// Whether `case` is to be measured.
    pub fn is_wanted(&self, case: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|wanted| wanted == case)
    }

    /// Tells on standard error.
    pub fn say(&self, what: &str) {
        let _ = writeln!(self.said.borrow_mut(), "bench {}: {what}", self.name);
    }

    /// Records a value.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record(&mut self, place: &Place, name: &str, value: f64) -> Result<(), GuestsError> {
        self.recorder
            .add(place, name, value)
            .map_err(io_error("write raw values"))
    }

    /// Notes the command line of a step.
    pub fn note(&mut self, step: &Step, line: &CommandLine) {
        let what = match step.group {
            Group::Sweep(..) => return, // as the others, but for a number
            Group::One => "one".to_owned(),
            Group::Verbs { .. } => "guest".to_owned(),
            _ => step.subject.peer.name().to_owned(),
        };
        let work = self.starter.work.to_string_lossy().into_owned();
        let text = line.to_string().replace(&format!("{work}/"), "");
        self.notes.add(&format!("{}, {what}", self.name), &text);
    }

    fn guess(&self, step: &Step) -> Duration {
        let seconds = match step.group {
            Group::Verbs { has_control } => verbs::duration(has_control),
            group => script::duration(&net::phases_of(self, group), self.seconds),
        };
        let boots = BOOT_SECONDS * f64::from(step.group.num_guests());
        Duration::from_secs_f64(boots + seconds)
    }

    /// Does all steps.
    ///
    /// # Errors
    /// The host fails, or the run is to end.
    pub fn all(&mut self, steps: &[Step]) -> Result<(), GuestsError> {
        let has_group = |is_it: fn(Group) -> bool| steps.iter().any(|step| is_it(step.group));
        if has_group(|group| group != Group::Boot) && !counters::has_kvm_counters() {
            self.say(
                "no VM exits: KVM's counters are not there; mount -t debugfs none /sys/kernel/debug",
            );
        }
        let servers = match has_group(Group::has_traffic) {
            true => Some(net::servers(self)?),
            false => None,
        };
        let rounds = steps.iter().map(|step| step.round).max().unwrap_or(0);
        let guesses = steps.iter().map(|step| self.guess(step)).collect();
        let mut progress = Progress::new(guesses);
        for step in steps {
            self.say(&format!(
                "{}: {}, round {} of {rounds}",
                progress.text(),
                describe(step),
                step.round
            ));
            self.step(servers.as_ref(), step)?;
            progress.advance();
        }
        self.notes.write().map_err(io_error("write notes.tsv"))
    }

    fn step(&mut self, servers: Option<&Servers>, step: &Step) -> Result<(), GuestsError> {
        for attempt in 1..=TRIES {
            self.starter.interrupt.check()?;
            let num_values = self.recorder.values.len();
            let outcome = match (step.group, servers) {
                (Group::Verbs { has_control }, _) => verbs::attempt(self, step, has_control)?,
                (_, Some(servers)) => net::attempt(self, servers, step)?,
                (_, None) => boot::attempt(self, step)?,
            };
            let Some(why) = outcome else {
                if step.round > 0 && self.recorder.values.len() == num_values {
                    self.num_failed += 1;
                    self.say(&format!("{}: no value at all", describe(step)));
                }
                return Ok(());
            };
            let (case, x) = match step.group {
                Group::Host | Group::Boot => ("boot", None),
                Group::One => ("one-boot", None),
                Group::Pair => ("g2g-boot", None),
                Group::Memory => ("memory", None),
                Group::Verbs { .. } => (verbs::BOOT, None),
                Group::Sweep(sweep, x) => (sweep.case(), Some(x).filter(|x| *x > 0)),
            };
            let place = Place {
                case: case.into(),
                peer: match step.group {
                    Group::Verbs { .. } => verbs::OURS.to_owned(),
                    _ => step.subject.to_string(),
                },
                round: step.round,
                x: x.map(f64::from),
            };
            self.record(&place, "stuck", 1.0)?;
            let what = describe(step);
            self.say(&format!(
                "{what} stood still, try {attempt} of {TRIES}; {why}"
            ));
        }
        self.num_failed += 1;
        Ok(())
    }
}

fn describe(step: &Step) -> String {
    let subject = step.subject;
    match step.group {
        Group::Host | Group::Boot | Group::Memory => subject.to_string(),
        Group::One => "venet and virtio in one guest".into(),
        Group::Pair => format!("{subject}, two guests"),
        Group::Verbs { .. } => "verbs and their peers in one guest".into(),
        Group::Sweep(sweep, 0) => format!("{subject}, {}", sweep.case()),
        Group::Sweep(sweep, x) => format!("{subject}, {} {x}", sweep.case()),
    }
}
