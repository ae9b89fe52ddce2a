//! What the examples share: arguments, and a link that is up.

use std::error::Error;
use std::path::Path;

use alacrity_devices::venet::driver::{Buffers, Options, Venet};
use vbus::abi::venet::KIND;
use vbus::client::{Connection, Remote};

/// For experiments (IEEE 802, "Local Experimental EtherType 1").
pub const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

const USAGE: &str = "usage: --socket PATH --bus NAME";
/// Where the daemon finds our buffers. Any address will do.
const BASE: u64 = 0;
const PAGE_BYTES: usize = 4096;

/// Joins the bus that the arguments name and opens its first network device.
pub fn open() -> Result<Venet<Remote>, Box<dyn Error>> {
    let (mut socket, mut bus) = (None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--socket" => socket = arguments.next(),
            "--bus" => bus = arguments.next(),
            _ => return Err(USAGE.into()),
        }
    }
    let (Some(socket), Some(bus)) = (socket, bus) else {
        return Err(USAGE.into());
    };
    let remote = Connection::connect(Path::new(&socket))?.join(&bus)?;
    let devices = remote.devices()?;
    let network = devices.iter().find(|(_, kind)| kind == KIND);
    let (id, _) = network.ok_or("there is no network device on this bus")?;
    let options = Options::default();
    let len = options.buffer_bytes().next_multiple_of(PAGE_BYTES);
    let region = remote.add_memory(BASE, len)?;
    let buffers = Buffers { region, base: BASE };
    let venet = Venet::open(remote, *id, buffers, options)?;
    venet.link_up()?;
    Ok(venet)
}
