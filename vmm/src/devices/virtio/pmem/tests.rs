//! Requests of a driver that the test plays.

use vm_memory::{Bytes, GuestAddress};

use super::super::VirtioDevice;
use super::super::testing::{DriverQueue, WRITE, activation, guest_memory};
use super::Pmem;

#[test]
fn the_configuration_is_start_and_size() {
    let pmem = Pmem::new(0x10_0000_0000, 0x20_0000);
    let mut config = [0; 16];
    pmem.read_config(0, &mut config);
    assert_eq!(config, [0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0]);
}

#[test]
fn a_flush_succeeds_and_everything_else_fails() {
    let memory = guest_memory(0x10_0000);
    let mut driver = DriverQueue::new(&memory, 0, 16);
    let mut pmem = Pmem::new(0, 0);
    pmem.activate(activation(&memory, &[&driver], 0)).unwrap();
    for (kind, expected) in [(0_u32, 0_u32), (1, 1)] {
        memory.write_obj(kind, GuestAddress(0x8000)).unwrap();
        memory.write_obj(7_u32, GuestAddress(0x8004)).unwrap();
        let head = driver.add(&[(0x8000, 4, 0), (0x8004, 4, WRITE)]);
        pmem.pass();
        assert_eq!(driver.take_used(), [(head, 4)]);
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x8004)).unwrap(), expected);
    }
}

#[test]
fn requests_that_are_none_are_handed_back() {
    let memory = guest_memory(0x10_0000);
    let mut driver = DriverQueue::new(&memory, 0, 16);
    let mut pmem = Pmem::new(0, 0);
    pmem.activate(activation(&memory, &[&driver], 0)).unwrap();
    let chains: [&[(u64, u32, u16)]; 5] = [
        &[(0x8000, 4, 0)],
        &[(0x8000, 0, 0)],
        &[(0x8000, 4, WRITE), (0x8000, 4, 0)],
        &[(u64::MAX, 4, 0)],
        &[(0x8000, 3, 0), (0x8004, 2, WRITE)],
    ];
    for chain in chains {
        driver.add(chain);
        pmem.pass();
        assert_eq!(driver.take_used().len(), 1, "{chain:?}");
    }
    // An index that no ring of this size can have.
    driver.set_available(0x8000);
    pmem.pass();
    pmem.deactivate();
}
