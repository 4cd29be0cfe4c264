//! Files of the journal: their names, and the table of those in use.
//!
//! | name             | what                                                                |
//! |------------------|---------------------------------------------------------------------|
//! | `journal-<hex>`  | in use; the number is the file's, its header was durable first      |
//! | `spare-<hex>`    | full length, every byte written once                                |
//! | `zeroing-<hex>`  | becoming a spare; worthless after a crash                           |
//! | `reserve-<hex>`  | full length: room for fences and trims when the disk is full        |
//!
//! A file is in use while a segment has a frame in it; whatever else it holds is also in the
//! snapshots of later files. Prepared and reserved files are [`super::pool`]'s.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::ops::Range;
use std::sync::Arc;

use forebay_record::frame::{HEADER_LEN, PAYLOAD_LEN_MAX};
use parking_lot::RwLock;

use super::format::FileHeader;
use crate::disk::{BLOCK_LEN_U64, File};

/// Smallest file.
pub const FILE_LEN_MIN: u64 = 1 << 20;
/// Files kept back so that fences and trims can always be written.
pub const RESERVED_FILES: usize = 2;

const JOURNAL: &str = "journal-";
pub(super) const SPARE: &str = "spare-";
pub(super) const ZEROING: &str = "zeroing-";
pub(super) const RESERVE: &str = "reserve-";

/// Name of a file in use.
#[must_use]
pub fn journal_name(number: u64) -> String {
    format!("{JOURNAL}{number:016x}")
}

/// The number in the name of a file in use.
#[must_use]
pub fn journal_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(JOURNAL).filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// Whether a name is one of the journal's, of any kind.
#[must_use]
pub fn is_ours(name: &str) -> bool {
    [JOURNAL, SPARE, ZEROING, RESERVE]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// A file in use.
#[derive(Debug)]
pub struct JournalFile {
    /// Its header.
    pub header: FileHeader,
    /// Its bytes.
    pub file: Arc<dyn File>,
}

impl JournalFile {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        journal_name(self.header.number)
    }
}

/// Files in use, by the position of their first byte.
#[derive(Debug, Default)]
pub struct FileTable(RwLock<BTreeMap<u64, Arc<JournalFile>>>);

impl FileTable {
    /// Adds a file.
    pub fn insert(&self, file: Arc<JournalFile>) {
        self.0.write().insert(file.header.start, file);
    }

    /// The file that holds a position, and where its part of the journal ends: where the next file
    /// begins.
    #[must_use]
    pub fn find(&self, position: u64) -> Option<(Arc<JournalFile>, u64)> {
        let table = self.0.read();
        let (_, file) = table.range(..=position).next_back()?;
        let next = table
            .range((Excluded(position), Unbounded))
            .next()
            .map(|(start, _)| *start);
        let end = next.unwrap_or(u64::MAX).min(file.header.start + file.header.len);
        (position < end).then(|| (Arc::clone(file), end))
    }

    /// The next positions from one on that belong to one file, below `until`.
    #[must_use]
    pub fn range_from(&self, position: u64, until: u64) -> Option<Range<u64>> {
        let start = match self.find(position) {
            Some(_) => position,
            None => *self.0.read().range(position..).next()?.0,
        };
        let (_, end) = self.find(start)?;
        (start < end.min(until)).then(|| start..end.min(until))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.read().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.read().is_empty()
    }

    /// Bytes written to them: a file counts whole once the next was begun, the newest up to where
    /// the journal is durable.
    #[must_use]
    pub fn written_bytes(&self, durable: u64) -> u64 {
        let table = self.0.read();
        let whole: u64 = table.values().map(|file| file.header.len).sum();
        let newest = table.values().next_back().map_or(0, |newest| {
            let end = newest.header.start + newest.header.len;
            end.saturating_sub(durable.max(newest.header.start))
        });
        whole.saturating_sub(newest)
    }

    /// Bytes of all of them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.read().values().map(|file| file.header.len).sum()
    }

    /// Positions that belong to each file but the newest, oldest first. A frame that becomes durable
    /// later lies in none of them.
    #[must_use]
    pub fn closed_ranges(&self) -> Vec<Range<u64>> {
        let table = self.0.read();
        let ends = table.keys().skip(1);
        table
            .values()
            .zip(ends)
            .map(|(file, next)| {
                let start = file.header.start;
                start..(*next).min(start + file.header.len)
            })
            .collect()
    }

    /// Takes out the files that begin at these positions and are neither the newest nor read by
    /// anybody: a reader holds its own handle, and its file must not be written under it.
    pub fn take_out(&self, starts: &[u64]) -> Vec<Arc<JournalFile>> {
        let mut table = self.0.write();
        let newest = table.keys().next_back().copied();
        let mut taken = Vec::new();
        for start in starts.iter().filter(|start| Some(**start) != newest) {
            let unread = table.get(start).is_some_and(|file| Arc::strong_count(file) == 1);
            if unread && let Some(file) = table.remove(start) {
                taken.push(file);
            }
        }
        taken
    }
}

