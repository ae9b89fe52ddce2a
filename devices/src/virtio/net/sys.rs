//! A system call that a backend needs and std has no safe form of.
#![expect(unsafe_code, reason = "pre_exec")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes the child of `command` die when the thread that starts it ends.
pub(super) fn die_with_parent(command: &mut Command) {
    let set = || {
        // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) })
    };
    // SAFETY: between fork and exec `set` makes one system call and reads errno, both
    // async-signal-safe; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(set) };
}
