//! `alacrity vbus`: the control tree from the shell without a mount, with the words and manners of
//! the programs whose names the commands have.

pub mod listing;

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

use rustix::io::Errno;
use vbus::client::{Admin, ClientError, Connection, NodeKind, NodeStat};

use crate::cli::{VbusArgs, VbusCommand};
use crate::exit::ExitStatus;
use crate::host::socket::{self, SocketError};
use listing::{Kind, Listing};

/// How deep `tree` goes; the tree itself is five deep.
const MAX_DEPTH: usize = 16;

/// Why nothing was done, or no more.
#[derive(Debug, thiserror::Error)]
pub enum VbusError {
    /// No socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No daemon, or none for us.
    #[error(transparent)]
    Connect(#[from] ClientError),
    /// The daemon went away, or what it says makes no sense.
    #[error("the daemon at {} no longer answers", socket.display())]
    Lost {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: Errno,
    },
    /// Nobody takes our output.
    #[error("cannot write to standard output")]
    Output {
        /// Why.
        source: io::Error,
    },
}

impl VbusError {
    /// The exit status that tells of it.
    pub fn status(&self) -> ExitStatus {
        match self {
            VbusError::Socket(_) | VbusError::Connect(_) => ExitStatus::BadInput,
            VbusError::Lost { .. } | VbusError::Output { .. } => ExitStatus::HostError,
        }
    }
}

/// True if it is not the tree that says so: there is no tree any more.
fn is_lost(error: Errno) -> bool {
    matches!(error, Errno::CONNRESET | Errno::PIPE | Errno::PROTO)
}

/// What an errno means, without its number.
struct Reason(Errno);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = io::Error::from(self.0).to_string();
        f.write_str(text.split(" (os error").next().unwrap_or_default())
    }
}

/// Runs one command; what it shows goes to `out`, why an operation failed to `err`.
///
/// # Errors
/// [`VbusError`]. A refused operation is none, but [`ExitStatus::OperationFailed`].
pub fn run(
    args: VbusArgs,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<ExitStatus, VbusError> {
    let socket = socket::path(args.socket.as_deref())?;
    let admin = Connection::connect(&socket)?.admin()?;
    let mut session = Session {
        admin,
        socket,
        err,
        has_failed: false,
    };
    let text = session.text(args.command)?;
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that has seen enough is no failure.
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            return Err(VbusError::Output { source });
        }
        _ => (),
    }
    Ok(match session.has_failed {
        true => ExitStatus::OperationFailed,
        false => ExitStatus::Success,
    })
}

/// One run of the program.
struct Session<'a> {
    admin: Admin,
    socket: PathBuf,
    err: &'a mut dyn Write,
    has_failed: bool,
}

