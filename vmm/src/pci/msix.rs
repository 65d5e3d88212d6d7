//! The MSI-X table, its pending bits and its capability (PCI 3.0, 6.8.2). Pure: `Msix` says which message is to be
//! sent when; `interrupt.rs` sends it.

use serde::{Deserialize, Serialize};

/// Bytes per table entry (6.8.2.6).
pub(crate) const ENTRY_SIZE: usize = 16;
/// Capability id (appendix H).
pub(crate) const CAPABILITY: u8 = 0x11;
/// Offset of message control in the capability, and its bits that a guest writes (6.8.2.3).
pub(crate) const CONTROL: usize = 2;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;
/// The writable bits of message control.
pub(crate) const CONTROL_WRITABLE: u16 = CONTROL_ENABLE | CONTROL_MASK_ALL;

const VECTOR_MASKED: u32 = 1;

/// A message-signalled interrupt: a 32-bit write of `data` to `address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) address: u64,
    pub(crate) data: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
    pending: bool,
}

/// State of one function's MSI-X; a snapshot keeps it as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Msix {
    entries: Vec<Entry>,
    control: u16,
}

impl Msix {
    /// All vectors masked, as after reset (6.8.2.9).
    pub(crate) fn new(vectors: u16) -> Self {
        let masked = Entry {
            address: 0,
            data: 0,
            control: VECTOR_MASKED,
            pending: false,
        };
        Self {
            entries: vec![masked; usize::from(vectors)],
            control: 0,
        }
    }

    /// Takes over what was saved; false, and nothing happens, if that has another number of vectors. Bits that do not exist
    /// are left out.
    #[must_use]
    pub(crate) fn restore(&mut self, saved: &Self) -> bool {
        if saved.entries.len() != self.entries.len() {
            return false;
        }
        *self = saved.clone();
        self.control &= CONTROL_WRITABLE;
        for entry in &mut self.entries {
            let bytes = entry.bytes();
            entry.set_bytes(bytes);
        }
        true
    }

    /// The capability's body: message control, table and pending bits at these offsets of BAR 0.
    pub(crate) fn capability(&self, table: u32, pending: u32) -> [u8; 10] {
        let size_field = self.entries.len() as u16 - 1;
        let mut body = [0; 10];
        body[0..2].copy_from_slice(&size_field.to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..10].copy_from_slice(&pending.to_le_bytes());
        body
    }

    /// A device wants `vector`. The message to send now, or none: MSI-X is off, or the vector is masked and stays
    /// pending.
    pub(crate) fn trigger(&mut self, vector: u16) -> Option<Message> {
        let all_masked = self.control & CONTROL_MASK_ALL != 0;
        if self.control & CONTROL_ENABLE == 0 {
            return None;
        }
        let entry = self.entries.get_mut(usize::from(vector))?;
        if all_masked || entry.control & VECTOR_MASKED != 0 {
            entry.pending = true;
            return None;
        }
        Some(Message {
            address: entry.address,
            data: entry.data,
        })
    }

    /// Message control was written. Returns what was pending and is no longer masked.
    pub(crate) fn set_control(&mut self, control: u16) -> Vec<Message> {
        self.control = control & CONTROL_WRITABLE;
        self.release_pending()
    }

    /// The guest reads the table at `offset`.
    pub(crate) fn read_table(&self, offset: usize, data: &mut [u8]) {
        data.fill(0xFF);
        let (index, within) = (offset / ENTRY_SIZE, offset % ENTRY_SIZE);
        if let Some(entry) = self.entries.get(index)
            && let Some(bytes) = entry.bytes().get(within..within + data.len())
        {
            data.copy_from_slice(bytes);
        }
    }

    /// The guest writes the table at `offset`. Returns what was pending and is no longer masked.
    pub(crate) fn write_table(&mut self, offset: usize, data: &[u8]) -> Vec<Message> {
        let (index, within) = (offset / ENTRY_SIZE, offset % ENTRY_SIZE);
        let Some(entry) = self.entries.get_mut(index) else {
            return Vec::new();
        };
        let mut bytes = entry.bytes();
        // 6.8.2: only aligned accesses of four or eight bytes are defined; a write over an entry's end is none of them.
        let Some(target) = bytes.get_mut(within..within + data.len()) else {
            return Vec::new();
        };
        target.copy_from_slice(data);
        entry.set_bytes(bytes);
        self.release_pending()
    }

    /// The guest reads the pending bits at `offset`.
    pub(crate) fn read_pending(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in data.iter_mut().enumerate() {
            let first = (offset + at) * 8;
            *byte = (0..8).fold(0, |bits, bit| {
                let pending = self.entries.get(first + bit).is_some_and(|entry| entry.pending);
                bits | u8::from(pending) << bit
            });
        }
    }

