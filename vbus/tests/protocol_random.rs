//! Random conversations: well-formed messages with random fields, in any order, and garbage. The
//! server goes on, and nothing is left of the client.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod protocol_lab;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proptest::prelude::*;
use protocol_lab::{Lab, memfd, num_fds_named, num_mappings_named};
use rustix::event::{EventfdFlags, eventfd};
use vbus::abi::wire::{Call, Header, MemAdd, Open, Pages, Shm, Texts, kind};
use vbus::residency::SECTIONS_BYTES;
use vbus::test_utils::{ECHO_VERSION, wait_until};
use vbus::verbs::Verbs;
use zerocopy::IntoBytes;

const NAME: &str = "random-memory";

/// What comes with a message.
#[derive(Debug, Clone, Copy)]
enum Fd {
    Memory,
    /// Large enough for what comes with `PAGES`.
    Sections,
    Unsealed,
    Eventfd,
}

#[derive(Debug, Clone)]
struct Message {
    kind: u16,
    body: Vec<u8>,
    fds: Vec<Fd>,
    /// Added to the length in the header, now and then.
    lie: u32,
}

/// Values that reach further than random ones.
fn field() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..4u64,
        2 => (0..8u64).prop_map(|page| page * 4096),
        1 => Just(u64::MAX - 4095),
        1 => any::<u64>(),
    ]
}

fn fds() -> impl Strategy<Value = Vec<Fd>> {
    let fd = prop_oneof![
        6 => Just(Fd::Memory),
        1 => Just(Fd::Sections),
        1 => Just(Fd::Unsealed),
        4 => Just(Fd::Eventfd),
    ];
    prop_oneof![
        2 => Just(vec![]),
        3 => Just(vec![Fd::Memory]),
        3 => Just(vec![Fd::Memory, Fd::Eventfd, Fd::Eventfd]),
        1 => Just(vec![Fd::Eventfd]),
        1 => proptest::collection::vec(fd, 0..5),
    ]
}

fn body() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let open = (field(), field()).prop_map(|(interface, version)| {
        let body = Open {
            interface: (interface as u32).into(),
            version: (version as u32).into(),
        };
        (kind::OPEN, body.as_bytes().to_vec())
    });
    let call = (
        field(),
        0..6u32,
        proptest::collection::vec(any::<u8>(), 0..100),
    )
        .prop_map(|(handle, func, data)| {
            let body = Call {
                handle: handle.into(),
                func: func.into(),
                ..Call::default()
            };
            (kind::CALL, [body.as_bytes(), &data].concat())
        });
    let memory = (field(), field(), field()).prop_map(|(base, len, offset)| {
        let body = MemAdd {
            base: base.into(),
            len: len.into(),
            offset: offset.into(),
        };
        (kind::MEM_ADD, body.as_bytes().to_vec())
    });
    let shm = (field(), field(), field(), field(), 0..3u32, 0..9u32).prop_map(
        |(handle, start, len, offset, id, flags)| {
            let body = Shm {
                handle: handle.into(),
                cookie: start.into(),
                start: start.into(),
                len: len.into(),
                id: id.into(),
                priority: (offset as u32).into(),
                signal_offset: (offset as u32).into(),
                flags: flags.into(),
            };
            (kind::SHM, body.as_bytes().to_vec())
        },
    );
    let one_field = (
        prop_oneof![Just(kind::CLOSE), Just(kind::MEM_DROP)],
        field(),
    )
        .prop_map(|(kind, value)| (kind, value.to_le_bytes().to_vec()));
    let pages = field().prop_map(|num_pages| {
        let body = Pages {
            num_pages: num_pages.into(),
        };
        (kind::PAGES, body.as_bytes().to_vec())
    });
    let path = prop_oneof![
        Just("sys/devices/echo0/greeting"),
        Just("config"),
        Just("sys/instances/bus0/devices/0/../../.."),
        "[a-z./\u{0}-\u{ff}]{0,30}".prop_map(|text| &*text.leak()),
    ];
    let tree = (kind::TREE_LIST..=kind::TREE_READLINK, path, "[a-z]{0,5}").prop_map(
        |(kind, path, text)| {
            let body = Texts {
                first_len: (path.len() as u32).into(),
                second_len: (text.len() as u32).into(),
            };
            let body = [body.as_bytes(), path.as_bytes(), text.as_bytes()].concat();
            (kind, body)
        },
    );
    let garbage = (any::<u16>(), proptest::collection::vec(any::<u8>(), 0..80));
    prop_oneof![
        4 => open, 6 => call, 4 => memory, 6 => shm, 3 => one_field, 2 => pages, 3 => tree,
        1 => garbage,
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let lie = prop_oneof![200 => Just(0u32), 1 => any::<u32>()];
    let is_right = prop::bool::weighted(0.8);
    (body(), fds(), lie, is_right).prop_map(|((kind, body), fds, lie, is_right)| {
        // Mostly none with what takes none, so that conversations last.
        let takes_fds = matches!(kind, kind::MEM_ADD | kind::SHM | kind::PAGES);
        let fds = if kind == kind::PAGES && is_right {
            vec![Fd::Memory, Fd::Sections, Fd::Eventfd, Fd::Eventfd]
        } else if takes_fds || lie % 2 == 1 {
            fds
        } else {
            vec![]
        };
        Message {
            kind,
            body,
            fds,
            lie,
        }
    })
}

fn open(fd: Fd) -> OwnedFd {
    match fd {
        Fd::Memory => memfd(NAME, 0x4000, true),
        Fd::Sections => memfd(NAME, SECTIONS_BYTES as u64, true),
        Fd::Unsealed => memfd(NAME, 0x4000, false),
        Fd::Eventfd => eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn random_messages_hurt_nobody(messages in proptest::collection::vec(message(), 1..40)) {
        let lab = Lab::new();
        let mut peer = lab.raw_member();
        for message in &messages {
            let fds: Vec<OwnedFd> = message.fds.iter().copied().map(open).collect();
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            let len = 16 + message.body.len() as u32;
            let header = Header {
                len: len.wrapping_add(message.lie).into(),
                kind: message.kind.into(),
                num_fds: (fds.len() as u16).into(),
                request: 1.into(),
            };
            if peer.socket.send(&header, &[&message.body], &fds, true).is_err() {
                break; // Cut off.
            }
        }
        // Whatever is answered, read it: this client is not to be cut off for being deaf.
        let _ = rustix::net::shutdown(&peer.socket, rustix::net::Shutdown::Write);
        peer.assert_cut_off();
        drop(peer);

        wait_until("it has left", || lab.server().stats().clients == 0);
        wait_until("nothing is left", || {
            (num_fds_named(NAME), num_mappings_named(NAME)) == (0, 0)
        });
        // The tree may have been changed by its requests, the server not.
        let bus = lab.join();
        for (id, _) in bus.devices().unwrap() {
            let handle = bus.open(id, ECHO_VERSION).unwrap();
            prop_assert_eq!(bus.call(handle, 0, &mut [1, 2, 3]), Ok(3));
        }
    }
}