impl Session<'_> {
    /// Does what `command` says; what it shows.
    fn text(&mut self, command: VbusCommand) -> Result<String, VbusError> {
        match command {
            VbusCommand::Ls { long, json, paths } => self.ls(long, json, paths),
            VbusCommand::Tree { json, path } => self.tree(json, &path.unwrap_or_default()),
            VbusCommand::Cat { paths } => self.each(&paths, |it, path| it.admin.read(path)),
            VbusCommand::Echo { value, path } => self.each(&[path], |it, path| {
                it.admin.write(path, &format!("{value}\n"))?;
                Ok(String::new())
            }),
            VbusCommand::Mkdir { paths } => self.each(&paths, |it, path| {
                it.admin.mkdir(path)?;
                Ok(String::new())
            }),
            VbusCommand::Rmdir { paths } => self.each(&paths, |it, path| {
                it.admin.rmdir(path)?;
                Ok(String::new())
            }),
            VbusCommand::Ln { target, path, .. } => self.each(&[path], |it, path| {
                it.admin
                    .symlink(&from_root(&target), &it.link_path(&target, path)?)?;
                Ok(String::new())
            }),
            VbusCommand::Rm { paths } => self.each(&paths, |it, path| {
                it.admin.unlink(path)?;
                Ok(String::new())
            }),
            VbusCommand::Stat { json, paths } => self.each(&paths, |it, path| {
                let stat = it.admin.stat(path)?;
                let listing = it.listing(path, path, &stat)?;
                Ok(match json {
                    true => json_line(&listing),
                    false => listing.long_line(),
                })
            }),
        }
    }

    /// Does `operation` to each path, goes on after those that fail, and joins what they show.
    fn each(
        &mut self,
        paths: &[String],
        operation: impl Fn(&Self, &str) -> Result<String, Errno>,
    ) -> Result<String, VbusError> {
        let mut text = String::new();
        for path in paths {
            match operation(self, path) {
                Ok(shown) => text.push_str(&shown),
                Err(error) => self.report(path, error)?,
            }
        }
        Ok(text)
    }

    /// Says that `path` was refused; an error if there is nobody to refuse any more.
    fn report(&mut self, path: &str, error: Errno) -> Result<(), VbusError> {
        if is_lost(error) {
            return Err(VbusError::Lost {
                socket: self.socket.clone(),
                source: error,
            });
        }
        self.has_failed = true;
        let path = if path.is_empty() { "/" } else { path };
        // Standard error may be closed; the status says it, too.
        let _ = writeln!(self.err, "alacrity vbus: {path}: {}", Reason(error));
        Ok(())
    }

    fn ls(&mut self, long: bool, json: bool, paths: Vec<String>) -> Result<String, VbusError> {
        let paths = match paths.is_empty() {
            true => vec![String::new()],
            false => paths,
        };
        let mut text = String::new();
        let mut listings = Vec::new();
        for path in &paths {
            match self.with_contents(path, 1) {
                Ok(listing) => listings.push(listing),
                Err(error) => self.report(path, error)?,
            }
        }
        if json {
            return Ok(json_line(&listings));
        }
        listings.sort_by_key(|listing| listing.contents.is_some()); // files first, as ls does
        let line = match long {
            true => Listing::long_line,
            false => Listing::short_line,
        };
        for (idx, listing) in listings.iter().enumerate() {
            let Some(contents) = &listing.contents else {
                text.push_str(&line(listing));
                continue;
            };
            if paths.len() > 1 {
                let gap = if idx == 0 { "" } else { "\n" };
                text.push_str(&format!("{gap}{}:\n", listing.name));
            }
            contents
                .iter()
                .for_each(|entry| text.push_str(&line(entry)));
        }
        Ok(text)
    }

    fn tree(&mut self, json: bool, path: &str) -> Result<String, VbusError> {
        match self.with_contents(path, MAX_DEPTH) {
            Ok(listing) if json => Ok(json_line(&listing)),
            Ok(listing) => Ok(listing.drawing()),
            Err(error) => {
                self.report(path, error)?;
                Ok(String::new())
            }
        }
    }

    /// The node at `path`, and what is below it down to `depth`.
    fn with_contents(&self, path: &str, depth: usize) -> Result<Listing, Errno> {
        let stat = self.admin.stat(path)?;
        let name = if path.is_empty() { "." } else { path };
        let mut listing = self.listing(name, path, &stat)?;
        self.fill(&mut listing, path, depth)?;
        Ok(listing)
    }

    /// Adds what is in the directory `listing` at `path`. What vanishes meanwhile is left out.
    fn fill(&self, listing: &mut Listing, path: &str, depth: usize) -> Result<(), Errno> {
        if listing.kind != Kind::Directory || depth == 0 {
            return Ok(());
        }
        let mut contents = Vec::new();
        for (name, stat) in self.admin.list(path)? {
            let path = format!("{path}/{name}");
            let entry = self.listing(&name, &path, &stat).and_then(|mut entry| {
                self.fill(&mut entry, &path, depth - 1)?;
                Ok(entry)
            });
            match entry {
                Err(error) if !is_lost(error) => (),
                entry => contents.push(entry?),
            }
        }
        listing.contents = Some(contents);
        Ok(())
    }

    /// One node, without what is in it.
    fn listing(&self, name: &str, path: &str, stat: &NodeStat) -> Result<Listing, Errno> {
        let kind = kind(stat.kind);
        let target = match kind {
            Kind::Link => Some(self.admin.readlink(path)?),
            _ => None,
        };
        let size = match (kind, &target) {
            (Kind::Link, Some(target)) => target.len(),
            // One that cannot be read shows nothing.
            (Kind::File, _) => match self.admin.read(path) {
                Ok(text) => text.len(),
                Err(error) if is_lost(error) => return Err(error),
                Err(_) => 0,
            },
            _ => 0,
        };
        Ok(Listing {
            kind,
            name: name.into(),
            mode: stat.mode,
            size: size as u64,
            modified: stat.modified,
            target,
            contents: None,
        })
    }

    /// Where `ln TARGET PATH` makes the link: in the directory PATH under the name of its target, or
    /// as PATH.
    fn link_path(&self, target: &str, path: &str) -> Result<String, Errno> {
        let is_directory = match self.admin.stat(path) {
            Ok(stat) => stat.kind == NodeKind::Directory,
            Err(error) if is_lost(error) => return Err(error),
            Err(_) => false,
        };
        let name = target.trim_end_matches('/').rsplit('/').next();
        Ok(match (is_directory, name) {
            (true, Some(name)) => format!("{}/{name}", path.trim_end_matches('/')),
            _ => path.into(),
        })
    }
}

fn kind(kind: NodeKind) -> Kind {
    match kind {
        NodeKind::Directory => Kind::Directory,
        NodeKind::File => Kind::File,
        NodeKind::Link => Kind::Link,
    }
}

/// The target of a link as the tree takes it. Other paths begin at the root, so a target does too,
/// unless it says that it does not.
fn from_root(target: &str) -> String {
    match target.split('/').next() {
        Some("." | "..") => target.into(),
        _ => format!("/{target}"),
    }
}

fn json_line(value: &impl serde::Serialize) -> String {
    // Strings, numbers and lists of them always have a form as JSON.
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_begins_at_the_root_unless_it_says_otherwise() {
        assert_eq!(from_root("config/devices/eth0"), "/config/devices/eth0");
        assert_eq!(from_root("/config/devices/eth0"), "//config/devices/eth0");
        assert_eq!(from_root("../../devices/eth0"), "../../devices/eth0");
        assert_eq!(from_root("./eth0"), "./eth0");
        assert_eq!(from_root("..eth0"), "/..eth0");
    }

    #[test]
    fn reason_has_no_number() {
        assert_eq!(Reason(Errno::BUSY).to_string(), "Device or resource busy");
    }

    #[test]
    fn lost_daemon_is_no_refusal() {
        assert!(is_lost(Errno::CONNRESET));
        assert!(!is_lost(Errno::NOENT));
    }
}
