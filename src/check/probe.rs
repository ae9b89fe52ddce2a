//! A tiny guest that shows how fast guest kernel mode runs.
//!
//! Some KVMs (software ones, in clouds without nested virtualization) run guest user mode natively
//! and interpret guest kernel mode, a thousand times slower and with many instructions missing. No
//! capability tells; a loop at privilege level 0 does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::kvm::{self, KvmError};
use super::{Item, State, Topic};

/// Longest that the guest may take; an interpreter needs some 100 ms.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// Above this many nanoseconds per loop iteration, kernel mode is interpreted. Hardware takes about
/// 0.5, emulated hardware (`scripts/lab`) about 2.5, an interpreter 300 to 1000.
const INTERPRETED_NS: f64 = 100.0;
/// Iterations of the first look: short for an interpreter, long against page faults and exits, one of
/// which takes emulated hardware 0.1 ms on a slow day.
const QUICK_ITERATIONS: u32 = 20_000;
/// First looks; the fastest counts, because others may be using this machine.
const QUICK_LOOKS: u32 = 5;
/// Iterations for a precise figure, where the first look was fast.
const PRECISE_ITERATIONS: u32 = 2_000_000;

const CODE_GPA: u64 = 0x1000;
const PAGE_BYTES: usize = 0x1000;
const DONE_PORT: u8 = 0x10;
const CODE_BYTES: usize = 7;
/// `again: dec ecx; jnz again; out DONE_PORT, al; jmp again`, 32-bit.
const CODE: [u8; CODE_BYTES] = [0x49, 0x75, 0xfd, 0xe6, DONE_PORT, 0xeb, 0xf9];

const CR0_PROTECTED_MODE: u64 = 0x11; // PE and ET, paging off
const RFLAGS_RESERVED_ONE: u64 = 0x2;

/// How fast guest kernel mode runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Time of one iteration (two instructions) in nanoseconds.
    pub ns_per_iteration: f64,
}

impl Speed {
    /// True where Linux guests cannot run: too slow, and instructions are missing.
    pub fn is_interpreted(self) -> bool {
        self.ns_per_iteration > INTERPRETED_NS
    }
}

/// Why the speed is unknown.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// KVM cannot be used at all.
    #[error(transparent)]
    Kvm(KvmError),
    /// The host refused a step of making the guest.
    #[error("cannot make a test guest: {step}")]
    Setup {
        /// The step that failed.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The guest did something that its four instructions cannot do.
    #[error("the test guest stopped with {exit}")]
    UnexpectedExit {
        /// KVM's reason.
        exit: String,
    },
    /// The guest did not end its loop.
    #[error("the test guest did not end within {} ms", DEADLINE.as_millis())]
    Deadline,
}

/// Measures the speed of guest kernel mode, in a thread of its own. Never hangs: a guest that does
/// not end is interrupted after [`DEADLINE`], and abandoned if even that fails.
///
/// # Errors
/// [`ProbeError`].
pub fn guest_kernel_mode_speed() -> Result<Speed, ProbeError> {
    speed_of(CODE, DEADLINE)
}

/// Measures `code`, which loops `ecx` times and then writes to [`DONE_PORT`], forever.
fn speed_of(code: [u8; CODE_BYTES], deadline: Duration) -> Result<Speed, ProbeError> {
    let setup = |step, source| ProbeError::Setup { step, source };
    let kick = SIGRTMIN() + 1; // the VMM uses SIGRTMIN
    register_signal_handler(kick, ignore_signal)
        .map_err(|errno| setup("signal handler", errno.into()))?;
    let expired = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = channel();
    let guest = thread::Builder::new()
        .name("probe".into())
        .spawn({
            let expired = expired.clone();
            move || send_speed(&sender, code, &expired)
        })
        .map_err(|source| setup("thread", source))?;
    if let Ok(outcome) = receiver.recv_timeout(deadline) {
        return outcome;
    }
    expired.store(true, Relaxed);
    stop(&guest, kick, &receiver);
    Err(ProbeError::Deadline)
}

