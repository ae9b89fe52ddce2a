//! The ports of the devices without PCI, with accesses of any length anywhere, while somebody types: what
//! the guest reports, sends and reads is what it wrote and what was typed, and input never gets stuck.
#![no_main]

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use alacrity::layout;
use alacrity_devices::bus::{Bus, BusDevice};
use alacrity_devices::legacy::i8042::I8042;
use alacrity_devices::legacy::power::{self, AcpiPower};
use alacrity_devices::legacy::pvpanic::PvPanic;
use alacrity_devices::legacy::report::{self, Report};
use alacrity_devices::legacy::serial::{self, SerialMetrics, SerialPort};
use alacrity_devices::legacy::{GuestEvent, GuestEventSink};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const DATA: u16 = layout::COM1;
const INTERRUPTS: u16 = layout::COM1 + 1;
const LINE_CONTROL: u16 = layout::COM1 + 3;
const MODEM_CONTROL: u16 = layout::COM1 + 4;
const LINE_STATUS: u16 = layout::COM1 + 5;
const DIVISOR_LATCH: u8 = 0x80;
const LOOPBACK: u8 = 0x10;
const RECEIVE_INTERRUPT: u8 = 1;
/// What a driver writes to see whether the register is there.
const PROBE: u8 = 0x0f;
/// Bytes that the serial port holds.
const FIFO_BYTES: usize = 64;

/// Ports with something behind them.
const PORTS: [u16; 6] = [
    layout::COM1,
    layout::I8042,
    layout::PVPANIC,
    layout::ACPI_POWER,
    layout::REPORT,
    layout::COM1 + 4,
];

#[derive(Debug, Arbitrary)]
enum Step {
    /// More often a byte, at a port with something behind it.
    Out {
        place: u8,
        value: u8,
    },
    In {
        place: u8,
    },
    Write {
        port: u16,
        data: [u8; 8],
        len: u8,
    },
    Read {
        port: u16,
        len: u8,
    },
    /// The host has input.
    Type(Vec<u8>),
}

#[derive(Default)]
struct Events(Mutex<Vec<GuestEvent>>);

impl GuestEventSink for Events {
    fn guest_event(&self, event: GuestEvent) {
        self.0.lock().unwrap().push(event);
    }
}

/// What the guest sent; takes nothing while it is broken.
#[derive(Clone, Default)]
struct Out(Arc<Mutex<Vec<u8>>>);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn event_of(port: u16, value: u8) -> Option<GuestEvent> {
    match (port, value) {
        (layout::I8042, 0xfe) => Some(GuestEvent::Reset),
        (layout::PVPANIC, bits) if bits & 1 != 0 => Some(GuestEvent::Panic),
        (layout::ACPI_POWER, 0x34) => Some(GuestEvent::PowerOff),
        (port, 1) if port == layout::ACPI_POWER + 2 => Some(GuestEvent::Reset),
        (layout::REPORT, 1) => Some(GuestEvent::InitStarted),
        (layout::REPORT, 2) => Some(GuestEvent::CommandStarted),
        (port, status) if port == layout::REPORT + 1 => Some(GuestEvent::CommandEnded(status)),
        _ => None,
    }
}

struct Lab {
    bus: Bus,
    serial: Arc<SerialPort>,
    room_evt: EventFd,
    metrics: Arc<SerialMetrics>,
    events: Arc<Events>,
    out: Out,
    expected_events: Vec<GuestEvent>,
    expected_out: Vec<u8>,
    expected_in: VecDeque<u8>,
    num_read: u64,
    line_control: u8,
    modem_control: u8,
    interrupts: u8,
    /// What was typed and waits for room, as the host keeps it.
    typed: VecDeque<u8>,
    /// The host does not look before the event.
    is_waiting: bool,
}

impl Lab {
    fn new() -> Self {
        let new_event = || EventFd::new(EFD_NONBLOCK).expect("the host has descriptors");
        let room_evt = new_event();
        let its_room_evt = room_evt.try_clone().expect("the host has descriptors");
        let (metrics, events) = (Arc::<SerialMetrics>::default(), Arc::<Events>::default());
        let out = Out::default();
        let serial = SerialPort::new(
            new_event(),
            its_room_evt,
            Box::new(out.clone()),
            Arc::clone(&metrics),
        );
        let serial = Arc::new(serial.expect("the host has descriptors"));
        let sink = || Arc::clone(&events) as Arc<dyn GuestEventSink>;
        let devices: [(u16, u64, Arc<dyn BusDevice>); 5] = [
            (layout::COM1, serial::NUM_PORTS, Arc::clone(&serial) as _),
            (layout::I8042, 1, Arc::new(I8042::new(sink()))),
            (layout::PVPANIC, 1, Arc::new(PvPanic::new(sink()))),
            (
                layout::ACPI_POWER,
                power::NUM_PORTS,
                Arc::new(AcpiPower::new(sink())),
            ),
            (
                layout::REPORT,
                report::NUM_PORTS,
                Arc::new(Report::new(sink())),
            ),
        ];
        let bus = Bus::default();
        for (port, num_ports, device) in devices {
            bus.insert(port.into(), num_ports, device)
                .expect("they are apart");
        }
        Lab {
            bus,
            serial,
            room_evt,
            metrics,
            events,
            out,
            expected_events: Vec::new(),
            expected_out: Vec::new(),
            expected_in: VecDeque::new(),
            num_read: 0,
            line_control: 3,
            modem_control: 8,
            interrupts: 0,
            typed: VecDeque::new(),
            is_waiting: false,
        }
    }

