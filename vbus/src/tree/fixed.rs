//! Directories and files that only show something.

use std::fmt;

use rustix::io::Errno;

use super::{Directory, Entry};
use crate::attribute::Attribute;

/// A directory of few entries that nobody can change; the function makes them, by name in ascending
/// order.
pub struct Fixed<F>(pub F);

impl<F> fmt::Debug for Fixed<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fixed")
    }
}

impl<F: Fn() -> Vec<(String, Entry)> + Send + Sync> Directory for Fixed<F> {
    fn lookup(&self, name: &str) -> Option<Entry> {
        let mut entries = (self.0)().into_iter();
        entries.find(|(own, _)| own == name).map(|(_, entry)| entry)
    }

    fn list(&self) -> Vec<(String, Entry)> {
        (self.0)()
    }
}

/// A file that shows what the function returns.
pub struct Shown<F>(pub F);

impl<F> fmt::Debug for Shown<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}

impl<F: Fn() -> String + Send + Sync> Attribute for Shown<F> {
    fn read(&self) -> Result<String, Errno> {
        Ok((self.0)())
    }
}
