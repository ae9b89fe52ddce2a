//! How nodes of the control tree look: as `ls`, `ls -l`, `tree`, `stat` and JSON.

use std::fmt::Write;
use std::time::SystemTime;

use serde::Serialize;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Has entries.
    Directory,
    /// Has a value.
    File,
    /// Leads elsewhere.
    Link,
}

/// A node, with all that was asked for.
#[derive(Debug, Clone, Serialize)]
pub struct Listing {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Its name, or the path that was asked for.
    pub name: String,
    /// Permission bits.
    #[serde(serialize_with = "octal")]
    pub mode: u16,
    /// Bytes that the mount shows; 0 for directories.
    pub size: u64,
    /// When it was made or changed.
    #[serde(serialize_with = "date")]
    pub modified: SystemTime,
    /// Where a link leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What is in a directory, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contents: Option<Vec<Listing>>,
}

fn octal<S: serde::Serializer>(mode: &u16, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{mode:04o}"))
}

fn date<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*time))
}

impl Listing {
    /// The permissions as `ls -l` writes them, e.g. `drwxr-xr-x`.
    pub fn permissions(&self) -> String {
        let kind = match self.kind {
            Kind::Directory => 'd',
            Kind::File => '-',
            Kind::Link => 'l',
        };
        let bits = (0..9).map(|bit| match self.mode & (0o400 >> bit) {
            0 => '-',
            _ => ['r', 'w', 'x'].get(bit % 3).copied().unwrap_or('?'),
        });
        std::iter::once(kind).chain(bits).collect()
    }

    /// The name, and where a link leads.
    fn label(&self) -> String {
        match &self.target {
            Some(target) => format!("{} -> {target}", self.name),
            None => self.name.clone(),
        }
    }

    /// The line of `ls`.
    pub fn short_line(&self) -> String {
        format!("{}\n", self.name)
    }

    /// The line of `ls -l`.
    pub fn long_line(&self) -> String {
        format!(
            "{} {:>6} {} {}\n",
            self.permissions(),
            self.size,
            humantime::format_rfc3339_seconds(self.modified),
            self.label()
        )
    }

    /// All below it as `tree` draws it, with the count at the end.
    pub fn drawing(&self) -> String {
        let mut text = format!("{}\n", self.label());
        let mut count = Count::default();
        self.draw_contents("", &mut text, &mut count);
        let Count { directories, files } = count;
        let directory = if directories == 1 {
            "directory"
        } else {
            "directories"
        };
        let file = if files == 1 { "file" } else { "files" };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n{directories} {directory}, {files} {file}");
        text
    }

    fn draw_contents(&self, indent: &str, text: &mut String, count: &mut Count) {
        let contents = self.contents.as_deref().unwrap_or_default();
        for (idx, entry) in contents.iter().enumerate() {
            let is_last = idx + 1 == contents.len();
            let (branch, below) = match is_last {
                true => ("└── ", "    "),
                false => ("├── ", "│   "),
            };
            let _ = writeln!(text, "{indent}{branch}{}", entry.label());
            match entry.kind {
                Kind::File => count.files += 1,
                // As tree(1), which counts a link as what it leads to: here always a directory.
                Kind::Directory | Kind::Link => count.directories += 1,
            }
            entry.draw_contents(&format!("{indent}{below}"), text, count);
        }
    }
}

#[derive(Debug, Default)]
struct Count {
    directories: usize,
    files: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn node(kind: Kind, name: &str, mode: u16, contents: Option<Vec<Listing>>) -> Listing {
        Listing {
            kind,
            name: name.into(),
            mode,
            size: 0,
            modified: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000),
            target: (kind == Kind::Link).then(|| "../../devices/eth0".into()),
            contents,
        }
    }

    fn sample() -> Listing {
        let kind = node(Kind::File, "type", 0o644, None);
        let eth0 = node(Kind::Directory, "eth0", 0o555, Some(vec![kind]));
        let link = node(Kind::Link, "eth0", 0o777, None);
        let bus = node(Kind::Directory, "bus0", 0o755, Some(vec![link]));
        let devices = node(Kind::Directory, "devices", 0o755, Some(vec![eth0]));
        let instances = node(Kind::Directory, "instances", 0o755, Some(vec![bus]));
        node(
            Kind::Directory,
            "config",
            0o555,
            Some(vec![devices, instances]),
        )
    }

    #[test]
    fn drawing_looks_as_trees_do() {
        assert_eq!(
            sample().drawing(),
            "\
config
├── devices
│   └── eth0
│       └── type
└── instances
    └── bus0
        └── eth0 -> ../../devices/eth0

5 directories, 1 file
"
        );
    }

    #[test]
    fn long_line_has_mode_size_time_and_target() {
        let link = node(Kind::Link, "eth0", 0o777, None);
        let file = node(Kind::File, "type", 0o644, None);

        assert_eq!(
            link.long_line(),
            "lrwxrwxrwx      0 2001-09-09T01:46:40Z eth0 -> ../../devices/eth0\n"
        );
        assert_eq!(
            file.long_line(),
            "-rw-r--r--      0 2001-09-09T01:46:40Z type\n"
        );
    }

    #[test]
    fn json_names_what_there_is_and_nothing_else() {
        let json = serde_json::to_value(node(Kind::File, "type", 0o644, None)).unwrap();

        assert_eq!(
            json,
            serde_json::json!({
                "type": "file", "name": "type", "mode": "0644", "size": 0,
                "modified": "2001-09-09T01:46:40Z",
            })
        );
    }
}
