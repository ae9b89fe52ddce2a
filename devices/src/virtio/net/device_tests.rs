//! The whole device with its threads, sockets as backend.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::super::fake_driver::{FakeQueue, ram};
use super::*;
use crate::GuestRam;
use crate::tap::Tap;
use crate::test_utils::fake_interrupt;
use crate::virtio::VirtioInterrupt;
use vmm_sys_util::eventfd::EventFd;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const DEADLINE: Duration = Duration::from_secs(10);

/// An active device and its driver's side.
struct Setup {
    ram: GuestRam,
    device: NetDevice,
    hosts: Vec<UnixDatagram>,
    queues: Vec<(FakeQueue, EventFd)>,
    interrupt: Arc<VirtioInterrupt>,
}

fn inactive(num_pairs: usize) -> Setup {
    let (hosts, guests): (Vec<_>, Vec<_>) = (0..num_pairs)
        .map(|_| UnixDatagram::pair().unwrap())
        .unzip();
    for host in &hosts {
        host.set_read_timeout(Some(DEADLINE)).unwrap();
    }
    Setup {
        hosts,
        ..with_backend(Backend::Datagram(guests))
    }
}

fn with_backend(backend: Backend) -> Setup {
    let interrupt = fake_interrupt(2 * usize::from(backend.num_queue_pairs()) + 1);
    let device = NetDevice::new("net0".into(), backend, MAC, Some(9000));
    Setup {
        ram: ram(),
        device: device.unwrap(),
        hosts: Vec::new(),
        queues: Vec::new(),
        interrupt,
    }
}

fn active(num_pairs: usize, features: u64) -> Setup {
    let mut setup = inactive(num_pairs);
    setup.activate(features).unwrap();
    setup
}

impl Setup {
    fn activate(&mut self, features: u64) -> Result<(), ActivateError> {
        let num_queues = self.device.queue_max_sizes().len() as u16;
        self.ram.write_slice(&[0; 0x4000], GuestAddress(0)).unwrap();
        self.interrupt = fake_interrupt(num_queues.into());
        let drivers: Vec<_> = (0..num_queues)
            .map(|index| FakeQueue::new(&self.ram, index))
            .collect();
        let queues: Vec<_> = drivers.iter().map(FakeQueue::activate).collect();
        let doorbells = queues
            .iter()
            .map(|active| active.doorbell.try_clone().unwrap());
        self.queues = drivers.into_iter().zip(doorbells).collect();
        self.device.activate(Activation {
            ram: self.ram.clone(),
            features,
            queues,
            interrupt: Arc::clone(&self.interrupt),
        })
    }

    fn offer(&mut self, queue_idx: usize, buffers: &[(u64, u32, bool)]) {
        let (driver, doorbell) = &mut self.queues[queue_idx];
        driver.offer(buffers);
        doorbell.write(1).unwrap();
    }

    fn wait_used(&self, queue_idx: usize, used_idx: u16) {
        wait(|| self.queues[queue_idx].0.used_idx() == used_idx);
    }

    fn send_frame(&mut self, pair_idx: usize) {
        self.offer(2 * pair_idx + 1, &[(0x8000, 80, false)]);
    }

    fn host_receives(&self, pair_idx: usize) -> usize {
        self.hosts[pair_idx].recv(&mut [0; 2048]).unwrap()
    }

    fn needs_reset(&self) -> bool {
        self.interrupt.device_status() != 0
    }
}

fn wait(condition: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "nothing happened before the deadline");
        std::thread::yield_now();
    }
}

fn all_features(setup: &Setup) -> u64 {
    setup.device.device_features()
}

#[test]
fn offers_the_features_of_its_backend() {
    let setup = inactive(2);
    let has = |bit: u32| all_features(&setup) >> bit & 1 == 1;

    assert!(has(VIRTIO_NET_F_MRG_RXBUF) && has(VIRTIO_NET_F_GUEST_TSO4) && has(VIRTIO_NET_F_MQ));
    assert!(has(VIRTIO_NET_F_MTU));
    assert!(!has(VIRTIO_NET_F_HOST_USO));
    assert_eq!(setup.device.queue_max_sizes(), [512, 256, 512, 256, 64]);
}

#[test]
fn configuration_tells_address_link_pairs_and_mtu() {
    let setup = inactive(2);

    let config = setup.device.config();

    assert_eq!(config[..6], MAC);
    assert_eq!(config[6..], [1, 0, 2, 0, 0x28, 0x23]);
    assert_eq!(config[10..12], 9000u16.to_le_bytes());
}

