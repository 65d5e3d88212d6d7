//! Requests of a driver that the test plays, against a real file, through the worker's thread or without it.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use virtio_queue::QueueOwnedT as _;
use vm_memory::{Bytes, GuestAddress};

use super::super::buffers::Buffers;
use super::super::testing::{self, DriverQueue, WRITE};
use super::super::{GuestMemory, VirtioDevice};
use super::disk::{Disk, DiskError};
use super::request::{Context, RequestError, serve};
use super::{Block, device};

const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x8100;
const DATA: u64 = 0x10_0000;
const SECTORS: u64 = 2048;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// Sector n is filled with the low byte of n + 1.
fn content() -> Vec<u8> {
    (0..SECTORS)
        .flat_map(|sector| [u8::try_from((sector + 1) % 256).unwrap(); 512])
        .collect()
}

fn disk_file() -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&content(), 0).unwrap();
    file
}

struct Bench {
    memory: GuestMemory,
    driver: DriverQueue,
    queue: virtio_queue::Queue,
    context: Context,
    file: File,
}

impl Bench {
    fn new(read_only: bool) -> Self {
        let memory = testing::guest_memory(0x40_0000);
        let driver = DriverQueue::new(&memory, 0, 64);
        let queue = driver.device_queue();
        let file = disk_file();
        let disk = Arc::new(Disk::new("disk", file.try_clone().unwrap(), read_only).unwrap());
        let context = Context {
            disk,
            id: *b"a disk's id\0\0\0\0\0\0\0\0\0",
            write_through: false,
        };
        Self {
            memory,
            driver,
            queue,
            context,
            file,
        }
    }

    /// A request whose data is these segments; returns status and used length.
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> (u8, u32) {
        write_header(&self.memory, kind, sector);
        self.memory.write_obj(0xee_u8, GuestAddress(STATUS)).unwrap();
        let mut chain = vec![(HEADER, 16, 0)];
        chain.extend(data);
        chain.push((STATUS, 1, WRITE));
        let written = self.chain(&chain).unwrap();
        (self.memory.read_obj(GuestAddress(STATUS)).unwrap(), written)
    }

    fn chain(&mut self, chain: &[(u64, u32, u16)]) -> Result<u32, RequestError> {
        self.driver.add(chain);
        let chain = self.queue.iter(&self.memory).unwrap().next().unwrap();
        serve(&self.context, Buffers::collect(&self.memory, chain))
    }

    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let mut bytes = Vec::new();
        for (sector, count, flags) in ranges {
            bytes.extend(sector.to_le_bytes());
            bytes.extend(count.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
        }
        self.memory.write_slice(&bytes, GuestAddress(DATA)).unwrap();
        self.request(kind, 0, &[(DATA, u32::try_from(bytes.len()).unwrap(), 0)])
            .0
    }

    fn sector(&self, sector: u64) -> [u8; 512] {
        let mut bytes = [0; 512];
        self.file.read_exact_at(&mut bytes, sector * 512).unwrap();
        bytes
    }
}

fn write_header(memory: &GuestMemory, kind: u32, sector: u64) {
    memory.write_obj(kind.to_le(), GuestAddress(HEADER)).unwrap();
    memory.write_obj(0_u32, GuestAddress(HEADER + 4)).unwrap();
    memory
        .write_obj(sector.to_le(), GuestAddress(HEADER + 8))
        .unwrap();
}

#[test]
fn reads_come_from_the_file_whatever_the_segments() {
    let mut bench = Bench::new(true);
    let (status, written) = bench.request(
        IN,
        5,
        &[
            (DATA, 100, WRITE),
            (DATA + 0x1000, 0, WRITE),
            (DATA + 0x2000, 924, WRITE),
        ],
    );
    assert_eq!((status, written), (OK, 1025));
    let mut bytes = [0; 924];
    bench
        .memory
        .read_slice(&mut bytes, GuestAddress(DATA + 0x2000))
        .unwrap();
    assert_eq!(bytes[..412], [6; 412]);
    assert_eq!(bytes[412..], [7; 512]);
}

