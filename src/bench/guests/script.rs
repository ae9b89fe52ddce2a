//! What guests run, and what they say.
//!
//! A guest goes through phases. Before and after each it prints its own counters, and the host notes its
//! own when it reads that; what the programs said comes after, and then `done`. Nothing in a guest is
//! silent for longer than a phase with its timeout, so one that is has stood still.

use std::fmt::Write as _;

use super::peer::Subject;

/// Port of `traffic rr-serve`.
pub const RR_PORT: u16 = 7000;
/// Port of `traffic udp-count`.
pub const UDP_PORT: u16 = 7001;
/// Ports of iperf3, for each way.
pub const IPERF_PORTS: [u16; 2] = [5201, 5202];
/// Payload of a datagram in a frame of 64 bytes with its checksum.
pub const SMALL: u32 = 18;
/// Seconds that a counter of datagrams counts for longer than they are sent.
pub const AFTERMATH: u64 = 1;
/// Seconds after which a program of a phase is ended: iperf3 may hang when a packet of its end is lost.
const GRACE: u64 = 8;

/// Who sends datagrams, and who counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datagrams {
    /// None are sent.
    None,
    /// The guest sends, the other end counts.
    Out,
    /// The host sends, the guest counts.
    In,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    /// Its case, without prefix.
    pub case: &'static str,
    /// The point, where there are several.
    pub x: Option<u32>,
    /// What the guest runs.
    pub command: String,
    /// What happens at the other end.
    pub datagrams: Datagrams,
    /// Whose it is, if interfaces take turns: driver of the interface, and subject.
    pub turn: Option<(&'static str, Subject)>,
}

/// The cases of a guest and its other end at `to`, for `seconds` each, of which `is_wanted`.
pub fn phases(to: &str, seconds: u64, is_wanted: impl Fn(&str) -> bool) -> Vec<Phase> {
    let [there, back] = IPERF_PORTS;
    let iperf = |more: &str| format!("iperf3 -i 0 -f m -t {seconds} -c {to} {more}");
    let mut phases = Vec::new();
    let mut add = |case: &'static str, x, command: String, datagrams| {
        if is_wanted(case) {
            phases.push(Phase {
                case,
                x,
                command,
                datagrams,
                turn: None,
            });
        }
    };
    let none = Datagrams::None;
    add(
        "rr",
        None,
        format!("traffic rr {to} {RR_PORT} {seconds}"),
        none,
    );
    add("out", None, iperf(&format!("-p {there}")), none);
    add("in", None, iperf(&format!("-p {back} -R")), none);
    add("udp-out", None, send(to, SMALL, seconds), Datagrams::Out);
    let count = format!("traffic udp-count {UDP_PORT} {}", seconds + AFTERMATH);
    add("udp-in", None, count, Datagrams::In);
    for percent in [10, 50, 100] {
        let rate = format!("-p {there} -b $((${{mbit:-100}} * {percent} / 100 + 1))M");
        add("load", Some(percent), iperf(&rate), none);
    }
    phases
}

/// The cases of `phases` that the sizes of what is sent are varied in.
pub fn sizes(to: &str, seconds: u64) -> Vec<Phase> {
    let datagrams = [18, 64, 256, 1024, 1472, 4096, 16384, 65507];
    let writes = [64, 512, 4096, 16384, 65536, 131_072];
    let phase = |case, size, command, datagrams| Phase {
        case,
        x: Some(size),
        command,
        datagrams,
        turn: None,
    };
    let udp = datagrams.map(|size| {
        let command = send(to, size, seconds);
        phase("size-udp-out", size, command, Datagrams::Out)
    });
    let tcp = writes.map(|size| {
        let command = format!(
            "iperf3 -i 0 -f m -t {seconds} -c {to} -p {} -l {size}",
            IPERF_PORTS[0]
        );
        phase("size-out", size, command, Datagrams::None)
    });
    udp.into_iter().chain(tcp).collect()
}

/// Sends datagrams of `size` to `to`.
pub fn send(to: &str, size: u32, seconds: u64) -> String {
    format!("traffic udp-send {to} {UDP_PORT} {size} {seconds}")
}

