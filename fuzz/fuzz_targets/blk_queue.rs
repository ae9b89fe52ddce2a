//! The queue of a disk of 1 MiB: the first byte chooses the engine, the rest is what the guest wrote
//! to its memory. The disk must keep its size.
#![no_main]

use std::fs::File;
use std::sync::{Arc, LazyLock};

use alacrity_devices::virtio::blk::fuzz::serve_arbitrary;
use alacrity_devices::virtio::blk::{Disk, EngineKind};
use libfuzzer_sys::fuzz_target;
use tempfile::NamedTempFile;

const DISK_BYTES: u64 = 1 << 20;

struct Image {
    disk: Arc<Disk>,
    file: File,
}

static IMAGE: LazyLock<Image> = LazyLock::new(|| {
    let file = NamedTempFile::new().expect("the host has room for a small file");
    file.as_file()
        .set_len(DISK_BYTES)
        .expect("a file can be sized");
    let disk = Disk::open(file.path(), false).expect("a sparse file is a disk");
    Image {
        disk: Arc::new(disk),
        // The path goes, the file stays as long as it is open.
        file: file.into_file(),
    }
});

fuzz_target!(|bytes: &[u8]| {
    if let Some((choice, memory)) = bytes.split_first() {
        let kind = match choice & 1 {
            0 => EngineKind::Sync,
            _ => EngineKind::IoUring,
        };
        // A fault is an answer; a panic or a hang is a finding.
        let _ = serve_arbitrary(&IMAGE.disk, kind, memory);
        let metadata = IMAGE.file.metadata().expect("an open file has a size");
        assert_eq!(metadata.len(), DISK_BYTES, "no request changes the size");
    }
});
