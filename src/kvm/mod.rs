//! Everything that talks to KVM, and the only place that uses its crates.
//!
//! | module | what lives there |
//! |---|---|
//! | [`vm`] | the VM: memory slots, interrupt controller, what a host must offer |
//! | [`cpuid`] | what CPU the guest sees, topology included |
//! | [`vcpu`] | one vCPU: registers at start, the exit loop, its thread |
//! | [`stats`] | KVM's own counters of a vCPU |
//! | [`irq`] | GSI routing, irqfds, MSI-X vectors |
//! | [`doorbell`] | ioeventfds |

pub mod cpuid;
pub mod doorbell;
pub mod irq;
pub mod stats;
pub mod vcpu;
pub mod vm;

pub use doorbell::KvmDoorbells;
pub use irq::IrqRouter;
pub use vm::{KvmError, Vm};
