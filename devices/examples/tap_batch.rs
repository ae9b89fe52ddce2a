//! What a frame costs through a TAP: one system call each, or batches of an io_uring.
//!
//! ```sh
//! cargo run --release -p alacrity-devices --example tap_batch    # as root
//! ```
//!
//! Makes the TAP `tapbatch0`, and prints medians in nanoseconds per frame. See
//! `docs/decisions/0017-one-system-call-per-tap-frame.md`.
#![expect(
    unsafe_code,
    reason = "io_uring takes pointers to buffers that outlive its batch"
)]

use std::error::Error;
use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use alacrity_devices::iovec::MixedIoVecs;
use alacrity_devices::tap::Tap;
use io_uring::{IoUring, opcode, types};

const BATCH: usize = 32;
/// Frames of one measurement; fewer than the TAP's queue holds.
const NUM_FRAMES: usize = 320;
const NUM_ROUNDS: usize = 201;
const HEADER_BYTES: usize = 12;

fn median_ns(rounds: &mut [Duration]) -> u128 {
    rounds.sort();
    let middle = rounds.get(rounds.len() / 2).copied().unwrap_or_default();
    middle.as_nanos() / NUM_FRAMES as u128
}

fn ip(arguments: &str) -> Result<(), Box<dyn Error>> {
    let status = Command::new("ip").args(arguments.split(' ')).status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("ip {arguments}").into()),
    }
}

/// Frames that the host throws away: broadcasts of a private type.
fn frames(len: usize) -> Vec<Vec<u8>> {
    let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 9], &[0x88, 0xb5]].concat();
    let mut frame = [vec![0; HEADER_BYTES], frame].concat();
    frame.resize(HEADER_BYTES + len, 0);
    vec![frame; BATCH]
}

/// Submits one operation per buffer, waits for all; how many did something.
fn batch(
    uring: &mut IoUring,
    entries: impl Iterator<Item = io_uring::squeue::Entry>,
) -> Result<usize, Box<dyn Error>> {
    let mut num_submitted = 0;
    for entry in entries {
        // SAFETY: the buffers belong to the caller, which waits below until the kernel is done.
        unsafe { uring.submission().push(&entry)? };
        num_submitted += 1;
    }
    uring.submit_and_wait(num_submitted)?;
    Ok(uring
        .completion()
        .filter(|entry| entry.result() > 0)
        .count())
}

fn write_each(tap: &File, frames: &[Vec<u8>]) -> Result<(), Box<dyn Error>> {
    let mut list = MixedIoVecs::default();
    for _ in 0..NUM_FRAMES / BATCH {
        for frame in frames {
            let (header, body) = frame.split_at(HEADER_BYTES);
            list.write(tap, &[header, body], &Default::default(), [])?;
        }
    }
    Ok(())
}

fn write_uring(tap: &File, uring: &mut IoUring, frames: &[Vec<u8>]) -> Result<(), Box<dyn Error>> {
    let fd = types::Fd(tap.as_raw_fd());
    for _ in 0..NUM_FRAMES / BATCH {
        let entries = frames.iter().map(|frame| {
            let len = u32::try_from(frame.len()).unwrap_or(0);
            opcode::Write::new(fd, frame.as_ptr(), len).build()
        });
        if batch(uring, entries)? != BATCH {
            return Err("a frame was not written".into());
        }
    }
    Ok(())
}

fn read_each(tap: &File, buffers: &mut [Vec<u8>]) -> usize {
    let mut list = MixedIoVecs::default();
    let mut num_read = 0;
    loop {
        for buffer in &mut *buffers {
            let (header, body) = buffer.split_at_mut(HEADER_BYTES);
            match list.read(tap, header, &Default::default(), [], body) {
                Ok(_) => num_read += 1,
                Err(_) => return num_read,
            }
        }
    }
}

fn read_uring(
    tap: &File,
    uring: &mut IoUring,
    buffers: &mut [Vec<u8>],
) -> Result<usize, Box<dyn Error>> {
    let fd = types::Fd(tap.as_raw_fd());
    let mut num_read = 0;
    // No more than there are: a read of an empty TAP waits, O_NONBLOCK or not.
    for _ in 0..NUM_FRAMES / BATCH {
        let entries = buffers.iter_mut().map(|buffer| {
            let len = u32::try_from(buffer.len()).unwrap_or(0);
            opcode::Read::new(fd, buffer.as_mut_ptr(), len).build()
        });
        num_read += batch(uring, entries)?;
    }
    Ok(num_read)
}

fn main() -> Result<(), Box<dyn Error>> {
    let tap = Tap::open("tapbatch0", 1)?;
    tap.bring_up()?;
    ip("addr add 198.51.9.1/24 dev tapbatch0")?;
    ip("neigh replace 198.51.9.2 lladdr 02:00:00:00:00:09 dev tapbatch0")?;
    let file = tap.queues().first().ok_or("no queue")?;
    let mut uring = IoUring::new(64)?;
    let socket = UdpSocket::bind("198.51.9.1:0")?;
    for len in [60, 1400] {
        let frames = frames(len);
        let mut buffers = vec![vec![0; 2048]; BATCH];
        let mut rounds = [const { Vec::new() }; 4];
        let [write, write_ring, read, read_ring] = &mut rounds;
        read_each(file, &mut buffers);
        for round in 0..2 * NUM_ROUNDS {
            let start = Instant::now();
            if round % 2 == 0 {
                write_each(file, &frames)?;
                write.push(start.elapsed());
            } else {
                write_uring(file, &mut uring, &frames)?;
                write_ring.push(start.elapsed());
            }
            // What the kernel says by itself.
            read_each(file, &mut buffers);
            for _ in 0..NUM_FRAMES {
                socket.send_to(&vec![0; len - 42], "198.51.9.2:9")?;
            }
            let start = Instant::now();
            let num_read = if round % 2 == 0 {
                let num_read = read_each(file, &mut buffers);
                read.push(start.elapsed());
                num_read
            } else {
                let num_read = read_uring(file, &mut uring, &mut buffers)?;
                read_ring.push(start.elapsed());
                num_read
            };
            if num_read < NUM_FRAMES {
                return Err(format!("{num_read} of {NUM_FRAMES} frames were read").into());
            }
        }
        println!(
            "{len} bytes: write {} ns, io_uring {} ns; read {} ns, io_uring {} ns",
            median_ns(write),
            median_ns(write_ring),
            median_ns(read),
            median_ns(read_ring)
        );
    }
    Ok(())
}
