//! What a client does that breaks the rules, and what becomes of it: that client alone is cut off.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod protocol_lab;

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;

use protocol_lab::{DEADLINE, ECHO, Lab, RawPeer, memfd, num_fds_named, num_mappings_named};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use vbus::abi::wire::{
    Call, Close, Header, MAX_MESSAGE_BYTES, MAX_TEXT_BYTES, MemAdd, Open, Pages, Shm, kind,
    shm_flag,
};
use vbus::bus::Limits;
use vbus::client::{ClientError, Connection};
use vbus::memory::Region;
use vbus::residency::{PageMap, SECTIONS_BYTES, map_bytes};
use vbus::server::ServerLimits;
use vbus::test_utils::{ECHO_VERSION, func, shm_request, wait_until};
use vbus::verbs::{Handle, ShmRequest, Verbs};
use zerocopy::IntoBytes;

/// Another client is served as if nothing had happened.
fn assert_others_are_served(lab: &Lab) {
    let bus = lab.join();
    // It is free once the device has let go of the one that was cut off.
    let opened = Cell::new(Err(Errno::BUSY));
    wait_until("the interface is free", || {
        opened.set(bus.open(ECHO, ECHO_VERSION));
        opened.get() != Err(Errno::BUSY)
    });
    let echo = opened.get().unwrap();
    let mut data = *b"abc";
    assert_eq!(bus.call(echo, func::REVERSE, &mut data), Ok(3));
    assert_eq!(&data, b"cba");
}

fn assert_packet_cuts_off(bytes: &[u8]) {
    let lab = Lab::new();
    let mut peer = lab.raw_member();

    let _ = peer.send_bytes(bytes);

    peer.assert_cut_off();
    wait_until("it is counted", || lab.server().stats().cut_off == 1);
    assert_others_are_served(&lab);
}

fn header(len: u32, kind: u16, num_fds: u16) -> Header {
    Header {
        len: len.into(),
        kind: kind.into(),
        num_fds: num_fds.into(),
        request: 1.into(),
    }
}

#[test]
fn garbage_cuts_off() {
    assert_packet_cuts_off(&[0xa5; 777]);
}

#[test]
fn message_shorter_than_a_header_cuts_off() {
    assert_packet_cuts_off(&[16]);
}

#[test]
fn message_shorter_than_its_header_says_cuts_off() {
    assert_packet_cuts_off(header(24, kind::CLOSE, 0).as_bytes());
}

#[test]
fn message_longer_than_its_header_says_cuts_off() {
    let bytes = [header(16, kind::CLOSE, 0).as_bytes(), &[0; 8]].concat();
    assert_packet_cuts_off(&bytes);
}

#[test]
fn body_shorter_than_its_kind_cuts_off() {
    assert_packet_cuts_off(header(16, kind::CLOSE, 0).as_bytes());
}

#[test]
fn message_longer_than_the_limit_cuts_off() {
    assert_packet_cuts_off(&vec![0; MAX_MESSAGE_BYTES + 1]);
}

#[test]
fn unknown_kind_cuts_off() {
    assert_packet_cuts_off(header(16, 999, 0).as_bytes());
}

#[test]
fn event_from_a_client_cuts_off() {
    let bytes = [header(24, kind::EVENT_SIGNAL, 0).as_bytes(), &[0; 8]].concat();
    assert_packet_cuts_off(&bytes);
}

#[test]
fn request_before_the_greeting_cuts_off() {
    let lab = Lab::new();
    let mut peer = RawPeer::connect(&lab.path());

    assert!(peer.request(kind::JOIN, b"bus0", &[]).is_none());

    assert_others_are_served(&lab);
}

#[test]
fn second_greeting_cuts_off() {
    let lab = Lab::new();
    let mut peer = lab.raw_member();

    assert!(peer.greet(1, 1).is_none());
}

#[test]
fn version_that_is_not_spoken_is_refused() {
    let lab = Lab::new();
    let mut peer = RawPeer::connect(&lab.path());

    let answer = peer.greet(2, 9).unwrap();

    assert_eq!(answer.errno, Errno::PROTONOSUPPORT.raw_os_error());
    peer.assert_cut_off();
}

#[test]
fn client_that_speaks_newer_versions_too_is_welcome() {
    let lab = Lab::new();
    let mut peer = RawPeer::connect(&lab.path());

    assert_eq!(peer.greet(0, 9).unwrap().errno, 0);
}