/// How long the phases take, in seconds.
pub fn duration(phases: &[Phase], seconds: u64) -> f64 {
    let each = |phase: &Phase| match phase.datagrams {
        Datagrams::None => 1.2,
        _ => 3.0,
    };
    #[expect(clippy::cast_precision_loss, reason = "an hour is 3600")]
    let seconds = seconds as f64;
    phases.iter().map(|phase| seconds + each(phase)).sum()
}

/// Finds the interface, whatever it is called, and gives it an address if it has none.
fn interface(address: &str) -> String {
    format!(
        "set -- $(ls /sys/class/net | grep -v '^lo$')\n\
         dev=$1\n\
         ip addr show dev $dev | grep -q ' {address}/' || ip addr add {address}/24 dev $dev\n\
         ip link set $dev up\n"
    )
}

const FUNCTIONS: &str = r#"counters() {
	awk -v mark="$1" -v dev=$dev: '$1 == dev { packets = $3 + $11; bytes = $2 + $10 }
		/MSI/ { for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) irqs += $i }
		END { printf "%s %.0f %.0f %.0f\n", mark, packets, irqs, bytes }' /proc/net/dev /proc/interrupts
}
begin() {
	counters "begin $1"
	sleep 0.4
}
end() {
	sleep 0.1
	counters "end $1"
	sed "s/^/said /" /tmp/said
	echo "done $1"
	sleep $2
}
reach() {
	tries=600
	until ping -q -c 1 -W 1 $1 >/dev/null 2>&1; do
		[ $((tries -= 1)) -gt 0 ] || exit 9
	done
}
turn() {
	for path in /sys/class/net/*; do
		case $(readlink "$path/device/driver") in */"$1") dev=${path##*/} ;; esac
	done
}
"#;

/// The script of a guest that goes through `phases` once it reaches all of `to`, in that order. Its
/// interface gets an address, unless it has all that it needs; it says `ready` when it reaches the first.
pub fn client(address: Option<&str>, to: &[String], phases: &[Phase], seconds: u64) -> String {
    let mut script = FUNCTIONS.to_owned();
    script += &match address {
        Some(address) => interface(address),
        None => "turn venet\n".to_owned(),
    };
    for (idx, to) in to.iter().enumerate() {
        if idx == 1 {
            script += "echo ready\n";
        }
        let _ = writeln!(script, "reach {to}");
    }
    for (idx, phase) in phases.iter().enumerate() {
        if let Some((driver, _)) = phase.turn {
            let _ = writeln!(script, "turn {driver}");
        }
        let timeout = seconds + AFTERMATH + GRACE;
        let command = phase
            .command
            .split(" & ")
            .map(|part| format!("timeout {timeout} {part}"))
            .collect::<Vec<_>>()
            .join(" & ");
        let wait = if phase.command.contains(" & ") {
            " & wait"
        } else {
            ""
        };
        // The other end counts for longer, and has to be ready for the next phase.
        let pause = match phase.datagrams {
            Datagrams::None => "0.3",
            _ => "1.5",
        };
        let _ = writeln!(
            script,
            "begin {idx}\n{{ {command}{wait}; }} >/tmp/said 2>&1"
        );
        let _ = writeln!(script, "end {idx} {pause}");
        if phase.case == "out" {
            script += "mbit=$(sed -n 's/.*sec.* \\([0-9]*\\)[0-9.]* Mbits.sec.*receiver/\\1/p' /tmp/said)\n";
        }
    }
    script + "echo finished\n"
}

/// The script of a guest with `address` that others ask.
pub fn server(address: &str, seconds: u64) -> String {
    let [there, back] = IPERF_PORTS;
    let count = seconds + AFTERMATH;
    interface(address)
        + &format!(
            "traffic rr-serve {RR_PORT} &\n\
             for port in {there} {back}; do\n\
             \x20while :; do iperf3 -s -1 -p $port >/dev/null 2>&1 || sleep 0.1; done &\n\
             done\n\
             while :; do traffic udp-count {UDP_PORT} {count} 2>/dev/null || sleep 0.1; done &\n\
             echo ready\n\
             wait\n"
        )
}

