//! A socket in place of the TAP: it keeps the bounds of frames as well.

use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::Release};

use internet_checksum::Checksum;
use vbus::abi::RING_SIGNAL_OFFSET;
use vbus::device::{FaultReporter, ShmSignal};
use vbus::memory::Region;
use vbus::residency::word::RESIDENT;
use vbus::residency::{PageMap, Residency, Visit, Wish};
use vbus::ring::{Geometry, North, Slot, South};
use vbus::signal::{self, Side};
use vm_memory::{FileOffset, GuestAddress};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::IntoBytes;

use super::*;
use crate::GuestRam;
use crate::client::{Client, RingEnd};
use crate::iovec::Piece;
use crate::venet::rx::meta_of;
use crate::venet::tap_end::header_of;

const BASE: u64 = 0x10_0000;
const MEMORY_BYTES: usize = 256 << 10;
const BUFFER_BYTES: u32 = 2048;
const MTU: u32 = 1500;
const NUM_SLOTS: u32 = 64;
const TSO: u32 = rx_cap::CSUM | rx_cap::TSO4;

#[derive(Default)]
struct Faults(AtomicUsize);

impl FaultReporter for Faults {
    fn report(&self, _reason: &dyn fmt::Display) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// One client, and what its TAP is read with.
struct Lab {
    host: UnixDatagram,
    source: File,
    north: North,
    from_south: signal::SignalReceiver<Region>,
    ram: GuestRam,
    receiver: Receiver,
    fetch: TapFetch,
    scratch: Scratch,
    metrics: PortMetrics,
    faults: Arc<Faults>,
}

impl Lab {
    fn new(rx_caps: u32) -> Self {
        let (host, source) = UnixDatagram::pair().unwrap();
        source.set_nonblocking(true).unwrap();
        let geometry = Geometry::new(NUM_SLOTS).unwrap();
        let region = Region::new_private(geometry.len_bytes()).unwrap();
        let north = North::create(region.clone(), geometry).unwrap();
        let attach = |side| signal::attach(region.clone(), RING_SIGNAL_OFFSET, side).unwrap();
        let (sender, receiver) = attach(Side::South);
        let end = RingEnd {
            signal: ShmSignal {
                sender,
                receiver,
                doorbell: EventFd::new(0).unwrap(),
                wake_up: Arc::new(EventFd::new(0).unwrap()),
            },
            ring: South::attach(region.clone()).unwrap(),
        };
        let faults = Arc::new(Faults::default());
        let client = Arc::new(Client::new(Arc::clone(&faults) as _));
        let ram = GuestRam::from_ranges(&[(GuestAddress(BASE), MEMORY_BYTES)]).unwrap();
        let mut receiver = Receiver::new(end, client);
        receiver.configure(ram.clone(), rx_caps, None);
        Lab {
            host,
            source: File::from(OwnedFd::from(source)),
            north,
            from_south: attach(Side::North).1,
            ram,
            receiver,
            fetch: TapFetch::new(),
            scratch: Scratch::new(),
            metrics: PortMetrics::default(),
            faults,
        }
    }

    fn post(&mut self, num_buffers: usize) {
        for _ in 0..num_buffers {
            let nth = u64::from(self.north.next_slot_idx());
            let slot = Slot {
                addr: BASE + nth * u64::from(BUFFER_BYTES),
                len: BUFFER_BYTES,
                meta: [0; 2],
            };
            assert_eq!(self.north.publish(&[slot]), 1);
        }
    }

    fn send(&self, meta: &FrameMeta, frame: &[u8]) {
        let bytes = [header_of(meta).as_bytes(), frame].concat();
        self.host.send(&bytes).unwrap();
    }

    fn serve(&mut self) -> Progress {
        let progress = self.fetch.serve(
            &self.source,
            MTU,
            &mut self.receiver,
            &mut self.scratch,
            &self.metrics,
        );
        self.receiver.notify(&self.metrics);
        progress
    }

    /// All frames that are there: how many slots each has, what it says, its bytes.
    fn reap(&mut self) -> Vec<(FrameMeta, Vec<u8>)> {
        let mut frames: Vec<(FrameMeta, Vec<u8>)> = Vec::new();
        let mut num_missing = 0;
        let mut slot = [Slot::default()];
        while self.north.reap(&mut slot).unwrap() == 1 {
            let [Slot { addr, len, meta }] = slot;
            let meta = meta_of(meta);
            if num_missing == 0 {
                num_missing = meta.count.get();
                frames.push((meta, Vec::new()));
            } else {
                assert_eq!(meta, FrameMeta::default());
            }
            let mut bytes = vec![0; len as usize];
            self.ram.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
            frames.last_mut().unwrap().1.extend(bytes);
            num_missing = num_missing.saturating_sub(1);
        }
        assert_eq!(num_missing, 0, "frames come whole");
        frames
    }

