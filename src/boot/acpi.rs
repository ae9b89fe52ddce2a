//! The ACPI tables of a hardware-reduced platform: no PM timer, no SCI, no PIC, no legacy.
//!
//! RSDP → XSDT → FADT (→ DSDT), MADT, MCFG. Source: ACPI 6.5 §5.2.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Method,
    Name, Notify, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use alacrity_devices::GuestRam;
use alacrity_devices::legacy::{power, serial};
use alacrity_devices::pci::root::ECAM_BYTES;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout::{
    ACPI_POWER, ACPI_START, COM1, COM1_GSI, COM2, COM2_GSI, ECAM_START, IO_APIC, LOCAL_APIC,
    MMIO_GAP_START, PCI_PORTS_LAST, PCI_PORTS_START, POWER_BUTTON_GSI, PVPANIC,
};

const OEM_ID: [u8; 6] = *b"ALACRI";
const OEM_TABLE_ID: [u8; 8] = *b"ALACRITY";
const OEM_REVISION: u32 = 1;
/// DSDT revision 2 and up has 64-bit integers.
const DSDT_REVISION: u8 = 6;
/// FADT boot flags: no VGA, no RTC at the CMOS ports (ACPI 6.5 table 5.10). That the flag for the
/// keyboard controller is clear means there is none to probe.
const BOOT_NO_VGA: u16 = 1 << 2;
const BOOT_NO_RTC: u16 = 1 << 5;

/// Writes the tables of a machine with `num_vcpus` vCPUs, RSDP first.
///
/// # Errors
/// Guest RAM has no room at [`ACPI_START`].
pub fn write(ram: &GuestRam, num_vcpus: u8) -> Result<(), GuestMemoryError> {
    let mut at = ACPI_START.0 + Rsdp::len() as u64;
    let mut append = |table: &dyn Aml| -> Result<u64, GuestMemoryError> {
        let start = at.next_multiple_of(16);
        let bytes = bytes(table);
        ram.write_slice(&bytes, GuestAddress(start))?;
        at = start + bytes.len() as u64;
        Ok(start)
    };
    let dsdt = append(&dsdt())?;
    let tables = [
        append(&fadt(dsdt))?,
        append(&madt(num_vcpus))?,
        append(&mcfg())?,
    ];
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in tables {
        xsdt.add_entry(table);
    }
    let xsdt = append(&xsdt)?;
    ram.write_slice(&bytes(&Rsdp::new(OEM_ID, xsdt)), ACPI_START)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(port: u16) -> GAS {
    GAS::new(
        GasSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        port.into(),
    )
}

fn fadt(dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (BOOT_NO_VGA | BOOT_NO_RTC).into();
    let [sleep_control, sleep_status, reset] =
        [power::SLEEP_CONTROL, power::SLEEP_STATUS, power::RESET]
            .map(|offset| port(ACPI_POWER + u16::try_from(offset).unwrap_or(0)));
    fadt.sleep_control_reg = sleep_control;
    fadt.sleep_status_reg = sleep_status;
    fadt.reset_reg = reset;
    fadt.reset_value = power::RESET_VALUE;
    fadt.finalize()
}

fn madt(num_vcpus: u8) -> MADT {
    let local_apic = LocalInterruptController::Address(LOCAL_APIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local_apic);
    for vcpu_idx in 0..num_vcpus {
        madt.add_structure(ProcessorLocalApic::new(
            vcpu_idx,
            vcpu_idx,
            EnabledStatus::Enabled,
        ));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(ECAM_START, 0, 0, 0);
    mcfg
}

fn dsdt() -> Sdt {
    let mut dsdt = Sdt::new(
        *b"DSDT",
        36,
        DSDT_REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    let s5 = Name::new("_S5_".into(), &Package::new(vec![&power::SLEEP_TYPE_S5]));
    dsdt.append_slice(&bytes(&s5));
    let devices = [
        pci_root(),
        ecam_reservation(),
        serial_port("COM1", 0, COM1, COM1_GSI),
        serial_port("COM2", 1, COM2, COM2_GSI),
        panic_port(),
        power_button(),
        generic_event_device(),
    ];
    let devices = devices.iter().map(|device| device as &dyn Aml).collect();
    dsdt.append_slice(&bytes(&Scope::new("\\_SB_".into(), devices)));
    dsdt
}

/// AML of one finished object.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn device(name: &str, objects: Vec<&dyn Aml>) -> Encoded {
    Encoded(bytes(&Device::new(name.into(), objects)))
}

fn resources(descriptors: Vec<&dyn Aml>) -> Encoded {
    Encoded(bytes(&ResourceTemplate::new(descriptors)))
}

fn pci_root() -> Encoded {
    let window_start = u32::try_from(MMIO_GAP_START).unwrap_or(0);
    let window_last = u32::try_from(ECAM_START - 1).unwrap_or(0);
    let cacheable = AddressSpaceCacheable::NotCacheable;
    let resources = resources(vec![
        &AddressSpace::new_bus_number(0u16, 0u16),
        &AddressSpace::new_io(PCI_PORTS_START, PCI_PORTS_LAST, None),
        &AddressSpace::new_memory(cacheable, true, window_start, window_last, None),
    ]);
    device(
        "PCI0",
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &0u8),
            &Name::new("_BBN".into(), &0u8),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_CRS".into(), &resources),
        ],
    )
}

