//! Identities and times of objects, for those who show them as files.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Below are the nodes that are always there.
const FIRST_IDENT: u64 = 1 << 10;

/// Gives out identities, none twice.
#[derive(Debug)]
pub struct Idents(AtomicU64);

impl Idents {
    pub fn new() -> Self {
        Idents(AtomicU64::new(FIRST_IDENT))
    }

    /// The first of `count` identities in a row.
    pub fn allocate(&self, count: u64) -> u64 {
        self.0.fetch_add(count, Relaxed)
    }
}

/// Identity of an object, and when it last changed.
#[derive(Debug)]
pub(crate) struct Stamp {
    ident: u64,
    modified_ns: AtomicU64,
}

impl Stamp {
    /// Of something made now.
    pub fn new(ident: u64) -> Self {
        let stamp = Stamp {
            ident,
            modified_ns: AtomicU64::new(0),
        };
        stamp.touch();
        stamp
    }

    /// The identity; objects with several nodes have as many identities from here on.
    pub fn ident(&self) -> u64 {
        self.ident
    }

    /// When it was made or touched last.
    pub fn modified(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.modified_ns.load(Relaxed))
    }

    /// It changes now.
    pub fn touch(&self) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let ns = since_epoch.map_or(0, |duration| duration.as_nanos());
        self.modified_ns
            .store(u64::try_from(ns).unwrap_or(u64::MAX), Relaxed);
    }
}
