//! The MSI-X table of one function (PCI 3.0 §6.8.2).
//!
//! Each entry is a [`MsiVector`]. Masking takes the vector's route away; an interrupt raised
//! meanwhile waits in the vector's eventfd, which is the pending bit, and arrives on unmasking.

use std::sync::Arc;

use crate::interrupt::{MsiMessage, MsiVector};
use crate::metrics::Counter;

/// Capability id of MSI-X.
pub const MSIX_CAPABILITY_ID: u8 = 0x11;
/// Bytes of one table entry: address low, address high, data, vector control.
pub const ENTRY_BYTES: u64 = 16;

const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
/// Bits of message control that the guest may write.
pub const CONTROL_WRITABLE: u16 = CONTROL_ENABLE | CONTROL_FUNCTION_MASK;
const ENTRY_MASKED: u32 = 1;

/// Whoever holds the vectors that a table routes.
pub trait VectorOwner: Send + Sync {
    /// The vectors, in the order of the table.
    fn vectors(&self) -> &[Box<dyn MsiVector>];
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
    /// What the vector's route is now.
    routed: Option<MsiMessage>,
}

/// The table, the pending bits and the two enable bits.
pub struct MsixTable {
    owner: Arc<dyn VectorOwner>,
    entries: Vec<Entry>,
    control: u16,
    /// Messages that the host refused.
    bad_routes: Counter,
}

impl std::fmt::Debug for MsixTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MsixTable")
            .field("entries", &self.entries)
            .field("control", &self.control)
            .finish_non_exhaustive()
    }
}

impl MsixTable {
    /// A table with one masked entry for each vector of `owner`.
    pub fn new(owner: Arc<dyn VectorOwner>) -> Self {
        let entries = vec![Entry::MASKED; owner.vectors().len()];
        MsixTable {
            owner,
            entries,
            control: 0,
            bad_routes: Counter::default(),
        }
    }

    /// Body of the capability for a table at `table_offset` and pending bits at `pba_offset`, both
    /// in BAR `bar_idx`: message control, table and PBA registers.
    pub fn capability_body(&self, bar_idx: u8, table_offset: u32, pba_offset: u32) -> [u8; 10] {
        let size_code = u16::try_from(self.entries.len().saturating_sub(1)).unwrap_or(0x7ff);
        let mut body = [0; 10];
        let fields = size_code
            .to_le_bytes()
            .into_iter()
            .chain((table_offset | u32::from(bar_idx)).to_le_bytes())
            .chain((pba_offset | u32::from(bar_idx)).to_le_bytes());
        for (byte, value) in body.iter_mut().zip(fields) {
            *byte = value;
        }
        body
    }

    /// The guest wrote message control.
    pub fn set_control(&mut self, control: u16) {
        if self.control != control & CONTROL_WRITABLE {
            self.control = control & CONTROL_WRITABLE;
            for idx in 0..self.entries.len() {
                self.update_route(idx);
            }
        }
    }

    /// Back to masked entries without messages.
    pub fn reset(&mut self) {
        for entry in &mut self.entries {
            *entry = Entry {
                routed: entry.routed,
                ..Entry::MASKED
            };
        }
        self.control = 0;
        for idx in 0..self.entries.len() {
            self.update_route(idx);
        }
    }