/// The kernel uses the ECAM window only if a motherboard device claims it.
fn ecam_reservation() -> Encoded {
    let start = u32::try_from(ECAM_START).unwrap_or(0);
    let range = Memory32Fixed::new(true, start, u32::try_from(ECAM_BYTES).unwrap_or(0));
    device(
        "MBRD",
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_CRS".into(), &resources(vec![&range])),
        ],
    )
}

fn serial_port(name: &str, uid: u8, port: u16, gsi: u32) -> Encoded {
    let num_ports = u8::try_from(serial::NUM_PORTS).unwrap_or(0);
    let resources = resources(vec![
        &IO::new(port, port, 1, num_ports),
        &Interrupt::new(true, true, false, false, gsi),
    ]);
    device(
        name,
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &uid),
            &Name::new("_CRS".into(), &resources),
        ],
    )
}

fn panic_port() -> Encoded {
    let resources = resources(vec![&IO::new(PVPANIC, PVPANIC, 1, 1)]);
    device(
        "PEVT",
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_CRS".into(), &resources),
        ],
    )
}

fn power_button() -> Encoded {
    device(
        "PWRB",
        vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C"))],
    )
}

/// Its interrupt means that the power button was pressed (ACPI 6.5 §5.6.9).
fn generic_event_device() -> Encoded {
    let interrupt = Interrupt::new(true, true, false, false, POWER_BUTTON_GSI);
    let button = Path::new("\\_SB_.PWRB");
    device(
        "GED_",
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_CRS".into(), &resources(vec![&interrupt])),
            &Method::new("_EVT".into(), 1, true, vec![&Notify::new(&button, &0x80u8)]),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checksum(bytes: &[u8]) -> u8 {
        bytes
            .iter()
            .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn rsdp_leads_to_tables_whose_checksums_hold() {
        let ram = crate::memory::allocate(64 << 20, false).unwrap();
        write(&ram, 2).unwrap();
        let table = |gpa: u64| {
            let length: u32 = ram.read_obj(GuestAddress(gpa + 4)).unwrap();
            let mut bytes = vec![0; length as usize];
            ram.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
            assert_eq!(checksum(&bytes), 0);
            bytes
        };

        let xsdt = table(ram.read_obj(GuestAddress(ACPI_START.0 + 24)).unwrap());
        let tables: Vec<Vec<u8>> = xsdt[36..]
            .chunks_exact(8)
            .map(|entry| table(u64::from_le_bytes(entry.try_into().unwrap())))
            .collect();

        let signatures: Vec<&[u8]> = tables.iter().map(|table| &table[..4]).collect();
        assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG"]);
        let dsdt = table(u64::from_le_bytes(tables[0][140..148].try_into().unwrap()));
        assert_eq!(&dsdt[..4], b"DSDT");
    }

    #[test]
    fn pci_root_announces_its_port_window() {
        let root = bytes(&pci_root());

        // Word address space, I/O: granularity 0, first, last, translation 0, length (ACPI 6.5
        // §6.4.3.5.3).
        let descriptor = [0x88, 13, 0, 1];
        let place = root
            .windows(descriptor.len())
            .position(|window| window == descriptor)
            .unwrap();
        let numbers = &root[place + 6..place + 16];
        assert_eq!(numbers, [0, 0, 0, 0xc0, 0xff, 0xcf, 0, 0, 0, 0x10]);
    }

    #[test]
    fn madt_lists_each_vcpu() {
        let local_apics = |n| bytes(&madt(n)).len();

        assert_eq!(local_apics(32) - local_apics(1), 31 * 8);
    }
}
