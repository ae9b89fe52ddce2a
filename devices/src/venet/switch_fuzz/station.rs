//! A client of a switch's port that keeps to the rules of rings, and not to those of frames.

use std::sync::Arc;

use vbus::abi::venet::FrameMeta;
use vbus::memory::Region;
use vbus::ring::{North, Slot};
use vm_memory::{Bytes, GuestAddress};

use crate::GuestRam;
use crate::client::Client;
use crate::fuzz_ring::{Faults, both_ends};
use crate::venet::frame::{Limits, Scratch};
use crate::venet::metrics::PortMetrics;
use crate::venet::port::Port;
use crate::venet::rx::{Receiver, meta_of, meta_words};
use crate::venet::switch::Switch;
use crate::venet::switch_path::SwitchPath;
use crate::venet::tx::{Progress, Rest, Sender};

/// Where a frame to send is.
const SENT: u64 = 0x1000;
/// Where buffers are.
const BUFFERS: u64 = 0x1_2000;
const BUFFER_BYTES: u32 = 4096;
const RAM_BYTES: usize = 0x2_2000;

/// The client of a port.
pub(super) struct Guest {
    pub(super) path: SwitchPath,
    /// The next buffers that it gives are none.
    pub(super) has_bad_buffers: bool,
    client: Arc<Client>,
    ram: GuestRam,
    to_send: North<Region>,
    to_receive: North<Region>,
    sender: Sender,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    /// It went into the switch.
    pub(super) is_sent: bool,
    is_refused: bool,
}

impl Outcome {
    /// It was counted.
    pub(super) fn is_sent_or_refused(self) -> bool {
        self.is_sent || self.is_refused
    }
}

impl Guest {
    /// Opens `port`; `caps` are what it negotiates to send and to receive.
    #[expect(clippy::expect_used, reason = "a fuzzer without memory cannot go on")]
    pub(super) fn new(switch: &Arc<Switch>, port: &Arc<Port>, caps: (u8, u8)) -> Self {
        let client = Arc::new(Client::new(Arc::new(Faults::default())));
        let range = (GuestAddress(SENT), RAM_BYTES);
        let ram = GuestRam::from_ranges(&[range]).expect("out of memory");
        let (to_send, tx) = both_ends();
        let (to_receive, rx) = both_ends();
        let mut sender = Sender::new(tx);
        let limits = Limits {
            caps: caps.0.into(),
            mtu: switch.mtu(),
        };
        sender.configure(ram.clone(), limits, None, None);
        let mut receiver = Receiver::new(rx, Arc::clone(&client));
        receiver.configure(ram.clone(), caps.1.into(), None);
        port.set_receiver(Some(receiver));
        let mut guest = Guest {
            path: SwitchPath::of_client(Arc::clone(switch), port),
            has_bad_buffers: false,
            client,
            ram,
            to_send,
            to_receive,
            sender,
        };
        guest.give_buffers();
        guest
    }

    fn give_buffers(&mut self) {
        while self.to_receive.room() > 0 {
            let nth = self.to_receive.next_slot_idx();
            let is_bad = std::mem::take(&mut self.has_bad_buffers);
            let slot = Slot {
                addr: BUFFERS + u64::from(nth * BUFFER_BYTES),
                len: if is_bad { 0 } else { BUFFER_BYTES },
                meta: [0; 2],
            };
            self.to_receive.publish(&[slot]);
        }
    }

    /// Sends a frame as its worker does.
    #[expect(clippy::expect_used, reason = "the ring and the memory are its own")]
    pub(super) fn send(
        &mut self,
        bytes: &[u8],
        meta: &FrameMeta,
        scratch: &mut Scratch,
        metrics: &PortMetrics,
    ) -> Outcome {
        let counts = || (metrics.tx_packets.get(), metrics.tx_errors.get());
        let before = counts();
        if !self.client.is_cut_off() {
            let gpa = GuestAddress(SENT);
            self.ram.write_slice(bytes, gpa).expect("it fits");
            let slot = Slot {
                addr: SENT,
                len: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
                meta: meta_words(meta),
            };
            assert_eq!(self.to_send.publish(&[slot]), 1, "it has its slot back");
            let path = &mut self.path;
            loop {
                match self.sender.serve(path, scratch, metrics, 256, Rest::Asleep) {
                    Ok(Progress::More) => {}
                    Ok(_) => break,
                    Err(fault) => {
                        self.client.cut_off("transmit", fault);
                        break;
                    }
                }
            }
            let num_back = self
                .to_send
                .reclaim()
                .expect("the south keeps to the rules");
            assert!(num_back == 1 || self.client.is_cut_off());
        }
        let after = counts();
        Outcome {
            is_sent: after.0 != before.0,
            is_refused: after.1 != before.1,
        }
    }

    /// The frames that are there, whose buffers it gives again.
    #[expect(clippy::expect_used, reason = "the ring and the memory are its own")]
    pub(super) fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut frames: Vec<Vec<u8>> = Vec::new();
        let mut num_missing = 0;
        let mut slot = [Slot::default()];
        while self
            .to_receive
            .reap(&mut slot)
            .expect("the south keeps to the rules")
            == 1
        {
            let [Slot { addr, len, meta }] = slot;
            if num_missing == 0 {
                num_missing = meta_of(meta).count.get();
                frames.push(Vec::new());
            }
            assert!(len <= BUFFER_BYTES, "no more than the buffer holds");
            let mut bytes = vec![0; len as usize];
            let read = self.ram.read_slice(&mut bytes, GuestAddress(addr));
            read.expect("it is the buffer's");
            if let Some(frame) = frames.last_mut() {
                frame.extend(bytes);
            }
            num_missing = num_missing.saturating_sub(1);
        }
        assert_eq!(num_missing, 0, "frames come whole");
        self.give_buffers();
        frames
    }
}
