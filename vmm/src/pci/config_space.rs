//! One function's PCI configuration space (PCI 3.0, chapter 6): 256 bytes, which bits a guest may write, base address
//! registers, capabilities. Pure: what a write changes is reported, what follows from it is done elsewhere.
//!
//! Only what our functions need: type 0 header, 32-bit memory BARs, BARs of ports, no ROM, no INTx pin.

/// Size of the space that configuration mechanism #1 reaches.
pub(crate) const SIZE: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const HEADER_TYPE: usize = 0x0E;
const BARS: usize = 0x10;
const CAPABILITIES_POINTER: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

const COMMAND_PORTS: u8 = 1;
const COMMAND_MEMORY: u16 = 1 << 1;
/// Memory space, bus master, INTx disable: the bits that mean something for us.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | 1 << 2 | 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Every function says so: functions beside it may appear at any time.
const MULTI_FUNCTION: u8 = 1 << 7;

/// What a function says about itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) revision: u8,
    /// Class, subclass, programming interface.
    pub(crate) class: [u8; 3],
    pub(crate) subsystem_vendor: u16,
    pub(crate) subsystem: u16,
}

/// What a guest's write may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// Nothing that anybody must act upon.
    Registers,
    /// A BAR moved, or memory decoding was switched.
    Placement,
}

/// A base address register that exists.
#[derive(Debug, Clone, Copy)]
struct Bar {
    space: Space,
    /// Bytes; a power of two.
    size: u32,
}

#[derive(Debug, Clone, Copy)]
enum Space {
    Memory,
    Ports,
}

/// Of the first two bits of a BAR, those that say that it is one of ports (6.2.5.1).
const PORTS: u32 = 0b01;

/// Configuration space of one function.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    bars: [Option<Bar>; 6],
    next_capability: usize,
    /// Where the pointer to the next capability goes.
    capability_link: usize,
}

