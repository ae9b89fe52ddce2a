//! `alacrity bench net|boot|memory|verbs|all`: guests of alacrity and of others, side by side on one host.
//!
//! Only ratios within one run mean anything, so everything is about comparing like with like: the same
//! kernel, root file system, words, memory and vCPUs for all; rounds in the order A B C, C B A; ours once
//! more in each round as a control; a guest that stands still is ended and its step repeated.
//!
//! | module | what lives there |
//! |---|---|
//! | `require` | what has to be there before anything starts, with remedies |
//! | `plan` | the steps, their order, and how long they take |
//! | `run` | one step after the other, further tries, progress |
//! | `net` | a step with traffic: `plan`'s groups of guests, their phases, what is recorded |
//! | `boot` | a step that only starts a guest |
//! | `verbs` | a step in which a module repeats operations of the bus and of others |
//! | `peer` | who is measured, and the exact command lines |
//! | `start` | guests, daemon, TAPs and bridge of a step |
//! | `host` | the network namespace in which all that is |
//! | `process` | a program that was started: its lines with a deadline, its end |
//! | `servers` | what guests ask on the host |
//! | `script` | what guests run and say |
//! | `counters` | what the host counts meanwhile: exits, CPU time, system calls, doorbells, drops |
//! | `record`, `notes` | raw values and what the report says beside them |
//! | `summary` | medians and ratios, for people |
//! | `interrupt` | Ctrl-C |
//!
//! Nothing is left behind: processes end with the thread that started them, even if we are killed, and
//! TAPs, bridge and addresses are in a namespace that ends with the last of them.

mod boot;
mod command_line;
mod counters;
mod host;
mod interrupt;
mod net;
mod notes;
mod peer;
mod plan;
mod process;
mod record;
mod require;
mod run;
mod script;
mod servers;
mod start;
mod summary;
mod verbs;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use self::command_line::Images;
use self::interrupt::Interrupt;
use self::notes::Notes;
use self::peer::Peer;
use self::plan::{Step, Sweep, Wishes};
use self::record::Recorder;
use self::require::{Needs, ThisHost};
use self::run::Run;
use self::start::Starter;
use super::ip::IpError;
use super::results::command::ReportError;
use crate::cli::{GuestBench, GuestBenchArgs, ReportArgs};
use crate::exit::ExitStatus;
use crate::images::{GuestImage, ImageError};

/// Where raw values go, and where the report looks for them.
const DIRECTORY: &str = "target/bench";
/// What `all` leaves out.
const REST: &str = "not measured: ring, call, frames and reclaim, which need no guests (`alacrity bench NAME \
    --json target/bench/NAME.json`, outside the lab), and taking memory from guests (scripts/bench-reclaim)";
/// Rounds without `--rounds`.
const ROUNDS: u16 = 3;
/// Seconds of a measurement without `--seconds`.
const SECONDS: u16 = 4;
/// Cases that `--cases` takes, besides the sweeps.
const CASES: [&str; 6] = ["rr", "out", "in", "udp-out", "udp-in", "load"];
/// Peers without `--peers`.
const PEERS: [Peer; 5] = [
    Peer::Virtio,
    Peer::Qemu,
    Peer::QemuVhost,
    Peer::QemuVhostPio,
    Peer::Bridge,
];

