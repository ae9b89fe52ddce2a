//! Clients some of whose memory is away: a VM that gave pages back to its host.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alacrity_devices::GuestRam;
use alacrity_devices::venet::driver::{Buffers, DriverError, Options, Outgoing, Venet};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use vbus::abi::venet::{FrameMeta, VERSION, func, rx_cap, shm_id, tx_cap};
use vbus::client::Connection;
use vbus::eventfd;
use vbus::memory::{MemoryContext, Region};
use vbus::residency::word::{OWNED, PROTECTED, RESIDENT};
use vbus::residency::{Access, PageMap, Residency, Visit, Wish};
use vbus::ring::Slot;
use vbus::server::Server;
use vbus::verbs::{InterfaceId, Verbs, WakeUp};
use vm_memory::{FileOffset, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::fixture::*;
use crate::setup::ring;

const PAGE_BYTES: usize = 4096;
const NUM_SLOTS: u32 = 16;
/// A hole.
const AWAY: u64 = 0;
/// What somebody would do within this time who ought not to do it at all.
const A_WHILE: Duration = Duration::from_millis(50);

/// A buffer for each page: page n is the n-th receive buffer, page 16 + n the n-th transmit buffer.
fn pages() -> Options {
    Options {
        num_slots: NUM_SLOTS,
        rx_buffer_bytes: PAGE_BYTES as u32,
        tx_buffer_bytes: PAGE_BYTES as u32,
        ..Options::default()
    }
}

const fn tx_page(slot_idx: u64) -> u64 {
    NUM_SLOTS as u64 + slot_idx
}

/// The RAM of a VM on a memfd, and what it shares with the devices.
struct Vm {
    ram: GuestRam,
    region: Region,
    memfd: OwnedFd,
    map: PageMap,
    visit: Visit,
    asked: Arc<EventFd>,
    served: EventFd,
    residency: Arc<Residency>,
}

struct Memory(GuestRam, Arc<Residency>);

impl MemoryContext for Memory {
    fn snapshot(&self) -> GuestRam {
        self.0.clone()
    }

    fn residency(&self) -> Option<Arc<Residency>> {
        Some(Arc::clone(&self.1))
    }
}

impl Vm {
    /// All of its `len` bytes are in memory, and its words count.
    fn new(len: usize) -> Self {
        let len = len.next_multiple_of(PAGE_BYTES);
        let (_, memfd) = Region::new_shared(len).unwrap();
        let file = FileOffset::new(memfd.try_clone().unwrap().into(), 0);
        let range = (GuestAddress(BASE), len, Some(file));
        let ram = GuestRam::from_ranges_with_files([range]).unwrap();
        let num_pages = len / PAGE_BYTES;
        let map = PageMap::new(num_pages).unwrap();
        for word in map.as_ref() {
            word.store(RESIDENT, Release);
        }
        map.watch(0);
        let visit = Visit::new().unwrap();
        let asked = Arc::new(EventFd::new(0).unwrap());
        let served = EventFd::new(0).unwrap();
        let residency = Residency::new(
            num_pages as u64,
            (
                map.as_fd().try_clone_to_owned().unwrap(),
                visit.lend().unwrap(),
            ),
            Arc::clone(&asked) as Arc<dyn WakeUp>,
            served.try_clone().unwrap(),
        );
        Vm {
            region: Region::from_ram(&ram, GuestAddress(BASE), len).unwrap(),
            ram,
            memfd,
            map,
            visit,
            asked,
            served,
            residency: residency.unwrap(),
        }
    }

    fn memory(&self) -> Memory {
        Memory(self.ram.clone(), Arc::clone(&self.residency))
    }

    fn set(&self, page: u64, word: u64) {
        self.map.as_ref()[page as usize].store(word, Release);
    }

    fn bytes(&self, page: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES];
        let offset = page as usize * PAGE_BYTES;
        self.region.read(offset, &mut bytes).unwrap();
        bytes
    }

    /// Makes a hole of a page, as a VM does it; what was in it.
    fn take(&self, page: u64) -> Vec<u8> {
        self.set(page, RESIDENT | OWNED);
        let start = Instant::now();
        assert!(self.visit.sections().wait_until_left(|| {
            std::thread::yield_now();
            start.elapsed() < DEADLINE
        }));
        let bytes = self.bytes(page);
        let (offset, len) = (page * PAGE_BYTES as u64, PAGE_BYTES as u64);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.memfd, flags, offset, len).unwrap();
        self.set(page, AWAY);
        assert!(self.is_hole(page));
        bytes
    }

    /// Whether the file has no memory there: nobody has read or written it since it was taken.
    fn is_hole(&self, page: u64) -> bool {
        let offset = page * PAGE_BYTES as u64;
        seek(&self.memfd, SeekFrom::Data(offset)) != Ok(offset)
    }

    fn give(&self, page: u64, bytes: &[u8]) {
        let offset = page as usize * PAGE_BYTES;
        self.region.write(offset, bytes).unwrap();
        self.set(page, RESIDENT);
    }

    /// Says that wishes were granted.
    fn say_served(&self) {
        self.served.write(1).unwrap();
    }

    fn is_asked(&self) -> bool {
        eventfd::drain(&self.asked) != 0
    }

    /// Waits until it is asked, and takes the wishes.
    fn take_wishes(&self) -> Vec<Wish> {
        wait_for("the device wishes", || self.is_asked());
        self.visit.sections().take_wishes()
    }

    /// A station on `bus` with its link down.
    fn open(&self, lab: &Lab, bus: &str, options: Options) -> Station {
        let buffers = Buffers {
            region: self.region.clone(),
            base: BASE,
        };
        let client = lab.client(bus, self.memory());
        Venet::open(client, InterfaceId(0), buffers, options).unwrap()
    }
}

