//! One function's configuration space (PCI 3.0 §6).
//!
//! Two byte arrays hold it all: what a read answers, and which bits a write changes. BAR sizing
//! (write ones, read back the size) falls out of the second. Nothing here has side effects; the
//! [`super::root`] looks at [`ConfigSpace::decoded_bars`] after each write.

/// Bytes of a conventional configuration space. The extended space above it reads as zeros.
pub const CONFIG_BYTES: usize = 256;
/// Number of BARs of a type 0 header.
pub const NUM_BARS: usize = 6;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
/// First byte that capabilities may use, past the type 0 header.
const FIRST_CAPABILITY: usize = 0x40;

const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// "Advanced Features for Conventional PCI" (PCI-SIG ECN of 2006), for functions that have no PCI
/// Express capability.
const ADVANCED_FEATURES: u8 = 0x13;
const ADVANCED_FEATURES_BYTES: u8 = 6;
/// The capability says: pending transactions show, function-level reset is there.
const ADVANCED_FEATURES_TP_FLR: u8 = 3;
const INITIATE_FLR: u8 = 1;

/// Which address space a BAR decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// 32-bit memory, not prefetchable.
    Memory32,
    /// I/O ports.
    Io,
}

/// A BAR as the guest placed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// 0 to 5.
    pub idx: usize,
    /// Address space.
    pub kind: BarKind,
    /// First address.
    pub start: u64,
    /// Length in bytes, a power of two.
    pub len: u64,
}

/// The identity of a function (PCI 3.0 §6.2.1).
#[derive(Debug, Clone, Copy)]
pub struct PciIds {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface, from the top: `0xCCSSPP`.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// A type 0 configuration space.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    bars: [Option<(BarKind, u32)>; NUM_BARS],
    last_capability: usize,
    next_free: usize,
    /// Where function-level reset is initiated.
    flr_control: Option<usize>,
}

impl ConfigSpace {
    /// A function with `ids`, no BARs and no capabilities.
    pub fn new(ids: PciIds) -> Self {
        let mut config = ConfigSpace {
            bytes: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            bars: [None; NUM_BARS],
            last_capability: CAPABILITIES,
            next_free: FIRST_CAPABILITY,
            flr_control: None,
        };
        config.set(0x00, &ids.vendor.to_le_bytes());
        config.set(0x02, &ids.device.to_le_bytes());
        config.set(
            0x08,
            &(ids.class << 8 | u32::from(ids.revision)).to_le_bytes(),
        );
        config.set(0x2c, &ids.subsystem_vendor.to_le_bytes());
        config.set(0x2e, &ids.subsystem.to_le_bytes());
        let command = COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
        config.set_writable(COMMAND, &command.to_le_bytes());
        config.set_writable(0x0c, &[0xff]); // cache line size: a scratch byte for the driver
        config.set_writable(0x3c, &[0xff]); // interrupt line: likewise
        config
    }

    /// Declares BAR `idx` of `len` bytes, a power of two of at least 16.
    ///
    /// # Panics
    /// If the BAR is there already or `len` is no such number: both are our own mistakes.
    #[allow(clippy::expect_used, reason = "of numbers in our own code")]
    pub fn add_bar(&mut self, idx: usize, kind: BarKind, len: u32) {
        assert!(
            len.is_power_of_two() && len >= 16,
            "BAR {idx} of {len:#x} bytes"
        );
        let slot = self
            .bars
            .get_mut(idx)
            .expect("a type 0 header has BARs 0 to 5");
        assert!(slot.replace((kind, len)).is_none(), "BAR {idx} twice");
        let offset = BAR0 + 4 * idx;
        self.set_writable(offset, &(!(len - 1)).to_le_bytes());
        if kind == BarKind::Io {
            self.set(offset, &1u32.to_le_bytes());
        }
    }

