//! One vCPU: its registers at start, its exit loop and its thread.
#![expect(
    unsafe_code,
    reason = "reading the exit union of kvm_run, registering the kick signal"
)]

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use alacrity_devices::bus::Bus;
use alacrity_devices::legacy::{GuestEvent, GuestEventSink};
use alacrity_devices::metrics::Counter;
use kvm_bindings::{
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, Msrs, kvm_fpu, kvm_msr_entry, kvm_regs,
    kvm_segment,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use serde::Serialize;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::cpuid;
use super::stats::KvmStats;
use super::vm::{KvmError, Vm};
use crate::layout::{GDT, PAGE_TABLES};
use vbus::threads::{self, ThreadClass};

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// GDT selectors of the flat segments (Linux `boot.rst`, "64-bit Boot Protocol").
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;

/// The signal that makes a vCPU leave the guest.
fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// How the boot vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode, identity-mapped pages, `rsi` = `boot_params` (Linux `boot.rst`).
    Linux64 {
        /// Entry point.
        rip: u64,
        /// GPA of `boot_params`.
        boot_params: u64,
    },
    /// 32-bit protected mode without paging, `ebx` = `hvm_start_info` (Xen `pvh.pandoc`).
    Pvh {
        /// Entry point.
        rip: u64,
        /// GPA of `hvm_start_info`.
        start_info: u64,
    },
}

/// Exits to user space by reason.
#[derive(Debug, Default, Serialize)]
pub struct ExitMetrics {
    /// Port reads.
    pub io_in: Counter,
    /// Port writes.
    pub io_out: Counter,
    /// MMIO reads.
    pub mmio_read: Counter,
    /// MMIO writes.
    pub mmio_write: Counter,
    /// Port and MMIO accesses that no device answered, counted above too.
    pub unclaimed: Counter,
    /// Signals, that is kicks by ourselves.
    pub interrupted: Counter,
    /// Everything else.
    pub other: Counter,
}

/// Why a vCPU cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM gave up on an instruction or a state.
    #[error(
        "vCPU {vcpu_idx}: KVM internal error, suberror {suberror} (1 is an instruction that KVM cannot emulate)"
    )]
    Internal {
        /// Which vCPU.
        vcpu_idx: u8,
        /// `KVM_INTERNAL_ERROR_*` (KVM `api.rst`, `KVM_EXIT_INTERNAL_ERROR`).
        suberror: u32,
    },
    /// The hardware refused to enter the guest.
    #[error("vCPU {vcpu_idx}: the CPU refused to enter the guest, reason {reason:#x}")]
    FailEntry {
        /// Which vCPU.
        vcpu_idx: u8,
        /// Hardware code.
        reason: u64,
    },
    /// `KVM_RUN` failed.
    #[error("vCPU {vcpu_idx}: cannot run")]
    Run {
        /// Which vCPU.
        vcpu_idx: u8,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// An exit that we asked for nowhere.
    #[error("vCPU {vcpu_idx}: unexpected exit {exit}")]
    Unexpected {
        /// Which vCPU.
        vcpu_idx: u8,
        /// The exit.
        exit: String,
    },
}

/// Who hears about the VM's end. Called by vCPU threads; must not block.
pub trait VcpuObserver: GuestEventSink {
    /// True once the VM ends; a vCPU then leaves its loop.
    fn is_stopping(&self) -> bool;
    /// A vCPU cannot go on.
    fn vcpu_failed(&self, error: VcpuError);
    /// The boot vCPU is about to enter the guest for the first time.
    fn first_run(&self);
}

/// What all vCPUs of a VM share.
#[derive(Clone)]
pub struct VcpuContext {
    /// Port I/O devices.
    pub pio: Arc<Bus>,
    /// MMIO devices.
    pub mmio: Arc<Bus>,
    /// Told about guest events and failures.
    pub observer: Arc<dyn VcpuObserver>,
}

impl std::fmt::Debug for VcpuContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VcpuContext").finish_non_exhaustive()
    }
}

/// A vCPU that has not started.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    idx: u8,
    exits: Arc<ExitMetrics>,
}

