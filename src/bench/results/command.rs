//! What `alacrity bench report` does, in order.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::compare::compare;
use super::document::{self, Document, DocumentError};
use super::load::{self, LoadError};
use super::{html, plot, text};
use crate::cli::ReportArgs;
use crate::exit::ExitStatus;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The raw values cannot be read.
    #[error(transparent)]
    Load(LoadError),
    /// The earlier report cannot be read.
    #[error(transparent)]
    Old(DocumentError),
    /// The report cannot be drawn.
    #[error("cannot draw the report: {reason}")]
    Draw {
        /// What was said.
        reason: String,
    },
    /// It does not fit into JSON.
    #[error("cannot write the results as JSON")]
    Json {
        /// Why.
        source: serde_json::Error,
    },
    /// It cannot be written.
    #[error("cannot write {}; name another directory with --out", path.display())]
    Write {
        /// Where to.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody can be told.
    #[error("cannot write to standard output")]
    Print {
        /// Why.
        source: std::io::Error,
    },
}

impl ReportError {
    /// What the program ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Load(_) | Self::Old(_) => ExitStatus::BadInput,
            Self::Draw { .. } | Self::Json { .. } | Self::Write { .. } | Self::Print { .. } => {
                ExitStatus::HostError
            }
        }
    }
}

/// Reads the raw values that `args` names, writes the report, and prints the ratios to `out`. The status
/// tells whether anything became worse.
///
/// # Errors
/// [`ReportError`]; nothing is written if something cannot be read.
pub fn run(args: &ReportArgs, out: &mut dyn Write) -> Result<ExitStatus, ReportError> {
    let mut results = load::directory(&args.from).map_err(ReportError::Load)?;
    let over_time = load::over_time(&args.from).map_err(ReportError::Load)?;
    let (panels, source) = over_time.unzip();
    results.sources.extend(source);
    // Before anything is written: it may be the very file that is replaced.
    let old = args.compare.as_deref().map(document::read);
    let old = old.transpose().map_err(ReportError::Old)?;
    let changes = old.map(|old| compare(&old, &results));
    let has_worse = changes.as_ref().is_some_and(|changes| changes.has_worse());
    let document = Document::new(results, changes);
    let json = serde_json::to_string_pretty(&document)
        .map_err(|source| ReportError::Json { source })?
        + "\n";
    let draw = |reason| ReportError::Draw { reason };
    let page = html::page(&document, &json, panels.as_deref()).map_err(draw)?;
    let picture = plot::headline::picture(&document.outcomes);
    let picture = picture.map_err(|error| draw(error.to_string()))?;

    let directory = args.out.as_deref().unwrap_or(&args.from);
    fs::create_dir_all(directory).map_err(|source| ReportError::Write {
        path: directory.to_owned(),
        source,
    })?;
    write(&directory.join("results.json"), &json)?;
    let path = directory.join("report.html");
    write(&path, &page)?;
    let picture_path = directory.join(PICTURE);
    match &picture {
        Some(svg) => write(&picture_path, &plot::alone(svg))?,
        None => remove(&picture_path)?,
    }

    let said = match args.json {
        true => json,
        false => {
            let changes = document.changes.as_ref().map(text::changes);
            let report = text::report(&document);
            let changes = changes.unwrap_or_default();
            let picture = picture.map(|_| format!(", {}", picture_path.display()));
            let picture = picture.unwrap_or_default();
            format!(
                "{report}{changes}\nWith pictures: {}{picture}\n",
                path.display()
            )
        }
    };
    match out.write_all(said.as_bytes()) {
        Err(source) if source.kind() != ErrorKind::BrokenPipe => {
            return Err(ReportError::Print { source });
        }
        _ => {}
    }
    Ok(match has_worse {
        true => ExitStatus::OperationFailed,
        false => ExitStatus::Success,
    })
}

/// The few ratios that a README shows.
const PICTURE: &str = "ratios.svg";

