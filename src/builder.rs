//! The only place that knows the build order: RAM, VM, legacy devices, PCI devices, kernel, vCPUs.

use std::io::{self, Write};
use std::sync::Arc;

use alacrity_devices::GuestRam;
use alacrity_devices::bus::{Bus, BusDevice, BusError};
use alacrity_devices::interrupt::Doorbells;
use alacrity_devices::legacy::i8042::I8042;
use alacrity_devices::legacy::power::{self, AcpiPower};
use alacrity_devices::legacy::pvpanic::PvPanic;
use alacrity_devices::legacy::report::{self, Report};
use alacrity_devices::legacy::serial::{self, SerialMetrics, SerialPort};
use alacrity_devices::pci::root::{ECAM_BYTES, PlugError};
use alacrity_devices::pci::{BarKind, PciFunction, PciRoot};
use alacrity_devices::vbus_pci::{Uplink, VbusPci, VbusPciError};
use alacrity_devices::virtio::VirtioDevice;
use alacrity_devices::virtio::transport::VirtioPci;
use alacrity_devices::virtio::transport::pci::TransportError;
use vm_allocator::{AddressAllocator, AllocPolicy};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::boot::{self, BootError, Initrd, KernelImage};
use crate::control::Control;
use crate::kvm::vcpu::{Vcpu, VcpuContext};
use crate::kvm::{IrqRouter, KvmDoorbells, KvmError, Vm};
use crate::layout;
use crate::memory::{self, MemoryError};
use crate::metrics::Metrics;
use crate::reclaim::faults::FaultServer;
use crate::reclaim::policy::Policy;
use crate::reclaim::reclaimer::{ReclaimError, Reclaimer};
use crate::report::VmReport;
use crate::uplink::{DaemonError, EmbeddedError, HangUp};

