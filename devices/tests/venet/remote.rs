//! The same driver in another process: through a socket.

use std::path::Path;

use alacrity_devices::venet::driver::{Buffers, Options, Venet};
use vbus::abi::venet::{KIND, rx_cap, tx_cap};
use vbus::client::{Connection, Remote};
use vbus::server::Server;

use crate::fixture::*;

fn join(path: &Path, bus: &str, options: Options) -> Venet<Remote> {
    let remote = Connection::connect(path).unwrap().join(bus).unwrap();
    let (id, kind) = remote.devices().unwrap().remove(0);
    assert_eq!(kind, KIND);
    let len = options.buffer_bytes().next_multiple_of(4096);
    let region = remote.add_memory(BASE, len).unwrap();
    let buffers = Buffers { region, base: BASE };
    let venet = Venet::open(remote, id, buffers, options).unwrap();
    venet.link_up().unwrap();
    venet
}

#[test]
fn frames_go_round_through_the_memory_of_another_process() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vbus.sock");
    let _server = Server::bind(&path, lab.host.clone()).unwrap();
    let options = Options {
        tx_caps: tx_cap::SG,
        rx_caps: rx_cap::MERGED,
        has_link_events: true,
        ..small()
    };

    for _ in 0..3 {
        let mut station = join(&path, "b", options);
        let one = frame(mac(2), mac(1), 1000);
        for _ in 0..100 {
            assert_eq!(station.send(&[&one[..]; 8]).unwrap(), 8);
            let mut num_received = 0;
            wait_for("all come back", || {
                num_received += station
                    .receive(8, |bytes, _| assert_eq!(bytes, one))
                    .unwrap();
                num_received == 8
            });
            wait_for("room", || station.room().unwrap() == 16);
        }
        station.close().unwrap();
    }
    assert_eq!(lab.count("rx_packets"), 2400);
}