/// Sends `num_fds` descriptors with a message that takes `announced`.
fn send_fds(name: &str, kind: u16, body: &[u8], announced: u16, num_fds: usize) {
    let lab = Lab::new();
    let mut peer = lab.raw_member();
    let fds: Vec<OwnedFd> = (0..num_fds).map(|_| memfd(name, 4096, true)).collect();
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let len = u32::try_from(16 + body.len()).unwrap();

    let head = header(len, kind, announced);
    let parts = [
        std::io::IoSlice::new(head.as_bytes()),
        std::io::IoSlice::new(body),
    ];
    let mut space = vec![std::mem::MaybeUninit::uninit(); 4096];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&borrowed)));
    let flags = rustix::net::SendFlags::empty();
    rustix::net::sendmsg(&peer.socket, &parts, &mut control, flags).unwrap();

    peer.assert_cut_off();
    drop(fds);
    wait_until("no descriptor is left", || num_fds_named(name) == 0);
    assert_others_are_served(&lab);
}

const MEM_ADD_BYTES: [u8; 24] = [0; 24];

#[test]
fn descriptors_with_a_message_that_takes_none_cut_off() {
    send_fds("fds-none", kind::CLOSE, &[0; 8], 0, 2);
}

#[test]
fn announced_descriptors_with_a_message_that_takes_none_cut_off() {
    send_fds("fds-announced", kind::CLOSE, &[0; 8], 2, 2);
}

#[test]
fn one_descriptor_too_many_cuts_off() {
    send_fds("fds-two", kind::MEM_ADD, &MEM_ADD_BYTES, 2, 2);
}

#[test]
fn more_descriptors_than_any_message_has_cut_off() {
    send_fds("fds-four", kind::MEM_ADD, &MEM_ADD_BYTES, 4, 4);
    send_fds("fds-five", kind::MEM_ADD, &MEM_ADD_BYTES, 5, 5);
}

#[test]
fn as_many_descriptors_as_the_kernel_takes_cut_off() {
    send_fds("fds-253", kind::MEM_ADD, &MEM_ADD_BYTES, 1, 253);
}

#[test]
fn missing_descriptor_cuts_off() {
    let bytes = [header(40, kind::MEM_ADD, 0).as_bytes(), &MEM_ADD_BYTES].concat();
    assert_packet_cuts_off(&bytes);
}

fn mem_add(base: u64, len: u64, offset: u64) -> MemAdd {
    MemAdd {
        base: base.into(),
        len: len.into(),
        offset: offset.into(),
    }
}

/// Registers a page of a file that cannot be mapped without danger.
fn add_bad_memory(fd: OwnedFd) {
    let lab = Lab::new();
    let mut peer = lab.raw_member();
    let body = mem_add(0, 4096, 0);

    let answer = peer.request(kind::MEM_ADD, body.as_bytes(), &[fd.as_fd()]);

    assert_eq!(answer.unwrap().errno, Errno::INVAL.raw_os_error());
    peer.assert_cut_off();
    assert_others_are_served(&lab);
}

#[test]
fn memory_that_is_not_sealed_cuts_off() {
    add_bad_memory(memfd("bad-unsealed", 4096, false));
}

#[test]
fn memory_that_is_too_short_cuts_off() {
    add_bad_memory(memfd("bad-short", 4095, true));
}

#[test]
fn file_that_is_no_memfd_cuts_off() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    add_bad_memory(file.into());
}

#[test]
fn eventfd_for_memory_cuts_off() {
    add_bad_memory(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
}

#[test]
fn memory_of_huge_pages_cuts_off() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
    let fd = match memfd_create("bad-huge", flags) {
        Ok(fd) => fd,
        Err(error) => {
            println!("SKIPPED: no memory of huge pages on this host: {error}");
            return;
        }
    };
    ftruncate(&fd, 2 << 20).unwrap();
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    add_bad_memory(fd);
}

