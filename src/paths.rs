//! Names of files.

use std::path::Path;

/// The directory that `path` is a name in: the working directory for one without any.
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_without_a_directory_is_in_the_working_directory() {
        assert_eq!(directory_of(Path::new("bus.toml")), Path::new("."));
        assert_eq!(directory_of(Path::new("a/bus.toml")), Path::new("a"));
        assert_eq!(directory_of(Path::new("/bus.toml")), Path::new("/"));
    }
}
