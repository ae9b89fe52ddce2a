//! A 16550 serial port: `vm-superio`'s register model behind our bus.
//!
//! What the guest sends leaves outside of the registers' lock: a reader that takes its time (a full
//! pipe) holds up the vCPU that sends, and never whoever asks for room or types.

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use vm_superio::serial::{self, SerialEvents};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::metrics::Counter;

/// I/O ports that the device takes.
pub const NUM_PORTS: u64 = 8;

const DATA: u64 = 0;
const IER: u64 = 1;
const MCR: u64 = 4;
/// Of the modem control register: the port hears itself and nobody else.
const MCR_LOOPBACK: u8 = 1 << 4;
const IER_DATA_AVAILABLE: u8 = 1 << 0;
/// What Linux writes to see whether the register is there (`autoconfig` in `8250_port.c`).
const IER_PROBE: u8 = 0x0f;

/// Counters of one port.
#[derive(Debug, Default, Serialize)]
pub struct SerialMetrics {
    /// Bytes the guest sent.
    pub tx_bytes: Counter,
    /// Bytes the guest sent that could not be written out.
    pub tx_lost_bytes: Counter,
    /// Bytes the guest read.
    pub rx_bytes: Counter,
}

/// Raises the port's interrupt line.
struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Counts, and says when there is room for input again.
struct Events {
    metrics: Arc<SerialMetrics>,
    room_evt: EventFd,
}

impl SerialEvents for Events {
    fn buffer_read(&self) {
        self.metrics.rx_bytes.add(1);
    }
    // Counted when the byte gets out, see `SerialPort::send`.
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // Fails only when the counter is full, and then it is readable.
        let _ = self.room_evt.write(1);
    }
}

type Registers = Serial<Irq, Events, Vec<u8>>;

fn is_listening(serial: &Registers) -> bool {
    let state = serial.state();
    let enabled = state.interrupt_enable;
    let is_loopback = state.modem_control & MCR_LOOPBACK != 0;
    enabled & IER_DATA_AVAILABLE != 0 && enabled != IER_PROBE && !is_loopback
}

/// A serial port whose output goes to a writer.
pub struct SerialPort {
    /// Collects what the guest sends until `send` takes it: at most a byte for each vCPU.
    serial: Mutex<Registers>,
    /// Locked before `serial` where both are.
    out: Mutex<Box<dyn Write + Send>>,
    metrics: Arc<SerialMetrics>,
    listen_evt: EventFd,
}

impl std::fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialPort").finish_non_exhaustive()
    }
}

impl SerialPort {
    /// A port that interrupts through `irq` and sends what the guest writes to `out`.
    ///
    /// `room_evt` is signalled when the guest has read all input or begins to listen, so that
    /// whoever feeds [`SerialPort::enqueue`] can go on.
    ///
    /// # Errors
    /// The host is out of file descriptors.
    pub fn new(
        irq: EventFd,
        room_evt: EventFd,
        out: Box<dyn Write + Send>,
        metrics: Arc<SerialMetrics>,
    ) -> io::Result<Self> {
        let listen_evt = room_evt.try_clone()?;
        let events = Events {
            metrics: Arc::clone(&metrics),
            room_evt,
        };
        let serial = Serial::with_events(Irq(irq), events, Vec::new());
        Ok(SerialPort {
            serial: Mutex::new(serial),
            out: Mutex::new(out),
            metrics,
            listen_evt,
        })
    }

    /// Input bytes that the port takes now: none until the guest listens.
    ///
    /// A kernel empties the port when it opens it, so what arrived before would be lost. It listens
    /// once it has enabled the receive interrupt, and not while the port is in loopback mode.
    pub fn room(&self) -> usize {
        let serial = self.lock();
        if is_listening(&serial) {
            serial.fifo_capacity()
        } else {
            0
        }
    }

    /// Gives the guest input; answers how many bytes fitted.
    pub fn enqueue(&self, input: &[u8]) -> usize {
        // The port refuses input when it is full or in loopback mode: both mean "not now".
        self.lock().enqueue_raw_bytes(input).unwrap_or(0)
    }

