//! What the report says about a run beside its values: `notes.tsv`, a name and a text in each line.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const FILE: &str = "notes.tsv";

/// Notes, which other benchmarks may have added to.
#[derive(Debug)]
pub struct Notes {
    path: PathBuf,
    notes: BTreeMap<String, String>,
}

impl Notes {
    /// Those in `directory`, and what is known about this host.
    pub fn open(directory: &Path) -> Self {
        let path = directory.join(FILE);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut notes = Notes {
            path,
            notes: text.lines().filter_map(pair).collect(),
        };
        notes.add("host", &host());
        notes
    }

    /// Adds a note, instead of an older one of that name.
    pub fn add(&mut self, name: &str, text: &str) {
        let one_line = text.replace(['\n', '\t'], " ");
        self.notes.insert(name.to_owned(), one_line);
    }

    /// Writes all of them.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self) -> io::Result<()> {
        let lines: Vec<_> = self
            .notes
            .iter()
            .map(|(name, text)| format!("{name}\t{text}\n"))
            .collect();
        fs::write(&self.path, lines.concat())
    }
}

fn pair(line: &str) -> Option<(String, String)> {
    let (name, text) = line.split_once('\t')?;
    Some((name.to_owned(), text.to_owned()))
}

/// Kernel, processors and memory.
fn host() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("", |(_, model)| model);
    let num_cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let mib = check_memory() >> 20;
    format!(
        "Linux {}, {num_cpus} CPUs ({model}), {mib} MiB",
        kernel.trim()
    )
}

fn check_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_several_runs_come_together() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "a\told\nb\tkept\n").unwrap();

        let mut notes = Notes::open(dir.path());
        notes.add("a", "new\nline");
        notes.write().unwrap();

        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(
            text.starts_with("a\tnew line\nb\tkept\nhost\tLinux "),
            "{text}"
        );
    }
}