/// The length of files for a configured size: whole blocks, not less than the least.
#[must_use]
pub const fn file_len(configured: u64) -> u64 {
    let len = configured / BLOCK_LEN_U64 * BLOCK_LEN_U64;
    if len < FILE_LEN_MIN { FILE_LEN_MIN } else { len }
}

/// The largest frame that a node with files of this length takes, in bytes of content. A quarter of a
/// file is for the snapshot at its beginning, an eighth is more than its headers and padding take: so
/// such a frame fits every file that is begun, whatever the snapshot.
///
/// The only place that says so: nodes refuse by this number, and tell it to brokers in their records.
#[must_use]
pub fn frame_bytes_max(file_len: u64) -> usize {
    let content = (file_len / 8 * 5).saturating_sub(HEADER_LEN as u64);
    usize::try_from(content).map_or(PAYLOAD_LEN_MAX, |content| content.min(PAYLOAD_LEN_MAX))
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use forebay_record::{Generation, NodeId, Token};

    use super::*;
    use crate::disk::fault::FaultDisk;
    use crate::disk::{Disk, round_up};
    use crate::journal::format::{BLOCK_HEADER_LEN, Owner};

    fn file(disk: &FaultDisk, number: u64, start: u64) -> Arc<JournalFile> {
        let header = FileHeader {
            number,
            start,
            salt: 0,
            len: 100,
            owner: Owner {
                cluster: 0,
                node: NodeId(1),
                generation: Generation(1),
            },
            boot: 1,
            prev_block: 0,
            floor: Token(0),
            snapshot_len: 0,
            snapshot_checksum: 0,
        };
        let file = disk.create(&journal_name(number)).unwrap();
        Arc::new(JournalFile { header, file })
    }

    #[test]
    fn a_file_that_somebody_reads_and_the_newest_one_stay() {
        let (disk, table) = (FaultDisk::default(), FileTable::default());
        for number in 1..=3 {
            table.insert(file(&disk, number, number * 80));
        }
        assert_eq!(table.closed_ranges(), [80..160, 160..240]);
        assert_eq!((table.bytes(), table.written_bytes(250)), (300, 210));
        let (read, end) = table.find(90).unwrap();
        assert_eq!((read.header.number, end), (1, 160));
        assert_eq!(table.range_from(0, 300), Some(80..160));
        assert_eq!(table.range_from(200, 300), Some(200..240));
        assert_eq!(table.range_from(240, 250), Some(240..250));
        assert_eq!(table.range_from(250, 250), None);
        assert_eq!(table.range_from(340, 999), None);
        let taken = table.take_out(&[80, 160, 240, 999]);
        assert_eq!(
            taken.iter().map(|file| file.header.number).collect::<Vec<_>>(),
            [2]
        );
        assert!(table.find(170).is_none_or(|(file, _)| file.header.number == 1));
        drop(read);
        assert_eq!(table.take_out(&[80, 240]).len(), 1);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn the_largest_frame_leaves_room_for_a_snapshot_and_is_never_more_than_a_frame_can_have() {
        assert_eq!(frame_bytes_max(1 << 20), (640 << 10) - HEADER_LEN);
        assert_eq!(frame_bytes_max(16 << 20), (10 << 20) - HEADER_LEN);
        assert_eq!(frame_bytes_max(1 << 30), PAYLOAD_LEN_MAX);
        assert_eq!(frame_bytes_max(u64::MAX), PAYLOAD_LEN_MAX);
        for len in [FILE_LEN_MIN, 3 << 20, 64 << 20] {
            let frame = round_up((BLOCK_HEADER_LEN + HEADER_LEN + frame_bytes_max(len)) as u64);
            let beginning = BLOCK_LEN_U64 + round_up(len / 4);
            assert!(beginning + frame <= len, "{len}");
        }
    }

    #[test]
    fn names_are_parsed_as_they_are_made() {
        assert_eq!(journal_number(&journal_name(0x1f)), Some(0x1f));
        for name in [
            "journal-1f",
            "spare-000000000000001f",
            "journal-00000000000000zz",
            "superblock",
        ] {
            assert_eq!(journal_number(name), None);
        }
    }
}