#[test]
fn memory_that_overlaps_is_refused() {
    let lab = Lab::new();
    let mut peer = lab.raw_member();
    let fd = memfd("overlap", 0x10_0000, true);
    let mut add = |base, len, offset| {
        let body = mem_add(base, len, offset);
        let answer = peer.request(kind::MEM_ADD, body.as_bytes(), &[fd.as_fd()]);
        answer.unwrap().errno
    };
    let ok = 0;
    let exists = Errno::EXIST.raw_os_error();
    let invalid = Errno::INVAL.raw_os_error();

    assert_eq!(add(0x10_000, 0x4000, 0), ok);
    assert_eq!(add(0x10_000, 0x1000, 0), exists);
    assert_eq!(add(0x13_000, 0x1000, 0), exists);
    assert_eq!(add(0xf000, 0x2000, 0), exists);
    assert_eq!(add(0, 0x10_0000, 0), exists);
    assert_eq!(add(0x14_000, 0x1000, 0xff000), ok);
    assert_eq!(add(0xf000, 0x1000, 0), ok);
    assert_eq!(add(0x800, 0x1000, 0), invalid);
    assert_eq!(add(0x20_000, 0x800, 0), invalid);
    assert_eq!(add(0x20_000, 0x1000, 8), invalid);
    assert_eq!(add(0x20_000, 0, 0), invalid);
    assert_eq!(add(u64::MAX - 0xfff, 0x1000, 0), invalid);
}

#[test]
fn memory_is_unmapped_when_its_client_leaves() {
    let name = "unmap-me";
    let lab = Lab::new();
    let mut peer = lab.raw_member();
    let fd = memfd(name, 4096, true);
    let answer = peer.request(kind::MEM_ADD, mem_add(0, 4096, 0).as_bytes(), &[fd.as_fd()]);
    assert_eq!(answer.unwrap().errno, 0);
    drop(fd);
    assert_eq!((num_fds_named(name), num_mappings_named(name)), (1, 1));

    drop(peer);

    wait_until("it is gone", || {
        (num_fds_named(name), num_mappings_named(name)) == (0, 0)
    });
}

fn shm(handle: u64, flags: u32) -> Shm {
    Shm {
        handle: handle.into(),
        cookie: 77.into(),
        len: 4096.into(),
        flags: flags.into(),
        ..Shm::default()
    }
}

/// Shares memory with something else than an eventfd as its doorbell.
fn share_bad_doorbell(doorbell: OwnedFd) {
    let lab = Lab::new();
    let mut peer = lab.raw_member();
    let handle = peer.open_echo();
    let memory = memfd("doorbell", 4096, true);
    let body = shm(handle, shm_flag::MEMFD | shm_flag::DOORBELL);

    let fds = [memory.as_fd(), doorbell.as_fd()];
    let answer = peer.request(kind::SHM, body.as_bytes(), &fds);

    assert_eq!(answer.unwrap().errno, Errno::INVAL.raw_os_error());
    peer.assert_cut_off();
}

#[test]
fn doorbell_that_is_a_file_cuts_off() {
    share_bad_doorbell(tempfile::tempfile().unwrap().into());
}

#[test]
fn doorbell_that_is_a_semaphore_cuts_off() {
    // One ring of it would keep it readable for 2^64 - 2 reads.
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE;
    share_bad_doorbell(eventfd(0, flags).unwrap());
}

/// What a `PAGES` comes with is for so many.
const NUM_PAGES: u64 = 600;

fn new_eventfd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

/// What comes with a `PAGES`: a map and sections with a name, and two eventfds.
fn fds_for_pages(name: &str) -> [OwnedFd; 4] {
    let bytes = map_bytes(NUM_PAGES).unwrap() as u64;
    [
        memfd(name, bytes, true),
        memfd(name, SECTIONS_BYTES as u64, true),
        new_eventfd(),
        new_eventfd(),
    ]
}

/// The answer to a `PAGES`.
fn add_pages(peer: &mut RawPeer, num_pages: u64, fds: &[OwnedFd; 4]) -> i32 {
    let body = Pages {
        num_pages: num_pages.into(),
    };
    let fds = fds.each_ref().map(AsFd::as_fd);
    let answer = peer.request(kind::PAGES, body.as_bytes(), &fds);
    answer.unwrap().errno
}