    fn dropped(&self) -> u64 {
        self.metrics.rx_dropped.get()
    }
}

fn plain(len: usize, n: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(n)).collect()
}

/// A TCP frame that leaves its checksum and its segmentation to the receiver.
fn tcp4(payload_bytes: usize) -> (FrameMeta, Vec<u8>) {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((40 + payload_bytes as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    frame.extend([0, 9, 0, 80, 0, 0, 0, 0, 0, 0, 0, 1, 0x50, 0x18, 1, 0]);
    let mut pseudo = Checksum::new();
    pseudo.add_bytes(&frame[26..34]);
    pseudo.add_bytes(&[0, 6]);
    pseudo.add_bytes(&(20 + payload_bytes as u16).to_be_bytes());
    frame.extend(pseudo.checksum().map(|byte| !byte));
    frame.extend([0, 0]);
    frame.extend((0..payload_bytes).map(|n| (n * 7 / 5) as u8));
    let meta = FrameMeta {
        csum_start: 34.into(),
        csum_offset: 16.into(),
        gso_size: 1400.into(),
        // More than there are: the kernel says how much is in one piece.
        hdr_len: 200.into(),
        flags: frame_flag::NEEDS_CSUM.into(),
        gso_type: gso_type::TCP4,
        ..FrameMeta::default()
    };
    (meta, frame)
}

/// Notes how many signals were sent when the TAP was asked for a frame.
struct Watched<'l> {
    source: &'l File,
    metrics: &'l PortMetrics,
    seen: RefCell<Vec<u64>>,
}

impl FrameSource for Watched<'_> {
    fn read_into(
        &self,
        list: &mut MixedIoVecs,
        ram: &GuestRam,
        pieces: impl IntoIterator<Item = Piece>,
        tail: &mut [u8],
    ) -> Option<TapFrame> {
        self.seen.borrow_mut().push(self.metrics.signals.get());
        self.source.read_into(list, ram, pieces, tail)
    }
}

#[test]
fn client_of_lone_frames_is_told_before_the_tap_is_asked_for_more() {
    let mut lab = Lab::new(rx_cap::MERGED);
    lab.post(20);
    let mut serve = |num_frames| {
        lab.from_south.disable();
        assert!(lab.from_south.enable());
        for _ in 0..num_frames {
            lab.send(&FrameMeta::default(), &plain(60, 1));
        }
        let before = lab.metrics.signals.get();
        let tap = Watched {
            source: &lab.source,
            metrics: &lab.metrics,
            seen: RefCell::default(),
        };
        let (receiver, scratch) = (&mut lab.receiver, &mut lab.scratch);
        lab.fetch.serve(&tap, MTU, receiver, scratch, &lab.metrics);
        lab.receiver.notify(&lab.metrics);
        assert_eq!(lab.metrics.signals.get(), before + 1);
        let seen = tap.seen.take();
        seen.iter()
            .map(|signals| signals - before)
            .collect::<Vec<_>>()
    };

    assert_eq!(serve(1), [0, 0]);
    assert_eq!(serve(1), [0, 1]);
    assert_eq!(serve(3), [0, 1, 1, 1]);
    assert_eq!(serve(3), [0, 0, 0, 0]);
    assert_eq!(serve(1), [0, 0]);
}

#[test]
fn small_frames_fill_a_buffer_each_and_come_with_one_signal() {
    let mut lab = Lab::new(rx_cap::MERGED);
    lab.post(20);
    assert!(lab.from_south.enable());
    for n in 0..10 {
        lab.send(&FrameMeta::default(), &plain(60 + n * 100, n as u8));
    }

    assert_eq!(lab.serve(), Progress::Idle);

    let frames = lab.reap();
    assert_eq!(frames.len(), 10);
    for (n, (meta, bytes)) in frames.iter().enumerate() {
        assert_eq!(meta.count.get(), 1);
        assert_eq!(bytes, &plain(60 + n * 100, n as u8));
    }
    assert_eq!(lab.metrics.signals.get(), 1);
    assert_eq!((lab.metrics.rx_packets.get(), lab.dropped()), (10, 0));
}

#[test]
fn large_frames_land_whole_the_first_through_private_room() {
    let mut lab = Lab::new(rx_cap::MERGED | TSO);
    let (meta, frame) = tcp4(60_000);
    for _ in 0..3 {
        lab.post(31);
        lab.send(&meta, &frame);
        lab.send(&FrameMeta::default(), &plain(60, 1));

        assert_eq!(lab.serve(), Progress::Idle);

        let frames = lab.reap();
        assert_eq!(frames.len(), 2);
        let (received, bytes) = &frames[0];
        assert_eq!(bytes, &frame);
        assert_eq!(received.count.get(), 30);
        assert_eq!(received.hdr_len.get(), 54);
        assert_eq!(received.gso_size, meta.gso_size);
        assert_eq!(received.flags, meta.flags);
        assert_eq!(frames[1].1, plain(60, 1));
    }
    assert_eq!(lab.dropped(), 0);
}

