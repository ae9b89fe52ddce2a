//! Saved states.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use vbus::Errno;
use vbus::bus::Host;
use vbus::state::{RestoreError, State};
use vbus::test_utils::{EventLog, add_echo, echo_host, ram};
use vbus::verbs::Event;

fn parse(toml: &str) -> State {
    toml::from_str(toml).unwrap()
}

#[test]
fn state_survives_a_round_over_toml() {
    let (host, _) = echo_host();
    host.create_bus("lan").unwrap();
    host.create_bus("empty").unwrap();
    // Ids follow the order of links, not of names.
    add_echo(&host, "lan", "z");
    add_echo(&host, "lan", "a");
    host.create_device("untyped").unwrap();
    let tree = host.tree();
    tree.write("sys/devices/z/greeting", "say \"grüezi\"".as_bytes())
        .unwrap();

    let text = toml::to_string(&host.state()).unwrap();
    let (restored, _) = echo_host();
    restored.restore(&parse(&text)).unwrap();

    assert_eq!(restored.state(), host.state());
    let read = |path: &str| restored.tree().readlink(path).unwrap();
    assert!(read("sys/devices/z/interfaces/default").ends_with("/0"));
    assert!(read("sys/devices/a/interfaces/default").ends_with("/1"));
    let greeting = restored.tree().read("sys/devices/z/greeting");
    assert_eq!(greeting.unwrap(), "say \"grüezi\"\n");
}

#[test]
fn text_is_as_documented() {
    let (host, _) = echo_host();
    let state = parse(
        "[[device]]\nname = \"net0\"\ntype = \"echo\"\n\n[device.attributes]\ngreeting = \"hi\"\n\n\
         [[bus]]\nname = \"lan\"\n\n[[bus.link]]\nname = \"net0\"\ndevice = \"net0\"\n",
    );

    host.restore(&state).unwrap();

    assert_eq!(host.state(), state);
    assert_eq!(parse(""), State::default());
    assert!(toml::from_str::<State>("[[device]]\nname = \"a\"\nmore = 1").is_err());
}

#[test]
fn error_names_what_failed_and_keeps_what_was_before() {
    let restore = |toml: &str| {
        let (host, _) = echo_host();
        let changes = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&changes);
        host.on_change(Box::new(move || {
            seen.fetch_add(1, SeqCst);
        }));
        let error = host.restore(&parse(toml)).unwrap_err();
        assert_eq!(changes.load(SeqCst), 0);
        (error, host.state().devices.len())
    };

    let (error, _) = restore("[[device]]\nname = \"a/b\"");
    assert!(matches!(
        error,
        RestoreError::Device { device, source: Errno::INVAL } if device == "a/b"
    ));
    let (error, devices) = restore("[[device]]\nname = \"a\"\n[[device]]\nname = \"a\"");
    assert!(matches!(
        error,
        RestoreError::Device {
            source: Errno::EXIST,
            ..
        }
    ));
    assert_eq!(devices, 1);
    let (error, _) = restore("[[device]]\nname = \"a\"\ntype = \"x\"");
    assert!(matches!(
        error,
        RestoreError::Type { class, source: Errno::NOENT, .. } if class == "x"
    ));
    let attribute = "[[device]]\nname = \"a\"\ntype = \"echo\"\n[device.attributes]\n";
    for (line, expected) in [
        ("greeting = \"bad\"", Errno::INVAL),
        ("nothing = \"1\"", Errno::NOENT),
        ("calls = \"1\"", Errno::ACCESS),
    ] {
        let (error, _) = restore(&format!("{attribute}{line}"));
        assert!(
            matches!(error, RestoreError::Attribute { source, .. } if source == expected),
            "{line}: {error}"
        );
    }
    let (error, _) = restore("[[bus]]\nname = \"\"");
    assert!(matches!(
        error,
        RestoreError::Bus {
            source: Errno::INVAL,
            ..
        }
    ));
    let (error, _) =
        restore("[[bus]]\nname = \"lan\"\n[[bus.link]]\nname = \"x\"\ndevice = \"none\"");
    assert!(matches!(
        error,
        RestoreError::Link { device, source: Errno::NOENT, .. } if device == "none"
    ));
}

#[test]
fn observers_hear_once_of_a_restored_state_and_clients_see_it() {
    let (host, _) = echo_host();
    host.create_bus("there").unwrap();
    let changes = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&changes);
    host.on_change(Box::new(move || {
        seen.fetch_add(1, SeqCst);
    }));
    let state = parse(
        "[[device]]\nname = \"a\"\ntype = \"echo\"\n[[bus]]\nname = \"lan\"\n\
         [[bus.link]]\nname = \"x\"\ndevice = \"a\"",
    );

    host.restore(&state).unwrap();

    assert_eq!(changes.load(SeqCst), 1);
    assert_eq!(added(&host, "lan"), 1);
    assert_eq!(host.state().buses.len(), 2);
}

fn added(host: &Arc<Host>, bus: &str) -> usize {
    let log = EventLog::new();
    let member = host.join(bus, 1).unwrap();
    let _client = member.attach(ram(), log.clone()).unwrap();
    let events = log.take();
    let is_added = |event: &&Event| matches!(event, Event::DeviceAdded { .. });
    events.iter().filter(is_added).count()
}
