//! The payload of discard and write-zeroes requests (VIRTIO 1.2 §5.2.6). Pure.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::SECTOR_BYTES;

/// Most ranges in one request.
pub(super) const MAX_RANGES: u32 = 16;
/// Most sectors in one discard range: 1 GiB.
pub(super) const MAX_DISCARD_SECTORS: u32 = (1 << 30) / 512;
/// Most sectors in one write-zeroes range: 64 MiB, for it may mean to write them all.
pub(super) const MAX_WRITE_ZEROES_SECTORS: u32 = (64 << 20) / 512;

/// Size of `struct virtio_blk_discard_write_zeroes`.
const RANGE_BYTES: usize = 16;
/// Largest payload; one byte more is read to tell that there is too much.
pub(super) const MAX_PAYLOAD_BYTES: usize = RANGE_BYTES * MAX_RANGES as usize;

/// One range of a discard or write-zeroes request, inside the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    /// First byte on the disk.
    pub(super) offset: u64,
    /// Length in bytes.
    pub(super) len: u64,
    /// The guest does not mind if the storage is freed.
    pub(super) may_unmap: bool,
}

/// What kind of request the ranges are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RangeOp {
    /// Give the storage back.
    Discard,
    /// Make it read as zeroes.
    WriteZeroes,
}

/// Splits `payload` into ranges on a disk of `num_sectors`. An error is the status to answer, which
/// may come after valid ranges: the caller checks all of them before it does anything.
pub(super) fn ranges(
    op: RangeOp,
    payload: &[u8],
    num_sectors: u64,
) -> impl Iterator<Item = Result<Range, u32>> {
    payload
        .chunks(RANGE_BYTES)
        .map(move |bytes| match <[u8; RANGE_BYTES]>::try_from(bytes) {
            Ok(bytes) => range(op, bytes, num_sectors),
            Err(_) => Err(VIRTIO_BLK_S_IOERR),
        })
}

fn range(op: RangeOp, bytes: [u8; RANGE_BYTES], num_sectors: u64) -> Result<Range, u32> {
    let [
        s0,
        s1,
        s2,
        s3,
        s4,
        s5,
        s6,
        s7,
        n0,
        n1,
        n2,
        n3,
        f0,
        f1,
        f2,
        f3,
    ] = bytes;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let len = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    let (known_flags, max_len) = match op {
        RangeOp::Discard => (0, MAX_DISCARD_SECTORS),
        RangeOp::WriteZeroes => (VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, MAX_WRITE_ZEROES_SECTORS),
    };
    if flags & !known_flags != 0 {
        return Err(VIRTIO_BLK_S_UNSUPP);
    }
    if len > max_len || !is_on_disk(sector, u64::from(len), num_sectors) {
        return Err(VIRTIO_BLK_S_IOERR);
    }
    Ok(Range {
        offset: sector * SECTOR_BYTES, // below num_sectors * 512, a file size
        len: u64::from(len) * SECTOR_BYTES,
        may_unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
    })
}

/// True if `len` sectors at `sector` are all on a disk of `num_sectors`.
pub(super) fn is_on_disk(sector: u64, len: u64, num_sectors: u64) -> bool {
    sector
        .checked_add(len)
        .is_some_and(|end| end <= num_sectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(sector: u64, len: u32, flags: u32) -> Vec<u8> {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    }

    fn one(op: RangeOp, payload: &[u8]) -> Result<Range, u32> {
        ranges(op, payload, 100).next().unwrap()
    }

    #[test]
    fn range_up_to_the_last_sector_is_accepted() {
        let range = one(RangeOp::WriteZeroes, &payload(90, 10, 1)).unwrap();

        let want = Range {
            offset: 90 * 512,
            len: 10 * 512,
            may_unmap: true,
        };
        assert_eq!(range, want);
    }

    #[test]
    fn range_past_the_last_sector_is_an_io_error() {
        let result = one(RangeOp::Discard, &payload(90, 11, 0));

        assert_eq!(result, Err(VIRTIO_BLK_S_IOERR));
    }

    #[test]
    fn range_that_wraps_is_an_io_error() {
        let result = one(RangeOp::Discard, &payload(u64::MAX, 2, 0));

        assert_eq!(result, Err(VIRTIO_BLK_S_IOERR));
    }

    #[test]
    fn discard_with_unmap_flag_is_unsupported() {
        let result = one(RangeOp::Discard, &payload(0, 1, 1));

        assert_eq!(result, Err(VIRTIO_BLK_S_UNSUPP));
    }

    #[test]
    fn reserved_flag_is_unsupported() {
        let result = one(RangeOp::WriteZeroes, &payload(0, 1, 2));

        assert_eq!(result, Err(VIRTIO_BLK_S_UNSUPP));
    }

    #[test]
    fn half_a_range_is_an_io_error() {
        let result = one(RangeOp::Discard, &[0; 15]);

        assert_eq!(result, Err(VIRTIO_BLK_S_IOERR));
    }
}
