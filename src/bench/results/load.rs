//! Raw files → [`Results`]. A line that is broken is an error; a case or field that is not known is not.

mod lines;
mod rounds;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Results, Source};

/// Why there are no results.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is there, but cannot be read.
    #[error("cannot read {}; name another directory or file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// None of the raw files is there, or none has a value.
    #[error(
        "no raw values in {}; scripts/bench and scripts/bench-reclaim write them, or name another \
         directory with --from",
        path.display()
    )]
    Nothing {
        /// The directory.
        path: PathBuf,
    },
    /// A part of a file is not what it should be.
    #[error("{}, line {number}: {what}; {remedy}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1 on.
        number: usize,
        /// What is wrong.
        what: String,
        /// What to do about it.
        remedy: String,
    },
}

/// What is wrong with a line, and which.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken {
    /// From 1 on.
    pub number: usize,
    /// What is wrong.
    pub what: String,
}

impl Broken {
    fn new(number: usize, what: impl Into<String>) -> Self {
        Broken {
            number,
            what: what.into(),
        }
    }
}

/// Reads the text of a file of that name into results; how many values it has.
type Loader = fn(&str, &str, &mut Results) -> Result<usize, Broken>;

/// Each raw file, how it is read, and what to do if it is broken.
const FILES: [(&str, Loader, &str); 9] = [
    (
        "notes.tsv",
        lines::notes,
        "delete the line, or measure again with scripts/bench",
    ),
    (
        "net-notes.tsv",
        lines::notes,
        "delete the line, or measure again with scripts/bench-net",
    ),
    (
        "raw.tsv",
        lines::tsv,
        "delete the line, or measure again with scripts/bench",
    ),
    (
        "net.json",
        lines::json,
        "delete the line, or measure again with scripts/bench-net",
    ),
    (
        "reclaim.json",
        lines::json,
        "delete the line, or measure again with scripts/bench-reclaim",
    ),
    (
        "ring.json",
        rounds::json,
        "measure again with `alacrity bench ring --json ring.json`",
    ),
    (
        "call.json",
        rounds::json,
        "measure again with `alacrity bench call --json call.json`",
    ),
    (
        "frames.json",
        rounds::json,
        "measure again with `alacrity bench frames --json frames.json`",
    ),
    // `reclaim.json` is that of the script.
    (
        "pages.json",
        rounds::json,
        "measure again with `alacrity bench reclaim --json pages.json`",
    ),
];

/// Reads every raw file that is in `directory`.
///
/// # Errors
/// [`LoadError`].
pub fn directory(directory: &Path) -> Result<Results, LoadError> {
    let mut results = Results::default();
    for (file, loader, remedy) in FILES {
        let path = directory.join(file);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(LoadError::Read { path, source }),
        };
        let num_values = match loader(file, &text, &mut results) {
            Ok(num_values) => num_values,
            Err(Broken { number, what }) => {
                return Err(LoadError::Line {
                    path,
                    number,
                    what,
                    remedy: remedy.to_owned(),
                });
            }
        };
        if num_values > 0 {
            results.sources.push(Source {
                file: file.to_owned(),
                written: written(&path),
                num_values,
            });
        }
    }
    if results.series.is_empty() {
        return Err(LoadError::Nothing {
            path: directory.to_owned(),
        });
    }
    Ok(results)
}

fn written(path: &Path) -> String {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    humantime::format_rfc3339_seconds(modified.unwrap_or(SystemTime::UNIX_EPOCH)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_there_are_read_and_others_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file, text: &str| fs::write(dir.path().join(file), text).unwrap();
        write("raw.tsv", "boot_us\talacrity\t1\t10\n");
        write("net.json", "");
        write("other.json", "{");

        let results = directory(dir.path()).unwrap();

        assert_eq!(results.sources.len(), 1);
        assert_eq!(results.sources[0].file, "raw.tsv");
        assert_eq!(results.sources[0].num_values, 1);
        assert!(results.sources[0].written.ends_with('Z'));
    }

    #[test]
    fn directory_without_values_is_an_error_that_says_who_makes_them() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("raw.tsv"), "").unwrap();

        let error = directory(dir.path()).unwrap_err();

        assert!(matches!(error, LoadError::Nothing { .. }));
        assert!(error.to_string().contains("scripts/bench"), "{error}");
    }

    #[test]
    fn broken_line_is_named_with_its_file_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let text = "boot_us\talacrity\t1\t10\nboot_us\talac";
        fs::write(dir.path().join("raw.tsv"), text).unwrap();

        let error = directory(dir.path()).unwrap_err().to_string();

        assert!(error.contains("raw.tsv, line 2: "), "{error}");
        assert!(error.contains("measure again with scripts/bench"));
    }

    #[test]
    fn file_that_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("net.json")).unwrap();

        let error = directory(dir.path()).unwrap_err();

        assert!(matches!(error, LoadError::Read { .. }), "{error}");
    }
}