#[test]
fn frames_flow_both_ways() {
    let mut s = active(1, 0);
    s.send_frame(0);
    assert_eq!(s.host_receives(0), 80);
    s.wait_used(1, 1);
    s.offer(0, &[(0x9000, 2048, true)]);

    s.hosts[0].send(&[9; 100]).unwrap();

    s.wait_used(0, 1);
    assert_eq!(s.queues[0].0.used(0), (0, 100));
    let metrics = s.device.metrics();
    wait(|| metrics.rx_packets.get() == 1);
    assert_eq!(metrics.tx_bytes.get(), 68);
    assert_eq!(metrics.pairs[0].tx.doorbells.get(), 1);
    assert_eq!(metrics.pairs[0].rx.interrupts.get(), 1);
}

#[test]
fn frames_that_came_before_the_buffers_are_delivered() {
    let mut s = active(1, 0);
    s.hosts[0].send(&[9; 100]).unwrap();
    s.hosts[0].send(&[9; 101]).unwrap();

    s.offer(0, &[(0x9000, 2048, true)]);
    s.wait_used(0, 1);
    s.offer(0, &[(0xa000, 2048, true)]);

    s.wait_used(0, 2);
    assert_eq!(s.queues[0].0.used(1), (1, 101));
}

#[test]
fn queues_filled_before_activation_are_served() {
    let mut s = inactive(1);
    let mut driver = FakeQueue::new(&s.ram, 1);
    driver.offer(&[(0x8000, 80, false)]);
    let rx = FakeQueue::new(&s.ram, 0);
    let activation = Activation {
        ram: s.ram.clone(),
        features: 0,
        queues: vec![rx.activate(), driver.activate()],
        interrupt: Arc::clone(&s.interrupt),
    };

    s.device.activate(activation).unwrap();

    assert_eq!(s.host_receives(0), 80);
}

#[test]
fn device_serves_again_after_a_reset() {
    let mut s = active(1, 0);
    s.send_frame(0);
    s.wait_used(1, 1);
    s.host_receives(0);
    s.device.reset();
    s.send_frame(0);
    assert_eq!(
        s.queues[1].0.used_idx(),
        1,
        "a device that is reset is still"
    );

    s.activate(0).unwrap();
    s.send_frame(0);

    assert_eq!(s.host_receives(0), 80);
}

#[test]
fn broken_queue_stops_all_pairs_until_reset() {
    let mut s = inactive(2);
    let features = all_features(&s);
    s.activate(features).unwrap();
    s.offer(3, &[(0x8000, 80, true)]);
    // Pair 1 is off until the driver switches it on.
    assert!(!s.needs_reset());
    switch_pairs(&mut s, 2);

    wait(|| s.needs_reset());
    s.send_frame(0);

    assert_eq!(s.interrupt.faults.get(), 1);
    s.activate(0).unwrap();
    s.send_frame(0);
    assert_eq!(s.host_receives(0), 80);
}

#[test]
fn second_pair_works_once_it_is_switched_on() {
    let mut s = inactive(2);
    let features = all_features(&s);
    s.activate(features).unwrap();
    s.send_frame(1);
    switch_pairs(&mut s, 2);
    s.wait_used(4, 1);

    assert_eq!(s.host_receives(1), 80);
}

#[test]
fn control_queue_follows_the_first_pair_without_multiqueue() {
    let mut s = inactive(2);
    let features = all_features(&s) & !(1 << VIRTIO_NET_F_MQ);
    s.activate(features).unwrap();
    s.ram
        .write_slice(&[1, 1, 2, 0, 0, 0, 0, 5], GuestAddress(0xb000))
        .unwrap();

    s.offer(2, &[(0xb000, 8, false), (0xc000, 1, true)]);

    s.wait_used(2, 1);
    assert_eq!(s.device.config()[..6], [2, 0, 0, 0, 0, 5]);
    s.device.reset();
    assert_eq!(
        s.device.config()[..6],
        MAC,
        "a reset brings the configured address back"
    );
}

#[test]
fn activation_without_the_transmit_queue_is_refused() {
    let mut s = inactive(1);
    let activation = Activation {
        ram: s.ram.clone(),
        features: 0,
        queues: vec![FakeQueue::new(&s.ram, 0).activate()],
        interrupt: Arc::clone(&s.interrupt),
    };

    let error = s.device.activate(activation).unwrap_err();

    assert!(
        matches!(error, ActivateError::QueueMissing { index: 1 }),
        "{error}"
    );
}

