//! A file written again and again from its start, as a journal writes its recycled files.
//!
//! Opening it writes every byte once, unless the file is already there at its full size: blocks
//! that were never written cost several times as much to commit. Writes go past the page cache
//! where the file system lets them; where not, the file is buffered and says so.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Direct writes start, end and lie in memory at multiples of this.
pub const BLOCK: usize = 4096;
/// Size of one recycled file.
pub const FILE_BYTES: u64 = 1 << 30;
const PREPARE_BYTES: usize = 4 << 20;

/// Memory that starts at a multiple of [`BLOCK`].
#[derive(Debug)]
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
    capacity: usize,
}

impl Aligned {
    /// Empty, with room for `capacity` bytes, rounded up to whole blocks.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(BLOCK);
        let memory = vec![0; capacity + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        Self {
            memory,
            start,
            len: 0,
            capacity,
        }
    }

    /// Bytes that still fit.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.capacity - self.len
    }

    /// Forgets what is in it.
    pub const fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends as much of `bytes` as fits.
    pub fn extend(&mut self, bytes: &[u8]) {
        let count = bytes.len().min(self.room());
        let at = self.start + self.len;
        if let (Some(to), Some(from)) = (self.memory.get_mut(at..at + count), bytes.get(..count)) {
            to.copy_from_slice(from);
        }
        self.len += count;
    }

    /// Fills up to a whole number of blocks with zeros.
    pub fn pad(&mut self) {
        let at = self.start + self.len;
        self.len = self.len.next_multiple_of(BLOCK);
        if let Some(rest) = self.memory.get_mut(at..self.start + self.len) {
            rest.fill(0);
        }
    }

    /// What is in it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.memory
            .get(self.start..self.start + self.len)
            .unwrap_or_default()
    }
}

/// A recycled file and the place of its next write.
#[derive(Debug)]
pub struct Recycled {
    file: File,
    at: u64,
    size: u64,
    direct: bool,
}

impl Recycled {
    /// Opens the file, and makes and fills it where it is missing or has another size.
    ///
    /// # Errors
    /// Where the file cannot be opened, filled or flushed.
    pub fn open(path: &Path, size: u64) -> io::Result<Self> {
        let size = size.next_multiple_of(BLOCK as u64);
        let (file, direct) = match open(path, true) {
            Ok(file) => (file, true),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => (open(path, false)?, false),
            Err(error) => return Err(error),
        };
        let mut recycled = Self {
            file,
            at: 0,
            size,
            direct,
        };
        if recycled.file.metadata()?.len() != size {
            match recycled.fill() {
                // Some file systems take the flag and refuse the first write.
                Err(error) if direct && error.kind() == io::ErrorKind::InvalidInput => {
                    recycled.file = open(path, false)?;
                    recycled.direct = false;
                    recycled.fill()?;
                }
                other => other?,
            }
        }
        Ok(recycled)
    }

    /// Whether writes go past the page cache.
    #[must_use]
    pub const fn is_direct(&self) -> bool {
        self.direct
    }

    /// Writes whole blocks at the next place, or at the start where they no longer fit, and
    /// waits until they are durable.
    ///
    /// # Errors
    /// Where writing or flushing fails; what is durable is then unknown.
    pub fn commit(&mut self, blocks: &Aligned) -> io::Result<()> {
        let bytes = blocks.bytes();
        if self.at + bytes.len() as u64 > self.size {
            self.at = 0;
        }
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        self.file.sync_data()
    }

    fn fill(&self) -> io::Result<()> {
        self.file.set_len(0)?;
        let mut zeros = Aligned::new(PREPARE_BYTES);
        zeros.extend(&vec![0; PREPARE_BYTES]);
        let mut at = 0;
        while at < self.size {
            let step = (self.size - at).min(PREPARE_BYTES as u64);
            let part = zeros.bytes().get(..step as usize).unwrap_or_default();
            self.file.write_all_at(part, at)?;
            at += step;
        }
        self.file.sync_all()
    }
}

fn open(path: &Path, direct: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    if direct {
        options.custom_flags(OFlags::DIRECT.bits().cast_signed());
    }
    options.open(path)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use super::*;

    #[test]
    fn aligned_memory_starts_at_a_block_and_pads_with_zeros() {
        let mut blocks = Aligned::new(2 * BLOCK - 1);
        assert_eq!(blocks.room(), 2 * BLOCK);
        blocks.extend(&[7; 3 * BLOCK]);
        assert_eq!(blocks.room(), 0);
        blocks.clear();
        blocks.extend(&[1, 2, 3]);
        blocks.pad();
        assert_eq!(blocks.bytes().as_ptr().align_offset(BLOCK), 0);
        assert_eq!(blocks.bytes().len(), BLOCK);
        assert_eq!(blocks.bytes()[..4], [1, 2, 3, 0]);
        assert!(blocks.bytes()[3..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_recycled_file_keeps_its_size_and_starts_over_when_full() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let size = 4 * BLOCK as u64;
        let mut file = Recycled::open(&path, size).unwrap();
        let mut blocks = Aligned::new(3 * BLOCK);
        for round in 1..=3_u8 {
            blocks.clear();
            blocks.extend(&vec![round; 3 * BLOCK]);
            file.commit(&blocks).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, size);
        assert_eq!(bytes[0], 3, "the third commit did not fit behind the second");
        assert_eq!(bytes[3 * BLOCK], 0);
    }
}
