//! The main loop: waits for the VM's end, for signals, for the user's input, and notices silence.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use alacrity_devices::legacy::serial::{SerialMetrics, SerialPort};
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::console::{ConsoleInput, Input};
use crate::control::{Control, End};

/// How long a guest may take to power off after the first signal.
const POWER_OFF_GRACE: Duration = Duration::from_secs(10);
/// How long a guest may say nothing before we say something.
const SILENCE: Duration = Duration::from_secs(10);
/// Bytes that a person can type ahead of the guest, as many as a terminal of Linux keeps.
const MAX_TYPED_BYTES: usize = 4096;

/// What an event is about.
const WAKE: u32 = 0;
const STDIN: u32 = 1;
const ROOM: u32 = 2;
const GRACE: u32 = 3;
const SILENT: u32 = 4;
/// Signal N is `SIGNAL + N`.
const SIGNAL: u32 = 100;

/// The VM's console, for the main loop to feed.
#[derive(Debug)]
pub struct Console {
    /// Its serial port.
    pub port: Arc<SerialPort>,
    /// Its counters.
    pub metrics: Arc<SerialMetrics>,
    /// Signalled when the port takes input again.
    pub room_evt: EventFd,
    /// The user's input, unless the guest shall have none.
    pub input: Option<ConsoleInput>,
}

/// The main loop's only subscriber.
pub struct MainLoop {
    control: Arc<Control>,
    console: Console,
    power_button: EventFd,
    signals: Vec<(i32, UnixStream)>,
    grace: TimerFd,
    silence: TimerFd,
    pending_signal: Option<u8>,
    is_stdin_watched: bool,
    /// Input that the port had no room for yet.
    typed: VecDeque<u8>,
    has_progress: bool,
}

impl std::fmt::Debug for MainLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MainLoop").finish_non_exhaustive()
    }
}

impl MainLoop {
    /// A loop for the VM behind `control`. SIGINT, SIGTERM, SIGHUP and SIGQUIT press `power_button` first
    /// and end the VM when they come again, or when the guest takes too long.
    ///
    /// With `has_progress`, a terminal on standard error shows that the guest is booting.
    ///
    /// # Errors
    /// The host is out of file descriptors.
    pub fn new(
        control: Arc<Control>,
        console: Console,
        power_button: EventFd,
        has_progress: bool,
    ) -> io::Result<Self> {
        let signals = [SIGINT, SIGTERM, SIGHUP, SIGQUIT]
            .into_iter()
            .map(|signal| {
                let (receiver, sender) = UnixStream::pair()?;
                receiver.set_nonblocking(true)?;
                signal_hook::low_level::pipe::register(signal, sender)?;
                Ok((signal, receiver))
            })
            .collect::<io::Result<_>>()?;
        let mut silence = TimerFd::new()?;
        silence.reset(SILENCE, None)?;
        Ok(MainLoop {
            control,
            console,
            power_button,
            signals,
            grace: TimerFd::new()?,
            silence,
            pending_signal: None,
            is_stdin_watched: false,
            typed: VecDeque::new(),
            has_progress: has_progress && rustix::termios::isatty(io::stderr()),
        })
    }

    /// Runs until the VM ends; answers how, and the signal that was pending then.
    ///
    /// # Errors
    /// The host is out of file descriptors.
    pub fn run(self) -> io::Result<(End, Option<u8>)> {
        let control = Arc::clone(&self.control);
        let mut manager = EventManager::new().map_err(io::Error::other)?;
        let id = manager.add_subscriber(self);
        loop {
            // EINTR is the only error epoll_wait can return here, and the loop repeats it.
            let _ = manager.run();
            if let Some(end) = control.take_end() {
                let main_loop = manager.remove_subscriber(id).map_err(io::Error::other)?;
                main_loop.clear_progress();
                return Ok((end, main_loop.pending_signal));
            }
        }
    }

