//! Raw values: one JSON object in a line for each, written at once, so that what was measured stays when
//! the run is ended.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

/// One value. What reads it is in [`load`](crate::bench::results::load), and takes fields that it does not know.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Value {
    /// What was run.
    pub case: String,
    /// Whose it is.
    pub peer: String,
    /// From 1 on.
    pub round: u64,
    /// What was measured, with its unit.
    pub name: String,
    /// The point, in a sweep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x: Option<f64>,
    /// How much.
    pub value: f64,
}

/// Where a value belongs.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// What is run.
    pub case: String,
    /// Whose it is.
    pub peer: String,
    /// From 1 on.
    pub round: u64,
    /// The point, in a sweep.
    pub x: Option<f64>,
}

/// The values of a run.
#[derive(Debug)]
pub struct Recorder {
    file: File,
    /// What was recorded so far.
    pub values: Vec<Value>,
}

impl Recorder {
    /// Replaces the file at `path`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        Ok(Recorder {
            file: File::create(path)?,
            values: Vec::new(),
        })
    }

    /// Records a value; one that is not finite, such as a rate of no time, is none.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, place: &Place, name: impl Into<String>, value: f64) -> io::Result<()> {
        if !value.is_finite() {
            return Ok(());
        }
        let value = Value {
            case: place.case.clone(),
            peer: place.peer.clone(),
            round: place.round,
            name: name.into(),
            x: place.x,
            value,
        };
        let line = serde_json::to_string(&value)? + "\n";
        self.file.write_all(line.as_bytes())?;
        self.values.push(value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_lines_of_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/net.json");
        let mut recorder = Recorder::create(&path).unwrap();
        let mut place = Place {
            case: "udp-out".into(),
            peer: "venet".into(),
            round: 1,
            x: None,
        };
        recorder.add(&place, "pps", 41234.5).unwrap();
        recorder.add(&place, "pps", f64::NAN).unwrap();
        place.x = Some(10.0);
        recorder.add(&place, "mbit", 2.0).unwrap();

        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            "{\"case\":\"udp-out\",\"peer\":\"venet\",\"round\":1,\"name\":\"pps\",\"value\":41234.5}\n\
             {\"case\":\"udp-out\",\"peer\":\"venet\",\"round\":1,\"name\":\"mbit\",\"x\":10.0,\"value\":2.0}\n"
        );
        assert_eq!(recorder.values.len(), 2);
    }
}
