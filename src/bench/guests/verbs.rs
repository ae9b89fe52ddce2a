//! `alacrity bench verbs`: operations of the virtual bus in a guest, beside what they are made of and what
//! others do instead.
//!
//! A guest has a module that repeats an operation (`guest-kernel/times/`) and tells how long that took. Times
//! come first: a batch of each operation, one of each in the opposite order, and so on, so that a machine
//! that is slow for a while is so for all. Then the host counts exits and instructions around turns of many
//! batches: a pass of all operations, and one in the opposite order. What doing nothing costs, as often, is
//! taken away from both.

mod turns;

use std::time::{Duration, Instant};

use super::GuestsError;
use super::counters::Snapshot;
use super::plan::Step;
use super::record::Place;
use super::run::Run;
use super::script::Line;
use super::start::{BOOT_SILENCE, Started};
use turns::{Cost, Turn};

/// The module that does it.
pub const MODULE: &str = "vbus_times.ko";
/// Ours in raw values.
pub const OURS: &str = "vbus";
/// The case of a guest that stood still.
pub const BOOT: &str = "verbs-boot";
/// Silence after which a guest at work has stood still: a turn takes some two seconds in the lab.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a turn may take, whatever the guest says meanwhile.
const TURN_PATIENCE: Duration = Duration::from_secs(40);

/// How long a step takes beside the start of its guest, in seconds.
pub fn duration(has_control: bool) -> f64 {
    const TURN: f64 = 1.5;
    const TIMES: f64 = 5.0;
    #[expect(clippy::cast_precision_loss, reason = "two dozen")]
    let num_turns = turns::of_step(has_control).len() as f64;
    TIMES + num_turns * TURN
}

/// A turn at work.
struct Current {
    idx: usize,
    before: Snapshot,
    after: Option<Snapshot>,
    is_refused: bool,
}

/// Does a step once; why, if the guest stood still.
pub fn attempt(
    run: &mut Run,
    step: &Step,
    has_control: bool,
) -> Result<Option<String>, GuestsError> {
    let turns = turns::of_step(has_control);
    let started = run.starter.verbs(&turns::script(&turns))?;
    run.note(step, &started.line);
    follow(run, step, &turns, started)
}

fn follow(
    run: &mut Run,
    step: &Step,
    turns: &[Turn],
    mut started: Started,
) -> Result<Option<String>, GuestsError> {
    let interrupt = run.starter.interrupt.clone();
    let watched = run.watched(&started);
    let num_turns = u32::try_from(turns.len()).unwrap_or(u32::MAX);
    let end = Instant::now() + BOOT_SILENCE + TURN_PATIENCE * num_turns;
    let mut silence = BOOT_SILENCE;
    let mut current: Option<Current> = None;
    // Times, and then counts of a pass, each with the number of its turn.
    let mut costs: Vec<(usize, Cost)> = Vec::new();
    loop {
        let Some(guest) = started.clients.first() else {
            return Ok(None);
        };
        let left = end.saturating_duration_since(Instant::now());
        let Some(line) = guest.next_line(silence.min(left), &interrupt)? else {
            return Ok(Some(guest.complaints()));
        };
        match Line::parse(&line) {
            Line::Begin(idx, _) => {
                silence = SILENCE;
                current = Some(Current {
                    idx,
                    before: Snapshot::take(&watched),
                    after: None,
                    is_refused: false,
                });
            }
            Line::Said(said) => match Cost::of_times(turns, said) {
                Some(cost) => costs.push(cost),
                // Its turn tells why.
                None if said.starts_with("ns ") => {}
                None => refused(run, turns, current.as_mut(), said),
            },
            Line::Ready => {
                record(run, step, turns, &costs)?;
                costs.clear();
            }
            Line::End(..) => {
                if let Some(current) = &mut current {
                    current.after = Some(Snapshot::take(&watched));
                }
            }
            Line::Done(idx) => {
                let done = current.take().filter(|current| current.idx == idx);
                if let Some((done, turn)) = done.zip(turns.get(idx)) {
                    costs.extend(cost(&done, turn).map(|cost| (idx, cost)));
                }
                if turns.get(idx + 1).is_none_or(|next| next.begins_pass) {
                    record(run, step, turns, &costs)?;
                    costs.clear();
                }
            }
            Line::Finished => break,
            Line::Other => {}
        }
    }
    started.power_off(&interrupt)?;
    Ok(None)
}

/// Tells what cannot be done in the guest, which is no reason to do it again.
fn refused(run: &mut Run, turns: &[Turn], current: Option<&mut Current>, why: &str) {
    let place = current.and_then(|current| Some((turns.get(current.idx)?, current)));
    match place {
        Some((turn, current)) => {
            current.is_refused = true;
            run.num_failed += 1;
            run.say(&format!("no value of {}: {why}", turn.operation.name));
        }
        None => run.say(&format!(
            "{why}; is {MODULE} of the guest image made for its kernel? scripts/guest-image makes both"
        )),
    }
}

/// What the operations of a turn cost; `None` if there were none.
#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn cost(done: &Current, turn: &Turn) -> Option<Cost> {
    let after = done.after.as_ref().filter(|_| !done.is_refused)?;
    let count = |count: Option<u64>| count.map(|count| count as f64);
    Some(Cost::of_turn(
        turn,
        [
            count(after.exits_since(&done.before)),
            count(after.user_exits_since(&done.before)),
            count(after.executed_since(&done.before)),
        ],
    ))
}

/// Records the times, or what was counted in a pass, without what doing nothing costs.
fn record(
    run: &mut Run,
    step: &Step,
    turns: &[Turn],
    costs: &[(usize, Cost)],
) -> Result<(), GuestsError> {
    let of_pass = || {
        let found = costs.iter();
        found.filter_map(|(idx, cost)| Some((turns.get(*idx)?, cost)))
    };
    for (turn, cost) in of_pass() {
        let (Some(case), Some(peer)) = (turn.operation.case, turn.peer()) else {
            continue;
        };
        let nothing = of_pass().find(|(nothing, _)| {
            nothing.operation.case.is_none() && nothing.operation.num == turn.operation.num
        });
        let Some((_, nothing)) = nothing else {
            continue;
        };
        let place = Place {
            case: case.to_owned(),
            peer,
            round: step.round,
            x: None,
        };
        for (name, value) in cost.without(nothing) {
            run.record(&place, name, value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current(is_refused: bool, after: Option<Snapshot>) -> Current {
        Current {
            idx: 0,
            before: Snapshot::default(),
            after,
            is_refused,
        }
    }

    #[test]
    fn turn_that_was_not_done_to_its_end_costs_nothing() {
        let turn = &turns::of_step(false)[0];
        let snapshot = Some(Snapshot::default());

        assert!(cost(&current(false, snapshot.clone()), turn).is_some());
        assert!(cost(&current(true, snapshot), turn).is_none());
        assert!(cost(&current(false, None), turn).is_none());
    }

    #[test]
    fn time_of_a_step_grows_with_its_turns() {
        assert!(duration(true) > duration(false));
    }
}
