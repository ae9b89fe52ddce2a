//! `alacrity bench net` and `memory`: guests that send and receive, and what it cost.

use std::thread;
use std::time::Duration;

use super::counters::{self, Snapshot};
use super::peer::{Peer, Subject};
use super::plan::{Group, Step, Sweep};
use super::process::Process;
use super::record::Place;
use super::run::Run;
use super::script::{self, Datagrams, Facts, Line, Own, Phase, SMALL};
use super::servers::Servers;
use super::start::{BOOT_SILENCE, Started, address};
use super::{GuestsError, io_error};
use crate::bench::ip::ip;

/// What a guest may be silent for beyond a measurement: it has stood still then.
const SILENCE: Duration = Duration::from_secs(25);
/// How long the other end's program may take after that of the guest.
const OTHER_END: Duration = Duration::from_secs(3);
/// Until a guest that counts is listening.
const LISTENS_AFTER: Duration = Duration::from_millis(1000);
/// Last byte of the address that a host gives itself when all guests shall begin.
const GO: u32 = 250;

/// A phase at work.
struct Current {
    idx: usize,
    own: Own,
    before: Snapshot,
    after: Option<(Snapshot, Own)>,
    facts: Facts,
    other_end: Option<Process>,
}

/// What a step goes through.
pub fn phases_of(run: &Run, group: Group) -> Vec<Phase> {
    let seconds = run.seconds;
    let host = address(0, 1);
    match group {
        Group::Host => script::phases(&host, seconds, |case| run.is_wanted(case)),
        Group::Memory => script::phases(&host, seconds, |case| case == "out"),
        Group::One => {
            let turn = |driver, peer, to: &str| {
                let mut phases =
                    script::phases(to, seconds, |case| case != "load" && run.is_wanted(case));
                for phase in &mut phases {
                    phase.turn = Some((driver, Subject::of(peer)));
                }
                phases
            };
            let venet = || turn("venet", Peer::Venet, &host);
            let virtio = || turn("virtio_net", Peer::Virtio, &address(1, 1));
            [venet(), virtio(), virtio(), venet()].concat()
        }
        Group::Pair => {
            let mut phases = script::phases(&host, seconds, |case| {
                matches!(case, "rr" | "out" | "udp-out") && run.is_wanted(case)
            });
            for phase in phases.iter_mut().filter(|phase| phase.case == "udp-out") {
                phase.case = "udp";
            }
            phases
        }
        Group::Sweep(Sweep::Sizes, _) => script::sizes(&host, seconds),
        Group::Sweep(Sweep::Queues, num) => script::phases(&host, seconds, |case| case == "out")
            .into_iter()
            .map(|phase| Phase {
                command: format!("{} -P {num}", phase.command),
                x: Some(num),
                case: Sweep::Queues.case(),
                ..phase
            })
            .collect(),
        Group::Sweep(sweep, num) => {
            let hosts = match sweep {
                Sweep::Venets => (0..num).collect(),
                _ => vec![0],
            };
            let send = |idx: u32| script::send(&address(idx, 1), SMALL, seconds);
            let senders: Vec<_> = hosts.into_iter().map(send).collect();
            vec![Phase {
                case: sweep.case(),
                x: Some(num),
                command: senders.join(" & "),
                datagrams: Datagrams::Out,
                turn: None,
            }]
        }
        Group::Boot | Group::Verbs { .. } => Vec::new(),
    }
}

/// Prefix of the cases of `group`.
fn prefix(group: Group) -> &'static str {
    match group {
        Group::One => "one-",
        Group::Pair => "g2g-",
        _ => "",
    }
}

/// Does a step once; why, if a guest stood still.
pub fn attempt(
    run: &mut Run,
    servers: &Servers,
    step: &Step,
) -> Result<Option<String>, GuestsError> {
    let phases = phases_of(run, step.group);
    let Some(started) = start(run, step, &phases)? else {
        return Ok(Some("the guest that is asked did not get ready".into()));
    };
    run.note(step, &started.line);
    follow(run, servers, step, &phases, started)
}

