//! Helpers of the tests in this directory: hosts that can run guests, guests with a deadline, what
//! they print, and what they must not leave behind.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking, and no test uses all helpers"
)]

pub mod all_devices;
pub mod cgroup;
pub mod client;
pub mod daemon;
pub mod failing_disk;
pub mod guest;
pub mod hints;
pub mod host;
pub mod hostile;
pub mod iperf;
pub mod output;
pub mod own;
pub mod reclaim;
pub mod refused;
pub mod stall;
pub mod terminal;
pub mod town;

use std::thread;
use std::time::{Duration, Instant};

/// The program under test.
pub const ALACRITY: &str = env!("CARGO_BIN_EXE_alacrity");

/// How long anything may take that usually takes a few seconds: the lab emulates its CPUs, and the
/// machine below may be busy.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// How often a condition is looked at that nothing tells us of.
const POLL: Duration = Duration::from_millis(20);

/// Waits until `is_met`, at most `deadline`; false if that was not enough.
pub fn until(deadline: Duration, mut is_met: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    while !is_met() {
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(POLL);
    }
    true
}

/// Says why a test does not run here.
pub fn skip(why: &str) {
    println!("SKIPPED: {why}");
}

/// Says why a test does not run here, where it needs a KVM that runs what it is given; fails
/// instead if `REQUIRE_KVM` promises one.
pub fn skip_without_kvm(why: &str) {
    assert!(
        std::env::var_os("REQUIRE_KVM").is_none(),
        "cannot run, but REQUIRE_KVM is set: {why}"
    );
    skip(why);
}

/// Checks that `text` has all `parts`.
#[track_caller]
pub fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}
