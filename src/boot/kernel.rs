//! Recognising and loading kernels, by content.
//!
//! | format | recognised by | entered through |
//! |---|---|---|
//! | bzImage | `HdrS` at `0x202` | 64-bit boot protocol |
//! | ELF `vmlinux` | `\x7fELF`, x86-64 | the PVH note if there is one, else 64-bit at `e_entry` |

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use alacrity_devices::GuestRam;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};

use crate::layout::{HIGH_MEMORY_START, MIB};
use crate::memory::low_end;

/// Bytes to look at: past the setup header, its end included.
const HEAD_BYTES: usize = 0x268;
const ELF_MACHINE_OFFSET: usize = 18;
const ELF_MACHINE_X86_64: u16 = 62;
const ARM64_MAGIC_OFFSET: usize = 56;
const SETUP_SECTS_OFFSET: usize = 0x1f1;
const SYSSIZE_OFFSET: usize = 0x1f4;
const SETUP_MAGIC_OFFSET: usize = 0x202;
const XLOADFLAGS_OFFSET: usize = 0x236;
const XLF_KERNEL_64: u16 = 1;
/// Highest initrd address for kernels whose header does not tell: the x86 kernel's own default.
const INITRD_ADDR_MAX: u64 = 0x7fff_ffff;

/// Why a kernel is refused.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It cannot be opened or read.
    #[error("cannot read kernel {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Nothing in it.
    #[error("kernel {} is empty; give a bzImage or vmlinux file", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Neither bzImage nor ELF.
    #[error("kernel {} is neither a bzImage nor an ELF vmlinux; give one of these (compressed or UEFI images do not boot here)", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// For another machine.
    #[error("kernel {} is for {machine}; this is an x86-64 machine, give an x86-64 kernel", path.display())]
    ForeignMachine {
        /// The file.
        path: PathBuf,
        /// What it is for.
        machine: String,
    },
    /// The setup header says that there is no 64-bit entry.
    #[error("kernel {} has no 64-bit entry point (32-bit kernel?); give an x86-64 kernel", path.display())]
    No64BitEntry {
        /// The file.
        path: PathBuf,
    },
    /// Shorter than its own header says.
    #[error("kernel {} has {found} bytes, its header says {wanted}: it is truncated; copy it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// The length that setup code and payload need.
        wanted: u64,
    },
    /// The loader stumbled: truncated or damaged.
    #[error("cannot load kernel {}; is it truncated or damaged?", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        source: linux_loader::loader::Error,
    },
    /// Guest RAM is too small for it.
    #[error("kernel {} needs {} MiB of guest memory below 3 GiB, there are {} MiB; raise --memory", path.display(), needed.div_ceil(MIB), available / MIB)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes the kernel needs from address 0.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
}

/// The format of a kernel file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Compressed kernel with a setup header.
    BzImage,
    /// Uncompressed ELF kernel.
    Elf,
}

/// A recognised kernel file.
#[derive(Debug)]
pub struct KernelImage {
    path: PathBuf,
    file: File,
    format: Format,
}

/// Where a kernel ended up in guest RAM.
#[derive(Debug)]
pub struct LoadedKernel {
    /// How it is entered.
    pub protocol: Protocol,
    /// First GPA after the kernel, its unpacking space included.
    pub end: u64,
    /// Highest GPA that the last byte of an initrd may have.
    pub initrd_max: u64,
}

/// How a kernel is entered.
#[derive(Debug)]
pub enum Protocol {
    /// 64-bit boot protocol.
    Linux64 {
        /// Entry point.
        entry: u64,
        /// The bzImage's own header, if it has one.
        header: Option<Box<setup_header>>,
    },
    /// PVH boot protocol.
    Pvh {
        /// Entry point.
        entry: u64,
    },
}

