//! From events to turns: the part of a worker that is the same for every device whose queues one
//! thread serves.
//!
//! A turn does a bounded amount of work. If more is left, the subscriber wakes itself, so that
//! other events, the worker's end above all, come in between.

use std::error::Error;
use std::os::fd::{AsRawFd, RawFd};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::ActivateError;
use super::interrupt::VirtioInterrupt;
use crate::worker::Worker;

/// Event data of the wake-up by ourselves.
const AGAIN: u32 = u32::MAX;

/// Whether a turn left something for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Served {
    /// The next event brings the next work.
    All,
    /// There is more to do now; come back after a look at other events.
    More,
}

/// What woke a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// The descriptor at this position of [`Serve::watched`] is readable; reading it is the
    /// server's.
    Event(usize),
    /// The last turn left something.
    Again,
}

/// The queues of one worker and what serves them.
pub(super) trait Serve: Send {
    /// How a driver breaks the rules.
    type Fault: Error;

    /// The descriptors that wake the worker; the same at every call.
    fn watched(&self) -> Vec<RawFd>;

    /// Does one turn.
    ///
    /// # Errors
    /// The driver broke the rules: no further turn until the device is reset.
    fn serve(&mut self, wake: Wake) -> Result<Served, Self::Fault>;

    /// Where a fault is told.
    fn interrupt(&self) -> &VirtioInterrupt;
}

/// Starts a worker called `name` around `server`.
///
/// # Errors
/// [`ActivateError::Worker`].
pub(super) fn spawn<S>(name: String, server: S) -> Result<Worker, ActivateError>
where
    S: Serve + 'static,
{
    let again = EventFd::new(EFD_NONBLOCK).map_err(ActivateError::Worker)?;
    Worker::spawn(name, Subscriber { server, again }).map_err(ActivateError::Worker)
}

/// Clears a doorbell; answers how often it rang.
pub(super) fn clear_doorbell(doorbell: &EventFd) -> u64 {
    // An error means that it did not ring.
    doorbell.read().unwrap_or(0)
}

struct Subscriber<S> {
    server: S,
    again: EventFd,
}

impl<S: Serve> Subscriber<S> {
    fn events(&self) -> Vec<Events> {
        (0..)
            .zip(self.server.watched())
            .chain([(AGAIN, self.again.as_raw_fd())])
            .map(|(data, fd)| Events::with_data_raw(fd, data, EventSet::IN))
            .collect()
    }

    fn stop(&self, ops: &mut EventOps<'_>, cause: &dyn Error) {
        self.server.interrupt().needs_reset(cause);
        for events in self.events() {
            // An error means that it was not there.
            let _ = ops.remove(events);
        }
    }
}

impl<S: Serve> MutEventSubscriber for Subscriber<S> {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let wake = match events.data() {
            AGAIN => {
                // An error means that nobody wrote it.
                let _ = self.again.read();
                Wake::Again
            }
            position => Wake::Event(position as usize),
        };
        match self.server.serve(wake) {
            Ok(Served::All) => {}
            // A write to an eventfd fails only when it is readable anyway.
            Ok(Served::More) => drop(self.again.write(1)),
            Err(fault) => self.stop(ops, &fault),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for events in self.events() {
            if let Err(error) = ops.add(events) {
                return self.stop(ops, &error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::fake_interrupt;
    use std::sync::{Arc, mpsc};

    #[derive(Debug, thiserror::Error)]
    #[error("broken")]
    struct Broken;

    /// Wants three turns for each doorbell, and breaks when it rings twice at once.
    struct Server {
        doorbell: EventFd,
        turns_left: u32,
        seen: mpsc::Sender<Wake>,
        interrupt: Arc<VirtioInterrupt>,
    }

    impl Serve for Server {
        type Fault = Broken;

        fn watched(&self) -> Vec<RawFd> {
            vec![self.doorbell.as_raw_fd()]
        }
        fn serve(&mut self, wake: Wake) -> Result<Served, Broken> {
            self.seen.send(wake).unwrap();
            match wake {
                Wake::Event(_) if clear_doorbell(&self.doorbell) > 1 => return Err(Broken),
                Wake::Event(_) => self.turns_left = 2,
                Wake::Again => self.turns_left -= 1,
            }
            Ok(if self.turns_left == 0 {
                Served::All
            } else {
                Served::More
            })
        }
        fn interrupt(&self) -> &VirtioInterrupt {
            &self.interrupt
        }
    }

    fn start() -> (Worker, EventFd, mpsc::Receiver<Wake>, Arc<VirtioInterrupt>) {
        let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
        let (sender, receiver) = mpsc::channel();
        let interrupt = fake_interrupt(1);
        let server = Server {
            doorbell: doorbell.try_clone().unwrap(),
            turns_left: 0,
            seen: sender,
            interrupt: Arc::clone(&interrupt),
        };
        (
            spawn("test".into(), server).unwrap(),
            doorbell,
            receiver,
            interrupt,
        )
    }

    #[test]
    fn server_that_wants_more_gets_its_turns_and_no_others() {
        let (worker, doorbell, seen, _interrupt) = start();

        doorbell.write(1).unwrap();

        let turns: Vec<Wake> = (0..3).map(|_| seen.recv().unwrap()).collect();
        worker.stop();
        assert_eq!(turns, [Wake::Event(0), Wake::Again, Wake::Again]);
        assert!(seen.recv().is_err());
    }

    #[test]
    fn server_is_left_alone_after_a_fault() {
        let (worker, doorbell, seen, interrupt) = start();

        doorbell.write(2).unwrap();
        seen.recv().unwrap();
        while interrupt.faults.get() == 0 {
            std::thread::yield_now();
        }
        doorbell.write(1).unwrap();
        worker.stop();

        assert!(seen.recv().is_err());
        assert_ne!(interrupt.device_status(), 0);
    }
}
