//! What a program gives up once it has what it needs, so that whoever takes over one of its threads gets
//! little further: defence in depth behind code that a guest should not break in the first place.
//!
//! | layer | what is left | where |
//! |---|---|---|
//! | system calls | what the thread's class needs (seccomp) | [`syscalls`], [`filter`] |
//! | files | those that stay in use (Landlock) | [`files`] |
//! | privileges | capabilities that stay in use, no way to get others | [`privileges`] |
//!
//! Each thread confines itself at its start, before anything else ([`vbus::threads`]); the main thread when
//! all is set up. So what is opened, made and mapped in between needs no exception.
//!
//! A refused system call ends the program with a message and [`ExitStatus::HostError`]; see [`violation`].

pub mod files;
pub mod filter;
pub mod privileges;
pub mod syscalls;
pub mod violation;

use std::io;

use landlock::RulesetCreated;
use rustix::io::Errno;
use rustix::thread::set_no_new_privs;
use seccompiler::apply_filter;
use serde::{Deserialize, Serialize};
use vbus::threads::{self, ThreadClass};

use crate::cli::SandboxMode;
use crate::exit::ExitStatus;
use crate::user::UserIds;
pub use files::Paths;
pub use privileges::Kept;

/// Whether a program is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// No.
    Off,
    /// What would be refused is in the kernel's log; nothing is.
    Log,
    /// Yes.
    #[default]
    On,
}

impl From<SandboxMode> for Mode {
    fn from(mode: SandboxMode) -> Self {
        match mode {
            SandboxMode::Off => Mode::Off,
            SandboxMode::Log => Mode::Log,
            SandboxMode::On => Mode::On,
        }
    }
}

/// Why a program is not confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// No file rules.
    #[error("cannot make rules for files")]
    Files {
        /// What the kernel said.
        #[from]
        source: landlock::RulesetError,
    },
    /// No handler or thread.
    #[error("cannot set up")]
    Host {
        /// What the kernel said.
        #[from]
        source: io::Error,
    },
    /// No filter.
    #[error("cannot filter the system calls of {class} threads")]
    Filter {
        /// Of which threads.
        class: ThreadClass,
        /// What the kernel said.
        source: seccompiler::Error,
    },
    /// It stays who it is.
    #[error("cannot become user {user}")]
    User {
        /// Whom it should become.
        user: UserIds,
        /// What the kernel said.
        source: Errno,
    },
    /// Capabilities stay.
    #[error("cannot give up capabilities")]
    Privileges {
        /// What the kernel said.
        source: Errno,
    },
}

/// Confines each thread that is started from now on; of files it leaves `paths`, of capabilities `kept`.
/// They run as `user`, if there is one, whatever `mode` says. The calling thread goes on as it is until
/// [`enter`].
///
/// # Errors
/// [`SandboxError`]; then nothing is confined.
pub fn start(
    mode: Mode,
    paths: &Paths,
    kept: Kept,
    user: Option<UserIds>,
) -> Result<(), SandboxError> {
    if mode == Mode::Off && user.is_none() {
        return Ok(());
    }
    // Landlock has no mode that only tells.
    let rules = match mode {
        Mode::On => Some(paths.rules()?),
        Mode::Off | Mode::Log => None,
    };
    if mode != Mode::Off {
        violation::handle()?;
    }
    let entry = move |class: ThreadClass| {
        let become_user = || match user {
            // The others are made by the factory, and so as that user.
            Some(user) if !class.is_made() => {
                privileges::become_user(user).map_err(|source| SandboxError::User { user, source })
            }
            _ => Ok(()),
        };
        let confine = || match mode {
            Mode::Off => Ok(()),
            Mode::Log | Mode::On => confine_thread(class, mode, rules.as_ref(), kept),
        };
        if let Err(error) = become_user().and_then(|()| confine()) {
            // A thread that is not confined must not run, and nobody waits for an answer here.
            tracing::error!("sandbox: {}", alacrity_devices::error::chain(&error));
            std::process::exit(ExitStatus::HostError.code().into());
        }
    };
    threads::confine(Box::new(entry))?;
    Ok(())
}

/// Confines the calling thread, if [`start`] was called.
pub fn enter(class: ThreadClass) {
    threads::enter(class);
}

fn confine_thread(
    class: ThreadClass,
    mode: Mode,
    rules: Option<&RulesetCreated>,
    kept: Kept,
) -> Result<(), SandboxError> {
    violation::set_class(class);
    let refused = |source| SandboxError::Privileges { source };
    // The others have the rules of the factory, which made them, and what any of them keeps.
    if !class.is_made() {
        set_no_new_privs(true).map_err(refused)?;
    }
    if mode == Mode::On {
        privileges::reduce_to(privileges::of(class, kept)).map_err(refused)?;
    }
    if !class.is_made()
        && let Some(rules) = rules
    {
        rules.try_clone()?.restrict_self()?;
    }
    let source = match filter::of(class, mode) {
        Ok(program) => apply_filter(&program),
        Err(source) => Err(source.into()),
    };
    source.map_err(|source| SandboxError::Filter { class, source })
}
