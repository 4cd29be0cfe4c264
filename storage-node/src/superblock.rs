//! Who a data folder belongs to, and how often it was started: the file `superblock`.
//!
//! One block of 4 KiB, little endian, replaced as a whole by writing another and renaming it:
//!
//! | bytes     | field                                              |
//! |-----------|----------------------------------------------------|
//! | 0–3       | magic `FBSB`                                       |
//! | 4         | format version, 3                                  |
//! | 5–7       | zero                                               |
//! | 8–23      | disk, a random uuid                                |
//! | 24–27     | node                                               |
//! | 28–31     | generation                                         |
//! | 32–39     | boot, counts the starts                            |
//! | 40–47     | number of the newest journal file begun, 0 if none |
//! | 48–51     | incarnation of the cluster                         |
//! | 52–59     | highest metadata revision seen                     |
//! | 60–67     | revision of the node's own record as last written  |
//! | 68–131    | the last eight starts, the newest first, 0 if none |
//! | 132–133   | length of the cluster id, c                        |
//! | 134–…     | cluster id                                         |
//! | …–4091    | zero                                               |
//! | 4092–4095 | CRC-32C of bytes 0–4091                            |
//!
//! Version 2 has no bytes 68–131, version 1 none of 60–131: what follows them lies that much earlier.
//! Both are read, and written as version 3.

use std::io;
use std::path::PathBuf;

use bytes::{Buf, BufMut};
use forebay_record::{Generation, NodeId, crc32c};
use uuid::Uuid;

use crate::buffer::Buffer;
use crate::disk::{BLOCK_LEN, Disk};

const NAME: &str = "superblock";
const NEW_NAME: &str = "superblock.new";
const MAGIC: [u8; 4] = *b"FBSB";
const VERSION: u8 = 3;
const VERSION_WITHOUT_STARTS: u8 = 2;
const VERSION_WITHOUT_RECORD: u8 = 1;
const CHECKED_LEN: usize = BLOCK_LEN - 4;
/// Starts that a superblock remembers: as many may fail in a row while one of them still reaches the
/// metadata store.
pub const STARTS: usize = 8;
/// Longest cluster id.
pub const CLUSTER_LEN_MAX: usize = 1024;

/// What a data folder says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Random, so that two folders are never the same.
    pub disk: Uuid,
    /// The node.
    pub node: NodeId,
    /// Its generation.
    pub generation: Generation,
    /// Its starts.
    pub boot: u64,
    /// Newest journal file begun.
    pub newest_file: u64,
    /// Incarnation of the cluster.
    pub incarnation: u32,
    /// Highest metadata revision seen, as of some seconds ago.
    pub revision: u64,
    /// Revision of the node's own record as it was last written: nobody but the node and operators
    /// change it, so one that is older shows a store that went back in time, however far that has
    /// gone on since.
    pub record_revision: u64,
    /// Random numbers of the last starts, the newest first: the one that the node's record names is among
    /// them, or it was a copy of this disk that started last.
    pub starts: [u64; STARTS],
    /// The cluster.
    pub cluster: String,
}