#[test]
fn writes_go_to_the_file_whatever_the_segments() {
    let mut bench = Bench::new(false);
    bench
        .memory
        .write_slice(&[0xaa; 1024], GuestAddress(DATA))
        .unwrap();
    assert_eq!(bench.request(OUT, 7, &[(DATA, 511, 0), (DATA, 513, 0)]), (OK, 1));
    assert_eq!(bench.sector(6), [7; 512]);
    assert_eq!(bench.sector(7), [0xaa; 512]);
    assert_eq!(bench.sector(8), [0xaa; 512]);
    assert_eq!(bench.sector(9), [10; 512]);
}

#[test]
fn the_driver_may_cut_header_and_status_anywhere() {
    let mut bench = Bench::new(false);
    write_header(&bench.memory, IN, 3);
    let chain = [(HEADER, 5, 0), (HEADER + 5, 11, 0), (DATA, 512 + 1, WRITE)];
    assert_eq!(bench.chain(&chain), Ok(513));
    assert_eq!(bench.memory.read_obj::<u8>(GuestAddress(DATA + 511)).unwrap(), 4);
    assert_eq!(bench.memory.read_obj::<u8>(GuestAddress(DATA + 512)).unwrap(), OK);
}

#[test]
fn nothing_off_the_disk_is_touched() {
    let mut bench = Bench::new(false);
    for sector in [SECTORS, SECTORS - 1, u64::MAX / 512, u64::MAX / 512 + 1, u64::MAX] {
        assert_eq!(
            bench.request(IN, sector, &[(DATA, 1024, WRITE)]),
            (IOERR, 1),
            "{sector}"
        );
        assert_eq!(
            bench.request(OUT, sector, &[(DATA, 1024, 0)]),
            (IOERR, 1),
            "{sector}"
        );
        assert_eq!(bench.ranges(DISCARD, &[(sector, 2, 0)]), IOERR, "{sector}");
        assert_eq!(bench.ranges(WRITE_ZEROES, &[(sector, 2, 0)]), IOERR, "{sector}");
    }
    assert_eq!(bench.file.metadata().unwrap().len(), SECTORS * 512);
    assert_eq!(bench.sector(SECTORS - 1), [0; 512]);
}

#[test]
fn parts_of_sectors_are_refused() {
    let mut bench = Bench::new(false);
    assert_eq!(bench.request(IN, 0, &[(DATA, 511, WRITE)]), (IOERR, 1));
    assert_eq!(bench.request(OUT, 0, &[(DATA, 513, 0)]), (IOERR, 1));
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let mut bench = Bench::new(true);
    assert_eq!(bench.request(OUT, 0, &[(DATA, 512, 0)]), (IOERR, 1));
    assert_eq!(bench.ranges(DISCARD, &[(0, 1, 0)]), IOERR);
    assert_eq!(bench.ranges(WRITE_ZEROES, &[(0, 1, 0)]), IOERR);
    assert_eq!(bench.request(FLUSH, 0, &[]), (OK, 1));
    assert_eq!(bench.sector(0), [1; 512]);
}

#[test]
fn discarded_sectors_read_as_zeros_and_free_their_space() {
    let mut bench = Bench::new(false);
    bench.file.sync_all().unwrap();
    let before = bench.file.metadata().unwrap().blocks();
    assert_eq!(bench.ranges(DISCARD, &[(8, 1024, 0), (1600, 8, 0)]), OK);
    assert_eq!(bench.sector(7), [8; 512]);
    assert_eq!(bench.sector(8), [0; 512]);
    assert_eq!(bench.sector(1603), [0; 512]);
    assert_eq!(bench.sector(1608), [73; 512]);
    assert!(bench.file.metadata().unwrap().blocks() < before);
}

#[test]
fn zeroes_are_written_with_and_without_unmap() {
    let mut bench = Bench::new(false);
    assert_eq!(bench.ranges(WRITE_ZEROES, &[(1, 2, 0)]), OK);
    assert_eq!(bench.ranges(WRITE_ZEROES, &[(5, 3, 1)]), OK);
    for (sector, zero) in [
        (0, false),
        (1, true),
        (2, true),
        (3, false),
        (5, true),
        (7, true),
        (8, false),
    ] {
        assert_eq!(bench.sector(sector) == [0; 512], zero, "{sector}");
    }
}

