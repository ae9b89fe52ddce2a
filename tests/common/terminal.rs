//! A terminal for a program that wants to talk to a person.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::tcgetattr;

use super::output::Output;

/// Both ends of a pseudo-terminal.
#[derive(Debug)]
pub struct Terminal {
    ours: File,
    theirs: OwnedFd,
}

impl Terminal {
    pub fn new() -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let theirs = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        Terminal {
            ours: File::from(ours),
            theirs,
        }
    }

    /// Makes this the standard input and output of `command`.
    pub fn connect(&self, command: &mut Command) {
        command
            .stdin(Stdio::from(self.theirs.try_clone().unwrap()))
            .stdout(Stdio::from(self.theirs.try_clone().unwrap()));
    }

    /// What appears on the screen. Call it once.
    pub fn screen(&self) -> Output {
        Output::collect(self.ours.try_clone().unwrap())
    }

    /// Takes what a person types.
    pub fn keyboard(&self) -> Box<dyn Write> {
        Box::new(self.ours.try_clone().unwrap())
    }

    /// All settings of the terminal, for comparison.
    pub fn settings(&self) -> io::Result<String> {
        Ok(format!("{:?}", tcgetattr(&self.theirs)?))
    }
}
