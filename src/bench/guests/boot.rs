//! `alacrity bench boot`: from the start of a VMM to the first line of its guest's init.

use std::time::{Duration, Instant};

use super::GuestsError;
use super::command_line;
use super::plan::Step;
use super::process::Process;
use super::record::Place;
use super::run::Run;
use super::start::BOOT_SILENCE;

/// What init says.
const MARKER: &str = "guest init";
/// How long a guest may take to power off after it.
const POWER_OFF: Duration = Duration::from_secs(20);

/// Does a step once; why, if the guest did not come up.
pub fn attempt(run: &mut Run, step: &Step) -> Result<Option<String>, GuestsError> {
    let line = command_line::boot(step.subject.peer, &run.starter.images);
    run.note(step, &line);
    let interrupt = run.starter.interrupt.clone();
    let started = Instant::now();
    let mut guest = Process::start(&line)?;
    while let Some(line) = guest.next_line(BOOT_SILENCE, &interrupt)? {
        if !line.contains(MARKER) {
            continue;
        }
        let place = Place {
            case: "boot".into(),
            peer: step.subject.to_string(),
            round: step.round,
            x: None,
        };
        let time = started.elapsed();
        // The next one shall have the host for itself.
        guest.wait(POWER_OFF, &interrupt)?;
        if step.round > 0 {
            run.record(&place, "time_us", time.as_secs_f64() * 1e6)?;
        }
        return Ok(None);
    }
    Ok(Some(guest.complaints()))
}