    fn has_latch(&self) -> bool {
        self.line_control & DIVISOR_LATCH != 0
    }

    fn is_loopback(&self) -> bool {
        self.modem_control & LOOPBACK != 0
    }

    fn is_listening(&self) -> bool {
        self.interrupts & RECEIVE_INTERRUPT != 0 && self.interrupts != PROBE
    }

    fn write(&mut self, port: u16, data: &[u8]) {
        let is_there = self.bus.write(port.into(), data);
        let &[value] = data else {
            return;
        };
        self.expected_events.extend(event_of(port, value));
        assert!(is_there || event_of(port, value).is_none());
        match port {
            DATA if self.has_latch() => {}
            DATA if self.is_loopback() && self.expected_in.len() == FIFO_BYTES => {}
            DATA if self.is_loopback() => self.expected_in.push_back(value),
            DATA => self.expected_out.push(value),
            INTERRUPTS if !self.has_latch() => self.interrupts = value & PROBE,
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.modem_control = value,
            _ => {}
        }
    }

    fn read(&mut self, port: u16, len: usize) {
        let mut data = [0x55; 8];
        let data = &mut data[..len];
        if !self.bus.read(port.into(), data) {
            assert!(data.iter().all(|byte| *byte == 0xff), "nobody is there");
        }
        let &mut [value] = data else {
            return;
        };
        match port {
            DATA if !self.has_latch() => {
                self.num_read += 1;
                assert_eq!(value, self.expected_in.pop_front().unwrap_or(0));
            }
            LINE_STATUS => {
                assert_eq!(value & 1 != 0, !self.expected_in.is_empty());
            }
            _ => {}
        }
    }

    /// What the main loop does when it was told that there is input, or room for it.
    fn pass_on(&mut self) {
        if self.is_waiting && self.room_evt.read().is_err() {
            return;
        }
        self.is_waiting = false;
        while !self.typed.is_empty() {
            let room = self.serial.room();
            let some: Vec<u8> = self.typed.iter().copied().take(room).collect();
            let num_taken = match some.is_empty() {
                true => 0,
                false => self.serial.enqueue(&some),
            };
            assert!(num_taken <= some.len());
            self.expected_in.extend(self.typed.drain(..num_taken));
            if num_taken == 0 {
                self.is_waiting = true;
                return;
            }
        }
    }

    fn check(&self) {
        assert_eq!(*self.events.0.lock().unwrap(), self.expected_events);
        assert_eq!(*self.out.0.lock().unwrap(), self.expected_out);
        assert!(self.expected_in.len() <= FIFO_BYTES);
        let takes_input = self.is_listening() && !self.is_loopback();
        let room = match takes_input {
            true => FIFO_BYTES - self.expected_in.len(),
            false => 0,
        };
        assert_eq!(self.serial.room(), room);
        assert_eq!(self.metrics.tx_bytes.get(), self.expected_out.len() as u64);
        assert_eq!(self.metrics.rx_bytes.get(), self.num_read);
        let is_stuck = self.is_waiting && !self.typed.is_empty();
        if is_stuck && takes_input {
            assert!(
                !self.expected_in.is_empty(),
                "nothing tells the host to go on"
            );
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut lab = Lab::new();
    for step in steps {
        match step {
            Step::Out { place, value } => {
                let port = PORTS[usize::from(place & 7) % PORTS.len()] + u16::from(place >> 5);
                lab.write(port, &[value]);
            }
            Step::In { place } => {
                let port = PORTS[usize::from(place & 7) % PORTS.len()] + u16::from(place >> 5);
                lab.read(port, 1);
            }
            Step::Write { port, data, len } => lab.write(port, &data[..usize::from(len % 8) + 1]),
            Step::Read { port, len } => lab.read(port, usize::from(len % 8) + 1),
            Step::Type(bytes) => lab.typed.extend(bytes),
        }
        lab.pass_on();
        lab.check();
    }
});
