//! A hostile guest that does what a fuzzer's bytes say.

use std::sync::atomic::Ordering::SeqCst;
use std::thread;

use vbus::abi::pci::{NUM_EVENT_QUEUES, PORTS_BAR, REGISTERS_BAR, port};
use vbus::test_utils::{add_echo, wait_until};
use vm_memory::{Bytes, GuestAddress};

use super::fake_guest::{CALLS, DATA, FakeGuest, QUEUES, RAM_BYTES, RAM_START, SHMS};
use crate::pci::PciFunction;

/// Slots of an event queue: few, so that events wait.
const NUM_SLOTS: u32 = 4;
/// Devices on the bus.
const NUM_DEVICES: usize = 3;
/// Bytes of arguments that are not zero.
const MAX_ARGS: usize = 48;

/// The fuzzer's bytes; zeros when there are none left.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let (head, tail) = self.0.split_at(N.min(self.0.len()));
        for (place, byte) in array.iter_mut().zip(head) {
            *place = *byte;
        }
        self.0 = tail;
        array
    }

    fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// An address, mostly one where something is.
    fn addr(&mut self) -> u64 {
        let offset = u64::from(u16::from_le_bytes(self.array()));
        match self.byte() % 8 {
            0 => CALLS + offset % 0x1000,
            1 => QUEUES + offset % 0x5000,
            2 => SHMS + offset % 0x8000,
            3 => DATA + offset,
            4 => RAM_START + RAM_BYTES as u64 - offset % 0x400,
            5 => RAM_START - offset % 0x400,
            6 => 0u64.wrapping_sub(offset),
            _ => u64::from_le_bytes(self.array()),
        }
    }
}

/// Does what `bytes` say, and then checks that a reset brings back a connector that works and holds
/// nothing.
///
/// # Panics
/// It does not.
pub fn drive(bytes: &[u8]) {
    drive_together(&[bytes]);
}

/// The same with several vCPUs at once, one for each of `scripts`.
///
/// # Panics
/// It does not.
pub fn drive_together(scripts: &[&[u8]]) {
    let guest = FakeGuest::new(NUM_DEVICES);
    let first = scripts.first().and_then(|script| script.first());
    if first.is_some_and(|byte| byte % 4 != 0) {
        guest.start(NUM_SLOTS);
        let _ = guest.open(0);
    }
    thread::scope(|scope| {
        for script in scripts {
            let (guest, mut source) = (&guest, Source(script.get(1..).unwrap_or_default()));
            scope.spawn(move || {
                while !source.0.is_empty() {
                    act(guest, &mut source);
                }
            });
        }
    });
    guest.function.write_config(4, &[7, 0]);
    guest.reset();
    // What was dropped before is closed by the bus, which a reset waits for if it has memory.
    let connections = &guest.census.connections;
    wait_until("all is closed", || connections.load(SeqCst) == 0);
    assert_eq!(guest.census.calls_after_close.load(SeqCst), 0);
    let num_taken = guest.function.connector().around.signals.num_taken();
    assert_eq!(num_taken, NUM_EVENT_QUEUES as usize, "numbers are back");
    add_echo(&guest.host, "bus", "fresh");
    guest.start(NUM_SLOTS);
    let events = guest.events(NUM_EVENT_QUEUES - 1);
    let (_, id) = events.last().expect("an interface was added");
    let id = u32::try_from(*id).expect("it is an id");
    guest.open(id).expect("it can be opened");
}

#[expect(clippy::indexing_slicing, reason = "modulo the length")]
fn act(guest: &FakeGuest, source: &mut Source<'_>) {
    match source.byte() % 8 {
        0 => {
            let addr = source.addr();
            let data: [u8; 8] = source.array();
            let _ = guest.ram.write_slice(&data, GuestAddress(addr));
        }
        1 | 2 => {
            // The words of the arguments are small numbers or addresses.
            let func = u32::from(source.byte() % 11);
            let mut args = [0; MAX_ARGS];
            for word in args.chunks_exact_mut(8) {
                let value = match source.byte() % 4 {
                    0 => source.addr(),
                    1 => u64::from_le_bytes(source.array()),
                    _ => u64::from(source.byte() % 8) | u64::from(source.byte() % 4) << 32,
                };
                word.copy_from_slice(&value.to_le_bytes());
            }
            let page = u64::from(source.byte() % 4) * 4096;
            let _ = guest.call_at(CALLS + page, func, &args);
        }
        3 => {
            let data: [u8; 8] = source.array();
            let offset = u64::from(source.byte() % 64);
            let len = usize::from(source.byte()) % 8 + 1;
            guest
                .function
                .write_bar(REGISTERS_BAR, offset, &data[..len]);
        }
        4 => {
            let number = u32::from(source.byte() % 130);
            match source.byte() % 4 {
                0 => {
                    let offset = port::FAST_CALL.into();
                    guest
                        .function
                        .write_bar(PORTS_BAR, offset, &(number % 33).to_le_bytes());
                }
                _ => guest.ring(number),
            }
        }
        5 => {
            let data: [u8; 4] = source.array();
            let offset = u16::from(source.byte());
            guest
                .function
                .write_config(offset, &data[..usize::from(source.byte()) % 4 + 1]);
            let mut data = [0; 8];
            let bar = usize::from(source.byte()) % 6;
            guest
                .function
                .read_bar(bar, u64::from(source.byte()) * 16, &mut data);
        }
        6 => {
            // What an administrator does meanwhile.
            let name = format!("d{}", source.byte() % 3);
            if source.byte().is_multiple_of(2) {
                let _ = guest.host.unlink("bus", &name);
            } else {
                let _ = guest.host.link("bus", &name, &name);
            }
        }
        _ => {
            let bar = usize::from(source.byte()) % 6;
            let offset = u64::from(u16::from_le_bytes(source.array()));
            let data: [u8; 8] = source.array();
            let len = usize::from(source.byte()) % 8 + 1;
            guest.function.write_bar(bar, offset, &data[..len]);
        }
    }
}
