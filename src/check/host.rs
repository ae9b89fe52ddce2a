//! What the host offers besides KVM.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};

use io_uring::IoUring;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::kvm::can_open;
use super::{Item, State, Topic};
use crate::images::GuestImage;
use crate::reclaim::policy::pressure::{Cgroup, PressureError, StallTrigger};
use crate::reclaim::userfault::{self, UserfaultError};

const CPUINFO: &str = "/proc/cpuinfo";
const FREE_HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
const SHMEM_HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

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
    let purpose = "for --hints and --swap";
    let (state, what) = match userfault::probe() {
        Ok(()) => return topic.ok(purpose),
        Err(UserfaultError::Permission) => (State::Denied, "no permission".to_owned()),
        Err(UserfaultError::Missing) => (State::Missing, "not in this kernel".to_owned()),
        Err(UserfaultError::Features { features }) => {
            let missing = userfault::missing(features).join(", no ");
            (State::Missing, format!("of shared memory, no {missing}"))
        }
        Err(UserfaultError::Create(errno)) => {
            let remedy = "close programs with many open files, and try again";
            return topic.not_ok(State::Broken, format!("{purpose}: {errno}"), remedy);
        }
    };
    let remedy = match state {
        State::Denied => {
            "run as root, let your user open /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1"
        }
        _ => "use a host kernel from 5.19 on, with CONFIG_USERFAULTFD",
    };
    topic.not_ok(state, format!("{purpose}: {what}"), remedy)
}

pub(super) fn cgroup() -> Item {
    let topic = Topic::optional("cgroup", "cgroup v2");
    let purpose = "for --hints before a limit is reached";
    let error = match Cgroup::own() {
        Ok(cgroup) => return topic.ok(format!("{purpose}: {}", cgroup.name())),
        Err(error) => error,
    };
    let remedy = match error {
        PressureError::NoController { .. } => {
            "start alacrity with `systemd-run --scope -p MemoryAccounting=yes`"
        }
        _ => "mount -t cgroup2 none /sys/fs/cgroup, or boot with cgroup_no_v1=all",
    };
    topic.not_ok(State::Missing, format!("{purpose}: {error}"), remedy)
}

pub(super) fn memory_pressure() -> Item {
    let topic = Topic::optional("memory_pressure", "memory pressure (PSI)");
    let purpose = "for --hints when tasks wait for memory";
    let source = match StallTrigger::of_host() {
        Ok(_) => return topic.ok(purpose),
        Err(PressureError::Trigger { source, .. }) => source,
        Err(error) => return topic.not_ok(State::Broken, error.to_string(), "see the kernel log"),
    };
    let (state, remedy) = match source.kind() {
        io::ErrorKind::PermissionDenied => (
            State::Denied,
            "run as root, or use a host kernel from 6.4 on",
        ),
        _ => (
            State::Missing,
            "use a host kernel with CONFIG_PSI, booted with psi=1",
        ),
    };
    topic.not_ok(state, format!("{purpose}: {source}"), remedy)
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
