//! The interfaces of one session, and what the guest is to be told of them.
//!
//! The guest finds a device present, lost or gone; the bus moves on while earlier changes still wait
//! for a slot. So that a guest which never looks costs a bounded backlog, a change takes back what
//! waits and has become pointless. Of one interface there can wait, in this order:
//!
//! | the guest knows it | waiting |
//! |---|---|
//! | not yet | nothing, or its arrival |
//! | as present | nothing, its loss, its loss and its return, or its end |
//! | as lost | nothing, its return, or its end |
//!
//! A loss and the return after it are both told: between them the guest's connections ended.

use std::collections::BTreeMap;

use super::backlog::{Backlog, Entry};

/// Interfaces on the bus, those included that it has lost.
#[derive(Debug, Default)]
pub(super) struct Interfaces(BTreeMap<u32, Interface>);

#[derive(Debug)]
struct Interface {
    /// What it speaks.
    kind: String,
    is_lost: bool,
    /// The guest knows of it.
    is_told: bool,
}

impl Interfaces {
    /// What the interface `id` speaks.
    pub fn kind(&self, id: u32) -> Option<&str> {
        self.0.get(&id).map(|interface| interface.kind.as_str())
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// It came, or came back. Like the others, answers how many events need not be told.
    pub fn add(&mut self, id: u32, kind: String, backlog: &mut Backlog) -> u64 {
        let known = self.0.get_mut(&id);
        if known.as_ref().is_some_and(|known| !known.is_lost) {
            return 0;
        }
        let is_told = known.is_some_and(|known| known.is_told);
        let interface = Interface {
            kind,
            is_lost: false,
            is_told,
        };
        self.0.insert(id, interface);
        backlog.push(Entry::Added(id));
        0
    }

    /// The bus has lost it.
    pub fn lose(&mut self, id: u32, backlog: &mut Backlog) -> u64 {
        match self.0.get_mut(&id) {
            Some(interface) if !interface.is_lost => interface.is_lost = true,
            _ => return 0,
        }
        if backlog.take_back(Entry::Added(id)) {
            return 2;
        }
        backlog.push(Entry::Lost(id));
        0
    }

    /// It left for good.
    pub fn remove(&mut self, id: u32, backlog: &mut Backlog) -> u64 {
        let Some(interface) = self.0.remove(&id) else {
            return 0;
        };
        let pointless = [Entry::Added(id), Entry::Lost(id)];
        let num_taken = pointless.map(|entry| u64::from(backlog.take_back(entry)));
        let num_taken = num_taken.iter().sum();
        if !interface.is_told {
            return num_taken + 1;
        }
        backlog.push(Entry::Dropped(id));
        num_taken
    }

    /// The guest was told of it.
    pub fn told(&mut self, id: u32) {
        if let Some(interface) = self.0.get_mut(&id) {
            interface.is_told = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Entry::{Added, Dropped, Lost};

    /// Interface 7, and what waits to be told of it.
    #[derive(Default)]
    struct Desk {
        interfaces: Interfaces,
        backlog: Backlog,
    }

    impl Desk {
        fn add(&mut self) {
            let kind = "kind".to_owned();
            self.interfaces.add(7, kind, &mut self.backlog);
        }

        fn lose(&mut self) {
            self.interfaces.lose(7, &mut self.backlog);
        }

        fn remove(&mut self) {
            self.interfaces.remove(7, &mut self.backlog);
        }

        /// Tells the first `count` that wait.
        fn tell(&mut self, count: usize) -> Vec<Entry> {
            let told: Vec<_> = self.backlog.pop(count).collect();
            for entry in &told {
                if let Added(id) = entry {
                    self.interfaces.told(*id);
                }
            }
            told
        }
    }

    #[test]
    fn loss_and_return_are_told_also_together() {
        let mut desk = Desk::default();
        desk.add();
        assert_eq!(desk.tell(9), [Added(7)]);
        desk.lose();
        desk.add();

        assert_eq!(desk.tell(9), [Lost(7), Added(7)]);
        desk.lose();
        assert_eq!(desk.tell(9), [Lost(7)]);
        desk.add();
        assert_eq!(desk.tell(9), [Added(7)]);
    }

    #[test]
    fn guest_that_does_not_look_finds_one_loss_and_one_return() {
        let mut desk = Desk::default();
        desk.add();
        desk.tell(9);
        for _ in 0..1000 {
            desk.lose();
            desk.add();
        }

        assert_eq!(desk.backlog.len(), 2);
        assert_eq!(desk.tell(9), [Lost(7), Added(7)]);
    }

    #[test]
    fn what_was_never_told_is_told_when_it_stays() {
        let mut desk = Desk::default();
        desk.add();
        desk.lose();
        assert_eq!(desk.tell(9), []);
        desk.add();

        assert_eq!(desk.tell(9), [Added(7)]);
    }

    #[test]
    fn end_takes_the_place_of_all_that_waits() {
        let mut desk = Desk::default();
        desk.add();
        desk.lose();
        desk.remove();
        assert_eq!(desk.tell(9), [], "never told");

        desk.add();
        desk.tell(9);
        desk.lose();
        desk.add();
        desk.remove();
        assert_eq!(desk.tell(9), [Dropped(7)], "told as present");

        desk.add();
        desk.tell(9);
        desk.lose();
        desk.tell(9);
        desk.add();
        desk.remove();
        assert_eq!(desk.tell(9), [Dropped(7)], "told as lost");
        assert!(desk.interfaces.kind(7).is_none());
    }

    #[test]
    fn half_told_loss_ends_as_a_loss() {
        let mut desk = Desk::default();
        desk.add();
        desk.tell(9);
        desk.lose();
        desk.add();
        assert_eq!(desk.tell(1), [Lost(7)]);
        desk.lose();

        assert_eq!(desk.tell(9), []);
        desk.remove();
        assert_eq!(desk.tell(9), [Dropped(7)]);
    }

    #[test]
    fn what_cannot_be_changes_nothing() {
        let mut desk = Desk::default();
        desk.lose();
        desk.remove();
        desk.add();
        desk.add();
        assert_eq!(desk.tell(9), [Added(7)]);
        desk.lose();
        desk.lose();

        assert_eq!(desk.tell(9), [Lost(7)]);
        assert_eq!(desk.interfaces.kind(7), Some("kind"), "still known");
    }
}
