//! `alacrity bench frames`: Ethernet frames through `venet-loopback` beside a socket pair, and
//! through `venet-switch` beside two TAP interfaces on a bridge.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use super::bus::{Bench, Driver};
use super::echo::Echo;
use super::report::{Comparison, Report};
use super::tap_pair::TapPair;
use super::{BenchError, Case, Effort};

/// Bytes of a frame, smallest and largest of an ordinary network.
const FRAME_BYTES: [usize; 2] = [64, 1500];
/// Frames that are handed over at once.
const BATCH: usize = 32;
/// A run that takes longer has lost something.
const DEADLINE: Duration = Duration::from_secs(60);
const A_WHILE: Duration = Duration::from_millis(10);

/// Frames through the devices beside what the kernel offers.
#[derive(Debug)]
pub struct FramesCase;

impl Case for FramesCase {
    fn run(&self, effort: Effort) -> Result<Report, BenchError> {
        let (num_rounds, num_frames) = match effort {
            Effort::Quick => (3, 20_000),
            Effort::Full => (11, 200_000),
        };
        let loopback = Bench::loopback()?;
        let switch = Bench::switch()?;
        // In a network namespace, which this thread enters and takes with it when it ends.
        let taps = TapPair::new()?;
        let mut comparisons = Vec::new();
        for len in FRAME_BYTES {
            let echo = Echo::start(len)?;
            let through_loopback = || through_loopback(&loopback, len, num_frames);
            let through_sockets = || echo.frames_ns(BATCH, num_frames);
            let through_switch = || through_switch(&switch, len, num_frames);
            let through_bridge = || {
                let stream = Stream::new(num_frames);
                stream.run(
                    |stream| taps.send(len, stream),
                    |stream| taps.receive(stream),
                )
            };
            comparisons.push(Comparison::measure(
                format!("loopback, {len} B"),
                num_rounds,
                ("loopback", through_loopback),
                ("socket pair", through_sockets),
            )?);
            comparisons.push(Comparison::measure(
                format!("switch, {len} B"),
                num_rounds,
                ("switch", through_switch),
                ("TAPs on a bridge", through_bridge),
            )?);
        }
        Ok(Report {
            case: "frames",
            what: "time per frame that arrives, sender and receiver in this process: venet-loopback \
                   beside a socket pair with an echo, venet-switch beside two TAPs on a bridge",
            comparisons,
            signals: vec![],
        })
    }
}

/// Nanoseconds per frame, there and back.
fn through_loopback(bench: &Bench, len: usize, num_frames: usize) -> Result<f64, BenchError> {
    let driver_error = |source| BenchError::Driver { source };
    let mut driver = bench.driver(0)?;
    let frame = vec![0xff; len];
    let batch = [frame.as_slice(); BATCH];
    let window = driver.num_slots() as usize;
    let (mut num_sent, mut num_received) = (0, 0);
    let start = Instant::now();
    while num_received < num_frames {
        let room = (window + num_received - num_sent).min(num_frames - num_sent);
        let frames = batch.get(..room.min(BATCH)).unwrap_or_default();
        let count = match frames.len() {
            0 => 0,
            _ => driver.send(frames).map_err(driver_error)?,
        };
        num_sent += count;
        let received = driver.receive(window, |_, _| {}).map_err(driver_error)?;
        num_received += received;
        if count + received == 0 {
            driver.wait_receive(A_WHILE).map_err(driver_error)?;
            if start.elapsed() > DEADLINE {
                return Err(BenchError::Lost);
            }
        }
    }
    let elapsed = start.elapsed();
    driver.close().map_err(driver_error)?;
    Ok(per_frame(elapsed, num_frames))
}

/// Nanoseconds per frame that arrives at the other port.
fn through_switch(bench: &Bench, len: usize, num_frames: usize) -> Result<f64, BenchError> {
    let driver_error = |source| BenchError::Driver { source };
    let (mut sender, mut receiver) = (bench.driver(0)?, bench.driver(1)?);
    let (source, target) = (
        sender.mac().map_err(driver_error)?,
        receiver.mac().map_err(driver_error)?,
    );
    // The switch learns where the receiver is.
    let hello = ethernet_frame([0xff; 6], target.0, 64);
    receiver.send(&[&hello]).map_err(driver_error)?;
    let deadline = Instant::now() + DEADLINE;
    while sender.receive(1, |_, _| {}).map_err(driver_error)? == 0 {
        sender.wait_receive(A_WHILE).map_err(driver_error)?;
        if Instant::now() > deadline {
            return Err(BenchError::Lost);
        }
    }
    let frame = ethernet_frame(target.0, source.0, len);
    let stream = Stream::new(num_frames);
    let ns = stream.run(
        |stream| send_all(&mut sender, &frame, stream),
        |stream| receive_all(&mut receiver, stream),
    )?;
    sender.close().map_err(driver_error)?;
    receiver.close().map_err(driver_error)?;
    Ok(ns)
}

