//! What happened, as JSON: the collector that `--metrics` writes out.
//!
//! Devices own their counters; the builder hands the collector one source each.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::control::Control;

/// Format version of the JSON, raised when a field changes its meaning.
pub const FORMAT_VERSION: u32 = 1;

/// A source of counters.
type Source = Box<dyn Fn() -> Value + Send>;
/// Its group, its name and itself.
type Sources = Vec<(&'static str, String, Source)>;

/// Everything that counts in one VM.
#[derive(Default)]
pub struct Metrics {
    sources: Mutex<Sources>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(
                self.sources
                    .lock()
                    .iter()
                    .map(|(group, name, _)| (group, name)),
            )
            .finish()
    }
}

impl Metrics {
    /// Adds `counters` as `group.name`.
    pub fn add<T>(&self, group: &'static str, name: impl Into<String>, counters: Arc<T>)
    where
        T: Serialize + Send + Sync + 'static,
    {
        let source = move || serde_json::to_value(&*counters).unwrap_or(Value::Null);
        self.sources
            .lock()
            .push((group, name.into(), Box::new(source)));
    }

    /// All counters now, and the timeline of `control`.
    pub fn snapshot(&self, control: &Control) -> Value {
        let mut root = Map::new();
        root.insert("version".into(), FORMAT_VERSION.into());
        let timeline = serde_json::to_value(control.timeline()).unwrap_or(Value::Null);
        root.insert("timeline".into(), timeline);
        for (group, name, source) in self.sources.lock().iter() {
            let group = root.entry(*group).or_insert_with(|| Map::new().into());
            if let Value::Object(group) = group {
                group.insert(name.clone(), source());
            }
        }
        root.into()
    }
}

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The file cannot be opened.
    #[error(
        "cannot write metrics to {} (may you write there?); choose another file with --metrics",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write metrics to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// Where the metrics go at the end. Open from the start: a VM that has run for long should not find out at
/// its end, and with fewer privileges, that nothing can be written there.
#[derive(Debug)]
pub struct MetricsFile {
    file: File,
    path: PathBuf,
}

impl MetricsFile {
    /// Opens or makes the file `path`, and leaves what is in it.
    ///
    /// # Errors
    /// [`MetricsError::Open`], also for a pipe that nobody reads.
    pub fn open(path: &Path) -> Result<Self, MetricsError> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        // Or a pipe would be waited for.
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let path = path.to_owned();
        match options.open(&path) {
            Ok(file) => Ok(MetricsFile { file, path }),
            Err(source) => Err(MetricsError::Open { path, source }),
        }
    }

    /// Replaces what is in it by a snapshot of `metrics`.
    ///
    /// # Errors
    /// [`MetricsError::Write`].
    pub fn write(&self, metrics: &Metrics, control: &Control) -> Result<(), MetricsError> {
        let written = || {
            let text = serde_json::to_string_pretty(&metrics.snapshot(control))? + "\n";
            // A terminal or a pipe has no length.
            if self.file.metadata()?.is_file() {
                self.file.set_len(0)?;
            }
            (&self.file).write_all(text.as_bytes())
        };
        written().map_err(|source| MetricsError::Write {
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alacrity_devices::metrics::QueueMetrics;
    use std::time::Instant;

    #[test]
    fn snapshot_groups_sources_by_kind_and_name() {
        let counters = Arc::new(QueueMetrics::default());
        counters.doorbells.add(3);
        let metrics = Metrics::default();
        metrics.add("devices", "net0", counters);
        let control = Control::new(Instant::now()).unwrap();

        let snapshot = metrics.snapshot(&control);

        assert_eq!(snapshot["devices"]["net0"]["doorbells"], 3);
        assert_eq!(snapshot["timeline"]["first_run_us"], Value::Null);
        assert_eq!(snapshot["version"], FORMAT_VERSION);
    }

    #[test]
    fn file_keeps_its_old_text_until_the_new_one_replaces_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.json");
        let long = "x".repeat(1 << 16);
        std::fs::write(&path, &long).unwrap();
        let control = Control::new(Instant::now()).unwrap();

        let file = MetricsFile::open(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), long);
        file.write(&Metrics::default(), &control).unwrap();

        let text = std::fs::read_to_string(&path).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["version"], FORMAT_VERSION);
    }

    #[test]
    fn pipe_that_nobody_reads_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();

        let error = MetricsFile::open(&path).unwrap_err();

        assert!(matches!(error, MetricsError::Open { .. }), "{error}");
    }
}
