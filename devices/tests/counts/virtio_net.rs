//! A queue pair of the virtio network device, on a TAP.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{Ordering::SeqCst, fence};

use alacrity_devices::GuestRam;
use alacrity_devices::tap::Tap;
use alacrity_devices::test_utils::fake_interrupt;
use alacrity_devices::virtio::net::{Backend, NetDevice};
use alacrity_devices::virtio::{Activation, ActiveQueue, VirtioDevice, VirtioInterrupt};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::fixture::{BROADCAST, frame, mac, wait_for};
use crate::{MOST_PER_TURN, Watch, can_make_taps, ip, overhead};

const RX: u16 = 0;
const TX: u16 = 1;
const NUM_QUEUES: u16 = 3;
/// Descriptors of each queue.
const SIZE: u16 = 256;
const HEADER_BYTES: usize = 12;
/// Frames of a batch: less than what is moved in one turn.
const FRAMES: u16 = 100;
const RAM_BYTES: usize = 4 << 20;
const BUFFERS: u64 = 0x10_0000;
const BUFFER_BYTES: u64 = 2048;

/// Frames may be spread over buffers.
const MERGED: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

/// Where the parts of a queue are.
const QUEUE_BYTES: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;

/// The driver's side of one queue, whose buffers are used in order.
struct Driver {
    ram: GuestRam,
    base: u64,
    doorbell: EventFd,
    num_offered: u16,
}

impl Driver {
    fn new(ram: &GuestRam, index: u16) -> (Self, ActiveQueue) {
        let base = u64::from(index) * QUEUE_BYTES;
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(base as u32), Some(0));
        queue.set_avail_ring_address(Some((base + AVAILABLE) as u32), Some(0));
        queue.set_used_ring_address(Some((base + USED) as u32), Some(0));
        queue.set_ready(true);
        let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
        let driver = Driver {
            ram: ram.clone(),
            base,
            doorbell: doorbell.try_clone().unwrap(),
            num_offered: 0,
        };
        let active = ActiveQueue {
            index,
            queue,
            doorbell,
        };
        (driver, active)
    }

    fn write<T: ByteValued>(&self, offset: u64, value: T) {
        let gpa = GuestAddress(self.base + offset);
        self.ram.write_obj(value, gpa).unwrap();
    }

    fn buffer(&self, nth: u16) -> u64 {
        let first = BUFFERS + self.base / QUEUE_BYTES * u64::from(SIZE) * BUFFER_BYTES;
        first + u64::from(nth % SIZE) * BUFFER_BYTES
    }

    /// Offers `num_buffers` buffers of `len` bytes and rings; asks for an interrupt when
    /// `num_wanted` of all that were ever offered are used.
    fn offer(&mut self, num_buffers: u16, len: usize, flags: u32, num_wanted: u16) {
        for _ in 0..num_buffers {
            let nth = self.num_offered % SIZE;
            let words = [self.buffer(nth), len as u64 | u64::from(flags) << 32];
            self.write(16 * u64::from(nth), words[0]);
            self.write(16 * u64::from(nth) + 8, words[1]);
            self.write(AVAILABLE + 4 + 2 * u64::from(nth), nth);
            self.num_offered += 1;
        }
        let used_event = AVAILABLE + 4 + 2 * u64::from(SIZE);
        self.write(used_event, num_wanted - 1);
        fence(SeqCst);
        self.write(AVAILABLE + 2, self.num_offered);
        self.doorbell.write(1).unwrap();
    }

    fn wait_used(&self, num_used: u16) {
        let gpa = GuestAddress(self.base + USED + 2);
        let used = || self.ram.read_obj::<u16>(gpa).unwrap();
        wait_for("buffers are used", || used() == num_used);
    }
}

/// An active device on the TAP `name`, and its driver's queues.
struct Setup {
    _device: NetDevice,
    _interrupt: Arc<VirtioInterrupt>,
    rx: Driver,
    tx: Driver,
}