/// The same, and when all of `clients` answer, it takes the address `go`, which they wait for.
pub fn server_that_begins(address: &str, clients: &[String], go: &str, seconds: u64) -> String {
    let mut wait = "(\n".to_owned();
    for client in clients {
        let _ = writeln!(
            wait,
            "until ping -q -c 1 -W 1 {client} >/dev/null 2>&1; do :; done"
        );
    }
    let _ = writeln!(wait, "ip addr add {go}/24 dev $dev\n) &\necho ready");
    server(address, seconds).replace("echo ready\n", &wait)
}

/// What a guest counts by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Own {
    /// Packets of the interface, both directions.
    pub packets: u64,
    /// Message-signalled interrupts.
    pub irqs: u64,
    /// Bytes of the interface, both directions.
    pub bytes: u64,
}

impl Own {
    /// What was counted since `before`.
    pub fn since(&self, before: &Own) -> Own {
        Own {
            packets: self.packets.saturating_sub(before.packets),
            irqs: self.irqs.saturating_sub(before.irqs),
            bytes: self.bytes.saturating_sub(before.bytes),
        }
    }
}

/// A line of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line<'a> {
    /// Phase, and the guest's counters until now.
    Begin(usize, Own),
    /// The same after the phase.
    End(usize, Own),
    /// What a program said.
    Said(&'a str),
    /// The phase is over.
    Done(usize),
    /// The server listens.
    Ready,
    /// All phases are over.
    Finished,
    /// Anything else.
    Other,
}

impl<'a> Line<'a> {
    /// What `text` means. Guests may be in any state: what is not as it should be is [`Line::Other`].
    pub fn parse(text: &'a str) -> Self {
        let text = text.trim();
        if let Some(said) = text.strip_prefix("said ") {
            return Line::Said(said);
        }
        let (word, numbers) = text.split_once(' ').unwrap_or((text, ""));
        let numbers: Option<Vec<u64>> = match numbers {
            "" => Some(Vec::new()),
            numbers => numbers
                .split(' ')
                .map(|number| number.parse().ok())
                .collect(),
        };
        let idx = |idx: u64| usize::try_from(idx).unwrap_or(usize::MAX);
        match (word, numbers.as_deref()) {
            (mark @ ("begin" | "end"), Some(&[phase, packets, irqs, bytes])) => {
                let own = Own {
                    packets,
                    irqs,
                    bytes,
                };
                match mark {
                    "begin" => Line::Begin(idx(phase), own),
                    _ => Line::End(idx(phase), own),
                }
            }
            ("done", Some(&[phase])) => Line::Done(idx(phase)),
            ("ready", Some([])) => Line::Ready,
            ("finished", Some([])) => Line::Finished,
            _ => Line::Other,
        }
    }
}

/// What the programs of a phase said, at both ends.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Megabits per second that iperf3 received.
    pub mbit: Option<f64>,
    /// Transactions per second, and nanoseconds: median and 99th percentile.
    pub rr: Option<[f64; 3]>,
    /// Datagrams that arrived, and nanoseconds from the first to the last.
    pub received: Option<(u64, u64)>,
    /// Datagrams that were sent.
    pub sent: Option<u64>,
}

