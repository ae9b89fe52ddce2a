//! What a program says and does when one of its threads tries what it may not.
#![expect(unsafe_code, reason = "a signal handler")]

use std::cell::Cell;
use std::io::{self, Cursor, Write};

use libc::{c_int, c_void, siginfo_t};
use syscalls::Sysno;
use vbus::threads::ThreadClass;
use vmm_sys_util::signal::register_signal_handler;

use crate::console;
use crate::exit::ExitStatus;

thread_local! {
    static CLASS: Cell<Option<ThreadClass>> = const { Cell::new(None) };
}

/// Where the kernel's `siginfo_t` of SIGSYS has the number of the call, in `int`s: behind three of them,
/// padding and an address (`_sigsys` in `include/uapi/asm-generic/siginfo.h`).
const SYSCALL_AT: usize = 6;

/// From now on the calling thread is of `class`, for the message.
pub fn set_class(class: ThreadClass) {
    CLASS.set(Some(class));
}

/// Ends the program with a message when the kernel refuses a system call.
///
/// # Errors
/// Those of `sigaction`.
pub fn handle() -> io::Result<()> {
    register_signal_handler(libc::SIGSYS, on_violation).map_err(Into::into)
}

extern "C" fn on_violation(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    let place = info.cast::<i32>().wrapping_add(SYSCALL_AT);
    // SAFETY: the kernel hands a handler that asks for it (SA_SIGINFO) a whole `siginfo_t` of 128 bytes,
    // which for SIGSYS has an `int` there.
    let number = unsafe { place.read() };
    let call = usize::try_from(number).ok().and_then(Sysno::new);
    let name = call.map_or("unknown", |call| call.name());
    // Nothing here allocates or takes a lock that the thread may hold.
    let mut text = [0; 256];
    let mut message = Cursor::new(&mut text[..]);
    let _ = write!(message, "error: sandbox: a thread of ");
    let _ = match CLASS.get() {
        Some(class) => write!(message, "class `{class}`"),
        // Only such threads make others by themselves.
        None => write!(message, "a library in class `{}`", ThreadClass::Mount),
    };
    let _ = writeln!(
        message,
        " made the system call `{name}` ({number}), which it never should; please report this. \
         --sandbox log lets it go on"
    );
    let len = usize::try_from(message.position()).unwrap_or_default();
    console::restore_terminal_if_possible();
    let _ = rustix::io::write(rustix::stdio::stderr(), text.get(..len).unwrap_or_default());
    // SAFETY: always sound; ends the process without running anything else of it.
    unsafe { libc::_exit(ExitStatus::HostError.code().into()) }
}
