//! `alacrity host` as a process, and shells that administrate it.

use std::env;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::output::Output;
use super::{ALACRITY, skip, until};

/// How long a daemon may take to start or to end.
const DEADLINE: Duration = Duration::from_secs(60);

/// A directory with places for a daemon's socket, mount and state. When it is dropped, nothing is
/// mounted below it.
pub struct Site {
    pub dir: TempDir,
}

impl Site {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        Site { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("vbus.sock")
    }

    pub fn mount_point(&self) -> PathBuf {
        self.path("mnt")
    }

    /// A daemon with a socket only.
    pub fn daemon(&self, args: &[&str]) -> Daemon {
        self.start(args).unwrap_or_else(|why| panic!("{why}"))
    }

    /// A daemon with a mount; `None`, after saying why, where FUSE does not work.
    pub fn mounted(&self, args: &[&str]) -> Option<Daemon> {
        if let Err(why) = fuse_works() {
            assert!(
                env::var_os("REQUIRE_FUSE").is_none(),
                "cannot run, but REQUIRE_FUSE is set: {why}"
            );
            skip(why);
            return None;
        }
        let mount_point = self.mount_point();
        let mount = ["--mount", mount_point.to_str().unwrap()];
        Some(self.daemon(&[&mount, args].concat()))
    }

    /// The command that starts a daemon here.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(ALACRITY);
        command.arg("host").args(args);
        if !args.contains(&"--socket") {
            command.arg("--socket").arg(self.socket());
        }
        command
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts a daemon and waits until it is ready; what it says if it refuses.
    pub fn start(&self, args: &[&str]) -> Result<Daemon, String> {
        let mut child = self.command(args).spawn().unwrap();
        let stdout = Output::collect(child.stdout.take().unwrap());
        let stderr = Output::collect(child.stderr.take().unwrap());
        if stdout.wait_for("ready: ", 1, DEADLINE) {
            return Ok(Daemon {
                child,
                stderr,
                socket: self.socket(),
                mount_point: self.mount_point(),
            });
        }
        let _ = child.kill();
        let status = child.wait().unwrap();
        stderr.wait_closed(DEADLINE);
        Err(format!("{status}: {}", stderr.text()))
    }

    /// Runs `script` in the mount, as an administrator would.
    pub fn shell(&self, script: &str) -> Session {
        Session::run(script, &self.mount_point(), &self.socket())
    }

    /// Lines of the mount table about our mount point.
    pub fn mounts(&self) -> Vec<String> {
        mounts_at(&self.dir.path().canonicalize().unwrap().join("mnt"))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // Nothing may stay mounted, also after a test that failed.
        let left = self.mounts();
        for _ in &left {
            let _ = rustix::mount::unmount(self.mount_point(), rustix::mount::UnmountFlags::DETACH);
        }
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left mounted: {left:?}");
        }
    }
}

/// Lines of the mount table about `place`.
pub fn mounts_at(place: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let place = place.to_str().unwrap();
    table
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some(place))
        .map(Into::into)
        .collect()
}

/// Whether a file system can be mounted by us here.
fn fuse_works() -> Result<(), &'static str> {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    let answer = ANSWER.get_or_init(|| {
        let site = Site::new();
        let mount_point = site.mount_point();
        let started = site.start(&["--mount", mount_point.to_str().unwrap()]);
        match started {
            Ok(daemon) => {
                daemon.stop(Signal::TERM);
                Ok(())
            }
            Err(why) if why.contains("FUSE needs") => Err(why),
            Err(why) => panic!("{why}"),
        }
    });
    answer.as_ref().copied().map_err(String::as_str)
}

/// A running daemon. Dropping it ends it.
pub struct Daemon {
    child: Child,
    pub stderr: Output,
    pub socket: PathBuf,
    pub mount_point: PathBuf,
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Asks it to end and waits; its exit status.
    pub fn stop(mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        self.wait()
    }

    /// Waits for its end; its exit status, `None` if it was killed.
    pub fn wait(&mut self) -> Option<i32> {
        let mut status = None;
        until(DEADLINE, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let status = status.unwrap_or_else(|| panic!("it goes on: {}", self.stderr.text()));
        status.code()
    }

    /// Kills it in the middle of whatever it does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        assert_eq!(self.child.wait().unwrap().signal(), Some(9));
    }

    /// The process that unmounts for it.
    pub fn unmounter(&self) -> Pid {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        Pid::from_raw(children.trim().parse().unwrap()).unwrap()
    }

    /// Resident memory in KiB.
    pub fn rss_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    /// Resident memory of its own in KiB: without that of guests.
    pub fn anon_kib(&self) -> u64 {
        self.status_kib("RssAnon:")
    }

    fn status_kib(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(key));
        let number = line.unwrap().split_whitespace().nth(1).unwrap();
        number.parse().unwrap()
    }

    /// Open descriptors.
    pub fn num_fds(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }

    pub fn num_threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.pid()))
            .unwrap()
            .count()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal(Signal::TERM);
            until(DEADLINE, || !matches!(self.child.try_wait(), Ok(None)));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a shell session came to.
pub struct Session {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Session {
    /// Runs `script` with bash in `dir`; `vbus` is `alacrity vbus` for the daemon at `socket`.
    pub fn run(script: &str, dir: &Path, socket: &Path) -> Self {
        let output = Self::command(script, dir, socket).output().unwrap();
        Session {
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The same as a command.
    pub fn command(script: &str, dir: &Path, socket: &Path) -> Command {
        let prelude = "vbus() { \"$ALACRITY\" vbus --socket \"$SOCKET\" \"$@\"; }\n";
        let mut command = Command::new("bash");
        command
            .args(["-c", &format!("{prelude}{script}")])
            .current_dir(dir)
            .env("ALACRITY", ALACRITY)
            .env("SOCKET", socket)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        command
    }

    /// Its standard output, if all went well.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.status, Some(0), "{}{}", self.stdout, self.stderr);
        assert_eq!(self.stderr, "");
        self.stdout
    }

    /// Its standard error, if it went wrong as it should.
    #[track_caller]
    pub fn err(self) -> String {
        assert_eq!(self.status, Some(1), "{}{}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "");
        self.stderr
    }
}
