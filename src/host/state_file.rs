//! The file that keeps the buses, devices and attributes while no daemon runs.
//!
//! It is replaced as a whole: written beside the old one, flushed to the disk, renamed. Whoever kills
//! the daemon at any moment finds the old state or the new one. One thread saves, so changes that come
//! while it does are saved together and nobody waits for the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use alacrity_devices::error::chain;
use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::TomlError;
use crate::paths::directory_of;
use vbus::threads::{self, ThreadClass};

/// What is written at the top of the file.
const HEAD: &str =
    "# The virtual bus as `alacrity host --state` keeps it: rewritten at each change.\n\n";

/// Why the state cannot be restored or kept.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// The file is there and cannot be read.
    #[error("cannot read state {} (is it a file, and may you read it?)", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not a state.
    #[error("state {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: TomlError,
    },
    /// The state has no form as TOML.
    #[error("cannot express the state as TOML")]
    Express {
        /// Why.
        source: toml::ser::Error,
    },
    /// The file cannot be replaced.
    #[error("cannot write state {} (does its directory exist, and may you write there?)", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The host is out of threads.
    #[error("cannot start the thread that saves the state")]
    Thread {
        /// Why.
        source: io::Error,
    },
}

/// A state file.
#[derive(Debug, Clone)]
pub struct StateFile {
    /// Never a link: that would be replaced instead of its target.
    path: PathBuf,
}

impl StateFile {
    /// The file at `path`, which need not be there yet. Proves that it can be written.
    ///
    /// # Errors
    /// [`StateFileError::Write`].
    pub fn new(path: &Path) -> Result<Self, StateFileError> {
        let file = StateFile {
            path: path.canonicalize().unwrap_or_else(|_| path.into()),
        };
        let proof = file.create_new().map(drop);
        proof
            .and_then(|()| fs::remove_file(file.new_path()))
            .map_err(|source| file.write_error(source))?;
        Ok(file)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was kept; `None` if nothing ever was.
    ///
    /// # Errors
    /// [`StateFileError::Read`], [`StateFileError::Parse`].
    pub fn load<T: DeserializeOwned>(&self) -> Result<Option<T>, StateFileError> {
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            outcome => outcome.map_err(|source| StateFileError::Read {
                path: self.path.clone(),
                source,
            })?,
        };
        let state = toml::from_str(&text).map_err(|error| StateFileError::Parse {
            path: self.path.clone(),
            source: TomlError::new(&text, &error),
        })?;
        Ok(Some(state))
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// [`StateFileError::Express`], [`StateFileError::Write`]; the old file then is as it was.
    pub fn save<T: Serialize>(&self, state: &T) -> Result<(), StateFileError> {
        let text = toml::to_string(state).map_err(|source| StateFileError::Express { source })?;
        self.replace(&text)
            .map_err(|source| self.write_error(source))
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        let mut file = self.create_new()?;
        file.write_all(HEAD.as_bytes())?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(self.new_path(), &self.path)?;
        // The rename, too, has to survive a power cut.
        File::open(directory_of(&self.path))?.sync_all()
    }

    /// Opens the file beside ours, which a daemon that was killed may have left half written.
    fn create_new(&self) -> io::Result<File> {
        if self.path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.new_path())
    }

    fn new_path(&self) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        self.path.with_file_name(name)
    }

    fn write_error(&self, source: io::Error) -> StateFileError {
        StateFileError::Write {
            path: self.path.clone(),
            source,
        }
    }
}

#[derive(Debug, Default)]
struct Wanted {
    is_changed: bool,
    is_ending: bool,
}

/// What the thread that saves waits for.
#[derive(Debug, Default)]
struct Request {
    wanted: Mutex<Wanted>,
    news: Condvar,
}

impl Request {
    /// Waits for something to save; false if the end has come instead.
    fn wait(&self) -> bool {
        let mut wanted = self.wanted.lock();
        let has_none = |it: &mut Wanted| !it.is_changed && !it.is_ending;
        self.news.wait_while(&mut wanted, has_none);
        std::mem::take(&mut wanted.is_changed)
    }
}

/// Tells the thread that saves that there is something new. Never blocks.
#[derive(Debug, Clone)]
pub struct ChangeNotice(Arc<Request>);

impl ChangeNotice {
    /// Something changed.
    pub fn changed(&self) {
        self.0.wanted.lock().is_changed = true;
        self.0.news.notify_one();
    }
}

