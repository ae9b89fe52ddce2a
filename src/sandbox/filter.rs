//! From lists of system calls to a filter in the kernel.

use std::collections::BTreeMap;
use std::process;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use vbus::threads::ThreadClass;

use super::Mode;
use super::syscalls::{self, Condition, Wanted};

/// The filter of threads of `class`.
///
/// # Errors
/// The lists make no filter, which is a mistake in them.
pub fn of(class: ThreadClass, mode: Mode) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let lists = syscalls::of(class);
    for condition in lists.iter().flat_map(|list| list.conditions) {
        let rules = rules.entry(condition.call.id().into()).or_default();
        rules.push(rule(condition)?);
    }
    // No rules for a call are: whatever its arguments are. That counts where another list has conditions.
    for call in lists.iter().flat_map(|list| list.calls) {
        rules.insert(call.id().into(), Vec::new());
    }
    let otherwise = match mode {
        Mode::Log => SeccompAction::Log,
        Mode::Off | Mode::On => SeccompAction::Trap,
    };
    SeccompFilter::new(rules, otherwise, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

fn rule(condition: &Condition) -> Result<SeccompRule, BackendError> {
    let value = match condition.wanted {
        Wanted::Value(value) => value,
        Wanted::OwnProcess => process::id(),
    };
    let is_masked = SeccompCmpOp::MaskedEq(condition.mask.into());
    let length = SeccompCmpArgLen::Dword;
    let condition = SeccompCondition::new(condition.arg, length, is_masked, value.into())?;
    SeccompRule::new(vec![condition])
}