    /// Writes out what the guest has sent, in order, even if several vCPUs send at once.
    fn send(&self) {
        let mut out = self.out.lock();
        let bytes = mem::take(self.lock().writer_mut());
        let num_bytes = bytes.len() as u64;
        match out.write_all(&bytes).and_then(|()| out.flush()) {
            Ok(()) => self.metrics.tx_bytes.add(num_bytes),
            Err(_) => self.metrics.tx_lost_bytes.add(num_bytes),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.serial.lock()
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(register)) = (data, u8::try_from(offset)) {
            *byte = self.lock().read(register);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let ([byte], Ok(register)) = (data, u8::try_from(offset)) {
            let mut serial = self.lock();
            // Looking costs a copy of the input, so only where it can change.
            let can_begin = matches!(offset, IER | MCR) && !is_listening(&serial);
            let written = serial.write(register, *byte);
            if can_begin && is_listening(&serial) {
                // Fails only when the counter is full, and then it is readable.
                let _ = self.listen_evt.write(1);
            }
            drop(serial);
            if offset == DATA {
                self.send();
            }
            if let Err(serial::Error::Trigger(error)) = written {
                tracing::debug!("serial: interrupt line: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    const LINE_STATUS: u64 = 5;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn port() -> (SerialPort, Sink, EventFd) {
        let sink = Sink::default();
        let room_evt = EventFd::new(EFD_NONBLOCK).unwrap();
        let port = SerialPort::new(
            EventFd::new(EFD_NONBLOCK).unwrap(),
            room_evt.try_clone().unwrap(),
            Box::new(sink.clone()),
            Arc::default(),
        )
        .unwrap();
        (port, sink, room_evt)
    }

    #[test]
    fn bytes_the_guest_writes_come_out() {
        let (port, sink, _room) = port();

        port.write(DATA, b"h");
        port.write(DATA, b"i");

        assert_eq!(*sink.0.lock(), b"hi");
    }

    /// Linux's handler answers one edge by going on until the port names no more reason, and a
    /// console message disables and enables the interrupt in between. If the port forgot to name
    /// the reason again, or to raise it, output would stop for ever.
    #[test]
    fn transmit_interrupt_comes_again_after_each_batch_and_each_time_it_is_enabled() {
        const IER_TRANSMIT: u8 = 1 << 1;
        const IIR: u64 = 2;
        const IIR_NONE: u8 = 1;
        const IIR_TRANSMIT: u8 = 2;
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let room_evt = EventFd::new(EFD_NONBLOCK).unwrap();
        let raised = irq.try_clone().unwrap();
        let out = Box::new(io::sink());
        let port = SerialPort::new(irq, room_evt, out, Arc::default()).unwrap();
        let take_reason = || {
            let mut reason = [0];
            port.read(IIR, &mut reason);
            reason[0] & 0xf
        };

        for _ in 0..3 {
            port.write(IER, &[IER_TRANSMIT]);
            assert_eq!(raised.read().unwrap(), 1);
            for _ in 0..3 {
                assert_eq!(take_reason(), IIR_TRANSMIT);
                assert_eq!(take_reason(), IIR_NONE);
                for _ in 0..16 {
                    port.write(DATA, b"x");
                }
                assert_eq!(raised.read().unwrap(), 1);
            }
            port.write(IER, &[0]);
            take_reason();
        }
    }

    fn listen(port: &SerialPort) {
        port.write(IER, &[IER_DATA_AVAILABLE]);
    }

    #[test]
    fn room_is_announced_once_for_each_time_the_guest_begins_to_listen() {
        let (port, _sink, room_evt) = port();

        for _ in 0..2 {
            port.write(IER, &[IER_PROBE]);
            assert!(room_evt.read().is_err());
            port.write(IER, &[IER_DATA_AVAILABLE]);
            port.write(IER, &[IER_DATA_AVAILABLE | 2]);
            assert_eq!(room_evt.read().unwrap(), 1);
        }
    }

    /// Output that nobody reads until the test does.
    struct Stuck(mpsc::SyncSender<u8>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            for byte in bytes {
                self.0.send(*byte).map_err(io::Error::other)?;
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn output_that_is_stuck_holds_up_neither_input_nor_registers() {
        let (sender, receiver) = mpsc::sync_channel(0);
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let room_evt = EventFd::new(EFD_NONBLOCK).unwrap();
        let out = Box::new(Stuck(sender));
        let metrics = Arc::new(SerialMetrics::default());
        let port = SerialPort::new(irq, room_evt, out, Arc::clone(&metrics)).unwrap();
        listen(&port);

        thread::scope(|scope| {
            scope.spawn(|| port.write(DATA, b"a"));
            while port.out.try_lock().is_some() {
                thread::yield_now();
            }
            assert_eq!(port.enqueue(b"x"), 1);
            let mut data = [0];
            port.read(DATA, &mut data);
            assert_eq!(data, *b"x");
            assert_eq!(receiver.recv().unwrap(), b'a');
        });

        assert_eq!(metrics.tx_bytes.get(), 1);
    }

    #[test]
    fn output_that_fails_is_counted_as_lost() {
        let (sender, receiver) = mpsc::sync_channel(0);
        drop(receiver);
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let room_evt = EventFd::new(EFD_NONBLOCK).unwrap();
        let out = Box::new(Stuck(sender));
        let metrics = Arc::new(SerialMetrics::default());
        let port = SerialPort::new(irq, room_evt, out, Arc::clone(&metrics)).unwrap();

        port.write(DATA, b"a");

        assert_eq!(metrics.tx_bytes.get(), 0);
        assert_eq!(metrics.tx_lost_bytes.get(), 1);
    }

    #[test]
    fn input_waits_until_the_guest_listens() {
        let (port, _sink, room_evt) = port();

        port.write(IER, &[IER_PROBE]);
        assert_eq!(port.room(), 0);
        port.write(IER, &[0]);
        listen(&port);

        assert!(port.room() > 0);
        assert_eq!(room_evt.read().unwrap(), 1);
    }

    #[test]
    fn input_waits_until_the_guest_has_talked_to_itself() {
        let (port, _sink, room_evt) = port();
        listen(&port);
        room_evt.read().unwrap();

        port.write(MCR, &[MCR_LOOPBACK]);
        assert_eq!(port.room(), 0, "it would be refused");
        assert!(room_evt.read().is_err());
        port.write(MCR, &[0]);

        assert!(port.room() > 0);
        assert_eq!(room_evt.read().unwrap(), 1);
    }

    #[test]
    fn input_fills_up_and_makes_room_once_read() {
        let (port, _sink, room_evt) = port();
        listen(&port);
        room_evt.read().unwrap();
        let capacity = port.room();
        let mut data = [0];

        assert_eq!(port.enqueue(&vec![b'x'; capacity]), capacity);
        assert_eq!(port.enqueue(b"y"), 0);
        for _ in 0..capacity {
            port.read(DATA, &mut data);
        }

        assert_eq!(port.room(), capacity);
        assert_eq!(room_evt.read().unwrap(), 1);
    }

    #[test]
    fn wide_access_is_ignored() {
        let (port, sink, _room) = port();
        let mut data = [0xff; 2];

        port.write(DATA, b"hi");
        port.read(LINE_STATUS, &mut data);

        assert_eq!(*sink.0.lock(), b"");
        assert_eq!(data, [0xff; 2]);
    }
}
