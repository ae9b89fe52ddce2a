//! The thread that closes connections on behalf of those who must not wait for a device.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use super::connection::Connection;
use crate::threads::{self, ThreadClass};

#[derive(Debug)]
enum Job {
    Close(Arc<Connection>),
    Stop,
}

/// Where connections that are to be closed are queued. Each connection is queued a few times at
/// most (when it is dropped, and when its last call ends), so quotas bound the queue.
#[derive(Debug, Clone)]
pub(crate) struct Jobs(Sender<Job>);

impl Jobs {
    /// Closes the connection soon. Never blocks.
    pub fn close(&self, connection: Arc<Connection>) {
        // The thread outlives every client, and a connection without a client is closed already.
        let _ = self.0.send(Job::Close(connection));
    }
}

/// The thread; dropping it runs what is queued and joins it.
#[derive(Debug)]
pub(super) struct Housekeeper {
    jobs: Jobs,
    thread: Option<JoinHandle<()>>,
}

impl Housekeeper {
    /// # Panics
    /// The host has no thread left: happens at start or not at all.
    #[allow(clippy::expect_used, reason = "no guest or client has a part in it")]
    pub fn start() -> Self {
        let (sender, receiver) = channel();
        let thread = threads::spawn(ThreadClass::Bus, "vbus-housekeeper", move || {
            serve(&receiver)
        })
        .expect("no thread for the bus's housekeeping");
        Housekeeper {
            jobs: Jobs(sender),
            thread: Some(thread),
        }
    }

    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }
}

fn serve(jobs: &Receiver<Job>) {
    while let Ok(Job::Close(connection)) = jobs.recv() {
        connection.close();
    }
}

impl Drop for Housekeeper {
    fn drop(&mut self) {
        let _ = self.jobs.0.send(Job::Stop);
        let Some(thread) = self.thread.take() else {
            return;
        };
        // A device that owned the last reference to its own host may be closed by this very thread.
        if thread.thread().id() != thread::current().id() {
            let _ = thread.join();
        }
    }
}
