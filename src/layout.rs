//! Every guest address, size, port and GSI, once.
//!
//! | start | end | what |
//! |---|---|---|
//! | `0x0000_0000` | `0x000a_0000` | RAM: boot structures (below), then free |
//! | `0x000a_0000` | `0x000e_0000` | reserved |
//! | `0x000e_0000` | `0x0010_0000` | ACPI tables, reserved for the guest |
//! | `0x0010_0000` | [`MMIO_GAP_START`] | RAM: kernel, initrd |
//! | [`MMIO_GAP_START`] | [`ECAM_START`] | PCI memory window |
//! | [`ECAM_START`] | + 1 MiB | PCI configuration space of bus 0 |
//! | `0xfec0_0000` | `0xfec0_1000` | I/O APIC (in KVM) |
//! | `0xfee0_0000` | `0xfee0_1000` | local APIC (in KVM) |
//! | [`KVM_IDENTITY_MAP`] | `0xfffc_0000` | four pages that KVM needs on old Intel CPUs |
//! | [`HIGH_RAM_START`] | | RAM that did not fit below |
//!
//! Ports: those of the legacy devices below, and the window of PCI functions from
//! [`PCI_PORTS_START`] on.

use vm_memory::GuestAddress;

/// One mebibyte in bytes.
pub const MIB: u64 = 1 << 20;
/// One gibibyte in bytes.
pub const GIB: u64 = 1 << 30;

/// GDT for the boot vCPU.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// `hvm_start_info` of a PVH boot; its module list and memory map follow.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// Module list of a PVH boot.
pub const PVH_MODLIST: GuestAddress = GuestAddress(0x6040);
/// Memory map of a PVH boot.
pub const PVH_MEMMAP: GuestAddress = GuestAddress(0x6100);
/// `boot_params`, the "zero page" of a 64-bit boot.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Page tables of a 64-bit boot: one PML4, one PDPT, four page directories, identity for 4 GiB.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// Kernel command line.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Bytes of the command line with its NUL: the x86 kernel's `COMMAND_LINE_SIZE`.
pub const CMDLINE_MAX_BYTES: usize = 2048;
/// First address after conventional memory.
pub const LOW_RAM_END: u64 = 0xa_0000;
/// ACPI tables, RSDP first.
pub const ACPI_START: GuestAddress = GuestAddress(0xe_0000);
/// Where a CPU starts after a reset, `f000:fff0`.
pub const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);
/// Warm reset flag of the BIOS data area.
pub const WARM_RESET_FLAG: GuestAddress = GuestAddress(0x472);
/// Where the kernel may go, and everything but boot structures.
pub const HIGH_MEMORY_START: GuestAddress = GuestAddress(0x10_0000);

/// End of RAM below 4 GiB, start of the PCI memory window.
pub const MMIO_GAP_START: u64 = 0xc000_0000;
/// PCI configuration space of bus 0.
pub const ECAM_START: u64 = 0xe000_0000;
/// The rest of RAM.
pub const HIGH_RAM_START: u64 = 4 * GIB;
/// I/O APIC registers.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page for KVM's identity map; the three-page TSS follows.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages for KVM's task state segment.
pub const KVM_TSS: usize = 0xfffb_d000;

/// First serial port, the console.
pub const COM1: u16 = 0x3f8;
/// GSI of the first serial port.
pub const COM1_GSI: u32 = 4;
/// Second serial port, the output of `--exec`.
pub const COM2: u16 = 0x2f8;
/// GSI of the second serial port.
pub const COM2_GSI: u32 = 3;
/// GSI of the ACPI generic event device, which carries the power button.
pub const POWER_BUTTON_GSI: u32 = 5;
/// Command and status port of the keyboard controller.
pub const I8042: u16 = 0x64;
/// Panic port.
pub const PVPANIC: u16 = 0x505;
/// ACPI sleep and reset registers.
pub const ACPI_POWER: u16 = 0x600;
/// Progress ports of the guest image.
pub const REPORT: u16 = 0xa00;
/// First port of the PCI port window.
pub const PCI_PORTS_START: u16 = 0xc000;
/// Last port of the PCI port window.
pub const PCI_PORTS_LAST: u16 = 0xcfff;

/// Pins of the I/O APIC: GSIs 0 to 23.
pub const NUM_IO_APIC_PINS: u32 = 24;
