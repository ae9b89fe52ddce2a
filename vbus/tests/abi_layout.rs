//! The C header and the Rust modules say the same: each name exists on both sides, with the same
//! value, size or offset.
//!
//! Names come out of the sources, by `syn` and out of the header's text; values from the two
//! compilers. So what is added on one side only fails here, and so does a new Rust name that
//! [`rust_values`] lacks.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

use vbus::abi::{self, hints, pci, venet};

/// `VBUS_RING_MAGIC`, `sizeof vbus_ring_slot`, `offsetof vbus_ring_slot.turn` → its value as text.
type Values = BTreeMap<String, String>;

macro_rules! consts {
    ($values:ident, $prefix:literal, $module:path: $($name:ident),+ $(,)?) => {{
        use $module as module;
        $($values.insert(concat!($prefix, stringify!($name)).into(), module::$name.to_string());)+
    }};
}

macro_rules! layout {
    ($values:ident, $c_name:literal, $type:ty: $($field:ident),+ $(,)?) => {
        $values.insert(concat!("sizeof ", $c_name).into(), size_of::<$type>().to_string());
        $values.insert(concat!("alignof ", $c_name).into(), align(align_of::<$type>()).to_string());
        $($values.insert(
            concat!("offsetof ", $c_name, ".", stringify!($field)).into(),
            offset_of!($type, $field).to_string(),
        );)+
    };
}

/// zerocopy's integers have alignment 1; peers of C have more where the struct has no attribute.
fn align(bytes: usize) -> usize {
    bytes.max(4)
}

