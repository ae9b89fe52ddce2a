//! What the data path costs, counted: system calls and allocations of the threads that move frames.
//!
//! Each test hands a worker that sleeps a batch of frames and counts until it sleeps again. So each
//! batch has one way in and out of sleep, and what a frame costs stands out of it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs
)]

mod calls;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../venet/fixture.rs"]
mod fixture;
mod tap;
mod venet;
mod virtio_net;

use std::process::Command;

use alacrity_devices::tap::{Tap, TapError};
use vbus::test_utils::allocations::{Allocations, CountingAllocator};
use vbus::test_utils::syscalls::{Calls, Syscalls};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Frames of a batch: half of what a worker moves in one turn, so that it takes one turn.
const BATCH: usize = 128;
/// Most system calls that a worker makes beside those of frames, from sleep to sleep: to wake up, to
/// ask and answer eventfds, to look around a few times (each look gives way once), to sleep. Where
/// reading the clock is a system call, two more for each look. A frame each would be 128.
const MOST_PER_TURN: u64 = 40;

/// Counts what one thread does.
struct Watch {
    thread: String,
    syscalls: Syscalls,
    allocations: Allocations,
}

impl Watch {
    fn thread(name: &str) -> Self {
        Watch {
            thread: name.into(),
            syscalls: Syscalls::of_thread(name),
            allocations: Allocations::of_thread(name),
        }
    }

    fn wait_asleep(&self) {
        self.syscalls
            .wait_asleep(&[libc::SYS_epoll_wait, libc::SYS_epoll_pwait]);
    }

    /// System calls of the thread, which sleeps, until it sleeps again after `work`. It allocates
    /// nothing meanwhile.
    fn calls(&self, what: &str, work: impl FnOnce()) -> Calls {
        self.wait_asleep();
        let (before, num_before) = (self.syscalls.calls(), self.allocations.count());
        work();
        self.wait_asleep();
        let calls = self.syscalls.calls().since(&before);
        let num_allocations = self.allocations.count() - num_before;
        println!(
            "{what}: {} made {calls}; {num_allocations} allocations",
            self.thread
        );
        assert_eq!(num_allocations, 0, "{what}");
        calls
    }
}

/// Calls that are not about the eventfd of whoever is told, nor about frames of a TAP.
fn overhead(calls: &Calls) -> u64 {
    [libc::SYS_write, libc::SYS_readv, libc::SYS_writev]
        .iter()
        .fold(calls.total(), |left, number| left - calls.of(*number))
}

/// Whether TAPs can be made here; says why not, or fails if they must.
fn can_make_taps() -> bool {
    match Tap::open("ctprobe", 1) {
        Ok(_) | Err(TapError::Busy { .. }) => true,
        Err(error) => {
            assert!(
                std::env::var_os("REQUIRE_KVM").is_none_or(|value| value != "1"),
                "a TAP is required: {error}"
            );
            println!("SKIPPED: {error}");
            false
        }
    }
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status();
    assert!(status.unwrap().success(), "ip {args}");
}
