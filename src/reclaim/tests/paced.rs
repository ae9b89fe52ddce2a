//! Orders that are in no hurry.

use std::sync::Arc;

use super::{PAGE_LEN, Setup};
use crate::reclaim::policy::{Order, Policy};

/// For so many pages.
fn order(num_pages: u64) -> Order {
    Order {
        bytes: num_pages * PAGE_LEN,
        max_tries: Some(512),
        asks_guest: false,
        min_age: 0,
        may_swap: true,
    }
}

#[test]
fn order_with_limits_keeps_them_and_goes_on_where_the_one_before_ended() {
    let Some(setup) = Setup::new() else { return };
    let policy = Policy::new(Arc::clone(&setup.reclaimer), None);
    let carry_out = |order: Order| policy.carry_out(&order, &|| true).unwrap();
    for page in 0..400 {
        setup.write(page, page + 1);
    }
    let away = |pages: std::ops::Range<u64>| {
        let away = pages.filter(|page| !setup.state(*page).unwrap().is_in_memory());
        away.count()
    };

    let nothing_written = carry_out(Order {
        may_swap: false,
        ..order(100)
    });
    assert_eq!(nothing_written.reclaimed.total_bytes(), 0);
    assert_eq!(nothing_written.num_tried, 512);

    let first = carry_out(order(100));
    assert_eq!(first.reclaimed.swapped_bytes, 100 * PAGE_LEN);
    assert_eq!((away(0..100), away(100..400)), (100, 0));
    let second = carry_out(order(100));
    assert_eq!(second.reclaimed.swapped_bytes, 100 * PAGE_LEN);
    assert_eq!((away(0..200), away(200..400)), (200, 0));

    let unwanted = policy.carry_out(&order(100), &|| false).unwrap();
    assert_eq!(unwanted.num_tried, 0);
    for page in 0..400 {
        assert_eq!(setup.read(page), page + 1);
    }
}

#[test]
fn order_with_limits_spares_what_just_came_back_for_one_round() {
    let Some(setup) = Setup::new() else { return };
    let policy = Policy::new(Arc::clone(&setup.reclaimer), None);
    let carry_out = || {
        let order = Order {
            max_tries: Some(super::NUM_PAGES),
            ..order(100)
        };
        let outcome = policy.carry_out(&order, &|| true).unwrap();
        outcome.reclaimed.swapped_bytes / PAGE_LEN
    };
    for page in 0..100 {
        setup.write(page, page + 1);
    }
    assert_eq!(carry_out(), 100);
    // From the last to the first: nobody reads ahead.
    for page in (0..100).rev() {
        assert_eq!(setup.read(page), page + 1);
        setup.state(page); // nobody works on it any more
    }

    let spared = || setup.reclaimer.metrics().spared.get();
    let before = spared();
    assert_eq!((carry_out(), spared() - before), (0, 100));
    assert_eq!((carry_out(), spared() - before), (100, 100));
}
