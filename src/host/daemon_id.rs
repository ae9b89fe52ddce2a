//! Which daemon a mount belongs to, as the source of the mount in the mount table: that can be read
//! without asking a daemon that may have been stopped in the middle of an answer.

use std::fmt;
use std::fs;
use std::io;
use std::str::FromStr;

/// A process, told from later ones with its pid by when it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DaemonId {
    pid: u32,
    /// Clock ticks from the start of the machine.
    start_ticks: u64,
}

impl DaemonId {
    /// This process.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn own() -> io::Result<Self> {
        let pid = std::process::id();
        let (_, start_ticks) =
            state_of(pid).ok_or_else(|| io::Error::other("/proc does not tell of this process"))?;
        Ok(DaemonId { pid, start_ticks })
    }

    /// True while the process runs or is stopped, and can be seen from here.
    pub fn is_alive(&self) -> bool {
        state_of(self.pid).is_some_and(|(state, start_ticks)| {
            start_ticks == self.start_ticks && !matches!(state, 'Z' | 'X')
        })
    }
}

/// State and start of a process (`proc_pid_stat(5)`, fields 3 and 22).
fn state_of(pid: u32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let start_ticks = fields.nth(18)?.parse().ok()?;
    Some((state, start_ticks))
}

impl fmt::Display for DaemonId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "alacrity:{}:{}", self.pid, self.start_ticks)
    }
}

impl FromStr for DaemonId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let id = text.strip_prefix("alacrity:").ok_or(())?;
        let (pid, start_ticks) = id.split_once(':').ok_or(())?;
        Ok(DaemonId {
            pid: pid.parse().map_err(drop)?,
            start_ticks: start_ticks.parse().map_err(drop)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn this_process_is_alive_and_survives_text() {
        let own = DaemonId::own().unwrap();

        assert!(own.is_alive());
        assert_eq!(own.to_string().parse(), Ok(own));
        for text in ["alacrity", "alacrity:1", "alacrity:x:1", "tmpfs"] {
            assert_eq!(text.parse::<DaemonId>(), Err(()), "{text}");
        }
    }

    #[test]
    fn process_that_ended_is_not_alive_even_before_its_parent_asks() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let (_, start_ticks) = state_of(pid).unwrap();
        let id = DaemonId { pid, start_ticks };
        assert!(id.is_alive());

        child.kill().unwrap();

        while id.is_alive() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!id.is_alive());
    }

    #[test]
    fn later_process_with_the_pid_is_another() {
        let own = DaemonId::own().unwrap();
        let earlier = DaemonId {
            start_ticks: own.start_ticks - 1,
            ..own
        };

        assert!(!earlier.is_alive());
    }
}