impl Vcpu {
    /// Makes vCPU `idx` of `num_vcpus`; with `entry`, the one that boots the kernel. The others
    /// wait in KVM for the kernel to start them.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn new(vm: &Vm, idx: u8, num_vcpus: u8, entry: Option<Entry>) -> Result<Self, KvmError> {
        let fd = vm.create_vcpu(idx)?;
        let error = |action| {
            move |source| KvmError::Vcpu {
                vcpu_idx: idx,
                action,
                source,
            }
        };
        let leaves =
            cpuid::for_vcpu(vm.supported_cpuid(), idx, num_vcpus).map_err(|_| KvmError::Vcpu {
                vcpu_idx: idx,
                action: "fit its CPUID leaves",
                source: kvm_ioctls::Error::new(libc::E2BIG),
            })?;
        fd.set_cpuid2(&leaves).map_err(error("set its CPUID"))?;
        set_msrs(&fd).map_err(error("set its MSRs"))?;
        let fpu = kvm_fpu {
            fcw: 0x37f,
            mxcsr: 0x1f80,
            ..Default::default()
        };
        fd.set_fpu(&fpu).map_err(error("set its FPU"))?;
        if let Some(entry) = entry {
            fd.set_regs(&boot_regs(entry))
                .map_err(error("set its registers"))?;
            set_boot_sregs(&fd, entry).map_err(error("set its segments"))?;
        }
        Ok(Vcpu {
            fd,
            idx,
            exits: Arc::default(),
        })
    }

    /// The vCPU's exit counters.
    pub fn exits(&self) -> Arc<ExitMetrics> {
        Arc::clone(&self.exits)
    }

    /// KVM's own counters of the vCPU; `None` on a host kernel before 5.14.
    pub fn kvm_stats(&self) -> Option<Arc<KvmStats>> {
        KvmStats::open(&self.fd)
            .inspect_err(|error| tracing::debug!("vCPU {}: no KVM counters: {error}", self.idx))
            .ok()
            .map(Arc::new)
    }

    /// Starts the vCPU on a thread of its own, called `vcpuN`.
    ///
    /// # Errors
    /// The host is out of threads.
    pub fn spawn(self, context: VcpuContext) -> io::Result<VcpuThread> {
        VcpuThread::start(format!("vcpu{}", self.idx), move || {
            let observer = Arc::clone(&context.observer);
            if let Err(error) = self.run(&context) {
                observer.vcpu_failed(error);
            }
        })
    }

    fn run(mut self, context: &VcpuContext) -> Result<(), VcpuError> {
        let vcpu_idx = self.idx;
        let exits = Arc::clone(&self.exits);
        let claim = |is_claimed: bool, access: &str, at: u64| {
            if !is_claimed {
                exits.unclaimed.add(1);
                tracing::trace!("vCPU {vcpu_idx}: nobody answers {access} {at:#x}");
            }
        };
        if vcpu_idx == 0 {
            context.observer.first_run();
        }
        while !context.observer.is_stopping() {
            match self.fd.run() {
                Ok(VcpuExit::IoIn(port, data)) => {
                    exits.io_in.add(1);
                    claim(
                        context.pio.read(port.into(), data),
                        "port read",
                        port.into(),
                    );
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    exits.io_out.add(1);
                    claim(
                        context.pio.write(port.into(), data),
                        "port write",
                        port.into(),
                    );
                }
                Ok(VcpuExit::MmioRead(gpa, data)) => {
                    exits.mmio_read.add(1);
                    claim(context.mmio.read(gpa, data), "MMIO read", gpa);
                }
                Ok(VcpuExit::MmioWrite(gpa, data)) => {
                    exits.mmio_write.add(1);
                    claim(context.mmio.write(gpa, data), "MMIO write", gpa);
                }
                Ok(VcpuExit::Intr) => exits.interrupted.add(1),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                    exits.interrupted.add(1);
                }
                Ok(VcpuExit::Shutdown) => {
                    exits.other.add(1);
                    context.observer.guest_event(GuestEvent::TripleFault);
                }
                Ok(VcpuExit::SystemEvent(kind, _)) => {
                    exits.other.add(1);
                    context.observer.guest_event(match kind {
                        KVM_SYSTEM_EVENT_RESET => GuestEvent::Reset,
                        KVM_SYSTEM_EVENT_CRASH => GuestEvent::Panic,
                        _ => GuestEvent::PowerOff,
                    });
                }
                Ok(VcpuExit::InternalError) => {
                    let suberror = self.internal_suberror();
                    return Err(VcpuError::Internal { vcpu_idx, suberror });
                }
                Ok(VcpuExit::FailEntry(reason, _)) => {
                    return Err(VcpuError::FailEntry { vcpu_idx, reason });
                }
                Ok(exit) => {
                    let exit = format!("{exit:?}");
                    return Err(VcpuError::Unexpected { vcpu_idx, exit });
                }
                Err(source) => return Err(VcpuError::Run { vcpu_idx, source }),
            }
        }
        if let Ok(regs) = self.fd.get_regs() {
            tracing::debug!("vCPU {vcpu_idx} stopped at rip {:#x}", regs.rip);
        }
        Ok(())
    }

    fn internal_suberror(&mut self) -> u32 {
        // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, so KVM filled the `internal` arm of
        // the union; every bit pattern of it is a valid value.
        unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror }
    }
}

