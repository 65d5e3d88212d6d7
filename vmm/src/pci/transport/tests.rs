//! A virtio function driven over configuration space and BAR as Linux does it, and as it should not.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;

use event_manager::{EventOps, Events, MutEventSubscriber};
use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::GuestAddress;

use super::testing::FakeKvm;
use super::*;
use crate::devices::virtio::ActivateError;
use crate::pci::bus::PciBus;

/// Counts what happens to it; its configuration is one writable byte, which is also its generation.
#[derive(Debug, Default)]
struct Probe {
    config: u8,
    active: Arc<AtomicBool>,
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        4
    }
    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[8, 8]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if let (0, [byte]) = (offset, data) {
            *byte = self.config;
        }
    }
    fn config_generation(&self) -> u8 {
        self.config
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (0, [byte]) = (offset, data) {
            self.config = *byte;
        }
    }
    fn activate(&mut self, _: Activation) -> Result<(), ActivateError> {
        self.active.store(true, Ordering::Relaxed);
        Ok(())
    }
    fn deactivate(&mut self) {
        self.active.store(false, Ordering::Relaxed);
    }
}

impl MutEventSubscriber for Probe {
    fn init(&mut self, _: &mut EventOps<'_>) {}
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {}
}

struct Bench {
    function: VirtioFunction,
    kvm: Arc<FakeKvm>,
    mail: Receiver<Message>,
}

/// Of the first function.
const PORTS: u16 = 0x1000;
const NOWHERE: [u16; 0] = [];

impl Bench {
    fn new() -> Self {
        let kvm = Arc::new(FakeKvm::default());
        let (mailbox, mail, _bell) = Mailbox::new().unwrap();
        let services = Services {
            memory: GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap(),
            messages: Arc::<FakeKvm>::clone(&kvm),
            wiring: Arc::<FakeKvm>::clone(&kvm),
            mailbox,
        };
        let slot = PciBus::<VirtioFunction>::new().free_slot().unwrap();
        let device: SharedDevice = Arc::new(Mutex::new(Probe::default()));
        let function = VirtioFunction::new(slot, device, &services).unwrap();
        Self { function, kvm, mail }
    }

    fn config(&mut self, offset: usize) -> u32 {
        let mut data = [0; 4];
        self.function.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u32, value: u64, length: usize) {
        self.function.write_bar(offset, &value.to_le_bytes()[..length]);
    }

    fn status(&mut self) -> u8 {
        let mut data = [0];
        self.function.read_bar(0x14, &mut data);
        data[0]
    }

    /// MSI-X on, vector 0 for configuration and 1 for queue 0, both queues enabled, DRIVER_OK.
    fn start(&mut self) {
        self.function.write_config(4, &[7, 0]);
        let msix = self.function.msix_capability;
        self.function.write_config(msix + 2, &0x8000_u16.to_le_bytes());
        for vector in 0..3 {
            self.write(MSIX_TABLE + 16 * vector, 0xFEE0_0000, 4);
            self.write(MSIX_TABLE + 16 * vector + 8, 0x40 + u64::from(vector), 4);
            self.write(MSIX_TABLE + 16 * vector + 12, 0, 4);
        }
        for (offset, value, length) in [
            (0x14, 3, 1),
            (0x08, 1, 4),
            (0x0C, 1, 4),
            (0x14, 0xB, 1),
            (0x10, 0, 2),
        ] {
            self.write(offset, value, length);
        }
        for queue in 0..2 {
            let base = 0x1000 * (queue + 1);
            for (offset, value, length) in [
                (0x16, queue, 2),
                (0x1A, queue + 1, 2),
                (0x20, base, 8),
                (0x28, base + 0x200, 8),
                (0x30, base + 0x400, 8),
                (0x1C, 1, 2),
            ] {
                self.write(offset, value, length);
            }
        }
        self.write(0x14, 0xF, 1);
    }

