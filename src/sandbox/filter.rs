//! From lists of system calls to a filter in the kernel.

use std::collections::BTreeMap;
use std::process;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use vbus::threads::ThreadClass;

use super::Mode;
use super::syscalls::{self, Allowed};

/// The filter of threads of `class`.
///
/// # Errors
/// The lists make no filter, which is a mistake in them.
pub fn of(class: ThreadClass, mode: Mode) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let lists = syscalls::of(class);
    let all = || lists.iter().copied().flatten().copied();
    for allowed in all() {
        let number = i64::from(allowed.call().id());
        let any = |other: Allowed| other == Allowed::Call(allowed.call());
        match rule(allowed)? {
            // The empty list is: whatever the arguments are.
            _ if all().any(any) => drop(rules.insert(number, Vec::new())),
            Some(rule) => rules.entry(number).or_default().push(rule),
            None => {}
        }
    }
    let otherwise = match mode {
        Mode::Log => SeccompAction::Log,
        Mode::Off | Mode::On => SeccompAction::Trap,
    };
    SeccompFilter::new(rules, otherwise, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

fn rule(allowed: Allowed) -> Result<Option<SeccompRule>, BackendError> {
    let (arg, mask, value) = match allowed {
        Allowed::Call(_) => return Ok(None),
        Allowed::OwnProcess(_) => (0, u32::MAX, process::id()),
        Allowed::If {
            arg, mask, value, ..
        } => (arg, mask, value),
    };
    let is_masked = SeccompCmpOp::MaskedEq(mask.into());
    let condition = SeccompCondition::new(arg, SeccompCmpArgLen::Dword, is_masked, value.into())?;
    SeccompRule::new(vec![condition]).map(Some)
}
