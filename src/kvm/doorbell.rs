//! Doorbells as ioeventfds: the guest's write ends in the kernel, not in this process.

use std::io;
use std::sync::Arc;

use alacrity_devices::interrupt::{DoorbellAddress, DoorbellSpace, Doorbells};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

/// Doorbells of one VM.
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
    fn attach(&self, address: DoorbellAddress, doorbell: &EventFd) -> io::Result<()> {
        let place = place(address);
        match address.data {
            Some(data) => self.vm.register_ioevent(doorbell, &place, data),
            None => self.vm.register_ioevent(doorbell, &place, NoDatamatch),
        }
        .map_err(io::Error::from)
    }

    fn detach(&self, address: DoorbellAddress, doorbell: &EventFd) -> io::Result<()> {
        let place = place(address);
        match address.data {
            Some(data) => self.vm.unregister_ioevent(doorbell, &place, data),
            None => self.vm.unregister_ioevent(doorbell, &place, NoDatamatch),
        }
        .map_err(io::Error::from)
    }
}

fn place(address: DoorbellAddress) -> IoEventAddress {
    match address.space {
        DoorbellSpace::Memory => IoEventAddress::Mmio(address.start),
        DoorbellSpace::Ports => IoEventAddress::Pio(address.start),
    }
}