/// Why a superblock cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    /// The disk failed.
    #[error("cannot use {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its bytes are not right.
    #[error("{} is damaged: {reason}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl Superblock {
    fn encode(&self) -> Buffer {
        let mut buffer = Buffer::new(BLOCK_LEN);
        let cluster = self.cluster.as_bytes();
        let cluster = cluster.get(..CLUSTER_LEN_MAX).unwrap_or(cluster);
        let mut at = buffer.as_mut_slice();
        at.put_slice(&MAGIC);
        at.put_slice(&[VERSION, 0, 0, 0]);
        at.put_slice(self.disk.as_bytes());
        at.put_u32_le(self.node.0);
        at.put_u32_le(self.generation.0);
        at.put_u64_le(self.boot);
        at.put_u64_le(self.newest_file);
        at.put_u32_le(self.incarnation);
        at.put_u64_le(self.revision);
        at.put_u64_le(self.record_revision);
        for start in self.starts {
            at.put_u64_le(start);
        }
        at.put_u16_le(u16::try_from(cluster.len()).unwrap_or(u16::MAX));
        at.put_slice(cluster);
        if let Some((checked, checksum)) = buffer.as_mut_slice().split_last_chunk_mut::<4>() {
            *checksum = crc32c(checked).to_le_bytes();
        }
        buffer
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let block = bytes
            .first_chunk::<BLOCK_LEN>()
            .ok_or_else(|| format!("{} bytes", bytes.len()))?;
        let (checked, checksum) = block.split_at(CHECKED_LEN);
        if checked.first_chunk() != Some(&MAGIC) {
            return Err(format!("magic {:02x?}", checked.first_chunk::<4>()));
        }
        let found = checksum.first_chunk().map_or(0, |sum| u32::from_le_bytes(*sum));
        let computed = crc32c(checked);
        if found != computed {
            return Err(format!("checksum {found:08x}, computed {computed:08x}"));
        }
        let version = match checked.get(4..8) {
            Some(&[version @ VERSION_WITHOUT_RECORD..=VERSION, 0, 0, 0]) => version,
            _ => return Err(format!("format version {:?} is not supported", checked.get(4))),
        };
        // The block is longer than the sum of the reads, so none of them can run short.
        let mut at = checked.get(8..).unwrap_or_default();
        let mut disk = [0; 16];
        at.copy_to_slice(&mut disk);
        let mut superblock = Self {
            disk: Uuid::from_bytes(disk),
            node: NodeId(at.get_u32_le()),
            generation: Generation(at.get_u32_le()),
            boot: at.get_u64_le(),
            newest_file: at.get_u64_le(),
            incarnation: at.get_u32_le(),
            revision: at.get_u64_le(),
            record_revision: 0,
            starts: [0; STARTS],
            cluster: String::new(),
        };
        if version > VERSION_WITHOUT_RECORD {
            superblock.record_revision = at.get_u64_le();
        }
        if version > VERSION_WITHOUT_STARTS {
            superblock.starts.fill_with(|| at.get_u64_le());
        }
        let len = usize::from(at.get_u16_le());
        let cluster = at.get(..len).ok_or("cluster id too long")?;
        superblock.cluster = String::from_utf8(cluster.to_vec()).map_err(|error| error.to_string())?;
        Ok(superblock)
    }

    /// This start's number and those of the ones before it.
    #[must_use]
    pub fn starts_with(&self, start: u64) -> [u64; STARTS] {
        let mut starts = self.starts;
        starts.rotate_right(1);
        if let Some(newest) = starts.first_mut() {
            *newest = start;
        }
        starts
    }

    /// Reads the folder's superblock; none where there is no such file.
    ///
    /// # Errors
    /// Where the disk fails or the bytes are not right.
    pub fn read(disk: &dyn Disk) -> Result<Option<Self>, SuperblockError> {
        let path = disk.path(NAME);
        let io_error = |source| SuperblockError::Io {
            path: path.clone(),
            source,
        };
        let file = match disk.open(NAME) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(error)),
        };
        let mut buffer = Buffer::new(BLOCK_LEN);
        let read = file.read_at(buffer.as_mut_slice(), 0).map_err(io_error)?;
        let bytes = buffer.as_slice().get(..read).unwrap_or_default();
        Self::decode(bytes)
            .map(Some)
            .map_err(|reason| SuperblockError::Damaged { path, reason })
    }

    /// Makes this the folder's superblock, durably.
    ///
    /// # Errors
    /// Where the disk fails; then either the old or the new one is there.
    pub fn write(&self, disk: &dyn Disk) -> Result<(), SuperblockError> {
        self.replace(disk).map_err(|source| SuperblockError::Io {
            path: disk.path(NAME),
            source,
        })
    }

    fn replace(&self, disk: &dyn Disk) -> io::Result<()> {
        match disk.remove(NEW_NAME) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let file = disk.create(NEW_NAME)?;
        file.write_at(self.encode().as_slice(), 0)?;
        file.sync()?;
        disk.rename(NEW_NAME, NAME)?;
        disk.sync_names()
    }

    /// Removes a folder's superblock, where there is one.
    ///
    /// # Errors
    /// Where the disk fails.
    pub fn remove(disk: &dyn Disk) -> Result<(), SuperblockError> {
        let removed = match disk.remove(NAME) {
            Ok(()) => disk.sync_names(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        removed.map_err(|source| SuperblockError::Io {
            path: disk.path(NAME),
            source,
        })
    }
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
    use crate::disk::{DirectIo, RealDisk};

    fn superblock() -> Superblock {
        Superblock {
            disk: Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
            node: NodeId(3),
            generation: Generation(2),
            boot: 17,
            newest_file: 40,
            incarnation: 1,
            revision: 1234,
            record_revision: 1230,
            starts: [8, 7, 6, 5, 4, 3, 2, 1],
            cluster: "a-cluster".to_owned(),
        }
    }

    #[test]
    fn the_bytes_of_a_superblock_are_pinned() {
        let golden = include_bytes!("../tests/golden/superblock-v3.bin");
        assert!(
            superblock().encode().as_slice() == golden,
            "the format changed: that needs a new version"
        );
    }

    #[test]
    fn superblocks_of_earlier_versions_are_read() {
        let golden = include_bytes!("../tests/golden/superblock-v2.bin");
        let second = Superblock {
            starts: [0; STARTS],
            ..superblock()
        };
        assert_eq!(Superblock::decode(golden).unwrap(), second);
        let golden = include_bytes!("../tests/golden/superblock-v1.bin");
        let first = Superblock {
            record_revision: 0,
            ..second
        };
        assert_eq!(Superblock::decode(golden).unwrap(), first);
    }

    #[test]
    fn only_the_last_starts_are_remembered() {
        let mut superblock = superblock();
        superblock.starts = superblock.starts_with(9);
        assert_eq!(superblock.starts, [9, 8, 7, 6, 5, 4, 3, 2]);
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let bytes = superblock().encode().as_slice().to_vec();
        assert_eq!(Superblock::decode(&bytes).unwrap(), superblock());
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x80;
            assert!(Superblock::decode(&flipped).is_err(), "byte {at}");
        }
        for len in 0..bytes.len() {
            assert!(Superblock::decode(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn a_superblock_is_replaced_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(folder.path(), DirectIo::Auto).unwrap();
        assert_eq!(Superblock::read(&disk).unwrap(), None);
        for boot in 1..4 {
            let written = Superblock { boot, ..superblock() };
            written.write(&disk).unwrap();
            assert_eq!(Superblock::read(&disk).unwrap(), Some(written));
        }
        Superblock::remove(&disk).unwrap();
        Superblock::remove(&disk).unwrap();
        assert_eq!(Superblock::read(&disk).unwrap(), None);
    }
}