#[test]
fn pages_are_said_once_and_let_go_of_when_their_client_leaves() {
    let name = "pages-once";
    let lab = Lab::new();
    let mut peer = lab.raw_member();
    let fds = fds_for_pages(name);

    assert_eq!(add_pages(&mut peer, NUM_PAGES, &fds), 0);
    let again = add_pages(&mut peer, NUM_PAGES, &fds);

    assert_eq!(again, Errno::EXIST.raw_os_error());
    drop(fds);
    assert_eq!((num_fds_named(name), num_mappings_named(name)), (2, 2));
    peer.open_echo();
    drop(peer);
    wait_until("it is gone", || {
        (num_fds_named(name), num_mappings_named(name)) == (0, 0)
    });
}

#[test]
fn map_that_can_only_be_read_is_a_map_and_no_sections() {
    let lab = Lab::new();
    let mut peer = lab.raw_member();
    // Large enough for sections.
    let num_pages = 2 * SECTIONS_BYTES as u64;
    let map = PageMap::new(num_pages as usize).unwrap();
    let map = || map.as_fd().try_clone_to_owned().unwrap();
    let [_, sections, asked, served] = fds_for_pages("pages-read");

    let fds = [map(), map(), asked, served];
    let refused = add_pages(&mut peer, num_pages, &fds);
    assert_eq!(refused, Errno::NOMEM.raw_os_error());
    let [map, _, asked, served] = fds;
    let fds = [map, sections, asked, served];
    assert_eq!(add_pages(&mut peer, num_pages, &fds), 0);
}

#[test]
fn numbers_of_pages_that_cannot_be_are_refused() {
    let lab = Lab::new();
    let mut peer = lab.raw_member();
    let fds = fds_for_pages("pages-number");
    let mut add = |num_pages| add_pages(&mut peer, num_pages, &fds);

    assert_eq!(add(0), Errno::INVAL.raw_os_error());
    for num_pages in [1 << 50, u64::MAX / 8, u64::MAX - 1, u64::MAX] {
        assert_eq!(
            add(num_pages),
            Errno::DQUOT.raw_os_error(),
            "{num_pages:#x}"
        );
    }
    assert_eq!(add(1), 0);
}

/// Says which pages are there with one descriptor that is none for that.
fn add_bad_pages(nth: usize, bad: OwnedFd) {
    let name = "pages-bad";
    let lab = Lab::new();
    let mut peer = lab.raw_member();
    let mut fds = fds_for_pages(name);
    fds[nth] = bad;

    let answer = add_pages(&mut peer, NUM_PAGES, &fds);

    assert_eq!(answer, Errno::INVAL.raw_os_error(), "descriptor {nth}");
    peer.assert_cut_off();
    wait_until("it is counted", || lab.server().stats().cut_off == 1);
    assert_others_are_served(&lab);
}

#[test]
fn map_of_pages_or_sections_that_could_not_be_read_cut_off() {
    let lengths = [map_bytes(NUM_PAGES).unwrap(), SECTIONS_BYTES];
    for (nth, len) in lengths.into_iter().enumerate() {
        let len = len as u64;
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        add_bad_pages(nth, file.into());
        add_bad_pages(nth, memfd("pages-short", len - 1, true));
        add_bad_pages(nth, memfd("pages-unsealed", len, false));
        add_bad_pages(nth, new_eventfd());
        add_bad_pages(nth, std::io::pipe().unwrap().0.into());
    }
}

#[test]
fn wishes_by_way_of_something_else_than_eventfds_cut_off() {
    for nth in [2, 3] {
        let (read_end, write_end) = std::io::pipe().unwrap();
        add_bad_pages(nth, read_end.into());
        add_bad_pages(nth, write_end.into());
        add_bad_pages(nth, tempfile::tempfile().unwrap().into());
        add_bad_pages(nth, memfd("pages-eventfd", 4096, true));
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE;
        add_bad_pages(nth, eventfd(0, flags).unwrap());
    }
}

#[test]
fn pages_with_too_few_or_too_many_descriptors_cut_off() {
    for num_fds in [1, 3, 5] {
        send_fds("pages-fds", kind::PAGES, &[0; 8], num_fds, num_fds.into());
    }
    let bytes = [header(24, kind::PAGES, 0).as_bytes(), &[0; 8]].concat();
    assert_packet_cuts_off(&bytes);
    let bytes = [header(20, kind::PAGES, 0).as_bytes(), &[0; 4]].concat();
    assert_packet_cuts_off(&bytes);
}

