//! A kernel and an initrd that somebody found somewhere: each is loaded into guest memory, or refused.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::OnceLock;

use alacrity::boot::initrd::Initrd;
use alacrity::boot::kernel::KernelImage;
use alacrity::memory;
use alacrity_devices::GuestRam;
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};

const RAM_BYTES: u64 = 16 << 20;

#[derive(Debug, Arbitrary)]
struct Files<'a> {
    num_vcpus: u8,
    initrd: Option<&'a [u8]>,
    kernel: &'a [u8],
}

/// A file that is there as long as it is kept, and its path.
fn file(bytes: &[u8]) -> (File, PathBuf) {
    let mut file = File::from(memfd_create("input", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    (file, path.into())
}

fuzz_target!(|files: Files<'_>| {
    static RAM: OnceLock<GuestRam> = OnceLock::new();
    let ram = RAM.get_or_init(|| memory::allocate(RAM_BYTES, false).unwrap());
    let (_kernel, path) = file(files.kernel);
    let Ok(mut kernel) = KernelImage::open(&path) else {
        return;
    };
    let initrd = files.initrd.map(file);
    let mut initrd = initrd
        .as_ref()
        .map(|(_, path)| Initrd::open(path, Vec::new()).unwrap());
    let num_vcpus = files.num_vcpus % 32 + 1;
    let _ = alacrity::boot::load(
        ram,
        &mut kernel,
        initrd.as_mut(),
        "console=ttyS0",
        num_vcpus,
    );
});