fn start(run: &Run, step: &Step, phases: &[Phase]) -> Result<Option<Started>, GuestsError> {
    let starter = &run.starter;
    let (peer, seconds) = (step.subject.peer, run.seconds);
    let peer = if peer == Peer::Alacrity {
        Peer::Venet
    } else {
        peer
    };
    let (host, guest) = (address(0, 1), address(0, 2));
    let client = |address: &str, to: &[String]| script::client(Some(address), to, phases, seconds);
    let to_host = std::slice::from_ref(&host);
    Ok(Some(match step.group {
        Group::Host
        | Group::Memory
        | Group::Sweep(Sweep::Sizes, _)
        | Group::Boot
        | Group::Verbs { .. } => starter.one(peer, 1, 1, &client(&guest, to_host))?,
        Group::One => {
            let to = [host.clone(), address(1, 1)];
            starter.both(&script::client(None, &to, phases, seconds))?
        }
        Group::Sweep(Sweep::Queues, num) => starter.one(peer, 1, num, &client(&guest, to_host))?,
        Group::Sweep(Sweep::Venets, num) => {
            let to: Vec<_> = (0..num).map(|idx| address(idx, 1)).collect();
            starter.one(peer, num, 1, &script::client(None, &to, phases, seconds))?
        }
        Group::Sweep(Sweep::Guests, num) => {
            let started = starter.many(peer, num, |idx| {
                let to = [address(idx, 1), address(idx, GO)];
                let phases = to_subnet(phases, idx, seconds);
                script::client(Some(&address(idx, 2)), &to, &phases, seconds)
            })?;
            for guest in &started.clients {
                if !starter.is_ready(guest)? {
                    return Ok(None);
                }
            }
            // The first one last: it is the one that is followed from its beginning on.
            for idx in (0..num).rev() {
                ip(&format!("addr replace {}/32 dev lo", address(idx, GO)))?;
            }
            started
        }
        Group::Pair => {
            let server = script::server(&host, seconds);
            return starter.pair(peer, 1, &server, |address| client(address, to_host));
        }
        Group::Sweep(Sweep::Ports, num) => {
            let go = address(0, GO);
            let clients: Vec<_> = (2..=num).map(|last| address(0, last)).collect();
            let server = script::server_that_begins(&host, &clients, &go, seconds);
            let to = [host.clone(), go];
            return starter.pair(peer, num - 1, &server, |address| client(address, &to));
        }
    }))
}

/// The phases for a guest whose host is in the subnet `idx`.
fn to_subnet(phases: &[Phase], idx: u32, seconds: u64) -> Vec<Phase> {
    let phase = |phase: &Phase| Phase {
        command: script::send(&address(idx, 1), SMALL, seconds),
        ..phase.clone()
    };
    phases.iter().map(phase).collect()
}

fn follow(
    run: &mut Run,
    servers: &Servers,
    step: &Step,
    phases: &[Phase],
    mut started: Started,
) -> Result<Option<String>, GuestsError> {
    let mut current: Option<Current> = None;
    // The first one may have to wait for all others to start.
    let num_guests = started.watched().vmms.len();
    let mut silence = BOOT_SILENCE * u32::try_from(num_guests).unwrap_or(1);
    loop {
        let Some(guest) = started.clients.first() else {
            return Ok(None);
        };
        let interrupt = run.starter.interrupt.clone();
        let Some(line) = guest.next_line(silence, &interrupt)? else {
            let said = guest.complaints();
            let server = started.server.as_ref().map(Process::complaints);
            return Ok(Some(format!("{said} {}", server.unwrap_or_default())));
        };
        match Line::parse(&line) {
            Line::Begin(idx, own) => {
                silence = SILENCE + Duration::from_secs(run.seconds);
                current = begin(run, servers, phases, &started, (idx, own))?;
            }
            Line::Said(said) => {
                if let Some(current) = &mut current {
                    current.facts.add(said);
                }
            }
            Line::End(idx, own) => {
                if let Some(current) = current.as_mut().filter(|current| current.idx == idx) {
                    let now = Snapshot::take(&run.watched(&started));
                    current.after = Some((now, own));
                }
            }
            Line::Done(_) => {
                if let Some(current) = current.take() {
                    done(run, step, phases, &started, current)?;
                }
            }
            Line::Finished => break,
            Line::Ready | Line::Other => {}
        }
    }
    started.power_off(&run.starter.interrupt)?;
    Ok(None)
}

