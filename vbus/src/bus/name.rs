//! Names that an administrator or a device gives.

use rustix::io::Errno;

use crate::tree::MAX_NAME_BYTES;

/// Accepts 1 to [`MAX_NAME_BYTES`] bytes without `/` and control characters, neither `.` nor `..`.
///
/// # Errors
/// `EINVAL`.
pub fn check(name: &str) -> Result<(), Errno> {
    let is_bad = name.is_empty()
        || name.len() > MAX_NAME_BYTES
        || name == "."
        || name == ".."
        || name.chars().any(|c| c == '/' || c.is_control());
    if is_bad { Err(Errno::INVAL) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_a_directory_can_show() {
        let longest = "x".repeat(MAX_NAME_BYTES);
        for name in ["a", "net0", "...", "with space", "straße", &longest] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        let too_long = "x".repeat(MAX_NAME_BYTES + 1);
        for name in ["", ".", "..", "a/b", "a\nb", "a\0", "\u{7f}", &too_long] {
            assert_eq!(check(name), Err(Errno::INVAL), "{name:?}");
        }
    }
}
