//! `ip` of iproute2: interfaces, bridges and addresses of the network namespace that the calling thread is in.

use std::io;
use std::process::Command;

/// Why `ip` did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum IpError {
    /// It does not run.
    #[error("cannot run `ip`; install iproute2")]
    Run {
        /// Why.
        source: io::Error,
    },
    /// It refused.
    #[error("`ip {arguments}` failed: {said}")]
    Refused {
        /// What it was to do.
        arguments: String,
        /// What it said.
        said: String,
    },
}

/// Runs `ip` with these arguments.
///
/// # Errors
/// [`IpError`].
pub fn ip(arguments: &str) -> Result<(), IpError> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .map_err(|source| IpError::Run { source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(IpError::Refused {
        arguments: arguments.to_owned(),
        said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
