//! `alacrity check`: can this host run Linux guests, and if not, what to do?
//!
//! | module | what lives there |
//! |---|---|
//! | [`kvm`] | opening `/dev/kvm`, its version and capabilities |
//! | [`probe`] | a tiny guest that measures the speed of guest kernel mode |
//! | [`host`] | everything else: TUN, memfd, io_uring, … |
//!
//! `main` prints the [`Report`]; `run` uses [`kvm`] and [`probe`] to refuse before it starts.

pub mod host;
pub mod kvm;
pub mod probe;

use std::fmt;

use serde::Serialize;

pub use probe::{ProbeError, Speed, guest_kernel_mode_speed};

/// State of one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Not there.
    Missing,
    /// There, but not for this user.
    Denied,
    /// There, but too slow to be of use.
    Slow,
    /// There, but it does not work.
    Broken,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Missing => "missing",
            Self::Denied => "denied",
            Self::Slow => "slow",
            Self::Broken => "broken",
        })
    }
}

/// One line of the report. The JSON shape is a public interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Stable name for programs.
    pub id: &'static str,
    /// Name for people.
    pub name: &'static str,
    /// What we found.
    pub state: State,
    /// More about it.
    pub detail: String,
    /// What to do; `None` if nothing need be done.
    pub remedy: Option<String>,
    /// Without it, no Linux guest runs.
    pub required: bool,
}

/// What [`report`] found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// All required items are in order.
    pub can_run_linux: bool,
    /// In the order in which they are printed.
    pub items: Vec<Item>,
}

/// Name and weight of an item, before its state is known.
#[derive(Debug, Clone, Copy)]
struct Topic {
    id: &'static str,
    name: &'static str,
    required: bool,
}

impl Topic {
    const fn required(id: &'static str, name: &'static str) -> Self {
        Self {
            id,
            name,
            required: true,
        }
    }

    const fn optional(id: &'static str, name: &'static str) -> Self {
        Self {
            id,
            name,
            required: false,
        }
    }

    fn ok(self, detail: impl Into<String>) -> Item {
        Item {
            id: self.id,
            name: self.name,
            state: State::Ok,
            detail: detail.into(),
            remedy: None,
            required: self.required,
        }
    }

    fn not_ok(self, state: State, detail: impl Into<String>, remedy: impl Into<String>) -> Item {
        Item {
            state,
            remedy: Some(remedy.into()),
            ..self.ok(detail)
        }
    }
}

/// Looks at the host. Takes a few milliseconds, at most [`probe::DEADLINE`] and a little more.
pub fn report() -> Report {
    let mut items = vec![
        kvm::device(),
        host::cpu_virtualization(),
        kvm::capabilities(),
    ];
    items.push(probe::item());
    items.extend([
        host::memfd(),
        host::tun(),
        host::io_uring(),
        host::userfaultfd(),
        host::cgroup(),
        host::memory_pressure(),
        host::fuse(),
        host::transparent_huge_pages(),
        host::huge_pages(),
        host::vhost_net(),
        host::passt(),
        host::guest_image(),
    ]);
    Report::of(items)
}

impl Report {
    fn of(items: Vec<Item>) -> Self {
        Self {
            can_run_linux: items
                .iter()
                .all(|item| item.state == State::Ok || !item.required),
            items,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for item in &self.items {
            let weight = match (item.state, item.required) {
                (State::Ok, _) => "",
                (_, true) => " (required)",
                (_, false) => " (optional)",
            };
            writeln!(
                f,
                "{:<8} {:<24} {}{weight}",
                item.state, item.name, item.detail
            )?;
            if let Some(remedy) = &item.remedy {
                writeln!(f, "{:<8} remedy: {remedy}", "")?;
            }
        }
        let blockers: Vec<_> = self
            .items
            .iter()
            .filter(|item| item.required && item.state != State::Ok)
            .map(|item| item.name)
            .collect();
        match blockers.is_empty() {
            true => writeln!(f, "\nLinux guests can run here."),
            false => writeln!(
                f,
                "\nLinux guests cannot run here directly, because of: {}. \
                 `scripts/lab -- COMMAND` runs COMMAND where they can.",
                blockers.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUIRED: Topic = Topic::required("a", "thing a");
    const OPTIONAL: Topic = Topic::optional("b", "thing b");

    #[test]
    fn only_required_items_decide() {
        let missing = |topic: Topic| topic.not_ok(State::Missing, "gone", "get it");

        assert!(Report::of(vec![REQUIRED.ok(""), missing(OPTIONAL)]).can_run_linux);
        assert!(!Report::of(vec![missing(REQUIRED), OPTIONAL.ok("")]).can_run_linux);
    }

    #[test]
    fn text_names_state_detail_remedy_and_verdict() {
        let report = Report::of(vec![
            REQUIRED.not_ok(State::Slow, "9 ns", "buy a faster one"),
            OPTIONAL.ok("fine"),
        ]);

        let text = report.to_string();

        assert!(
            text.starts_with("slow     thing a                  9 ns (required)\n"),
            "{text}"
        );
        assert!(
            text.contains("remedy: buy a faster one\nok       thing b"),
            "{text}"
        );
        assert!(
            text.contains("cannot run here directly, because of: thing a."),
            "{text}"
        );
    }

    #[test]
    fn json_shape_is_stable() {
        let report = Report::of(vec![REQUIRED.not_ok(State::Slow, "9 ns", "wait")]);

        assert_eq!(
            serde_json::to_value(&report).unwrap(),
            serde_json::json!({
                "can_run_linux": false,
                "items": [{
                    "id": "a",
                    "name": "thing a",
                    "state": "slow",
                    "detail": "9 ns",
                    "remedy": "wait",
                    "required": true,
                }],
            })
        );
    }
}
