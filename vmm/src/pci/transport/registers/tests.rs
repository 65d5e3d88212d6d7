//! The register machine driven as a driver would, and as no driver should.

use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::*;
use crate::devices::virtio::QueueProgress;

const OFFERED: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << 5;
const MEMORY: usize = 0x10_0000;

fn registers() -> Registers {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    Registers::new(OFFERED, &[256, 64], 3, memory).unwrap()
}

fn read(registers: &Registers, offset: usize, length: usize) -> u64 {
    let mut bytes = [0; 8];
    registers.read(offset, &mut bytes[..length]);
    u64::from_le_bytes(bytes)
}

fn write(registers: &mut Registers, offset: usize, length: usize, value: u64) -> Effect {
    registers.write(offset, &value.to_le_bytes()[..length])
}

/// A write that asks nothing of the device.
fn set(registers: &mut Registers, offset: usize, length: usize, value: u64) {
    assert_eq!(write(registers, offset, length, value), Effect::None);
}

fn negotiate(registers: &mut Registers, features: u64) -> u64 {
    assert_eq!(write(registers, 0x14, 1, 0), Effect::None);
    assert_eq!(write(registers, 0x14, 1, 1), Effect::None);
    assert_eq!(write(registers, 0x14, 1, 3), Effect::None);
    for select in 0..2 {
        assert_eq!(write(registers, 0x08, 4, select), Effect::None);
        assert_eq!(
            write(registers, 0x0C, 4, features >> (32 * select) & 0xFFFF_FFFF),
            Effect::None
        );
    }
    assert_eq!(write(registers, 0x14, 1, 0xB), Effect::None);
    read(registers, 0x14, 1)
}

fn enable_queue(registers: &mut Registers, index: u64, descriptors: u64) {
    for (offset, length, value) in [
        (0x16, 2, index),
        (0x20, 4, descriptors),
        (0x24, 4, 0),
        (0x28, 8, descriptors + 0x2000),
        (0x30, 8, descriptors + 0x3000),
        (0x1A, 2, index + 1),
        (0x1C, 2, 1),
    ] {
        assert_eq!(write(registers, offset, length, value), Effect::None);
    }
}

fn live() -> Registers {
    let mut registers = registers();
    negotiate(&mut registers, OFFERED);
    enable_queue(&mut registers, 0, 0x1_0000);
    assert_eq!(write(&mut registers, 0x14, 1, 0xF), Effect::Activate);
    registers.activated();
    registers
}

const PROGRESS: QueueProgress = QueueProgress {
    next_avail: 300,
    next_used: 299,
};

#[test]
fn a_saved_device_lives_on_where_it_stood() {
    let mut saved = live();
    set(&mut saved, 0x10, 2, 0);
    let kept = saved.save(&[(0, PROGRESS)]).unwrap();
    let mut restored = registers();
    restored.restore(&kept).unwrap();
    assert_eq!(restored.phase(), Phase::Starting, "it is to be started again");
    let queues = restored.active_queues().unwrap();
    assert_eq!(QueueProgress::of(&queues[0]), PROGRESS);
    assert_eq!(QueueProgress::of(&queues[1]), QueueProgress::default());
    assert_eq!(restored.enabled_queues().collect::<Vec<_>>(), [0]);
    restored.activated();
    for offset in [
        0x00, 0x08, 0x0C, 0x10, 0x14, 0x16, 0x18, 0x1A, 0x1C, 0x20, 0x28, 0x30,
    ] {
        for length in [1, 2, 4, 8] {
            let (before, after) = (read(&saved, offset, length), read(&restored, offset, length));
            assert_eq!(before, after, "{offset:#x} {length}");
        }
    }
    assert_eq!(restored.save(&[(0, PROGRESS)]).unwrap(), kept);
}

#[test]
fn a_device_that_nobody_drove_is_saved_as_well_and_one_that_waits_is_not() {
    let mut fresh = registers();
    let kept = fresh.save(&[]).unwrap();
    let mut restored = live();
    restored.restore(&kept).unwrap();
    assert_eq!(
        (restored.phase(), read(&restored, 0x14, 1)),
        (Phase::Negotiating, 0)
    );
    negotiate(&mut fresh, OFFERED);
    enable_queue(&mut fresh, 0, 0x1_0000);
    assert_eq!(write(&mut fresh, 0x14, 1, 0xF), Effect::Activate);
    assert!(fresh.save(&[]).is_none(), "Starting");
    let mut broken = live();
    assert_eq!(broken.broken(), Effect::NeedsReset);
    let kept = broken.save(&[]).unwrap();
    restored.restore(&kept).unwrap();
    assert_eq!(restored.phase(), Phase::Broken);
}

#[test]
fn registers_of_another_device_are_refused() {
    let kept = live().save(&[(0, PROGRESS)]).unwrap();
    let other = |features, sizes: &[u16], memory: usize| {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), memory)]).unwrap();
        let mut other = Registers::new(features, sizes, 3, memory).unwrap();
        other.restore(&kept).unwrap_err()
    };
    assert!(other(OFFERED, &[256], MEMORY).contains("number of queues"));
    assert!(other(OFFERED, &[128, 64], MEMORY).contains("a queue of it"));
    assert!(other(1 << VIRTIO_F_VERSION_1, &[256, 64], MEMORY).contains("features"));
    assert!(other(OFFERED, &[256, 64], 0x1000).contains("guest memory"));
}

