//! Names, types, links, ids and membership.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use vbus::Errno;
use vbus::attribute::Attribute;
use vbus::bus::{Client, Host, Limits};
use vbus::device::{Device, DeviceClass, Interface, InterfaceOffer};
use vbus::test_utils::{ECHO_KIND, EchoClass, EventLog, add_echo, echo_host, ram};
use vbus::verbs::{Event, InterfaceId};

fn added(id: u32, place: &str) -> Event {
    Event::DeviceAdded {
        id: InterfaceId(id),
        kind: ECHO_KIND.into(),
        place: place.into(),
    }
}

fn dropped(id: u32) -> Event {
    Event::DeviceDropped {
        id: InterfaceId(id),
    }
}

fn listen(host: &Arc<Host>, bus: &str, pid: u32) -> (Client, Arc<EventLog>) {
    let log = EventLog::new();
    let member = host.join(bus, pid).unwrap();
    let client = member.attach(ram(), log.clone()).unwrap();
    (client, log)
}

#[test]
fn names_are_unique_and_showable() {
    let (host, _) = echo_host();
    host.create_device("a").unwrap();
    host.create_bus("a").unwrap();

    assert_eq!(host.create_device("a"), Err(Errno::EXIST));
    assert_eq!(host.create_bus("a"), Err(Errno::EXIST));
    let class = Arc::new(EchoClass::default());
    assert_eq!(host.register_class(class), Err(Errno::EXIST));
    for name in ["", "..", "a/b", "a\n"] {
        assert_eq!(host.create_device(name), Err(Errno::INVAL));
        assert_eq!(host.create_bus(name), Err(Errno::INVAL));
    }
}

#[test]
fn type_is_written_once() {
    let (host, census) = echo_host();
    host.create_device("a").unwrap();

    assert_eq!(host.set_type("b", "echo"), Err(Errno::NOENT));
    assert_eq!(host.set_type("a", "other"), Err(Errno::NOENT));
    host.set_type("a", "echo").unwrap();
    assert_eq!(host.set_type("a", "echo"), Err(Errno::BUSY));
    assert_eq!(census.devices.load(SeqCst), 1);
}

#[test]
fn class_that_fails_leaves_the_device_without_type() {
    let (host, _) = echo_host();
    host.create_device("broken").unwrap();

    assert_eq!(host.set_type("broken", "echo"), Err(Errno::IO));
    assert_eq!(host.set_type("broken", "echo"), Err(Errno::IO));
    host.remove_device("broken").unwrap();
}

#[test]
fn links_need_a_typed_device_and_free_names() {
    let (host, _) = echo_host();
    host.create_bus("bus").unwrap();
    host.create_device("untyped").unwrap();
    add_echo(&host, "bus", "a");

    assert_eq!(host.link("bus", "x", "untyped"), Err(Errno::INVAL));
    assert_eq!(host.link("bus", "x", "none"), Err(Errno::NOENT));
    assert_eq!(host.link("none", "x", "a"), Err(Errno::NOENT));
    assert_eq!(host.link("bus", "a", "a"), Err(Errno::EXIST));
    assert_eq!(host.link("bus", "again", "a"), Err(Errno::BUSY));
    assert_eq!(host.link("bus", "a/b", "a"), Err(Errno::INVAL));
    assert_eq!(host.unlink("bus", "x"), Err(Errno::NOENT));
    assert_eq!(host.unlink("none", "a"), Err(Errno::NOENT));
}

#[test]
fn what_is_in_use_cannot_be_removed() {
    let (host, census) = echo_host();
    host.create_bus("bus").unwrap();
    add_echo(&host, "bus", "a");

    assert_eq!(host.remove_device("a"), Err(Errno::BUSY));
    assert_eq!(host.remove_bus("bus"), Err(Errno::BUSY));
    host.unlink("bus", "a").unwrap();
    host.remove_device("a").unwrap();
    assert_eq!(census.devices.load(SeqCst), 0);
    let member = host.join("bus", 1).unwrap();
    assert_eq!(host.remove_bus("bus"), Err(Errno::BUSY));
    drop(member);
    host.remove_bus("bus").unwrap();
    assert_eq!(host.remove_bus("bus"), Err(Errno::NOENT));
    assert_eq!(host.remove_device("a"), Err(Errno::NOENT));
}

#[test]
fn class_decides_on_how_many_buses_a_device_is() {
    let host = Host::new();
    host.register_class(Arc::new(EchoClass::new("echo", 1, 1)))
        .unwrap();
    host.create_bus("one").unwrap();
    host.create_bus("two").unwrap();
    add_echo(&host, "one", "a");

    assert_eq!(host.link("two", "a", "a"), Err(Errno::BUSY));
    host.unlink("one", "a").unwrap();
    host.link("two", "a", "a").unwrap();
}

#[test]
fn ids_count_up_per_bus_and_do_not_come_back() {
    let (host, _) = echo_host();
    host.create_bus("one").unwrap();
    host.create_bus("two").unwrap();
    let (_client, log) = listen(&host, "one", 1);
    let (_other, other_log) = listen(&host, "two", 2);

    add_echo(&host, "one", "a");
    add_echo(&host, "one", "b");
    host.unlink("one", "a").unwrap();
    host.link("one", "again", "a").unwrap();
    host.link("two", "a", "a").unwrap();

    let (first, second) = (added(0, "a/default"), added(1, "b/default"));
    let third = added(2, "again/default");
    assert_eq!(log.take(), [first.clone(), second, dropped(0), third]);
    assert_eq!(other_log.take(), [first]);
}

