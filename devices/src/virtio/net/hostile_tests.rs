//! Random rings: no panic, bounded work.

use proptest::collection::vec;
use proptest::prelude::*;

use super::fake_driver::QUEUE_BYTES;
use super::fuzz::serve_bytes;

/// A descriptor: mostly near the truth, so that handlers get past their first check.
fn descriptor() -> impl Strategy<Value = Vec<u8>> {
    let gpa = prop_oneof![
        8 => 0x1000_u64..0x4_0000,
        1 => 0x3_fff0_u64..0x4_0010,
        1 => any::<u64>(),
    ];
    let len = prop_oneof![
        4 => 0_u32..64,
        4 => 0_u32..0x5000,
        1 => 0xfff0_u32..0x1_0010,
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![8 => 0_u16..4, 1 => 0_u16..8, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0_u16..16, 1 => any::<u16>()];
    (gpa, len, flags, next).prop_map(|(gpa, len, flags, next)| {
        let mut bytes = gpa.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        bytes
    })
}

/// One queue's 1 KiB: table, available ring, nothing used yet.
fn queue() -> impl Strategy<Value = Vec<u8>> {
    let idx = prop_oneof![8 => 0_u16..=16, 1 => any::<u16>()];
    let heads = vec(prop_oneof![15 => 0_u16..16, 1 => any::<u16>()], 16);
    (vec(descriptor(), 16), idx, heads, any::<u16>()).prop_map(|(table, idx, heads, event)| {
        let mut bytes = table.concat();
        bytes.extend([0, 0]);
        bytes.extend(idx.to_le_bytes());
        bytes.extend(heads.iter().flat_map(|head| head.to_le_bytes()));
        bytes.extend(event.to_le_bytes());
        bytes.resize(QUEUE_BYTES as usize, 0);
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn rings_near_the_truth_never_panic(
        choice in 0_u8..8,
        queues in vec(queue(), 3),
        buffers in vec(any::<u8>(), 0x400),
    ) {
        let mut bytes = std::vec![choice];
        bytes.extend(queues.concat());
        bytes.extend(buffers.iter().cycle().take(0x4000));

        serve_bytes(&bytes);
    }

    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..0x1400)) {
        serve_bytes(&bytes);
    }
}

#[test]
fn all_zero_rings_are_idle_queues() {
    assert_eq!(serve_bytes(&[0; 0x1000]), 0);
}