impl KernelImage {
    /// Opens `path` and recognises its format.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        let read_error = |source| KernelError::Read {
            path: path.into(),
            source,
        };
        let mut file = File::open(path).map_err(read_error)?;
        let mut head = Vec::with_capacity(HEAD_BYTES);
        file.by_ref()
            .take(HEAD_BYTES as u64)
            .read_to_end(&mut head)
            .map_err(read_error)?;
        let format = recognise(&head, path)?;
        if format == Format::BzImage {
            let found = file.metadata().map_err(read_error)?.len();
            let wanted = bzimage_bytes(&head);
            if found < wanted {
                return Err(KernelError::Truncated {
                    path: path.into(),
                    found,
                    wanted,
                });
            }
        }
        file.seek(SeekFrom::Start(0)).map_err(read_error)?;
        Ok(KernelImage {
            path: path.into(),
            file,
            format,
        })
    }

    /// The recognised format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Loads the kernel into `ram`.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn load(&mut self, ram: &GuestRam) -> Result<LoadedKernel, KernelError> {
        let loaded = match self.format {
            Format::BzImage => BzImage::load(ram, None, &mut self.file, Some(HIGH_MEMORY_START)),
            Format::Elf => Elf::load(ram, None, &mut self.file, Some(HIGH_MEMORY_START)),
        }
        .map_err(|source| self.load_error(source, ram))?;
        let kernel = match (self.format, loaded.pvh_boot_cap) {
            (Format::BzImage, _) => {
                let header = loaded.setup_header.unwrap_or_default();
                // The kernel unpacks itself to its preferred address, or where it is if that is
                // higher (Linux boot.rst, init_size).
                let unpack_at = header.pref_address.max(loaded.kernel_load.0);
                let unpack_end = unpack_at.saturating_add(header.init_size.into());
                LoadedKernel {
                    end: unpack_end.max(loaded.kernel_end),
                    initrd_max: header.initrd_addr_max.into(),
                    protocol: Protocol::Linux64 {
                        entry: loaded.kernel_load.0 + 0x200,
                        header: Some(Box::new(header)),
                    },
                }
            }
            (Format::Elf, PvhBootCapability::PvhEntryPresent(entry)) => LoadedKernel {
                end: loaded.kernel_end,
                initrd_max: INITRD_ADDR_MAX,
                protocol: Protocol::Pvh { entry: entry.0 },
            },
            (Format::Elf, _) => LoadedKernel {
                end: loaded.kernel_end,
                initrd_max: INITRD_ADDR_MAX,
                protocol: Protocol::Linux64 {
                    entry: loaded.kernel_load.0,
                    header: None,
                },
            },
        };
        if kernel.end > low_end(ram) {
            return Err(self.too_large(kernel.end, ram));
        }
        Ok(kernel)
    }

    /// A kernel that does not fit fails in the loader like a damaged one; its size tells which.
    fn load_error(&self, source: linux_loader::loader::Error, ram: &GuestRam) -> KernelError {
        let file_bytes = self.file.metadata().map_or(0, |metadata| metadata.len());
        let needed = HIGH_MEMORY_START.0 + file_bytes;
        if needed > low_end(ram) {
            return self.too_large(needed, ram);
        }
        KernelError::Load {
            path: self.path.clone(),
            source,
        }
    }

    fn too_large(&self, needed: u64, ram: &GuestRam) -> KernelError {
        KernelError::TooLarge {
            path: self.path.clone(),
            needed,
            available: low_end(ram),
        }
    }
}

/// Length of the file that a bzImage's header announces (Linux `boot.rst`, `setup_sects` and
/// `syssize`).
fn bzimage_bytes(head: &[u8]) -> u64 {
    let setup_sectors = match head.get(SETUP_SECTS_OFFSET) {
        None | Some(0) => 4, // as old as Linux 0.9
        Some(&sectors) => sectors,
    };
    let paragraphs = head
        .get(SYSSIZE_OFFSET..SYSSIZE_OFFSET + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_le_bytes);
    (u64::from(setup_sectors) + 1) * 512 + u64::from(paragraphs) * 16
}

