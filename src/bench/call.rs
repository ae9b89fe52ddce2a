//! `alacrity bench call`: the synchronous verb, in this process and over the socket.

use std::thread;
use std::time::Instant;

use vbus::abi::venet::{VERSION, func};
use vbus::client::Connection;
use vbus::memory::GuestRam;
use vbus::server::Server;
use vbus::verbs::{InterfaceId, Verbs};
use vm_memory::GuestAddress;

use super::bus::{Bench, refused};
use super::echo::Echo;
use super::harness::{pin, two_cpus};
use super::report::{Comparison, Report};
use super::{BenchError, Case, Effort};

/// Bytes of the question and of the answer.
const DATA_BYTES: usize = 6;

/// `call` in this process, over the daemon's socket, and beside a bare socket.
#[derive(Debug)]
pub struct CallCase;

impl Case for CallCase {
    fn run(&self, effort: Effort) -> Result<Report, BenchError> {
        // Where an idle CPU has to be woken for each call, nothing else can be seen.
        let on_one_cpu = || {
            let [cpu, _] = two_cpus()?;
            pin(cpu)?;
            run(effort)
        };
        thread::scope(|scope| scope.spawn(on_one_cpu).join()).map_err(|_| BenchError::Panic)?
    }
}

fn run(effort: Effort) -> Result<Report, BenchError> {
    let (num_rounds, num_calls) = match effort {
        Effort::Quick => (3, 1_000),
        Effort::Full => (15, 20_000),
    };
    let bench = Bench::loopback()?;
    let directory = tempfile::tempdir().map_err(|source| BenchError::Io {
        what: "make a directory for the socket",
        source,
    })?;
    let path = directory.path().join("vbus.sock");
    let _server =
        Server::bind(&path, bench.host.clone()).map_err(|source| BenchError::Server { source })?;
    let remote = Connection::connect(&path)
        .and_then(|connection| connection.join("bus0"))
        .map_err(|source| BenchError::Client { source })?;
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 4096)])
        .map_err(|source| BenchError::Ram { source })?;
    let echo = Echo::start(DATA_BYTES)?;

    let over_socket = ("socket", || ask_for_mac(&remote, num_calls));
    let bare_socket = ("socketpair", || echo.call_ns(num_calls));
    // The device takes one connection at a time.
    let socket = Comparison::measure("socket".into(), num_rounds, over_socket, bare_socket)?;
    let control = Comparison::measure(
        "socket = socket".into(),
        num_rounds,
        over_socket,
        over_socket,
    )?;
    let local = bench.client(0, ram)?;
    let in_process = ("in process", || ask_for_mac(&local, num_calls));
    let in_process = Comparison::measure("in process".into(), num_rounds, in_process, over_socket)?;
    Ok(Report {
        case: "call",
        what: "one synchronous call of a device, 6 bytes each way, all threads on one CPU: over the \
                   daemon's socket beside an echo over a bare socket pair, and in process beside the \
                   socket",
        comparisons: vec![socket, in_process, control],
        signals: vec![],
    })
}

/// Nanoseconds per call.
fn ask_for_mac(bus: &impl Verbs, num_calls: usize) -> Result<f64, BenchError> {
    let handle = bus
        .open(InterfaceId(0), VERSION)
        .map_err(refused("open a device"))?;
    let mut mac = [0; DATA_BYTES];
    let start = Instant::now();
    for _ in 0..num_calls {
        bus.call(handle, func::MAC_QUERY, &mut mac)
            .map_err(refused("call a device"))?;
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let ns = start.elapsed().as_secs_f64() * 1e9 / num_calls as f64;
    bus.close(handle).map_err(refused("close a device"))?;
    Ok(ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_answered_over_every_way() {
        let report = CallCase.run(Effort::Quick).unwrap();

        assert_eq!(report.comparisons.len(), 3);
        for comparison in &report.comparisons {
            assert!(comparison.ratio().median > 0.0, "{}", comparison.name);
        }
    }
}
