//! Attributes: one value, as text, that an administrator reads or writes.

use rustix::io::Errno;

/// A file of the control tree with one value in it.
///
/// Called from any thread, without a lock of the tree; must not block for long.
pub trait Attribute: Send + Sync {
    /// The value, without a newline at its end.
    ///
    /// # Errors
    /// Any errno; `EIO` for an attribute that is written only.
    fn read(&self) -> Result<String, Errno>;

    /// Takes a new value, of which one newline at the end was stripped; all of it or nothing.
    ///
    /// # Errors
    /// Any errno: `EINVAL` for a bad value, `EACCES` for an attribute that is read only.
    fn write(&self, value: &str) -> Result<(), Errno> {
        let _ = value;
        Err(Errno::ACCESS)
    }

    /// True if [`Attribute::write`] can succeed: the file then has mode 0644, else 0444.
    fn is_writable(&self) -> bool {
        false
    }
}
