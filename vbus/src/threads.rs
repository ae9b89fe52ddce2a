//! Threads by what they do, so that a program can confine each of them to just that.
//!
//! All threads of the bus, the devices and the VMM start here. A program that calls [`confine`] first has
//! its function run at the start of each one, before anything else.
//!
//! A thread inherits what its creator is confined to. So those of a confined program are all made by one
//! thread more, which does nothing else: a vCPU's, which activates a device, need not be allowed what the
//! device's worker is.

use std::fmt;
use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use parking_lot::Mutex;

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ThreadClass {
    /// Waits for signals, the console and timers, and ends what it began.
    Main,
    /// The same in the daemon: waits for signals.
    Daemon,
    /// Makes threads.
    Factory,
    /// Runs a vCPU, and emulates what it asks for.
    Vcpu,
    /// Serves the queues or rings of one device.
    Device,
    /// Brings pages of guest memory back.
    Pager,
    /// Takes guest memory when the host wants it.
    Governor,
    /// Speaks to the daemon whose bus a VM is on.
    Uplink,
    /// Answers who asks about a VM.
    Control,
    /// Serves clients of the daemon, and looks after buses.
    Bus,
    /// Serves the daemon's control tree where it is mounted.
    Mount,
    /// Keeps the daemon's state in a file.
    State,
}

impl ThreadClass {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Main,
        Self::Daemon,
        Self::Factory,
        Self::Vcpu,
        Self::Device,
        Self::Pager,
        Self::Governor,
        Self::Uplink,
        Self::Control,
        Self::Bus,
        Self::Mount,
        Self::State,
    ];

    /// Whether the factory makes such threads, which then inherit what it is confined to.
    pub fn is_made(self) -> bool {
        !matches!(self, Self::Main | Self::Daemon | Self::Factory)
    }
}

impl fmt::Display for ThreadClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ThreadClass::Main => "main",
            ThreadClass::Daemon => "daemon",
            ThreadClass::Factory => "factory",
            ThreadClass::Vcpu => "vcpu",
            ThreadClass::Device => "device",
            ThreadClass::Pager => "pager",
            ThreadClass::Governor => "governor",
            ThreadClass::Uplink => "uplink",
            ThreadClass::Control => "control",
            ThreadClass::Bus => "bus",
            ThreadClass::Mount => "mount",
            ThreadClass::State => "state",
        })
    }
}

/// What a thread does first. A thread that cannot be confined must not run, so it does not return then.
pub type Entry = Box<dyn Fn(ThreadClass) + Send + Sync>;

static ENTRY: OnceLock<Entry> = OnceLock::new();
static FACTORY: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();

/// A thread that somebody wants.
struct Order {
    builder: Builder,
    run: Box<dyn FnOnce() + Send>,
    made: Sender<io::Result<JoinHandle<()>>>,
}

/// From now on each thread that is made here runs `entry` first. The second call, and later ones, change
/// nothing.
///
/// # Errors
/// The host is out of threads.
pub fn confine(entry: Entry) -> io::Result<()> {
    if ENTRY.set(entry).is_err() {
        return Ok(());
    }
    let (orders, received) = channel();
    Builder::new()
        .name("threads".into())
        .spawn(move || make_threads(&received))?;
    // Nobody else sets it: only the first caller gets here.
    let _ = FACTORY.set(Mutex::new(orders));
    Ok(())
}

fn make_threads(orders: &Receiver<Order>) {
    enter(ThreadClass::Factory);
    while let Ok(order) = orders.recv() {
        // Who ordered it waits for the answer.
        let _ = order.made.send(order.builder.spawn(order.run));
    }
}

/// What a thread of `class` that was not made here does first.
pub fn enter(class: ThreadClass) {
    if let Some(entry) = ENTRY.get() {
        entry(class);
    }
}

/// Starts a thread of `class` called `name`.
///
/// # Errors
/// The host is out of threads.
pub fn spawn(
    class: ThreadClass,
    name: impl Into<String>,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let builder = Builder::new().name(name.into());
    let run = move || {
        enter(class);
        run();
    };
    let Some(factory) = FACTORY.get() else {
        return builder.spawn(run);
    };
    let (made, answer) = channel();
    let order = Order {
        builder,
        run: Box::new(run),
        made,
    };
    let gone = || io::Error::other("no thread makes threads any more");
    factory.lock().send(order).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    // One test: what it sets is the whole program's.
    #[test]
    fn confined_threads_run_the_entry_first_and_are_made_by_the_factory() {
        let plain = spawn(ThreadClass::Device, "plain", || {}).unwrap();
        plain.join().unwrap();

        let num_entered = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&num_entered);
        confine(Box::new(move |class| {
            if class == ThreadClass::Pager {
                seen.fetch_add(1, Ordering::Relaxed);
            }
        }))
        .unwrap();
        confine(Box::new(|_| panic!("only the first entry counts"))).unwrap();
        let at_start = Arc::clone(&num_entered);
        let thread = spawn(ThreadClass::Pager, "pager", move || {
            assert_eq!(at_start.load(Ordering::Relaxed), 1);
        });

        thread.unwrap().join().unwrap();
        assert_eq!(num_entered.load(Ordering::Relaxed), 1);
    }
}