fn read(page: u64) -> Wish {
    Wish {
        page,
        is_write: false,
    }
}

fn write(page: u64) -> Wish {
    Wish {
        page,
        is_write: true,
    }
}

/// A switch with the station of a VM on the bus `vm`, whose link is down, and a neighbour.
fn neighbours(options: Options) -> (Lab, Vm, Station, Station) {
    let lab = Lab::with("venet-switch", &["vm", "b"]);
    let vm = Vm::new(options.buffer_bytes());
    let station = vm.open(&lab, "vm", options);
    let neighbour = lab.station("b", pages());
    (lab, vm, station, neighbour)
}

fn broadcast(len: usize) -> Vec<u8> {
    frame(BROADCAST, mac(1), len)
}

fn send_all(station: &mut Station, lengths: &[usize]) {
    for len in lengths {
        assert_eq!(station.send(&[&broadcast(*len)]).unwrap(), 1);
    }
}

fn lengths(frames: &[Received]) -> Vec<usize> {
    frames.iter().map(|one| one.0.len()).collect()
}

#[test]
fn frame_that_is_away_waits_for_the_vm_and_those_behind_it_wait_too() {
    let (lab, vm, mut station, mut neighbour) = neighbours(pages());
    send_all(&mut station, &[100, 101, 102, 103]);
    let [second, fourth] = [1, 3].map(|nth| vm.take(tx_page(nth)));

    station.link_up().unwrap();

    // What is behind it may be away for the same reason.
    assert_eq!(vm.take_wishes(), [1, 3].map(|nth| read(tx_page(nth))));
    send_all(&mut station, &[104]);
    assert_eq!(lengths(&receive(&mut neighbour, 1)), [100]);
    std::thread::sleep(A_WHILE);
    assert_eq!(drain(&mut neighbour), []);
    wait_for("the first slot is back", || station.room().unwrap() == 12);
    assert_eq!(lab.port_count("vm", "tx_packets"), 1);
    assert!(vm.is_hole(tx_page(1)));

    vm.give(tx_page(1), &second);
    vm.say_served();

    assert_eq!(vm.take_wishes().last(), Some(&read(tx_page(3))));
    assert!(vm.is_hole(tx_page(3)));
    vm.give(tx_page(3), &fourth);
    vm.say_served();

    let frames = receive(&mut neighbour, 4);
    assert_eq!(lengths(&frames), [101, 102, 103, 104]);
    for (bytes, _) in frames {
        assert_eq!(bytes, broadcast(bytes.len()));
    }
    settle(&mut station);
    assert_eq!(drain(&mut neighbour), []);
    assert_eq!(lab.port_count("vm", "tx_packets"), 5);
    assert_eq!(lab.port_count("vm", "tx_away"), 2);
    assert_eq!(lab.port_count("vm", "tx_errors"), 0);
}