#[test]
fn ranges_have_rules() {
    let mut bench = Bench::new(false);
    assert_eq!(bench.ranges(DISCARD, &[(0, 1, 1)]), UNSUPP);
    assert_eq!(bench.ranges(WRITE_ZEROES, &[(0, 1, 2)]), UNSUPP);
    assert_eq!(bench.ranges(DISCARD, &[(0, u32::MAX, 0)]), IOERR);
    assert_eq!(bench.ranges(WRITE_ZEROES, &[(0, u32::MAX, 0)]), IOERR);
    assert_eq!(bench.ranges(DISCARD, &[(0, 0, 0); 33]), IOERR);
    assert_eq!(bench.ranges(WRITE_ZEROES, &[(0, 0, 0); 2]), IOERR);
    assert_eq!(bench.request(DISCARD, 0, &[(DATA, 15, 0)]), (IOERR, 1));
    assert_eq!(bench.sector(0), [1; 512]);
}

#[test]
fn the_id_is_told_as_far_as_it_fits() {
    let mut bench = Bench::new(true);
    assert_eq!(bench.request(GET_ID, 0, &[(DATA, 20, WRITE)]), (OK, 21));
    let mut id = [0xff; 20];
    bench.memory.read_slice(&mut id, GuestAddress(DATA)).unwrap();
    assert_eq!(&id, b"a disk's id\0\0\0\0\0\0\0\0\0");
    assert_eq!(bench.request(GET_ID, 0, &[(DATA, 4, WRITE)]), (OK, 5));
}

#[test]
fn unknown_requests_are_unsupported() {
    let mut bench = Bench::new(false);
    for kind in [2, 3, 5, 14, u32::MAX] {
        assert_eq!(bench.request(kind, 0, &[]), (UNSUPP, 1), "{kind}");
    }
}

#[test]
fn chains_without_header_or_status_are_survived() {
    let mut bench = Bench::new(false);
    assert_eq!(bench.chain(&[(HEADER, 16, 0)]), Err(RequestError::NoStatus));
    assert_eq!(
        bench.chain(&[(HEADER, 16, 0), (STATUS, 0, WRITE)]),
        Err(RequestError::NoStatus)
    );
    assert!(matches!(
        bench.chain(&[(u64::MAX, 16, 0)]),
        Err(RequestError::Buffers(_))
    ));
    assert!(matches!(
        bench.chain(&[(STATUS, 1, WRITE), (HEADER, 16, 0)]),
        Err(RequestError::Buffers(_))
    ));
    assert_eq!(bench.chain(&[(HEADER, 15, 0), (STATUS, 1, WRITE)]), Ok(1));
    assert_eq!(bench.memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), IOERR);
    assert_eq!(bench.chain(&[(STATUS, 1, WRITE)]), Ok(1));
}

#[test]
fn a_file_that_was_cut_gives_an_error_and_not_old_bytes() {
    let mut bench = Bench::new(false);
    bench.file.set_len(512).unwrap();
    assert_eq!(bench.request(IN, 0, &[(DATA, 1024, WRITE)]).0, IOERR);
}

#[test]
fn odd_sizes_are_refused_by_name() {
    for bytes in [0, 511, 513] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        let error = Block::new("scratch", file, false).unwrap_err();
        assert!(matches!(error, DiskError::OddSize { .. }), "{error}");
        assert!(error.to_string().contains("scratch"), "{error}");
    }
}

#[test]
fn the_configuration_tells_capacity_and_limits() {
    let block = Block::new("scratch", disk_file(), false).unwrap();
    let mut config = [0xff; 64];
    block.read_config(0, &mut config);
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[12..16], 254_u32.to_le_bytes());
    assert_eq!(config[20..24], 512_u32.to_le_bytes());
    assert_eq!(config[60..], [0xff; 4]);
    let writable = block.features();
    let read_only = Block::new("layer", disk_file(), true).unwrap().features();
    assert_eq!(writable & 1 << 5, 0);
    assert_eq!(read_only & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
}