/// Why a VM cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The kernel cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// An eventfd or its registration failed.
    #[error("cannot make the events of {device}")]
    Events {
        /// For whom.
        device: String,
        /// What the host said.
        source: io::Error,
    },
    /// Two devices want one address: the layout is wrong.
    #[error("cannot place {device}")]
    Place {
        /// Which device.
        device: String,
        /// Where it failed.
        source: BusError,
    },
    /// More PCI devices than slots.
    #[error("cannot plug in {device}")]
    Plug {
        /// Which device.
        device: String,
        /// Why not.
        source: PlugError,
    },
    /// The PCI memory or port window is full.
    #[error("no room in the PCI windows for {device}")]
    Window {
        /// Which device.
        device: String,
        /// What the allocator said.
        source: vm_allocator::Error,
    },
    /// The connector of the bus failed.
    #[error(transparent)]
    Vbus(#[from] VbusPciError),
    /// The daemon of the bus does not serve this VM.
    #[error(transparent)]
    Bus(#[from] DaemonError),
    /// The VM's own bus cannot have a device.
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    /// The guest's memory cannot be reclaimed.
    #[error(transparent)]
    Reclaim(#[from] ReclaimError),
    /// The virtio transport failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// Where the guest's two serial ports write to.
pub struct SerialOutputs {
    /// The console.
    pub console: Box<dyn Write + Send>,
    /// The `--exec` command's output.
    pub command: Box<dyn Write + Send>,
}

impl std::fmt::Debug for SerialOutputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialOutputs").finish_non_exhaustive()
    }
}

/// A VM under construction. Dropping it frees everything; nothing runs before
/// [`Machine::create_vcpus`]'s vCPUs are started.
#[derive(Debug)]
pub struct Machine {
    vm: Vm,
    router: IrqRouter,
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    pci: Arc<PciRoot>,
    pci_memory: AddressAllocator,
    pci_ports: AddressAllocator,
    control: Arc<Control>,
    metrics: Arc<Metrics>,
    power_button: EventFd,
    console: SerialConsole,
    hang_up: Option<HangUp>,
    report: Arc<VmReport>,
    policy: Option<Arc<Policy>>,
    /// The last to go: devices may wait for memory until they are gone.
    faults: Option<FaultServer>,
}

/// The first serial port, as the main loop needs it.
#[derive(Debug)]
struct SerialConsole {
    port: Arc<SerialPort>,
    metrics: Arc<SerialMetrics>,
    room_evt: EventFd,
}

impl Machine {
    /// Makes RAM, the VM and its legacy devices.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn new(
        ram_bytes: u64,
        is_huge: bool,
        control: Arc<Control>,
        outputs: SerialOutputs,
    ) -> Result<Self, BuildError> {
        let vm = Vm::new(memory::allocate(ram_bytes, is_huge)?)?;
        let router = IrqRouter::new(Arc::clone(vm.fd()));
        let pio = Arc::new(Bus::default());
        let mmio = Arc::new(Bus::default());
        let doorbells: Arc<dyn Doorbells> = Arc::new(KvmDoorbells::new(Arc::clone(vm.fd())));
        let pci = Arc::new(PciRoot::new(&mmio, &pio, doorbells));
        let metrics = Arc::new(Metrics::default());

        place(&mmio, "PCI", layout::ECAM_START, ECAM_BYTES, pci.clone())?;
        let sink = control.clone();
        let power = Arc::new(AcpiPower::new(sink.clone()));
        place(
            &pio,
            "ACPI power",
            layout::ACPI_POWER.into(),
            power::NUM_PORTS,
            power,
        )?;
        place(
            &pio,
            "i8042",
            layout::I8042.into(),
            1,
            Arc::new(I8042::new(sink.clone())),
        )?;
        place(
            &pio,
            "pvpanic",
            layout::PVPANIC.into(),
            1,
            Arc::new(PvPanic::new(sink.clone())),
        )?;
        let report = Arc::new(Report::new(sink));
        place(
            &pio,
            "report",
            layout::REPORT.into(),
            report::NUM_PORTS,
            report,
        )?;

        let serial_port = |name: &str, port: u16, gsi, out| -> Result<_, BuildError> {
            let events = |source| BuildError::Events {
                device: name.into(),
                source,
            };
            let room_evt = EventFd::new(EFD_NONBLOCK).map_err(events)?;
            let irq = router.pin(gsi).map_err(events)?;
            let counters = Arc::new(SerialMetrics::default());
            let room = room_evt.try_clone().map_err(events)?;
            let serial =
                Arc::new(SerialPort::new(irq, room, out, Arc::clone(&counters)).map_err(events)?);
            place(&pio, name, port.into(), serial::NUM_PORTS, serial.clone())?;
            metrics.add("devices", name, Arc::clone(&counters));
            Ok(SerialConsole {
                port: serial,
                metrics: counters,
                room_evt,
            })
        };
        let console = serial_port("com1", layout::COM1, layout::COM1_GSI, outputs.console)?;
        serial_port("com2", layout::COM2, layout::COM2_GSI, outputs.command)?;

        let power_button =
            router
                .pin(layout::POWER_BUTTON_GSI)
                .map_err(|source| BuildError::Events {
                    device: "power button".into(),
                    source,
                })?;
        let window = |start, end: u64| {
            AddressAllocator::new(start, end - start).map_err(|source| BuildError::Window {
                device: "PCI".into(),
                source,
            })
        };
        let pci_memory = window(layout::MMIO_GAP_START, layout::ECAM_START)?;
        let ports_end = u64::from(layout::PCI_PORTS_LAST) + 1;
        let pci_ports = window(layout::PCI_PORTS_START.into(), ports_end)?;
        let report = Arc::new(VmReport::new(Arc::clone(&control), ram_bytes));
        Ok(Machine {
            vm,
            router,
            pio,
            mmio,
            pci,
            pci_memory,
            pci_ports,
            control,
            metrics,
            power_button,
            console,
            hang_up: None,
            report,
            policy: None,
            faults: None,
        })
    }

    /// Plugs in a virtio device called `name` (`net0`, `blk1`, …) whose counters are `counters`.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn add_virtio<T>(
        &mut self,
        name: &str,
        device: Box<dyn VirtioDevice>,
        counters: Arc<T>,
    ) -> Result<(), BuildError>
    where
        T: serde::Serialize + Send + Sync + 'static,
    {
        let function = VirtioPci::new(name, device, self.vm.ram().clone(), &self.router)?;
        self.add_pci(name, Arc::new(function))?;
        self.metrics.add("devices", name, counters);
        Ok(())
    }

    /// Lets memory be taken by `reclaimer`, and given back, from now on.
    ///
    /// # Errors
    /// [`BuildError::Reclaim`]: the host is out of threads or descriptors.
    pub fn add_reclaim(&mut self, reclaimer: &Arc<Reclaimer>) -> Result<(), BuildError> {
        let faults = FaultServer::start(Arc::clone(reclaimer)).map_err(ReclaimError::from)?;
        self.faults = Some(faults);
        // KVM keeps pages that hold the state of a guest's own guests, and would not notice that they
        // were taken.
        self.vm.hide_virtualization();
        let counters = Arc::clone(reclaimer.metrics());
        self.metrics.add("reclaim", "pages", counters);
        let times = Arc::clone(reclaimer.times());
        self.metrics.add("reclaim", "times", times);
        Ok(())
    }

    /// Lets `policy` choose which memory is taken.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = Some(Arc::new(policy));
    }

    /// Who takes memory from the guest, if that may be.
    pub fn policy(&self) -> Option<Arc<Policy>> {
        self.policy.clone()
    }

    /// Plugs in a connector called `name` to the bus behind `uplink`.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn add_vbus(&mut self, name: &str, uplink: Arc<dyn Uplink>) -> Result<(), BuildError> {
        let ram = self.vm.ram().clone();
        let function = VbusPci::new(name.into(), uplink, ram, &self.router)?;
        let counters = function.metrics();
        self.add_pci(name, Arc::new(function))?;
        self.metrics.add("devices", name, counters);
        Ok(())
    }

    /// Has [`Machine::end`] call `hang_up`.
    pub fn hang_up_at_end(&mut self, hang_up: HangUp) {
        self.hang_up = Some(hang_up);
    }

    /// Lets go of whatever a vCPU could be waiting for, so that its thread can end.
    pub fn end(&self) {
        if let Some(hang_up) = &self.hang_up {
            hang_up.now();
        }
    }

    /// What there is to say about the VM.
    pub fn report(&self) -> Arc<VmReport> {
        Arc::clone(&self.report)
    }

    /// Guest RAM.
    pub fn ram(&self) -> &GuestRam {
        self.vm.ram()
    }

    /// Adds `counters` of something that belongs to device `name`.
    pub fn add_counters<T>(&mut self, name: &str, counters: Arc<T>)
    where
        T: serde::Serialize + Send + Sync + 'static,
    {
        self.metrics.add("devices", name, counters);
    }

    /// Plugs in a PCI function and places its BARs, as firmware would.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn add_pci(
        &mut self,
        name: &str,
        function: Arc<dyn PciFunction>,
    ) -> Result<(), BuildError> {
        for bar in function.bars() {
            let window = match bar.kind {
                BarKind::Memory32 => &mut self.pci_memory,
                BarKind::Io => &mut self.pci_ports,
            };
            let range = window
                .allocate(bar.len, bar.len, AllocPolicy::FirstMatch)
                .map_err(|source| BuildError::Window {
                    device: name.into(),
                    source,
                })?;
            let start = u32::try_from(range.start()).unwrap_or(u32::MAX); // the windows end below 4 GiB
            function.place_bar(bar.idx, start);
        }
        self.pci
            .plug(function)
            .map(drop)
            .map_err(|source| BuildError::Plug {
                device: name.into(),
                source,
            })
    }

    /// Loads the kernel and makes the vCPUs.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn create_vcpus(
        &mut self,
        num_vcpus: u8,
        kernel: &mut KernelImage,
        initrd: Option<&mut Initrd>,
        cmdline: &str,
    ) -> Result<Vec<Vcpu>, BuildError> {
        let entry = boot::load(self.vm.ram(), kernel, initrd, cmdline, num_vcpus)?;
        (0..num_vcpus)
            .map(|idx| {
                let vcpu = Vcpu::new(&self.vm, idx, num_vcpus, (idx == 0).then_some(entry))?;
                let stats = vcpu.kvm_stats();
                self.report.add_vcpu(vcpu.exits(), stats.clone());
                self.metrics.add("vcpus", idx.to_string(), vcpu.exits());
                if let Some(stats) = stats {
                    self.metrics.add("kvm", idx.to_string(), stats);
                }
                Ok(vcpu)
            })
            .collect()
    }

    /// What the vCPU threads share.
    pub fn vcpu_context(&self) -> VcpuContext {
        VcpuContext {
            pio: Arc::clone(&self.pio),
            mmio: Arc::clone(&self.mmio),
            observer: self.control.clone(),
        }
    }

    /// True if the guest's last reset was the end of a panic.
    pub fn was_panic(&self) -> bool {
        boot::reset::was_panic(self.vm.ram())
    }

    /// All counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The console for the main loop, fed by `input`, and the power button.
    ///
    /// # Errors
    /// The host is out of file descriptors.
    pub fn controls(
        &self,
        input: Option<crate::console::ConsoleInput>,
    ) -> io::Result<(crate::event::Console, EventFd)> {
        let console = crate::event::Console {
            port: Arc::clone(&self.console.port),
            metrics: Arc::clone(&self.console.metrics),
            room_evt: self.console.room_evt.try_clone()?,
            input,
        };
        Ok((console, self.power_button.try_clone()?))
    }
}

fn place(
    bus: &Bus,
    device: &str,
    start: u64,
    len: u64,
    entry: Arc<dyn BusDevice>,
) -> Result<(), BuildError> {
    bus.insert(start, len, entry)
        .map_err(|source| BuildError::Place {
            device: device.into(),
            source,
        })
}