#[test]
fn owned_page_is_away_and_protected_one_is_sent() {
    let (lab, vm, mut station, mut neighbour) = neighbours(pages());
    send_all(&mut station, &[100, 101]);
    vm.set(tx_page(0), PROTECTED);
    vm.set(tx_page(1), RESIDENT | OWNED);

    station.link_up().unwrap();

    assert_eq!(lengths(&receive(&mut neighbour, 1)), [100]);
    assert_eq!(vm.take_wishes(), [read(tx_page(1))]);
    // The VM let it be.
    vm.set(tx_page(1), RESIDENT);
    vm.say_served();
    assert_eq!(lengths(&receive(&mut neighbour, 1)), [101]);
    assert_eq!(lab.port_count("vm", "tx_away"), 1);
}

#[test]
fn all_segments_of_a_frame_have_to_be_there() {
    let options = Options {
        tx_caps: tx_cap::SG,
        // The second one starts at 3072 of a page.
        tx_buffer_bytes: 3072,
        ..pages()
    };
    let (lab, vm, mut station, mut neighbour) = neighbours(options);
    let whole = broadcast(1500);
    let parts: Vec<&[u8]> = whole.chunks(600).collect();
    let outgoing = Outgoing {
        parts: &parts,
        meta: FrameMeta::default(),
    };
    assert_eq!(station.send_all([outgoing, outgoing]).unwrap(), 2);
    let bytes = vm.take(tx_page(1));

    station.link_up().unwrap();

    assert_eq!(receive(&mut neighbour, 1)[0].0, whole);
    assert_eq!(vm.take_wishes(), [read(tx_page(1))], "for two segments");
    assert!(vm.is_hole(tx_page(1)));
    vm.give(tx_page(1), &bytes);
    vm.say_served();
    assert_eq!(receive(&mut neighbour, 1)[0].0, whole);
    assert_eq!(lab.port_count("vm", "tx_away"), 1);
}

#[test]
fn frame_for_buffers_that_are_away_is_dropped_and_the_next_ones_arrive() {
    let (lab, vm, mut station, mut neighbour) = neighbours(pages());
    vm.set(0, PROTECTED);
    let protected = vm.bytes(0);
    let pages: Vec<u64> = (1..NUM_SLOTS.into()).collect();
    let taken: Vec<Vec<u8>> = pages.iter().map(|page| vm.take(*page)).collect();
    station.link_up().unwrap();

    send(&mut neighbour, &[&broadcast(100)]);

    let wishes = vm.take_wishes();
    let expected: Vec<Wish> = (0..NUM_SLOTS.into()).map(write).collect();
    assert_eq!(wishes, expected);
    assert_eq!(lab.port_count("vm", "rx_dropped"), 1);
    assert_eq!(lab.port_count("vm", "rx_away"), 1);
    send(&mut neighbour, &[&broadcast(101)]);
    assert_eq!(lab.port_count("vm", "rx_away"), 2);
    assert!(vm.is_asked(), "the wishes were taken");
    send(&mut neighbour, &[&broadcast(102)]);
    assert_eq!(lab.port_count("vm", "rx_away"), 3);
    assert!(!vm.is_asked(), "the VM knows");
    assert!(pages.iter().all(|page| vm.is_hole(*page)));
    assert_eq!(vm.bytes(0), protected);

    // The first two come in.
    vm.set(0, RESIDENT);
    vm.give(1, &taken[0]);
    vm.say_served();
    send(
        &mut neighbour,
        &[&broadcast(103), &broadcast(104), &broadcast(105)],
    );

    assert_eq!(lengths(&receive(&mut station, 2)), [103, 104]);
    assert!(pages[1..].iter().all(|page| vm.is_hole(*page)));
    assert_eq!(lab.port_count("vm", "rx_dropped"), 4);
    assert_eq!(lab.port_count("vm", "rx_away"), 4);
    assert_eq!(lab.port_count("vm", "rx_errors"), 0);
    // Those that the station gave back are behind the others.
    for (page, bytes) in pages[1..].iter().zip(&taken[1..]) {
        vm.give(*page, bytes);
    }
    send(&mut neighbour, &[&broadcast(106)]);
    assert_eq!(lengths(&receive(&mut station, 1)), [106]);
}