fn rust_values() -> Values {
    let mut values = Values::new();
    consts!(values, "VBUS_", abi: CACHE_LINE_BYTES, ABI_VERSION, NUM_PRIORITIES, RING_MAGIC,
        RING_VERSION, RING_MAX_SLOTS, RING_SIGNAL_OFFSET, RING_SLOTS_OFFSET);
    consts!(values, "VENET_", venet: KIND, VERSION, ETHERNET_HEADER_BYTES, VLAN_TAG_BYTES,
        MAX_GSO_SEGMENTS, MAX_FRAME_BYTES, MAX_SEGMENTS, MAX_SEGMENT_POOL_BYTES);
    consts!(values, "VENET_SHM_ID_", venet::shm_id: RX_RING, TX_RING, TX_SEGMENTS, EVENT_RING);
    consts!(values, "VENET_FUNC_", venet::func: LINK_UP, LINK_DOWN, MAC_QUERY, NEGOTIATE, FLUSH_RX,
        LINK_QUERY);
    consts!(values, "VENET_CAP_GROUP_", venet::cap_group: TX, EVENTS, RX);
    consts!(values, "VENET_TX_CAP_", venet::tx_cap: SG, TSO4, TSO6, ECN, USO, CSUM);
    consts!(values, "VENET_EVENT_CAP_", venet::event_cap: LINK_STATE);
    consts!(values, "VENET_RX_CAP_", venet::rx_cap: MERGED, TSO4, TSO6, ECN, USO, CSUM);
    consts!(values, "VENET_EVENT_", venet::event: LINK_STATE);
    consts!(values, "VENET_FRAME_FLAG_", venet::frame_flag: NEEDS_CSUM, DATA_VALID, SG, ECN);
    consts!(values, "VENET_GSO_TYPE_", venet::gso_type: NONE, TCP4, TCP6, UDP);
    consts!(values, "HINTS_", hints: KIND, VERSION, PAGE_BYTES, TABLE_PAGES, MAX_RELEASE_BYTES,
        SERIAL_BYTES);
    consts!(values, "HINTS_SHM_ID_", hints::shm_id: RELEASE_RING, EVENT_RING, TABLE);
    consts!(values, "HINTS_FUNC_", hints::func: HELLO, DISK, START, STOP, RELEASED);
    consts!(values, "HINTS_FEATURE_", hints::feature: RELEASE, TABLE, DROPPED);
    consts!(values, "HINTS_RELEASE_KIND_", hints::release_kind: FREE, EVICTED);
    consts!(values, "HINTS_RELEASE_RESULT_", hints::release_result: TAKEN, KEPT);
    consts!(values, "HINTS_EVENT_", hints::event: RELEASE_NOW, DROPPED, SCAN_RATE);
    consts!(values, "HINTS_WORD_", hints::word: STATE_MASK, AGE_SHIFT, AGE_MAX, DISK_SHIFT,
        DISK_MAX, SECTOR_SHIFT, SECTOR_MAX, SEQUENCE_SHIFT);
    consts!(values, "HINTS_PAGE_STATE_", hints::page_state: STABLE, UNUSED, VOLATILE,
        MAYBE_VOLATILE);
    layout!(values, "hints_hello_data", hints::HelloData: features, release_bytes, num_pages);
    layout!(values, "hints_disk_data", hints::DiskData: slot, reserved, serial, num_sectors);
    layout!(values, "hints_release_meta", hints::ReleaseMeta: kind, result, reserved0, reserved1,
        num_freed);
    layout!(values, "vbus_signal_flags", abi::SignalFlags: enabled, dirty, reserved);
    layout!(values, "vbus_signal_pair", abi::SignalPair: to_south, to_north);
    layout!(values, "vbus_ring_header", abi::RingHeader: magic, version, num_slots, slot_bytes,
        reserved, signal);
    layout!(values, "vbus_ring_slot", abi::RingSlot: addr, meta, len, batch, turn);
    layout!(values, "venet_frame_meta", venet::FrameMeta: csum_start, csum_offset, gso_size,
        hdr_len, flags, gso_type, reserved0, count, reserved1);
    layout!(values, "venet_segment", venet::Segment: addr, len, reserved);
    layout!(values, "venet_capabilities", venet::Capabilities: group, bits);
    layout!(values, "venet_link_info", venet::LinkInfo: mtu, is_up);
    consts!(values, "VBUS_PCI_", pci: VENDOR_ID, DEVICE_ID, REVISION, CLASS, REGISTERS_BAR, PORTS_BAR, MSIX_BAR, REGISTERS_BAR_BYTES, PORTS_BAR_BYTES, MAGIC, VERSION, NUM_EVENT_QUEUES, NUM_SIGNALS, NUM_VECTORS, NUM_CHANNELS, NO_SIGNAL, NO_VECTOR, STATUS_PENDING, KIND_BYTES, MAX_CALL_BYTES);
    consts!(values, "VBUS_PCI_PORT_", pci::port: DOORBELL, FAST_CALL, SIGNALS);
    consts!(values, "VBUS_PCI_FUNC_", pci::func: NEGOTIATE, EVENT_QUEUE, START, CHANNEL, DEVICE_INFO, OPEN, DEVICE_CALL, SHM, CLOSE);
    consts!(values, "VBUS_PCI_EVENT_", pci::event: DEVICE_ADDED, DEVICE_DROPPED, SIGNAL, SHM_CLOSED, DEVICE_LOST);
    consts!(values, "VBUS_PCI_CAP_", pci::cap: DEVICE_LOST, SIGNAL_PORTS);
    layout!(values, "vbus_pci_registers", pci::Registers: magic, version, capabilities, num_event_queues, num_signals, num_vectors, num_channels, num_resets, reset, call);
    layout!(values, "vbus_pci_call", pci::Call: func, status, args);
    layout!(values, "vbus_pci_negotiate", pci::Negotiate: version, reserved, capabilities);
    layout!(values, "vbus_pci_event_queue", pci::EventQueue: queue, vector, addr, len, reserved);
    layout!(values, "vbus_pci_channel", pci::Channel: channel, reserved, addr);
    layout!(values, "vbus_pci_device_info", pci::DeviceInfo: id, reserved, kind);
    layout!(values, "vbus_pci_open", pci::Open: id, version, handle);
    layout!(values, "vbus_pci_device_call", pci::DeviceCall: handle, func, len, addr);
    layout!(values, "vbus_pci_shm", pci::Shm: handle, cookie, addr, len, id, priority, signal_offset, vector, signal);
    layout!(values, "vbus_pci_close", pci::Close: handle);
    values
}