fn begin(
    run: &Run,
    servers: &Servers,
    phases: &[Phase],
    started: &Started,
    (idx, own): (usize, Own),
) -> Result<Option<Current>, GuestsError> {
    let Some(phase) = phases.get(idx) else {
        return Ok(None);
    };
    // Of two guests, the other one counts.
    let mut other_end = match (phase.datagrams, &started.server) {
        (Datagrams::Out, None) => Some(servers.count(run.seconds + script::AFTERMATH)?),
        _ => None,
    };
    let before = Snapshot::take(&run.watched(started));
    if phase.datagrams == Datagrams::In {
        thread::sleep(LISTENS_AFTER);
        let subnet = match phase.turn {
            Some((_, subject)) if subject.peer == Peer::Virtio => 1,
            _ => 0,
        };
        other_end = Some(servers.send(&address(subnet, 2), SMALL, run.seconds)?);
    }
    Ok(Some(Current {
        idx,
        own,
        before,
        after: None,
        facts: Facts::default(),
        other_end,
    }))
}

/// Waits for the other end of a phase, and records all.
#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn done(
    run: &mut Run,
    step: &Step,
    phases: &[Phase],
    started: &Started,
    mut current: Current,
) -> Result<(), GuestsError> {
    let (Some(phase), Some((after, own))) = (phases.get(current.idx), current.after.take()) else {
        return Ok(());
    };
    let interrupt = run.starter.interrupt.clone();
    let other_end = match phase.datagrams {
        Datagrams::Out => current.other_end.as_ref().or(started.server.as_ref()),
        _ => current.other_end.as_ref(),
    };
    while let Some(other_end) = other_end {
        let Some(line) = other_end.next_line(OTHER_END, &interrupt)? else {
            break;
        };
        current.facts.add(&line);
        let is_told = match phase.datagrams {
            Datagrams::Out => current.facts.received.is_some(),
            _ => current.facts.sent.is_some(),
        };
        if is_told {
            break;
        }
    }
    let own_kib = started
        .clients
        .first()
        .and_then(|guest| counters::own_kib(guest.pid()));
    let mut place = Place {
        case: format!("{}{}", prefix(step.group), phase.case),
        peer: phase
            .turn
            .map_or(step.subject, |(_, subject)| subject)
            .to_string(),
        round: step.round,
        x: phase.x.map(f64::from),
    };
    if step.group == Group::Memory {
        place.case = "memory".into();
        return match own_kib {
            Some(kib) => run.record(&place, "own_kib", kib as f64),
            None => Ok(()),
        };
    }
    let own = own.since(&current.own);
    // Where several guests or interfaces send, the first one's packets are not all.
    let is_many = matches!(
        step.group,
        Group::Sweep(Sweep::Venets | Sweep::Ports | Sweep::Guests, _)
    );
    let packets = match (is_many, current.facts.received) {
        (true, Some((received, _))) => received,
        _ => own.packets,
    };
    for (name, value) in current.facts.values() {
        // What the other guests sent is not known.
        if !(is_many && name == "lost") {
            run.record(&place, name, value)?;
        }
    }
    if phase.datagrams == Datagrams::None {
        let drops = after.drops_since(&current.before);
        run.record(&place, "lost", drops as f64)?;
    }
    // What counts in a request is that there is one.
    if phase.datagrams == Datagrams::None && phase.case != "rr" {
        run.record(&place, "bytes", own.bytes as f64)?;
        if let Some(busy) = after.busy_since(&current.before) {
            run.record(
                &place,
                "cpu_ns_per_byte",
                busy as f64 * 1000.0 / own.bytes as f64,
            )?;
        }
        if let Some(executed) = after.executed_since(&current.before) {
            run.record(&place, "insns_per_byte", executed as f64 / own.bytes as f64)?;
        }
    }
    run.record(&place, "packets", packets as f64)?;
    if packets > 0 && !is_many {
        run.record(
            &place,
            "irqs_per_1000",
            own.irqs as f64 * 1000.0 / packets as f64,
        )?;
    }
    for (name, value) in after.since(&current.before, packets) {
        run.record(&place, &name, value)?;
    }
    match own_kib {
        Some(kib) if phase.case == "out" => run.record(&place, "own_kib", kib as f64),
        _ => Ok(()),
    }
}

/// Sets up what all steps share.
///
/// # Errors
/// The host refuses.
pub fn servers(run: &Run) -> Result<Servers, GuestsError> {
    // Left over from nobody: the namespace is new.
    std::fs::create_dir_all(&run.starter.work).map_err(io_error("make a directory for guests"))?;
    Servers::start(&run.traffic)
}
