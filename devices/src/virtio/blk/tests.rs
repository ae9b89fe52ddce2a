//! Whole conversations between a driver and the disk, over both engines.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use proptest::prelude::*;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::engine::Engine;
use super::fuzz;
use super::handler::{BlkFault, Handler};
use super::request::{ChainError, Request, Step, Transfer};
use super::watch::TransferWatch;
use super::*;
use crate::GuestRam;
use crate::test_utils::{AVAIL_RING, QUEUE_SIZE, USED_RING, fake_interrupt, fixed_queue};
use crate::virtio::serve::Served;
use crate::virtio::{Activation, ActiveQueue, VirtioDevice, VirtioInterrupt};

/// Sectors of the test disk.
const NUM_SECTORS: u64 = 64;
/// Where the driver puts a request's header, data and status.
const HEADER: u64 = 0x1000;
const DATA: u64 = 0x2000;
const STATUS: u64 = 0x1800;

const W: u16 = VRING_DESC_F_WRITE as u16;
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// A driver with one request under way at a time.
struct Driver {
    file: tempfile::NamedTempFile,
    disk: Arc<Disk>,
    ram: GuestRam,
    interrupt: Arc<VirtioInterrupt>,
    handler: Handler,
    log: Arc<Log>,
    avail_idx: u16,
}

/// What a disk told of its transfers since it was asked last.
#[derive(Debug, Default)]
struct Log(Mutex<Vec<String>>);

impl Log {
    fn add(&self, line: String) {
        self.0.lock().push(line);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock())
    }
}

impl TransferWatch for Log {
    fn pin(&self, gpa: GuestAddress, len: u32) {
        self.add(format!("pin {:#x} {len}", gpa.0));
    }

    fn unpin(&self, gpa: GuestAddress, len: u32) {
        self.add(format!("unpin {:#x} {len}", gpa.0));
    }

    fn begin_change(&self, offset: u64, len: u64) {
        self.add(format!("change {offset} {len}"));
    }

    fn end_change(&self, offset: u64, len: u64) {
        self.add(format!("changed {offset} {len}"));
    }

    fn transferred(&self, gpa: GuestAddress, len: u32, offset: u64) {
        self.add(format!("transferred {:#x} {len} {offset}", gpa.0));
    }
}

/// An image whose every sector is filled with its own number plus one.
fn image() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    for sector in 0..NUM_SECTORS {
        let bytes = [sector as u8 + 1; 512];
        file.as_file().write_all_at(&bytes, sector * 512).unwrap();
    }
    file
}

fn guest_ram() -> GuestRam {
    let half = fuzz::RAM_BYTES / 2;
    GuestRam::from_ranges(&[(GuestAddress(0), half), (GuestAddress(half as u64), half)]).unwrap()
}

/// Writes a chain of (address, length, flags) from descriptor 0 on, and makes it available.
fn offer(ram: &GuestRam, avail_idx: &mut u16, chain: &[(u64, u32, u16)]) {
    for (i, (gpa, len, flags)) in chain.iter().enumerate() {
        let has_next = i + 1 < chain.len();
        let flags = flags | if has_next { NEXT } else { 0 };
        let at = GuestAddress(i as u64 * 16);
        ram.write_obj(*gpa, at).unwrap();
        ram.write_obj(*len, GuestAddress(at.0 + 8)).unwrap();
        ram.write_obj(flags, GuestAddress(at.0 + 12)).unwrap();
        ram.write_obj(i as u16 + 1, GuestAddress(at.0 + 14))
            .unwrap();
    }
    let entry = u64::from(AVAIL_RING) + 4 + u64::from(*avail_idx % QUEUE_SIZE) * 2;
    ram.write_obj(0u16, GuestAddress(entry)).unwrap();
    *avail_idx = avail_idx.wrapping_add(1);
    ram.write_obj(*avail_idx, GuestAddress(u64::from(AVAIL_RING) + 2))
        .unwrap();
}

fn write_header(ram: &GuestRam, op: u32, sector: u64) {
    ram.write_obj(u64::from(op), GuestAddress(HEADER)).unwrap();
    ram.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
    ram.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
}

impl Driver {
    fn new(kind: EngineKind) -> Self {
        Driver::with(kind, false, image())
    }

