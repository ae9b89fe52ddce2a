//! What happened, as JSON: the collector that `--metrics` writes out.
//!
//! Devices own their counters; the builder hands the collector one source each.

use std::io;
use std::path::Path;
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

    /// Writes a snapshot to `path`: to a file beside it first, so that a reader never sees half.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, control: &Control, path: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(&self.snapshot(control))?;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        std::fs::write(&temporary, text + "\n")?;
        std::fs::rename(&temporary, path)
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
}