/// Breaks `KVM_RUN` by arriving.
extern "C" fn ignore_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn send_speed(
    sender: &Sender<Result<Speed, ProbeError>>,
    code: [u8; CODE_BYTES],
    expired: &AtomicBool,
) {
    // The receiver is gone only if the probe was given up.
    let _ = sender.send(measure(code, expired));
}

/// Kicks `guest` until it answers, for at most a second. One kick may come just before `KVM_RUN`
/// and be lost.
fn stop(guest: &JoinHandle<()>, kick: libc::c_int, answer: &Receiver<Result<Speed, ProbeError>>) {
    for _ in 0..100 {
        let kicked = guest.kill(kick);
        if kicked.is_err() || answer.recv_timeout(Duration::from_millis(10)).is_ok() {
            return;
        }
    }
}

fn measure(code: [u8; CODE_BYTES], expired: &AtomicBool) -> Result<Speed, ProbeError> {
    let mut guest = LoopGuest::new(code)?;
    let mut quickest = f64::INFINITY;
    for _ in 0..QUICK_LOOKS {
        quickest = quickest.min(guest.ns_per_iteration(QUICK_ITERATIONS, expired)?);
        if quickest <= INTERPRETED_NS {
            let ns_per_iteration = guest.ns_per_iteration(PRECISE_ITERATIONS, expired)?;
            return Ok(Speed { ns_per_iteration });
        }
    }
    Ok(Speed {
        ns_per_iteration: quickest,
    })
}

/// One page of memory and one vCPU at privilege level 0.
#[derive(Debug)]
struct LoopGuest {
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: GuestMemoryMmap, // dropped last: the VM maps it
}

impl LoopGuest {
    fn new(code: [u8; CODE_BYTES]) -> Result<Self, ProbeError> {
        let failed = |step| {
            move |errno: kvm_ioctls::Error| ProbeError::Setup {
                step,
                source: errno.into(),
            }
        };
        let memory = code_page(code)?;
        let vm = kvm::open()
            .map_err(ProbeError::Kvm)?
            .create_vm()
            .map_err(failed("VM"))?;
        map(&vm, &memory)?;
        let vcpu = vm.create_vcpu(0).map_err(failed("vCPU"))?;
        let mut sregs = vcpu.get_sregs().map_err(failed("registers"))?;
        enter_flat_kernel_mode(&mut sregs);
        vcpu.set_sregs(&sregs).map_err(failed("registers"))?;
        vcpu.set_regs(&kvm_regs {
            rip: CODE_GPA,
            rflags: RFLAGS_RESERVED_ONE,
            ..kvm_regs::default()
        })
        .map_err(failed("registers"))?;
        Ok(Self {
            vcpu,
            _vm: vm,
            _memory: memory,
        })
    }

    /// Runs the loop once; counts the exit at its end too.
    fn ns_per_iteration(
        &mut self,
        iterations: u32,
        expired: &AtomicBool,
    ) -> Result<f64, ProbeError> {
        let failed = |errno: kvm_ioctls::Error| ProbeError::Setup {
            step: "registers",
            source: errno.into(),
        };
        let mut regs = self.vcpu.get_regs().map_err(failed)?;
        regs.rcx = iterations.into();
        self.vcpu.set_regs(&regs).map_err(failed)?;
        let start = Instant::now();
        self.run_to_done(expired)?;
        Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(iterations))
    }

    fn run_to_done(&mut self, expired: &AtomicBool) -> Result<(), ProbeError> {
        while !expired.load(Relaxed) {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(port, _)) if port == u16::from(DONE_PORT) => return Ok(()),
                Ok(VcpuExit::Intr) => {}
                Ok(exit) => {
                    return Err(ProbeError::UnexpectedExit {
                        exit: format!("{exit:?}"),
                    });
                }
                Err(errno) if matches!(errno.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(errno) => {
                    return Err(ProbeError::Setup {
                        step: "run",
                        source: errno.into(),
                    });
                }
            }
        }
        Err(ProbeError::Deadline)
    }
}

fn code_page(code: [u8; CODE_BYTES]) -> Result<GuestMemoryMmap, ProbeError> {
    let failed = |error: &dyn ToString| ProbeError::Setup {
        step: "memory",
        source: io::Error::other(error.to_string()),
    };
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(CODE_GPA), PAGE_BYTES)])
        .map_err(|error| failed(&error))?;
    memory
        .write_slice(&code, GuestAddress(CODE_GPA))
        .map_err(|error| failed(&error))?;
    Ok(memory)
}

