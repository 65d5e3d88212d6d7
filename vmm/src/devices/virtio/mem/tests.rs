//! Requests of a driver that the test plays.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};

use super::super::testing::{CountedInterrupt, DriverQueue, WRITE, activation, guest_memory};
use super::super::{GuestMemory, SavedState, VirtioDevice};
use super::device::ResizeError;
use super::*;
use crate::memory::layout::RamLayout;
use crate::memory::map_ram;

const MIB: u64 = 1 << 20;
const START: u64 = 4 << 30;
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// Address, length and flags of each descriptor.
type Chain = &'static [(u64, u32, u16)];

struct Guest {
    memory: GuestMemory,
    driver: DriverQueue,
    device: Mem,
}

impl Guest {
    fn new() -> Self {
        let layout = RamLayout::new(64 * MIB, 128 * MIB);
        let memory = map_ram(layout).unwrap();
        let mut device = Mem::new(&layout.hotplug());
        let driver = DriverQueue::new(&memory, 0, 16);
        device.activate(activation(&memory, &[&driver], 0)).unwrap();
        Self {
            memory,
            driver,
            device,
        }
    }

    fn ask(&mut self, kind: u16, address: u64, count: u16) -> (u16, u16) {
        let mut request = [0; 24];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&count.to_le_bytes());
        self.memory.write_slice(&request, GuestAddress(0x8000)).unwrap();
        self.memory
            .write_slice(&[0xFF; 16], GuestAddress(0x9000))
            .unwrap();
        let head = self.driver.add(&[(0x8000, 24, 0), (0x9000, 16, WRITE)]);
        self.device.pass();
        assert_eq!(self.driver.take_used(), [(head, 10)]);
        let read = |address| self.memory.read_obj(GuestAddress(address)).unwrap();
        (read(0x9000), read(0x9008))
    }

    fn config(&self) -> [u64; 7] {
        std::array::from_fn(|index| {
            let mut bytes = [0; 8];
            self.device.read_config(8 * index as u64, &mut bytes);
            u64::from_le_bytes(bytes)
        })
    }
}

#[test]
fn the_configuration_follows_the_host_and_the_driver() {
    let mut guest = Guest::new();
    assert_eq!(guest.config(), [2 * MIB, 0, START, 128 * MIB, 128 * MIB, 0, 0]);
    let generation = guest.device.config_generation();
    guest.device.resize(64).unwrap();
    assert_ne!(guest.device.config_generation(), generation);
    assert_eq!(guest.ask(PLUG, START + 32 * MIB, 2), (0, 0));
    assert_eq!(guest.config()[5..], [4 * MIB, 64 * MIB]);
    guest.device.deactivate();
    let stats = guest.device.stats();
    assert_eq!(
        (stats.max_mib, stats.requested_mib, stats.plugged_mib),
        (128, 64, 4)
    );
}

#[test]
fn unplugged_memory_goes_back_to_the_host() {
    let mut guest = Guest::new();
    guest.device.resize(128).unwrap();
    assert_eq!(guest.ask(PLUG, START, 4), (0, 0));
    let touch = |guest: &Guest, block: u64| {
        let at = GuestAddress(START + block * 2 * MIB);
        guest.memory.write_obj(0xABCD_u16, at).unwrap();
    };
    (0..4).for_each(|block| touch(&guest, block));
    assert_eq!(guest.ask(UNPLUG, START + 2 * MIB, 2), (0, 0));
    let left = |guest: &Guest| -> Vec<u16> {
        let at = |block: u64| GuestAddress(START + block * 2 * MIB);
        (0..4)
            .map(|block| guest.memory.read_obj(at(block)).unwrap())
            .collect()
    };
    assert_eq!(left(&guest), [0xABCD, 0, 0, 0xABCD]);
    assert_eq!(guest.ask(STATE, START, 4), (0, 2), "mixed");
    assert_eq!(guest.ask(UNPLUG_ALL, 0, 0), (0, 0));
    assert_eq!(left(&guest), [0; 4]);
    assert_eq!(guest.ask(STATE, START, 4), (0, 1), "unplugged");
}

#[test]
fn what_cannot_be_done_is_answered_and_changes_nothing() {
    let mut guest = Guest::new();
    guest.device.resize(2).unwrap();
    assert_eq!(guest.ask(PLUG, START, 2).0, 1, "more than was requested");
    assert_eq!(guest.ask(PLUG, 0, 1).0, 3, "the guest's own RAM");
    assert_eq!(guest.ask(UNPLUG, 0, 1).0, 3, "the guest's own RAM");
    assert_eq!(guest.ask(UNPLUG, START, 1).0, 3, "nothing is plugged");
    assert_eq!(guest.ask(77, START, 1).0, 3, "a type that does not exist");
    assert_eq!(guest.device.stats().plugged_mib, 0);
}

#[test]
fn requests_that_are_none_are_handed_back() {
    let memory = guest_memory(0x10_0000);
    let mut driver = DriverQueue::new(&memory, 0, 16);
    let mut device = Mem::new(&(START..START));
    device.activate(activation(&memory, &[&driver], 0)).unwrap();
    let chains: [(Chain, u32); 5] = [
        (&[(0x8000, 24, 0)], 0),
        (&[(0x8000, 23, 0), (0x9000, 10, WRITE)], 10),
        (&[(0x9000, 10, WRITE), (0x8000, 24, 0)], 0),
        (&[(0x8000, 24, 0), (u64::MAX, 10, WRITE)], 0),
        (&[(0x8000, 24, 0), (0x9000, 3, WRITE)], 3),
    ];
    for (chain, written) in chains {
        let head = driver.add(chain);
        device.pass();
        assert_eq!(driver.take_used(), [(head, written)], "{chain:?}");
    }
}

#[test]
fn a_wish_is_whole_blocks_of_the_region_and_interrupts_the_driver() {
    let mut guest = Guest::new();
    assert_eq!(
        guest.device.resize(130),
        Err(ResizeError::TooLarge { asked: 130, max: 128 })
    );
    assert_eq!(guest.device.resize(3), Err(ResizeError::NoBlocks(3)));
    let interrupt = std::sync::Arc::new(CountedInterrupt::default());
    let mut activation = activation(&guest.memory, &[&guest.driver], 0);
    activation.interrupt = std::sync::Arc::<CountedInterrupt>::clone(&interrupt);
    guest.device.deactivate();
    guest.device.resize(4).unwrap();
    guest.device.activate(activation).unwrap();
    assert_eq!(interrupt.config.load(Ordering::Relaxed), 0);
    guest.device.resize(6).unwrap();
    assert_eq!(interrupt.config.load(Ordering::Relaxed), 1);
}

#[test]
fn a_restored_device_has_what_was_plugged_and_what_was_asked_for() {
    let mut guest = Guest::new();
    guest.device.resize(8).unwrap();
    assert_eq!(guest.ask(PLUG, START + 2 * MIB, 2), (0, 0));
    let saved = guest.device.save().unwrap();
    assert_eq!(saved.progress.len(), 1);
    let SavedState::Memory(own) = saved.own else {
        panic!("{saved:?}");
    };
    let region = RamLayout::new(64 * MIB, 128 * MIB).hotplug();
    let restored = Mem::restored(&region, own.clone()).unwrap();
    assert_eq!(restored.stats(), guest.device.stats());
    assert_eq!(restored.config_generation(), guest.device.config_generation());
    let smaller = RamLayout::new(64 * MIB, 0).hotplug();
    assert!(Mem::restored(&smaller, own).is_none());
}