    fn wired(&self) -> Vec<u16> {
        self.kvm.wired.lock().unwrap().clone()
    }
}

#[test]
fn linux_finds_all_structures() {
    let mut bench = Bench::new();
    assert_eq!(bench.config(0), 0x1044_1AF4);
    let (mut at, mut kinds) = ((bench.config(0x34) & 0xFF) as usize, Vec::new());
    while at != 0 {
        let head = bench.config(at);
        if head & 0xFF == 0x09 {
            kinds.push((
                head >> 24,
                bench.config(at + 4) & 0xFF,
                bench.config(at + 8),
                bench.config(at + 12),
            ));
        } else {
            assert_eq!(head & 0xFF, 0x11);
            assert_eq!(head >> 16 & 0x7FF, 2, "three vectors");
            assert_eq!(
                (bench.config(at + 4), bench.config(at + 8)),
                (MSIX_TABLE, MSIX_PENDING)
            );
        }
        at = (head >> 8 & 0xFF) as usize;
    }
    let expected = [
        (1, 0, COMMON, 0x38),
        (3, 0, ISR, 1),
        (4, 0, DEVICE, REGION),
        (2, 1, 0, 32),
        (5, 0, 0, 0),
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn a_restored_function_is_started_by_the_loop_and_hears_every_doorbell() {
    let mut template = Bench::new();
    template.start();
    drop(template.function.begin_activation());
    assert!(template.function.save(&[]).is_none(), "it is being started");
    template.function.activated();
    let progress = |next| QueueProgress {
        next_avail: next,
        next_used: next,
    };
    let saved = template
        .function
        .save(&[(0, progress(7)), (1, progress(9))])
        .unwrap();

    let mut fork = Bench::new();
    fork.function.restore(&saved).unwrap();
    assert!(matches!(fork.mail.try_recv(), Ok(Message::ActivateDevice(_))));
    let activation = fork.function.begin_activation().unwrap();
    fork.function.activated();
    assert_eq!(fork.wired(), template.wired());
    for (queue, next) in activation.queues.iter().zip([7, 9]) {
        assert_eq!(QueueProgress::of(&queue.queue), progress(next));
        assert_eq!(queue.notify.read().unwrap(), 1);
    }
    activation.interrupt.signal_queue(1);
    let sent = mem::take(&mut *fork.kvm.sent.lock().unwrap());
    assert_eq!(sent[0].data, 0x42);
    assert_eq!(fork.status(), 0xF);
    assert_eq!(
        fork.function.save(&[(0, progress(7)), (1, progress(9))]),
        Some(saved)
    );
}

#[test]
fn a_function_that_nobody_drove_waits_for_its_driver() {
    let saved = Bench::new().function.save(&[]).unwrap();
    let mut fork = Bench::new();
    fork.function.restore(&saved).unwrap();
    assert!(fork.mail.try_recv().is_err());
    fork.start();
    assert!(fork.function.begin_activation().is_some());
}

#[test]
fn a_driver_starts_the_device_and_resets_it() {
    let mut bench = Bench::new();
    bench.start();
    assert!(matches!(bench.mail.try_recv(), Ok(Message::ActivateDevice(_))));
    assert_eq!(
        bench.wired(),
        NOWHERE,
        "nothing is wired before the loop starts the device"
    );
    let activation = bench.function.begin_activation().unwrap();
    bench.function.activated();
    assert_eq!(bench.wired(), [PORTS, PORTS + 4]);
    activation.interrupt.signal_queue(0);
    activation.interrupt.signal_config();
    activation.interrupt.signal_queue(7);
    let sent: Vec<u32> = mem::take(&mut *bench.kvm.sent.lock().unwrap())
        .iter()
        .map(|m| m.data)
        .collect();
    assert_eq!(sent, [0x41, 0x40]);

    bench.write(0x14, 0, 1);
    assert!(matches!(bench.mail.try_recv(), Ok(Message::ResetDevice(_))));
    assert!(bench.function.wants_reset());
    assert_eq!(bench.status(), 0xF);
    bench.function.reset_done();
    assert_eq!(bench.status(), 0);
    assert_eq!(bench.wired(), NOWHERE);
}

#[test]
fn doorbells_follow_their_bar() {
    let mut bench = Bench::new();
    bench.start();
    bench.function.begin_activation().unwrap();
    bench.function.activated();
    bench.function.write_config(0x10, &0xD000_0000_u32.to_le_bytes());
    assert_eq!(bench.wired(), [PORTS, PORTS + 4]);
    bench.function.write_config(0x14, &0x2400_u32.to_le_bytes());
    assert_eq!(bench.wired(), [0x2400, 0x2404]);
    bench.function.write_config(4, &[6, 0]);
    assert_eq!(bench.wired(), NOWHERE, "decoding is off");
    bench.function.write_config(4, &[7, 0]);
    assert_eq!(bench.wired().len(), 2);
    let kvm = Arc::clone(&bench.kvm);
    drop(bench);
    assert_eq!(*kvm.wired.lock().unwrap(), NOWHERE, "gone with the function");
}

#[test]
fn a_ring_before_the_wiring_is_not_lost() {
    let mut bench = Bench::new();
    bench.start();
    bench.function.write_ports(4, &[1, 0]);
    let activation = bench.function.begin_activation().unwrap();
    assert_eq!(activation.queues[1].notify.read().unwrap(), 1);
    assert!(activation.queues[0].notify.read().is_err());
    bench.function.write_ports(8, &[1, 0]);
}

#[test]
fn a_device_that_cannot_start_asks_for_a_reset() {
    let mut bench = Bench::new();
    bench.start();
    assert!(bench.function.begin_activation().is_some());
    bench.function.broken();
    assert_eq!(bench.status(), 0x4F);
    assert_eq!(
        bench.kvm.sent.lock().unwrap().len(),
        1,
        "a configuration interrupt tells"
    );
    assert!(bench.function.begin_activation().is_none());
}

#[test]
fn the_window_in_configuration_space_reaches_the_bar() {
    let mut bench = Bench::new();
    let at = 0x40 + 16 * 3 + 20;
    assert_eq!(bench.config(at) >> 24, 5);
    let mut through = |offset: u32, length: u32| {
        bench.function.write_config(at + 8, &offset.to_le_bytes());
        bench.function.write_config(at + 12, &length.to_le_bytes());
        bench.config(at + 16)
    };
    assert_eq!(through(0x12, 2), 2, "two queues");
    assert_eq!(through(0x15, 1) & 0xFF, 0);
    through(0x7FFE, 4);
    through(0xFFFF_FFFC, 4);
    through(0x8000, 4);
    bench.function.write_config(at + 8, &DEVICE.to_le_bytes());
    bench.function.write_config(at + 12, &1_u32.to_le_bytes());
    bench.function.write_config(at + 16, &[0x5A]);
    let mut data = [0];
    bench.function.read_bar(DEVICE, &mut data);
    assert_eq!(data, [0x5A]);
    bench.function.read_bar(0x15, &mut data);
    assert_eq!(data, [0x5A], "the generation is the device's");
}

#[test]
fn the_window_in_configuration_space_reaches_the_doorbells() {
    let mut bench = Bench::new();
    bench.start();
    let at = 0x40 + 16 * 3 + 20;
    bench.function.write_config(at + 4, &[DOORBELLS]);
    bench.function.write_config(at + 12, &2_u32.to_le_bytes());
    for (offset, value) in [(4_u32, 0xFFFF), (32, 0), (0xFFFF_FFFE, 0)] {
        bench.function.write_config(at + 16, &[0; 4]);
        bench.function.write_config(at + 8, &offset.to_le_bytes());
        assert_eq!(bench.config(at + 16), value, "{offset:#x}");
    }
    bench.function.begin_activation().unwrap();
    bench.function.activated();
    let rung = |bench: &Bench| {
        let bells = bench.function.doorbells.events();
        bells.iter().map(|bell| bell.read().is_ok()).collect::<Vec<_>>()
    };
    rung(&bench);
    bench.function.write_config(at + 8, &4_u32.to_le_bytes());
    bench.function.write_config(at + 16, &[1, 0]);
    assert_eq!(rung(&bench), [false, true]);
    bench.function.write_config(at + 4, &[2]);
    bench.function.write_config(at + 16, &[1, 0]);
    assert_eq!(rung(&bench), [false, false], "there is no such BAR");
}

proptest! {
    /// No access panics, and doorbells are wired only while the device is starting or live.
    #[test]
    fn hostile_accesses_do_no_harm(
        accesses in prop::collection::vec((0_u8..6, any::<u32>(), prop::collection::vec(any::<u8>(), 1..9)), 0..200),
        started in any::<bool>(),
    ) {
        let mut bench = Bench::new();
        if started {
            bench.start();
        }
        for (kind, at, mut data) in accesses {
            let offset = at % (BAR_SIZE - 8);
            match kind {
                0 => bench.function.write_config((at % 256) as usize, &data),
                1 => bench.function.read_config((at % 256) as usize, &mut data),
                2 => bench.function.write_bar(if at & 1 == 0 { offset % 0x40 } else { offset }, &data),
                3 => bench.function.read_bar(offset, &mut data),
                4 => bench.function.write_ports(offset % 64, &data),
                _ => match bench.mail.try_recv() {
                    Ok(Message::ActivateDevice(_)) => {
                        let started = bench.function.begin_activation();
                        started.into_iter().for_each(|_| bench.function.activated());
                    }
                    Ok(Message::ResetDevice(_)) if bench.function.wants_reset() => bench.function.reset_done(),
                    _ => {}
                },
            }
            let lives = matches!(bench.function.registers.phase(), Phase::Starting | Phase::Live | Phase::Resetting | Phase::Broken);
            prop_assert!(lives || bench.wired().is_empty());
        }
    }
}
