//! What a member says about itself, for administrators to read: `sys/vms/PID`.

use std::collections::BTreeMap;
use std::fmt;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::identity::{Idents, Stamp};
use crate::abi::wire::{MAX_REPORT_NAME_BYTES, MAX_REPORT_NAMES, MAX_REPORT_VALUE_BYTES};

/// The last report of one member. It is believed by nobody: it is text that is shown.
pub(crate) struct Report {
    /// With [`Report::NUM_IDENTS`] identities: the member's directory, then one for each name.
    pub stamp: Stamp,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// All names there have been, also of directories, so that each keeps its identity.
    names: Vec<String>,
    values: BTreeMap<String, String>,
}

/// A node of a report.
pub(crate) struct ReportEntry {
    /// Its name in its directory.
    pub name: String,
    pub ident: u64,
    /// `None` for a directory.
    pub value: Option<String>,
}

impl Report {
    pub const NUM_IDENTS: u64 = 1 + MAX_REPORT_NAMES as u64;

    pub fn new(idents: &Idents) -> Self {
        Report {
            stamp: Stamp::new(idents.allocate(Self::NUM_IDENTS)),
            state: Mutex::default(),
        }
    }

    /// Replaces what was said before; all of it or nothing.
    ///
    /// # Errors
    /// `EINVAL`: not lines of names and values. `EDQUOT`: too many names so far.
    pub fn set(&self, text: &str) -> Result<(), Errno> {
        let values = parse(text)?;
        let mut state = self.state.lock();
        let parents = values.keys().filter_map(|name| name.split_once('/'));
        let all = values.keys().map(String::as_str);
        let mut new: Vec<String> = Vec::new();
        for name in all.chain(parents.map(|(parent, _)| parent)) {
            let is_known = |names: &[String]| names.iter().any(|known| known == name);
            if !is_known(&state.names) && !is_known(&new) {
                new.push(name.to_owned());
            }
        }
        if state.names.len() + new.len() > MAX_REPORT_NAMES {
            return Err(Errno::DQUOT);
        }
        state.names.extend(new);
        state.values = values;
        self.stamp.touch();
        Ok(())
    }

    /// True if nothing was said.
    pub fn is_empty(&self) -> bool {
        self.state.lock().values.is_empty()
    }

    /// What is in `directory`, or at the top, by name in ascending order.
    pub fn entries(&self, directory: Option<&str>) -> Vec<ReportEntry> {
        let state = self.state.lock();
        let ident = |name: &str| {
            let position = state.names.iter().position(|known| known == name);
            // All names were added with their values.
            self.stamp.ident() + 1 + position.unwrap_or(0) as u64
        };
        let mut entries: Vec<ReportEntry> = Vec::new();
        for (name, value) in &state.values {
            let entry = match (directory, name.split_once('/')) {
                (None, None) => (name.as_str(), ident(name), Some(value.clone())),
                (None, Some((parent, _))) => (parent, ident(parent), None),
                (Some(wanted), Some((parent, own))) if wanted == parent => {
                    (own, ident(name), Some(value.clone()))
                }
                _ => continue,
            };
            let (name, ident, value) = entry;
            if entries.iter().all(|other| other.name != name) {
                let name = name.to_owned();
                entries.push(ReportEntry { name, ident, value });
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries
    }
}

/// Reads lines of `NAME VALUE` or `DIRECTORY/NAME VALUE`.
fn parse(text: &str) -> Result<BTreeMap<String, String>, Errno> {
    let mut values = BTreeMap::new();
    for line in text.lines() {
        let (name, value) = line.split_once(' ').ok_or(Errno::INVAL)?;
        let is_part = |part: &str| {
            let is_fit = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
            (1..=MAX_REPORT_NAME_BYTES).contains(&part.len()) && part.bytes().all(is_fit)
        };
        let is_name = match name.split_once('/') {
            Some((parent, own)) => is_part(parent) && is_part(own),
            None => is_part(name),
        };
        let is_value = value.len() <= MAX_REPORT_VALUE_BYTES
            && value.bytes().all(|c| c == b' ' || c.is_ascii_graphic());
        if !is_name || !is_value || values.insert(name.into(), value.into()).is_some() {
            return Err(Errno::INVAL);
        }
    }
    let is_both = |name: &String| {
        let parent = name.split_once('/').map(|(parent, _)| parent);
        parent.is_some_and(|parent| values.contains_key(parent))
    };
    if values.keys().any(is_both) {
        return Err(Errno::INVAL);
    }
    Ok(values)
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(report: &Report, directory: Option<&str>) -> Vec<(String, Option<String>)> {
        let entries = report.entries(directory).into_iter();
        entries.map(|entry| (entry.name, entry.value)).collect()
    }

    #[test]
    fn report_replaces_the_one_before_and_keeps_identities() {
        let report = Report::new(&Idents::new());
        assert!(report.is_empty());

        report
            .set("state starting\nexits/io 1\nexits/hlt 2\n")
            .unwrap();
        let before = report.entries(None);
        report.set("memory 4096\nstate running now").unwrap();

        let wanted = [("memory", Some("4096")), ("state", Some("running now"))];
        let wanted = wanted.map(|(name, value)| (name.into(), value.map(Into::into)));
        assert_eq!(names(&report, None), wanted);
        assert_eq!(before[0].name, "exits");
        assert_eq!(before[0].value, None);
        assert_eq!(before[1].ident, report.entries(None)[1].ident);
        assert!(names(&report, Some("exits")).is_empty());
    }

    #[test]
    fn what_cannot_be_shown_is_refused_and_changes_nothing() {
        let report = Report::new(&Idents::new());
        report.set("state running").unwrap();
        let long = "x".repeat(MAX_REPORT_NAME_BYTES + 1);
        for text in [
            "state",
            "State x",
            "a/b/c 1",
            "/a 1",
            ".. 1",
            "a 1\na 2",
            "a 1\na/b 2",
            "a \u{1b}[0m",
            &format!("{long} 1"),
            &format!("a {}", "x".repeat(MAX_REPORT_VALUE_BYTES + 1)),
        ] {
            assert_eq!(report.set(text), Err(Errno::INVAL), "{text:?}");
        }
        let many = |from: usize| {
            let lines = (0..MAX_REPORT_NAMES).map(|n| format!("n{} 1\n", from + n));
            lines.collect::<String>()
        };
        assert_eq!(report.set(&many(0)), Err(Errno::DQUOT));

        let wanted = [("state".to_owned(), Some("running".to_owned()))];
        assert_eq!(names(&report, None), wanted);
    }
}
