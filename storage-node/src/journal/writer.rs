//! The writing end of the journal: frames into a block, a block into the file, file after file.
//!
//! A block is one write and one fsync; nothing of it may be acknowledged before [`Writer::commit`]
//! returned. After any error of the disk the writer is dead: what the disk then holds is unknown,
//! and asking it again would hide that. At most one block is in flight, so everything below a
//! block's position was durable when it was written, and the block says so.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_record::crc32c;
use forebay_record::frame::{FrameHeader, HEADER_LEN};
use forebay_runtime::clock::Clock;
use forebay_runtime::mutant::{self, Mutant};

use super::files::{FileTable, JournalFile, journal_name};
use super::format::{BLOCK_HEADER_LEN, BlockHeader, FileHeader, Owner, Snapshot};
use super::pool::Spare;
use crate::buffer::Buffer;
use crate::disk::{Disk, round_up};

/// Where a frame can go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Into the current block.
    Now,
    /// Into the next block: commit first.
    NextBlock,
    /// Into the next file: commit, then begin one.
    NextFile,
}

/// What a commit wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Everything below this position is durable.
    pub durable: u64,
    /// Bytes of frames.
    pub body: u64,
    /// Bytes written in all.
    pub written: u64,
    /// How long it took.
    pub times: CommitTimes,
}

/// The parts of a commit on the clock given by [`Writer::time`]; zero without one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CommitTimes {
    /// Of the write.
    pub write: Duration,
    /// Of the fsync after it.
    pub sync: Duration,
    /// When both were over, monotonic.
    pub ended: Duration,
}

/// What time it is, where somebody wants to know.
#[derive(Clone, Default)]
struct Watch(Option<Arc<dyn Clock>>);

impl Watch {
    fn now(&self) -> Duration {
        self.0.as_ref().map(|clock| clock.monotonic()).unwrap_or_default()
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

/// What stays the same over all files.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Whose journal it is.
    pub owner: Owner,
    /// The node's start.
    pub boot: u64,
    /// Largest block, except for a single frame that is larger.
    pub commit_bytes_max: usize,
}

/// Where writing goes on in a file.
#[derive(Debug)]
pub struct Place {
    /// The file.
    pub file: Arc<JournalFile>,
    /// Offset in the file of the next block.
    pub at: u64,
    /// Header checksum of the last block.
    pub prev: u32,
}

/// The writing end.
#[derive(Debug)]
pub struct Writer {
    disk: Arc<dyn Disk>,
    table: Arc<FileTable>,
    settings: Settings,
    place: Place,
    buffer: Buffer,
    body: usize,
    frames: u32,
    watch: Watch,
}

/// What a file needs to be begun.
#[derive(Debug, Clone, Copy)]
pub struct Beginning<'a> {
    /// Number of the file.
    pub number: u64,
    /// Position of its first byte.
    pub start: u64,
    /// Header checksum of the last block before it.
    pub prev: u32,
    /// Random.
    pub salt: u64,
    /// What is durable.
    pub snapshot: &'a Snapshot,
}

