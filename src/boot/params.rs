//! What the kernel reads first: memory map, command line, and the structure of its boot protocol.

use alacrity_devices::GuestRam;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{self, BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::initrd::LoadedInitrd;
use super::kernel::{LoadedKernel, Protocol};
use crate::kvm::vcpu::Entry;
use crate::layout::{
    ACPI_START, CMDLINE, CMDLINE_MAX_BYTES, ECAM_START, GDT, HIGH_MEMORY_START, HIGH_RAM_START,
    LOW_RAM_END, MIB, PAGE_TABLES, PVH_MEMMAP, PVH_MODLIST, PVH_START_INFO, ZERO_PAGE,
};

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const BOOT_VERSION: u16 = 0x20f;
const LOADER_UNDEFINED: u8 = 0xff;
const LOADED_HIGH: u8 = 1;
const PVH_MAGIC: u32 = 0x336e_c578;
const PVH_VERSION: u32 = 1;

/// Why the boot structures cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ParamsError {
    /// The command line is longer than the kernel reads.
    #[error("the kernel command line has {bytes} bytes, at most {} fit; shorten --cmdline", CMDLINE_MAX_BYTES - 1)]
    CmdlineTooLong {
        /// Its length.
        bytes: usize,
    },
    /// Low RAM refused a write.
    #[error("cannot write boot structures into guest memory")]
    Write(#[source] GuestMemoryError),
    /// The ACPI tables do not fit their window.
    #[error("cannot write the ACPI tables into guest memory")]
    Acpi(#[source] GuestMemoryError),
    /// The loader refused the boot structure.
    #[error("cannot write the boot parameters")]
    Configure(#[source] configurator::Error),
}

/// Writes everything and answers how to enter the kernel.
///
/// # Errors
/// [`ParamsError`].
pub fn write(
    ram: &GuestRam,
    kernel: &LoadedKernel,
    initrd: Option<LoadedInitrd>,
    cmdline: &str,
) -> Result<Entry, ParamsError> {
    if cmdline.len() >= CMDLINE_MAX_BYTES {
        return Err(ParamsError::CmdlineTooLong {
            bytes: cmdline.len(),
        });
    }
    ram.write_slice(cmdline.as_bytes(), CMDLINE)
        .map_err(ParamsError::Write)?;
    ram.write_obj(0u8, GuestAddress(CMDLINE.0 + cmdline.len() as u64))
        .map_err(ParamsError::Write)?;
    write_gdt(ram).map_err(ParamsError::Write)?;
    let map = memory_map(ram);
    match &kernel.protocol {
        Protocol::Linux64 { entry, header } => {
            write_page_tables(ram).map_err(ParamsError::Write)?;
            let params = zero_page(&map, header.as_deref(), initrd, cmdline);
            let params = BootParams::new(&params, ZERO_PAGE);
            LinuxBootConfigurator::write_bootparams(&params, ram)
                .map_err(ParamsError::Configure)?;
            Ok(Entry::Linux64 {
                rip: *entry,
                boot_params: ZERO_PAGE.0,
            })
        }
        Protocol::Pvh { entry } => {
            let params = start_info(&map, initrd);
            PvhBootConfigurator::write_bootparams(&params, ram).map_err(ParamsError::Configure)?;
            Ok(Entry::Pvh {
                rip: *entry,
                start_info: PVH_START_INFO.0,
            })
        }
    }
}

/// A stretch of guest-physical memory and its E820 type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    start: u64,
    bytes: u64,
    kind: u32,
}

fn memory_map(ram: &GuestRam) -> Vec<Stretch> {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    let stretch = |start, end, kind| Stretch {
        start,
        bytes: end - start,
        kind,
    };
    let mut map = vec![
        stretch(0, LOW_RAM_END, E820_RAM),
        stretch(ACPI_START.0, HIGH_MEMORY_START.0, E820_RESERVED),
        stretch(HIGH_MEMORY_START.0, crate::memory::low_end(ram), E820_RAM),
        stretch(ECAM_START, ECAM_START + MIB, E820_RESERVED),
    ];
    let high = ram
        .iter()
        .find(|region| region.start_addr().0 == HIGH_RAM_START);
    map.extend(high.map(|region| stretch(HIGH_RAM_START, HIGH_RAM_START + region.len(), E820_RAM)));
    map
}

fn zero_page(
    map: &[Stretch],
    header: Option<&setup_header>,
    initrd: Option<LoadedInitrd>,
    cmdline: &str,
) -> boot_params {
    let low_half = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap_or(0);
    let mut params = boot_params::default();
    match header {
        Some(header) => params.hdr = *header,
        None => {
            params.hdr.boot_flag = BOOT_FLAG;
            params.hdr.header = HEADER_MAGIC;
            params.hdr.version = BOOT_VERSION;
            params.hdr.kernel_alignment = low_half(2 * MIB);
        }
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.loadflags |= LOADED_HIGH;
    params.hdr.cmd_line_ptr = low_half(CMDLINE.0);
    params.hdr.cmdline_size = u32::try_from(cmdline.len()).unwrap_or(0);
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = low_half(initrd.start);
        params.hdr.ramdisk_size = low_half(initrd.bytes);
    }
    params.acpi_rsdp_addr = ACPI_START.0;
    for (entry, stretch) in params.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry {
            addr: stretch.start,
            size: stretch.bytes,
            r#type: stretch.kind,
        };
    }
    params.e820_entries = u8::try_from(map.len()).unwrap_or(0);
    params
}

fn start_info(map: &[Stretch], initrd: Option<LoadedInitrd>) -> BootParams {
    let entries: Vec<_> = map
        .iter()
        .map(|stretch| hvm_memmap_table_entry {
            addr: stretch.start,
            size: stretch.bytes,
            type_: stretch.kind,
            reserved: 0,
        })
        .collect();
    let modules: Vec<_> = initrd
        .map(|initrd| hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.bytes,
            ..Default::default()
        })
        .into_iter()
        .collect();
    let info = hvm_start_info {
        magic: PVH_MAGIC,
        version: PVH_VERSION,
        nr_modules: u32::try_from(modules.len()).unwrap_or(0),
        modlist_paddr: if modules.is_empty() { 0 } else { PVH_MODLIST.0 },
        cmdline_paddr: CMDLINE.0,
        rsdp_paddr: ACPI_START.0,
        memmap_paddr: PVH_MEMMAP.0,
        memmap_entries: u32::try_from(entries.len()).unwrap_or(0),
        ..Default::default()
    };
    let mut params = BootParams::new(&info, PVH_START_INFO);
    params.set_sections(&entries, PVH_MEMMAP);
    params.set_modules(&modules, PVH_MODLIST);
    params
}

