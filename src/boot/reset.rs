//! What a guest finds at the BIOS reset vector, and how it says that it panicked.
//!
//! On a hardware-reduced platform without EFI an x86 kernel (`arch/x86/kernel/reboot.c`) skips the
//! ACPI reset register: it tries EFI, then jumps to the BIOS at `f000:fff0`. There is no BIOS, so
//! seven instructions there write the reset register.
//!
//! Before any kind of reset the kernel stores its reboot mode in the BIOS data area at `0x472`:
//! `0x1234` for a warm one, else 0. With `reboot=panic_warm` on its command line only a panic is
//! warm, so a reset tells us whether it was one, whatever drivers the guest has loaded.

use alacrity_devices::GuestRam;
use alacrity_devices::legacy::power;
use vm_memory::{Bytes, GuestMemoryError};

use crate::layout::{ACPI_POWER, RESET_VECTOR, WARM_RESET_FLAG};

/// Makes a panic a warm reset, and any other reset a cold one.
pub const CMDLINE: &str = "reboot=panic_warm";
const WARM: u16 = 0x1234;

/// Writes the code at the reset vector.
///
/// # Errors
/// There is no RAM at [`RESET_VECTOR`].
pub fn write_vector(ram: &GuestRam) -> Result<(), GuestMemoryError> {
    let [port_low, port_high, ..] = (u64::from(ACPI_POWER) + power::RESET).to_le_bytes();
    let code = [
        0xba,
        port_low,
        port_high, // mov dx, port
        0xb0,
        power::RESET_VALUE, // mov al, value
        0xee,               // out dx, al
        0xf4,               // hlt
        0xeb,
        0xfd, // jmp back to hlt
    ];
    ram.write_slice(&code, RESET_VECTOR)
}

/// True if the guest's last reset was the end of a panic.
pub fn was_panic(ram: &GuestRam) -> bool {
    ram.read_obj::<u16>(WARM_RESET_FLAG)
        .is_ok_and(|flag| flag == WARM)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn only_the_warm_flag_means_panic() {
        let ram = crate::memory::allocate(64 << 20, false).unwrap();

        assert!(!was_panic(&ram));
        ram.write_obj(WARM, WARM_RESET_FLAG).unwrap();

        assert!(was_panic(&ram));
    }

    #[test]
    fn vector_fits_below_one_mebibyte() {
        let ram = crate::memory::allocate(64 << 20, false).unwrap();

        write_vector(&ram).unwrap();

        let mut code = [0; 16];
        ram.read_slice(&mut code, GuestAddress(0xf_fff0)).unwrap();
        assert_eq!(code[..6], [0xba, 0x02, 0x06, 0xb0, 0x01, 0xee]);
    }
}