fn send_all(driver: &mut Driver, frame: &[u8], stream: &Stream) -> Result<(), BenchError> {
    let driver_error = |source| BenchError::Driver { source };
    let batch = [frame; BATCH];
    while !stream.is_over() {
        if driver.send(&batch).map_err(driver_error)? == 0 {
            driver.wait_send(A_WHILE).map_err(driver_error)?;
        }
    }
    Ok(())
}

fn receive_all(driver: &mut Driver, stream: &Stream) -> Result<(), BenchError> {
    let driver_error = |source| BenchError::Driver { source };
    while !stream.is_over() {
        let count = driver.receive(256, |_, _| {}).map_err(driver_error)?;
        stream.arrived(count);
        if count == 0 {
            driver.wait_receive(A_WHILE).map_err(driver_error)?;
        }
    }
    Ok(())
}

/// An Ethernet frame of a private type.
pub fn ethernet_frame(target: [u8; 6], source: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [&target[..], &source, &[0x88, 0xb5]].concat();
    frame.resize(len, 0);
    frame
}

/// Frames on their way from one thread to another, until enough have arrived. What is lost on the
/// way is sent again and again, as a network does.
pub struct Stream {
    num_wanted: usize,
    num_arrived: AtomicUsize,
    is_over: AtomicBool,
}

impl Stream {
    fn new(num_wanted: usize) -> Self {
        Stream {
            num_wanted,
            num_arrived: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        }
    }

    /// True when both sides may stop.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }

    /// Frames have arrived.
    pub fn arrived(&self, count: usize) {
        if self.num_arrived.fetch_add(count, Relaxed) + count >= self.num_wanted {
            self.is_over.store(true, Relaxed);
        }
    }

    /// Runs both sides in threads of their own; nanoseconds per frame that arrived.
    fn run(
        &self,
        send: impl FnOnce(&Self) -> Result<(), BenchError> + Send,
        receive: impl FnOnce(&Self) -> Result<(), BenchError> + Send,
    ) -> Result<f64, BenchError> {
        let start = Instant::now();
        let side = |result: Result<(), BenchError>| {
            // A side that fails ends the other.
            self.is_over.store(true, Relaxed);
            result
        };
        let (sent, received) = thread::scope(|scope| {
            let receiver = scope.spawn(|| side(receive(self)));
            let sender = scope.spawn(|| side(send(self)));
            while !self.is_over() {
                thread::sleep(A_WHILE);
                if start.elapsed() > DEADLINE {
                    self.is_over.store(true, Relaxed);
                }
            }
            (sender.join(), receiver.join())
        });
        let elapsed = start.elapsed();
        sent.map_err(|_| BenchError::Panic)??;
        received.map_err(|_| BenchError::Panic)??;
        match self.num_arrived.load(Relaxed) {
            num_arrived if num_arrived < self.num_wanted => Err(BenchError::Lost),
            num_arrived => Ok(per_frame(elapsed, num_arrived)),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn per_frame(elapsed: Duration, num_frames: usize) -> f64 {
    elapsed.as_secs_f64() * 1e9 / num_frames as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_through_both_devices() {
        let (loopback, switch) = (Bench::loopback().unwrap(), Bench::switch().unwrap());

        for len in FRAME_BYTES {
            assert!(through_loopback(&loopback, len, 2_000).unwrap() > 0.0);
            assert!(through_switch(&switch, len, 2_000).unwrap() > 0.0);
        }
    }

    #[test]
    fn frames_arrive_over_the_bridge() {
        let taps = match TapPair::new() {
            Ok(taps) => taps,
            Err(error) => {
                println!("SKIPPED: {error}");
                return;
            }
        };
        let stream = Stream::new(500);

        let ns = stream.run(
            |stream| taps.send(64, stream),
            |stream| taps.receive(stream),
        );

        assert!(ns.unwrap() > 0.0);
    }
}
