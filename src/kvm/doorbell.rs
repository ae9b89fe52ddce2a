//! Doorbells as ioeventfds: the guest's write ends in the kernel, not in this process.

use std::io;
use std::sync::Arc;

use alacrity_devices::interrupt::Doorbells;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

/// MMIO doorbells of one VM.
#[derive(Debug)]
pub struct KvmDoorbells {
    vm: Arc<VmFd>,
}

impl KvmDoorbells {
    /// Doorbells in the guest behind `vm`.
    pub fn new(vm: Arc<VmFd>) -> Self {
        KvmDoorbells { vm }
    }
}

impl Doorbells for KvmDoorbells {
    fn attach(&self, gpa: u64, doorbell: &EventFd) -> io::Result<()> {
        self.vm
            .register_ioevent(doorbell, &IoEventAddress::Mmio(gpa), NoDatamatch)
            .map_err(io::Error::from)
    }

    fn detach(&self, gpa: u64, doorbell: &EventFd) -> io::Result<()> {
        self.vm
            .unregister_ioevent(doorbell, &IoEventAddress::Mmio(gpa), NoDatamatch)
            .map_err(io::Error::from)
    }
}