#[test]
fn frame_that_needs_several_buffers_fills_all_or_none() {
    let options = Options {
        rx_caps: rx_cap::MERGED,
        ..pages()
    };
    let lab = Lab::with("venet-switch", &["vm", "b"]);
    lab.set("mtu", "9000").unwrap();
    let vm = Vm::new(options.buffer_bytes());
    let mut station = vm.open(&lab, "vm", options);
    let mut neighbour = lab.station("b", jumbo());
    let [first, second] = [vm.bytes(0), vm.take(1)];
    station.link_up().unwrap();

    send(&mut neighbour, &[&broadcast(5000)]);

    assert_eq!(vm.take_wishes(), [write(1)]);
    assert_eq!(lab.port_count("vm", "rx_away"), 1);
    assert_eq!(vm.bytes(0), first);
    assert!(vm.is_hole(1));
    vm.give(1, &second);
    send(&mut neighbour, &[&broadcast(5001)]);
    assert_eq!(receive(&mut station, 1)[0].0, broadcast(5001));
    assert_eq!(lab.port_count("vm", "rx_dropped"), 1);
}

#[test]
fn link_goes_down_and_up_while_a_frame_waits() {
    let (lab, vm, mut station, mut neighbour) = neighbours(pages());
    send_all(&mut station, &[100, 101]);
    let bytes = vm.take(tx_page(0));
    station.link_up().unwrap();
    assert_eq!(vm.take_wishes(), [read(tx_page(0))]);

    station.link_down().unwrap();
    vm.say_served();
    station.link_up().unwrap();

    assert_eq!(
        vm.take_wishes(),
        [read(tx_page(0))],
        "it is wished for again"
    );
    assert_eq!(drain(&mut neighbour), []);
    station.link_down().unwrap();
    vm.give(tx_page(0), &bytes);
    station.link_up().unwrap();
    assert_eq!(lengths(&receive(&mut neighbour, 2)), [100, 101]);
    settle(&mut station);
    assert_eq!(drain(&mut neighbour), []);
    assert_eq!(lab.port_count("vm", "tx_packets"), 2);
}

#[test]
fn link_takes_two_sections_and_gives_them_back() {
    let (_lab, vm, station, _neighbour) = neighbours(pages());
    let mut others: Vec<Access> = std::iter::from_fn(|| vm.residency.access()).collect();

    let refused = |result| match result {
        Err(DriverError::Refused { source, .. }) => source,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(station.link_up()), Errno::NOSPC);
    others.pop();
    assert_eq!(refused(station.link_up()), Errno::NOSPC);
    others.pop();
    for _ in 0..3 {
        station.link_up().unwrap();
        assert!(vm.residency.access().is_none());
        station.link_down().unwrap();
    }
    station.link_up().unwrap();
    station.close().unwrap();
    others.extend(vm.residency.access());
    others.extend(vm.residency.access());
    assert!(vm.residency.access().is_none());
}