/// Why there are no values, or not all.
#[derive(Debug, thiserror::Error)]
pub enum GuestsError {
    /// No such peer or case.
    #[error("no {what} is called {name:?}; there are {}", choices.join(", "))]
    Name {
        /// What it should be.
        what: &'static str,
        /// What was given.
        name: String,
        /// What there is.
        choices: Vec<&'static str>,
    },
    /// Several sets of raw values.
    #[error(
        "--json takes the values of one benchmark; `bench all` has a file for each in the directory of --report"
    )]
    OneFile,
    /// Something has to be there first.
    #[error("{}", missing.join("; also, "))]
    Missing {
        /// What, each with its remedy.
        missing: Vec<String>,
    },
    /// No guest to boot.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A signal came.
    #[error("ended by signal {signal}; what was measured until then is in the raw values")]
    Interrupted {
        /// Its number.
        signal: u8,
    },
    /// The daemon of the switch.
    #[error("the daemon of the switch does not work: {said}")]
    Daemon {
        /// What it said.
        said: String,
    },
    /// `ip` did not do what it was to do.
    #[error(transparent)]
    Ip(#[from] IpError),
    /// The host refused something.
    #[error("cannot {what}")]
    Io {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// No report of what was measured.
    #[error("measured, but there is no report")]
    Report {
        /// Why.
        source: ReportError,
    },
}

impl GuestsError {
    /// The status that tells of it.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Name { .. } | Self::OneFile | Self::Missing { .. } | Self::Image(_) => {
                ExitStatus::BadInput
            }
            Self::Interrupted { signal } => ExitStatus::Signal(*signal),
            Self::Daemon { .. } | Self::Ip(_) | Self::Io { .. } => ExitStatus::HostError,
            Self::Report { source } => source.status(),
        }
    }
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> GuestsError {
    move |source| GuestsError::Io { what, source }
}

/// Everything that the command line says, with its meaning.
#[derive(Debug)]
struct Options {
    wishes: Wishes,
    seconds: u64,
    cases: Vec<String>,
    directory: PathBuf,
    images: Images,
    traffic: PathBuf,
}

impl Options {
    fn of(args: &GuestBenchArgs) -> Result<Self, GuestsError> {
        let find = |name: &String| {
            Peer::find(name).ok_or_else(|| GuestsError::Name {
                what: "peer",
                name: name.clone(),
                choices: Peer::CHOICES.map(Peer::name).to_vec(),
            })
        };
        let peers = match &args.peers {
            Some(peers) => peers
                .iter()
                .filter(|name| !name.is_empty())
                .map(find)
                .collect::<Result<_, _>>()?,
            None => PEERS.to_vec(),
        };
        let (mut cases, mut sweeps) = (Vec::new(), Vec::new());
        for name in &args.cases {
            let sweep = Sweep::ALL.into_iter().find(|sweep| sweep.name() == name);
            match sweep {
                Some(sweep) => sweeps.push(sweep),
                None if CASES.contains(&name.as_str()) => cases.push(name.clone()),
                None => {
                    let sweeps = Sweep::ALL.map(Sweep::name);
                    return Err(GuestsError::Name {
                        what: "case",
                        name: name.clone(),
                        choices: [&CASES[..], &sweeps[..]].concat(),
                    });
                }
            }
        }
        let has_cases = !cases.is_empty() || sweeps.is_empty();
        if args.sweeps {
            sweeps = Sweep::ALL.to_vec();
        }
        let (rounds, seconds) = match args.quick {
            true => (1, 1),
            false => (ROUNDS, SECONDS),
        };
        let images = images(args)?;
        Ok(Options {
            wishes: Wishes {
                rounds: args.rounds.unwrap_or(rounds).into(),
                peers,
                has_control: !args.quick,
                has_cases,
                sweeps,
            },
            seconds: args.seconds.unwrap_or(seconds).into(),
            cases,
            directory: args.report.clone().unwrap_or_else(|| DIRECTORY.into()),
            traffic: images.kernel.with_file_name("traffic"),
            images,
        })
    }

    fn needs(&self, what: GuestBench) -> Needs {
        let mut peers = self.wishes.peers.clone();
        match what {
            // kvmtool only boots.
            GuestBench::Net => peers.retain(|peer| *peer != Peer::Kvmtool),
            GuestBench::Boot => peers.retain(|peer| matches!(peer, Peer::Qemu | Peer::Kvmtool)),
            GuestBench::Memory => peers.retain(|peer| *peer == Peer::Qemu),
            GuestBench::Verbs => peers.clear(),
            GuestBench::All => {}
        }
        Needs {
            peers,
            has_network: what != GuestBench::Boot,
            has_traffic: !matches!(what, GuestBench::Boot | GuestBench::Verbs),
            module: matches!(what, GuestBench::Verbs | GuestBench::All).then_some(verbs::MODULE),
            kernel: self.images.kernel.clone(),
            initrd: self.images.initrd.clone(),
            traffic: self.traffic.clone(),
        }
    }
}