    /// Reads `data.len()` bytes of the table at `offset`; zeros past its end.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(idx) = usize::try_from(offset / ENTRY_BYTES) else {
            return;
        };
        let Some(entry) = self.entries.get(idx) else {
            return;
        };
        let bytes = entry
            .bytes()
            .into_iter()
            .skip(usize::from(offset.to_le_bytes()[0] % 16));
        for (byte, value) in data.iter_mut().zip(bytes) {
            *byte = value;
        }
    }

    /// The guest wrote `data` (4 or 8 aligned bytes; anything else is ignored, as PCI 3.0 §6.8.2
    /// leaves it undefined) to the table at `offset`.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let Ok(idx) = usize::try_from(offset / ENTRY_BYTES) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(idx) else {
            return;
        };
        for (i, word) in data.chunks_exact(4).enumerate() {
            let word = u32::from_le_bytes(word.try_into().unwrap_or_default());
            entry.set_word(offset % ENTRY_BYTES / 4 + i as u64, word);
        }
        self.update_route(idx);
    }

    /// Reads `data.len()` bytes of the pending bit array at `offset`.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let first = (offset + i as u64).saturating_mul(8);
            *byte = (0..8).fold(0, |bits, bit| {
                let is_pending = usize::try_from(first + bit).is_ok_and(|idx| self.is_pending(idx));
                bits | u8::from(is_pending) << bit
            });
        }
    }

    fn is_pending(&self, idx: usize) -> bool {
        let (Some(entry), Some(vector)) = (self.entries.get(idx), self.owner.vectors().get(idx))
        else {
            return false;
        };
        // While there is no route nobody else consumes the eventfd, so reading it and putting the
        // count back loses nothing.
        match entry.routed {
            Some(_) => false,
            None => vector
                .irqfd()
                .read()
                .is_ok_and(|count| vector.irqfd().write(count).is_ok()),
        }
    }

    fn update_route(&mut self, idx: usize) {
        let is_enabled = self.control & CONTROL_WRITABLE == CONTROL_ENABLE;
        let (Some(entry), Some(vector)) =
            (self.entries.get_mut(idx), self.owner.vectors().get(idx))
        else {
            return;
        };
        let wanted = (is_enabled && entry.control & ENTRY_MASKED == 0).then_some(MsiMessage {
            address: entry.address,
            data: entry.data,
        });
        if wanted == entry.routed {
            return;
        }
        match vector.route(wanted) {
            Ok(()) => entry.routed = wanted,
            Err(error) if self.bad_routes.count_sparsely() => {
                tracing::warn!("MSI-X vector {idx}: cannot route {wanted:x?}: {error}");
            }
            Err(_) => {}
        }
    }
}

impl Entry {
    /// As after a reset.
    const MASKED: Entry = Entry {
        address: 0,
        data: 0,
        control: ENTRY_MASKED,
        routed: None,
    };

    /// The entry as the guest reads it: address, data, vector control.
    fn bytes(&self) -> [u8; 16] {
        (u128::from(self.address) | u128::from(self.data) << 64 | u128::from(self.control) << 96)
            .to_le_bytes()
    }

