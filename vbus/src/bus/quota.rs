//! What one member may hold at most.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::io::Errno;

/// Limits of a member: one process, with all its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Clients attached at a time.
    pub clients: u64,
    /// Handles that are open at a time.
    pub connections: u64,
    /// Shms that devices hold at a time.
    pub shms: u64,
    /// Bytes in these shms, and bytes charged by [`super::Member::charge_bytes`].
    pub shared_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            clients: 64,
            connections: 256,
            shms: 2048,
            // Twice the largest guest, since one that was reset is not let go of at once.
            shared_bytes: 130 << 30,
        }
    }
}

/// Counts one kind of thing against its limit.
#[derive(Debug)]
pub(crate) struct Quota {
    used: AtomicU64,
    limit: u64,
}

impl Quota {
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Quota {
            used: AtomicU64::new(0),
            limit,
        })
    }

    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Takes `amount` until the result is dropped.
    ///
    /// # Errors
    /// `EDQUOT`: nothing was taken.
    pub fn charge(self: &Arc<Self>, amount: u64) -> Result<Charge, Errno> {
        self.used
            .fetch_update(Relaxed, Relaxed, |used| {
                used.checked_add(amount).filter(|sum| *sum <= self.limit)
            })
            .map_err(|_| Errno::DQUOT)?;
        Ok(Charge {
            quota: Arc::clone(self),
            amount,
        })
    }
}

/// A part of a member's quota that is taken; dropping it gives it back.
#[derive(Debug)]
pub struct Charge {
    quota: Arc<Quota>,
    amount: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.quota.used.fetch_sub(self.amount, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_is_refused_past_its_limit_and_given_back() {
        let quota = Quota::new(10);
        let first = quota.charge(4).unwrap();
        let _second = quota.charge(6).unwrap();

        for amount in [1, u64::MAX] {
            assert_eq!(quota.charge(amount).unwrap_err(), Errno::DQUOT);
        }
        drop(first);

        assert_eq!(quota.used(), 6);
        assert!(quota.charge(4).is_ok());
    }
}
