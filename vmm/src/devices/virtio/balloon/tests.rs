//! Pages that a driver which the test plays gives away.

use vm_memory::{Bytes, GuestAddress};

use super::super::testing::{DriverQueue, WRITE, activation};
use super::super::{GuestMemory, SavedState, VirtioDevice};
use super::*;
use crate::memory::layout::RamLayout;
use crate::memory::map_ram;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

struct Guest {
    memory: GuestMemory,
    drivers: Vec<DriverQueue>,
    device: Balloon,
}

impl Guest {
    /// With the reporting queue at this number.
    fn new(reporting: usize) -> Self {
        let memory = map_ram(RamLayout::new(64 * MIB, 0)).unwrap();
        let mut device = Balloon::new(64);
        let drivers: Vec<_> = (0..5)
            .map(|queue| DriverQueue::new(&memory, 0x4000 * queue, 16))
            .collect();
        let mut activation = activation(&memory, &drivers.iter().collect::<Vec<_>>(), 0);
        for (number, queue) in activation.queues.iter_mut().enumerate() {
            let enabled = number < 2 || number == reporting;
            virtio_queue::QueueT::set_ready(&mut queue.queue, enabled);
        }
        device.activate(activation).unwrap();
        Self {
            memory,
            drivers,
            device,
        }
    }

    fn fill(&self, pages: std::ops::Range<u64>) {
        for page in pages {
            self.memory.write_obj(page, GuestAddress(page * PAGE)).unwrap();
        }
    }

    /// Pages whose first word is not zero.
    fn kept(&self, pages: std::ops::Range<u64>) -> Vec<u64> {
        let word = |page: &u64| self.memory.read_obj::<u64>(GuestAddress(page * PAGE)).unwrap();
        pages.filter(|page| word(page) != 0).collect()
    }

    fn send(&mut self, queue: usize, chain: &[(u64, u32, u16)]) {
        let head = self.drivers[queue].add(chain);
        self.device.pass();
        assert_eq!(self.drivers[queue].take_used(), [(head, 0)]);
    }

    fn send_numbers(&mut self, queue: usize, numbers: &[u32]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.memory.write_slice(&bytes, GuestAddress(0x2_0000)).unwrap();
        self.send(queue, &[(0x2_0000, bytes.len() as u32, 0)]);
    }
}

#[test]
fn reported_pages_go_back_whichever_number_their_queue_has() {
    for reporting in [2, 3, 4] {
        let mut guest = Guest::new(reporting);
        guest.fill(0x100..0x108);
        guest.send(
            reporting,
            &[(0x10_1000, 0x1000, WRITE), (0x10_4000, 0x2000, WRITE)],
        );
        assert_eq!(guest.kept(0x100..0x108), [0x100, 0x102, 0x103, 0x106, 0x107]);
        assert_eq!(guest.device.stats().reported_bytes, 0x3000);
    }
}

#[test]
fn what_is_no_page_of_the_guests_is_passed_over() {
    let mut guest = Guest::new(4);
    guest.fill(0x100..0x104);
    guest.send(
        4,
        &[
            (0x10_0800, 0x1000, WRITE),
            (0x10_0000, 0x800, WRITE),
            (64 * MIB, 0x1000, WRITE),
            (u64::MAX - 0xFFF, 0x1000, WRITE),
            (64 * MIB - 0x1000, 0x2000, WRITE),
            (0x10_3000, 0x1000, WRITE),
        ],
    );
    guest.send(4, &[(0x10_2000, 0x1000, 0)]);
    assert_eq!(guest.kept(0x100..0x104), [0x100, 0x101, 0x102]);
    assert_eq!(guest.device.stats().reported_bytes, 0x1000);
}

#[test]
fn inflated_pages_go_back_and_deflated_ones_are_left_alone() {
    let mut guest = Guest::new(4);
    guest.fill(0x100..0x110);
    guest.send_numbers(0, &[0x105, 0x103, 0x104, 0x105, 0x10F, 0xFFFF_FFFF, 0x4000]);
    let left = guest.kept(0x100..0x110);
    assert_eq!(
        left,
        [
            0x100, 0x101, 0x102, 0x106, 0x107, 0x108, 0x109, 0x10A, 0x10B, 0x10C, 0x10D, 0x10E
        ]
    );
    guest.send_numbers(1, &[0x100, 0x101]);
    guest.send(0, &[(0x2_0000, 3, 0)]);
    guest.send(0, &[(0x2_0000, 4, WRITE)]);
    assert_eq!(guest.kept(0x100..0x110), left);
}

#[test]
fn the_hosts_wish_and_the_drivers_answer_are_in_the_configuration() {
    let mut guest = Guest::new(4);
    let refused = guest.device.hold(65).unwrap_err().to_string();
    assert!(refused.starts_with("held_mib: 65 "), "{refused}");
    let generation = guest.device.config_generation();
    guest.device.hold(3).unwrap();
    assert_ne!(guest.device.config_generation(), generation);
    let mut config = [0xFF; 12];
    guest.device.read_config(0, &mut config);
    assert_eq!(config, [0, 3, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
    guest.device.write_config(4, &512_u32.to_le_bytes());
    guest.device.write_config(0, &9_u32.to_le_bytes());
    guest.device.write_config(4, &[1]);
    let stats = guest.device.stats();
    assert_eq!((stats.requested_mib, stats.held_mib), (3, 2));
    guest.device.deactivate();
    assert_eq!(guest.device.stats().held_mib, 0);
}

#[test]
fn a_restored_balloon_has_what_was_asked_and_what_it_held() {
    let mut guest = Guest::new(4);
    guest.device.hold(16).unwrap();
    guest.device.write_config(4, &512_u32.to_le_bytes());
    let saved = guest.device.save().unwrap();
    let numbers: Vec<u16> = saved.progress.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [0, 1, 4]);
    let SavedState::Balloon(own) = saved.own else {
        panic!("{saved:?}");
    };
    let restored = Balloon::restored(64, own);
    assert_eq!(restored.stats(), guest.device.stats());
    assert_eq!(restored.config_generation(), guest.device.config_generation());
}