#[test]
fn late_listener_sees_all_interfaces_in_ascending_order() {
    let host = Host::new();
    host.register_class(Arc::new(EchoClass::new("echo", 1, 3)))
        .unwrap();
    host.create_bus("bus").unwrap();
    for name in ["a", "b", "c"] {
        add_echo(&host, "bus", name);
    }
    host.unlink("bus", "b").unwrap();

    let (_client, log) = listen(&host, "bus", 1);

    let ids = log.take().into_iter().map(|event| match event {
        Event::DeviceAdded { id, .. } => id.0,
        event => panic!("{event:?}"),
    });
    assert_eq!(ids.collect::<Vec<_>>(), [0, 1, 2, 6, 7, 8]);
    host.unlink("bus", "c").unwrap();
    assert_eq!(log.take(), [6, 7, 8].map(dropped));
}

#[test]
fn process_is_on_one_bus_until_its_last_join_ends() {
    let (host, _) = echo_host();
    host.create_bus("one").unwrap();
    host.create_bus("two").unwrap();

    assert_eq!(host.join("none", 7).unwrap_err(), Errno::NOENT);
    let first = host.join("one", 7).unwrap();
    let second = host.join("one", 7).unwrap();
    let client = second.attach(ram(), EventLog::new()).unwrap();
    assert_eq!(host.join("two", 7).unwrap_err(), Errno::BUSY);
    drop((first, second));
    assert_eq!(host.join("two", 7).unwrap_err(), Errno::BUSY);
    drop(client);
    assert_eq!(host.join("two", 7).unwrap().bus(), "two");
}

#[test]
fn clients_and_bytes_of_a_member_are_limited() {
    let (host, _) = echo_host();
    host.create_bus("bus").unwrap();
    host.set_limits(Limits {
        clients: 1,
        shared_bytes: 100,
        ..Limits::default()
    });
    let member = host.join("bus", 1).unwrap();
    let again = host.join("bus", 1).unwrap();

    let client = member.attach(ram(), EventLog::new()).unwrap();
    let refused = again.attach(ram(), EventLog::new());
    assert_eq!(refused.unwrap_err(), Errno::DQUOT);
    drop(client);
    again.attach(ram(), EventLog::new()).unwrap();
    let charge = member.charge_bytes(100).unwrap();
    assert_eq!(again.charge_bytes(1).unwrap_err(), Errno::DQUOT);
    drop(charge);
    again.charge_bytes(1).unwrap();
}

#[test]
fn observers_hear_of_each_change_and_may_look_at_the_host() {
    let (host, _) = echo_host();
    let count = Arc::new(AtomicUsize::new(0));
    let (seen, weak) = (Arc::clone(&count), Arc::downgrade(&host));
    host.on_change(Box::new(move || {
        weak.upgrade().unwrap().state();
        seen.fetch_add(1, SeqCst);
    }));

    host.create_bus("bus").unwrap();
    add_echo(&host, "bus", "a"); // Three changes.
    assert_eq!(host.create_bus("bus"), Err(Errno::EXIST));
    host.unlink("bus", "a").unwrap();
    let tree = host.tree();
    tree.write("sys/devices/a/greeting", b"hi").unwrap();
    host.remove_device("a").unwrap();
    host.remove_bus("bus").unwrap();

    assert_eq!(count.load(SeqCst), 8);
}

/// Offers interfaces with the names that it was made with.
struct Offering(&'static [&'static str], Arc<AtomicUsize>);

impl DeviceClass for Offering {
    fn name(&self) -> &'static str {
        "echo"
    }
    fn create(&self, _name: &str) -> Result<Arc<dyn Device>, Errno> {
        Ok(Arc::new(Offering(self.0, Arc::clone(&self.1))))
    }
}

impl Device for Offering {
    fn attributes(&self) -> Vec<(&'static str, Arc<dyn Attribute>)> {
        Vec::new()
    }
    fn connect_bus(&self, bus: &str) -> Result<Vec<InterfaceOffer>, Errno> {
        let echo = EchoClass::default().create("inner")?;
        let interface: Arc<dyn Interface> = echo.connect_bus(bus)?.remove(0).interface;
        self.1.fetch_add(1, SeqCst);
        let offer = |name: &&str| InterfaceOffer {
            name: (*name).to_owned(),
            kind: ECHO_KIND,
            interface: Arc::clone(&interface),
        };
        Ok(self.0.iter().map(offer).collect())
    }
    fn disconnect_bus(&self, _bus: &str) {
        self.1.fetch_sub(1, SeqCst);
    }
}

#[test]
fn device_whose_second_interface_is_refused_is_not_on_the_bus() {
    for names in [&["ok", "ok"], &["ok", "a.b"], &["ok", ""]] {
        let connected = Arc::new(AtomicUsize::new(0));
        let host = Host::new();
        host.register_class(Arc::new(Offering(names, Arc::clone(&connected))))
            .unwrap();
        host.create_bus("bus").unwrap();
        host.create_device("a").unwrap();
        host.set_type("a", "echo").unwrap();
        let (client, log) = listen(&host, "bus", 1);

        assert_eq!(host.link("bus", "a", "a"), Err(Errno::INVAL), "{names:?}");

        assert_eq!(connected.load(SeqCst), 0);
        assert_eq!(log.take(), []);
        drop(client);
        host.remove_bus("bus").unwrap();
        host.remove_device("a").unwrap();
    }
}
