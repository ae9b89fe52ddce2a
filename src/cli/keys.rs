//! Values such as `path=disk.img,ro`: comma-separated keys, each known by name.

use std::fmt;

/// A key that a flag understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// Stands for its value in messages; `None` for a key that takes none.
    pub value: Option<&'static str>,
}

impl Key {
    /// A key with a value.
    pub const fn with_value(name: &'static str, value: &'static str) -> Self {
        Self {
            name,
            value: Some(value),
        }
    }

    /// A key that says all by itself.
    pub const fn alone(name: &'static str) -> Self {
        Self { name, value: None }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            Some(value) => write!(f, "{}={value}", self.name),
            None => f.write_str(self.name),
        }
    }
}

/// Why a list of keys is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// A key that the flag does not know.
    #[error("unknown key `{name}`; known are {known}")]
    Unknown {
        /// What was written.
        name: String,
        /// What may be written.
        known: String,
    },
    /// `key` where `key=value` belongs.
    #[error("`{}` needs a value; write {key}", key.name)]
    NoValue {
        /// The key.
        key: Key,
    },
    /// `key=value` where `key` belongs.
    #[error("`{key}` takes no value; write {key} alone")]
    Value {
        /// The key.
        key: Key,
    },
    /// The same key twice.
    #[error("`{}` is there twice; keep one", key.name)]
    Twice {
        /// The key.
        key: Key,
    },
}

/// A parsed list of keys.
#[derive(Debug, Default)]
pub struct Keys<'a>(Vec<(&'static str, &'a str)>);

impl<'a> Keys<'a> {
    /// Parses `text`, which may hold only keys of `known`, each at most once.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn parse(text: &'a str, known: &[Key]) -> Result<Self, KeysError> {
        let mut pairs = Vec::new();
        for item in text.split(',') {
            let (name, value) = match item.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (item, None),
            };
            let Some(&key) = known.iter().find(|key| key.name == name) else {
                return Err(KeysError::Unknown {
                    name: name.into(),
                    known: known
                        .iter()
                        .map(Key::to_string)
                        .collect::<Vec<_>>()
                        .join(", "),
                });
            };
            let value = match (key.value, value) {
                (Some(_), Some(value)) if !value.is_empty() => value,
                (Some(_), _) => return Err(KeysError::NoValue { key }),
                (None, Some(_)) => return Err(KeysError::Value { key }),
                (None, None) => "",
            };
            if pairs.iter().any(|&(seen, _)| seen == key.name) {
                return Err(KeysError::Twice { key });
            }
            pairs.push((key.name, value));
        }
        Ok(Self(pairs))
    }

    /// The value of `name`, if it was written.
    pub fn value(&self, name: &str) -> Option<&'a str> {
        self.0
            .iter()
            .find(|(seen, _)| *seen == name)
            .map(|&(_, value)| value)
    }

    /// Whether `name` was written.
    pub fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: Key = Key::with_value("path", "FILE");
    const RO: Key = Key::alone("ro");

    fn parse(text: &str) -> Result<Keys<'_>, KeysError> {
        Keys::parse(text, &[PATH, RO])
    }

    #[test]
    fn keys_come_in_any_order_and_values_may_hold_equals_signs() {
        let keys = parse("ro,path=a=b").unwrap();

        assert_eq!(keys.value("path"), Some("a=b"));
        assert!(keys.has("ro"));
    }

    #[test]
    fn unknown_key_is_told_the_known_ones() {
        let err = parse("paht=x").unwrap_err();

        assert_eq!(
            err,
            KeysError::Unknown {
                name: "paht".into(),
                known: "path=FILE, ro".into()
            }
        );
    }

    #[test]
    fn missing_values_superfluous_values_and_repetitions_are_refused() {
        assert_eq!(parse("path").unwrap_err(), KeysError::NoValue { key: PATH });
        assert_eq!(
            parse("path=").unwrap_err(),
            KeysError::NoValue { key: PATH }
        );
        assert_eq!(parse("ro=1").unwrap_err(), KeysError::Value { key: RO });
        assert_eq!(parse("ro,ro").unwrap_err(), KeysError::Twice { key: RO });
    }
}
