//! The table of transitions of a word, against a machine that is plain to see.

use std::cell::Cell;

use proptest::prelude::*;

use crate::reclaim::word::{Backing, Claim, Met, NUM_ADDRESSES, PageState, Pin, Wake, Words};

#[derive(Debug, Default)]
struct Wakes(Cell<u64>);

impl Wake for Wakes {
    fn wake(&self, page: u64) {
        assert_eq!(page, 1);
        self.0.set(self.0.get() + 1);
    }
}

/// What a word says, in fields of their own.
#[derive(Debug)]
struct Machine {
    state: PageState,
    is_owned: bool,
    is_waited_for: bool,
    is_written: bool,
    num_wakes: u64,
}

#[derive(Debug, Clone)]
enum Act {
    Claim { wants_absent: bool },
    Meet { is_write: bool },
    Pin,
    Unpin,
    Publish(PageState),
    Release(PageState),
    LetGo,
}

fn states() -> impl Strategy<Value = PageState> {
    let address = || prop_oneof![0..3u64, NUM_ADDRESSES - 2..NUM_ADDRESSES];
    let backing = || (any::<u8>(), address()).prop_map(|(disk, sector)| Backing { disk, sector });
    prop_oneof![
        Just(PageState::Hole),
        Just(PageState::Resident),
        (1..4u64).prop_map(PageState::Pinned),
        backing().prop_map(PageState::Proved),
        backing().prop_map(PageState::Dropped),
        address().prop_map(PageState::Swapped),
        Just(PageState::Kept),
    ]
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        2 => any::<bool>().prop_map(|wants_absent| Act::Claim { wants_absent }),
        2 => any::<bool>().prop_map(|is_write| Act::Meet { is_write }),
        2 => Just(Act::Pin),
        2 => Just(Act::Unpin),
        2 => states().prop_map(Act::Publish),
        2 => states().prop_map(Act::Release),
        1 => Just(Act::LetGo),
    ];
    proptest::collection::vec(act, 1..80)
}

impl Machine {
    fn own(&mut self, claim: &Claim<'_, Wakes>) {
        assert!(!self.is_owned, "two owners");
        assert_eq!((claim.page(), claim.state()), (1, self.state));
        self.is_owned = true;
    }

    fn mark(&mut self, is_write: bool) {
        assert!(self.is_owned, "nobody to wait for");
        self.is_waited_for = true;
        self.is_written |= is_write;
    }

    fn let_go(&mut self) {
        self.num_wakes += u64::from(self.is_waited_for);
        (self.is_owned, self.is_waited_for, self.is_written) = (false, false, false);
    }
}

fn check(acts: &[Act]) {
    let words = Words::new(2, Wakes::default());
    let mut owner: Option<Claim<'_, Wakes>> = None;
    let mut machine = Machine {
        state: PageState::Hole,
        is_owned: false,
        is_waited_for: false,
        is_written: false,
        num_wakes: 0,
    };
    for act in acts {
        match *act {
            Act::Claim { wants_absent } => {
                let wants = |state: PageState| state.is_in_memory() != wants_absent;
                let claim = words.claim(1, wants);
                let is_free = !machine.is_owned && wants(machine.state);
                assert_eq!(claim.is_some(), is_free, "{machine:?}");
                if let Some(claim) = claim {
                    machine.own(&claim);
                    owner = Some(claim);
                }
            }
            Act::Meet { is_write } => match words.meet(1, is_write).unwrap() {
                Met::Owned => machine.mark(is_write),
                Met::Free(claim) => {
                    machine.own(&claim);
                    owner = Some(claim);
                }
            },
            Act::Pin => match words.pin(1).unwrap() {
                Pin::Owned => machine.mark(true),
                Pin::Absent(claim) => {
                    machine.own(&claim);
                    owner = Some(claim);
                }
                Pin::Done => {
                    assert!(!machine.is_owned);
                    machine.state = match machine.state {
                        PageState::Resident => PageState::Pinned(1),
                        PageState::Pinned(pins) => PageState::Pinned(pins + 1),
                        PageState::Kept => PageState::Kept,
                        other => panic!("pinned {other:?}"),
                    };
                }
            },
            Act::Unpin => {
                words.unpin(1);
                machine.state = match machine.state {
                    PageState::Pinned(1) => PageState::Resident,
                    PageState::Pinned(pins) => PageState::Pinned(pins - 1),
                    other => other,
                };
            }
            Act::Publish(state) => {
                if let Some(claim) = &mut owner {
                    assert_eq!(claim.is_written(), machine.is_written);
                    let is_published = claim.publish(state);
                    assert_eq!(is_published, !machine.is_written);
                    if is_published {
                        machine.state = state;
                        assert_eq!(claim.state(), state);
                    }
                }
            }
            Act::Release(state) => {
                if let Some(claim) = owner.take() {
                    claim.release(state);
                    machine.state = state;
                    machine.let_go();
                }
            }
            Act::LetGo => {
                if owner.take().is_some() {
                    machine.let_go();
                }
            }
        }
        assert_eq!(words.peek(1), Some(machine.state), "{act:?}");
        let is_waited_for = machine.is_owned && machine.is_waited_for;
        assert_eq!(words.is_waited_for(1), is_waited_for, "{act:?}");
        assert_eq!(words.waker().0.get(), machine.num_wakes, "{act:?}");
        assert_eq!(words.peek(0), Some(PageState::Hole), "the page beside it");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn words_change_as_the_table_says(acts in acts()) {
        check(&acts);
    }
}

#[test]
fn pages_that_are_none_have_no_word() {
    let words = Words::new(2, Wakes::default());
    for page in [2, u64::MAX] {
        assert!(words.claim(page, |_| true).is_none());
        assert!(words.meet(page, true).is_none());
        assert!(words.pin(page).is_none());
        words.unpin(page);
        assert!(words.peek(page).is_none() && !words.is_waited_for(page));
    }
}