    fn with(kind: EngineKind, is_read_only: bool, file: tempfile::NamedTempFile) -> Self {
        let disk = Arc::new(Disk::open(file.path(), is_read_only).unwrap());
        let ram = guest_ram();
        let interrupt = fake_interrupt(1);
        let log = Arc::new(Log::default());
        let watch = Some(Arc::clone(&log) as _);
        let handler = fuzz::handler(&disk, kind, &ram, &interrupt, watch);
        Driver {
            file,
            disk,
            ram,
            interrupt,
            handler,
            log,
            avail_idx: 0,
        }
    }

    fn serve(&mut self, chain: &[(u64, u32, u16)]) -> Result<(), BlkFault> {
        offer(&self.ram, &mut self.avail_idx, chain);
        fuzz::run(&mut self.handler)
    }

    fn status(&self) -> u32 {
        let status: u8 = self.ram.read_obj(GuestAddress(STATUS)).unwrap();
        u32::from(status)
    }

    /// Sends `data` with a request; the status.
    fn send(&mut self, op: u32, sector: u64, data: &[u8]) -> u32 {
        write_header(&self.ram, op, sector);
        self.ram.write_slice(data, GuestAddress(DATA)).unwrap();
        let len = data.len() as u32;
        self.serve(&[(HEADER, 16, 0), (DATA, len, 0), (STATUS, 1, W)])
            .unwrap();
        self.status()
    }

    /// Asks for `len` bytes; the status and the bytes.
    fn ask(&mut self, op: u32, sector: u64, len: u32) -> (u32, Vec<u8>) {
        write_header(&self.ram, op, sector);
        self.serve(&[(HEADER, 16, 0), (DATA, len, W), (STATUS, 1, W)])
            .unwrap();
        let mut data = vec![0; len as usize];
        self.ram.read_slice(&mut data, GuestAddress(DATA)).unwrap();
        (self.status(), data)
    }

    /// Length in the last element of the used ring.
    fn used_len(&self) -> u32 {
        let idx: u16 = self
            .ram
            .read_obj(GuestAddress(u64::from(USED_RING) + 2))
            .unwrap();
        let element = u64::from(USED_RING) + 4 + u64::from(idx.wrapping_sub(1) % QUEUE_SIZE) * 8;
        self.ram.read_obj(GuestAddress(element + 4)).unwrap()
    }

    fn sector(&self, sector: u64) -> [u8; 512] {
        let mut bytes = [0; 512];
        self.file
            .as_file()
            .read_exact_at(&mut bytes, sector * 512)
            .unwrap();
        bytes
    }
}

