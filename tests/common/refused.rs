//! Runs that are refused: in a directory of their own, with the form of a refusal checked.

use std::fs;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use super::ALACRITY;

/// A directory to run in, with a file that passes for a kernel until it is parsed.
pub struct Place {
    pub dir: TempDir,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The head of a bzImage: enough to be recognised, and nothing behind it.
        let mut head = vec![0; 1024];
        head[0x1f1] = 1; // sectors of setup code behind the first
        head[0x202..0x206].copy_from_slice(b"HdrS");
        head[0x236] = 1;
        fs::write(dir.path().join("kernel"), head).unwrap();
        Self { dir }
    }

    pub fn file(self, name: &str, content: &str) -> Self {
        fs::write(self.dir.path().join(name), content).unwrap();
        self
    }

    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("ALACRITY_GUEST_DIR", self.dir.path().join("no-image"))
            .stdin(Stdio::null());
        command
    }

    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Runs `alacrity run ARGS`, which must be refused; returns what it says.
    pub fn refused(&self, args: &[&str]) -> String {
        let before = self.names();
        let output = self
            .command(ALACRITY, &[&["run"], args].concat())
            .output()
            .unwrap();
        assert_eq!(self.names(), before, "it left something behind");
        refusal(&output)
    }
}

/// Checks the form of a refusal: status 2, nothing on stdout, one or two lines on stderr.
pub fn refusal(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty());
    assert!((1..=2).contains(&stderr.lines().count()), "{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    stderr
}