    fn on_signal(&mut self, signal: u8) {
        if self.pending_signal.replace(signal).is_some() {
            self.control.end(End::Signal(signal));
            return;
        }
        tracing::info!("signal {signal}: asking the guest to power off; a second one ends it");
        if let Err(error) = self.power_button.write(1).and_then(|()| {
            self.grace
                .reset(POWER_OFF_GRACE, None)
                .map_err(io::Error::from)
        }) {
            tracing::warn!("cannot ask the guest to power off: {error}");
            self.control.end(End::Signal(signal));
        }
    }

    fn on_silence(&mut self) {
        let is_alive = self.console.metrics.tx_bytes.get() > 0
            || self.control.timeline().guest_init_us.get().is_some();
        if !is_alive {
            let _ = writeln!(
                io::stderr(),
                "note: the guest has said nothing for {} s. Does its kernel command line have console=ttyS0 (and a kernel with that driver)? Ctrl-a x ends the VM.\r",
                SILENCE.as_secs()
            );
        }
    }

    fn on_input(&mut self, ops: &mut EventOps<'_>) {
        let room = self.console.port.room();
        let Some(input) = &mut self.console.input else {
            return;
        };
        // A person is always listened to, or `Ctrl-a x` would not end a guest that does not listen.
        let can_take = match input.is_terminal() {
            true => MAX_TYPED_BYTES,
            false => room,
        };
        if can_take == 0 {
            self.watch_stdin(ops, false);
            return;
        }
        match input.read(can_take) {
            Ok(Input::Bytes(bytes)) => {
                self.typed.extend(bytes);
                self.typed.truncate(MAX_TYPED_BYTES);
                self.feed();
            }
            Ok(Input::Quit) => {
                self.control.end(End::Escape);
            }
            Ok(Input::EndOfFile) => {
                self.watch_stdin(ops, false);
                self.console.input = None;
            }
            Err(error) => {
                tracing::debug!("standard input: {error}");
                self.watch_stdin(ops, false);
                self.console.input = None;
            }
        }
    }

    /// Gives the guest what was typed, as far as its port has room.
    fn feed(&mut self) {
        let room = self.console.port.room().min(self.typed.len());
        let bytes: Vec<u8> = self.typed.iter().take(room).copied().collect();
        if !bytes.is_empty() {
            let num_taken = self.console.port.enqueue(&bytes);
            self.typed.drain(..num_taken);
        }
    }

    fn watch_stdin(&mut self, ops: &mut EventOps<'_>, watch: bool) {
        let Some(input) = &self.console.input else {
            return;
        };
        if watch == self.is_stdin_watched {
            return;
        }
        let events = Events::with_data_raw(input.fd(), STDIN, EventSet::IN);
        let changed = if watch {
            ops.add(events)
        } else {
            ops.remove(events)
        };
        match changed {
            Ok(()) => self.is_stdin_watched = watch,
            // A regular file cannot be watched, and need not be: it is always readable.
            Err(_) if watch => self.on_input(ops),
            Err(error) => tracing::debug!("standard input: {error:?}"),
        }
    }

    fn show_progress(&self) {
        if self.has_progress {
            let _ = write!(io::stderr(), "waiting for the guest to boot…");
        }
    }

