//! The thread that serves one device's queues.
//!
//! A worker owns an event-manager with one subscriber and runs until [`Worker::stop`]. It is the
//! only thread that touches the device's queues, so the queues need no lock.

use std::io;
use std::thread::JoinHandle;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use vbus::threads::{self, ThreadClass};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A running device thread. Dropping it stops and joins the thread.
#[derive(Debug)]
pub struct Worker {
    stop_evt: EventFd,
    thread: Option<JoinHandle<()>>,
}

/// Ends the loop when the stop eventfd is written.
struct Stop {
    stop_evt: EventFd,
    is_stopped: bool,
}

/// What one worker's event manager dispatches to.
enum Subscriber<S> {
    Device(S),
    Stop(Stop),
}

impl<S: MutEventSubscriber> MutEventSubscriber for Subscriber<S> {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match self {
            Subscriber::Device(device) => device.process(events, ops),
            Subscriber::Stop(stop) => stop.is_stopped = true,
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        match self {
            Subscriber::Device(device) => device.init(ops),
            Subscriber::Stop(stop) => {
                if let Err(error) = ops.add(Events::new(&stop.stop_evt, EventSet::IN)) {
                    tracing::error!("worker: cannot watch its stop event: {error}");
                    stop.is_stopped = true;
                }
            }
        }
    }
}

impl Worker {
    /// Starts a thread called `name` that dispatches events to `subscriber`.
    ///
    /// The subscriber registers its file descriptors in `init`, which runs on the new thread, and
    /// is dropped on that thread when the worker stops.
    ///
    /// # Errors
    /// The host is out of threads or file descriptors.
    pub fn spawn<S>(name: String, subscriber: S) -> io::Result<Self>
    where
        S: MutEventSubscriber + Send + 'static,
    {
        let stop_evt = EventFd::new(EFD_NONBLOCK)?;
        let stop = Stop {
            stop_evt: stop_evt.try_clone()?,
            is_stopped: false,
        };
        let mut manager = EventManager::new().map_err(io::Error::other)?;
        let thread = threads::spawn(ThreadClass::Device, name, move || {
            let stop_id = manager.add_subscriber(Subscriber::Stop(stop));
            manager.add_subscriber(Subscriber::Device(subscriber));
            loop {
                match manager.subscriber_mut(stop_id) {
                    Ok(Subscriber::Stop(stop)) if !stop.is_stopped => {}
                    _ => return,
                }
                // EINTR is the only error epoll_wait can return here, and the loop repeats it.
                let _ = manager.run();
            }
        })?;
        Ok(Worker {
            stop_evt,
            thread: Some(thread),
        })
    }

    /// Stops the thread and waits until it is gone, and with it every use of guest memory.
    pub fn stop(mut self) {
        self.join();
    }

    fn join(&mut self) {
        // A write to an eventfd fails only when its counter is full, and then it is readable.
        let _ = self.stop_evt.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a device worker panicked");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Echo {
        kick: EventFd,
        seen: mpsc::Sender<u64>,
    }

    impl MutEventSubscriber for Echo {
        fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
            self.seen.send(self.kick.read().unwrap()).unwrap();
        }
        fn init(&mut self, ops: &mut EventOps<'_>) {
            ops.add(Events::new(&self.kick, EventSet::IN)).unwrap();
        }
    }

    #[test]
    fn worker_serves_events_until_it_is_stopped() {
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let (sender, receiver) = mpsc::channel();
        let subscriber = Echo {
            kick: kick.try_clone().unwrap(),
            seen: sender,
        };
        let worker = Worker::spawn("echo".into(), subscriber).unwrap();

        kick.write(3).unwrap();

        assert_eq!(receiver.recv().unwrap(), 3);
        worker.stop();
        assert!(receiver.recv().is_err(), "the subscriber is dropped");
    }
}