fn recognise(head: &[u8], path: &Path) -> Result<Format, KernelError> {
    let u16_at = |offset: usize| {
        head.get(offset..offset + 2)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u16::from_le_bytes)
    };
    let foreign = |machine: &str| KernelError::ForeignMachine {
        path: path.into(),
        machine: machine.into(),
    };
    if head.is_empty() {
        return Err(KernelError::Empty { path: path.into() });
    }
    if head.starts_with(b"\x7fELF") {
        return match u16_at(ELF_MACHINE_OFFSET) {
            ELF_MACHINE_X86_64 => Ok(Format::Elf),
            183 => Err(foreign("arm64")),
            243 => Err(foreign("RISC-V")),
            other => Err(foreign(&format!("ELF machine {other}"))),
        };
    }
    if head
        .get(ARM64_MAGIC_OFFSET..)
        .is_some_and(|rest| rest.starts_with(b"ARM\x64"))
    {
        return Err(foreign("arm64"));
    }
    if head
        .get(SETUP_MAGIC_OFFSET..)
        .is_some_and(|rest| rest.starts_with(b"HdrS"))
    {
        return if u16_at(XLOADFLAGS_OFFSET) & XLF_KERNEL_64 != 0 {
            Ok(Format::BzImage)
        } else {
            Err(KernelError::No64BitEntry { path: path.into() })
        };
    }
    Err(KernelError::UnknownFormat { path: path.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn open(bytes: &[u8]) -> Result<KernelImage, KernelError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        KernelImage::open(file.path())
    }

    fn bzimage_head(xloadflags: u16) -> Vec<u8> {
        let mut head = vec![0; 1024];
        head[SETUP_SECTS_OFFSET] = 1;
        head[SETUP_MAGIC_OFFSET..][..4].copy_from_slice(b"HdrS");
        head[XLOADFLAGS_OFFSET..][..2].copy_from_slice(&xloadflags.to_le_bytes());
        head
    }

    #[test]
    fn empty_file_is_refused() {
        assert!(matches!(open(b""), Err(KernelError::Empty { .. })));
    }

    #[test]
    fn random_file_is_refused() {
        assert!(matches!(
            open(&[0x5a; 4096]),
            Err(KernelError::UnknownFormat { .. })
        ));
    }

    #[test]
    fn arm64_image_is_refused_by_name() {
        let mut head = vec![0; 64];
        head[ARM64_MAGIC_OFFSET..][..4].copy_from_slice(b"ARM\x64");

        let Err(KernelError::ForeignMachine { machine, .. }) = open(&head) else {
            panic!()
        };
        assert_eq!(machine, "arm64");
    }

    #[test]
    fn arm64_elf_is_refused_by_name() {
        let mut head = vec![0; 64];
        head[..4].copy_from_slice(b"\x7fELF");
        head[ELF_MACHINE_OFFSET] = 183;

        assert!(matches!(
            open(&head),
            Err(KernelError::ForeignMachine { .. })
        ));
    }

    #[test]
    fn bzimage_without_64_bit_entry_is_refused() {
        assert!(matches!(
            open(&bzimage_head(0)),
            Err(KernelError::No64BitEntry { .. })
        ));
    }

    #[test]
    fn bzimage_is_recognised_by_its_header() {
        assert_eq!(open(&bzimage_head(1)).unwrap().format(), Format::BzImage);
    }

    #[test]
    fn bzimage_shorter_than_its_header_says_is_refused() {
        let mut head = bzimage_head(1);
        head[SYSSIZE_OFFSET] = 1;

        let err = open(&head).unwrap_err();

        assert!(
            matches!(
                err,
                KernelError::Truncated {
                    found: 1024,
                    wanted: 1040,
                    ..
                }
            ),
            "{err}"
        );
    }

    #[test]
    fn truncated_elf_is_refused_when_loaded() {
        let mut head = vec![0; 64];
        head[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        head[ELF_MACHINE_OFFSET] = 62;
        let ram = crate::memory::allocate(64 * MIB, false).unwrap();

        let err = open(&head).unwrap().load(&ram).unwrap_err();

        assert!(matches!(err, KernelError::Load { .. }), "{err}");
    }

    #[test]
    fn missing_file_is_refused() {
        let err = KernelImage::open(Path::new("/nonexistent/vmlinux")).unwrap_err();

        assert!(matches!(err, KernelError::Read { .. }), "{err}");
    }
}
