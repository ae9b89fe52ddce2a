//! The VM: memory slots and the interrupt controller.
#![expect(
    unsafe_code,
    reason = "KVM_SET_USER_MEMORY_REGION maps host memory into the guest"
)]

use std::sync::Arc;

use alacrity_devices::GuestRam;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::cpuid;
use crate::layout::{KVM_IDENTITY_MAP, KVM_TSS};

/// What KVM must offer, by name without `KVM_CAP_`; `alacrity check` looks for the same.
pub const REQUIRED_CAPS: [(Cap, &str); 10] = [
    (Cap::UserMemory, "USER_MEMORY"),
    (Cap::ExtCpuid, "EXT_CPUID"),
    (Cap::Irqchip, "IRQCHIP"),
    (Cap::IrqRouting, "IRQ_ROUTING"),
    (Cap::SignalMsi, "SIGNAL_MSI"),
    (Cap::Irqfd, "IRQFD"),
    (Cap::Ioeventfd, "IOEVENTFD"),
    (Cap::TscDeadlineTimer, "TSC_DEADLINE_TIMER"),
    (Cap::Clocksource, "CLOCKSOURCE"),
    (Cap::ImmediateExit, "IMMEDIATE_EXIT"),
];

/// What KVM refused.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// `/dev/kvm` does not open.
    #[error("cannot open /dev/kvm")]
    Open(#[source] kvm_ioctls::Error),
    /// KVM is too old or too foreign.
    #[error("KVM here lacks KVM_CAP_{name}")]
    MissingCap {
        /// Name of the capability, without `KVM_CAP_`.
        name: &'static str,
    },
    /// A VM-wide ioctl failed.
    #[error("KVM: cannot {action}")]
    Vm {
        /// What we wanted.
        action: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// An ioctl on one vCPU failed.
    #[error("KVM: vCPU {vcpu_idx}: cannot {action}")]
    Vcpu {
        /// Which vCPU.
        vcpu_idx: u8,
        /// What we wanted.
        action: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
}

/// A VM with guest RAM and an interrupt controller, and no vCPU yet.
///
/// Fields drop in order: the VM first, then the RAM that its memory slots point into.
#[derive(Debug)]
pub struct Vm {
    fd: Arc<VmFd>,
    supported_cpuid: CpuId,
    ram: GuestRam,
}

impl Vm {
    /// Makes a VM around `ram`.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn new(ram: GuestRam) -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(KvmError::Open)?;
        if let Some(&(_, name)) = REQUIRED_CAPS
            .iter()
            .find(|(cap, _)| !kvm.check_extension(*cap))
        {
            return Err(KvmError::MissingCap { name });
        }
        let supported_cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(vm_error("read the supported CPUID"))?;
        let fd = kvm.create_vm().map_err(vm_error("create a VM"))?;
        fd.set_identity_map_address(KVM_IDENTITY_MAP)
            .map_err(vm_error("place the identity map"))?;
        fd.set_tss_address(KVM_TSS)
            .map_err(vm_error("place the TSS"))?;
        fd.create_irq_chip()
            .map_err(vm_error("create the interrupt controller"))?;
        let vm = Vm {
            fd: Arc::new(fd),
            supported_cpuid,
            ram,
        };
        vm.map_ram()?;
        Ok(vm)
    }

    fn map_ram(&self) -> Result<(), KvmError> {
        for (slot, region) in (0..).zip(self.ram.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY:
            // - `userspace_addr .. + memory_size` is one live mapping: both come from `region`.
            // - It outlives the slot: `self.ram` keeps it mapped and drops after `self.fd`, and
            //   whoever clones `self.fd` (vCPUs, router, doorbells) is owned by what owns `self`.
            // - No Rust reference into it exists anywhere; devices use volatile copies.
            unsafe { self.fd.set_user_memory_region(slot) }.map_err(vm_error("map guest RAM"))?;
        }
        Ok(())
    }

    /// The VM's descriptor, for what makes routes and doorbells.
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// All guest RAM.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Gives vCPUs that are made from now on no virtualization of their own.
    pub fn hide_virtualization(&mut self) {
        cpuid::hide_virtualization(&mut self.supported_cpuid);
    }

    /// CPUID leaves that this host's KVM can give a guest.
    pub fn supported_cpuid(&self) -> &CpuId {
        &self.supported_cpuid
    }

    /// Makes vCPU `vcpu_idx`, whose APIC id is the same number.
    ///
    /// # Errors
    /// [`KvmError::Vcpu`].
    pub fn create_vcpu(&self, vcpu_idx: u8) -> Result<VcpuFd, KvmError> {
        self.fd
            .create_vcpu(u64::from(vcpu_idx))
            .map_err(|source| KvmError::Vcpu {
                vcpu_idx,
                action: "create it",
                source,
            })
    }
}

fn vm_error(action: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Vm { action, source }
}
