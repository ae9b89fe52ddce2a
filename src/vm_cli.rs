//! `alacrity ps`, `stat`, `reclaim`, `target` and `memmap`: running VMs from the shell, over their control sockets.

pub mod listing;

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use rustix::termios::isatty;
use serde::Serialize;

use crate::cli::{MemmapArgs, PsArgs, ReclaimArgs, StatArgs, TargetArgs};
use crate::control_socket::client::{self, AskError, Found};
use crate::control_socket::{Place, PlaceError, Refusal, VmStat};
use crate::exit::ExitStatus;
use crate::memmap::{self, DrawError, MAX_CELLS, TERMINAL_CELLS};
use crate::reclaim::policy::Reclaimed;
use crate::size::{self, SizeError};

/// Clears a terminal and goes to its upper left corner.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Why nothing is shown or done.
#[derive(Debug, thiserror::Error)]
pub enum VmCliError {
    /// Nowhere to look.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// No VM at all.
    #[error("no VM of this user runs; start one with `alacrity run`")]
    None,
    /// None of that name.
    #[error("no VM of this user is called {name}; `alacrity ps` lists those that run")]
    NoName {
        /// The name.
        name: String,
    },
    /// Too many.
    #[error("{vms} run; say which one is meant by its process number")]
    Several {
        /// All that could be meant.
        vms: String,
    },
    /// One that was named does not do what it shall.
    #[error("VM {vm}")]
    Ask {
        /// As the user called it.
        vm: String,
        /// Why.
        source: AskError,
    },
    /// The size is none.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The picture cannot be written.
    #[error(transparent)]
    Draw(#[from] DrawError),
    /// Nobody takes our output.
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
}

impl VmCliError {
    /// The exit status that tells of it.
    pub fn status(&self) -> ExitStatus {
        match self {
            VmCliError::Ask { source, .. } => match source {
                AskError::NoVm | AskError::Refused(Refusal::ReclaimDisabled) => {
                    ExitStatus::BadInput
                }
                AskError::Refused(Refusal::Busy) => ExitStatus::OperationFailed,
                _ => ExitStatus::HostError,
            },
            VmCliError::Output(_) | VmCliError::Draw(_) => ExitStatus::HostError,
            _ => ExitStatus::BadInput,
        }
    }
}

/// Lists the VMs of this user.
///
/// # Errors
/// [`VmCliError`].
pub fn ps(args: &PsArgs, out: &mut dyn Write) -> Result<ExitStatus, VmCliError> {
    let found = client::list(&Place::default_one()?)?;
    let text = match args.json {
        true => listing::json_line(&found.iter().map(listing::entry).collect::<Vec<_>>()),
        false => listing::table(&found),
    };
    print(out, &text)?;
    Ok(ExitStatus::Success)
}

/// Shows what a VM says about itself, once or again and again.
///
/// # Errors
/// [`VmCliError`].
pub fn stat(args: &StatArgs, out: &mut dyn Write) -> Result<ExitStatus, VmCliError> {
    let vm = Vm::find(args.vm.as_deref())?;
    let is_screen = args.watch.is_some() && !args.json && isatty(io::stdout());
    let mut is_first = true;
    loop {
        let stat = match client::stat(&vm.place, vm.pid) {
            Err(AskError::NoVm | AskError::HungUp) if !is_first => return Ok(ExitStatus::Success),
            stat => stat.map_err(|error| vm.failed(error))?,
        };
        let text = match (args.json, is_screen, is_first) {
            (true, _, _) => listing::json_line(&stat),
            (false, true, _) => CLEAR.to_owned() + &listing::page(&stat),
            (false, false, true) => listing::page(&stat),
            (false, false, false) => "\n".to_owned() + &listing::page(&stat),
        };
        let is_wanted = print(out, &text)?;
        let Some(seconds) = args.watch.filter(|_| is_wanted) else {
            return Ok(ExitStatus::Success);
        };
        is_first = false;
        thread::sleep(Duration::from_secs(seconds.into()));
    }
}

/// What `reclaim --json` prints.
#[derive(Serialize)]
struct ReclaimReport {
    pid: u32,
    wanted_bytes: u64,
    #[serde(flatten)]
    reclaimed: Reclaimed,
}

/// Has a VM give memory back.
///
/// # Errors
/// [`VmCliError`]. Less than wanted is none, but [`ExitStatus::OperationFailed`].
pub fn reclaim(args: &ReclaimArgs, out: &mut dyn Write) -> Result<ExitStatus, VmCliError> {
    let wanted_bytes = size::parse(&args.size)?;
    let vm = Vm::find(args.vm.as_deref())?;
    // A reclaim may take any time, so one that is silent would not be noticed.
    client::stat(&vm.place, vm.pid).map_err(|error| vm.failed(error))?;
    let reclaimed =
        client::reclaim(&vm.place, vm.pid, wanted_bytes).map_err(|error| vm.failed(error))?;
    let text = match args.json {
        true => listing::json_line(&ReclaimReport {
            pid: vm.pid,
            wanted_bytes,
            reclaimed,
        }),
        false => listing::reclaimed(wanted_bytes, &reclaimed),
    };
    print(out, &text)?;
    Ok(match reclaimed.total_bytes() < wanted_bytes {
        true => ExitStatus::OperationFailed,
        false => ExitStatus::Success,
    })
}

/// Sets how much memory of the host a VM shall take.
///
/// # Errors
/// [`VmCliError`].
pub fn target(args: &TargetArgs) -> Result<ExitStatus, VmCliError> {
    let bytes = match args.size.as_str() {
        "none" => None,
        size => Some(size::parse(size)?),
    };
    let vm = Vm::find(args.vm.as_deref())?;
    client::set_target(&vm.place, vm.pid, bytes).map_err(|error| vm.failed(error))?;
    Ok(ExitStatus::Success)
}

/// Draws the memory of a VM, once or again and again.
///
/// # Errors
/// [`VmCliError`].
pub fn memmap(args: &MemmapArgs, out: &mut dyn Write) -> Result<ExitStatus, VmCliError> {
    let vm = Vm::find(args.vm.as_deref())?;
    let ask = |most_cells| client::memory_map(&vm.place, vm.pid, most_cells);
    if let Some(path) = &args.output {
        let map = ask(MAX_CELLS).map_err(|error| vm.failed(error))?;
        memmap::draw(path, &format!("RAM of VM {}", vm.called), &map)?;
        return Ok(ExitStatus::Success);
    }
    let has_colors = isatty(io::stdout()) && std::env::var_os("NO_COLOR").is_none();
    let most_cells = if args.json { MAX_CELLS } else { TERMINAL_CELLS };
    let mut is_first = true;
    loop {
        let map = match ask(most_cells) {
            Err(AskError::NoVm | AskError::HungUp) if !is_first => return Ok(ExitStatus::Success),
            map => map.map_err(|error| vm.failed(error))?,
        };
        let mut text = Vec::new();
        if args.json {
            text = listing::json_line(&map).into_bytes();
        } else {
            if args.watch.is_some() && has_colors {
                text.extend_from_slice(CLEAR.as_bytes());
            }
            memmap::print(&mut text, &map, has_colors)?;
        }
        let is_wanted = print(out, &String::from_utf8_lossy(&text))?;
        let Some(seconds) = args.watch.filter(|_| is_wanted) else {
            return Ok(ExitStatus::Success);
        };
        is_first = false;
        thread::sleep(Duration::from_secs(seconds.into()));
    }
}

/// A VM that was found.
struct Vm {
    place: Place,
    pid: u32,
    /// As the user called it.
    called: String,
}

impl Vm {
    /// The VM that the user calls `called`, or the only one.
    fn find(called: Option<&str>) -> Result<Self, VmCliError> {
        let place = Place::default_one()?;
        let pid = match called.map(|called| (called, called.parse())) {
            Some((_, Ok(pid))) => pid,
            Some((name, Err(_))) => {
                let is_called = |stat: &VmStat| stat.name.as_deref() == Some(name);
                let mut found = client::list(&place)?;
                found.retain(|vm| vm.stat.as_ref().is_ok_and(|stat| is_called(stat)));
                only(&found, || VmCliError::NoName { name: name.into() })?
            }
            None => only(&client::list(&place)?, || VmCliError::None)?,
        };
        let called = called.map_or_else(|| pid.to_string(), str::to_owned);
        Ok(Vm { place, pid, called })
    }

    fn failed(&self, source: AskError) -> VmCliError {
        VmCliError::Ask {
            vm: self.called.clone(),
            source,
        }
    }
}

/// The process of the only VM, or `none`.
fn only(found: &[Found], none: impl FnOnce() -> VmCliError) -> Result<u32, VmCliError> {
    match found {
        [] => Err(none()),
        [vm] => Ok(vm.pid),
        several => Err(VmCliError::Several {
            vms: listing::names(several),
        }),
    }
}

/// Prints `text`; false if its reader has seen enough.
fn print(out: &mut dyn Write, text: &str) -> io::Result<bool> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        outcome => outcome.map(|()| true),
    }
}
