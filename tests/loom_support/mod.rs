//! What the models of reclaim have in common.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::atomic::Ordering;

use alacrity::reclaim::word::{Wake, Word, Words};
use loom::sync::atomic::AtomicU64;
use loom::sync::{Arc, Condvar, Mutex};

/// A word of loom's.
#[derive(Default)]
pub struct LoomWord(pub AtomicU64);

impl Word for LoomWord {
    fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }

    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.0.compare_exchange(current, new, success, failure)
    }
}

/// Lets a thread sleep until somebody lets go, as the server of disks does.
#[derive(Clone, Default)]
pub struct Bell(Arc<(Mutex<()>, Condvar)>);

impl Wake for Bell {
    fn wake(&self, _page: u64) {
        drop(self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }
}

impl Bell {
    /// Sleeps until the owner of page 0 lets go. Loom ends the model if all threads sleep.
    pub fn wait(&self, words: &Words<Bell, LoomWord>) {
        let mut guard = self.0.0.lock().unwrap();
        while words.is_waited_for(0) {
            guard = self.0.1.wait(guard).unwrap();
        }
    }
}

/// With at most three preemptions: without the bound it takes a minute, and each mistake that was tried
/// needs two at most.
pub fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
}