/// One of an earlier report is not of this one.
fn remove(path: &Path) -> Result<(), ReportError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(ReportError::Write {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result<(), ReportError> {
    fs::write(path, text).map_err(|source| ReportError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        /// Boot times in µs.
        fn new(qemu: [u32; 2]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let place = Place(dir);
            place.measure(qemu);
            place
        }

        fn measure(&self, [one, two]: [u32; 2]) {
            let line = |peer: &str, round: u32, value: u32| {
                format!(
                    "{{\"case\":\"boot\",\"peer\":\"{peer}\",\"round\":{round},\"name\":\"time_us\",\"value\":{value}}}\n"
                )
            };
            let text = [
                line("alacrity", 1, 100),
                line("qemu", 1, one),
                line("qemu", 2, two),
                line("alacrity", 2, 101),
            ];
            fs::write(self.0.path().join("boot.json"), text.concat()).unwrap();
        }

        fn args(&self) -> ReportArgs {
            ReportArgs {
                from: self.0.path().to_owned(),
                out: None,
                compare: None,
                json: false,
            }
        }
    }

    fn run_with(args: &ReportArgs) -> (ExitStatus, String) {
        let mut said = Vec::new();
        let status = run(args, &mut said).unwrap();
        (status, String::from_utf8(said).unwrap())
    }

    #[test]
    fn report_is_written_and_its_ratios_printed() {
        let place = Place::new([200, 203]);
        let out = place.0.path().join("a/b");
        let args = ReportArgs {
            out: Some(out.clone()),
            ..place.args()
        };

        let (status, said) = run_with(&args);

        assert_eq!(status, ExitStatus::Success);
        assert!(said.contains("time_us") && said.contains("won"), "{said}");
        assert!(said.contains("1.2: reached, stretch too"), "{said}");
        assert!(said.contains("ratios.svg"), "{said}");
        assert!(out.join("report.html").is_file());
        let svg = fs::read_to_string(out.join("ratios.svg")).unwrap();
        assert!(svg.contains("program start"), "{svg}");
        let json = fs::read_to_string(out.join("results.json")).unwrap();
        let (_, same) = run_with(&ReportArgs { json: true, ..args });
        let value: serde_json::Value = serde_json::from_str(&same).unwrap();
        assert_eq!(value["outcomes"][0]["verdict"], "won");
        let old: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["series"], old["series"]);
    }

    #[test]
    fn page_has_the_memory_of_guests_and_a_picture_without_goals_goes() {
        let place = Place::new([200, 203]);
        let path = |name| place.0.path().join(name);
        fs::write(
            path("guests.tsv"),
            "none\tguest1\t0\t10\nnone\tguest1\t9\t10\n",
        )
        .unwrap();
        run_with(&place.args());

        let page = fs::read_to_string(path("report.html")).unwrap();
        assert!(page.contains("none: 1 guests") && page.contains("guests.tsv"));
        assert!(path("ratios.svg").exists());

        let boot = fs::read_to_string(path("boot.json")).unwrap();
        fs::write(path("boot.json"), boot.replace("qemu", "bochs")).unwrap();
        let (_, said) = run_with(&place.args());
        assert!(!path("ratios.svg").exists() && !said.contains("ratios.svg"));

        fs::write(path("guests.tsv"), "none\n").unwrap();
        let error = run(&place.args(), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("guests.tsv, line 1"), "{error}");
        assert_eq!(error.status(), ExitStatus::BadInput);
    }

    #[test]
    fn what_became_worse_is_in_the_status() {
        let place = Place::new([200, 203]);
        run_with(&place.args());
        let args = ReportArgs {
            compare: Some(place.0.path().join("results.json")),
            ..place.args()
        };

        assert_eq!(run_with(&args).0, ExitStatus::Success);
        place.measure([150, 152]);
        let (status, said) = run_with(&args);

        assert_eq!(status, ExitStatus::OperationFailed);
        assert!(said.contains("1 worse"), "{said}");
        // The earlier one was replaced.
        assert_eq!(run_with(&args).0, ExitStatus::Success);
    }

    #[test]
    fn what_cannot_be_read_is_bad_input_and_writes_nothing() {
        let place = Place::new([200, 203]);
        let args = ReportArgs {
            compare: Some(place.0.path().join("none.json")),
            ..place.args()
        };

        let error = run(&args, &mut Vec::new()).unwrap_err();

        assert_eq!(error.status(), ExitStatus::BadInput);
        assert!(!place.0.path().join("report.html").exists());
        let nothing = ReportArgs {
            from: place.0.path().join("none"),
            ..place.args()
        };
        let error = run(&nothing, &mut Vec::new()).unwrap_err();
        assert_eq!(error.status(), ExitStatus::BadInput);
    }

    #[test]
    fn place_that_cannot_be_written_is_named() {
        let place = Place::new([200, 203]);
        let args = ReportArgs {
            out: Some(place.0.path().join("boot.json")),
            ..place.args()
        };

        let error = run(&args, &mut Vec::new()).unwrap_err();

        assert_eq!(error.status(), ExitStatus::HostError);
        assert!(error.to_string().contains("--out"), "{error}");
    }
}
