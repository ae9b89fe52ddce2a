//! What is repeated in which order, what the guest runs for it, and what comes out for one operation.

use std::fmt::Write as _;

use super::OURS;
use crate::bench::results::Summary;

/// Batches of a turn, in which exits and instructions are counted.
const BATCHES: u32 = 16;
/// Times that a batch of each operation, and then one of each in the opposite order, is timed.
const TIMES: usize = 8;
/// Operations of a batch of what takes an exit each.
const EXITS: u32 = 200;
/// The same of what takes milliseconds.
const SLOW: u32 = 20;
/// The same of what takes a few instructions.
const FAST: u32 = 100_000;

/// Something that the module repeats.
#[derive(Debug, PartialEq, Eq)]
pub struct Operation {
    /// What the module calls it.
    pub name: &'static str,
    /// How often in a batch.
    pub num: u32,
    /// Case in the raw values; none for what is taken away from the others.
    pub case: Option<&'static str>,
}

const fn nothing(num: u32) -> Operation {
    Operation {
        name: "nothing",
        num,
        case: None,
    }
}

const fn operation(case: &'static str, name: &'static str, num: u32) -> Operation {
    Operation {
        name,
        num,
        case: Some(case),
    }
}

const CALL: Operation = operation("verb-call", "call", EXITS);
const DOORBELL: Operation = operation("doorbell", "doorbell", EXITS);

/// A pass, in order.
const PASS: [Operation; 10] = [
    nothing(EXITS),
    nothing(SLOW),
    nothing(FAST),
    CALL,
    operation("verb-call", "pio-exit", EXITS),
    operation("verb-call", "virtio-ctrl", SLOW),
    DOORBELL,
    operation("doorbell", "pio-eventfd", EXITS),
    operation("doorbell", "mmio-eventfd", EXITS),
    operation("doorbell", "suppressed", FAST),
];
/// Ours, measured once more as far away as it can be.
const CONTROLS: [Operation; 2] = [CALL, DOORBELL];

/// Batches of one operation.
#[derive(Debug)]
pub struct Turn {
    /// What is repeated.
    pub operation: Operation,
    /// Once more in this pass.
    is_again: bool,
    /// The first one of a pass.
    pub begins_pass: bool,
}

impl Turn {
    /// Whose it is, in the raw values; none for what is taken away from the others.
    pub fn peer(&self) -> Option<String> {
        self.operation.case?;
        let again = if self.is_again { "-again" } else { "" };
        Some(match self.operation.name {
            "call" | "doorbell" => format!("{OURS}{again}"),
            name => name.to_owned(),
        })
    }
}

/// The turns of a guest: a pass, and one in the opposite order. The first one also has the order of times.
pub fn of_step(has_control: bool) -> Vec<Turn> {
    let turn = |is_again| {
        move |operation| Turn {
            operation,
            is_again,
            begins_pass: false,
        }
    };
    let pass = || {
        let controls = CONTROLS.into_iter().filter(move |_| has_control);
        let controls: Vec<_> = controls.map(turn(true)).collect();
        PASS.into_iter().map(turn(false)).chain(controls)
    };
    let there: Vec<_> = pass().collect();
    let back: Vec<_> = pass().collect();
    let mut turns = Vec::new();
    for pass in [there, back.into_iter().rev().collect()] {
        let begins = (0..).map(|idx| idx == 0);
        turns.extend(begins.zip(pass).map(|(begins_pass, turn)| Turn {
            begins_pass,
            ..turn
        }));
    }
    turns
}

/// Loads the module in place of the driver of the bus's interface. The first virtio-net, which the module
/// rings, must have no driver; the second one has the control queue. Shells without `local`: names are few.
const PREPARE: &str = r#"run=/sys/module/vbus_times/parameters/run
for path in /sys/bus/pci/drivers/virtio-pci/0000:*; do
	read -r id <"$path/device"
	[ "$id" = 0x1041 ] || continue
	echo "${path##*/}" >/sys/bus/pci/drivers/virtio-pci/unbind
	break
done
rmmod venet
if ! modprobe vbus_times 2>/tmp/why; then
	read -r why </tmp/why
	echo "said $why"
	echo finished
	exit
fi
batch() {
	{ echo "$2 $3" >$run; } 2>/dev/null || return 0
	read -r ns <$run
	eval "times$1=\"\$times$1 $ns\""
}
turn() {
	left=$4
	echo "begin $1 0 0 0"
	sleep 0.4
	while [ "$left" -gt 0 ]; do
		{ echo "$2 $3" >$run; } 2>/tmp/why || break
		left=$((left - 1))
	done
	sleep 0.1
	echo "end $1 0 0 0"
	sleep 0.2
	if [ "$left" -gt 0 ]; then
		read -r why </tmp/why
		echo "said $why"
	fi
	echo "done $1"
}
"#;

/// The script of a guest that does `turns`.
pub fn script(turns: &[Turn]) -> String {
    let mut script = PREPARE.to_owned();
    let mut batches = String::new();
    let pass = turns.len() / 2;
    for (idx, turn) in turns.iter().enumerate() {
        let Operation { name, num, .. } = turn.operation;
        let place = idx.min(turns.len() - 1 - idx);
        let _ = writeln!(batches, "\tbatch {place} {name} {num}");
    }
    let _ = writeln!(
        script,
        "left={TIMES}\nwhile [ \"$left\" -gt 0 ]; do\n{batches}\tleft=$((left - 1))\ndone"
    );
    for idx in 0..pass {
        let _ = writeln!(script, "echo \"said ns {idx}$times{idx}\"");
    }
    script += "echo ready\n";
    for (idx, turn) in turns.iter().enumerate() {
        let Operation { name, num, .. } = turn.operation;
        let _ = writeln!(script, "turn {idx} {name} {num} {BATCHES}");
    }
    script + "echo finished\n"
}

