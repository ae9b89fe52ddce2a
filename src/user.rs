//! Whom a VM runs as once it has what it needs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A user and a group by their numbers, as in `1000:1000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserIds {
    /// Of the user.
    pub uid: u32,
    /// Of the group.
    pub gid: u32,
}

/// The text names no user and group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not UID:GID; write two numbers, such as 1000:1000 (`id NAME` tells those of a user)"
)]
pub struct UserError {
    text: String,
}

impl fmt::Display for UserIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

impl FromStr for UserIds {
    type Err = UserError;

    fn from_str(text: &str) -> Result<Self, UserError> {
        let number = |text: &str| {
            // To the kernel the greatest one means: as it is.
            let number = text.parse().ok().filter(|number| *number != u32::MAX);
            number.filter(|_| text.bytes().all(|c| c.is_ascii_digit()))
        };
        let ids = text.split_once(':').and_then(|(uid, gid)| {
            Some(UserIds {
                uid: number(uid)?,
                gid: number(gid)?,
            })
        });
        ids.ok_or_else(|| UserError { text: text.into() })
    }
}

impl TryFrom<String> for UserIds {
    type Error = UserError;

    fn try_from(text: String) -> Result<Self, UserError> {
        text.parse()
    }
}

impl From<UserIds> for String {
    fn from(user: UserIds) -> Self {
        user.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_user_and_group_are_read_and_written() {
        let user: UserIds = "1000:65534".parse().unwrap();

        assert_eq!((user.uid, user.gid), (1000, 65534));
        assert_eq!(user.to_string(), "1000:65534");
    }

    #[test]
    fn anything_else_is_refused_and_named() {
        // The last number means "as it is" to the kernel.
        for text in [
            "",
            "1000",
            "1000:",
            ":1000",
            "+1:1",
            "1:1:1",
            "vm1:vm1",
            "1:4294967295",
        ] {
            let error = text.parse::<UserIds>().unwrap_err();

            assert!(
                error.to_string().starts_with(&format!("`{text}`")),
                "{error}"
            );
        }
    }
}
