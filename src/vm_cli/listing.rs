//! How VMs look: as a table, as a page of counters, as JSON.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::control_socket::client::Found;
use crate::control_socket::{PageCounts, VmStat, VmState};
use crate::reclaim::policy::Reclaimed;
use crate::reclaim::ram::PAGE_BYTES;

/// State of a VM that does not answer.
const SILENT: &str = "silent";

/// The table of `ps`.
pub fn table(found: &[Found]) -> String {
    let mut rows = vec![
        [
            "PID", "NAME", "CPUS", "MEMORY", "RESIDENT", "UPTIME", "STATE",
        ]
        .map(str::to_owned),
    ];
    rows.extend(found.iter().map(row));
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let [pid, name, cpus, memory, resident, uptime, _] = widths;
    let mut text = String::new();
    for [a, b, c, d, e, f, g] in &rows {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{a:>pid$}  {b:<name$}  {c:>cpus$}  {d:>memory$}  {e:>resident$}  {f:<uptime$}  {g}"
        );
    }
    text
}

fn row(vm: &Found) -> [String; 7] {
    let pid = vm.pid.to_string();
    match &vm.stat {
        Ok(stat) => [
            pid,
            label(stat),
            stat.cpus.to_string(),
            mib(stat.memory_bytes),
            mib(stat.resident_bytes),
            uptime(stat),
            state(stat.state).into(),
        ],
        Err(_) => {
            let unknown = || "-".to_owned();
            let [b, c, d, e, f] = [(); 5].map(|()| unknown());
            [pid, b, c, d, e, f, SILENT.into()]
        }
    }
}

/// The entry of `ps --json`.
pub fn entry(vm: &Found) -> Value {
    let stat = vm.stat.as_ref().ok();
    match stat.and_then(|stat| serde_json::to_value(stat).ok()) {
        Some(Value::Object(mut entry)) => {
            // `stat` is for these.
            entry.remove("metrics");
            entry.remove("pages");
            entry.into()
        }
        _ => json!({"pid": vm.pid, "state": SILENT}),
    }
}

/// VMs in a sentence.
pub fn names(found: &[Found]) -> String {
    let names: Vec<_> = found
        .iter()
        .map(|vm| match &vm.stat {
            Ok(stat) => format!("{} {}", vm.pid, label(stat)),
            Err(_) => format!("{} {SILENT}", vm.pid),
        })
        .collect();
    format!("{} VMs ({})", names.len(), names.join(", "))
}

/// The page of `stat`.
pub fn page(stat: &VmStat) -> String {
    let mut lines: Vec<(String, String)> = vec![
        ("vm".into(), format!("{} {}", stat.pid, label(stat))),
        (
            "state".into(),
            format!("{} for {}", state(stat.state), uptime(stat)),
        ),
        ("kernel".into(), stat.kernel.display().to_string()),
        ("cpus".into(), stat.cpus.to_string()),
        ("memory".into(), mib(stat.memory_bytes)),
        ("resident".into(), mib(stat.resident_bytes)),
    ];
    if let Some(bytes) = stat.target_bytes {
        lines.push(("target".into(), mib(bytes)));
    }
    if let Some(pages) = &stat.pages {
        lines.push((String::new(), String::new()));
        lines.extend(page_lines(pages));
    }
    let mut counters = Vec::new();
    collect(&mut counters, "", &stat.metrics);
    counters.retain(|(name, _)| name != "version");
    if !counters.is_empty() {
        lines.push((String::new(), String::new()));
        lines.extend(counters);
    }
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in lines {
        let line = format!("{name:<width$}  {value}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn page_lines(pages: &PageCounts) -> impl Iterator<Item = (String, String)> {
    let PageCounts {
        untracked,
        resident,
        pinned,
        proved,
        dropped,
        swapped,
        kept,
    } = *pages;
    let counts = [
        ("untracked", untracked),
        ("resident", resident),
        ("pinned", pinned),
        ("proved", proved),
        ("dropped", dropped),
        ("swapped", swapped),
        ("kept", kept),
    ];
    counts.into_iter().map(|(name, count)| {
        let bytes = mib(count.saturating_mul(PAGE_BYTES as u64));
        (format!("pages.{name}"), format!("{count} ({bytes})"))
    })
}

/// Adds the leaves of `value` that are neither null nor 0.
fn collect(counters: &mut Vec<(String, String)>, name: &str, value: &Value) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                let name = if name.is_empty() {
                    key.clone()
                } else {
                    format!("{name}.{key}")
                };
                collect(counters, &name, value);
            }
        }
        Value::Array(items) => {
            for (idx, value) in items.iter().enumerate() {
                collect(counters, &format!("{name}.{idx}"), value);
            }
        }
        Value::Null => (),
        Value::Number(number) if number.as_u64() == Some(0) => (),
        other => counters.push((name.into(), other.to_string())),
    }
}

