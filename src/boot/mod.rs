//! Getting a kernel to its first instruction: loading it, and telling it about its machine.
//!
//! | module | what lives there |
//! |---|---|
//! | [`kernel`] | recognising and loading bzImage and ELF kernels |
//! | [`initrd`] | placing the initial RAM disk |
//! | [`params`] | memory map, command line, `boot_params` or `hvm_start_info`, page tables |
//! | [`acpi`] | the ACPI tables |
//! | [`reset`] | what a guest finds at the BIOS reset vector, and how it says that it panicked |

pub mod acpi;
pub mod initrd;
pub mod kernel;
pub mod params;
pub mod reset;

use alacrity_devices::GuestRam;

use crate::kvm::vcpu::Entry;

pub use initrd::Initrd;
pub use kernel::KernelImage;

/// Why the guest cannot be booted. All of it is found before any vCPU runs.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel is no kernel, or does not fit.
    #[error(transparent)]
    Kernel(#[from] kernel::KernelError),
    /// The initrd cannot be read or does not fit.
    #[error(transparent)]
    Initrd(#[from] initrd::InitrdError),
    /// The boot structures do not fit.
    #[error(transparent)]
    Params(#[from] params::ParamsError),
}

/// Loads everything into `ram` and answers how the boot vCPU enters the kernel.
///
/// `cmdline` is the whole kernel command line.
///
/// # Errors
/// [`BootError`].
pub fn load(
    ram: &GuestRam,
    kernel: &mut KernelImage,
    initrd: Option<&mut Initrd>,
    cmdline: &str,
    num_vcpus: u8,
) -> Result<Entry, BootError> {
    let loaded = kernel.load(ram)?;
    let initrd = initrd
        .map(|initrd| initrd.load(ram, loaded.end, loaded.initrd_max))
        .transpose()?;
    acpi::write(ram, num_vcpus).map_err(params::ParamsError::Acpi)?;
    reset::write_vector(ram).map_err(params::ParamsError::Write)?;
    Ok(params::write(ram, &loaded, initrd, cmdline)?)
}