#[test]
fn a_driver_reads_features_and_queues() {
    let mut registers = registers();
    assert_eq!(read(&registers, 0x04, 4), OFFERED & 0xFFFF_FFFF);
    set(&mut registers, 0x00, 4, 1);
    assert_eq!(read(&registers, 0x04, 4), OFFERED >> 32);
    set(&mut registers, 0x00, 4, 2);
    assert_eq!(read(&registers, 0x04, 4), 0);
    assert_eq!(read(&registers, 0x12, 2), 2);
    set(&mut registers, 0x16, 2, 1);
    assert_eq!(read(&registers, 0x18, 2), 64);
    set(&mut registers, 0x16, 2, 2);
    assert_eq!(read(&registers, 0x18, 2), 0, "a queue that does not exist");
}

#[test]
fn a_driver_without_version_1_or_with_unknown_features_is_not_accepted() {
    assert_eq!(negotiate(&mut registers(), OFFERED), 0xB);
    assert_eq!(negotiate(&mut registers(), 1 << 5), 0x3);
    assert_eq!(negotiate(&mut registers(), OFFERED | 1 << 6), 0x3);
}

#[test]
fn a_device_goes_live_and_is_reset_by_the_loop() {
    let mut registers = live();
    assert_eq!(registers.phase(), Phase::Live);
    assert_eq!(read(&registers, 0x14, 1), 0xF);
    assert_eq!(registers.active_queues().unwrap()[0].desc_table(), 0x1_0000);
    assert_eq!(write(&mut registers, 0x14, 1, 0), Effect::Reset);
    assert_eq!(read(&registers, 0x14, 1), 0xF, "the driver waits");
    assert_eq!(
        write(&mut registers, 0x14, 1, 0),
        Effect::None,
        "one reset at a time"
    );
    registers.reset_done();
    assert_eq!(read(&registers, 0x14, 1), 0);
    assert_eq!(registers.vectors().queues[0].load(Ordering::Relaxed), NO_VECTOR);
    assert_eq!(negotiate(&mut registers, OFFERED), 0xB);
}

#[test]
fn a_reset_while_starting_wins() {
    let mut registers = registers();
    negotiate(&mut registers, OFFERED);
    enable_queue(&mut registers, 0, 0x1_0000);
    assert_eq!(write(&mut registers, 0x14, 1, 0xF), Effect::Activate);
    assert_eq!(write(&mut registers, 0x14, 1, 0), Effect::Reset);
    registers.activated();
    assert_eq!(registers.phase(), Phase::Resetting);
}

#[test]
fn queues_outside_of_memory_break_the_device() {
    for descriptors in [MEMORY as u64, u64::from(u32::MAX) & !0xFFF] {
        let mut registers = registers();
        negotiate(&mut registers, OFFERED);
        enable_queue(&mut registers, 0, descriptors);
        assert_eq!(write(&mut registers, 0x14, 1, 0xF), Effect::NeedsReset);
        assert_eq!(read(&registers, 0x14, 1), 0x4F);
        assert_eq!(write(&mut registers, 0x14, 1, 0), Effect::Reset);
    }
}

#[test]
fn a_device_without_its_first_queue_does_not_start() {
    let mut registers = registers();
    negotiate(&mut registers, OFFERED);
    enable_queue(&mut registers, 1, 0x1_0000);
    assert_eq!(write(&mut registers, 0x14, 1, 0xF), Effect::NeedsReset);
}

#[test]
fn a_live_queue_cannot_be_moved() {
    let mut registers = live();
    set(&mut registers, 0x16, 2, 0);
    set(&mut registers, 0x20, 4, 0x5_0000);
    set(&mut registers, 0x18, 2, 8);
    assert_eq!(read(&registers, 0x20, 8), 0x1_0000);
    assert_eq!(read(&registers, 0x18, 2), 256);
}

#[test]
fn an_unknown_vector_reads_back_as_none() {
    let mut registers = registers();
    set(&mut registers, 0x10, 2, 2);
    assert_eq!(read(&registers, 0x10, 2), 2);
    set(&mut registers, 0x10, 2, 3);
    assert_eq!(read(&registers, 0x10, 2), u64::from(NO_VECTOR));
}

#[derive(Debug, Clone)]
enum Step {
    Write(usize, Vec<u8>),
    Loop,
}

fn step() -> impl Strategy<Value = Step> {
    let register = prop_oneof![0_usize..0x40, Just(0x14), Just(0x1C), Just(0x16)];
    let data = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..10),
        prop::collection::vec(0_u8..16, 1..2),
        (0_u16..4).prop_map(|value| value.to_le_bytes().to_vec()),
    ];
    prop_oneof![4 => (register, data).prop_map(|(offset, data)| Step::Write(offset, data)), 1 => Just(Step::Loop)]
}

proptest! {
    /// Whatever is written, the device is started only from a driver's complete set-up, every effect is asked for once,
    /// and the status reads 0 only when nothing runs.
    #[test]
    fn hostile_writes_never_start_a_device_twice(steps in prop::collection::vec(step(), 0..200)) {
        let mut registers = registers();
        let mut running = false;
        let mut pending = None;
        for step in steps {
            match step {
                Step::Write(offset, data) => match registers.write(offset, &data) {
                    Effect::Activate => {
                        prop_assert!(!running);
                        prop_assert_eq!(registers.accepted_features() & !OFFERED, 0);
                        running = true;
                        pending = Some(Effect::Activate);
                    }
                    Effect::Reset => pending = Some(Effect::Reset),
                    Effect::None | Effect::NeedsReset => {}
                },
                Step::Loop => match pending.take() {
                    Some(Effect::Activate) => registers.activated(),
                    Some(Effect::Reset) => {
                        registers.reset_done();
                        running = false;
                    }
                    _ => {}
                },
            }
            if running {
                prop_assert_ne!(read(&registers, 0x14, 1), 0);
            }
            for offset in 0..0x40 {
                for length in 0..10 {
                    registers.read(offset, &mut vec![0; length]);
                }
            }
        }
    }
}
