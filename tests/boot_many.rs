//! Many boots in a row.

mod common;

use common::guest::Vm;
use common::host::Host;

const BOOTS: usize = 20;

#[test]
fn twenty_boots_in_a_row_all_end() {
    let Some(host) = Host::ready() else { return };

    let outcomes = (0..BOOTS).map(|_| Vm::new(&host, &["--exec", "echo up"]).run());

    outcomes.for_each(|outcome| assert_eq!(outcome.assert_status(0).stdout, "up\n"));
}