/// Saves the state from a thread of its own; what is still unsaved when it is dropped is saved then.
#[derive(Debug)]
pub struct Saver {
    request: Arc<Request>,
    thread: Option<JoinHandle<()>>,
}

impl Saver {
    /// Starts the thread, which takes what `state` answers for the state.
    ///
    /// # Errors
    /// [`StateFileError::Thread`].
    pub fn start<T: Serialize>(
        file: StateFile,
        state: impl Fn() -> T + Send + 'static,
    ) -> Result<Self, StateFileError> {
        let request = Arc::<Request>::default();
        let waiting = Arc::clone(&request);
        let keep = move || {
            while waiting.wait() {
                if let Err(error) = file.save(&state()) {
                    tracing::error!("{}; the next change tries again", chain(&error));
                }
            }
        };
        let thread = threads::spawn(ThreadClass::State, "state", keep)
            .map_err(|source| StateFileError::Thread { source })?;
        Ok(Saver {
            request,
            thread: Some(thread),
        })
    }

    /// Where to tell of changes.
    pub fn notice(&self) -> ChangeNotice {
        ChangeNotice(Arc::clone(&self.request))
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.request.wanted.lock().is_ending = true;
        self.request.news.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has ended the process already
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::mpsc;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        number: u32,
        name: String,
    }

    fn sample(number: u32) -> Sample {
        Sample {
            number,
            name: "eth0".into(),
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    #[test]
    fn state_comes_back_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(&dir.path().join("bus.toml")).unwrap();
        assert_eq!(file.load::<Sample>().unwrap(), None);

        file.save(&sample(1)).unwrap();
        file.save(&sample(2)).unwrap();

        assert_eq!(file.load().unwrap(), Some(sample(2)));
        assert_eq!(names(dir.path()), ["bus.toml"]);
        let mode = fs::metadata(&file.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bus.toml");
        fs::write(&path, "number = 1\nname = \"a\"\nnmae = \"b\"\n").unwrap();

        let error = StateFile::new(&path).unwrap().load::<Sample>().unwrap_err();

        let StateFileError::Parse { source, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(source.line, 3);
        assert!(source.message.contains("nmae"), "{source}");
    }

    #[test]
    fn file_that_cannot_be_read_or_written_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("binary"), [0xff, 0xfe]).unwrap();

        let missing = StateFile::new(&dir.path().join("no/bus.toml")).unwrap_err();
        let directory = StateFile::new(dir.path()).unwrap_err();
        let binary = StateFile::new(&dir.path().join("binary")).unwrap();

        assert!(matches!(missing, StateFileError::Write { .. }));
        assert!(matches!(directory, StateFileError::Write { .. }));
        let error = binary.load::<Sample>().unwrap_err();
        assert!(matches!(error, StateFileError::Read { .. }), "{error}");
    }

    #[test]
    fn link_stays_and_its_target_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target.toml");
        fs::write(&target, "").unwrap();
        symlink("target.toml", dir.path().join("link.toml")).unwrap();

        let file = StateFile::new(&dir.path().join("link.toml")).unwrap();
        file.save(&sample(3)).unwrap();

        assert!(dir.path().join("link.toml").is_symlink());
        assert!(fs::read_to_string(target).unwrap().contains("number = 3"));
    }

    #[test]
    fn changes_while_saving_are_saved_together() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(&dir.path().join("bus.toml")).unwrap();
        let (at_state, is_at_state) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        let saver = Saver::start(file.clone(), move || {
            at_state.send(()).unwrap();
            sample(may_go_on.recv().unwrap())
        })
        .unwrap();
        let notice = saver.notice();

        notice.changed();
        is_at_state.recv().unwrap();
        for _ in 0..100 {
            notice.changed();
        }
        go_on.send(1).unwrap();
        is_at_state.recv().unwrap();
        go_on.send(2).unwrap();
        drop(saver);

        assert_eq!(file.load().unwrap(), Some(sample(2)));
        assert!(is_at_state.try_recv().is_err(), "it saved a third time");
    }

    #[test]
    fn last_change_is_saved_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(&dir.path().join("bus.toml")).unwrap();
        let saver = Saver::start(file.clone(), || sample(9)).unwrap();

        saver.notice().changed();
        drop(saver);

        assert_eq!(file.load().unwrap(), Some(sample(9)));
    }
}