/// The device with its thread.
struct Running {
    memory: GuestMemory,
    driver: DriverQueue,
    block: Block,
    notify: Arc<vmm_sys_util::eventfd::EventFd>,
}

fn running() -> Running {
    let memory = testing::guest_memory(0x40_0000);
    let driver = DriverQueue::new(&memory, 0, 64);
    let mut block = Block::new("disk", disk_file(), false).unwrap();
    let activation = testing::activation(&memory, &[&driver], 1 << 9);
    let notify = Arc::clone(&activation.queues[0].notify);
    block.activate(activation).unwrap();
    Running {
        memory,
        driver,
        block,
        notify,
    }
}

impl Running {
    fn wait_for_used(&mut self, count: usize) -> Vec<(u16, u32)> {
        let until = Instant::now() + Duration::from_secs(5);
        let mut used = Vec::new();
        while used.len() < count {
            assert!(Instant::now() < until, "only {used:?}");
            used.extend(self.driver.take_used());
            std::thread::sleep(Duration::from_millis(1));
        }
        used
    }
}

#[test]
fn the_worker_serves_and_is_joined() {
    let mut running = running();
    write_header(&running.memory, IN, 0);
    for round in 0..100 {
        let mut heads = Vec::new();
        for slot in 0..20 {
            let status = STATUS + slot;
            heads.push(
                running
                    .driver
                    .add(&[(HEADER, 16, 0), (DATA, 512, WRITE), (status, 1, WRITE)]),
            );
        }
        running.notify.write(1).unwrap();
        let used: Vec<u16> = running.wait_for_used(20).iter().map(|(head, _)| *head).collect();
        assert_eq!(used, heads, "round {round}");
    }
    running.block.deactivate();
    running.driver.add(&[(HEADER, 16, 0), (STATUS, 1, WRITE)]);
    running.notify.write(1).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(running.driver.take_used(), []);
}

#[test]
fn a_broken_queue_stops_the_worker_and_a_reset_starts_it_again() {
    let mut running = running();
    running.driver.set_available(1000);
    running.notify.write(1).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(running.driver.take_used(), []);
    running.block.deactivate();

    running.driver = DriverQueue::new(&running.memory, 0x4_0000, 64);
    let activation = testing::activation(&running.memory, &[&running.driver], 0);
    running.notify = Arc::clone(&activation.queues[0].notify);
    running.block.activate(activation).unwrap();
    write_header(&running.memory, FLUSH, 0);
    running.driver.add(&[(HEADER, 16, 0), (STATUS, 1, WRITE)]);
    running.notify.write(1).unwrap();
    assert_eq!(running.wait_for_used(1)[0].1, 1);
}

#[test]
fn the_serial_number_is_cut_to_its_length() {
    assert_eq!(&device::serial("short"), b"short\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(
        &device::serial("0123456789abcdefghijklmn"),
        b"0123456789abcdefghij"
    );
}

proptest! {
    /// Any header and any cut: no panic, the disk keeps its size, and a request that is no write changes nothing.
    #[test]
    fn any_request_is_survived(
        kind in prop_oneof![0_u32..16, any::<u32>()],
        sector in prop_oneof![0_u64..4096, any::<u64>()],
        data in prop::collection::vec((0_u64..0x50_0000, 0_u32..100_000, prop_oneof![Just(0_u16), Just(WRITE)]), 0..6),
    ) {
        let mut bench = Bench::new(false);
        write_header(&bench.memory, kind, sector);
        let mut chain = vec![(HEADER, 16, 0)];
        chain.extend(data);
        chain.push((STATUS, 1, WRITE));
        let served = bench.chain(&chain).is_ok();
        prop_assert_eq!(bench.file.metadata().unwrap().len(), SECTORS * 512);
        if !served || ![OUT, DISCARD, WRITE_ZEROES].contains(&kind) {
            let mut now = vec![0; usize::try_from(SECTORS * 512).unwrap()];
            bench.file.read_exact_at(&mut now, 0).unwrap();
            prop_assert!(now == content());
        }
    }
}