/// The line of `reclaim`.
pub fn reclaimed(wanted_bytes: u64, reclaimed: &Reclaimed) -> String {
    let total = reclaimed.total_bytes();
    let less = match total < wanted_bytes {
        true => format!(", less than the {} that were wanted", mib(wanted_bytes)),
        false => String::new(),
    };
    format!(
        "{} reclaimed in {:.3} s ({} released by the guest, {} dropped, {} swapped){less}\n",
        mib(total),
        reclaimed.took.as_secs_f64(),
        mib(reclaimed.released_bytes),
        mib(reclaimed.dropped_bytes),
        mib(reclaimed.swapped_bytes),
    )
}

/// One line of JSON.
pub fn json_line(value: &impl Serialize) -> String {
    // Strings, numbers and lists of them always have a form as JSON.
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

fn state(state: VmState) -> &'static str {
    match state {
        VmState::Starting => "starting",
        VmState::Running => "running",
        VmState::Ending => "ending",
    }
}

/// The name, or else the kernel in brackets.
fn label(stat: &VmStat) -> String {
    match (&stat.name, stat.kernel.file_name()) {
        (Some(name), _) => name.clone(),
        (None, Some(kernel)) => format!("[{}]", kernel.display()),
        (None, None) => "-".into(),
    }
}

fn uptime(stat: &VmStat) -> String {
    let seconds = Duration::from_micros(stat.uptime_us).as_secs();
    // One word, for those who split lines into columns.
    humantime::format_duration(Duration::from_secs(seconds))
        .to_string()
        .replace(' ', "")
}

/// Whole MiB, a part of one counting as one if there is nothing else.
fn mib(bytes: u64) -> String {
    match bytes >> 20 {
        0 if bytes == 0 => "0".into(),
        0 => format!("{}K", bytes.div_ceil(1 << 10)),
        mib => format!("{mib}M"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_socket::client::AskError;

    fn stat(name: Option<&str>) -> Box<VmStat> {
        Box::new(VmStat {
            pid: 4711,
            name: name.map(str::to_owned),
            kernel: "/boot/vmlinux-6.12".into(),
            cpus: 2,
            state: VmState::Running,
            uptime_us: 3_723_999_999,
            memory_bytes: 512 << 20,
            resident_bytes: 181 << 20,
            target_bytes: None,
            pages: None,
            metrics: json!({
                "version": 1,
                "timeline": {"first_run_us": 12, "end_us": null},
                "devices": {"net0": {"rx_bytes": 7, "tx_bytes": 0, "queues": [{"doorbells": 3}]}},
            }),
        })
    }

    fn found() -> Vec<Found> {
        let vm = |pid, stat| Found { pid, stat };
        vec![
            vm(12, Err(AskError::Silent)),
            vm(4711, Ok(stat(Some("a-longer-name")))),
            vm(4712, Ok(stat(None))),
        ]
    }

    #[test]
    fn table_has_a_line_for_each_vm_under_its_heading() {
        assert_eq!(
            table(&found()),
            "\x20PID  NAME            CPUS  MEMORY  RESIDENT  UPTIME  STATE
  12  -                  -       -         -  -       silent
4711  a-longer-name      2    512M      181M  1h2m3s  running
4712  [vmlinux-6.12]     2    512M      181M  1h2m3s  running
"
        );
    }

    #[test]
    fn entries_have_no_counters_and_silent_ones_only_their_process() {
        let entries: Vec<_> = found().iter().map(entry).collect();

        assert_eq!(entries[0], json!({"pid": 12, "state": "silent"}));
        assert_eq!(
            entries[1],
            json!({
                "pid": 4711,
                "name": "a-longer-name",
                "kernel": "/boot/vmlinux-6.12",
                "cpus": 2,
                "state": "running",
                "uptime_us": 3_723_999_999_u64,
                "memory_bytes": 512 << 20,
                "resident_bytes": 181 << 20,
                "target_bytes": null,
            })
        );
    }

    #[test]
    fn page_leaves_out_counters_of_nothing() {
        let mut stat = stat(Some("web"));
        stat.pages = Some(PageCounts {
            swapped: 512,
            ..PageCounts::default()
        });

        let page = page(&stat);

        let words: Vec<Vec<_>> = page
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        for line in [
            &["vm", "4711", "web"][..],
            &["state", "running", "for", "1h2m3s"],
            &["resident", "181M"],
            &["pages.swapped", "512", "(2M)"],
            &["pages.dropped", "0", "(0)"],
            &["timeline.first_run_us", "12"],
            &["devices.net0.rx_bytes", "7"],
            &["devices.net0.queues.0.doorbells", "3"],
        ] {
            assert!(
                words.iter().any(|words| words == line),
                "{line:?} in {page}"
            );
        }
        for name in ["version", "end_us", "tx_bytes"] {
            assert!(!page.contains(name), "{page}");
        }
    }

    #[test]
    fn reclaim_tells_how_much_of_what() {
        let taken = Reclaimed {
            released_bytes: 10 << 20,
            dropped_bytes: 20 << 20,
            swapped_bytes: 6 << 10,
            took: Duration::from_millis(1500),
        };

        assert_eq!(
            reclaimed(30 << 20, &taken),
            "30M reclaimed in 1.500 s (10M released by the guest, 20M dropped, 6K swapped)\n"
        );
        let less = reclaimed(64 << 20, &taken);
        assert!(
            less.ends_with(", less than the 64M that were wanted\n"),
            "{less}"
        );
    }
}
