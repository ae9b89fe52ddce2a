//! A chat: each line of standard input is a broadcast frame on a `venet-switch`, and each such frame
//! from others is a line of standard output. Start it twice, on two buses with the same switch.
//!
//! ```text
//! alacrity host --socket /tmp/vbus.sock &
//! S=--socket=/tmp/vbus.sock
//! alacrity vbus $S mkdir config/devices/sw0
//! alacrity vbus $S echo venet-switch config/devices/sw0/type
//! alacrity vbus $S mkdir config/instances/red
//! alacrity vbus $S mkdir config/instances/blue
//! alacrity vbus $S ln config/devices/sw0 config/instances/red/sw0
//! alacrity vbus $S ln config/devices/sw0 config/instances/blue/sw0
//! cargo run -p alacrity-devices --example venet_chat -- --socket /tmp/vbus.sock --bus red
//! cargo run -p alacrity-devices --example venet_chat -- --socket /tmp/vbus.sock --bus blue
//! ```
#![allow(missing_docs)]

mod station;

use std::error::Error;
use std::io::{self, BufRead};
use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::Duration;

use station::ETHERTYPE;

/// Bytes of a line that fit a frame without fragmentation.
const MAX_LINE_BYTES: usize = 1400;
/// Bytes in front of the line: Ethernet header and the line's length.
const HEADER_BYTES: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let mut venet = station::open()?;
    let mac = venet.mac()?;
    eprintln!("{mac} is here; end with Ctrl-D");
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    loop {
        match lines.try_recv() {
            Ok(line) => {
                let frame = frame_of(mac.0, &line)?;
                while venet.send(&[&frame])? == 0 {
                    venet.wait_send(Duration::from_secs(1))?;
                }
            }
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                venet.receive(64, |frame, _meta| {
                    if let Some((from, line)) = line_of(frame) {
                        println!("{from}: {line}");
                    }
                })?;
                // Short, to look at standard input as well.
                venet.wait_receive(Duration::from_millis(20))?;
            }
        }
    }
    // The device is done with the last line when all slots are back.
    while venet.room()? < venet.num_slots() {
        thread::sleep(Duration::from_millis(1));
    }
    venet.close()?;
    Ok(())
}

fn frame_of(mac: [u8; 6], line: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    // No character has more than four bytes.
    let end = (MAX_LINE_BYTES - 3..=MAX_LINE_BYTES).rfind(|end| line.is_char_boundary(*end));
    let line = end.and_then(|end| line.get(..end)).unwrap_or(line);
    let line = line.as_bytes();
    let mut frame = [[0xff; 6], mac].concat();
    frame.extend(ETHERTYPE);
    frame.extend(u16::try_from(line.len())?.to_be_bytes());
    frame.extend(line);
    frame.resize(frame.len().max(60), 0);
    Ok(frame)
}

/// Who sent it, and what; `None` for other frames.
fn line_of(frame: &[u8]) -> Option<(String, String)> {
    if frame.get(12..14)? != ETHERTYPE {
        return None;
    }
    let from: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
    let len = u16::from_be_bytes(frame.get(14..16)?.try_into().ok()?);
    let line = frame.get(HEADER_BYTES..)?.get(..usize::from(len))?;
    // A terminal obeys control characters.
    let text: String = String::from_utf8_lossy(line)
        .chars()
        .filter(|c| !c.is_control())
        .collect();
    Some((alacrity_devices::venet::MacAddress(from).to_string(), text))
}
