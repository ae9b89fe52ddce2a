//! What is done in which order, and how long it takes.
//!
//! A step is one boot of one subject (two guests, for a pair). Rounds alternate, A B C then C B A, so that
//! a machine that becomes slower or faster meanwhile is so for all. A subject that is measured `again` in
//! the same round is the control: how far it is from itself is noise.

use std::time::{Duration, Instant};

use super::peer::{Peer, Subject};

/// What kind of guests a step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// One guest and its host.
    Host,
    /// One guest with two interfaces that take turns.
    One,
    /// Two guests.
    Pair,
    /// A guest that only starts.
    Boot,
    /// A guest whose VMM is looked at after traffic.
    Memory,
    /// One guest in which a module repeats operations.
    Verbs {
        /// Measure ours once more.
        has_control: bool,
    },
    /// A point of a sweep.
    Sweep(Sweep, u32),
}

impl Group {
    /// Guests that a step starts.
    pub fn num_guests(self) -> u32 {
        match self {
            Group::Pair => 2,
            Group::Sweep(Sweep::Ports | Sweep::Guests, num) => num,
            _ => 1,
        }
    }

    /// Whether guests send and receive.
    pub fn has_traffic(self) -> bool {
        !matches!(self, Group::Boot | Group::Verbs { .. })
    }
}

/// What is varied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweep {
    /// Bytes of a datagram, and of a write to a TCP stream; all points in one guest.
    Sizes,
    /// vCPUs, and queues where the device has them.
    Queues,
    /// Interfaces of one guest.
    Venets,
    /// Guests on one switch or bridge.
    Ports,
    /// Guests, each with an interface to the host.
    Guests,
}

impl Sweep {
    /// All of them.
    pub const ALL: [Sweep; 5] = [
        Sweep::Sizes,
        Sweep::Queues,
        Sweep::Venets,
        Sweep::Ports,
        Sweep::Guests,
    ];

    /// What `--cases` calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Sweep::Sizes => "sizes",
            Sweep::Queues => "queues",
            Sweep::Venets => "venets",
            Sweep::Ports => "ports",
            Sweep::Guests => "guests",
        }
    }

    /// Name of the case in raw values.
    pub fn case(self) -> &'static str {
        match self {
            Sweep::Sizes => "size-udp-out",
            _ => self.name(),
        }
    }

    /// The points, each of which is a step.
    fn points(self) -> &'static [u32] {
        match self {
            Sweep::Sizes => &[0],
            Sweep::Queues => &[1, 2, 4, 8],
            Sweep::Venets => &[1, 2, 4, 8, 16],
            Sweep::Ports => &[2, 4, 8, 16],
            Sweep::Guests => &[1, 2, 4, 8],
        }
    }

    fn peers(self) -> &'static [Peer] {
        match self {
            Sweep::Sizes | Sweep::Queues | Sweep::Guests => &Peer::OF_SWEEP,
            Sweep::Venets => &[Peer::Venet],
            Sweep::Ports => &Peer::OF_PAIR,
        }
    }
}

/// One boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// From 1 on.
    pub round: u64,
    /// What kind of guests.
    pub group: Group,
    /// Whose.
    pub subject: Subject,
}

/// What to plan for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wishes {
    /// Rounds.
    pub rounds: u64,
    /// What ours is compared with.
    pub peers: Vec<Peer>,
    /// Measure ours once more in each round.
    pub has_control: bool,
    /// With cases of guests that are no sweeps.
    pub has_cases: bool,
    /// Sweeps, all points of each.
    pub sweeps: Vec<Sweep>,
}

/// The subjects of `candidates`, ours first, of which those are measured that are ours or wished for.
fn subjects(candidates: &[Peer], wishes: &Wishes) -> Vec<Subject> {
    let is_wanted = |peer: &&Peer| peer.is_ours() || wishes.peers.contains(peer);
    let mut subjects: Vec<_> = candidates
        .iter()
        .filter(is_wanted)
        .map(|peer| Subject::of(*peer))
        .collect();
    if let (true, Some(ours)) = (wishes.has_control, subjects.first()) {
        subjects.push(ours.again());
    }
    subjects
}

