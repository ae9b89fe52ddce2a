use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use zerocopy::IntoBytes;

use super::*;
use crate::abi::wire::{Hello, MAGIC, MAX_MESSAGE_BYTES, MemAdd, Shm, kind, shm_flag};
use crate::verbs::{Handle, MAX_CALL_BYTES};

fn pair() -> (Socket, Socket) {
    let kind = SocketType::SEQPACKET;
    let (a, b) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    (a.into(), b.into())
}

fn eventfd() -> OwnedFd {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()
}

#[test]
fn message_comes_whole_with_its_descriptor() {
    let (a, b) = pair();
    let fd = eventfd();
    let body = MemAdd {
        base: 4096.into(),
        len: 8192.into(),
        offset: 0.into(),
    };
    let header = frame(kind::MEM_ADD, 7, size_of::<MemAdd>(), 1).unwrap();

    a.send(&header, &[body.as_bytes()], &[fd.as_fd()], true)
        .unwrap();

    let mut packet = Packet::default();
    assert!(b.receive(&mut packet, true).unwrap());
    assert_eq!((packet.kind(), packet.request()), (kind::MEM_ADD, 7));
    let request = Request::read(packet.kind(), packet.body(), &packet.fds).unwrap();
    let (base, len, offset) = (4096, 8192, 0);
    assert_eq!(request, Request::MemAdd { base, len, offset });
}

#[test]
fn largest_call_fits_into_a_message() {
    let (a, b) = pair();
    let data = vec![7; MAX_CALL_BYTES];
    let call = [0; 16];
    let header = frame(kind::CALL, 1, call.len() + data.len(), 0).unwrap();

    a.send(&header, &[&call, &data], &[], false).unwrap();

    let mut packet = Packet::default();
    assert!(b.receive(&mut packet, false).unwrap());
    assert_eq!(packet.body().len(), 16 + MAX_CALL_BYTES);
}

#[test]
fn nothing_to_receive_is_no_error() {
    let (_a, b) = pair();

    assert!(!b.receive(&mut Packet::default(), false).unwrap());
}

#[test]
fn message_that_was_cut_is_refused() {
    let (a, b) = pair();
    let bytes = vec![0; MAX_MESSAGE_BYTES + 1];
    rustix::net::send(&a, &bytes, rustix::net::SendFlags::empty()).unwrap();

    let error = b.receive(&mut Packet::default(), false).unwrap_err();

    assert!(matches!(error, WireError::TooLong), "{error}");
}

#[test]
fn descriptors_that_the_header_does_not_announce_are_refused() {
    let (a, b) = pair();
    let fd = eventfd();
    let header = frame(kind::CLOSE, 1, 8, 0).unwrap();
    a.send(&header, &[&[0; 8]], &[fd.as_fd()], true).unwrap();
    let mut packet = Packet::default();

    let error = b.receive(&mut packet, false).unwrap_err();

    let expected = matches!(
        error,
        WireError::BadFds {
            num_fds: 1,
            wanted: 0,
            ..
        }
    );
    assert!(expected, "{error}");
    assert!(packet.fds.is_empty());
}

#[test]
fn closed_socket_is_told() {
    let (a, b) = pair();
    drop(a);

    let error = b.receive(&mut Packet::default(), true).unwrap_err();

    assert!(matches!(error, WireError::Closed), "{error}");
}

#[test]
fn body_of_another_length_is_refused() {
    for len in [0, 1, 23, 25] {
        let body = vec![0; len];
        assert!(Request::read(kind::MEM_ADD, &body, &[eventfd()]).is_err());
    }
}

#[test]
fn flags_of_shm_say_how_many_descriptors_there_are() {
    let shm = |flags: u32| Shm {
        handle: 3.into(),
        flags: flags.into(),
        ..Shm::default()
    };
    let all = shm_flag::MEMFD | shm_flag::DOORBELL | shm_flag::WAKE_UP;
    let fds = [eventfd(), eventfd(), eventfd()];

    let body = shm(all);
    let request = Request::read(kind::SHM, body.as_bytes(), &fds).unwrap();

    assert!(matches!(
        request,
        Request::Shm(ShmBody {
            handle: Handle(3),
            ..
        })
    ));
    for (flags, num_fds) in [(all, 2), (0, 1), (8, 0), (shm_flag::WAKE_UP, 1)] {
        let body = shm(flags);
        assert!(Request::read(kind::SHM, body.as_bytes(), &fds[..num_fds]).is_err());
    }
}

#[test]
fn hello_of_somebody_else_is_refused() {
    let hello = Hello {
        magic: (MAGIC + 1).into(),
        ..Hello::default()
    };

    let error = Request::read(kind::HELLO, hello.as_bytes(), &[]).unwrap_err();

    assert!(
        matches!(error, WireError::BadField { field: "magic", .. }),
        "{error}"
    );
}

#[test]
fn texts_fill_the_body() {
    let head = texts("a/b", "value").unwrap();
    let body = [head.as_bytes(), b"a/b", b"value"].concat();

    assert_eq!(
        split_texts(kind::TREE_WRITE, &body).unwrap(),
        ("a/b", "value")
    );
    assert!(split_texts(kind::TREE_WRITE, &body[..12]).is_err());
    assert!(split_texts(kind::TREE_WRITE, &[&body[..], b"x"].concat()).is_err());
    assert!(Request::read(kind::TREE_READ, &body, &[]).is_err());
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    let head = texts("ab", "").unwrap();
    let body = [head.as_bytes(), &[0xff, 0xfe]].concat();

    assert!(split_texts(kind::TREE_STAT, &body).is_err());
}

proptest::proptest! {
    #[test]
    fn no_body_makes_the_reader_panic(kind: u16, body: Vec<u8>) {
        let _ = Request::read(kind % 32, &body, &[]);
    }
}