    /// Appends a capability: `id`, then `body` (what follows the next pointer). Answers the offset
    /// of the id byte.
    ///
    /// # Panics
    /// If the space is full, which our own devices decide.
    #[allow(clippy::expect_used, reason = "of numbers in our own code")]
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> u16 {
        let offset = self.next_free;
        let len = (2 + body.len()).next_multiple_of(4);
        assert!(
            offset + len <= CONFIG_BYTES,
            "capability {id:#x} does not fit"
        );
        self.set(offset, &[id, 0]);
        self.set(offset + 2, body);
        let link = if self.last_capability == CAPABILITIES {
            CAPABILITIES
        } else {
            self.last_capability + 1
        };
        let offset_byte = u8::try_from(offset).expect("checked against CONFIG_BYTES");
        self.set(link, &[offset_byte]);
        self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.last_capability = offset;
        self.next_free = offset + len;
        u16::from(offset_byte)
    }

    /// Appends the capability of function-level reset.
    pub fn add_flr(&mut self) {
        let body = [ADVANCED_FEATURES_BYTES, ADVANCED_FEATURES_TP_FLR, 0, 0];
        let offset = self.add_capability(ADVANCED_FEATURES, &body);
        self.flr_control = Some(usize::from(offset) + 4);
    }

    /// True if a guest's write of `data` at `offset` initiates a function-level reset.
    pub fn is_flr(&self, offset: u16, data: &[u8]) -> bool {
        let idx = self
            .flr_control
            .and_then(|control| control.checked_sub(usize::from(offset)));
        let byte = idx.and_then(|idx| data.get(idx));
        byte.is_some_and(|byte| byte & INITIATE_FLR != 0)
    }

    /// Back to what it was before anybody wrote to it: BARs are nowhere, all is switched off.
    pub fn reset(&mut self) {
        for (byte, mask) in self.bytes.iter_mut().zip(self.writable) {
            *byte &= !mask;
        }
    }

    /// Lets the guest write the bits of `mask` from `offset` on.
    pub fn set_writable(&mut self, offset: usize, mask: &[u8]) {
        if let Some(bits) = self.writable.get_mut(offset..offset + mask.len()) {
            bits.copy_from_slice(mask);
        }
    }