fn add_round(steps: &mut Vec<Step>, round: u64, group: Group, subjects: &[Subject]) {
    let step = |subject: &Subject| Step {
        round,
        group,
        subject: *subject,
    };
    match round % 2 {
        0 => steps.extend(subjects.iter().rev().map(step)),
        _ => steps.extend(subjects.iter().map(step)),
    }
}

/// The steps of `alacrity bench net`.
pub fn net(wishes: &Wishes) -> Vec<Step> {
    let mut steps = Vec::new();
    for round in (1..=wishes.rounds).filter(|_| wishes.has_cases) {
        add_round(
            &mut steps,
            round,
            Group::Host,
            &subjects(&Peer::OF_HOST, wishes),
        );
        if wishes.peers.contains(&Peer::Virtio) {
            add_round(&mut steps, round, Group::One, &[Subject::of(Peer::Venet)]);
        }
        if wishes.peers.contains(&Peer::Bridge) {
            add_round(
                &mut steps,
                round,
                Group::Pair,
                &subjects(&Peer::OF_PAIR, wishes),
            );
        }
    }
    let without_control = Wishes {
        has_control: false,
        ..wishes.clone()
    };
    for round in 1..=wishes.rounds {
        for sweep in wishes.sweeps.iter().copied() {
            if sweep == Sweep::Ports && !wishes.peers.contains(&Peer::Bridge) {
                continue;
            }
            let subjects = subjects(sweep.peers(), &without_control);
            for point in sweep.points() {
                add_round(&mut steps, round, Group::Sweep(sweep, *point), &subjects);
            }
        }
    }
    steps
}

/// The steps of `alacrity bench boot`. Round 0 is not recorded: it fills the caches of the host.
pub fn boot(wishes: &Wishes) -> Vec<Step> {
    let candidates = [Peer::Alacrity, Peer::Qemu, Peer::Kvmtool];
    let mut steps = Vec::new();
    if wishes.has_control {
        let without_control = Wishes {
            has_control: false,
            ..wishes.clone()
        };
        let subjects = subjects(&candidates, &without_control);
        add_round(&mut steps, 0, Group::Boot, &subjects);
    }
    steps.extend(whole(wishes, Group::Boot, &candidates));
    steps
}

/// The steps of `alacrity bench memory`.
pub fn memory(wishes: &Wishes) -> Vec<Step> {
    whole(wishes, Group::Memory, &[Peer::Alacrity, Peer::Qemu])
}

/// The steps of `alacrity bench verbs`: who is compared is in the same guest.
pub fn verbs(wishes: &Wishes) -> Vec<Step> {
    let group = Group::Verbs {
        has_control: wishes.has_control,
    };
    let step = |round| Step {
        round,
        group,
        subject: Subject::of(Peer::Venet),
    };
    (1..=wishes.rounds).map(step).collect()
}

fn whole(wishes: &Wishes, group: Group, candidates: &[Peer]) -> Vec<Step> {
    let mut steps = Vec::new();
    for round in 1..=wishes.rounds {
        add_round(&mut steps, round, group, &subjects(candidates, wishes));
    }
    steps
}

/// How far a run is.
#[derive(Debug)]
pub struct Progress {
    guesses: Vec<Duration>,
    num_done: usize,
    started: Instant,
}

impl Progress {
    /// Of steps that are guessed to take so long each.
    pub fn new(guesses: Vec<Duration>) -> Self {
        Progress {
            guesses,
            num_done: 0,
            started: Instant::now(),
        }
    }

    /// Another step is done.
    pub fn advance(&mut self) {
        self.num_done += 1;
    }

    /// Such as `step 7 of 60, 12 min left`: the guess for what is left, corrected by what was wrong with
    /// the guess for what is done.
    pub fn text(&self) -> String {
        self.text_after(self.started.elapsed())
    }

