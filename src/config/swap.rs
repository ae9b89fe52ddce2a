//! The swap file of a VM: data and pure checks.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::size;

/// Least size in bytes: one page.
pub const MIN_SWAP: u64 = 4096;

/// Where memory of the guest may be written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwapConfig {
    /// A directory, or a file in it: the swap file is made there and has no name.
    pub path: PathBuf,
    /// Most bytes that it takes, at least [`MIN_SWAP`]; 0 means as much as the guest has memory.
    #[serde(with = "size::as_text", default)]
    pub size: u64,
}

/// Why there can be no such swap file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SwapError {
    /// An empty path.
    #[error("no directory is named; write --swap DIR, such as --swap /var/tmp")]
    NoPath,
    /// Below [`MIN_SWAP`].
    #[error("size of {found} bytes: not one page fits; write a size such as 1G")]
    TooSmall {
        /// What was asked for, in bytes.
        found: u64,
    },
}

impl SwapConfig {
    /// Checks what can be checked without looking at the directory.
    ///
    /// # Errors
    /// [`SwapError`].
    pub fn validate(&self) -> Result<(), SwapError> {
        if self.path.as_os_str().is_empty() {
            return Err(SwapError::NoPath);
        }
        match self.size {
            found @ 1..MIN_SWAP => Err(SwapError::TooSmall { found }),
            _ => Ok(()),
        }
    }

    /// The directory of the swap file: the path, or where the file is that it names.
    pub fn dir(&self) -> &Path {
        if self.path.is_dir() {
            return &self.path;
        }
        match self.path.parent() {
            Some(dir) if dir.as_os_str().is_empty() => Path::new("."),
            Some(dir) => dir,
            None => &self.path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swap(path: &str, size: u64) -> SwapConfig {
        SwapConfig {
            path: path.into(),
            size,
        }
    }

    #[test]
    fn empty_path_and_less_than_a_page_are_refused() {
        assert_eq!(swap("", 0).validate(), Err(SwapError::NoPath));
        let too_small = Err(SwapError::TooSmall { found: 4095 });
        assert_eq!(swap("/tmp", 4095).validate(), too_small);
        assert_eq!(swap("/tmp", 4096).validate(), Ok(()));
        assert_eq!(swap("/tmp", 0).validate(), Ok(()));
    }

    #[test]
    fn directory_is_the_path_or_that_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        assert_eq!(swap(&path(""), 0).dir(), Path::new(&path("")));
        assert_eq!(swap(&path("new.swap"), 0).dir(), dir.path());
        assert_eq!(swap("new.swap", 0).dir(), Path::new("."));
    }
}