/// `features` beside the event index.
fn start(name: &str, features: u64) -> Setup {
    let tap = Tap::open(name, 1).unwrap();
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    tap.bring_up().unwrap();
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap();
    let mut device = NetDevice::new(name.into(), Backend::Tap(tap), mac(1).0, None).unwrap();
    let interrupt = fake_interrupt(NUM_QUEUES.into());
    let (rx, active_rx) = Driver::new(&ram, RX);
    let (tx, active_tx) = Driver::new(&ram, TX);
    let (_, control) = Driver::new(&ram, 2);
    let activation = Activation {
        ram,
        features: 1 << VIRTIO_RING_F_EVENT_IDX | features,
        queues: vec![active_rx, active_tx, control],
        interrupt: Arc::clone(&interrupt),
    };
    device.activate(activation).unwrap();
    Setup {
        _device: device,
        _interrupt: interrupt,
        rx,
        tx,
    }
}

#[test]
fn one_system_call_sends_a_frame() {
    if !can_make_taps() {
        return;
    }
    let mut setup = start("cnet0", MERGED);
    let tx = &mut setup.tx;
    let frame = [vec![0; HEADER_BYTES], frame(BROADCAST, mac(1), 1500)].concat();
    for nth in 0..SIZE {
        let gpa = GuestAddress(tx.buffer(nth));
        tx.ram.write_slice(&frame, gpa).unwrap();
    }
    tx.offer(FRAMES, frame.len(), 0, FRAMES);
    tx.wait_used(FRAMES);
    let worker = Watch::thread("cnet0-0");

    for round in 2..4 {
        let calls = worker.calls("virtio-net, out", || {
            tx.offer(FRAMES, frame.len(), 0, round * FRAMES);
            tx.wait_used(round * FRAMES);
        });
        assert_eq!(calls.of(libc::SYS_writev), u64::from(FRAMES), "{calls}");
        assert_eq!(calls.of(libc::SYS_write), 1, "{calls}: one interrupt");
        assert!(overhead(&calls) <= MOST_PER_TURN, "{calls}");
    }
}

/// On the TAP `name` with addresses in 198.51.`net`.
fn assert_one_system_call_receives_a_frame(name: &str, net: u8, features: u64) {
    if !can_make_taps() {
        return;
    }
    let mut setup = start(name, features);
    ip(&format!("addr add 198.51.{net}.1/24 dev {name}"));
    let guest = mac(1);
    ip(&format!(
        "neigh replace 198.51.{net}.2 lladdr {guest} dev {name}"
    ));
    let socket = UdpSocket::bind(format!("198.51.{net}.1:0")).unwrap();
    for _ in 0..4 * FRAMES {
        socket
            .send_to(&[7; 1400], format!("198.51.{net}.2:9"))
            .unwrap();
    }
    // If a frame of the largest size could come, there have to be buffers for it before each.
    let window = match features {
        MERGED => u16::try_from((64 << 10) / BUFFER_BYTES).unwrap() + 1,
        _ => 1,
    };
    let rx = &mut setup.rx;
    let mut offer = |num_buffers, num_wanted| {
        let len = BUFFER_BYTES as usize;
        rx.offer(num_buffers, len, VRING_DESC_F_WRITE, num_wanted);
        rx.wait_used(num_wanted);
    };
    offer(FRAMES + window - 1, FRAMES);
    let worker = Watch::thread(&format!("{name}-0"));

    // All that can be used is: frames wait in the TAP until there is more.
    for round in 2..4 {
        let calls = worker.calls("virtio-net, in", || offer(FRAMES, round * FRAMES));
        assert_eq!(calls.of(libc::SYS_readv), u64::from(FRAMES), "{calls}");
        assert_eq!(calls.of(libc::SYS_write), 1, "{calls}: one interrupt");
        assert_eq!(calls.of(libc::SYS_writev), 0, "{calls}");
        assert!(overhead(&calls) <= MOST_PER_TURN, "{calls}");
    }
}

#[test]
fn one_system_call_receives_a_frame() {
    assert_one_system_call_receives_a_frame("cnet1", 12, MERGED);
}

#[test]
fn one_system_call_receives_a_frame_in_a_buffer_of_its_own() {
    assert_one_system_call_receives_a_frame("cnet2", 13, 0);
}
