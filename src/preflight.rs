//! The checks of a configuration that need to look at the host. They leave nothing open and come
//! before anything is made, so that a refusal leaves nothing behind. What only the opening of a
//! disk or a TAP can tell is left to the devices; what is inside a kernel is left to the loader.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::check::host::{free_huge_pages, total_memory, virtualization_flag};
use crate::check::kvm::KvmError;
use crate::check::{self, ProbeError, guest_kernel_mode_speed};
use crate::config::{MEMORY_STEP, VmConfig};
use crate::images::{BootFiles, ImageError};
use crate::reclaim::userfault::{self, UserfaultError};
use crate::size::Size;
use crate::user::UserIds;

/// Why this host does not start this VM.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// Neither a kernel nor a default image.
    #[error("nothing to boot")]
    Image {
        /// Where we looked.
        source: ImageError,
    },
    /// The kernel or the initrd cannot be read.
    #[error("cannot read {what} {} (does it exist, and may you read it?)", path.display())]
    Unreadable {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A directory, a pipe or something else that has no length.
    #[error("{what} {} is not a file; name one", path.display())]
    NotAFile {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// Nothing in it.
    #[error("{what} {} is empty; make it again (scripts/guest-image makes the default ones)", path.display())]
    Empty {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The guest could not hold it.
    #[error("initrd {} of {len_bytes} bytes does not fit into {} of memory; raise --memory", path.display(), Size(*memory))]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        len_bytes: u64,
        /// Guest RAM in bytes.
        memory: u64,
    },
    /// More than the host has.
    #[error("memory of {}: this host has {} MiB; choose less with --memory", Size(*wanted), total >> 20)]
    Memory {
        /// Guest RAM in bytes.
        wanted: u64,
        /// RAM of the host in bytes.
        total: u64,
    },
    /// The pool is too small.
    #[error(
        "--hugepages needs {wanted} free huge pages, this host has {free}; sysctl vm.nr_hugepages={wanted}, or leave it out"
    )]
    HugePages {
        /// Pages that the guest needs.
        wanted: u64,
        /// Pages that are free.
        free: u64,
    },
    /// The metrics would be lost at the end.
    #[error("no directory {} for --metrics; make it, or write elsewhere", dir.display())]
    MetricsDir {
        /// Parent of the metrics file.
        dir: PathBuf,
    },
    /// Only root may.
    #[error(
        "--user {wanted}: only root becomes another user; start it with sudo, or leave --user out and start it as that user"
    )]
    User {
        /// Whom it should become.
        wanted: UserIds,
    },
    /// Accesses to memory that was taken cannot be served.
    #[error("{flag} does not work here")]
    Reclaim {
        /// `--hints` or `--swap`.
        flag: &'static str,
        /// Why.
        source: UserfaultError,
    },
    /// KVM cannot be used.
    #[error("no KVM")]
    Kvm {
        /// Why.
        source: KvmError,
    },
    /// KVM can be used, but not for Linux.
    #[error(
        "KVM on this machine interprets guest kernel mode ({ns_per_iteration:.0} ns per loop iteration), so Linux cannot boot; run the command through scripts/lab -- …, or see alacrity check, or add --force"
    )]
    Interpreted {
        /// What was measured.
        ns_per_iteration: f64,
    },
    /// KVM can be used, but a guest of four instructions fails.
    #[error(
        "KVM on this machine fails with the simplest guest; see alacrity check, or add --force"
    )]
    Probe {
        /// How.
        source: ProbeError,
    },
}

/// Checks what a validated configuration names against what this host has; returns what it boots.
///
/// # Errors
/// The first [`PreflightError`] found.
pub fn input(config: &VmConfig) -> Result<BootFiles, PreflightError> {
    check_memory(config)?;
    check_user(config.user)?;
    let files = BootFiles::of(config).map_err(|source| PreflightError::Image { source })?;
    check_files(&files, config.memory)?;
    check_metrics(config.metrics.as_deref())?;
    if config.can_reclaim() {
        userfault::probe().map_err(|source| PreflightError::Reclaim {
            flag: if config.swap.is_some() {
                "--swap"
            } else {
                "--hints"
            },
            source,
        })?;
    }
    Ok(files)
}

