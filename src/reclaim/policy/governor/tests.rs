//! A governor with a guest and a host that are not there.

use super::*;
use crate::reclaim::policy::Reclaimed;

const SECOND: Duration = Duration::from_secs(1);
const MIB: u64 = 1 << 20;
const PAGES_PER_MIB: u64 = MIB / PAGE_LEN;
/// Of the guest.
const NUM_PAGES: u64 = 256 * PAGES_PER_MIB;

/// A guest of 256 MiB that accesses the first pages of its memory in any order, and a host. Every
/// fourth page may be dropped, and the others swapped.
struct World {
    now: Instant,
    is_away: Vec<bool>,
    next: u64,
    num_refaults: u64,
    /// Pages that the guest needs, and how many of them it accesses in a second.
    num_active: u64,
    access_rate: u64,
    random: u64,
    excess: u64,
    orders: Vec<(Order, u64)>,
}

impl World {
    fn new(active_mib: u64) -> Self {
        World {
            now: Instant::now(),
            is_away: vec![false; usize::try_from(NUM_PAGES).unwrap()],
            next: 0,
            num_refaults: 0,
            num_active: active_mib * PAGES_PER_MIB,
            access_rate: 1 << 16,
            random: 1,
            excess: 0,
            orders: Vec::new(),
        }
    }

    /// Time goes on, and the guest works.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        let millis = u64::try_from(time.as_millis()).unwrap();
        for _ in 0..self.access_rate * millis / 1000 {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005) + 1;
            if let Some(page) = (self.random >> 33).checked_rem(self.num_active) {
                let is_away = &mut self.is_away[usize::try_from(page).unwrap()];
                self.num_refaults += u64::from(std::mem::take(is_away));
            }
        }
    }

    /// As the thread does, for `time`; what it told last.
    fn govern(&mut self, governor: &mut Governor, time: Duration) -> GovernorStat {
        let end = self.now + time;
        let mut stat = GovernorStat::default();
        while self.now < end {
            governor.step(self, &mut stat).unwrap();
            self.pass(if stat.wanted_bytes > 0 { SHORT } else { LONG });
        }
        stat
    }

    fn taken_bytes(&self) -> u64 {
        self.orders.iter().map(|(_, taken)| taken * PAGE_LEN).sum()
    }
}

impl Surroundings for World {
    fn now(&self) -> Instant {
        self.now
    }

    fn resident_bytes(&self) -> u64 {
        let pages = self.is_away.iter().filter(|is_away| !**is_away);
        pages.count() as u64 * PAGE_LEN
    }

    fn excess_bytes(&self) -> u64 {
        self.excess
    }

    fn pages(&self) -> (u64, u64) {
        (NUM_PAGES, self.num_refaults)
    }

    fn carry_out(&mut self, order: &Order) -> Result<Outcome, ReclaimError> {
        let (mut num_tried, mut num_taken) = (0, 0);
        while num_tried < order.max_tries.unwrap() && num_taken * PAGE_LEN < order.bytes {
            let page = self.next;
            self.next = (page + 1) % NUM_PAGES;
            num_tried += 1;
            let is_away = &mut self.is_away[usize::try_from(page).unwrap()];
            if !*is_away && (order.may_swap || page.is_multiple_of(4)) {
                *is_away = true;
                num_taken += 1;
            }
        }
        self.excess = self.excess.saturating_sub(num_taken * PAGE_LEN);
        self.orders.push((*order, num_taken));
        let reclaimed = Reclaimed {
            swapped_bytes: num_taken * PAGE_LEN,
            ..Reclaimed::default()
        };
        Ok(Outcome {
            reclaimed,
            num_tried,
        })
    }
}

#[test]
fn target_is_reached_and_held_and_nobody_takes_more() {
    let mut world = World::new(32);
    let mut governor = Governor::default();
    let target = 64 * MIB;
    world.govern(&mut governor, 10 * SECOND);
    assert_eq!(world.resident_bytes(), 256 * MIB, "nobody asked");

    governor.set_target(Some(target));
    world.govern(&mut governor, 60 * SECOND);
    assert!(world.resident_bytes() <= target);
    for _ in 0..60 {
        let stat = world.govern(&mut governor, SECOND);
        assert!(stat.wanted_bytes <= MIB, "{stat:?}");
        let resident = world.resident_bytes();
        assert!((target - MIB..=target + MIB).contains(&resident));
    }

    governor.set_target(None);
    let taken = world.taken_bytes();
    world.govern(&mut governor, 10 * SECOND);
    assert_eq!(world.taken_bytes(), taken);
}