    fn clear_progress(&self) {
        if self.has_progress {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl MutEventSubscriber for MainLoop {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            WAKE => {
                let _ = self.control.wake_evt().read();
                if self.control.timeline().command_us.get().is_some() {
                    self.clear_progress();
                    self.has_progress = false;
                }
            }
            STDIN => self.on_input(ops),
            ROOM => {
                let _ = self.console.room_evt.read();
                self.feed();
                self.watch_stdin(ops, true);
            }
            GRACE => {
                let _ = self.grace.wait();
                if let Some(signal) = self.pending_signal {
                    tracing::warn!(
                        "the guest did not power off in {} s",
                        POWER_OFF_GRACE.as_secs()
                    );
                    self.control.end(End::Signal(signal));
                }
            }
            SILENT => {
                let _ = self.silence.wait();
                self.on_silence();
            }
            data => {
                let signal = data.saturating_sub(SIGNAL);
                for (_, receiver) in self
                    .signals
                    .iter_mut()
                    .filter(|(number, _)| u32::try_from(*number) == Ok(signal))
                {
                    // However often it came, it is one request.
                    let _ = receiver.read(&mut [0; 64]);
                }
                self.on_signal(u8::try_from(signal).unwrap_or(0));
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let watched = [
            (self.control.wake_evt().as_raw_fd(), WAKE),
            (self.console.room_evt.as_raw_fd(), ROOM),
            (self.grace.as_raw_fd(), GRACE),
            (self.silence.as_raw_fd(), SILENT),
        ]
        .into_iter()
        .chain(self.signals.iter().map(|(signal, receiver)| {
            (
                receiver.as_raw_fd(),
                SIGNAL + u32::try_from(*signal).unwrap_or(0),
            )
        }));
        for (fd, data) in watched {
            if let Err(error) = ops.add(Events::with_data_raw(fd, data, EventSet::IN)) {
                tracing::error!("main loop: cannot watch event {data}: {error:?}");
            }
        }
        let is_terminal = |input: &ConsoleInput| input.is_terminal();
        if self.console.input.as_ref().is_some_and(is_terminal) {
            self.watch_stdin(ops, true);
        }
        self.show_progress();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alacrity_devices::bus::BusDevice;
    use std::os::fd::AsFd;
    use std::thread;
    use std::time::Instant;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    struct Setup {
        control: Arc<Control>,
        port: Arc<SerialPort>,
        keyboard: UnixStream,
        main_loop: MainLoop,
    }

    /// A main loop at whose terminal the test types.
    fn setup() -> Setup {
        let control = Arc::new(Control::new(Instant::now()).unwrap());
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let (room_evt, metrics) = (event(), Arc::new(SerialMetrics::default()));
        let out = Box::new(io::sink());
        let room = room_evt.try_clone().unwrap();
        let port = Arc::new(SerialPort::new(event(), room, out, Arc::clone(&metrics)).unwrap());
        let (keyboard, stdin) = UnixStream::pair().unwrap();
        let stdin: &'static UnixStream = Box::leak(Box::new(stdin));
        let console = Console {
            port: Arc::clone(&port),
            metrics,
            room_evt,
            input: Some(ConsoleInput::new(stdin.as_fd(), true)),
        };
        let main_loop = MainLoop::new(Arc::clone(&control), console, event(), false).unwrap();
        Setup {
            control,
            port,
            keyboard,
            main_loop,
        }
    }

    #[test]
    fn escape_ends_a_guest_that_never_listens() {
        let mut setup = setup();
        setup.keyboard.write_all(b"\x01x").unwrap();
        let control = Arc::clone(&setup.control);
        thread::spawn(move || {
            thread::sleep(Duration::from_secs(20));
            control.end(End::PowerOff);
        });

        let (end, _) = setup.main_loop.run().unwrap();

        assert!(matches!(end, End::Escape), "{end:?}");
    }

    #[test]
    fn what_was_typed_ahead_reaches_the_guest_once_it_listens() {
        let mut setup = setup();
        setup.keyboard.write_all(b"ls\n").unwrap();
        let main_loop = thread::spawn(move || setup.main_loop.run().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut line = Vec::new();

        setup.port.write(1, &[1]);
        while line != b"ls\n" && Instant::now() < deadline {
            let (mut status, mut data) = ([0], [0]);
            setup.port.read(5, &mut status);
            if status[0] & 1 != 0 {
                setup.port.read(0, &mut data);
                line.extend(data);
            }
            thread::sleep(Duration::from_millis(1));
        }
        setup.control.end(End::PowerOff);

        main_loop.join().unwrap();
        assert_eq!(line, b"ls\n");
    }
}