/// Adds what `items` have, as C calls it, to `names`.
fn add_rust_names(items: &[syn::Item], prefix: &str, names: &mut BTreeSet<String>) {
    for item in items {
        match item {
            syn::Item::Const(item) if item.ident != "_" => {
                names.insert(format!("{prefix}{}", item.ident));
            }
            syn::Item::Mod(syn::ItemMod {
                ident,
                content: Some((_, items)),
                ..
            }) => {
                let prefix = format!("{prefix}{}_", ident.to_string().to_uppercase());
                add_rust_names(items, &prefix, names);
            }
            syn::Item::Struct(item) => {
                let c_name = prefix.to_lowercase() + &snake_case(&item.ident.to_string());
                names.insert(format!("sizeof {c_name}"));
                names.insert(format!("alignof {c_name}"));
                for field in &item.fields {
                    let field = field.ident.as_ref().unwrap();
                    names.insert(format!("offsetof {c_name}.{field}"));
                }
            }
            _ => {}
        }
    }
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

fn rust_names() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (text, prefix) in [
        (include_str!("../src/abi.rs"), "VBUS_"),
        (include_str!("../src/abi/pci.rs"), "VBUS_PCI_"),
        (include_str!("../src/abi/venet.rs"), "VENET_"),
        (include_str!("../src/abi/hints.rs"), "HINTS_"),
    ] {
        let file = syn::parse_file(text).unwrap();
        add_rust_names(&file.items, prefix, &mut names);
    }
    names
}

fn include_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-kernel/include")
}

/// Names in the text of the header, whose layout is that of the kernel: one field in a line.
fn c_names() -> BTreeSet<String> {
    let text = std::fs::read_to_string(include_dir().join("alacrity/vbus_abi.h")).unwrap();
    let mut names = BTreeSet::new();
    let mut structure = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match (words.as_slice(), &structure) {
            (["#define", name, _, ..], _) => {
                names.insert((*name).to_owned());
            }
            (["struct", name, "{"], _) => {
                names.insert(format!("sizeof {name}"));
                names.insert(format!("alignof {name}"));
                structure = Some((*name).to_owned());
            }
            (["}", ..] | ["};"], _) => structure = None,
            ([.., field], Some(structure)) => {
                let field = field.trim_end_matches(';');
                let field = field.split('[').next().unwrap();
                names.insert(format!("offsetof {structure}.{field}"));
            }
            _ => {}
        }
    }
    names
}

/// What the C compiler makes of `names`.
fn c_values(names: &BTreeSet<String>, cc_flags: &[&str]) -> Values {
    let mut program =
        String::from("#include <alacrity/vbus_abi.h>\n#include <stdio.h>\nint main(void)\n{\n");
    for name in names {
        let expression = match name.split_once(' ') {
            Some(("sizeof", c_name)) => format!("sizeof(struct {c_name})"),
            Some(("alignof", c_name)) => format!("_Alignof(struct {c_name})"),
            Some((_, place)) => {
                let (c_name, field) = place.split_once('.').unwrap();
                format!("__builtin_offsetof(struct {c_name}, {field})")
            }
            None => name.clone(),
        };
        let (format, cast) = match name.as_str() {
            "VENET_KIND" | "HINTS_KIND" => ("%s", ""),
            _ => ("%llu", "(unsigned long long)"),
        };
        writeln!(
            program,
            "\tprintf(\"{name}={format}\\n\", {cast}{expression});"
        )
        .unwrap();
    }
    program.push_str("\treturn 0;\n}\n");
    let dir = tempfile::tempdir().unwrap();
    let (source, binary) = (dir.path().join("abi.c"), dir.path().join("abi"));
    std::fs::write(&source, program).unwrap();
    let compiled = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(include_dir())
        .args(cc_flags)
        .arg("-o")
        .arg(&binary)
        .arg(&source)
        .output()
        .expect("cc has to be installed, see scripts/setup");
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let output = Command::new(&binary).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| line.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn both_languages_have_the_same_names() {
    let (rust, c) = (rust_names(), c_names());

    let difference: Vec<_> = rust.symmetric_difference(&c).collect();
    assert!(difference.is_empty(), "on one side only: {difference:?}");
}

#[test]
fn every_name_is_compared() {
    let compared: BTreeSet<String> = rust_values().into_keys().collect();

    let difference: Vec<_> = rust_names()
        .symmetric_difference(&compared)
        .cloned()
        .collect();
    assert!(difference.is_empty(), "add to rust_values: {difference:?}");
}

#[test]
fn both_languages_have_the_same_values() {
    assert_eq!(c_values(&c_names(), &[]), rust_values());
}

#[test]
fn header_stands_on_its_own() {
    let only_itself = BTreeSet::new();

    assert!(c_values(&only_itself, &["-pedantic", "-Wconversion"]).is_empty());
}