/// Checks that KVM can be used, and runs Linux guests unless `is_forced`. Measures that only where
/// the processor shows no virtualization: elsewhere it would only delay the boot.
///
/// # Errors
/// [`PreflightError::Kvm`], [`PreflightError::Interpreted`], [`PreflightError::Probe`].
pub fn kvm(is_forced: bool) -> Result<(), PreflightError> {
    check::kvm::open().map_err(|source| PreflightError::Kvm { source })?;
    if is_forced || virtualization_flag().is_some() {
        return Ok(());
    }
    let speed = guest_kernel_mode_speed().map_err(|source| PreflightError::Probe { source })?;
    match speed.is_interpreted() {
        true => Err(PreflightError::Interpreted {
            ns_per_iteration: speed.ns_per_iteration,
        }),
        false => Ok(()),
    }
}

fn check_files(files: &BootFiles, memory: u64) -> Result<(), PreflightError> {
    file_len("kernel", &files.kernel)?;
    let Some(path) = &files.initrd else {
        return Ok(());
    };
    let len_bytes = file_len("initrd", path)?;
    if len_bytes >= memory {
        return Err(PreflightError::InitrdTooLarge {
            path: path.clone(),
            len_bytes,
            memory,
        });
    }
    Ok(())
}

/// Length in bytes, above 0, of a file that can be read.
fn file_len(what: &'static str, path: &Path) -> Result<u64, PreflightError> {
    let unreadable = |source| PreflightError::Unreadable {
        what,
        path: path.into(),
        source,
    };
    // Asked before it is opened, because opening a pipe waits for a writer.
    let is_file = path.metadata().map_err(unreadable)?.is_file();
    if !is_file {
        return Err(PreflightError::NotAFile {
            what,
            path: path.into(),
        });
    }
    let file = File::open(path).map_err(unreadable)?;
    match file.metadata().map_err(unreadable)?.len() {
        0 => Err(PreflightError::Empty {
            what,
            path: path.into(),
        }),
        len_bytes => Ok(len_bytes),
    }
}

fn check_memory(config: &VmConfig) -> Result<(), PreflightError> {
    let (wanted, total) = (config.memory, total_memory());
    if wanted > total {
        return Err(PreflightError::Memory { wanted, total });
    }
    let wanted = config.memory / MEMORY_STEP;
    let free = free_huge_pages();
    if config.hugepages && wanted > free {
        return Err(PreflightError::HugePages { wanted, free });
    }
    Ok(())
}

fn check_user(user: Option<UserIds>) -> Result<(), PreflightError> {
    match user {
        Some(wanted) if !rustix::process::geteuid().is_root() => {
            Err(PreflightError::User { wanted })
        }
        _ => Ok(()),
    }
}

fn check_metrics(path: Option<&Path>) -> Result<(), PreflightError> {
    let dir = match path.and_then(Path::parent) {
        None => return Ok(()),
        Some(dir) if dir.as_os_str().is_empty() => return Ok(()),
        Some(dir) => dir,
    };
    match dir.is_dir() {
        true => Ok(()),
        false => Err(PreflightError::MetricsDir { dir: dir.into() }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn files(kernel: &Path, initrd: Option<&Path>) -> BootFiles {
        BootFiles {
            kernel: kernel.into(),
            initrd: initrd.map(Path::to_owned),
        }
    }

    #[test]
    fn missing_empty_and_irregular_kernels_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty");
        fs::write(&empty, "").unwrap();
        let check = |path: &Path| check_files(&files(path, None), 1 << 30).unwrap_err();

        assert!(matches!(
            check(&dir.path().join("none")),
            PreflightError::Unreadable { what: "kernel", .. }
        ));
        assert!(matches!(check(&empty), PreflightError::Empty { .. }));
        assert!(matches!(check(dir.path()), PreflightError::NotAFile { .. }));
    }

    #[test]
    fn initrd_as_large_as_memory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel");
        let initrd = dir.path().join("initrd");
        fs::write(&kernel, "k").unwrap();
        File::create(&initrd).unwrap().set_len(64 << 20).unwrap();

        let err = check_files(&files(&kernel, Some(&initrd)), 64 << 20).unwrap_err();

        assert!(
            matches!(err, PreflightError::InitrdTooLarge { .. }),
            "{err}"
        );
    }

    #[test]
    fn memory_that_the_host_lacks_is_refused() {
        let config = VmConfig {
            memory: 1 << 60,
            ..VmConfig::default()
        };

        assert!(matches!(
            check_memory(&config),
            Err(PreflightError::Memory { .. })
        ));
    }

    #[test]
    fn metrics_need_their_directory() {
        assert!(check_metrics(Some(Path::new("m.json"))).is_ok());
        assert!(check_metrics(Some(Path::new("/tmp/m.json"))).is_ok());
        assert!(matches!(
            check_metrics(Some(Path::new("/no/such/m.json"))),
            Err(PreflightError::MetricsDir { .. })
        ));
    }
}