    fn set_word(&mut self, word_idx: u64, word: u32) {
        match word_idx {
            0 => self.address = self.address & !0xffff_ffff | u64::from(word & !3),
            1 => self.address = self.address & 0xffff_ffff | u64::from(word) << 32,
            2 => self.data = word,
            _ => self.control = word & ENTRY_MASKED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::MsiVectors;
    use crate::test_utils::{FakeVectors, count_warnings};
    use parking_lot::Mutex;
    use std::io;
    use vmm_sys_util::eventfd::EventFd;

    /// A vector that remembers its routes.
    struct Recorder {
        vector: Box<dyn MsiVector>,
        routes: Arc<Mutex<Vec<Option<MsiMessage>>>>,
    }

    impl MsiVector for Recorder {
        fn irqfd(&self) -> &EventFd {
            self.vector.irqfd()
        }
        fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
            self.routes.lock().push(message);
            Ok(())
        }
    }

    struct Owner(Vec<Box<dyn MsiVector>>);

    impl VectorOwner for Owner {
        fn vectors(&self) -> &[Box<dyn MsiVector>] {
            &self.0
        }
    }

    type Routes = Arc<Mutex<Vec<Option<MsiMessage>>>>;

    fn table() -> (MsixTable, Arc<Owner>, Routes) {
        let routes = Routes::default();
        let recorder = Recorder {
            vector: FakeVectors.allocate().unwrap(),
            routes: Arc::clone(&routes),
        };
        let owner = Arc::new(Owner(vec![Box::new(recorder)]));
        (MsixTable::new(owner.clone()), owner, routes)
    }

    fn program(table: &mut MsixTable) {
        table.write_table(0, &0xfee0_1000u64.to_le_bytes());
        table.write_table(8, &0x41u32.to_le_bytes());
        table.write_table(12, &0u32.to_le_bytes());
    }

    const MESSAGE: MsiMessage = MsiMessage {
        address: 0xfee0_1000,
        data: 0x41,
    };

    #[test]
    fn vector_is_routed_once_enabled_and_unmasked() {
        let (mut table, _owner, routes) = table();

        program(&mut table);
        assert_eq!(*routes.lock(), []);
        table.set_control(CONTROL_ENABLE);

        assert_eq!(*routes.lock(), [Some(MESSAGE)]);
    }

    #[test]
    fn reset_takes_message_and_route_away() {
        let (mut table, _owner, routes) = table();
        program(&mut table);
        table.set_control(CONTROL_ENABLE);

        table.reset();

        assert_eq!(*routes.lock(), [Some(MESSAGE), None]);
        let mut entry = [0xff; 16];
        table.read_table(0, &mut entry);
        assert_eq!(u128::from_le_bytes(entry), u128::from(ENTRY_MASKED) << 96);
        table.set_control(CONTROL_ENABLE);
        assert_eq!(routes.lock().len(), 2, "it is masked");
    }

    #[test]
    fn function_mask_takes_the_route_away_and_gives_it_back() {
        let (mut table, _owner, routes) = table();
        program(&mut table);
        table.set_control(CONTROL_ENABLE);

        table.set_control(CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        table.set_control(CONTROL_ENABLE);

        assert_eq!(*routes.lock(), [Some(MESSAGE), None, Some(MESSAGE)]);
    }

    #[test]
    fn message_that_the_host_refuses_again_and_again_is_logged_sparsely() {
        struct Refuser(Box<dyn MsiVector>);
        impl MsiVector for Refuser {
            fn irqfd(&self) -> &EventFd {
                self.0.irqfd()
            }
            fn route(&self, _message: Option<MsiMessage>) -> io::Result<()> {
                Err(io::ErrorKind::InvalidInput.into())
            }
        }
        let vector = Refuser(FakeVectors.allocate().unwrap());
        let mut table = MsixTable::new(Arc::new(Owner(vec![Box::new(vector)])));
        table.set_control(CONTROL_ENABLE);

        let num_warnings = count_warnings(|| (0..100).for_each(|_| program(&mut table)));

        assert!((1..10).contains(&num_warnings), "{num_warnings} warnings");
    }

    #[test]
    fn interrupt_while_masked_shows_as_pending_and_stays() {
        let (table, owner, _routes) = table();
        owner.0[0].irqfd().write(1).unwrap();
        let mut bits = [0; 8];

        table.read_pending(0, &mut bits);
        table.read_pending(0, &mut bits);

        assert_eq!(bits, [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(owner.0[0].irqfd().read().unwrap(), 1);
    }

    #[test]
    fn table_reads_back_what_was_written() {
        let (mut table, _owner, _routes) = table();
        program(&mut table);
        let mut data = [0; 8];

        table.read_table(0, &mut data);
        assert_eq!(u64::from_le_bytes(data), 0xfee0_1000);
        table.read_table(8, &mut data);
        assert_eq!(u64::from_le_bytes(data), 0x41);
    }

    #[test]
    fn accesses_past_the_table_or_misaligned_change_nothing() {
        let (mut table, _owner, routes) = table();
        table.set_control(CONTROL_ENABLE);

        table.write_table(16, &[0; 8]);
        table.write_table(u64::MAX - 7, &[0; 8]);
        table.write_table(12, &[0; 2]);
        table.write_table(10, &[0; 4]);

        assert_eq!(*routes.lock(), []);
    }
}