/// Flat 4 GiB segments: null, unused, code (64-bit and 32-bit share it, the vCPU's own segment
/// registers tell them apart), data.
fn write_gdt(ram: &GuestRam) -> Result<(), GuestMemoryError> {
    const CODE: u64 = 0x00af_9b00_0000_ffff;
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    for (offset, entry) in (0..).step_by(8).zip([0, 0, CODE, DATA]) {
        ram.write_obj(entry, GuestAddress(GDT.0 + offset))?;
    }
    Ok(())
}

/// Identity mapping of the first 4 GiB in 2 MiB pages.
fn write_page_tables(ram: &GuestRam) -> Result<(), GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const HUGE: u64 = 1 << 7;
    let table = |idx: u64| PAGE_TABLES.0 + 4096 * idx;
    ram.write_obj(table(1) | PRESENT_WRITABLE, GuestAddress(table(0)))?;
    for gib in 0..4 {
        ram.write_obj(
            table(2 + gib) | PRESENT_WRITABLE,
            GuestAddress(table(1) + 8 * gib),
        )?;
        for page in 0..512 {
            let entry = ((gib * 512 + page) * 2 * MIB) | HUGE | PRESENT_WRITABLE;
            ram.write_obj(entry, GuestAddress(table(2 + gib) + 8 * page))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::GIB;

    #[test]
    fn memory_map_covers_all_ram_and_reserves_the_ecam_window() {
        let ram = crate::memory::allocate(4 * GIB, false).unwrap();

        let map = memory_map(&ram);

        let ram_bytes: u64 = map
            .iter()
            .filter(|s| s.kind == E820_RAM)
            .map(|s| s.bytes)
            .sum();
        assert_eq!(ram_bytes, 4 * GIB - (HIGH_MEMORY_START.0 - LOW_RAM_END));
        let ecam = Stretch {
            start: ECAM_START,
            bytes: MIB,
            kind: E820_RESERVED,
        };
        assert!(map.contains(&ecam));
    }

    #[test]
    fn too_long_command_line_is_refused_and_the_longest_is_not() {
        let ram = crate::memory::allocate(64 * MIB, false).unwrap();
        let kernel = LoadedKernel {
            protocol: Protocol::Pvh { entry: 0 },
            end: 0,
            initrd_max: 0,
        };

        let err = write(&ram, &kernel, None, &"x".repeat(CMDLINE_MAX_BYTES)).unwrap_err();
        assert!(
            matches!(
                err,
                ParamsError::CmdlineTooLong {
                    bytes: CMDLINE_MAX_BYTES
                }
            ),
            "{err}"
        );
        write(&ram, &kernel, None, &"x".repeat(CMDLINE_MAX_BYTES - 1)).unwrap();
    }
}