/// A vCPU's thread.
#[derive(Debug)]
pub struct VcpuThread(JoinHandle<()>);

impl VcpuThread {
    /// Starts `run` on a thread called `name` that can be kicked out of a system call.
    pub(crate) fn start(name: String, run: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        register_signal_handler(kick_signal(), on_kick)?;
        let thread = threads::spawn(ThreadClass::Vcpu, name, run)?;
        Ok(VcpuThread(thread))
    }

    /// Kicks `threads` out of the guest, and out of writing its output, until they have ended. The
    /// observer must be stopping.
    ///
    /// A kick that arrives between the loop's check and `KVM_RUN` is lost, so it is repeated. All of
    /// them are kicked, not one after the other: one may wait for a lock that another one holds.
    pub fn join_all(threads: Vec<VcpuThread>) {
        let is_running = |thread: &&VcpuThread| !thread.0.is_finished();
        while threads.iter().any(|thread| is_running(&thread)) {
            for VcpuThread(thread) in threads.iter().filter(is_running) {
                if let Err(error) = thread.kill(kick_signal()) {
                    tracing::debug!("vCPU kick: {error}");
                }
            }
            thread::sleep(Duration::from_millis(1));
        }
        for VcpuThread(thread) in threads {
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
    }
}

fn set_msrs(fd: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let msr = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[
        msr(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ])
    .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
    fd.set_msrs(&msrs).map(drop)
}

fn boot_regs(entry: Entry) -> kvm_regs {
    let reserved_flag = 1 << 1;
    match entry {
        Entry::Linux64 { rip, boot_params } => kvm_regs {
            rip,
            rsi: boot_params,
            rflags: reserved_flag,
            ..Default::default()
        },
        Entry::Pvh { rip, start_info } => kvm_regs {
            rip,
            rbx: start_info,
            rflags: reserved_flag,
            ..Default::default()
        },
    }
}

fn set_boot_sregs(fd: &VcpuFd, entry: Entry) -> Result<(), kvm_ioctls::Error> {
    let is_long_mode = matches!(entry, Entry::Linux64 { .. });
    let mut sregs = fd.get_sregs()?;
    sregs.cs = flat_segment(CODE_SELECTOR, TYPE_CODE, is_long_mode);
    let data = flat_segment(DATA_SELECTOR, TYPE_DATA, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT.0;
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET;
    if is_long_mode {
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = PAGE_TABLES.0;
        sregs.cr4 |= CR4_PAE;
        sregs.efer |= EFER_LME | EFER_LMA;
    }
    fd.set_sregs(&sregs)
}

fn flat_segment(selector: u16, type_: u8, is_long_mode: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!is_long_mode),
        s: 1,
        l: u8::from(is_long_mode),
        g: 1,
        ..Default::default()
    }
}
