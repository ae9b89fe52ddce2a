//! Sizes in bytes as people write them: `512M`, `4G`, `1GiB`. Units are powers of 1024.

use std::fmt;

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Something other than a number and a unit.
    #[error("`{text}` is not a size; write a whole number and a unit, such as 512M or 4G")]
    NotASize {
        /// What was written.
        text: String,
    },
    /// A number alone, which could mean bytes as well as MiB.
    #[error("`{text}` has no unit; write {text}M or {text}G")]
    NoUnit {
        /// What was written.
        text: String,
    },
    /// More than 2^64 - 1 bytes.
    #[error("`{text}` is more than this machine can count; write a size such as 4G")]
    TooLarge {
        /// What was written.
        text: String,
    },
}

/// Parses a size; returns bytes. `K`, `M`, `G`, `T` and `KiB`, `MiB`, `GiB`, `TiB` are the units, in
/// either case. Only `0` may stand without one.
///
/// # Errors
/// [`SizeError`], which says what to write instead.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let not_a_size = || SizeError::NotASize { text: text.into() };
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    if digits.is_empty() {
        return Err(not_a_size());
    }
    let too_large = || SizeError::TooLarge { text: text.into() };
    let number: u64 = digits.parse().map_err(|_| too_large())?;
    let mut unit = unit.to_ascii_uppercase();
    if unit.is_empty() {
        return match number {
            0 => Ok(0),
            _ => Err(SizeError::NoUnit { text: text.into() }),
        };
    }
    if unit.len() == 3 && unit.ends_with("IB") {
        unit.truncate(1);
    }
    let (_, shift) = UNITS
        .into_iter()
        .find(|(letter, _)| unit.len() == 1 && unit.starts_with(*letter))
        .ok_or_else(not_a_size)?;
    number.checked_mul(1 << shift).ok_or_else(too_large)
}

/// A size in bytes that prints as [`parse`] reads it, in the largest unit that loses nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bytes) = *self;
        match UNITS
            .into_iter()
            .find(|(_, shift)| bytes != 0 && bytes % (1 << shift) == 0)
        {
            Some((letter, shift)) => write!(f, "{}{letter}", bytes >> shift),
            None => write!(f, "{bytes}"),
        }
    }
}

/// `#[serde(with = "size::as_text")]`: bytes in Rust, `"512M"` in the file.
pub mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes `bytes` as text.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&super::Size(*bytes))
    }

    /// Reads a text such as `"512M"`.
    ///
    /// # Errors
    /// Anything that is not a text, or one that [`super::parse`] refuses.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse(&text).map_err(D::Error::custom)
    }
}

/// The same for a size that may be left out.
pub mod as_optional_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes `bytes` as text, if there are any.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(bytes: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => super::as_text::serialize(bytes, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads text as bytes.
    ///
    /// # Errors
    /// [`super::SizeError`] as the deserializer's own.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<u64>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        let bytes = text.map(|text| super::parse(&text)).transpose();
        bytes.map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024_in_either_case() {
        assert_eq!(parse("512M"), Ok(512 << 20));
        assert_eq!(parse("4g"), Ok(4 << 30));
        assert_eq!(parse("1GiB"), Ok(1 << 30));
        assert_eq!(parse("3kib"), Ok(3 << 10));
        assert_eq!(parse("0"), Ok(0));
    }

    #[test]
    fn number_without_unit_is_refused() {
        let text = "512".to_owned();

        assert_eq!(parse("512"), Err(SizeError::NoUnit { text }));
    }

    #[test]
    fn words_signs_fractions_and_decimal_units_are_not_sizes() {
        for text in ["", "abc", "M", "-1M", "1.5G", "1MB", "1 M", "1Mi", "1é"] {
            let text = text.to_owned();
            assert_eq!(parse(&text), Err(SizeError::NotASize { text }));
        }
    }

    #[test]
    fn overflow_is_refused_in_digits_and_in_units() {
        assert!(matches!(
            parse("99999999999999999999M"),
            Err(SizeError::TooLarge { .. })
        ));
        assert!(matches!(
            parse("16777216T"),
            Err(SizeError::TooLarge { .. })
        ));
    }

    #[test]
    fn printing_uses_the_largest_exact_unit() {
        assert_eq!(Size(1 << 30).to_string(), "1G");
        assert_eq!(Size(1536 << 20).to_string(), "1536M");
        assert_eq!(Size(1000).to_string(), "1000");
        assert_eq!(Size(0).to_string(), "0");
    }
}
