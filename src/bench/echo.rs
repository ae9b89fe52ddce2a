//! A thread behind a socket pair that answers each packet with the same packet.

use std::os::fd::OwnedFd;
use std::thread;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use super::BenchError;

/// What a call to another thread, or a frame there and back, costs without a bus.
pub struct Echo {
    socket: OwnedFd,
    len: usize,
}

fn io(source: Errno) -> BenchError {
    BenchError::Io {
        what: "use a socket pair",
        source: source.into(),
    }
}

impl Echo {
    /// For packets of `len` bytes.
    ///
    /// # Errors
    /// The host is out of sockets or threads.
    pub fn start(len: usize) -> Result<Self, BenchError> {
        let (socket, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(io)?;
        let mut data = vec![0; len];
        // Ends when `socket` is closed.
        let answer = move || {
            while let Ok((len @ 1.., _)) = recv(&theirs, &mut data, RecvFlags::empty()) {
                let answer = data.get(..len).unwrap_or_default();
                if send(&theirs, answer, SendFlags::NOSIGNAL).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("echo".into())
            .spawn(answer)
            .map_err(|source| BenchError::Io {
                what: "start a thread",
                source,
            })?;
        Ok(Echo { socket, len })
    }

    /// Nanoseconds per packet there and back, one under way.
    ///
    /// # Errors
    /// The socket broke.
    pub fn call_ns(&self, num_calls: usize) -> Result<f64, BenchError> {
        self.frames_ns(1, num_calls)
    }

    /// Nanoseconds per packet there and back, `batch` under way: few enough for the socket's buffer.
    ///
    /// # Errors
    /// The socket broke.
    pub fn frames_ns(&self, batch: usize, num_frames: usize) -> Result<f64, BenchError> {
        let mut data = vec![1; self.len];
        let start = Instant::now();
        let mut num_received = 0;
        while num_received < num_frames {
            for _ in 0..batch {
                send(&self.socket, &data, SendFlags::NOSIGNAL).map_err(io)?;
            }
            for _ in 0..batch {
                recv(&self.socket, &mut data, RecvFlags::empty()).map_err(io)?;
            }
            num_received += batch;
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let num_received = num_received as f64;
        Ok(start.elapsed().as_secs_f64() * 1e9 / num_received)
    }
}