#[test]
fn target_below_what_the_guest_needs_makes_no_storm() {
    let mut world = World::new(128);
    let mut governor = Governor::default();
    governor.set_target(Some(64 * MIB));
    world.govern(&mut governor, 30 * SECOND);
    assert!(governor.pace.num_halvings() > 0);

    let before = world.num_refaults;
    let stat = world.govern(&mut governor, 300 * SECOND);

    let in_a_second = (world.num_refaults - before) / 300;
    assert!((1..=120).contains(&in_a_second), "{in_a_second}");
    assert!(stat.wanted_bytes > 0, "{stat:?}");
    // It has what it needs, and hardly more.
    let resident = world.resident_bytes();
    assert!((127 * MIB..140 * MIB).contains(&resident), "{resident}");
    let max_age = world.orders.iter().map(|(order, _)| order.min_age).max();
    assert!(max_age > Some(0));
}

#[test]
fn rate_is_kept_and_begins_low() {
    let mut world = World::new(0);
    let mut governor = Governor::default();
    governor.set_target(Some(0));
    world.govern(&mut governor, SECOND);

    assert!(world.taken_bytes() <= 64 * MIB, "{}", world.taken_bytes());
    for (order, num_taken) in &world.orders {
        assert!(num_taken * PAGE_LEN <= order.bytes);
        assert_eq!(order.max_tries, Some(MAX_TRIES));
    }
    let num_asked = world.orders.iter().filter(|(order, _)| order.asks_guest);
    assert_eq!(num_asked.count(), 1);
}

#[test]
fn cgroup_gets_its_head_room_by_all_means_and_no_more() {
    let mut world = World::new(0);
    let mut governor = Governor::default();
    world.excess = 50 * MIB;

    let stat = world.govern(&mut governor, 10 * SECOND);

    assert_eq!(world.taken_bytes(), 50 * MIB);
    assert!(world.orders.iter().all(|(order, _)| order.may_swap));
    assert_eq!(stat.wanted_bytes, 0);
}

#[test]
fn stalls_count_for_a_while_and_write_nothing() {
    let mut world = World::new(0);
    let mut governor = Governor::default();
    governor.stalled(world.now);

    world.govern(&mut governor, 20 * SECOND);

    let num_orders = world.orders.len();
    assert!((2..=11).contains(&num_orders), "{num_orders}");
    assert!(world.orders.iter().all(|(order, _)| !order.may_swap));
    assert!(world.taken_bytes() >= 32 * MIB, "{}", world.taken_bytes());
}

#[test]
fn guest_with_nothing_to_give_is_looked_at_ever_less() {
    let mut world = World::new(256);
    let mut governor = Governor::default();
    // What may be dropped is gone, and a stall takes nothing else.
    for page in world.is_away.iter_mut().step_by(4) {
        *page = true;
    }
    world.access_rate = 0;
    let mut num_orders = [0; 3];
    for (minute, orders) in num_orders.iter_mut().enumerate() {
        let before = world.orders.len();
        for _ in 0..60 {
            governor.stalled(world.now);
            world.govern(&mut governor, SECOND);
        }
        *orders = world.orders.len() - before;
        println!("minute {minute}: {orders}");
    }
    assert!(num_orders[0] > 2 * num_orders[1], "{num_orders:?}");
    assert!(num_orders[2] <= 4, "{num_orders:?}");
}

#[test]
fn failure_is_tried_again_later_and_told() {
    struct Failing(World);
    impl Surroundings for Failing {
        fn now(&self) -> Instant {
            self.0.now
        }
        fn resident_bytes(&self) -> u64 {
            MIB
        }
        fn excess_bytes(&self) -> u64 {
            0
        }
        fn pages(&self) -> (u64, u64) {
            self.0.pages()
        }
        fn carry_out(&mut self, order: &Order) -> Result<Outcome, ReclaimError> {
            self.0.orders.push((*order, 0));
            Err(ReclaimError::Register(Errno::NOMEM))
        }
    }
    let mut failing = Failing(World::new(0));
    let mut governor = Governor::default();
    governor.set_target(Some(0));
    let mut num_failures = 0;
    for _ in 0..300 {
        let step = governor.step(&mut failing, &mut GovernorStat::default());
        num_failures += usize::from(step.is_err());
        failing.0.now += SHORT;
    }
    // In a minute, with pauses of 1, 2, 4, 8, 16 and 32 s between them.
    assert_eq!(num_failures, failing.0.orders.len());
    assert!((5..=7).contains(&num_failures), "{num_failures}");
}