#[test]
fn frame_for_which_there_are_never_enough_buffers_is_dropped() {
    for (caps, num_buffers) in [(TSO | rx_cap::MERGED, 8), (TSO, 64)] {
        let mut lab = Lab::new(caps);
        let (meta, frame) = tcp4(60_000);
        lab.post(num_buffers);
        lab.send(&meta, &frame);
        lab.send(&FrameMeta::default(), &plain(60, 1));
        lab.send(&meta, &frame);

        assert_eq!(lab.serve(), Progress::Idle);

        let frames = lab.reap();
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].1, plain(60, 1));
        lab.post(1);
        assert_eq!(lab.serve(), Progress::Idle);
        assert_eq!(lab.dropped(), 2);
    }
}

#[test]
fn large_frame_waits_for_buffers_that_are_on_their_way() {
    let mut lab = Lab::new(rx_cap::MERGED | TSO);
    let (meta, frame) = tcp4(60_000);
    lab.post(40);
    for _ in 0..20 {
        lab.send(&FrameMeta::default(), &plain(60, 1));
    }
    lab.send(&meta, &frame);
    lab.send(&FrameMeta::default(), &plain(60, 2));

    assert_eq!(lab.serve(), Progress::Idle);
    assert_eq!(lab.reap().len(), 20);
    lab.post(5);
    assert_eq!(lab.serve(), Progress::Idle);
    assert_eq!(lab.reap().len(), 0);
    lab.post(15);
    assert_eq!(lab.serve(), Progress::Idle);

    let frames = lab.reap();
    assert_eq!(frames[0].1, frame);
    assert_eq!(frames[1].1, plain(60, 2));
    assert_eq!(lab.dropped(), 0);
}

#[test]
fn frames_that_the_client_before_left_in_the_tap_are_cut_for_the_next_one() {
    let mut lab = Lab::new(rx_cap::MERGED);
    lab.post(64);
    let (meta, frame) = tcp4(5000);
    lab.send(&meta, &frame);

    assert_eq!(lab.serve(), Progress::Idle);

    let frames = lab.reap();
    assert_eq!(frames.len(), 4);
    let mut payload = Vec::<u8>::new();
    for (meta, bytes) in &frames {
        assert_eq!((meta.flags.get(), meta.gso_type), (0, gso_type::NONE));
        payload.extend(&bytes[54..]);
        let mut sum = Checksum::new();
        sum.add_bytes(&bytes[26..34]);
        sum.add_bytes(&[0, 6]);
        sum.add_bytes(&(bytes.len() as u16 - 34).to_be_bytes());
        sum.add_bytes(&bytes[34..]);
        assert_eq!(sum.checksum(), [0, 0]);
    }
    assert_eq!(payload, frame[54..]);
}

#[test]
fn buffer_that_is_none_cuts_the_client_off() {
    for (addr, len) in [(0, 2048), (BASE, 0), (u64::MAX, 2048), (BASE, u32::MAX)] {
        let mut lab = Lab::new(rx_cap::MERGED);
        let slot = Slot {
            addr,
            len,
            meta: [0; 2],
        };
        lab.north.publish(&[slot]);
        lab.send(&FrameMeta::default(), &plain(60, 3));

        assert_eq!(lab.serve(), Progress::Idle);

        assert!(lab.reap().is_empty());
        assert_eq!(lab.faults.0.load(Relaxed), 1);
        assert_eq!((lab.metrics.rx_errors.get() > 0, lab.dropped()), (true, 0));
    }
}

#[test]
fn frames_that_are_too_long_or_make_no_sense_are_dropped() {
    let mut lab = Lab::new(rx_cap::MERGED | TSO);
    lab.post(8);
    lab.send(&FrameMeta::default(), &plain(1519, 1));
    lab.send(&FrameMeta::default(), &plain(13, 1));
    lab.host.send(&[0; 5]).unwrap();
    // GSO type 3 is UFO, which nobody asked for.
    lab.host.send(&[&[0, 3], &[0; 90][..]].concat()).unwrap();
    lab.send(&FrameMeta::default(), &plain(1518, 1));

    assert_eq!(lab.serve(), Progress::Idle);

    let frames = lab.reap();
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].1, plain(1518, 1));
    assert_eq!(lab.dropped(), 4);
}

