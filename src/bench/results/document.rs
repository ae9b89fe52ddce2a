//! `results.json`: all of it for programs, and for the next comparison.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::Results;
use super::compare::Changes;
use super::goals::{self, GoalResult};
use super::verdict::{Outcome, outcomes};

/// Of the file; another one may mean something else.
const FORMAT: u32 = 1;

/// Why an earlier `results.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It cannot be read.
    #[error("cannot read {}; --compare takes the results.json of an earlier report", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is something else.
    #[error(
        "{}, line {number}: {what}; --compare takes the results.json of an earlier report",
        path.display()
    )]
    Parse {
        /// The file.
        path: PathBuf,
        /// From 1 on.
        number: usize,
        /// What is wrong.
        what: String,
    },
    /// Another program wrote it.
    #[error(
        "{} has format {found}, this program knows {FORMAT}; make it again from its raw values",
        path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
}

/// What `results.json` holds. Its shape is a public interface.
#[derive(Debug, Serialize)]
pub struct Document {
    /// Of this file: 1.
    pub format: u32,
    /// When the report was made, RFC 3339.
    pub made: String,
    /// Where it was made: name and text.
    pub machine: BTreeMap<&'static str, String>,
    /// The raw values.
    #[serde(flatten)]
    pub results: Results,
    /// What they say.
    pub outcomes: Vec<Outcome>,
    /// What was aimed at, and whether it was reached.
    pub goals: Vec<GoalResult>,
    /// How they differ from an earlier run, if one was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<Changes>,
}

impl Document {
    /// Of `results` on this machine, now.
    pub fn new(results: Results, changes: Option<Changes>) -> Self {
        let outcomes = outcomes(&results);
        Document {
            format: FORMAT,
            made: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            machine: machine(),
            goals: goals::results(&results, &outcomes),
            outcomes,
            results,
            changes,
        }
    }
}

/// The part of an earlier document that says which it is.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Reads an earlier `results.json`. Its verdicts are not read: they follow from the values.
///
/// # Errors
/// [`DocumentError`].
pub fn read(path: &Path) -> Result<Results, DocumentError> {
    let text = fs::read_to_string(path).map_err(|source| DocumentError::Read {
        path: path.to_owned(),
        source,
    })?;
    let broken = |number: usize, what: String| DocumentError::Parse {
        path: path.to_owned(),
        number: number.max(1),
        what,
    };
    let parse = |error: serde_json::Error| broken(error.line(), error.to_string());
    let Format { format: found } = serde_json::from_str(&text).map_err(parse)?;
    if found != FORMAT {
        let path = path.to_owned();
        return Err(DocumentError::Format { path, found });
    }
    let results: Results = serde_json::from_str(&text).map_err(parse)?;
    let mut values = results.series.iter().flat_map(super::Series::values);
    if values.any(|value| !value.is_finite() || value < 0.0) {
        return Err(broken(1, "a value is below 0 or not finite".to_owned()));
    }
    Ok(results)
}

/// What can be known of this machine, and this program.
fn machine() -> BTreeMap<&'static str, String> {
    let first = |path: &str, key: &str| {
        let text = fs::read_to_string(path).ok()?;
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(name, _)| name.trim() == key)?;
        Some(value.trim().to_owned())
    };
    let line = |path: &str| Some(fs::read_to_string(path).ok()?.trim().to_owned());
    let num_cpus = std::thread::available_parallelism().map(|num| num.to_string());
    let facts = [
        ("alacrity", Some(env!("CARGO_PKG_VERSION").to_owned())),
        ("kernel", line("/proc/sys/kernel/osrelease")),
        ("processor", first("/proc/cpuinfo", "model name")),
        ("processors", num_cpus.ok()),
        ("memory", first("/proc/meminfo", "MemTotal")),
        ("load average", line("/proc/loadavg")),
    ];
    facts
        .into_iter()
        .filter_map(|(name, text)| Some((name, text?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::compare::{Kind, compare};
    use super::super::samples::results;
    use super::*;

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.json");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let results = results(&[1.0, 2.5], &[3.0, 0.0]);
        let document = Document::new(results.clone(), None);
        let (_dir, path) = written(&serde_json::to_string_pretty(&document).unwrap());

        assert_eq!(read(&path).unwrap(), results);
        assert!(document.machine.contains_key("kernel"));
    }

    /// Of a program that had neither points of sweeps nor goals, and other names for peers.
    const OLD: &str = r#"{"format": 1, "made": "2026-11-21T10:00:00Z", "machine": {"kernel": "6.12"},
        "sources": [{"file": "raw.tsv", "written": "2026-11-21T10:00:00Z", "num_values": 4}],
        "notes": {}, "unknown": {},
        "series": [
            {"source": "raw.tsv", "case": "boot_us", "metric": "time", "unit": "µs", "better": "less",
             "peer": "alacrity", "role": "ours", "is_control": false, "rounds": {"1": [100.0], "2": [101.0]}},
            {"source": "net.json", "case": "out", "metric": "mbit", "unit": "Mbit/s", "better": "more",
             "peer": "venet", "role": "ours", "is_control": false, "rounds": {"1": [100.0], "2": [101.0]}},
            {"source": "net.json", "case": "out", "metric": "mbit", "unit": "Mbit/s", "better": "more",
             "peer": "vhost", "role": "peer", "is_control": false, "rounds": {"1": [90.0], "2": [91.0]}},
            {"source": "net.json", "case": "out", "metric": "mbit", "unit": "Mbit/s", "better": "more",
             "peer": "qemu", "role": "peer", "is_control": false, "rounds": {"1": [50.0], "2": [51.0]}}],
        "outcomes": []}"#;

    #[test]
    fn document_of_an_earlier_program_compares_by_its_names() {
        let (_dir, path) = written(OLD);
        let old = read(&path).unwrap();
        let mut new = old.clone();
        new.series.remove(0);
        new.series[1].peer = "qemu-vhost".into();

        let changes = compare(&old, &new);

        let kinds: Vec<_> = changes
            .changes
            .iter()
            .map(|change| (change.kind, change.peer.as_deref()))
            .collect();
        // What has another name now is not taken for the same.
        assert_eq!(
            kinds,
            [
                (Kind::New, Some("qemu-vhost")),
                (Kind::Gone, Some("vhost")),
                (Kind::Gone, None)
            ]
        );
        assert_eq!(changes.num_same, 1);
    }

    #[test]
    fn something_else_is_refused_with_its_line() {
        let (_dir, path) = written("{\n \"format\": 1,\n \"series\": 3\n}");
        let error = read(&path).unwrap_err();
        assert!(matches!(error, DocumentError::Parse { .. }), "{error}");

        let (_dir, path) = written("{\n\n[");
        let error = read(&path).unwrap_err();
        assert!(
            matches!(error, DocumentError::Parse { number: 3, .. }),
            "{error}"
        );

        let missing = read(Path::new("/nonexistent/x.json")).unwrap_err();
        assert!(matches!(missing, DocumentError::Read { .. }));
    }

    #[test]
    fn other_format_and_impossible_values_are_refused() {
        let (_dir, path) = written("{\"format\": 2}");
        let error = read(&path).unwrap_err();
        assert!(
            matches!(error, DocumentError::Format { found: 2, .. }),
            "{error}"
        );

        let document = Document::new(results(&[-1.0], &[1.0]), None);
        let (_dir, path) = written(&serde_json::to_string(&document).unwrap());
        assert!(matches!(read(&path), Err(DocumentError::Parse { .. })));
    }
}