fn map(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), ProbeError> {
    let failed = |source| ProbeError::Setup {
        step: "memory",
        source,
    };
    let hva = memory
        .get_host_address(GuestAddress(CODE_GPA))
        .map_err(|error| failed(io::Error::other(error)))?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: CODE_GPA,
        memory_size: PAGE_BYTES as u64,
        userspace_addr: hva as u64,
    };
    #[expect(
        unsafe_code,
        reason = "a memslot gives the guest a piece of our memory"
    )]
    // SAFETY:
    // - `hva .. + PAGE_BYTES` is one live mapping, the only region of `memory`.
    // - `LoopGuest` owns `memory` and drops it after the vCPU and the VM.
    // - No Rust reference into it exists: it is reached through `Bytes` alone.
    unsafe { vm.set_user_memory_region(slot) }.map_err(|errno| failed(errno.into()))
}

/// 32-bit protected mode, flat segments, no paging, privilege level 0.
fn enter_flat_kernel_mode(sregs: &mut kvm_sregs) {
    let data = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: 0x10,
        type_: 0x3, // read, write, accessed
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    sregs.cs = kvm_segment {
        selector: 0x8,
        type_: 0xb, // execute, read, accessed
        ..data
    };
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    sregs.cr0 = CR0_PROTECTED_MODE;
}

/// The speed as a line of the report.
pub(super) fn item() -> Item {
    let topic = Topic::required("guest_kernel_mode", "guest kernel mode");
    match guest_kernel_mode_speed() {
        Ok(speed) if speed.is_interpreted() => topic.not_ok(
            State::Slow,
            format!(
                "{:.0} ns per loop iteration: KVM here interprets it, so Linux cannot boot",
                speed.ns_per_iteration
            ),
            "use a machine with hardware virtualization, or scripts/lab -- COMMAND",
        ),
        Ok(speed) => topic.ok(format!(
            "{:.1} ns per loop iteration",
            speed.ns_per_iteration
        )),
        Err(ProbeError::Kvm(_)) => {
            topic.not_ok(State::Missing, "unknown without KVM", "see /dev/kvm above")
        }
        Err(error) => topic.not_ok(
            State::Broken,
            alacrity_devices::error::chain(&error),
            "look for kvm in the kernel log, or use scripts/lab -- COMMAND",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speed(ns_per_iteration: f64) -> Speed {
        Speed { ns_per_iteration }
    }

    #[test]
    fn hardware_and_the_lab_are_fast_and_an_interpreter_is_not() {
        assert!(!speed(0.5).is_interpreted());
        assert!(!speed(2.5).is_interpreted());
        assert!(speed(340.0).is_interpreted());
    }

    /// Runs `code` where there is a KVM. Says SKIPPED elsewhere, or fails with REQUIRE_KVM=1.
    fn speed_on_kvm(
        code: [u8; CODE_BYTES],
        deadline: Duration,
    ) -> Option<Result<Speed, ProbeError>> {
        match speed_of(code, deadline) {
            Err(ProbeError::Kvm(error)) if std::env::var_os("REQUIRE_KVM").is_none() => {
                println!("SKIPPED: {error}");
                None
            }
            outcome => Some(outcome),
        }
    }

    #[test]
    fn guest_that_never_ends_is_stopped_at_the_deadline() {
        let jump_to_self = [0xeb, 0xfe, 0, 0, 0, 0, 0];

        let Some(outcome) = speed_on_kvm(jump_to_self, Duration::from_millis(50)) else {
            return;
        };

        assert!(matches!(outcome, Err(ProbeError::Deadline)), "{outcome:?}");
    }

    #[test]
    fn guest_that_stops_otherwise_is_told_apart() {
        let halt = [0xf4, 0, 0, 0, 0, 0, 0];

        let Some(outcome) = speed_on_kvm(halt, Duration::from_secs(20)) else {
            return;
        };

        assert!(
            matches!(outcome, Err(ProbeError::UnexpectedExit { .. })),
            "{outcome:?}"
        );
    }
}