    fn text_after(&self, elapsed: Duration) -> String {
        let (done, left) = self.guesses.split_at(self.num_done.min(self.guesses.len()));
        let done = done.iter().sum::<Duration>().as_secs_f64();
        let left = left.iter().sum::<Duration>().as_secs_f64();
        let error = if done > 0.0 {
            elapsed.as_secs_f64() / done
        } else {
            1.0
        };
        let left = left * error;
        let left = match left {
            0.0..90.0 => format!("{left:.0} s"),
            _ => format!("{:.0} min", left / 60.0),
        };
        let number = (self.num_done + 1).min(self.guesses.len());
        format!("step {number} of {}, {left} left", self.guesses.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(rounds: u64, peers: &[Peer]) -> Wishes {
        Wishes {
            rounds,
            peers: peers.to_vec(),
            has_control: false,
            has_cases: true,
            sweeps: Vec::new(),
        }
    }

    fn names(steps: &[Step]) -> Vec<String> {
        let name = |step: &Step| format!("{}{}", step.round, step.subject);
        steps.iter().map(name).collect()
    }

    #[test]
    fn rounds_alternate_a_b_b_a() {
        let steps = net(&wishes(3, &[Peer::Qemu]));

        assert_eq!(
            names(&steps),
            ["1venet", "1qemu", "2qemu", "2venet", "3venet", "3qemu"]
        );
    }

    #[test]
    fn control_is_ours_as_far_away_as_it_can_be() {
        let wishes = Wishes {
            has_control: true,
            ..wishes(2, &[Peer::QemuVhost])
        };

        assert_eq!(
            names(&net(&wishes)),
            [
                "1venet",
                "1qemu-vhost",
                "1venet-again",
                "2venet-again",
                "2qemu-vhost",
                "2venet"
            ]
        );
        assert_eq!(
            names(&boot(&wishes)),
            [
                "0alacrity",
                "1alacrity",
                "1alacrity-again",
                "2alacrity-again",
                "2alacrity"
            ]
        );
    }

    #[test]
    fn pairs_and_turns_come_with_their_peers() {
        let steps = net(&wishes(1, &[Peer::Virtio, Peer::Bridge]));

        let groups: Vec<_> = steps.iter().map(|step| step.group).collect();
        assert_eq!(
            groups,
            [
                Group::Host,
                Group::Host,
                Group::One,
                Group::Pair,
                Group::Pair
            ]
        );
        assert_eq!(names(&steps)[3..], ["1switch", "1bridge"]);
    }

    #[test]
    fn sweeps_have_all_their_points_and_no_control() {
        let wishes = Wishes {
            has_control: true,
            sweeps: Sweep::ALL.to_vec(),
            ..wishes(1, &[Peer::Qemu])
        };
        let steps = net(&wishes);

        let of = |sweep: Sweep| {
            let is_it = |step: &&Step| matches!(step.group, Group::Sweep(of, _) if of == sweep);
            steps.iter().filter(is_it).count()
        };
        assert_eq!(of(Sweep::Venets), 5);
        assert_eq!(of(Sweep::Guests), 8);
        assert_eq!(of(Sweep::Ports), 0, "without the bridge");
        assert!(steps.iter().skip(3).all(|step| !step.subject.is_again));
    }

    #[test]
    fn sweep_alone_has_nothing_else() {
        let wishes = Wishes {
            has_cases: false,
            sweeps: vec![Sweep::Venets],
            ..wishes(1, &[Peer::Virtio, Peer::Bridge])
        };

        assert_eq!(names(&net(&wishes)), ["1venet"; 5]);
    }

    #[test]
    fn memory_has_no_peer_that_nobody_measures() {
        assert_eq!(names(&memory(&wishes(1, &[Peer::Virtio]))), ["1alacrity"]);
    }

    #[test]
    fn verbs_take_a_guest_for_each_round() {
        let wishes = wishes(2, &[Peer::Qemu]);

        let steps = verbs(&wishes);

        assert_eq!(names(&steps), ["1venet", "2venet"]);
        assert!(steps.iter().all(|step| !step.group.has_traffic()));
        assert!(net(&wishes).iter().all(|step| step.group.has_traffic()));
    }

    #[test]
    fn estimate_learns_from_what_was_done() {
        let mut progress = Progress::new(vec![Duration::from_secs(60); 10]);
        let at_first = progress.text_after(Duration::ZERO);
        progress.advance();
        progress.advance();

        assert_eq!(at_first, "step 1 of 10, 10 min left");
        assert_eq!(
            progress.text_after(Duration::from_secs(240)),
            "step 3 of 10, 16 min left"
        );
        (0..8).for_each(|_| progress.advance());
        assert_eq!(
            progress.text_after(Duration::from_secs(600)),
            "step 10 of 10, 0 s left"
        );
    }
}