/// Begins a file: header and snapshot are durable before it has its name. Returns what was
/// written beside it.
///
/// # Errors
/// Of the disk; where the snapshot does not fit.
pub fn begin(
    disk: &dyn Disk,
    settings: &Settings,
    spare: Spare,
    with: Beginning<'_>,
) -> io::Result<(JournalFile, u64)> {
    let snapshot = with.snapshot.encode_segments();
    let header = FileHeader {
        number: with.number,
        start: with.start,
        salt: with.salt,
        len: spare.len,
        owner: settings.owner,
        boot: settings.boot,
        prev_block: with.prev,
        floor: with.snapshot.floor,
        snapshot_len: snapshot.len() as u64,
        snapshot_checksum: crc32c(&snapshot),
    };
    if header.blocks_at() > header.len / 2 {
        let text = format!(
            "a snapshot of {} bytes does not fit a file of {}",
            snapshot.len(),
            header.len
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut buffer = Buffer::new(usize::try_from(header.blocks_at()).unwrap_or(usize::MAX));
    let bytes = header.encode();
    for (to, from) in buffer
        .as_mut_slice()
        .iter_mut()
        .zip(bytes.iter().chain(&snapshot))
    {
        *to = *from;
    }
    spare.file.write_at(buffer.as_slice(), 0)?;
    spare.file.sync()?;
    disk.rename(&spare.name, &journal_name(with.number))?;
    disk.sync_names()?;
    Ok((
        JournalFile {
            header,
            file: spare.file,
        },
        buffer.len() as u64,
    ))
}

impl Writer {
    /// Goes on writing at a place; the file must be in the table.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, table: Arc<FileTable>, settings: Settings, place: Place) -> Self {
        let buffer = Buffer::new(settings.commit_bytes_max);
        Self {
            disk,
            table,
            settings,
            place,
            buffer,
            body: 0,
            frames: 0,
            watch: Watch::default(),
        }
    }

    /// Measures commits from here on.
    pub fn time(&mut self, clock: Arc<dyn Clock>) {
        self.watch = Watch(Some(clock));
    }

    /// The file it writes to.
    #[must_use]
    pub const fn file(&self) -> &Arc<JournalFile> {
        &self.place.file
    }

    /// Offset in the file of the next block.
    #[must_use]
    pub const fn at(&self) -> u64 {
        self.place.at
    }

    /// Everything below this position is durable.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.place.file.header.start + self.place.at
    }

    /// Whether the current block has no frame.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Bytes of the file that are left after the current block as it is.
    #[must_use]
    pub fn room_left(&self) -> u64 {
        let block = if self.frames == 0 {
            0
        } else {
            round_up((BLOCK_HEADER_LEN + self.body) as u64)
        };
        let header = self.place.file.header;
        header.len.saturating_sub(self.place.at + block)
    }

    /// Where a frame of this length can go.
    #[must_use]
    pub fn fit(&self, frame_len: usize) -> Fit {
        let block = BLOCK_HEADER_LEN + self.body + frame_len;
        let room = self.place.file.header.len.saturating_sub(self.place.at);
        if block > self.buffer.len() && self.frames > 0 {
            Fit::NextBlock
        } else if round_up(block as u64) <= room {
            Fit::Now
        } else {
            Fit::NextFile
        }
    }

    /// Puts a frame into the current block; [`Writer::fit`] must have allowed it. Returns its
    /// position. The one copy of its bytes.
    pub fn push(&mut self, header: &FrameHeader, payload: &[Bytes]) -> u64 {
        let at = BLOCK_HEADER_LEN + self.body;
        let end = at + header.frame_len();
        if end > self.buffer.len() {
            // A single frame larger than any block: the buffer shrinks again after the commit.
            let mut larger = Buffer::new(end);
            if let (Some(to), Some(from)) = (
                larger.as_mut_slice().get_mut(..at),
                self.buffer.as_slice().get(..at),
            ) {
                to.copy_from_slice(from);
            }
            self.buffer = larger;
        }
        let mut to = self.buffer.as_mut_slice().get_mut(at..end).unwrap_or_default();
        let encoded = header.encode();
        assert_eq!(encoded.len(), HEADER_LEN);
        for piece in std::iter::once(encoded.as_slice()).chain(payload.iter().map(AsRef::as_ref)) {
            let (head, tail) = std::mem::take(&mut to).split_at_mut(piece.len());
            head.copy_from_slice(piece);
            to = tail;
        }
        assert!(to.is_empty(), "payload shorter than its frame says");
        let position = self.durable() + at as u64;
        self.body += header.frame_len();
        self.frames += 1;
        position
    }

    /// Writes the current block, with or without frames, and makes it durable.
    ///
    /// # Errors
    /// Of the disk; then this writer must not be used again.
    pub fn commit(&mut self) -> io::Result<Committed> {
        let position = self.durable();
        let header = BlockHeader {
            number: self.place.file.header.number,
            position,
            synced: position,
            salt: self.place.file.header.salt,
            body_len: u32::try_from(self.body).map_err(|_| io::ErrorKind::InvalidInput)?,
            frames: self.frames,
            prev: self.place.prev,
        };
        let end = BLOCK_HEADER_LEN + self.body;
        let len = usize::try_from(header.total_len()).unwrap_or(usize::MAX);
        let bytes = self.buffer.as_mut_slice();
        if let Some(start) = bytes.first_chunk_mut::<BLOCK_HEADER_LEN>() {
            *start = header.encode();
        }
        if let Some(padding) = bytes.get_mut(end..len) {
            padding.fill(0);
        }
        let block = self
            .buffer
            .as_slice()
            .get(..len)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let began = self.watch.now();
        self.place.file.file.write_at(block, self.place.at)?;
        let written = self.watch.now();
        if !mutant::is(Mutant::AckBeforeSync) {
            self.place.file.file.sync()?;
        }
        let ended = self.watch.now();
        let committed = Committed {
            durable: position + header.total_len(),
            body: self.body as u64,
            written: header.total_len(),
            times: CommitTimes {
                write: written.saturating_sub(began),
                sync: ended.saturating_sub(written),
                ended,
            },
        };
        self.place.at += header.total_len();
        self.place.prev = header.checksum();
        self.body = 0;
        self.frames = 0;
        if self.buffer.len() > self.settings.commit_bytes_max.saturating_mul(2) {
            self.buffer = Buffer::new(self.settings.commit_bytes_max);
        }
        Ok(committed)
    }

    /// Begins the next file, with what is durable now; the current block must be empty. Returns
    /// the bytes that header and snapshot took.
    ///
    /// # Errors
    /// Of the disk; then this writer must not be used again.
    pub fn roll(&mut self, spare: Spare, salt: u64, snapshot: &Snapshot) -> io::Result<u64> {
        assert!(self.is_empty(), "a block is open at the end of a file");
        let with = Beginning {
            number: self.place.file.header.number + 1,
            start: self.durable(),
            prev: self.place.prev,
            salt,
            snapshot,
        };
        let (file, written) = begin(&*self.disk, &self.settings, spare, with)?;
        let file = Arc::new(file);
        self.table.insert(Arc::clone(&file));
        self.place = Place {
            at: file.header.blocks_at(),
            prev: with.prev,
            file,
        };
        Ok(written)
    }
}
