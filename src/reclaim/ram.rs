//! Guest RAM by pages: the memory file and where it is mapped.

use std::io;
use std::ops::Range;

use alacrity_devices::GuestRam;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use zerocopy::IntoBytes;

use super::swap_file::PageBuffer;

use super::host::PageFile;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
const PAGE_LEN: u64 = 4096;

/// A page's bytes.
pub type PageBytes = [u8; PAGE_BYTES];

/// Why RAM cannot be reclaimed.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// It is not one file, mapped in whole pages.
    #[error("guest RAM is not one memory file, mapped in whole pages")]
    Layout,
    /// It has pages of another size.
    #[error("guest RAM is on huge pages of the host's pool, which cannot be taken in parts")]
    Hugetlb,
    /// The file cannot be used by another descriptor.
    #[error("cannot use the file of guest RAM")]
    File(#[source] io::Error),
}

/// Guest RAM, whose pages are numbered by their place in its file.
///
/// Bytes are read and written through the file and not through the mapping: that neither faults nor
/// makes a page of a hole.
#[derive(Debug)]
pub struct Ram {
    file: Box<dyn PageFile>,
    parts: Vec<Part>,
    /// Keeps the mapping.
    _ram: GuestRam,
}

/// A part of the file that is mapped as one.
#[derive(Debug)]
struct Part {
    pages: Range<u64>,
    /// Where the first byte is mapped, in this process.
    host_addr: u64,
    /// The guest's address of the first byte.
    guest_addr: u64,
}

impl Ram {
    /// All of `ram`.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn new(ram: &GuestRam) -> Result<Self, RamError> {
        let mut file = None;
        let mut parts = Vec::new();
        for region in ram.iter() {
            let offset = region.file_offset().ok_or(RamError::Layout)?;
            if file.is_none() {
                file = Some(offset.file().try_clone().map_err(RamError::File)?);
            }
            let host_addr = region
                .get_host_address(vm_memory::MemoryRegionAddress(0))
                .map_err(|_| RamError::Layout)?;
            let is_whole = |value: u64| value.is_multiple_of(PAGE_LEN);
            if !is_whole(offset.start()) || !is_whole(region.len()) {
                return Err(RamError::Layout);
            }
            let first = offset.start() / PAGE_LEN;
            parts.push(Part {
                pages: first..first + region.len() / PAGE_LEN,
                host_addr: host_addr.addr() as u64,
                guest_addr: region.start_addr().0,
            });
        }
        let file = file.ok_or(RamError::Layout)?;
        let statfs = rustix::fs::fstatfs(&file).map_err(|errno| RamError::File(errno.into()))?;
        // Of tmpfs this is the size of a page, of hugetlbfs that of a huge one.
        if u64::try_from(statfs.f_bsize) != Ok(PAGE_LEN) {
            return Err(RamError::Hugetlb);
        }
        Ok(Ram {
            file: Box::new(file),
            parts,
            _ram: ram.clone(),
        })
    }

    /// The same with other bytes.
    #[cfg(test)]
    pub(super) fn with_file(self, file: Box<dyn PageFile>) -> Self {
        Ram { file, ..self }
    }

    /// Number of pages.
    pub fn num_pages(&self) -> u64 {
        let ends = self.parts.iter().map(|part| part.pages.end);
        ends.max().unwrap_or(0)
    }

    /// Pages from the guest's address 0 to the end of its RAM.
    pub fn num_gfns(&self) -> u64 {
        let end = |part: &Part| part.guest_addr / PAGE_LEN + (part.pages.end - part.pages.start);
        self.parts.iter().map(end).max().unwrap_or(0)
    }

    /// The page that the guest knows as its frame number `gfn`; `None`: it is not RAM.
    pub fn page_of_gfn(&self, gfn: u64) -> Option<u64> {
        self.parts.iter().find_map(|part| {
            let page = part.pages.start + gfn.checked_sub(part.guest_addr / PAGE_LEN)?;
            part.pages.contains(&page).then_some(page)
        })
    }

    /// The guest's address of `page`.
    pub fn gpa_of_page(&self, page: u64) -> Option<u64> {
        let part = self.parts.iter().find(|part| part.pages.contains(&page))?;
        Some(part.guest_addr + (page - part.pages.start) * PAGE_LEN)
    }

    /// Where `page` is mapped.
    pub fn host_addr(&self, page: u64) -> Option<u64> {
        let part = self.parts.iter().find(|part| part.pages.contains(&page))?;
        Some(part.host_addr + (page - part.pages.start) * PAGE_LEN)
    }

    /// The page that is mapped at `host_addr`.
    pub fn page_at(&self, host_addr: u64) -> Option<u64> {
        self.parts.iter().find_map(|part| {
            let page = part.pages.start + host_addr.checked_sub(part.host_addr)? / PAGE_LEN;
            part.pages.contains(&page).then_some(page)
        })
    }

    /// The parts of `pages` that are mapped as one each.
    pub fn runs(&self, pages: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        self.parts.iter().filter_map(move |part| {
            let run = pages.start.max(part.pages.start)..pages.end.min(part.pages.end);
            (!run.is_empty()).then_some(run)
        })
    }

    /// Reads `page` and those that follow it, which may change meanwhile.
    ///
    /// # Errors
    /// Those of `pread`.
    pub fn read(&self, page: u64, pages: &mut [PageBuffer]) -> io::Result<()> {
        self.file
            .read_exact_at(pages.as_mut_bytes(), page * PAGE_LEN)
    }

    /// Writes `page`, also if it is protected.
    ///
    /// # Errors
    /// Those of `pwrite`.
    pub fn write(&self, page: u64, bytes: &PageBytes) -> io::Result<()> {
        self.file.write_all_at(bytes, page * PAGE_LEN)
    }

    /// Makes holes of `pages`.
    ///
    /// # Errors
    /// Those of `fallocate`.
    pub fn punch(&self, pages: Range<u64>) -> io::Result<()> {
        let (start, len) = (pages.start * PAGE_LEN, (pages.end - pages.start) * PAGE_LEN);
        self.file.punch(start, len)
    }

    /// Makes zeros of the holes in `pages`.
    ///
    /// # Errors
    /// Those of `fallocate`: memory is short.
    pub fn fill_with_zeros(&self, pages: Range<u64>) -> io::Result<()> {
        let (start, len) = (pages.start * PAGE_LEN, (pages.end - pages.start) * PAGE_LEN);
        self.file.allocate(start, len)
    }

    /// The first page of `pages` that takes memory, or is swapped by the host's kernel.
    ///
    /// # Errors
    /// Those of `lseek`.
    pub fn first_in_memory(&self, pages: Range<u64>) -> io::Result<Option<u64>> {
        let offset = self.file.data_from(pages.start * PAGE_LEN)?;
        let page = offset.map(|offset| offset / PAGE_LEN);
        Ok(page.filter(|page| pages.contains(page)))
    }

    /// The end of the run of pages in memory that begins with `page`.
    ///
    /// # Errors
    /// Those of `lseek`.
    pub fn end_of_memory(&self, page: u64) -> io::Result<u64> {
        Ok(self.file.hole_from(page * PAGE_LEN)? / PAGE_LEN)
    }
}
