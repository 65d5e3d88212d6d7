//! Enumeration as Linux does it, and accesses that no function answers.

use proptest::prelude::*;

use super::*;
use crate::pci::config_space::Identity;

/// A function with a BAR of scratch memory, whose ports write to its beginning.
#[derive(Debug)]
struct Scratch {
    config: ConfigSpace,
    bytes: Vec<u8>,
}

impl Scratch {
    fn new(device: u16, slot: Slot) -> Self {
        let identity = Identity {
            vendor: 0x1AF4,
            device,
            revision: 1,
            class: [0xFF, 0, 0],
            subsystem_vendor: 0,
            subsystem: 0,
        };
        let mut config = ConfigSpace::new(identity);
        config.add_bar(0, BAR_SPACING, slot.preset_bar());
        config.add_ports(1, PORT_SPACING, slot.preset_ports());
        Self {
            config,
            bytes: vec![0; BAR_SPACING as usize],
        }
    }
}

impl Function for Scratch {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
    }
    fn read_bar(&mut self, offset: u32, data: &mut [u8]) {
        let offset = offset as usize;
        data.copy_from_slice(&self.bytes[offset..offset + data.len()]);
    }
    fn write_bar(&mut self, offset: u32, data: &[u8]) {
        let offset = offset as usize;
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
    }
    fn write_ports(&mut self, offset: u32, data: &[u8]) {
        self.write_bar(offset, data);
    }
}

fn bus(functions: u16) -> PciBus<Scratch> {
    let mut bus = PciBus::new();
    for device in 0..functions {
        let slot = bus.free_slot().unwrap();
        bus.insert(slot, Scratch::new(device, slot));
    }
    bus
}

fn read(bus: &mut PciBus<Scratch>, function: u8, register: u32) -> u32 {
    select(bus, function, register);
    let mut data = [0; 4];
    bus.read_port(0xCFC, &mut data);
    u32::from_le_bytes(data)
}

fn write(bus: &mut PciBus<Scratch>, function: u8, register: u32, value: u32) {
    select(bus, function, register);
    bus.write_port(0xCFC, &value.to_le_bytes());
}

fn select(bus: &mut PciBus<Scratch>, function: u8, register: u32) {
    bus.write_port(
        0xCF8,
        &(1 << 31 | u32::from(function) << 8 | register).to_le_bytes(),
    );
}

#[test]
fn the_check_for_mechanism_one_passes() {
    // As Linux's pci_check_type1: a byte to 0xCFB, then the address register must read back.
    let mut bus = bus(1);
    bus.write_port(0xCFB, &[1]);
    bus.write_port(0xCF8, &0x8000_0000_u32.to_le_bytes());
    let mut data = [0; 4];
    bus.read_port(0xCF8, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x8000_0000);
}

#[test]
fn functions_are_found_and_the_rest_reads_as_absent() {
    let mut bus = bus(10);
    assert_eq!(read(&mut bus, 9, 0), 0x0009_1AF4);
    assert_eq!(read(&mut bus, 10, 0), 0xFFFF_FFFF);
    bus.write_port(0xCF8, &0x8001_0000_u32.to_le_bytes());
    let mut data = [0; 2];
    bus.read_port(0xCFE, &mut data);
    assert_eq!(data, [0xFF, 0xFF], "bus 1");
    bus.write_port(0xCF8, &0_u32.to_le_bytes());
    bus.read_port(0xCFC, &mut data);
    assert_eq!(data, [0xFF, 0xFF], "not enabled");
}

#[test]
fn a_bar_answers_where_the_guest_put_it() {
    let mut bus = bus(2);
    let preset = u64::from(Slot(1).preset_bar());
    let mut data = [0; 4];
    assert!(!bus.read_memory(preset, &mut data), "decoding is off");
    write(&mut bus, 1, 4, 2);
    assert!(bus.write_memory(preset + 8, &[1, 2, 3, 4]));
    write(&mut bus, 1, 0x10, 0xD000_0000);
    assert!(!bus.read_memory(preset + 8, &mut data));
    assert!(bus.read_memory(0xD000_0008, &mut data));
    assert_eq!(data, [1, 2, 3, 4]);
    assert!(!bus.read_memory(0xD000_7FFE, &mut data), "over the end");
    assert!(!bus.read_memory(0x1_D000_0008, &mut data), "above 4 GiB");
}

#[test]
fn the_bus_holds_256_functions_and_reuses_the_lowest() {
    let mut bus = bus(256);
    assert!(bus.free_slot().is_err());
    assert_eq!(read(&mut bus, 255, 0), 0x00FF_1AF4);
    assert_eq!(Slot(255).to_string(), "0000:00:1f.7");
    assert!(bus.remove(Slot(8)).is_some());
    assert!(bus.remove(Slot(200)).is_some());
    assert_eq!(bus.free_slot().unwrap().to_string(), "0000:00:01.0");
    assert_eq!(read(&mut bus, 8, 0), 0xFFFF_FFFF);
}

#[test]
fn a_port_reaches_the_function_that_decodes_it() {
    let mut bus = bus(256);
    assert!(!bus.write_decoded_port(0x1020, &[7]), "nobody decodes yet");
    for slot in [0, 1, 255].map(Slot) {
        bus.get_mut(slot).unwrap().write_config(4, &[1, 0]);
    }
    for (port, slot, offset) in [(0x101F, 0, 31), (0x1020, 1, 0), (0x2FE4, 255, 4)] {
        assert!(bus.write_decoded_port(port, &[7]));
        assert_eq!(bus.get_mut(Slot(slot)).unwrap().bytes[offset], 7);
    }
    for (port, data) in [(0x103F, &[7, 7][..]), (0x1040, &[7]), (0, &[7]), (0xFFFF, &[7])] {
        assert!(!bus.write_decoded_port(port, data), "{port:#x}");
    }
}

proptest! {
    #[test]
    fn hostile_accesses_reach_only_what_is_decoded(
        accesses in prop::collection::vec((any::<bool>(), any::<bool>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..9)), 0..80),
    ) {
        let mut bus = bus(3);
        for (port, is_write, at, mut data) in accesses {
            let address = 0xC000_0000 + at % 0x2_0000;
            match (port, is_write) {
                (true, true) => bus.write_port(0xCF8 + (at % 8) as u16, &data),
                (true, false) => bus.read_port(0xCF8 + (at % 8) as u16, &mut data),
                (false, true) => { bus.write_memory(if at % 2 == 0 { address } else { at }, &data); }
                (false, false) => { bus.read_memory(if at % 2 == 0 { address } else { at }, &mut data); }
            }
        }
    }
}