#[test]
fn map_of_pages_counts_as_shared_memory() {
    let lab = Lab::new();
    let bytes = (map_bytes(NUM_PAGES).unwrap() + SECTIONS_BYTES) as u64;
    let limit = |shared_bytes| {
        lab.host.set_limits(Limits {
            shared_bytes,
            ..Limits::default()
        });
    };
    let add = |peer: &mut RawPeer| add_pages(peer, NUM_PAGES, &fds_for_pages("pages-limit"));
    limit(bytes - 1);
    let mut peer = lab.raw_member();
    assert_eq!(add(&mut peer), Errno::DQUOT.raw_os_error());
    drop(peer);
    wait_until("it has left", || lab.server().stats().clients == 0);

    limit(bytes);

    assert_eq!(add(&mut lab.raw_member()), 0);
}

#[test]
fn memory_at_an_address_that_was_not_registered_is_refused() {
    let lab = Lab::new();
    let mut peer = lab.raw_member();
    let handle = peer.open_echo();

    let answer = peer.request(kind::SHM, shm(handle, 0).as_bytes(), &[]);

    assert_eq!(answer.unwrap().errno, Errno::INVAL.raw_os_error());
}

#[test]
fn full_blocking_wake_up_does_not_stop_the_device() {
    let lab = Lab::new();
    let mut peer = lab.raw_member();
    let handle = peer.open_echo();
    let (region, memory) = Region::new_shared(4096).unwrap();
    let doorbell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    // Without O_NONBLOCK, and so full that a write of 1 would wait.
    let wake_up = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&wake_up, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let all = shm_flag::MEMFD | shm_flag::DOORBELL | shm_flag::WAKE_UP;
    let mut body = shm(handle, all);
    body.signal_offset = 256.into();
    let fds = [memory.as_fd(), doorbell.as_fd(), wake_up.as_fd()];
    assert_eq!(
        peer.request(kind::SHM, body.as_bytes(), &fds)
            .unwrap()
            .errno,
        0
    );
    // The north asks to be woken, and never says that it was.
    region.write(256 + 64, &1u64.to_le_bytes()).unwrap();

    let call = Call {
        handle: handle.into(),
        func: func::POKE.into(),
        ..Call::default()
    };
    let poke = [call.as_bytes(), b"x"].concat();
    let answer = peer.request(kind::CALL, &poke, &[]).unwrap();

    // It was woken, by a post on top of the full count, and nobody waited.
    assert_eq!((answer.errno, answer.value), (0, 1));
    let mut count = [0; 8];
    rustix::io::read(&wake_up, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), u64::MAX);
}

#[test]
fn client_that_takes_doorbells_away_does_not_stop_the_device() {
    let lab = Lab::new();
    let bus = lab.join();
    let ring = bus.open(protocol_lab::RING, 1).unwrap();
    let (region, _) = Region::new_shared(4096).unwrap();
    vbus::ring::Geometry::new(8)
        .unwrap()
        .format(&region)
        .unwrap();
    // Blocking: a read of the device would wait as soon as the client was faster.
    let doorbell = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    let signal = vbus::verbs::SignalRequest {
        offset: 128,
        doorbell: doorbell.try_clone().unwrap(),
        wake_up: Arc::new(vmm_sys_util::eventfd::EventFd::new(0).unwrap()),
    };
    let request = ShmRequest {
        id: 0,
        priority: 0,
        cookie: 1,
        region,
        signal: Some(signal),
    };
    bus.shm(ring, request).unwrap();
    let stop = AtomicBool::new(false);

    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                doorbell.write(1).unwrap();
                vbus::eventfd::drain(&doorbell);
            }
        });
        for _ in 0..200 {
            assert_eq!(bus.call(ring, 0, &mut [1, 2]), Ok(2));
        }
        stop.store(true, Relaxed);
    });

    // Waits for the device's thread to end: it would not, if it slept in a read.
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || done.send(bus.close(ring)));
    assert_eq!(is_done.recv_timeout(DEADLINE), Ok(Ok(())));
}

#[test]
fn client_that_sends_and_never_reads_is_cut_off() {
    let lab = Lab::new();
    let mut peer = lab.raw_member();
    let handle = peer.open_echo();
    let call = Call {
        handle: handle.into(),
        func: func::REVERSE.into(),
        ..Call::default()
    };
    let body = [call.as_bytes(), &[0; 60_000]].concat();

    for _ in 0..100 {
        peer.send(kind::CALL, &body, &[]);
    }

    wait_until("it is cut off", || lab.server().stats().cut_off == 1);
    assert_others_are_served(&lab);
}

