//! The stream to passt, with ourselves at the other end; and a real passt where there is one.

use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::super::backend::Backend;
use super::super::queue::{Chain, Segment};
use super::*;
use crate::GuestRam;
use crate::iovec::GuestIoVecs;

struct Setup {
    ram: GuestRam,
    passt: UnixStream,
    port: PasstPort,
    window: RxWindow,
}

/// A window of one buffer with room for a frame of 88 bytes.
fn setup() -> Setup {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x4_0000)]).unwrap();
    let (passt, ours) = UnixStream::pair().unwrap();
    passt
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut window = RxWindow::new(ram.clone());
    let segment = Segment {
        gpa: GuestAddress(0x1000),
        len: 100,
        is_writable: true,
    };
    let chain = Chain {
        head: 0,
        len_bytes: 100,
    };
    window.push(chain, &[segment]).unwrap();
    Setup {
        ram,
        passt,
        port: PasstPort::new(ours),
        window,
    }
}

impl Setup {
    /// Sends the `len_bytes` (header included) at 0x2000.
    fn send(&mut self, len_bytes: u32) -> Sent {
        let segments = [Segment {
            gpa: GuestAddress(0x2000),
            len: len_bytes,
            is_writable: false,
        }];
        let mut frame = TxFrame {
            ram: &self.ram,
            segments: &segments,
            len_bytes,
            iovecs: &mut GuestIoVecs::new(self.ram.clone()),
        };
        self.port.send(&mut frame).unwrap()
    }

    fn receive(&mut self) -> Received {
        self.port.receive(&mut self.window).unwrap()
    }
}

fn message(payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes().to_vec();
    bytes.extend(payload);
    bytes
}

#[test]
fn frame_is_sent_behind_its_length_and_without_virtio_header() {
    let mut s = setup();
    s.ram.write_slice(&[6; 60], GuestAddress(0x200c)).unwrap();

    assert!(matches!(s.send(72), Sent::Done));
    assert!(s.port.flush().unwrap());

    let mut bytes = [0; 64];
    s.passt.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes[..5], [0, 0, 0, 60, 6]);
}

#[test]
fn frame_that_passt_would_choke_on_is_refused() {
    let mut s = setup();

    assert!(matches!(s.send(12 + 13), Sent::Refused(_)));
    assert!(matches!(s.send(12 + 65_536), Sent::Refused(_)));
}

#[test]
fn slow_passt_fills_the_buffer_and_nothing_is_lost() {
    let mut s = setup();
    let mut num_sent = 0_usize;
    while matches!(s.send(12 + 10_000), Sent::Done) {
        num_sent += 1;
        assert!(num_sent < 10_000, "the buffers are finite");
    }
    assert!(!s.port.flush().unwrap());

    let mut num_read = 0;
    let mut bytes = vec![0; 1 << 20];
    while num_read < num_sent * 10_004 {
        num_read += s.passt.read(&mut bytes).unwrap();
        s.port.flush().unwrap();
    }

    assert_eq!(num_read, num_sent * 10_004);
    assert!(s.port.flush().unwrap());
}

#[test]
fn frames_arrive_whole_although_the_stream_is_cut_anywhere() {
    let mut s = setup();
    let bytes = [message(&[1; 20]), message(&[2; 30])].concat();
    s.passt.write_all(&bytes[..2]).unwrap();
    assert!(matches!(s.receive(), Received::Empty));
    s.passt.write_all(&bytes[2..27]).unwrap();
    assert!(matches!(s.receive(), Received::Frame(32)));
    assert!(matches!(s.receive(), Received::Empty));

    s.passt.write_all(&bytes[27..]).unwrap();

    assert!(matches!(s.receive(), Received::Frame(42)));
    let mut frame = [0; 42];
    s.ram.read_slice(&mut frame, GuestAddress(0x1000)).unwrap();
    assert_eq!(frame[..12], [0; 12]);
    assert_eq!(frame[12..], [2; 30]);
}

#[test]
fn frame_that_does_not_fit_is_skipped() {
    let mut s = setup();
    let bytes = [message(&[1; 89]), message(&[2; 88])].concat();
    s.passt.write_all(&bytes).unwrap();

    assert!(matches!(s.receive(), Received::TooLarge));
    assert!(matches!(s.receive(), Received::Frame(100)));
}

#[test]
fn impossible_length_ends_the_connection() {
    let mut s = setup();
    s.passt.write_all(&[0xff; 8]).unwrap();

    assert!(matches!(s.receive(), Received::Gone(_)));
}

#[test]
fn end_of_passt_is_noticed() {
    let mut s = setup();
    s.passt = UnixStream::pair().unwrap().0;

    assert!(matches!(s.receive(), Received::Gone(_)));
}

#[test]
fn missing_program_is_reported_as_not_installed() {
    let error = Passt::spawn_program(OsStr::new("/nonexistent/passt")).unwrap_err();

    assert!(matches!(error, PasstError::NotInstalled), "{error}");
}

#[test]
fn program_that_ends_is_reported_with_its_last_words() {
    let mut passt = Passt::spawn_program(OsStr::new("ls")).unwrap();
    let end = std::time::Instant::now() + Duration::from_secs(10);
    let error = loop {
        if let Err(error) = passt.check() {
            break error;
        }
        assert!(std::time::Instant::now() < end, "ls knows no --foreground");
        std::thread::yield_now();
    };

    let PasstError::Ended { message, .. } = error else {
        panic!("{error}");
    };
    assert!(message.contains("--foreground"), "{message}");
}

/// Asks passt, which answers for every address, who has one.
#[test]
fn real_passt_answers_an_arp_request() {
    let mut passt = match Passt::spawn() {
        Ok(passt) => passt,
        Err(error) => {
            println!("SKIPPED: {error}");
            return;
        }
    };
    passt.socket.set_nonblocking(false).unwrap();
    passt
        .socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut request = vec![0xff; 6];
    request.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend([2, 0, 0, 0, 0, 1, 10, 0, 0, 2]);
    request.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
    let mut reply = [0; 46];

    let result = passt
        .socket
        .write_all(&message(&request))
        .and_then(|()| passt.socket.read_exact(&mut reply));

    if let (Err(_), Err(error)) = (&result, passt.check()) {
        println!("SKIPPED: {error}");
        return;
    }
    result.unwrap();
    assert_eq!(reply[16..18], [8, 6], "an ARP packet");
    assert_eq!(reply[24..26], [0, 2], "a reply");
}

#[test]
fn passt_ends_when_it_is_dropped() {
    let passt = Passt::spawn_program(OsStr::new("cat")).unwrap();
    let pid = passt.child.id();
    let backend = Backend::Passt(passt);

    drop(backend);

    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}