/// What guests boot: what was named, and the default guest for the rest.
fn images(args: &GuestBenchArgs) -> Result<Images, GuestsError> {
    let alacrity = std::env::current_exe().map_err(io_error("find this program"))?;
    let (kernel, initrd) = match (&args.kernel, &args.initrd) {
        (Some(kernel), Some(initrd)) => (kernel.clone(), initrd.clone()),
        (kernel, initrd) => {
            let image = GuestImage::find()?;
            (
                kernel.clone().unwrap_or(image.kernel),
                initrd.clone().unwrap_or(image.initrd),
            )
        }
    };
    Ok(Images {
        alacrity,
        kernel,
        initrd,
    })
}

/// Measures `what`, prints medians and ratios to `out`, and writes raw values. The status tells whether
/// anything has no value.
///
/// # Errors
/// [`GuestsError`]; nothing was started if it is bad input.
pub fn run(
    what: GuestBench,
    args: &GuestBenchArgs,
    out: &mut dyn Write,
) -> Result<ExitStatus, GuestsError> {
    if let (GuestBench::All, Some(_)) = (what, &args.json) {
        return Err(GuestsError::OneFile);
    }
    let options = Options::of(args)?;
    let missing = require::missing(&options.needs(what), &ThisHost);
    if !missing.is_empty() {
        return Err(GuestsError::Missing { missing });
    }
    let interrupt = Interrupt::install()?;
    host::enter_namespace()?;
    let parts: &[_] = match what {
        GuestBench::Net => &[GuestBench::Net],
        GuestBench::Boot => &[GuestBench::Boot],
        GuestBench::Memory => &[GuestBench::Memory],
        GuestBench::Verbs => &[GuestBench::Verbs],
        GuestBench::All => &[
            GuestBench::Boot,
            GuestBench::Memory,
            GuestBench::Verbs,
            GuestBench::Net,
        ],
    };
    let mut num_failed = 0;
    for part in parts {
        num_failed += run_part(*part, args.json.as_deref(), &options, &interrupt, out)?;
    }
    if what == GuestBench::All {
        let _ = writeln!(out, "{REST}");
    }
    if args.report.is_some() {
        let report = ReportArgs {
            from: options.directory.clone(),
            out: None,
            compare: None,
            json: false,
        };
        super::results::command::run(&report, out)
            .map_err(|source| GuestsError::Report { source })?;
    }
    Ok(match num_failed {
        0 => ExitStatus::Success,
        _ => ExitStatus::OperationFailed,
    })
}

fn run_part(
    part: GuestBench,
    json: Option<&Path>,
    options: &Options,
    interrupt: &Interrupt,
    out: &mut dyn Write,
) -> Result<usize, GuestsError> {
    type Planner = fn(&Wishes) -> Vec<Step>;
    let (name, planner): (_, Planner) = match part {
        GuestBench::Boot => ("boot", plan::boot),
        GuestBench::Memory => ("memory", plan::memory),
        GuestBench::Verbs => ("verbs", plan::verbs),
        GuestBench::Net | GuestBench::All => ("net", plan::net),
    };
    let path = json.map_or_else(
        || options.directory.join(name).with_extension("json"),
        Path::to_owned,
    );
    let work = tempfile::tempdir().map_err(io_error("make a directory for guests"))?;
    let starter = Starter {
        images: options.images.clone(),
        work: work.path().to_owned(),
        interrupt: interrupt.clone(),
    };
    let recorder = Recorder::create(&path).map_err(io_error("write raw values"))?;
    let notes = Notes::open(path.parent().unwrap_or(Path::new(".")));
    let mut run = Run::new(
        name,
        starter,
        options.traffic.clone(),
        (options.seconds, options.cases.clone()),
        recorder,
        notes,
    );
    run.all(&planner(&options.wishes))?;
    let text = summary::text(&run.recorder.values);
    let _ = write!(out, "{text}\nraw values: {}\n\n", path.display());
    Ok(run.num_failed)
}
