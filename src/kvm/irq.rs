//! GSI routing: which GSI leads to which I/O APIC pin or MSI message.
//!
//! KVM takes the whole table at once. One router owns it; each MSI-X vector owns one GSI and one
//! eventfd and asks the router to change its line.

use std::io;
use std::sync::Arc;

use alacrity_devices::interrupt::{MsiMessage, MsiVector, MsiVectors};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::layout::NUM_IO_APIC_PINS;

/// GSIs that KVM routes at most (`KVM_MAX_IRQ_ROUTES`).
const MAX_GSI: u32 = 4096;

/// What the routing table is made from.
#[derive(Debug, Default)]
struct Routes {
    /// The message of MSI GSI `NUM_IO_APIC_PINS + index`.
    messages: Vec<Option<MsiMessage>>,
}

#[derive(Debug)]
struct Shared {
    vm: Arc<VmFd>,
    routes: Mutex<Routes>,
}

/// The routing table of one VM.
#[derive(Debug, Clone)]
pub struct IrqRouter {
    shared: Arc<Shared>,
}

impl IrqRouter {
    /// A router for `vm` with the I/O APIC's pins and no messages yet.
    pub fn new(vm: Arc<VmFd>) -> Self {
        IrqRouter {
            shared: Arc::new(Shared {
                vm,
                routes: Mutex::default(),
            }),
        }
    }

    /// An eventfd that raises I/O APIC pin `gsi`, edge-triggered.
    ///
    /// # Errors
    /// The host is out of file descriptors, or the pin has an eventfd already.
    pub fn pin(&self, gsi: u32) -> io::Result<EventFd> {
        let irqfd = EventFd::new(EFD_NONBLOCK)?;
        self.shared.vm.register_irqfd(&irqfd, gsi)?;
        Ok(irqfd)
    }
}

impl Shared {
    fn set_message(&self, gsi: u32, message: MsiMessage) -> io::Result<()> {
        let mut routes = self.routes.lock();
        let idx = (gsi - NUM_IO_APIC_PINS) as usize;
        let before = match routes.messages.get_mut(idx) {
            Some(slot) if *slot == Some(message) => return Ok(()),
            Some(slot) => slot.replace(message),
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        let entries: Vec<_> = routes.entries().collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(io::Error::other)?;
        self.vm.set_gsi_routing(&table).map_err(|error| {
            // KVM keeps its old table, and a line that it refuses must not spoil the next one.
            if let Some(slot) = routes.messages.get_mut(idx) {
                *slot = before;
            }
            error.into()
        })
    }
}

impl Routes {
    fn entries(&self) -> impl Iterator<Item = kvm_irq_routing_entry> + '_ {
        let pins = (0..NUM_IO_APIC_PINS).map(|pin| {
            let mut entry = kvm_irq_routing_entry {
                gsi: pin,
                type_: KVM_IRQ_ROUTING_IRQCHIP,
                ..Default::default()
            };
            entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
            entry.u.irqchip.pin = pin;
            entry
        });
        let messages = (NUM_IO_APIC_PINS..)
            .zip(&self.messages)
            .filter_map(|(gsi, message)| {
                let message = (*message)?;
                let mut entry = kvm_irq_routing_entry {
                    gsi,
                    type_: KVM_IRQ_ROUTING_MSI,
                    ..Default::default()
                };
                let [b0, b1, b2, b3, b4, b5, b6, b7] = message.address.to_le_bytes();
                entry.u.msi.address_lo = u32::from_le_bytes([b0, b1, b2, b3]);
                entry.u.msi.address_hi = u32::from_le_bytes([b4, b5, b6, b7]);
                entry.u.msi.data = message.data;
                Some(entry)
            });
        pins.chain(messages)
    }
}

impl MsiVectors for IrqRouter {
    fn allocate(&self) -> io::Result<Box<dyn MsiVector>> {
        let irqfd = EventFd::new(EFD_NONBLOCK)?;
        let mut routes = self.shared.routes.lock();
        let gsi = u32::try_from(routes.messages.len())
            .ok()
            .and_then(|idx| idx.checked_add(NUM_IO_APIC_PINS))
            .filter(|gsi| *gsi < MAX_GSI)
            .ok_or_else(|| io::Error::other(format!("all {MAX_GSI} GSIs are taken")))?;
        routes.messages.push(None);
        Ok(Box::new(Vector {
            shared: Arc::clone(&self.shared),
            gsi,
            irqfd,
            is_attached: Mutex::new(false),
        }))
    }
}

/// One MSI-X vector: a GSI of its own and the eventfd that raises it.
#[derive(Debug)]
struct Vector {
    shared: Arc<Shared>,
    gsi: u32,
    irqfd: EventFd,
    is_attached: Mutex<bool>,
}

impl MsiVector for Vector {
    fn irqfd(&self) -> &EventFd {
        &self.irqfd
    }

    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let mut is_attached = self.is_attached.lock();
        if let Some(message) = message {
            self.shared.set_message(self.gsi, message)?;
        }
        // KVM looks at the eventfd when it attaches: what was raised while masked arrives now.
        match (message, *is_attached) {
            (Some(_), false) => self.shared.vm.register_irqfd(&self.irqfd, self.gsi)?,
            (None, true) => self.shared.vm.unregister_irqfd(&self.irqfd, self.gsi)?,
            _ => {}
        }
        *is_attached = message.is_some();
        Ok(())
    }
}
