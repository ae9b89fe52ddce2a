use super::*;

/// Both stations of two buses are there and open, with all offloads.
const TWO: [u8; 12] = [3, 0, 3, 1, 5, 0, 0x3f, 0x3f, 5, 1, 0x3f, 0x3f];

/// A frame of `len` bytes from the station `nth`.
fn plain(nth: u8, to: u8, from: u8, len: u8) -> Vec<u8> {
    vec![0, nth, to, from, 0, len, 0, 0, 0]
}

#[test]
fn frames_go_where_they_belong() {
    let mut bytes = TWO.to_vec();
    for (nth, to, from) in [
        (0, 5, 3),
        (1, 3, 5),
        (0, 0, 3),
        (1, 12, 5),
        (0, 5, 12),
        (1, 12, 5),
    ] {
        bytes.extend(plain(nth, to, from, 60));
    }
    drive(&bytes);
}

#[test]
fn learned_addresses_are_forgotten_in_time() {
    let mut bytes = TWO.to_vec();
    bytes.extend(plain(0, 5, 12, 60));
    bytes.extend([7, 1, 2, 6, 30, 0]);
    bytes.extend(plain(1, 12, 5, 60));
    drive(&bytes);
}

#[test]
fn stations_come_and_go() {
    let mut bytes = TWO.to_vec();
    bytes.extend([4, 0, 5, 0, 0, 0, 3, 0, 4, 1, 3, 1]);
    bytes.extend(plain(0, 0, 3, 60));
    drive(&bytes);
}

#[test]
fn nothing_is_nothing() {
    drive(&[]);
}