impl ConfigSpace {
    pub(crate) fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bars: [None; 6],
            next_capability: FIRST_CAPABILITY,
            capability_link: CAPABILITIES_POINTER,
        };
        space.put_u16(0x00, identity.vendor);
        space.put_u16(0x02, identity.device);
        space.bytes[0x08] = identity.revision;
        let [class, subclass, interface] = identity.class;
        space.bytes[0x09..0x0C].copy_from_slice(&[interface, subclass, class]);
        space.bytes[HEADER_TYPE] = MULTI_FUNCTION;
        space.put_u16(0x2C, identity.subsystem_vendor);
        space.put_u16(0x2E, identity.subsystem);
        space.writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_WRITABLE.to_le_bytes());
        // Cache line size and interrupt line: scratch registers for software (6.2.4).
        space.writable[0x0C] = 0xFF;
        space.writable[0x3C] = 0xFF;
        space
    }

    /// Adds a 32-bit, non-prefetchable memory BAR of `size` bytes (a power of two, at least 16) at `address`.
    pub(crate) fn add_bar(&mut self, index: usize, size: u32, address: u32) {
        debug_assert!(size.is_power_of_two() && size >= 16 && address.is_multiple_of(size));
        let offset = BARS + 4 * index;
        let space = Space::Memory;
        self.bars[index] = Some(Bar { space, size });
        self.put_u32(offset, address);
        // Bits below the size read as zero, which is how software finds the size (6.2.5.1).
        self.writable[offset..offset + 4].copy_from_slice(&(!(size - 1)).to_le_bytes());
    }

    /// Adds a BAR of `size` ports (a power of two, 4 to 256) at `port`.
    pub(crate) fn add_ports(&mut self, index: usize, size: u16, port: u16) {
        debug_assert!(size.is_power_of_two() && (4..=256).contains(&size) && port.is_multiple_of(size));
        let offset = BARS + 4 * index;
        let space = Space::Ports;
        self.bars[index] = Some(Bar {
            space,
            size: size.into(),
        });
        self.put_u32(offset, u32::from(port) | PORTS);
        // There are no ports beyond 16 bits, so that the upper half is fixed (6.2.5.1).
        self.writable[offset..offset + 2].copy_from_slice(&(!(size - 1)).to_le_bytes());
        self.writable[COMMAND] |= COMMAND_PORTS;
    }

    /// Links a capability; `body` is what follows id and next pointer. Returns its offset.
    pub(crate) fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let offset = self.next_capability;
        let end = offset + 2 + body.len();
        debug_assert!(end <= SIZE);
        self.bytes[self.capability_link] = offset as u8;
        self.bytes[offset] = id;
        self.bytes[offset + 2..end].copy_from_slice(body);
        self.capability_link = offset + 1;
        self.next_capability = end.next_multiple_of(4);
        let status = self.u16_at(STATUS) | STATUS_CAPABILITIES;
        self.put_u16(STATUS, status);
        offset
    }

    /// Lets the guest write the bits of `mask` at `offset`.
    pub(crate) fn make_writable(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// What the guest reads; beyond the space all ones.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0xFF);
        let end = (offset + data.len()).min(SIZE);
        if offset < end {
            data[..end - offset].copy_from_slice(&self.bytes[offset..end]);
        }
    }

    /// What the guest writes; read-only bits stay.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) -> Written {
        let before = self.placement();
        for (at, byte) in (offset..SIZE).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | byte & mask;
        }
        if self.placement() == before {
            Written::Registers
        } else {
            Written::Placement
        }
    }

    /// Where BAR `index` is decoded, in its space; `None` while it does not exist, decoding is off, or it would wrap.
    pub(crate) fn decoded(&self, index: usize) -> Option<(u32, u32)> {
        let Bar { space, size } = self.bars[index]?;
        let address = self.u32_at(BARS + 4 * index);
        let (address, switch, end) = match space {
            Space::Memory => (address, COMMAND_MEMORY, u32::MAX),
            Space::Ports => (address & !PORTS, COMMAND_PORTS.into(), u16::MAX.into()),
        };
        let decoding = self.u16_at(COMMAND) & switch != 0;
        // All ones, less the bits of the size, is what sizing leaves there: not an address.
        let fits = address.checked_add(size).is_some_and(|above| above <= end);
        (decoding && fits).then_some((address, size))
    }

    /// All of it, for a snapshot.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes over what was saved; false, and nothing happens, if that is not the space of such a function: everything that a
    /// guest cannot write has to be the same.
    #[must_use]
    pub(crate) fn restore(&mut self, saved: &[u8]) -> bool {
        let Ok(saved) = <[u8; SIZE]>::try_from(saved) else {
            return false;
        };
        let fixed = |bytes: &[u8; SIZE]| -> Vec<u8> {
            let kept = bytes.iter().zip(&self.writable);
            kept.map(|(byte, writable)| byte & !writable).collect()
        };
        let same = fixed(&saved) == fixed(&self.bytes);
        if same {
            self.bytes = saved;
        }
        same
    }

    pub(crate) fn u16_at(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    pub(crate) fn u32_at(&self, offset: usize) -> u32 {
        u32::from(self.u16_at(offset)) | u32::from(self.u16_at(offset + 2)) << 16
    }

    fn placement(&self) -> [Option<(u32, u32)>; 6] {
        std::array::from_fn(|index| self.decoded(index))
    }

    fn put_u16(&mut self, offset: usize, value: u16) {
        self.bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn put_u32(&mut self, offset: usize, value: u32) {
        self.bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1AF4,
        device: 0x1043,
        revision: 1,
        class: [0x07, 0x80, 0x00],
        subsystem_vendor: 0x1AF4,
        subsystem: 0x40,
    };

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(IDENTITY);
        space.add_bar(0, 0x8000, 0xC000_8000);
        space
    }

    fn read_u32(space: &ConfigSpace, offset: usize) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn identity_and_class_read_as_the_specification_lays_them_out() {
        let space = space();
        assert_eq!(read_u32(&space, 0), 0x1043_1AF4);
        assert_eq!(read_u32(&space, 8), 0x0780_0001);
        assert_eq!(read_u32(&space, 0x2C), 0x0040_1AF4);
        assert_eq!(read_u32(&space, 0x0C) >> 16 & 0xFF, 0x80);
    }

    #[test]
    fn sizing_a_bar_tells_its_size_and_restores() {
        let mut space = space();
        assert_eq!(space.write(0x10, &[0xFF; 4]), Written::Registers);
        assert_eq!(read_u32(&space, 0x10), 0xFFFF_8000);
        space.write(0x10, &0xC000_8000_u32.to_le_bytes());
        assert_eq!(read_u32(&space, 0x10), 0xC000_8000);
        space.write(0x14, &[0xFF; 4]);
        assert_eq!(read_u32(&space, 0x14), 0, "a BAR that does not exist");
    }

    #[test]
    fn a_bar_is_decoded_only_while_the_command_register_says_so() {
        let mut space = space();
        assert_eq!(space.decoded(0), None);
        assert_eq!(space.write(4, &[0x02, 0]), Written::Placement);
        assert_eq!(space.decoded(0), Some((0xC000_8000, 0x8000)));
        assert_eq!(
            space.write(0x10, &0xD000_0000_u32.to_le_bytes()),
            Written::Placement
        );
        assert_eq!(space.decoded(0), Some((0xD000_0000, 0x8000)));
        space.write(0x10, &[0xFF; 4]);
        assert_eq!(
            space.decoded(0),
            None,
            "the value that sizing leaves is no address"
        );
        assert_eq!(space.write(4, &[0x00, 0]), Written::Registers);
    }

    #[test]
    fn ports_are_told_from_memory_sized_and_decoded_by_a_switch_of_their_own() {
        let mut space = space();
        space.add_ports(1, 32, 0x1040);
        assert_eq!(read_u32(&space, 0x14), 0x1041);
        assert_eq!(space.write(0x14, &[0xFF; 4]), Written::Registers);
        assert_eq!(read_u32(&space, 0x14), 0xFFE1);
        space.write(0x14, &0x2000_u32.to_le_bytes());
        assert_eq!(space.write(4, &[0x02, 0]), Written::Placement);
        assert_eq!(space.decoded(1), None);
        assert_eq!(space.write(4, &[0x03, 0]), Written::Placement);
        assert_eq!(space.decoded(1), Some((0x2000, 32)));
        assert_eq!(space.write(0x14, &[0xFF; 4]), Written::Placement);
        assert_eq!(space.decoded(1), None, "the value that sizing leaves is no port");
        assert_eq!(space.decoded(0), Some((0xC000_8000, 0x8000)));
    }

    #[test]
    fn capabilities_are_linked_in_order() {
        let mut space = space();
        let first = space.add_capability(0x09, &[0; 14]);
        let second = space.add_capability(0x11, &[0; 10]);
        assert_eq!((first, second), (0x40, 0x50));
        assert_eq!(read_u32(&space, 0x34) & 0xFF, 0x40);
        assert_eq!(read_u32(&space, 0x40) & 0xFFFF, 0x5009);
        assert_eq!(read_u32(&space, 0x50) & 0xFFFF, 0x0011);
        assert_eq!(read_u32(&space, 0x04) >> 16 & 0x10, 0x10);
    }

    #[test]
    fn a_saved_space_is_taken_over_by_its_own_kind_only() {
        let mut saved = space();
        saved.write(4, &[0x06, 0]);
        saved.write(0x10, &0xD000_0000_u32.to_le_bytes());
        let mut other = space();
        assert!(other.restore(saved.bytes()));
        assert_eq!(other.decoded(0), Some((0xD000_0000, 0x8000)));
        for at in [0, 8, 0x10, 0x2C, 0xFF] {
            let mut changed = saved.bytes().to_vec();
            changed[at] ^= 1;
            assert!(!space().restore(&changed), "byte {at:#x}");
        }
        assert!(!space().restore(&saved.bytes()[1..]));
    }

    proptest! {
        #[test]
        fn no_write_changes_what_is_read_only(writes in prop::collection::vec((0_usize..300, prop::collection::vec(any::<u8>(), 0..9)), 0..50)) {
            let mut space = space();
            for (offset, data) in writes {
                space.write(offset, &data);
                prop_assert_eq!(read_u32(&space, 0), 0x1043_1AF4);
                prop_assert_eq!(read_u32(&space, 0x10) & 0x7FFF, 0);
                prop_assert_eq!(read_u32(&space, 0x3C) >> 8, 0);
                if let Some((address, size)) = space.decoded(0) {
                    prop_assert!(address.checked_add(size).is_some());
                }
            }
        }
    }
}
