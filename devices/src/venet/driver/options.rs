//! What a driver is given.

use vbus::abi::venet::FrameMeta;
use vbus::memory::Region;

/// Where frames are: memory that the device finds at `base` of the client's memory.
#[derive(Debug, Clone)]
pub struct Buffers {
    /// At least [`Options::buffer_bytes`].
    pub region: Region,
    /// Its address in the memory context of the client.
    pub base: u64,
}

/// What a driver asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Slots of each ring: a power of two.
    pub num_slots: u32,
    /// Bytes of a receive buffer.
    pub rx_buffer_bytes: u32,
    /// Bytes of a transmit buffer.
    pub tx_buffer_bytes: u32,
    /// Bits of [`vbus::abi::venet::tx_cap`].
    pub tx_caps: u32,
    /// Bits of [`vbus::abi::venet::rx_cap`].
    pub rx_caps: u32,
    /// To be told when the link goes up or down.
    pub has_link_events: bool,
}

impl Default for Options {
    /// 256 slots of 2 KiB, no offloads.
    fn default() -> Self {
        Options {
            num_slots: 256,
            rx_buffer_bytes: 2048,
            tx_buffer_bytes: 2048,
            tx_caps: 0,
            rx_caps: 0,
            has_link_events: false,
        }
    }
}

impl Options {
    /// Bytes of buffer memory that these options take.
    pub fn buffer_bytes(&self) -> usize {
        let stride = self.rx_buffer_bytes as usize + self.tx_buffer_bytes as usize;
        self.num_slots as usize * stride
    }
}

/// A frame to send: its parts in order, and what the device is to do with it.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// Together the frame. More than one are sent scattered if that was negotiated.
    pub parts: &'a [&'a [u8]],
    /// Checksum and segmentation.
    pub meta: FrameMeta,
}