#[test]
fn client_that_never_reads_events_is_cut_off_and_others_get_theirs() {
    let lab = Lab::new();
    let _deaf = lab.raw_member();
    let bus = lab.join();
    let mut num_events = 0;
    let mut num_changes = 0;

    while lab.server().stats().cut_off == 0 {
        assert!(num_changes < 20_000, "the deaf client is never cut off");
        lab.host.unlink("bus0", "ring0").unwrap();
        lab.host.link("bus0", "ring0", "ring0").unwrap();
        num_changes += 2;
        while bus.try_next_event().unwrap().is_some() {
            num_events += 1;
        }
    }

    while bus
        .next_event(std::time::Duration::from_millis(200))
        .unwrap()
        .is_some()
    {
        num_events += 1;
    }
    assert_eq!(num_events, num_changes + 2); // And the two that were replayed.
    assert_others_are_served(&lab);
}

#[test]
fn limits_of_a_member_are_kept() {
    let lab = Lab::new();
    lab.host.set_limits(Limits {
        clients: 2,
        connections: 1,
        shms: 1,
        shared_bytes: 0x3000,
    });
    let bus = lab.join();
    let echo = bus.open(ECHO, ECHO_VERSION).unwrap();
    let page = |id, cookie| {
        let mut request = shm_request(id, cookie);
        request.region = Region::new_shared(4096).unwrap().0;
        request
    };

    assert_eq!(bus.open(protocol_lab::RING, 1), Err(Errno::DQUOT));
    assert_eq!(bus.shm(echo, page(0, 1)), Ok(()));
    assert_eq!(bus.shm(echo, page(1, 2)), Err(Errno::DQUOT));
    assert!(bus.add_memory(0, 0x1000).is_ok());
    assert_eq!(bus.add_memory(0x8000, 0x2000).unwrap_err(), Errno::DQUOT);
    assert!(bus.add_memory(0x8000, 0x1000).is_ok());

    let _second = lab.join();
    let third = Connection::connect(&lab.path()).unwrap().join("bus0");
    let source = match third {
        Err(ClientError::Join { source, .. }) => source,
        other => panic!("{other:?}"),
    };
    assert_eq!(source, Errno::DQUOT);
}

#[test]
fn memory_that_was_dropped_but_is_in_use_still_counts() {
    let lab = Lab::new();
    lab.host.set_limits(Limits {
        shared_bytes: 0x4000,
        ..Limits::default()
    });
    let bus = lab.join();
    let echo = bus.open(ECHO, ECHO_VERSION).unwrap();
    let memory = bus.add_memory(0, 0x2000).unwrap();
    let mut request = shm_request(0, 1);
    request.region = memory.subregion(0, 4096).unwrap();
    bus.shm(echo, request).unwrap();

    bus.drop_memory(0).unwrap();

    assert_eq!(bus.add_memory(0, 0x2000).unwrap_err(), Errno::DQUOT);
    bus.close(echo).unwrap();
    assert!(bus.add_memory(0, 0x2000).is_ok());
}

#[test]
fn ranges_of_memory_are_limited() {
    let lab = Lab::new();
    let bus = lab.join();
    for idx in 0..256 {
        bus.add_memory(idx * 0x1000, 0x1000).unwrap();
    }

    let error = bus.add_memory(0x1000_0000, 0x1000).unwrap_err();

    assert_eq!(error, Errno::DQUOT);
}

#[test]
fn too_many_clients_are_turned_away() {
    let lab = Lab::with(ServerLimits {
        clients: 8,
        clients_per_uid: 2,
    });
    let first = lab.join();
    let _second = lab.join();

    let error = Connection::connect(&lab.path()).unwrap_err();

    let ClientError::Greet { source } = error else {
        panic!("{error}")
    };
    assert_eq!(source, Errno::DQUOT);
    assert_eq!(lab.server().stats().refused, 1);
    drop(first);
    wait_until("it has left", || lab.server().stats().clients == 1);
    assert!(Connection::connect(&lab.path()).is_ok());
}