    /// Reads `data.len()` bytes at `offset`; zeros above [`CONFIG_BYTES`].
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self
                .bytes
                .get(usize::from(offset) + i)
                .copied()
                .unwrap_or(0);
        }
    }

    /// A guest's write of `data` at `offset`: changes the writable bits, ignores the rest.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (i, &new) in data.iter().enumerate() {
            let at = usize::from(offset) + i;
            if let (Some(byte), Some(&mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | new & mask;
            }
        }
    }

    /// Places BAR `idx` as firmware does before the guest starts.
    pub fn place_bar(&mut self, idx: usize, start: u32) {
        let offset = u16::try_from(BAR0 + 4 * idx).unwrap_or(u16::MAX);
        self.write(offset, &start.to_le_bytes());
    }

    /// True if the guest lets the function access memory.
    pub fn is_bus_master(&self) -> bool {
        self.u32_at(COMMAND) & u32::from(COMMAND_BUS_MASTER) != 0
    }

    /// BARs that the function has, wherever they are.
    pub fn bars(&self) -> impl Iterator<Item = Bar> + '_ {
        self.bars.iter().enumerate().filter_map(|(idx, bar)| {
            let (kind, len) = (*bar)?;
            let register = self.u32_at(BAR0 + 4 * idx);
            let start = u64::from(register & !(len - 1));
            Some(Bar {
                idx,
                kind,
                start,
                len: u64::from(len),
            })
        })
    }

    /// BARs that the function answers now: placed, and enabled in the command register.
    pub fn decoded_bars(&self) -> Vec<Bar> {
        let command = self.u32_at(COMMAND);
        self.bars()
            .filter(|bar| {
                let enable = match bar.kind {
                    BarKind::Memory32 => COMMAND_MEMORY,
                    BarKind::Io => COMMAND_IO,
                };
                bar.start != 0 && command & u32::from(enable) != 0
            })
            .collect()
    }

    fn u32_at(&self, offset: usize) -> u32 {
        self.bytes
            .get(offset..offset + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u32::from_le_bytes)
    }

    fn set(&mut self, offset: usize, value: &[u8]) {
        if let Some(bytes) = self.bytes.get_mut(offset..offset + value.len()) {
            bytes.copy_from_slice(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn function() -> ConfigSpace {
        let mut config = ConfigSpace::new(PciIds {
            vendor: 0x1af4,
            device: 0x1041,
            revision: 1,
            class: 0x02_0000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1041,
        });
        config.add_bar(0, BarKind::Memory32, 0x8000);
        config.add_bar(1, BarKind::Io, 0x40);
        config.add_capability(0x09, &[4, 1, 2]);
        config.add_capability(0x11, &[0; 10]);
        config
    }

    fn u32_at(config: &ConfigSpace, offset: u16) -> u32 {
        let mut data = [0; 4];
        config.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn sizing_a_bar_reads_back_its_size_and_kind() {
        let mut config = function();

        config.write(0x10, &[0xff; 4]);
        config.write(0x14, &[0xff; 4]);

        assert_eq!(u32_at(&config, 0x10), 0xffff_8000);
        assert_eq!(u32_at(&config, 0x14), 0xffff_ffc1);
    }

    #[test]
    fn bar_decodes_only_while_its_space_is_enabled() {
        let mut config = function();
        config.place_bar(0, 0xc000_0000);

        assert_eq!(config.decoded_bars(), []);
        config.write(0x04, &[0x02, 0]);

        let bar = Bar {
            idx: 0,
            kind: BarKind::Memory32,
            start: 0xc000_0000,
            len: 0x8000,
        };
        assert_eq!(config.decoded_bars(), [bar]);
    }

    #[test]
    fn capabilities_form_a_chain_that_ends() {
        let config = function();

        let first = u32_at(&config, 0x34) & 0xff;
        let second = u32_at(&config, first as u16) >> 8 & 0xff;

        assert_eq!(u32_at(&config, first as u16) & 0xff, 0x09);
        assert_eq!(u32_at(&config, second as u16) & 0xffff, 0x11);
        assert_eq!(u32_at(&config, 0x04) >> 16 & 0x10, 0x10);
    }

    #[test]
    fn reset_clears_what_can_be_written_and_nothing_else() {
        let mut config = function();
        config.add_flr();
        let fresh = config.bytes;
        for offset in (0..0x100).step_by(4) {
            config.write(offset, &[0xff; 4]);
        }
        assert_ne!(config.bytes, fresh);
        assert_eq!(config.decoded_bars().len(), 2);

        config.reset();

        assert_eq!(config.bytes, fresh);
        assert_eq!(config.decoded_bars(), []);
    }

    #[test]
    fn function_level_reset_is_one_bit_of_one_byte() {
        let mut config = function();
        assert!(!config.is_flr(0x40, &[0xff; 8]), "not offered");
        config.add_flr();
        let control = u16::try_from(config.flr_control.unwrap()).unwrap();
        assert_eq!(u32_at(&config, control - 4) & 0xffff_00ff, 0x0306_0013);

        for (offset, data) in [
            (control, &[1][..]),
            (control - 1, &[0, 3]),
            (control, &[1, 0]),
        ] {
            assert!(config.is_flr(offset, data), "{offset:#x} {data:?}");
        }
        for (offset, data) in [
            (control, &[0xfe][..]),
            (control - 1, &[1]),
            (control + 1, &[1]),
        ] {
            assert!(!config.is_flr(offset, data), "{offset:#x} {data:?}");
        }
    }

    #[test]
    fn extended_space_reads_zeros() {
        assert_eq!(u32_at(&function(), 0x100), 0);
        assert_eq!(u32_at(&function(), 0xffe), 0);
    }

    proptest! {
        #[test]
        fn identity_capabilities_and_bar_sizes_survive_any_writes(
            writes in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 1..=8)), 0..64)
        ) {
            let fresh = function();
            let mut config = function();

            for (offset, data) in &writes {
                config.write(*offset, data);
            }

            for offset in [0x00, 0x08, 0x2c, 0x34, 0x40, 0x44, 0x48, 0x4c] {
                prop_assert_eq!(u32_at(&config, offset), u32_at(&fresh, offset));
            }
            for bar in config.decoded_bars() {
                prop_assert_eq!(bar.start % bar.len, 0);
                prop_assert!(bar.start + bar.len <= 1 << 32);
            }
        }
    }
}
