//! The host's side of conversations with a guest.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::process::{Child, Command, Stdio};
use std::thread;

use serde_json::Value;

use super::{DEADLINE, until};

/// An iperf3 server on all addresses of the host, until it is dropped.
#[derive(Debug)]
pub struct IperfServer {
    child: Child,
    pub port: u16,
}

impl IperfServer {
    /// `None` if there is no iperf3.
    pub fn start() -> Option<Self> {
        let port = free_port();
        let child = Command::new("iperf3")
            .args(["-s", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let server = IperfServer { child, port };
        // Not by a connection, which would be taken for a client.
        let is_listening = || {
            let sockets = ["/proc/net/tcp", "/proc/net/tcp6"];
            let wanted = format!(":{port:04X} ");
            sockets.iter().any(|path| {
                let text = std::fs::read_to_string(path).unwrap_or_default();
                text.lines().any(|line| {
                    line.split_once(": ")
                        .is_some_and(|(_, rest)| rest.contains(&wanted) && rest.contains(" 0A "))
                })
            })
        };
        assert!(until(DEADLINE, is_listening), "iperf3 does not listen");
        Some(server)
    }
}

impl Drop for IperfServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// For the guest's shell: to `target`, then back, each with `options` (how long, above all); prints
/// two reports.
pub fn both_ways(target: &str, port: u16, options: &str) -> String {
    let client = format!("iperf3 -J -i 0 -c {target} -p {port} {options}");
    format!("{client}; {client} -R")
}

/// The reports (iperf3 `-J`) in `text`, which may have other things before the first.
#[track_caller]
pub fn reports(text: &str) -> Vec<Value> {
    let start = text.find('{').unwrap_or(text.len());
    serde_json::Deserializer::from_str(&text[start..])
        .into_iter::<Value>()
        .map(|report| {
            let report = report.unwrap_or_else(|error| panic!("{error} in: {text}"));
            assert!(report["error"].is_null(), "{report:#}");
            report
        })
        .collect()
}

/// Bytes that each of the reports in `text` says were received.
#[track_caller]
pub fn received_bytes(text: &str) -> Vec<u64> {
    reports(text)
        .iter()
        .map(|report| report["end"]["sum_received"]["bytes"].as_u64().unwrap())
        .collect()
}

/// Checks that `text` has as many reports, each of a flow that moved something.
#[track_caller]
pub fn assert_received(text: &str, num_reports: usize) {
    let received = received_bytes(text);
    assert_eq!(received.len(), num_reports, "{text}");
    let has_moved = |bytes: &u64| *bytes > 100_000;
    assert!(received.iter().all(has_moved), "{received:?}");
}

/// For the guest's shell: sends 4 MiB to [`send_back_once`] at `port` of `target`, and compares.
pub fn compare(target: &str, port: u16) -> String {
    format!(
        "dd if=/dev/urandom of=/tmp/out{port} bs=1M count=4 2>/dev/null; \
         nc {target} {port} </tmp/out{port} >/tmp/in{port}; cmp /tmp/out{port} /tmp/in{port} && echo equal"
    )
}

/// Takes one connection, reads all of it and sends all of it back; answers the port.
pub fn send_back_once() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    });
    port
}

/// A port that nothing uses now.
pub fn free_port() -> u16 {
    let socket = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.local_addr().unwrap().port()
}