impl Facts {
    /// Adds what `line` of iperf3 or traffic says, if anything.
    pub fn add(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [.., rate, "Mbits/sec", "receiver"] => self.mbit = rate.parse().ok(),
            ["rr", per_s, p50, p99] => {
                if let (Ok(per_s), Ok(p50), Ok(p99)) = (per_s.parse(), p50.parse(), p99.parse()) {
                    self.rr = Some([per_s, p50, p99]);
                }
            }
            ["udp", received, ns] => {
                if let (Ok(received @ 1..), Ok(ns)) = (received.parse(), ns.parse()) {
                    self.received = Some((received, ns));
                }
            }
            ["sent", sent, _] => {
                let sent = sent.parse().unwrap_or(0);
                self.sent = Some(self.sent.unwrap_or(0) + sent);
            }
            _ => {}
        }
    }

    /// The values, by name.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub fn values(&self) -> Vec<(&'static str, f64)> {
        let mut values = Vec::new();
        values.extend(self.mbit.map(|mbit| ("mbit", mbit)));
        if let Some([per_s, p50, p99]) = self.rr {
            values.extend([("per_s", per_s), ("p50_ns", p50), ("p99_ns", p99)]);
        }
        if let Some((received, ns)) = self.received {
            values.push(("pps", received as f64 * 1e9 / ns as f64));
            if let Some(sent) = self.sent {
                values.push(("lost", sent.saturating_sub(received) as f64));
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_guests_are_understood() {
        let own = |packets, irqs, bytes| Own {
            packets,
            irqs,
            bytes,
        };
        assert_eq!(
            Line::parse("begin 3 100 7 9"),
            Line::Begin(3, own(100, 7, 9))
        );
        assert_eq!(Line::parse("end 0 5 6 1\r"), Line::End(0, own(5, 6, 1)));
        assert_eq!(own(5, 6, 1).since(&own(3, 7, 1)), own(2, 0, 0));
        assert_eq!(Line::parse("done 12"), Line::Done(12));
        assert_eq!(Line::parse("said rr 1 2 3"), Line::Said("rr 1 2 3"));
        assert_eq!(Line::parse("ready"), Line::Ready);
        assert_eq!(Line::parse("finished"), Line::Finished);
        for other in [
            "",
            "begin",
            "begin 1 2 3",
            "end x 1 2 3",
            "beginning 1 2 3 4",
            "done -1",
            "[ 1.0] oops",
        ] {
            assert_eq!(Line::parse(other), Line::Other, "{other}");
        }
    }

    #[test]
    fn what_programs_say_becomes_values() {
        let values = |lines: &[&str]| {
            let mut facts = Facts::default();
            lines.iter().for_each(|line| facts.add(line));
            facts.values()
        };

        assert_eq!(
            values(&[
                "[  5]   0.00-4.00   sec   610 MBytes  1279 Mbits/sec    0             sender",
                "[  5]   0.00-4.00   sec   609 MBytes  1277 Mbits/sec                  receiver",
            ]),
            [("mbit", 1277.0)]
        );
        assert_eq!(
            values(&["rr 601.5 1560000 2620000"]),
            [
                ("per_s", 601.5),
                ("p50_ns", 1_560_000.0),
                ("p99_ns", 2_620_000.0)
            ]
        );
        assert_eq!(
            values(&["sent 70 9", "sent 40 9", "udp 100 2000000000"]),
            [("pps", 50.0), ("lost", 10.0)]
        );
        assert_eq!(
            values(&["udp 0 0", "iperf3: error - unable to connect", "rr x y z"]),
            []
        );
    }

    #[test]
    fn phases_are_those_that_are_wanted() {
        let cases = |is_wanted: fn(&str) -> bool| {
            let phases = phases("10.0.0.1", 2, is_wanted);
            phases
                .iter()
                .map(|phase| (phase.case, phase.x))
                .collect::<Vec<_>>()
        };

        assert_eq!(
            cases(|case| matches!(case, "out" | "load")),
            [
                ("out", None),
                ("load", Some(10)),
                ("load", Some(50)),
                ("load", Some(100))
            ]
        );
        assert_eq!(cases(|_| true).len(), 8);
    }

    #[test]
    fn script_goes_through_all_phases() {
        let mut phases = phases("10.0.0.1", 2, |_| true);
        phases[0].command = "traffic a & traffic b".into();
        let script = client(Some("10.0.0.2"), &["10.0.0.1".into()], &phases, 2);

        assert!(
            script.contains("begin 0\n{ timeout 11 traffic a & timeout 11 traffic b & wait; }")
        );
        for idx in 0..phases.len() {
            assert!(script.contains(&format!("\nend {idx} ")), "{script}");
        }
        assert!(script.contains("reach 10.0.0.1\n"));
        assert!(script.ends_with("echo finished\n"));
    }
}