#[test]
fn foreign_handles_mean_nothing() {
    let lab = Lab::new();
    let owner = lab.join();
    let echo = owner.open(ECHO, ECHO_VERSION).unwrap();
    let other = lab.join();

    for handle in [echo, Handle(0), Handle(u64::MAX)] {
        assert_eq!(
            other.call(handle, func::REVERSE, &mut []),
            Err(Errno::NOENT)
        );
        assert_eq!(other.close(handle), Err(Errno::NOENT));
    }
    assert_eq!(owner.call(echo, func::REVERSE, &mut []), Ok(0));
}

#[test]
fn second_bus_for_the_same_process_is_refused() {
    let lab = Lab::new();
    let _first = lab.join();

    let second = Connection::connect(&lab.path()).unwrap().join("bus1");

    let Err(ClientError::Join { source, .. }) = second else {
        panic!("a member of two buses")
    };
    assert_eq!(source, Errno::BUSY);
}

#[test]
fn second_join_of_a_connection_is_refused() {
    let lab = Lab::new();
    let mut peer = lab.raw_member();

    let answer = peer.request(kind::JOIN, b"bus0", &[]).unwrap();

    assert_eq!(answer.errno, Errno::BUSY.raw_os_error());
}

#[test]
fn verbs_need_a_bus() {
    let lab = Lab::new();
    let mut peer = RawPeer::connect(&lab.path());
    peer.hello();
    let not_joined = Errno::NOTCONN.raw_os_error();
    let page = memfd("no-bus", 4096, true);
    let page = [page.as_fd()];
    let mem_add = mem_add(0, 4096, 0);
    let share = shm(1, shm_flag::MEMFD);
    let for_pages = fds_for_pages("no-bus");
    let for_pages = for_pages.each_ref().map(AsFd::as_fd);
    let requests: [(u16, &[u8], &[BorrowedFd<'_>]); 8] = [
        (kind::REPORT, b"state running", &[]),
        (kind::OPEN, &[0; size_of::<Open>()], &[]),
        (kind::CALL, &[0; size_of::<Call>()], &[]),
        (kind::CLOSE, &[0; size_of::<Close>()], &[]),
        (kind::MEM_DROP, &[0; 8], &[]),
        (kind::MEM_ADD, mem_add.as_bytes(), &page),
        (kind::SHM, share.as_bytes(), &page),
        (kind::PAGES, &NUM_PAGES.to_le_bytes(), &for_pages),
    ];
    for (kind, body, fds) in requests {
        let answer = peer.request(kind, body, fds).unwrap();
        assert_eq!(answer.errno, not_joined, "kind {kind}");
    }
    let answer = peer.request(kind::JOIN, b"nowhere", &[]).unwrap();
    assert_eq!(answer.errno, Errno::NOENT.raw_os_error());
}

#[test]
fn report_that_cannot_be_shown_is_refused_and_one_that_is_no_text_cuts_off() {
    let lab = Lab::new();
    let mut peer = RawPeer::connect(&lab.path());
    peer.hello();
    peer.request(kind::JOIN, b"bus0", &[]).unwrap();
    let mut report = |text: &[u8]| {
        peer.request(kind::REPORT, text, &[])
            .map(|answer| answer.errno)
    };
    let invalid = Errno::INVAL.raw_os_error();
    let vms = || lab.host.tree().list("sys/vms").unwrap().len();

    assert_eq!(report(b"../../version 1").unwrap(), invalid);
    assert_eq!(report(b"state").unwrap(), invalid);
    assert_eq!(vms(), 0);
    assert_eq!(report(b"state running\nexits/io 1").unwrap(), 0);
    assert_eq!(vms(), 1);
    for n in 0..100 {
        let wanted = if n < 61 {
            0
        } else {
            Errno::DQUOT.raw_os_error()
        };
        let text = format!("n{n} 1");
        assert_eq!(report(text.as_bytes()).unwrap(), wanted, "{n}");
    }
    assert_packet_cuts_off(&[header(18, kind::REPORT, 0).as_bytes(), b"\xff\xfe"].concat());
    let long = vec![b'x'; MAX_TEXT_BYTES + 1];
    let len = u32::try_from(16 + long.len()).unwrap();
    assert_packet_cuts_off(&[header(len, kind::REPORT, 0).as_bytes(), &long].concat());
}