    fn release_pending(&mut self) -> Vec<Message> {
        if self.control & CONTROL_WRITABLE != CONTROL_ENABLE {
            return Vec::new();
        }
        let ready = self
            .entries
            .iter_mut()
            .filter(|entry| entry.pending && entry.control & VECTOR_MASKED == 0);
        ready
            .map(|entry| {
                entry.pending = false;
                Message {
                    address: entry.address,
                    data: entry.data,
                }
            })
            .collect()
    }
}

impl Entry {
    fn bytes(&self) -> [u8; ENTRY_SIZE] {
        let mut bytes = [0; ENTRY_SIZE];
        bytes[0..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.data.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.control.to_le_bytes());
        bytes
    }

    fn set_bytes(&mut self, bytes: [u8; ENTRY_SIZE]) {
        let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, control, ..] = bytes;
        // The two lowest address bits are zero (6.8.2.7), and of vector control only the mask bit exists (6.8.2.9).
        self.address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]) & !3;
        self.data = u32::from_le_bytes([d0, d1, d2, d3]);
        self.control = u32::from(control) & VECTOR_MASKED;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MESSAGE: Message = Message {
        address: 0xFEE0_1000,
        data: 0x4041,
    };

    fn enabled(vectors: u16) -> Msix {
        let mut msix = Msix::new(vectors);
        msix.set_control(CONTROL_ENABLE);
        msix
    }

    fn program(msix: &mut Msix, vector: usize, control: u32) -> Vec<Message> {
        let base = vector * ENTRY_SIZE;
        msix.write_table(base, &(MESSAGE.address as u32).to_le_bytes());
        msix.write_table(base + 4, &[0; 4]);
        msix.write_table(base + 8, &MESSAGE.data.to_le_bytes());
        msix.write_table(base + 12, &control.to_le_bytes())
    }

    #[test]
    fn an_unmasked_vector_sends_its_message() {
        let mut msix = enabled(2);
        program(&mut msix, 1, 0);
        assert_eq!(msix.trigger(1), Some(MESSAGE));
        assert_eq!(msix.trigger(0), None);
        assert_eq!(msix.trigger(2), None, "beyond the table");
        assert_eq!(msix.trigger(0xFFFF), None, "NO_VECTOR");
    }

    #[test]
    fn a_masked_vector_is_pending_until_it_is_unmasked_once() {
        let mut msix = enabled(9);
        program(&mut msix, 8, VECTOR_MASKED);
        assert_eq!(msix.trigger(8), None);
        let mut pending = [0; 8];
        msix.read_pending(0, &mut pending);
        assert_eq!(pending, [0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(program(&mut msix, 8, 0), [MESSAGE]);
        assert_eq!(msix.set_control(CONTROL_ENABLE), []);
    }

    #[test]
    fn the_function_mask_holds_everything_back() {
        let mut msix = enabled(1);
        program(&mut msix, 0, 0);
        msix.set_control(CONTROL_ENABLE | CONTROL_MASK_ALL);
        assert_eq!(msix.trigger(0), None);
        assert_eq!(msix.set_control(CONTROL_ENABLE), [MESSAGE]);
    }

    #[test]
    fn nothing_is_sent_or_kept_while_msix_is_off() {
        let mut msix = Msix::new(1);
        program(&mut msix, 0, 0);
        assert_eq!(msix.trigger(0), None);
        assert_eq!(msix.set_control(CONTROL_ENABLE), []);
    }

    #[test]
    fn what_was_pending_is_pending_after_a_restore() {
        let mut saved = enabled(2);
        program(&mut saved, 1, VECTOR_MASKED);
        assert_eq!(saved.trigger(1), None);
        let mut restored = Msix::new(2);
        assert!(restored.restore(&saved));
        assert_eq!(restored, saved);
        assert_eq!(program(&mut restored, 1, 0), [MESSAGE]);
        assert!(!Msix::new(3).restore(&saved));
        saved.entries[0].address = 0xFEE0_0003;
        saved.entries[0].control = !VECTOR_MASKED;
        assert!(restored.restore(&saved));
        assert_eq!(
            (restored.entries[0].address, restored.entries[0].control),
            (0xFEE0_0000, 0)
        );
    }

    proptest! {
        #[test]
        fn hostile_accesses_stay_within_the_table(accesses in prop::collection::vec((0_usize..4200, prop::collection::vec(any::<u8>(), 1..9)), 0..60)) {
            let mut msix = enabled(3);
            for (offset, mut data) in accesses {
                msix.write_table(offset, &data);
                msix.read_table(offset, &mut data);
                msix.read_pending(offset, &mut data);
                for vector in 0..5 {
                    if let Some(message) = msix.trigger(vector) {
                        prop_assert!(vector < 3 && message.address & 3 == 0);
                    }
                }
            }
        }
    }
}
