//! Which privileges of root a program keeps once it is confined: whom it runs as (`credentials(7)`), and
//! capabilities (`capabilities(7)`).

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};
use vbus::threads::ThreadClass;

use crate::user::UserIds;

/// What threads of a class keep, if they have it.
pub type Kept = fn(ThreadClass) -> CapabilitySet;

/// No thread keeps any.
pub fn none(_: ThreadClass) -> CapabilitySet {
    CapabilitySet::empty()
}

/// What the calling thread, of `class`, keeps for itself and for those that it makes.
pub(super) fn of(class: ThreadClass, kept: Kept) -> CapabilitySet {
    match class {
        ThreadClass::Factory => {
            let made = ThreadClass::ALL.into_iter().filter(|class| class.is_made());
            made.map(kept)
                .fold(CapabilitySet::empty(), |all, one| all | one)
        }
        class => kept(class),
    }
}

/// Has the calling thread, and no other, run as `user` in its group alone. Who was root has no capability
/// left then. What `/proc` has about the process stays root's, so that no other process of that user can trace
/// it, not even while threads are left that are root's.
///
/// # Errors
/// Those of `setresuid(2)`.
pub fn become_user(user: UserIds) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

/// Leaves the calling thread those of `wanted` that it has.
///
/// # Errors
/// Those of `capset(2)`.
pub fn reduce_to(wanted: CapabilitySet) -> Result<(), Errno> {
    let left = capabilities(None)?.permitted & wanted;
    set_capabilities(
        None,
        CapabilitySets {
            effective: left,
            permitted: left,
            inheritable: CapabilitySet::empty(),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factory_keeps_what_any_of_its_threads_needs() {
        let kept = |class| match class {
            ThreadClass::Bus => CapabilitySet::NET_ADMIN,
            ThreadClass::State => CapabilitySet::FOWNER,
            // Not made by it.
            ThreadClass::Daemon => CapabilitySet::SYS_ADMIN,
            _ => CapabilitySet::empty(),
        };

        let of_factory = of(ThreadClass::Factory, kept);

        assert_eq!(of_factory, CapabilitySet::NET_ADMIN | CapabilitySet::FOWNER);
        assert_eq!(of(ThreadClass::Daemon, kept), CapabilitySet::SYS_ADMIN);
        assert_eq!(of(ThreadClass::Device, kept), CapabilitySet::empty());
    }
}