#[test]
fn client_that_rewrites_its_memory_harms_nobody() {
    let mut lab = Lab::new(rx_cap::MERGED | TSO);
    let is_over = AtomicBool::new(false);
    let ram = lab.ram.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0_u64;
            while !is_over.load(Relaxed) {
                n = n.wrapping_add(1);
                let at = BASE + n.wrapping_mul(0x9e37_79b9) % (MEMORY_BYTES as u64 - 64);
                ram.write_slice(&[n as u8; 64], GuestAddress(at)).unwrap();
            }
        });
        let (meta, frame) = tcp4(60_000);
        // Half of them the receiver cannot take as they are.
        for round in 0..200 {
            if round == 100 {
                lab.receiver
                    .configure(lab.ram.clone(), rx_cap::MERGED, None);
            }
            lab.post(lab.north.room() as usize);
            lab.send(&meta, &frame);
            lab.send(&FrameMeta::default(), &plain(60, 1));
            assert_eq!(lab.serve(), Progress::Idle);
            lab.reap();
        }
        is_over.store(true, Relaxed);
    });
    let metrics = &lab.metrics;
    assert!(metrics.rx_packets.get() >= 300);
    assert_eq!(lab.faults.0.load(Relaxed), 0);
}

/// What a VM has that takes pages of the client's memory.
struct Vm {
    map: PageMap,
    visit: Visit,
}

impl Vm {
    /// The memory of `lab` is that of a VM from now on, and all of it is away.
    fn of(lab: &mut Lab, rx_caps: u32) -> Self {
        let (_, memfd) = Region::new_shared(MEMORY_BYTES).unwrap();
        let file = FileOffset::new(memfd.into(), 0);
        let range = (GuestAddress(BASE), MEMORY_BYTES, Some(file));
        lab.ram = GuestRam::from_ranges_with_files([range]).unwrap();
        let num_pages = MEMORY_BYTES / 4096;
        let (map, visit) = (PageMap::new(num_pages).unwrap(), Visit::new().unwrap());
        map.watch(0);
        let map_fd = map.as_fd().try_clone_to_owned().unwrap();
        let [asked, served] = [0; 2].map(|_| EventFd::new(0).unwrap());
        let fds = (map_fd, visit.lend().unwrap());
        let residency = Residency::new(num_pages as u64, fds, Arc::new(asked), served).unwrap();
        let access = residency.access();
        assert!(access.is_some());
        lab.receiver.configure(lab.ram.clone(), rx_caps, access);
        Vm { map, visit }
    }

    fn give(&self, page: usize) {
        self.map.as_ref()[page].store(RESIDENT, Release);
    }

    /// Pages that were wished for, all of them to be written to.
    fn take_wishes(&self) -> Vec<u64> {
        let wishes = self.visit.sections().take_wishes().into_iter();
        let page_of = |Wish { page, is_write }| {
            assert!(is_write);
            page
        };
        wishes.map(page_of).collect()
    }
}

#[test]
fn frames_wait_in_the_tap_while_buffers_are_away() {
    let mut lab = Lab::new(0);
    let vm = Vm::of(&mut lab, 0);
    // Two in each page.
    lab.post(6);
    let frames: Vec<Vec<u8>> = (1..=4).map(|n| plain(60 + usize::from(n), n)).collect();
    for frame in &frames {
        lab.send(&FrameMeta::default(), frame);
    }

    assert_eq!(lab.serve(), Progress::Idle);
    assert_eq!(lab.reap(), []);
    assert_eq!(lab.metrics.rx_away.get(), 1);
    // For all buffers that are there.
    assert_eq!(vm.take_wishes(), [0, 1, 2]);
    vm.give(0);
    assert_eq!(lab.serve(), Progress::Idle);

    let bytes = |lab: &mut Lab| lab.reap().into_iter().map(|one| one.1).collect::<Vec<_>>();
    assert_eq!(bytes(&mut lab), frames[..2]);
    assert_eq!(vm.take_wishes(), [1, 2]);
    vm.give(1);
    lab.serve();
    assert_eq!(bytes(&mut lab), frames[2..]);
    assert_eq!(lab.dropped(), 0);
}

#[test]
fn frame_that_was_fetched_waits_while_the_rest_of_its_buffers_is_away() {
    let caps = rx_cap::MERGED | TSO;
    let mut lab = Lab::new(caps);
    let vm = Vm::of(&mut lab, caps);
    vm.give(0);
    vm.give(1);
    lab.post(4);
    for _ in 0..2 {
        lab.send(&FrameMeta::default(), &plain(60, 1));
    }
    let (meta, frame) = tcp4(5000);
    lab.send(&meta, &frame);
    assert_eq!(lab.serve(), Progress::Idle);
    assert_eq!(lab.reap().len(), 2);
    assert!(vm.take_wishes().is_empty());

    lab.post(2);
    assert_eq!(lab.serve(), Progress::Idle);

    assert_eq!(lab.reap(), []);
    assert_eq!(vm.take_wishes(), [2]);
    vm.give(2);
    lab.serve();
    let frames = lab.reap();
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].1, frame);
    assert_eq!(lab.dropped(), 0);
}
