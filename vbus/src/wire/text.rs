//! Bodies with one or two texts.

use zerocopy::FromBytes;

use super::WireError;
use crate::abi::wire::{MAX_TEXT_BYTES, Texts};

/// The head of a body with two texts; the second may be empty. `None` if either is too long.
pub fn texts(first: &str, second: &str) -> Option<Texts> {
    let len = |text: &str| {
        (text.len() <= MAX_TEXT_BYTES)
            .then(|| u32::try_from(text.len()).ok())
            .flatten()
    };
    Some(Texts {
        first_len: len(first)?.into(),
        second_len: len(second)?.into(),
    })
}

/// Both texts of a body, which they fill to its end.
///
/// # Errors
/// [`WireError::TooShort`], [`WireError::BadField`].
pub fn split_texts(kind: u16, body: &[u8]) -> Result<(&str, &str), WireError> {
    let too_short = || WireError::TooShort {
        kind,
        len: body.len(),
    };
    let bad = |field| WireError::BadField { kind, field };
    let (head, bytes) = Texts::read_from_prefix(body).map_err(|_| too_short())?;
    let (first_len, second_len) = (head.first_len.get(), head.second_len.get());
    if first_len as usize > MAX_TEXT_BYTES || second_len as usize > MAX_TEXT_BYTES {
        return Err(bad("length of a text"));
    }
    let (first, second) = bytes
        .split_at_checked(first_len as usize)
        .ok_or_else(too_short)?;
    if second.len() != second_len as usize {
        return Err(bad("length of a text"));
    }
    let first = std::str::from_utf8(first).map_err(|_| bad("text"))?;
    let second = std::str::from_utf8(second).map_err(|_| bad("text"))?;
    Ok((first, second))
}
