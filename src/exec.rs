//! How `--exec` reaches the guest: as a small cpio archive behind the initrd. Linux unpacks
//! concatenated archives one after the other, so the command appears as `/alacrity/exec`, and the
//! init of the default guest image runs it.
//!
//! # Source
//! Linux `Documentation/driver-api/early-userspace/buffer-format.rst`: archives start at a multiple
//! of 4 bytes, with zeros between them.

use std::io;

use cpio::newc::{Builder, trailer};

/// Path of the command in the guest.
pub const EXEC_PATH: &str = "/alacrity/exec";
/// The initrd is padded with zeros to a multiple of this many bytes before [`payload`] follows.
pub const INITRD_ALIGN: usize = 4;
/// The archive's own length is a multiple of this many bytes, a cpio block.
const BLOCK_BYTES: usize = 512;

const DIR_MODE: u32 = 0o040_755;
const FILE_MODE: u32 = 0o100_755;

/// The command does not fit into an archive.
#[derive(Debug, thiserror::Error)]
#[error("cannot pack a command of {len} bytes for the guest; put it into a script on a disk")]
pub struct ExecError {
    len: usize,
    source: Option<io::Error>,
}

/// Packs `command` for the guest, a line of shell; the archive goes behind the initrd.
///
/// # Errors
/// [`ExecError`] for a command of 4 GiB or more.
pub fn payload(command: &str) -> Result<Vec<u8>, ExecError> {
    let content = format!("{command}\n");
    let len = content.len();
    let len_u32 = u32::try_from(len).map_err(|_| ExecError { len, source: None })?;
    pack(content.as_bytes(), len_u32).map_err(|source| ExecError {
        len,
        source: Some(source),
    })
}

fn pack(content: &[u8], len: u32) -> io::Result<Vec<u8>> {
    let mut archive = Vec::new();
    Builder::new("alacrity")
        .ino(1)
        .nlink(2)
        .mode(DIR_MODE)
        .write(&mut archive, 0)
        .finish()?;
    let mut file = Builder::new("alacrity/exec")
        .ino(2)
        .nlink(1)
        .mode(FILE_MODE)
        .write(&mut archive, len);
    io::Write::write_all(&mut file, content)?;
    file.finish()?;
    let mut archive = trailer(archive)?;
    archive.resize(archive.len().next_multiple_of(BLOCK_BYTES), 0);
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn archive_holds_directory_file_and_trailer() {
        let archive = payload("uname -a").unwrap();
        assert_eq!(archive.len() % 512, 0);

        let dir = cpio::NewcReader::new(archive.as_slice()).unwrap();
        assert_eq!(dir.entry().name(), "alacrity");
        assert_eq!(dir.entry().mode(), 0o040_755);
        let rest = dir.finish().unwrap();
        let mut file = cpio::NewcReader::new(rest).unwrap();
        assert_eq!(file.entry().name(), "alacrity/exec");
        assert_eq!(file.entry().mode(), 0o100_755);
        let mut content = String::new();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "uname -a\n");
        let rest = file.finish().unwrap();
        assert!(cpio::NewcReader::new(rest).unwrap().entry().is_trailer());
    }

    #[test]
    fn cpio_lists_the_archive() {
        let Ok(mut cpio) = Command::new("cpio")
            .args(["-t", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            println!("SKIPPED: no cpio on this machine");
            return;
        };

        let archive = payload("true").unwrap();
        cpio.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = cpio.wait_with_output().unwrap();

        assert_eq!(output.stdout, b"alacrity\nalacrity/exec\n");
        assert!(output.status.success());
    }
}
