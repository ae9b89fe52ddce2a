//! What is said on a control socket: one line of JSON each way, then the VM hangs up.
//!
//! ```text
//! {"version":1,"request":"stat"}
//! {"version":1,"request":{"reclaim":{"bytes":536870912}}}
//!
//! {"version":1,"answer":{"reclaimed":{"released_bytes":…,"dropped_bytes":…,"swapped_bytes":…,"took_us":…}}}
//! {"version":1,"answer":{"refused":"reclaim_disabled"}}
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::reclaim::census::MemoryMap;
use crate::reclaim::policy::Reclaimed;

/// Version of requests and answers, raised when one changes its meaning.
pub const VERSION: u32 = 1;
/// Longest request in bytes, the end of the line included.
pub const MAX_REQUEST_BYTES: usize = 4 << 10;
/// Longest answer in bytes, the end of the line included.
pub const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Most cells of a map of memory: an answer is not longer.
pub const MAX_CELLS: u64 = 128 * 128;

/// What may be asked of a running VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// What there is to say about it now.
    Stat,
    /// Give memory back to the host.
    Reclaim {
        /// How much.
        bytes: u64,
    },
    /// Take no more memory of the host than that from now on.
    Target {
        /// How much; `None`: what it likes.
        bytes: Option<u64>,
    },
    /// What its memory is.
    MemoryMap {
        /// In how many cells at most, up to [`MAX_CELLS`].
        most_cells: u64,
    },
}

/// What a VM says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::Stat`].
    Stat(Box<VmStat>),
    /// To [`Request::Reclaim`], also if it was less than wanted.
    Reclaimed(Reclaimed),
    /// To [`Request::Target`]: what it aims at now.
    Target {
        /// How much, if anything.
        bytes: Option<u64>,
    },
    /// To [`Request::MemoryMap`].
    MemoryMap(MemoryMap),
    /// To anything.
    Refused(Refusal),
}

/// Why a VM does not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// It does not speak the version of the request.
    #[error(
        "it speaks version {spoken} of the control protocol only; use the alacrity that runs it"
    )]
    Version {
        /// The one it speaks.
        spoken: u32,
    },
    /// The request makes no sense.
    #[error("it does not understand the request: {reason}")]
    BadRequest {
        /// What is wrong.
        reason: String,
    },
    /// There is no way to bring memory back.
    #[error(
        "it runs without --hints and --swap, so its memory cannot be taken; start it with one of them"
    )]
    ReclaimDisabled,
    /// Somebody else's reclaim is under way.
    #[error("it is reclaiming memory already; try again when that is done")]
    Busy,
    /// The host failed. Nothing that was taken is lost.
    #[error("it cannot reclaim memory: {reason}")]
    ReclaimFailed {
        /// How.
        reason: String,
    },
}

/// How far a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// No vCPU has entered the guest.
    Starting,
    /// The guest runs.
    Running,
    /// It ends.
    Ending,
}

/// A VM now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmStat {
    /// Its process.
    pub pid: u32,
    /// What its user calls it.
    pub name: Option<String>,
    /// The kernel's file.
    pub kernel: PathBuf,
    /// Its vCPUs.
    pub cpus: u32,
    /// How far it is.
    pub state: VmState,
    /// Since the program started, in µs.
    pub uptime_us: u64,
    /// RAM that the guest has.
    pub memory_bytes: u64,
    /// RAM of the guest that takes memory of the host.
    pub resident_bytes: u64,
    /// What it shall take of the host at most, if anything says so.
    #[serde(default)]
    pub target_bytes: Option<u64>,
    /// Pages of the guest, if some may be taken.
    pub pages: Option<PageCounts>,
    /// What `--metrics` writes.
    pub metrics: Value,
}

/// Pages of a guest, of 4,096 bytes, by state: see `reclaim::word::PageState`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageCounts {
    /// Take no memory because they are zeros, or were never looked at.
    pub untracked: u64,
    /// In memory, and nowhere else.
    pub resident: u64,
    /// In memory for a transfer that is under way.
    pub pinned: u64,
    /// In memory, and the same on a disk.
    pub proved: u64,
    /// On a disk only.
    pub dropped: u64,
    /// In the swap file only.
    pub swapped: u64,
    /// In memory, and never taken.
    pub kept: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestLine {
    version: u32,
    request: Request,
}

#[derive(Serialize, Deserialize)]
struct AnswerLine {
    version: u32,
    answer: Answer,
}

/// What lines of all versions have.
#[derive(Deserialize)]
struct AnyLine {
    version: u32,
}

/// Why a line is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Of another version.
    #[error("it answers in version {found} of the control protocol; use the alacrity that runs it")]
    Version {
        /// The version.
        found: u32,
    },
    /// Something else.
    #[error("its answer makes no sense")]
    Nonsense(#[source] serde_json::Error),
}

impl Request {
    /// The line that asks for it.
    ///
    /// # Errors
    /// None that a request can have.
    pub fn to_line(&self) -> serde_json::Result<String> {
        let request = self.clone();
        serde_json::to_string(&RequestLine {
            version: VERSION,
            request,
        })
        .map(|line| line + "\n")
    }

    /// What `line` asks for.
    ///
    /// # Errors
    /// [`Refusal::BadRequest`], [`Refusal::Version`].
    pub fn from_line(line: &[u8]) -> Result<Self, Refusal> {
        let bad = |error: serde_json::Error| Refusal::BadRequest {
            reason: error.to_string(),
        };
        let AnyLine { version } = serde_json::from_slice(line).map_err(bad)?;
        if version != VERSION {
            return Err(Refusal::Version { spoken: VERSION });
        }
        let line: RequestLine = serde_json::from_slice(line).map_err(bad)?;
        Ok(line.request)
    }
}

impl Answer {
    /// The line that says it.
    ///
    /// # Errors
    /// None that an answer can have.
    pub fn into_line(self) -> serde_json::Result<String> {
        let line = AnswerLine {
            version: VERSION,
            answer: self,
        };
        serde_json::to_string(&line).map(|line| line + "\n")
    }

    /// What `line` says.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn from_line(line: &[u8]) -> Result<Self, AnswerError> {
        let AnyLine { version } = serde_json::from_slice(line).map_err(AnswerError::Nonsense)?;
        if version != VERSION {
            return Err(AnswerError::Version { found: version });
        }
        let line: AnswerLine = serde_json::from_slice(line).map_err(AnswerError::Nonsense)?;
        Ok(line.answer)
    }
}
