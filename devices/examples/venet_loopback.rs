//! Sends frames through a `venet-loopback` and counts what comes back.
//!
//! ```text
//! alacrity host --socket /tmp/vbus.sock &
//! S=--socket=/tmp/vbus.sock
//! alacrity vbus $S mkdir config/devices/loop0
//! alacrity vbus $S echo venet-loopback config/devices/loop0/type
//! alacrity vbus $S mkdir config/instances/bus0
//! alacrity vbus $S ln config/devices/loop0 config/instances/bus0/loop0
//! cargo run -p alacrity-devices --example venet_loopback -- --socket /tmp/vbus.sock --bus bus0
//! ```
#![allow(missing_docs)]

mod station;

use std::error::Error;
use std::time::Duration;

use station::ETHERTYPE;

const NUM_FRAMES: u32 = 100_000;
/// Frames that are on their way at once: fewer than there are receive buffers, so none is lost.
const WINDOW: u32 = 128;

fn main() -> Result<(), Box<dyn Error>> {
    let mut venet = station::open()?;
    let mac = venet.mac()?.0;
    let (mut num_sent, mut num_received) = (0_u32, 0_u32);
    while num_received < NUM_FRAMES {
        let num_new = (NUM_FRAMES - num_sent).min(WINDOW - (num_sent - num_received));
        let frames: Vec<Vec<u8>> = (num_sent..num_sent + num_new)
            .map(|number| {
                let mut frame = [mac, mac].concat();
                frame.extend(ETHERTYPE);
                frame.extend(number.to_be_bytes());
                frame.resize(60, 0);
                frame
            })
            .collect();
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        num_sent += u32::try_from(venet.send(&frames)?)?;
        let mut is_in_order = true;
        let num_new = venet.receive(64, |frame, _meta| {
            is_in_order &= frame.get(14..18) == Some(&num_received.to_be_bytes());
            num_received += 1;
        })?;
        if !is_in_order {
            return Err(format!("frame {num_received} is not the one expected").into());
        }
        if num_new == 0 && !venet.wait_receive(Duration::from_secs(10))? {
            return Err(format!("only {num_received} of {num_sent} frames came back").into());
        }
    }
    println!("{num_received} frames came back in order");
    venet.close()?;
    Ok(())
}