/// What an operation costs, with its part of what is around it: values by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost(Vec<(&'static str, f64)>);

impl Cost {
    /// Of the turn whose times a guest told with `said`, and the number of the turn; `None` if it said
    /// anything else, or could not do all of them.
    pub fn of_times(turns: &[Turn], said: &str) -> Option<(usize, Self)> {
        let (idx, numbers) = said.strip_prefix("ns ")?.split_once(' ')?;
        let idx: usize = idx.parse().ok()?;
        let times: Vec<f64> = numbers
            .split(' ')
            .map(|ns| ns.parse().ok())
            .collect::<Option<_>>()?;
        let turn = turns.get(idx).filter(|_| times.len() == 2 * TIMES)?;
        let median = Summary::of(times).median;
        let ns = median / f64::from(turn.operation.num);
        Some((idx, Cost(vec![("ns", ns)])))
    }

    /// Of an operation of `turn`, in which that many exits, exits to the VMM and instructions were counted,
    /// where they are.
    pub fn of_turn(turn: &Turn, counts: [Option<f64>; 3]) -> Self {
        let all = f64::from(turn.operation.num) * f64::from(BATCHES);
        let names = ["exits", "user_exits", "insns"].into_iter();
        let counts = names.zip(counts);
        Cost(
            counts
                .filter_map(|(name, count)| Some((name, count? / all)))
                .collect(),
        )
    }

    /// The values for one operation beyond those of `nothing`. What costs less than that, by chance, costs
    /// nothing.
    pub fn without(&self, nothing: &Cost) -> Vec<(&'static str, f64)> {
        let beyond = |(name, cost): &(&'static str, f64)| {
            let (_, nothing) = nothing.0.iter().find(|(other, _)| other == name)?;
            Some((*name, (cost - nothing).max(0.0)))
        };
        self.0.iter().filter_map(beyond).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(turns: &[Turn]) -> Vec<String> {
        let name = |turn: &Turn| turn.peer().unwrap_or_else(|| turn.operation.name.into());
        turns.iter().map(name).collect()
    }

    #[test]
    fn passes_alternate_and_controls_are_far_away() {
        let turns = of_step(true);

        let (there, back) = turns.split_at(turns.len() / 2);
        let mut reversed = names(back);
        reversed.reverse();
        assert_eq!(names(there), reversed);
        assert_eq!(names(there)[3..6], ["vbus", "pio-exit", "virtio-ctrl"]);
        assert_eq!(names(there)[10..], ["vbus-again", "vbus-again"]);
        let begins: Vec<_> = turns.iter().map(|turn| turn.begins_pass).collect();
        let expected: Vec<_> = (0..24).map(|idx| idx == 0 || idx == 12).collect();
        assert_eq!(begins, expected);
        assert_eq!(of_step(false).len(), 20);
    }

    #[test]
    fn something_is_taken_away_from_each_operation() {
        for turn in of_step(true) {
            let is_its = |other: &Turn| {
                other.operation.case.is_none() && other.operation.num == turn.operation.num
            };
            assert!(of_step(false)[..10].iter().any(is_its), "{turn:?}");
        }
    }

    #[test]
    fn script_has_all_turns() {
        let script = script(&of_step(false));

        assert!(script.contains("\nturn 3 call 200 16\n"), "{script}");
        assert!(script.contains("\nturn 19 nothing 200 16\n"), "{script}");
        assert!(script.ends_with("echo finished\n"));
    }

    #[test]
    fn each_operation_is_timed_in_both_orders() {
        let script = script(&of_step(true));

        let batches: Vec<_> = script
            .lines()
            .filter_map(|line| line.strip_prefix("\tbatch "))
            .collect();
        assert_eq!(batches.len(), 24);
        assert_eq!(batches[3], "3 call 200");
        assert_eq!(
            batches[10..14],
            [
                "10 call 200",
                "11 doorbell 200",
                "11 doorbell 200",
                "10 call 200"
            ]
        );
        assert!(
            script.contains("\necho \"said ns 11$times11\"\necho ready\n"),
            "{script}"
        );
    }

    #[test]
    fn times_are_medians_of_all_that_were_asked_for() {
        let turns = of_step(false);
        let times = |num: usize| format!("ns 3{}", " 4000".repeat(num));

        let (idx, cost) = Cost::of_times(&turns, &times(2 * TIMES)).unwrap();

        assert_eq!((idx, cost), (3, Cost(vec![("ns", 20.0)])));
        for other in [
            &*times(3),
            "ns 3",
            "ns 99 1",
            "ns",
            "sh: write error",
            "ns 3 x",
        ] {
            assert_eq!(Cost::of_times(&turns, other), None, "{other}");
        }
    }

    #[test]
    fn cost_is_that_of_one_operation_without_what_nothing_costs() {
        let turns = of_step(false);
        let nothing = Cost::of_turn(&turns[0], [Some(60.0), None, None]);
        let call = Cost::of_turn(&turns[3], [Some(3260.0), Some(3200.0), None]);

        assert_eq!(call.without(&nothing), [("exits", 1.0)]);
        assert_eq!(nothing.without(&call), [("exits", 0.0)]);
    }
}