fn range(sector: u64, len: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// The conversations that both engines must hold alike.
mod over {
    use super::*;

    pub fn read_returns_the_sectors(kind: EngineKind) {
        let mut driver = Driver::new(kind);

        let (status, data) = driver.ask(VIRTIO_BLK_T_IN, 62, 1024);

        assert_eq!(status, VIRTIO_BLK_S_OK);
        assert_eq!(data[..512], [63; 512]);
        assert_eq!(data[512..], [64; 512]);
        assert_eq!(driver.used_len(), 1025);
        assert_eq!(driver.handler.backend().metrics.read_bytes.get(), 1024);
    }

    pub fn write_changes_its_sectors_only(kind: EngineKind) {
        let mut driver = Driver::new(kind);

        let status = driver.send(VIRTIO_BLK_T_OUT, 3, &[0xaa; 512]);

        assert_eq!(status, VIRTIO_BLK_S_OK);
        assert_eq!(driver.sector(2), [3; 512]);
        assert_eq!(driver.sector(3), [0xaa; 512]);
        assert_eq!(driver.sector(4), [5; 512]);
        assert_eq!(driver.used_len(), 1);
    }

    pub fn flush_succeeds_and_is_counted(kind: EngineKind) {
        let mut driver = Driver::new(kind);

        let status = driver.send(VIRTIO_BLK_T_FLUSH, 0, &[]);

        assert_eq!(status, VIRTIO_BLK_S_OK);
        assert_eq!(driver.handler.backend().metrics.flushes.get(), 1);
    }

    pub fn read_of_an_image_that_shrank_is_an_io_error(kind: EngineKind) {
        let mut driver = Driver::new(kind);
        driver.file.as_file().set_len(62 * 512 + 100).unwrap();

        let (status, _) = driver.ask(VIRTIO_BLK_T_IN, 61, 1024);

        assert_eq!(status, VIRTIO_BLK_S_IOERR);
        // The sector that is there, and what the last one has left.
        assert_eq!(driver.used_len(), 612);
        assert_eq!(driver.handler.backend().metrics.errors.get(), 1);
        assert_eq!(driver.handler.backend().metrics.host_errors.get(), 1);
    }

    pub fn transfers_are_told_from_begin_to_end(kind: EngineKind) {
        let mut driver = Driver::new(kind);
        write_header(&driver.ram, VIRTIO_BLK_T_IN, 8);
        let pieces = [(DATA, 512, W), (DATA + 0x1000, 1024, W)];
        driver
            .serve(&[(HEADER, 16, 0), pieces[0], pieces[1], (STATUS, 1, W)])
            .unwrap();
        let read = [
            "pin 0x2000 512",
            "pin 0x3000 1024",
            "transferred 0x2000 512 4096",
            "transferred 0x3000 1024 4608",
            "unpin 0x2000 512",
            "unpin 0x3000 1024",
        ];
        assert_eq!(driver.log.take(), read);

        driver.send(VIRTIO_BLK_T_OUT, 3, &[0xaa; 512]);
        let written = [
            "pin 0x2000 512",
            "change 1536 512",
            "transferred 0x2000 512 1536",
            "unpin 0x2000 512",
            "changed 1536 512",
        ];
        assert_eq!(driver.log.take(), written);

        driver.send(VIRTIO_BLK_T_FLUSH, 0, &[]);
        driver.send(VIRTIO_BLK_T_OUT, NUM_SECTORS, &[0xaa; 512]);
        assert!(driver.log.take().is_empty(), "nothing was transferred");
        driver.send(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(5, 2, 0));
        assert_eq!(driver.log.take(), ["change 2560 1024", "changed 2560 1024"]);

        driver.file.as_file().set_len(0).unwrap();
        driver.ask(VIRTIO_BLK_T_IN, 0, 512);
        assert_eq!(driver.log.take(), ["pin 0x2000 512", "unpin 0x2000 512"]);
    }

    pub fn several_requests_make_one_interrupt(kind: EngineKind) {
        let mut driver = Driver::new(kind);
        write_header(&driver.ram, VIRTIO_BLK_T_IN, 0);
        let chain = [(HEADER, 16, 0), (DATA, 512, W), (STATUS, 1, W)];
        offer(&driver.ram, &mut driver.avail_idx, &chain);
        offer(&driver.ram, &mut driver.avail_idx, &chain);

        driver.serve(&chain).unwrap();

        let metrics = &driver.handler.backend().metrics;
        assert_eq!(metrics.reads.get(), 3);
        // used_event is 0: the guest wants to hear of the first, and of no other.
        assert_eq!(metrics.queue.interrupts.get(), 1);
        let irqfd = driver.interrupt.vectors()[1].irqfd();
        assert_eq!(irqfd.read().unwrap(), 1);
    }
}

macro_rules! over_both_engines {
    ($($name:ident),* $(,)?) => {
        mod over_io_uring {
            $(#[test] fn $name() {
                if super::uring_is_missing() { return; }
                super::over::$name(super::EngineKind::IoUring);
            })*
        }
        mod over_sync {
            $(#[test] fn $name() { super::over::$name(super::EngineKind::Sync); })*
        }
    };
}

over_both_engines!(
    transfers_are_told_from_begin_to_end,
    read_returns_the_sectors,
    write_changes_its_sectors_only,
    flush_succeeds_and_is_counted,
    read_of_an_image_that_shrank_is_an_io_error,
    several_requests_make_one_interrupt,
);

fn uring_is_missing() -> bool {
    let error = io_uring::IoUring::new(2).err();
    if let Some(error) = &error {
        println!("SKIPPED: no io_uring on this host: {error}");
    }
    error.is_some()
}

#[test]
fn header_data_and_status_may_be_split_anyhow() {
    let mut driver = Driver::new(EngineKind::Sync);
    write_header(&driver.ram, VIRTIO_BLK_T_OUT, 7);
    let gap = GuestAddress(HEADER + 16);
    driver.ram.write_slice(&[0xbb; 512], gap).unwrap();

    // Header over two descriptors, its end together with the data; status behind an empty one.
    driver
        .serve(&[
            (HEADER, 5, 0),
            (HEADER + 5, 11 + 512, 0),
            (0, 0, W),
            (STATUS, 1, W),
        ])
        .unwrap();

    assert_eq!(driver.status(), VIRTIO_BLK_S_OK);
    assert_eq!(driver.sector(7), [0xbb; 512]);
}

#[test]
fn status_may_share_a_descriptor_with_the_data() {
    let mut driver = Driver::new(EngineKind::Sync);
    write_header(&driver.ram, VIRTIO_BLK_T_IN, 0);

    driver
        .serve(&[(HEADER, 16, 0), (STATUS - 512, 513, W)])
        .unwrap();

    assert_eq!(driver.status(), VIRTIO_BLK_S_OK);
}

#[test]
fn data_across_memory_regions_arrives() {
    let mut driver = Driver::new(EngineKind::Sync);
    write_header(&driver.ram, VIRTIO_BLK_T_IN, 8);
    let middle = fuzz::RAM_BYTES as u64 / 2;

    driver
        .serve(&[(HEADER, 16, 0), (middle - 100, 512, W), (STATUS, 1, W)])
        .unwrap();

    let mut data = [0; 512];
    let gpa = GuestAddress(middle - 100);
    driver.ram.read_slice(&mut data, gpa).unwrap();
    assert_eq!(data, [9; 512]);
}

#[test]
fn sectors_past_the_end_are_an_io_error_and_do_not_grow_the_image() {
    let mut driver = Driver::new(EngineKind::Sync);

    assert_eq!(
        driver.send(VIRTIO_BLK_T_OUT, NUM_SECTORS - 1, &[0; 1024]),
        VIRTIO_BLK_S_IOERR
    );
    assert_eq!(
        driver.send(VIRTIO_BLK_T_OUT, u64::MAX, &[0; 512]),
        VIRTIO_BLK_S_IOERR
    );

    assert_eq!(driver.file.as_file().metadata().unwrap().len(), 64 * 512);
    assert_eq!(driver.sector(63), [64; 512]);
}

#[test]
fn part_of_a_sector_is_an_io_error() {
    let mut driver = Driver::new(EngineKind::Sync);

    assert_eq!(
        driver.send(VIRTIO_BLK_T_OUT, 0, &[0; 511]),
        VIRTIO_BLK_S_IOERR
    );
}

#[test]
fn unknown_request_is_unsupported() {
    let mut driver = Driver::new(EngineKind::Sync);

    assert_eq!(driver.send(99, 0, &[]), VIRTIO_BLK_S_UNSUPP);
}

#[test]
fn id_is_the_serial_number() {
    let mut driver = Driver::new(EngineKind::Sync);

    let (status, data) = driver.ask(VIRTIO_BLK_T_GET_ID, 0, 20);

    assert_eq!(status, VIRTIO_BLK_S_OK);
    assert_eq!(&data, b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(driver.used_len(), 21);
}

#[test]
fn read_only_disk_refuses_every_kind_of_write() {
    let mut driver = Driver::with(EngineKind::Sync, true, image());
    let all = range(0, 1, 0);

    assert_eq!(
        driver.send(VIRTIO_BLK_T_OUT, 0, &[0; 512]),
        VIRTIO_BLK_S_IOERR
    );
    assert_eq!(
        driver.send(VIRTIO_BLK_T_DISCARD, 0, &all),
        VIRTIO_BLK_S_IOERR
    );
    assert_eq!(
        driver.send(VIRTIO_BLK_T_WRITE_ZEROES, 0, &all),
        VIRTIO_BLK_S_IOERR
    );

    assert_eq!(driver.sector(0), [1; 512]);
}

#[test]
fn write_zeroes_zeroes_its_ranges_only() {
    let mut driver = Driver::new(EngineKind::Sync);
    let two = [range(1, 1, 0), range(10, 2, 1)].concat();

    let status = driver.send(VIRTIO_BLK_T_WRITE_ZEROES, 0, &two);

    assert_eq!(status, VIRTIO_BLK_S_OK);
    assert_eq!(driver.sector(0), [1; 512]);
    assert_eq!(driver.sector(1), [0; 512]);
    assert_eq!(driver.sector(2), [3; 512]);
    assert_eq!(driver.sector(10), [0; 512]);
    assert_eq!(driver.sector(11), [0; 512]);
    assert_eq!(driver.sector(12), [13; 512]);
    let metrics = &driver.handler.backend().metrics;
    assert_eq!(metrics.discarded_bytes.get(), 3 * 512);
}

#[test]
fn discard_frees_storage_and_keeps_the_size() {
    use std::os::unix::fs::MetadataExt;
    let mut driver = Driver::new(EngineKind::Sync);
    if !driver.disk.can_discard() {
        println!("SKIPPED: the file system of temporary files cannot punch holes");
        return;
    }
    driver.file.as_file().sync_all().unwrap();
    let before = driver.file.as_file().metadata().unwrap();

    let status = driver.send(VIRTIO_BLK_T_DISCARD, 0, &range(0, 64, 0));

    let after = driver.file.as_file().metadata().unwrap();
    assert_eq!(status, VIRTIO_BLK_S_OK);
    assert_eq!(after.len(), before.len());
    assert!(after.blocks() < before.blocks());
}

#[test]
fn zeroing_ends_the_turn() {
    let mut driver = Driver::new(EngineKind::Sync);
    write_header(&driver.ram, VIRTIO_BLK_T_WRITE_ZEROES, 0);
    let data = GuestAddress(DATA);
    driver.ram.write_slice(&range(0, 1, 0), data).unwrap();
    let chain = [(HEADER, 16, 0), (DATA, 16, 0), (STATUS, 1, W)];
    offer(&driver.ram, &mut driver.avail_idx, &chain);
    offer(&driver.ram, &mut driver.avail_idx, &chain);

    let served = driver.handler.serve_queue().unwrap();

    assert_eq!(served, Served::More);
    assert_eq!(driver.handler.backend().metrics.write_zeroes.get(), 1);
}

#[test]
fn chains_wait_while_much_data_is_under_way() {
    let mut driver = Driver::new(EngineKind::Sync);
    write_header(&driver.ram, VIRTIO_BLK_T_IN, 0);
    let chain = [(HEADER, 16, 0), (DATA, 512, W), (STATUS, 1, W)];
    offer(&driver.ram, &mut driver.avail_idx, &chain);
    let max_in_flight_bytes = std::mem::take(&mut driver.handler.max_in_flight_bytes);

    assert_eq!(driver.handler.serve_queue().unwrap(), Served::All);
    assert_eq!(driver.handler.serve_completions().unwrap(), Served::All);
    assert_eq!(driver.status(), 0xff, "the request waits");
    driver.handler.max_in_flight_bytes = max_in_flight_bytes;

    assert_eq!(driver.handler.serve_completions().unwrap(), Served::More);
    fuzz::run(&mut driver.handler).unwrap();
    assert_eq!(driver.status(), VIRTIO_BLK_S_OK);
    assert_eq!(driver.handler.serve_completions().unwrap(), Served::All);
}

#[test]
fn one_bad_range_leaves_all_ranges_alone() {
    let mut driver = Driver::new(EngineKind::Sync);
    let ranges = [range(0, 1, 0), range(64, 1, 0)].concat();

    let status = driver.send(VIRTIO_BLK_T_WRITE_ZEROES, 0, &ranges);

    assert_eq!(status, VIRTIO_BLK_S_IOERR);
    assert_eq!(driver.sector(0), [1; 512]);
}

#[test]
fn too_many_ranges_are_an_io_error() {
    let mut driver = Driver::new(EngineKind::Sync);
    let ranges = range(0, 1, 0).repeat(17);

    let status = driver.send(VIRTIO_BLK_T_WRITE_ZEROES, 0, &ranges);

    assert_eq!(status, VIRTIO_BLK_S_IOERR);
    assert_eq!(driver.sector(0), [1; 512]);
}

/// The fault that `chain` provokes.
fn chain_fault(chain: &[(u64, u32, u16)]) -> ChainError {
    let mut driver = Driver::new(EngineKind::Sync);
    write_header(&driver.ram, VIRTIO_BLK_T_IN, 0);
    match driver.serve(chain) {
        Err(BlkFault::Chain { source, .. }) => source,
        other => panic!("want a faulty chain, have {other:?}"),
    }
}

#[test]
fn chain_without_a_whole_header_is_a_fault() {
    let fault = chain_fault(&[(HEADER, 15, 0), (STATUS, 1, W)]);

    assert!(matches!(fault, ChainError::NoHeader { len: 15 }), "{fault}");
}

#[test]
fn chain_without_a_writable_byte_is_a_fault() {
    let fault = chain_fault(&[(HEADER, 16, 0), (STATUS, 0, W)]);

    assert!(matches!(fault, ChainError::NoStatus), "{fault}");
}

#[test]
fn status_outside_ram_is_a_fault() {
    let fault = chain_fault(&[(HEADER, 16, 0), (0x1_0000, 1, W)]);

    assert!(
        matches!(fault, ChainError::StatusNotRam { gpa: 0x1_0000 }),
        "{fault}"
    );
}

#[test]
fn data_outside_ram_is_a_fault() {
    let fault = chain_fault(&[(HEADER, 16, 0), (0xff00, 512, W), (STATUS, 1, W)]);

    assert!(matches!(fault, ChainError::Data { .. }), "{fault}");
}

#[test]
fn header_outside_ram_is_a_fault() {
    let fault = chain_fault(&[(0xfff8, 16, 0), (STATUS, 1, W)]);

    assert!(matches!(fault, ChainError::NotReadable { .. }), "{fault}");
}

#[test]
fn readable_after_writable_is_a_fault() {
    let fault = chain_fault(&[(STATUS, 1, W), (HEADER, 16, 0)]);

    assert!(matches!(fault, ChainError::Order), "{fault}");
}

#[test]
fn chain_that_leaves_the_table_is_a_fault() {
    let fault = chain_fault(&[(HEADER, 16, NEXT); 16]);

    assert!(matches!(fault, ChainError::Truncated), "{fault}");
}

/// Writes an indirect table of headers and one status, and serves it.
fn serve_indirect(num_headers: u64) -> Result<(), BlkFault> {
    const TABLE: u64 = 0x4000;
    let mut driver = Driver::new(EngineKind::Sync);
    write_header(&driver.ram, VIRTIO_BLK_T_FLUSH, 0);
    for i in 0..num_headers {
        let fields = (HEADER, 16, NEXT, i as u16 + 1);
        let at = GuestAddress(TABLE + i * 16);
        driver
            .ram
            .write_slice(&descriptor_bytes(fields), at)
            .unwrap();
    }
    let at = GuestAddress(TABLE + num_headers * 16);
    let status = descriptor_bytes((STATUS, 1, W, 0));
    driver.ram.write_slice(&status, at).unwrap();
    driver.serve(&[(TABLE, (num_headers as u32 + 1) * 16, INDIRECT)])?;
    assert_eq!(driver.status(), VIRTIO_BLK_S_OK);
    Ok(())
}

#[test]
fn indirect_chain_of_256_descriptors_is_served() {
    serve_indirect(255).unwrap();
}

#[test]
fn indirect_chain_of_257_descriptors_is_a_fault() {
    let fault = serve_indirect(256).unwrap_err();

    assert!(
        matches!(
            fault,
            BlkFault::Chain {
                source: ChainError::TooLong,
                ..
            }
        ),
        "{fault}"
    );
}

#[test]
fn transfer_that_is_interrupted_for_ever_fails() {
    let mut request = Request::new(guest_ram());
    request.begin(Transfer::Flush, 0).unwrap();
    let interrupted = || Err(std::io::ErrorKind::Interrupted.into());

    let num_tries = (1..100).find(|_| matches!(request.advance(interrupted()), Step::Done(Err(_))));

    assert_eq!(num_tries, Some(17));
}

#[test]
fn host_without_io_uring_gets_the_other_engine() {
    let file = image();
    let disk = Arc::new(Disk::open(file.path(), true).unwrap());
    let forbidden = || Err(std::io::Error::from_raw_os_error(libc::EPERM));

    let engine = Engine::choose("blk0", disk.clone(), None, forbidden).unwrap();
    let refused = Engine::choose("blk0", disk, Some(EngineKind::IoUring), forbidden);

    assert_eq!(engine.kind(), EngineKind::Sync);
    assert!(refused.is_err());
}

#[test]
fn available_index_beyond_the_queue_is_a_fault() {
    let mut driver = Driver::new(EngineKind::Sync);
    let idx = GuestAddress(u64::from(AVAIL_RING) + 2);
    driver.ram.write_obj(QUEUE_SIZE + 1, idx).unwrap();

    let fault = fuzz::run(&mut driver.handler).unwrap_err();

    assert!(matches!(fault, BlkFault::Queue { .. }), "{fault}");
}

#[test]
fn serial_of_21_bytes_is_refused() {
    let err = Serial::new("123456789012345678901").unwrap_err();

    assert!(matches!(err, SerialError::TooLong { len: 21 }), "{err}");
}

fn device(file: &tempfile::NamedTempFile, is_read_only: bool) -> (BlkDevice, Arc<BlkMetrics>) {
    let disk = Disk::open(file.path(), is_read_only).unwrap();
    let metrics = Arc::new(BlkMetrics::default());
    let device = BlkDevice::new(
        "blk0".into(),
        Arc::new(disk),
        Serial::default(),
        metrics.clone(),
    );
    (device, metrics)
}

fn activation(ram: &GuestRam, doorbell: &EventFd, interrupt: &Arc<VirtioInterrupt>) -> Activation {
    Activation {
        ram: ram.clone(),
        features: 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_RING_F_EVENT_IDX,
        queues: vec![ActiveQueue {
            index: 0,
            queue: fixed_queue(),
            doorbell: doorbell.try_clone().unwrap(),
        }],
        interrupt: interrupt.clone(),
    }
}

/// Waits until the guest is interrupted on vector `vector_idx`, at most 10 seconds.
fn wait_for_interrupt(interrupt: &VirtioInterrupt, vector_idx: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while interrupt.vectors()[vector_idx].irqfd().read().is_err() {
        assert!(Instant::now() < deadline, "no interrupt");
        std::thread::yield_now();
    }
}

#[test]
fn device_serves_again_after_a_reset() {
    let file = image();
    let (mut device, metrics) = device(&file, false);
    let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
    for _ in 0..2 {
        let ram = guest_ram();
        let interrupt = fake_interrupt(1);
        device
            .activate(activation(&ram, &doorbell, &interrupt))
            .unwrap();
        write_header(&ram, VIRTIO_BLK_T_IN, 5);
        let chain = [(HEADER, 16, 0), (DATA, 512, W), (STATUS, 1, W)];
        offer(&ram, &mut 0, &chain);
        doorbell.write(1).unwrap();
        wait_for_interrupt(&interrupt, 1);
        let byte: u8 = ram.read_obj(GuestAddress(DATA)).unwrap();
        assert_eq!(byte, 6);
        device.reset();
    }

    assert_eq!(metrics.reads.get(), 2);
    assert_eq!(metrics.queue.doorbells.get(), 2);
    assert!(metrics.engine.get().is_some());
}

#[test]
fn device_whose_driver_breaks_the_rules_needs_a_reset() {
    let file = image();
    let (mut device, _) = device(&file, false);
    let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
    let ram = guest_ram();
    let interrupt = fake_interrupt(1);
    device
        .activate(activation(&ram, &doorbell, &interrupt))
        .unwrap();
    offer(&ram, &mut 0, &[(HEADER, 3, 0)]);

    doorbell.write(1).unwrap();

    wait_for_interrupt(&interrupt, 0);
    assert_eq!(interrupt.device_status(), 64);
    device.reset();
}

#[test]
fn reset_with_requests_under_way_waits_for_them() {
    let file = image();
    let (mut device, _) = device(&file, false);
    let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
    let ram = guest_ram();
    device
        .activate(activation(&ram, &doorbell, &fake_interrupt(1)))
        .unwrap();
    write_header(&ram, VIRTIO_BLK_T_IN, 0);
    let mut avail_idx = 0;
    for _ in 0..QUEUE_SIZE {
        let chain = [(HEADER, 16, 0), (DATA, 512, W), (STATUS, 1, W)];
        offer(&ram, &mut avail_idx, &chain);
    }
    doorbell.write(1).unwrap();

    device.reset();

    ram.write_slice(&[0; 512], GuestAddress(DATA)).unwrap();
    std::thread::yield_now();
    let mut data = [1; 512];
    ram.read_slice(&mut data, GuestAddress(DATA)).unwrap();
    assert_eq!(data, [0; 512], "nobody writes guest memory after a reset");
}

#[test]
fn config_tells_capacity_and_block_size() {
    let file = image();
    let (device, _) = device(&file, true);

    let config = device.config();

    assert_eq!(config[0..8], NUM_SECTORS.to_le_bytes());
    assert_eq!(config[12..16], 254u32.to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(device.device_features() >> VIRTIO_BLK_F_RO & 1, 1);
}

#[test]
fn metrics_name_the_engine() {
    let metrics = BlkMetrics::default();
    metrics.engine.set(EngineKind::Sync);

    assert_eq!(metrics.engine.get(), Some(EngineKind::Sync));
}

/// The fields of a descriptor: address, length, flags, next.
type Fields = (u64, u32, u16, u16);

/// A descriptor whose fields are near the borders that matter.
fn wild_descriptor() -> impl Strategy<Value = Fields> {
    let gpa = prop_oneof![Just(HEADER), 0..0x1_0100u64, any::<u64>()];
    let len = prop_oneof![Just(16), Just(48), 0..0x2000u32, any::<u32>()];
    (gpa, len, 0..8u16, 0..20u16)
}

/// Descriptor `i` of a table whose chains are header, data and status, if it is honest.
fn descriptor(i: u16) -> impl Strategy<Value = Fields> {
    let slot = u64::from(i / 3);
    let len = prop_oneof![Just(512), Just(1024), Just(4096), Just(20), 0..64u32];
    let honest = (len, 0..2u16).prop_map(move |(len, write)| match i % 3 {
        0 => (HEADER + slot * 16, 16, NEXT, i + 1),
        1 => (DATA, len, NEXT | (write * W), i + 1),
        _ => (STATUS + slot, 1, W, 0),
    });
    prop_oneof![12 => honest, 1 => wild_descriptor()]
}

fn descriptor_bytes((gpa, len, flags, next): Fields) -> Vec<u8> {
    let mut bytes = gpa.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

fn header_bytes() -> impl Strategy<Value = Vec<u8>> {
    let op = prop_oneof![
        Just(VIRTIO_BLK_T_IN),
        Just(VIRTIO_BLK_T_OUT),
        Just(VIRTIO_BLK_T_DISCARD),
        Just(VIRTIO_BLK_T_WRITE_ZEROES),
        0..16u32,
        any::<u32>()
    ];
    let sector = prop_oneof![4 => 0..70u64, 1 => any::<u64>()];
    (op, sector).prop_map(|(op, sector)| {
        let mut bytes = u64::from(op).to_le_bytes().to_vec();
        bytes.extend(sector.to_le_bytes());
        bytes
    })
}

/// The start of a hostile driver's RAM.
fn hostile_ram() -> impl Strategy<Value = Vec<u8>> {
    let table: Vec<_> = (0..QUEUE_SIZE).map(|i| descriptor(i).boxed()).collect();
    let head = prop_oneof![20 => (0..5u16).prop_map(|slot| slot * 3), 1 => 0..18u16];
    let avail_idx = prop_oneof![20 => 0..6u16, 1 => 0..18u16];
    let ranges = (0..70u64, 0..70u32, 0..3u32).prop_map(|(at, len, flags)| range(at, len, flags));
    (
        table,
        prop::collection::vec(head, usize::from(QUEUE_SIZE)),
        avail_idx,
        prop::collection::vec(header_bytes(), 6),
        prop::collection::vec(ranges, 64),
    )
        .prop_map(|(table, ring, avail_idx, headers, ranges)| {
            let mut ram = vec![0; DATA as usize];
            let table: Vec<u8> = table.into_iter().flat_map(descriptor_bytes).collect();
            ram[..256].copy_from_slice(&table);
            ram[0x102..0x104].copy_from_slice(&avail_idx.to_le_bytes());
            for (i, head) in ring.iter().enumerate() {
                let at = 0x104 + i * 2;
                ram[at..at + 2].copy_from_slice(&head.to_le_bytes());
            }
            let headers = headers.concat();
            let at = HEADER as usize;
            ram[at..at + headers.len()].copy_from_slice(&headers);
            ram.extend(ranges.concat());
            ram
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn hostile_driver_neither_panics_the_device_nor_leaves_the_disk(
        ram in hostile_ram(),
        kind in prop_oneof![Just(EngineKind::Sync), Just(EngineKind::IoUring)],
        is_read_only: bool,
    ) {
        let kind = if uring_is_missing() { EngineKind::Sync } else { kind };
        let file = image();
        let end = NUM_SECTORS * 512;
        file.as_file().write_all_at(&[0x77; 100], end).unwrap();
        let before = fs::read(file.path()).unwrap();
        let disk = Arc::new(Disk::open(file.path(), is_read_only).unwrap());

        let r = fuzz::serve_arbitrary(&disk, kind, &ram); eprintln!("RES {r:?}");

        let after = fs::read(file.path()).unwrap();
        prop_assert_eq!(&after[end as usize..], &[0x77; 100]);
        prop_assert!(!is_read_only || before == after);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic_the_device(ram in prop::collection::vec(any::<u8>(), 0..0x400)) {
        let file = image();
        let disk = Arc::new(Disk::open(file.path(), false).unwrap());

        let _ = fuzz::serve_arbitrary(&disk, EngineKind::Sync, &ram);
    }
}