#[test]
fn vm_behind_a_socket_is_asked_and_says_when_it_is_done() {
    let lab = Lab::with("venet-loopback", &["b"]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vbus.sock");
    let _server = Server::bind(&path, lab.host.clone()).unwrap();
    let remote = Connection::connect(&path).unwrap().join("b").unwrap();
    let options = pages();
    let len = options.buffer_bytes();
    let map = PageMap::new(len / PAGE_BYTES).unwrap();
    for word in &map.as_ref()[1..] {
        word.store(RESIDENT, Release);
    }
    map.watch(0);
    let visit = Visit::new().unwrap();
    let [asked, served] = [0; 2].map(|_| EventFd::new(0).unwrap());
    remote.add_pages(&map, &visit, (&asked, &served)).unwrap();
    assert!(visit.is_lent());
    let again = remote.add_pages(&map, &visit, (&asked, &served));
    assert_eq!(again, Err(Errno::EXIST));
    let region = remote.add_memory(BASE, len).unwrap();
    let buffers = Buffers { region, base: BASE };
    let mut station = Venet::open(remote, InterfaceId(0), buffers, options).unwrap();
    station.send(&[&broadcast(100), &broadcast(101)]).unwrap();
    map.as_ref()[tx_page(1) as usize].store(AWAY, Release);
    let take_wishes = || {
        wait_for("the device wishes", || eventfd::drain(&asked) != 0);
        visit.sections().take_wishes()
    };

    station.link_up().unwrap();

    // The first frame was dropped for lack of a buffer, the second one is away.
    let mut wishes = take_wishes();
    while wishes.len() < 2 {
        wishes.extend(take_wishes());
    }
    wishes.sort_unstable_by_key(|wish| wish.page);
    assert_eq!(wishes, [write(0), read(tx_page(1))]);
    for wish in wishes {
        map.as_ref()[wish.page as usize].store(RESIDENT, Release);
    }
    served.write(1).unwrap();
    let mut received = Vec::new();
    wait_for("the second frame comes back", || {
        let take = |bytes: &[u8], _: &FrameMeta| received.push(bytes.to_vec());
        station.receive(usize::MAX, take).unwrap();
        !received.is_empty()
    });
    assert_eq!(received, [broadcast(101)]);
    assert_eq!(lab.count("rx_away"), 1);
    station.close().unwrap();
    wait_for("the device lets go", || !visit.is_lent());
}

#[test]
fn slot_of_4_gib_is_not_looked_at_for_long_and_refused() {
    let lab = Lab::with("venet-loopback", &["b"]);
    // So that such a slot is in memory, of which hardly any is used.
    let vm = Vm::new((4 << 30) + 64 * PAGE_BYTES);
    let bus = lab.client("b", vm.memory());
    let handle = bus.open(InterfaceId(0), VERSION).unwrap();
    let (rx, ..) = ring(shm_id::RX_RING, 8);
    bus.shm(handle, rx).unwrap();
    let (tx, mut north, _region) = ring(shm_id::TX_RING, NUM_SLOTS);
    bus.shm(handle, tx).unwrap();
    for page in (0..32).chain(41..1 << 20) {
        vm.set(page, AWAY);
    }
    let there = BASE + 40 * PAGE_BYTES as u64;
    let slot = |addr, len| Slot {
        addr,
        len,
        meta: [0; 2],
    };
    let slots = [
        slot(BASE, u32::MAX),
        slot(there, u32::MAX),
        slot(BASE, 70_000),
        slot(there, 100),
    ];
    assert_eq!(north.publish(&slots), slots.len());
    let start = Instant::now();

    bus.call(handle, func::LINK_UP, &mut []).unwrap();
    wait_for("all slots come back", || {
        north.reclaim().unwrap();
        north.outstanding() == 0
    });

    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(lab.count("tx_errors"), 3);
    assert_eq!(lab.count("tx_packets"), 1);
    assert_eq!(lab.count("tx_away"), 0);
    assert!(!vm.is_asked());
    assert!((0..32).all(|page| vm.is_hole(page)));
}

/// Pages that were taken, and what was in them.
type Taken = BTreeMap<u64, Vec<u8>>;

fn give_all(vm: &Vm, taken: &mut Taken) {
    for (page, bytes) in std::mem::take(taken) {
        vm.give(page, &bytes);
    }
}

/// As a guest that accesses its memory: what is away comes back first, and nothing is taken meanwhile.
fn as_guest<T>(vm: &Vm, taken: &Mutex<Taken>, access: impl FnOnce() -> T) -> T {
    let mut taken = taken.lock().unwrap();
    give_all(vm, &mut taken);
    access()
}

/// Frames of `lengths` one after the other go both ways, while the VM takes pages.
fn frames_are_whole(options: Options, mut lengths: impl Iterator<Item = usize>) {
    const NUM_ROUNDS: usize = 2000;
    let lab = Lab::with("venet-switch", &["vm", "b"]);
    lab.set("mtu", "65000").unwrap();
    let vm = Vm::new(options.buffer_bytes());
    let mut station = vm.open(&lab, "vm", options);
    let mut neighbour = lab.station("b", options);
    station.link_up().unwrap();
    let num_pages = (options.buffer_bytes() / PAGE_BYTES) as u64;
    let taken = Mutex::new(Taken::new());
    let is_done = AtomicBool::new(false);
    let mut num_received = 0;

    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut page = 0;
            while !is_done.load(Acquire) {
                let mut taken = taken.lock().unwrap();
                if vm.is_asked() {
                    vm.visit.sections().take_wishes();
                    give_all(&vm, &mut taken);
                    vm.say_served();
                }
                page = (page + 7) % num_pages;
                taken.entry(page).or_insert_with(|| vm.take(page));
                drop(taken);
                std::thread::yield_now();
            }
        });
        let mut rounds = || {
            for round in 0..NUM_ROUNDS {
                let mut one = broadcast(lengths.next().unwrap());
                // So that what was there before is not right as well.
                one[14..].iter_mut().for_each(|byte| *byte ^= round as u8);
                let num_sent = as_guest(&vm, &taken, || station.send(&[&one[..]; 2]));
                assert_eq!(num_sent.unwrap(), 2);
                send(&mut neighbour, &[&one[..]; 2]);
                settle(&mut station);
                let frames = as_guest(&vm, &taken, || drain(&mut station));
                num_received += frames.len() as u64;
                let sent = receive(&mut neighbour, 2);
                let all = frames.iter().chain(&sent);
                assert!(all.clone().all(|(bytes, _)| *bytes == one), "round {round}");
            }
        };
        let result = catch_unwind(AssertUnwindSafe(&mut rounds));
        // Whatever came of them, the other thread ends.
        is_done.store(true, Release);
        result.unwrap();
    });

    let counts = ["rx_packets", "rx_dropped", "rx_away", "tx_away"];
    let [packets, dropped, rx_away, tx_away] = counts.map(|name| lab.port_count("vm", name));
    println!("{packets} frames arrived, {dropped} were dropped, {tx_away} waited");
    assert_eq!(packets, num_received);
    assert_eq!(packets + dropped, 2 * NUM_ROUNDS as u64);
    assert_eq!(dropped, rx_away);
    assert!(packets > 0, "none arrived");
    assert_eq!(lab.port_count("vm", "tx_packets"), 2 * NUM_ROUNDS as u64);
}

#[test]
fn small_frames_are_whole_while_the_vm_takes_and_gives_pages() {
    frames_are_whole(pages(), (60..1500).cycle());
}

/// Each takes long enough for the VM to take a page of it meanwhile.
#[test]
fn large_frames_are_whole_while_the_vm_takes_and_gives_pages() {
    let options = Options {
        num_slots: 4,
        ..jumbo()
    };
    frames_are_whole(options, (64_000..65_000).cycle());
}
