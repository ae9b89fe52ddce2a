//! What the host offers besides KVM.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};

use io_uring::IoUring;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::kvm::can_open;
use super::{Item, State, Topic};
use crate::images::GuestImage;

const CPUINFO: &str = "/proc/cpuinfo";
const FREE_HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
const SHMEM_HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
const UNPRIVILEGED_USERFAULTFD: &str = "/proc/sys/vm/unprivileged_userfaultfd";

/// The flag of the processor's virtualization, `svm` or `vmx`, if it has one. Reads no more of
/// `/proc/cpuinfo` than its first processor.
pub fn virtualization_flag() -> Option<&'static str> {
    let flags = BufReader::new(File::open(CPUINFO).ok()?)
        .lines()
        .map_while(Result::ok)
        .find(|line| line.starts_with("flags"))?;
    ["svm", "vmx"]
        .into_iter()
        .find(|wanted| flags.split_whitespace().any(|flag| flag == *wanted))
}

/// Free huge pages of 2 MiB; 0 where there is no pool.
pub fn free_huge_pages() -> u64 {
    fs::read_to_string(FREE_HUGE_PAGES)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// RAM of the host in bytes.
pub fn total_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}

pub(super) fn cpu_virtualization() -> Item {
    let topic = Topic::optional("cpu_virtualization", "hardware virtualization");
    match virtualization_flag() {
        Some(flag) => topic.ok(flag),
        None => topic.not_ok(
            State::Missing,
            format!("neither svm nor vmx in {CPUINFO}"),
            "switch it on in the firmware, or nested virtualization in the outer hypervisor",
        ),
    }
}

pub(super) fn memfd() -> Item {
    let topic = Topic::required("memfd", "sealed memfd");
    let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    let sealed = memfd_create(c"check", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC)
        .and_then(|fd| fcntl_add_seals(&fd, seals));
    match sealed {
        Ok(()) => topic.ok("for guest memory"),
        Err(errno) => topic.not_ok(
            State::Broken,
            errno.to_string(),
            "use a host kernel with CONFIG_MEMFD_CREATE",
        ),
    }
}

pub(super) fn tun() -> Item {
    node(
        Topic::optional("tun", "/dev/net/tun"),
        "/dev/net/tun",
        "for --net tap=NAME",
        "modprobe tun, or use --net user",
    )
}

pub(super) fn fuse() -> Item {
    node(
        Topic::optional("fuse", "/dev/fuse"),
        "/dev/fuse",
        "for mounting the control tree",
        "modprobe fuse",
    )
}

pub(super) fn vhost_net() -> Item {
    node(
        Topic::optional("vhost_net", "/dev/vhost-net"),
        "/dev/vhost-net",
        "for comparison in benchmarks only",
        "modprobe vhost_net",
    )
}

/// A device node that must open for reading and writing.
fn node(topic: Topic, path: &str, purpose: &str, remedy_missing: &str) -> Item {
    match can_open(path) {
        Ok(()) => topic.ok(purpose),
        Err((State::Denied, _)) => topic.not_ok(
            State::Denied,
            format!("{purpose}: no permission"),
            format!("run as root, or let your user open {path}"),
        ),
        Err((State::Missing, _)) => topic.not_ok(
            State::Missing,
            format!("{purpose}: not there"),
            remedy_missing,
        ),
        Err((state, error)) => topic.not_ok(state, format!("{purpose}: {error}"), remedy_missing),
    }
}

pub(super) fn io_uring() -> Item {
    let topic = Topic::optional("io_uring", "io_uring");
    match IoUring::new(1) {
        Ok(_) => topic.ok("for fast disks"),
        Err(error) => topic.not_ok(
            State::Missing,
            format!("for fast disks: {error}; ordinary reads and writes serve instead"),
            "sysctl kernel.io_uring_disabled=0, where the host kernel has it",
        ),
    }
}

pub(super) fn userfaultfd() -> Item {
    let topic = Topic::optional("userfaultfd", "userfaultfd");
    let purpose = "for swapping guest memory";
    if can_open("/dev/userfaultfd").is_ok() {
        return topic.ok(purpose);
    }
    match fs::read_to_string(UNPRIVILEGED_USERFAULTFD) {
        Ok(_) if rustix::process::geteuid().is_root() => topic.ok(purpose),
        Ok(text) if text.trim() == "1" => topic.ok(purpose),
        Ok(_) => topic.not_ok(
            State::Denied,
            format!("{purpose}: no permission"),
            "let your user open /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1",
        ),
        Err(_) => topic.not_ok(
            State::Missing,
            format!("{purpose}: not in this kernel"),
            "use a host kernel with CONFIG_USERFAULTFD",
        ),
    }
}

pub(super) fn huge_pages() -> Item {
    let topic = Topic::optional("huge_pages", "huge pages");
    match free_huge_pages() {
        0 => topic.not_ok(
            State::Missing,
            "for --hugepages: none free",
            "sysctl vm.nr_hugepages=N, N = guest memory / 2 MiB",
        ),
        count => topic.ok(format!("for --hugepages: {count} of 2 MiB free")),
    }
}

/// The kernel marks its choice: `always within_size advise [never] deny force`.
pub(super) fn transparent_huge_pages() -> Item {
    let topic = Topic::optional("transparent_huge_pages", "transparent huge pages");
    let choices = fs::read_to_string(SHMEM_HUGE_PAGES).unwrap_or_default();
    let choice = choices
        .split_whitespace()
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    match choice {
        Some(choice @ ("always" | "within_size" | "advise" | "force")) => {
            topic.ok(format!("for guest memory, which boots faster: {choice}"))
        }
        choice => topic.not_ok(
            State::Missing,
            format!(
                "for guest memory, which boots slower: {}",
                choice.unwrap_or("not offered")
            ),
            "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
        ),
    }
}

pub(super) fn passt() -> Item {
    let topic = Topic::optional("passt", "passt");
    let path = env::var_os("PATH").unwrap_or_default();
    match env::split_paths(&path).find(|dir| dir.join("passt").is_file()) {
        Some(dir) => topic.ok(format!("for --net user: {}", dir.join("passt").display())),
        None => topic.not_ok(
            State::Missing,
            "for --net user: not in PATH",
            "apt-get install passt",
        ),
    }
}

pub(super) fn guest_image() -> Item {
    let topic = Topic::optional("guest_image", "default guest image");
    match GuestImage::find() {
        Ok(image) => topic.ok(image.kernel.display().to_string()),
        Err(_) => topic.not_ok(
            State::Missing,
            "for run without --kernel: not made yet",
            "scripts/guest-image",
        ),
    }
}
