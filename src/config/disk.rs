//! A disk: data and pure checks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Longest serial number of a virtio disk in bytes (VIRTIO 1.2 §5.2.6, `VIRTIO_BLK_T_GET_ID`).
pub const MAX_SERIAL_BYTES: usize = 20;

/// A disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Raw image file or block device.
    pub path: PathBuf,
    /// The guest may not write.
    #[serde(default, rename = "ro")]
    pub is_read_only: bool,
    /// Serial number the guest sees: 1 to [`MAX_SERIAL_BYTES`] printable ASCII bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// Why a disk is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// An empty path.
    #[error("no file is named; write path=FILE")]
    NoPath,
    /// More than [`MAX_SERIAL_BYTES`].
    #[error("serial `{serial}` has {} bytes, at most {MAX_SERIAL_BYTES} fit; choose a shorter one", serial.len())]
    SerialTooLong {
        /// What was asked for.
        serial: String,
    },
    /// Empty, or something that a terminal would not print.
    #[error(
        "serial {serial:?} is not a serial number; use 1 to {MAX_SERIAL_BYTES} printable ASCII characters"
    )]
    SerialText {
        /// What was asked for.
        serial: String,
    },
}

impl DiskConfig {
    /// Checks what can be checked without opening the file.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn validate(&self) -> Result<(), DiskError> {
        if self.path.as_os_str().is_empty() {
            return Err(DiskError::NoPath);
        }
        let Some(serial) = &self.serial else {
            return Ok(());
        };
        if serial.len() > MAX_SERIAL_BYTES {
            return Err(DiskError::SerialTooLong {
                serial: serial.clone(),
            });
        }
        if serial.is_empty() || !serial.bytes().all(|c| c == b' ' || c.is_ascii_graphic()) {
            return Err(DiskError::SerialText {
                serial: serial.clone(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_with_serial(serial: &str) -> DiskConfig {
        DiskConfig {
            path: "disk.img".into(),
            serial: Some(serial.into()),
            ..DiskConfig::default()
        }
    }

    #[test]
    fn serial_of_20_bytes_is_the_longest() {
        assert_eq!(disk_with_serial(&"s".repeat(20)).validate(), Ok(()));
        assert!(matches!(
            disk_with_serial(&"s".repeat(21)).validate(),
            Err(DiskError::SerialTooLong { .. })
        ));
    }

    #[test]
    fn serial_must_be_printable() {
        for serial in ["", "a\nb", "ü"] {
            assert!(
                matches!(
                    disk_with_serial(serial).validate(),
                    Err(DiskError::SerialText { .. })
                ),
                "{serial:?}"
            );
        }
    }

    #[test]
    fn disk_without_path_is_refused() {
        assert_eq!(DiskConfig::default().validate(), Err(DiskError::NoPath));
    }
}
