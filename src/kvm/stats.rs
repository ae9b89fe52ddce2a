//! KVM's own counters of a vCPU: all its VM exits, not only those that reach user space.
//!
//! Source: KVM `api.rst`, `KVM_GET_STATS_FD`.
#![expect(unsafe_code, reason = "kvm-ioctls does not wrap KVM_GET_STATS_FD")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use kvm_bindings::{KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_TYPE_MASK, KVMIO};
use kvm_ioctls::VcpuFd;
use serde::{Serialize, Serializer};
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

mod numbers {
    use super::{KVMIO, ioctl_io_nr};
    ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);
}

/// Bytes of `struct kvm_stats_header` and of `struct kvm_stats_desc` before its name.
const HEADER_BYTES: usize = 24;
const DESC_BYTES: usize = 16;
/// Bounds on what a kernel may announce: ten times what there is today.
const MAX_COUNTERS: u32 = 1024;
const MAX_NAME_BYTES: u32 = 256;

/// The counters of one vCPU. They serialize as one object, with the values of that moment.
#[derive(Debug)]
pub struct KvmStats {
    file: File,
    /// Name, and offset of the value in the file.
    counters: Vec<(String, u64)>,
}

impl KvmStats {
    /// Opens the counters of `vcpu`; they stay readable when the vCPU is gone.
    ///
    /// # Errors
    /// A host kernel before 5.14, or one that describes its counters in no known way.
    pub fn open(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: `vcpu` is an open vCPU descriptor, and the ioctl takes no argument.
        let fd = unsafe { ioctl(vcpu, numbers::KVM_GET_STATS_FD()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the ioctl just made this descriptor, so nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        let counters = read_descriptions(&file)?;
        Ok(KvmStats { file, counters })
    }

    /// All counters now, by KVM's names (`exits`, `halt_exits`, …).
    pub fn read(&self) -> BTreeMap<&str, u64> {
        let value = |offset| {
            let mut bytes = [0; 8];
            self.file.read_exact_at(&mut bytes, offset).ok()?;
            Some(u64::from_ne_bytes(bytes))
        };
        self.counters
            .iter()
            .filter_map(|(name, offset)| Some((name.as_str(), value(*offset)?)))
            .collect()
    }
}

impl Serialize for KvmStats {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.read().serialize(serializer)
    }
}

/// Names and offsets of the plain counters; histograms, gauges and peaks are left out.
fn read_descriptions(file: &File) -> io::Result<Vec<(String, u64)>> {
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    let name_bytes = u32_at(&header, 4);
    let num_counters = u32_at(&header, 8);
    let descs_offset = u64::from(u32_at(&header, 16));
    let data_offset = u64::from(u32_at(&header, 20));
    if num_counters > MAX_COUNTERS || name_bytes > MAX_NAME_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let desc_bytes = DESC_BYTES + name_bytes as usize;
    let mut desc = vec![0; desc_bytes];
    let mut counters = Vec::new();
    for idx in 0..u64::from(num_counters) {
        file.read_exact_at(&mut desc, descs_offset + idx * desc_bytes as u64)?;
        let flags = u32_at(&desc, 0);
        let num_values = u32_at(&desc, 4) >> 16;
        if flags & KVM_STATS_TYPE_MASK == KVM_STATS_TYPE_CUMULATIVE && num_values == 1 {
            let name = desc.get(DESC_BYTES..).unwrap_or_default();
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let name = String::from_utf8_lossy(name).into_owned();
            counters.push((name, data_offset + u64::from(u32_at(&desc, 8))));
        }
    }
    Ok(counters)
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes
        .get(offset..offset + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}