#[test]
fn offloads_need_checksums_and_both_kinds_of_udp() {
    let bit = |feature: u32| 1_u64 << feature;
    let tso4 = bit(VIRTIO_NET_F_GUEST_TSO4);
    let csum = bit(VIRTIO_NET_F_GUEST_CSUM);

    assert_eq!(tun_offloads(tso4), 0);
    assert_eq!(
        tun_offloads(csum | tso4 | bit(VIRTIO_NET_F_GUEST_USO4)),
        libc::TUN_F_CSUM | libc::TUN_F_TSO4
    );
}

/// Sends the command that switches `num_pairs` pairs on.
fn switch_pairs(s: &mut Setup, num_pairs: u8) {
    s.ram
        .write_slice(&[4, 0, num_pairs, 0], GuestAddress(0xb000))
        .unwrap();
    s.offer(4, &[(0xb000, 4, false), (0xc000, 1, true)]);
}

/// Bytes of an ARP request for 198.51.`subnet`.1 with its virtio header.
fn arp_request(subnet: u8) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    bytes.extend([0xff; 6]);
    bytes.extend(MAC);
    bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend(MAC);
    bytes.extend([198, 51, subnet, 2, 0, 0, 0, 0, 0, 0, 198, 51, subnet, 1]);
    bytes.extend([0; 18]);
    bytes
}

impl Setup {
    /// Whether one of the frames that queue `queue_idx` gave back, each in 8 KiB from 64 KiB on, is
    /// an ARP reply.
    fn has_arp_reply(&self, queue_idx: usize) -> bool {
        let driver = &self.queues[queue_idx].0;
        (0..driver.used_idx()).any(|used_idx| {
            let (head, _) = driver.used(used_idx);
            let gpa = GuestAddress(0x1_0000 + 0x2000 * u64::from(head));
            let mut frame = [0; 34];
            self.ram.read_slice(&mut frame, gpa).unwrap();
            frame[24..26] == [8, 6] && frame[32..34] == [0, 2]
        })
    }

    fn offer_large_buffers(&mut self, queue_idx: usize) {
        for idx in 0..16 {
            self.offer(queue_idx, &[(0x1_0000 + 0x2000 * idx, 0x2000, true)]);
        }
    }
}

#[test]
fn host_answers_on_a_real_tap_before_and_after_a_reset() {
    let tap = match Tap::open("alcarp", 2) {
        Ok(tap) => tap,
        Err(error) => {
            let is_required = std::env::var_os("REQUIRE_KVM").is_some_and(|value| value == "1");
            assert!(!is_required, "{error}");
            println!("SKIPPED: {error}");
            return;
        }
    };
    tap.set_address([198, 51, 100, 1].into(), 24).unwrap();
    tap.bring_up().unwrap();
    let mut s = with_backend(Backend::Tap(tap));
    let features = all_features(&s);
    for _ in 0..2 {
        s.activate(features).unwrap();
        s.ram
            .write_slice(&arp_request(100), GuestAddress(0x8000))
            .unwrap();
        s.offer_large_buffers(0);

        s.offer(1, &[(0x8000, 12, false), (0x800c, 60, false)]);

        wait(|| s.has_arp_reply(0));
        s.device.reset();
    }
    assert_eq!(s.device.metrics().tx_packets.get(), 2);
}

#[test]
fn both_queues_of_a_real_tap_receive_once_they_are_on() {
    let Ok(tap) = Tap::open("alcarp2", 2) else {
        println!("SKIPPED: see the test before");
        return;
    };
    tap.set_address([198, 51, 101, 1].into(), 24).unwrap();
    tap.bring_up().unwrap();
    let mut s = with_backend(Backend::Tap(tap));
    let features = all_features(&s);
    s.activate(features).unwrap();
    switch_pairs(&mut s, 2);
    s.wait_used(4, 1);
    s.offer_large_buffers(0);
    s.ram
        .write_slice(&arp_request(101), GuestAddress(0x8000))
        .unwrap();

    // The host's answer may come on either queue; the other one has buffers of its own.
    for idx in 0..8 {
        s.offer(2, &[(0x3_0000 + 0x2000 * idx, 0x2000, true)]);
    }
    s.offer(3, &[(0x8000, 72, false)]);

    // What comes first may be the host's own, about IPv6, before the request even left.
    wait(|| s.device.metrics().tx_packets.get() == 1);
    wait(|| s.device.metrics().rx_packets.get() > 0);
    assert!(!s.needs_reset());
}
