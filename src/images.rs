//! The default guest image: where `scripts/guest-image` puts it and where we look for it.

use std::env;
use std::path::{Path, PathBuf};

use crate::config::VmConfig;

/// Names a directory to look in before all others.
pub const DIR_VARIABLE: &str = "ALACRITY_GUEST_DIR";
/// Kernels in order of preference: the uncompressed one skips the decompressor.
const KERNEL_NAMES: [&str; 2] = ["vmlinux", "bzImage"];
const INITRD_NAME: &str = "initramfs.cpio";

/// A stock kernel and an initramfs whose init obeys us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    /// vmlinux, or bzImage if that is all there is.
    pub kernel: PathBuf,
    /// Uncompressed newc cpio archive; [`crate::exec`] appends to it.
    pub initrd: PathBuf,
}

/// What a VM boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk, if there is one.
    pub initrd: Option<PathBuf>,
}

/// Why there is no default guest image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// No directory holds one.
    #[error(
        "no default guest image in {}; make it with scripts/guest-image, or give --kernel",
        list(looked)
    )]
    NotFound {
        /// Where we looked, in order.
        looked: Vec<PathBuf>,
    },
}

fn list(dirs: &[PathBuf]) -> String {
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    dirs.join(", ")
}

impl GuestImage {
    /// Finds the image: in `$ALACRITY_GUEST_DIR`, beside the build that we belong to
    /// (`target/guest` for `target/release/alacrity`), in `./target/guest`, in
    /// `$XDG_DATA_HOME/alacrity/guest`.
    ///
    /// # Errors
    /// [`ImageError::NotFound`].
    pub fn find() -> Result<Self, ImageError> {
        Self::find_in(search_dirs())
    }

    /// Finds the image in the first of `dirs` that holds one.
    ///
    /// # Errors
    /// [`ImageError::NotFound`].
    pub fn find_in(dirs: Vec<PathBuf>) -> Result<Self, ImageError> {
        dirs.iter()
            .find_map(|dir| Self::in_dir(dir))
            .ok_or(ImageError::NotFound { looked: dirs })
    }

    fn in_dir(dir: &Path) -> Option<Self> {
        let kernel = KERNEL_NAMES
            .into_iter()
            .map(|name| dir.join(name))
            .find(|path| path.is_file())?;
        let initrd = dir.join(INITRD_NAME);
        initrd.is_file().then_some(Self { kernel, initrd })
    }
}

impl BootFiles {
    /// Decides what `config` boots; looks for the default image only if it is needed.
    ///
    /// # Errors
    /// [`ImageError::NotFound`].
    pub fn of(config: &VmConfig) -> Result<Self, ImageError> {
        Self::with(config, GuestImage::find)
    }

    fn with(
        config: &VmConfig,
        find: impl FnOnce() -> Result<GuestImage, ImageError>,
    ) -> Result<Self, ImageError> {
        if let Some(kernel) = &config.kernel {
            return Ok(Self {
                kernel: kernel.clone(),
                initrd: config.initrd.clone(),
            });
        }
        let image = find()?;
        Ok(Self {
            kernel: image.kernel,
            initrd: Some(config.initrd.clone().unwrap_or(image.initrd)),
        })
    }
}

fn search_dirs() -> Vec<PathBuf> {
    if let Some(dir) = env::var_os(DIR_VARIABLE) {
        return vec![dir.into()];
    }
    let beside_build = env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.parent()?.join("guest")));
    let here = env::current_dir()
        .ok()
        .map(|dir| dir.join("target").join("guest"));
    let data = env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute())
        .or_else(|| Some(env::home_dir()?.join(".local").join("share")))
        .map(|dir| dir.join("alacrity").join("guest"));
    let mut dirs: Vec<PathBuf> = Vec::new();
    for dir in [beside_build, here, data].into_iter().flatten() {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    dirs
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn dir_with(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        dir
    }

    #[test]
    fn vmlinux_is_preferred() {
        let dir = dir_with(&["vmlinux", "bzImage", "initramfs.cpio"]);

        let image = GuestImage::find_in(vec![dir.path().into()]).unwrap();

        assert_eq!(image.kernel, dir.path().join("vmlinux"));
    }

    #[test]
    fn directory_without_initramfs_is_passed_over() {
        let half = dir_with(&["vmlinux"]);
        let whole = dir_with(&["bzImage", "initramfs.cpio"]);

        let image = GuestImage::find_in(vec![half.path().into(), whole.path().into()]).unwrap();

        assert_eq!(image.kernel, whole.path().join("bzImage"));
    }

    #[test]
    fn failure_lists_where_we_looked_and_the_remedy() {
        let err = GuestImage::find_in(vec!["/a".into(), "/b".into()]).unwrap_err();

        assert_eq!(
            err.to_string(),
            "no default guest image in /a, /b; make it with scripts/guest-image, or give --kernel"
        );
    }

    #[test]
    fn own_kernel_boots_without_the_default_initrd() {
        let config = VmConfig {
            kernel: Some("k".into()),
            ..VmConfig::default()
        };

        let files = BootFiles::with(&config, || unreachable!()).unwrap();

        assert_eq!(files.initrd, None);
    }

    #[test]
    fn own_initrd_boots_with_the_default_kernel() {
        let config = VmConfig {
            initrd: Some("i".into()),
            ..VmConfig::default()
        };
        let image = GuestImage {
            kernel: "dk".into(),
            initrd: "di".into(),
        };

        let files = BootFiles::with(&config, || Ok(image)).unwrap();

        assert_eq!(files.kernel, Path::new("dk"));
        assert_eq!(files.initrd, Some("i".into()));
    }
}
