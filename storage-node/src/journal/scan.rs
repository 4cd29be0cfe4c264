//! Reading a journal back at a start.
//!
//! All files are read from their first block to their last, and every block header, frame and
//! checksum is checked. Where a block is not right:
//!
//! - a right one follows it, in its file or by the next file's start: it was durable once, since
//!   each is written after the one before is synced. That is *damage*. Under a right header the frames
//!   before the first wrong one are used, and those after it where the lengths of all of them fill the
//!   block exactly; the rest of what it held is lost.
//! - nothing follows: it never was durable and nobody was told that it is. That is a torn tail,
//!   and it is *cut*.
//! - its bytes cannot be read, or the file is shorter than it says: nobody can tell, so damage.
//!
//! Headers of files were durable before their files had names, so a bad one is never a torn
//! write; without it nothing about the file can be trusted, and the start is refused.
//!
//! Before anything is read all files are synced, and the last block is written again afterwards:
//! what a crashed process left in the page cache may not be on the disk (I4).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use forebay_record::crc32c;
use forebay_record::frame::{Frame, FrameError, FrameHeader, HEADER_LEN};

use super::files::{FileTable, JournalFile, journal_number};
use super::format::{BLOCK_HEADER_LEN, BlockHeader, FileHeader, FormatError, Owner, Snapshot};
use super::note::Note;
use super::writer::Place;
use crate::buffer::Buffer;
use crate::content::{CheckedFrame, ContentError};
use crate::disk::{BLOCK_LEN, BLOCK_LEN_U64, Disk, File};
use crate::replica::rebuild::{Held, Rebuild};
use forebay_runtime::mutant::{self, Mutant};

const WINDOW_LEN: usize = 4 << 20;
/// Damaged places that are told one by one; the rest is only counted.
const DAMAGE_TOLD_MAX: usize = 64;

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The disk failed.
    #[error("cannot read {}", .path.display())]
    Io {
        /// The file, or the folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A header or snapshot is damaged.
    #[error("{} is damaged at byte {at}", .path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// Where in it.
        at: u64,
        /// Why.
        source: FormatError,
    },
    /// The file is not of this node.
    #[error("{} belongs to {found:?}, this is {expected:?}", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: Owner,
        /// Whose it should be.
        expected: Owner,
    },
}

/// Bytes of the journal that were durable once and are not right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub at: u64,
    /// What is wrong.
    pub reason: String,
}

/// Where an unsynced tail was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub at: u64,
    /// Why what is there is not right.
    pub reason: String,
}

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// Segments and floor.
    pub held: Held,
    /// The files.
    pub table: FileTable,
    /// Where to go on writing; none where there is no file, or none that may be written.
    pub place: Option<Place>,
    /// Where in that file its last block is.
    pub last_block: Option<u64>,
    /// Number of the newest file, 0 where there is none.
    pub newest: u64,
    /// Position after the last right block.
    pub durable: u64,
    /// Position at which another file may begin.
    pub next_start: u64,
    /// Header checksum of the last right block.
    pub prev: u32,
    /// Damaged places, the first ones.
    pub damage: Vec<Damage>,
    /// How many there are.
    pub damaged_places: u64,
    /// The torn tail, where it held more than bytes of an earlier use.
    pub cut: Option<Cut>,
}

/// Why a block is not right.
#[derive(Debug, thiserror::Error)]
enum BlockFault {
    #[error("no block: {0}")]
    None(FormatError),
    #[error("block cut or damaged: {0}")]
    Frame(#[from] FrameError),
    #[error("block cut or damaged: {0}")]
    Content(#[from] ContentError),
    #[error("block cut or damaged: {0}")]
    Note(FormatError),
    #[error("block cut or damaged: frames do not fill it")]
    Length,
    #[error("unreadable: {0}")]
    Unreadable(io::Error),
}

enum Piece {
    Frame(CheckedFrame, u64),
    Note(Note),
}

/// A stretch of a file in memory.
struct Window {
    buffer: Buffer,
    at: u64,
    filled: usize,
}

impl Window {
    fn new() -> Self {
        Self {
            buffer: Buffer::new(WINDOW_LEN),
            at: 0,
            filled: 0,
        }
    }

    const fn forget(&mut self) {
        self.filled = 0;
    }

    /// Bytes of the file; `at` is on a block boundary.
    fn get(&mut self, file: &dyn File, at: u64, len: usize) -> Result<&[u8], BlockFault> {
        let inside = at >= self.at && at - self.at + len as u64 <= self.filled as u64;
        if !inside {
            self.load(file, at, len).map_err(BlockFault::Unreadable)?;
        }
        let start = usize::try_from(at - self.at).unwrap_or(usize::MAX);
        let bytes = self.buffer.as_slice().get(start..start.saturating_add(len));
        bytes.ok_or_else(|| BlockFault::Unreadable(io::ErrorKind::UnexpectedEof.into()))
    }

    fn load(&mut self, file: &dyn File, at: u64, len: usize) -> io::Result<()> {
        self.filled = 0;
        self.at = at;
        if len > self.buffer.len() {
            self.buffer = Buffer::new(len);
        }
        let read = match file.read_at(self.buffer.as_mut_slice(), at) {
            Ok(read) => read,
            // A bad sector somewhere in the window must not hide what is asked for.
            Err(_) => {
                let wanted = len.div_ceil(BLOCK_LEN) * BLOCK_LEN;
                file.read_at(
                    self.buffer.as_mut_slice().get_mut(..wanted).unwrap_or_default(),
                    at,
                )?
            }
        };
        if read < len {
            let text = format!("file ends {} bytes early", len - read);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        self.filled = read;
        Ok(())
    }
}

/// Reads the journal of a node. Changes nothing but making durable what is there.
///
/// # Errors
/// Where a header is bad, a file is foreign, or the disk fails to open or sync.
pub fn scan(disk: &dyn Disk, owner: Owner) -> Result<Found, ScanError> {
    let mut files = open_all(disk, owner)?;
    files.sort_by_key(|(file, _)| file.header.number);
    let mut scanner = Scanner {
        disk,
        window: Window::new(),
        rebuild: Rebuild::new(),
        found: Found {
            held: Held::default(),
            table: FileTable::default(),
            place: None,
            last_block: None,
            newest: 0,
            durable: 0,
            next_start: 0,
            prev: 0,
            damage: Vec::new(),
            damaged_places: 0,
            cut: None,
        },
    };
    let follows = files
        .iter()
        .skip(1)
        .map(|(next, _)| Some(next.header))
        .chain([None])
        .collect::<Vec<_>>();
    for ((file, snapshot), next) in files.into_iter().zip(follows) {
        scanner.file(file, &snapshot, next.as_ref());
    }
    let Scanner {
        rebuild, mut found, ..
    } = scanner;
    found.held = rebuild.finish();
    if found.damaged_places > 0 {
        // The next file's snapshot remembers what was lost.
        found.place = None;
    }
    Ok(found)
}

fn open_all(disk: &dyn Disk, owner: Owner) -> Result<Vec<(Arc<JournalFile>, Snapshot)>, ScanError> {
    let io_error = |path| move |source| ScanError::Io { path, source };
    let mut files = Vec::new();
    for name in disk.list().map_err(io_error(disk.path("")))? {
        let Some(number) = journal_number(&name) else {
            continue;
        };
        let path = disk.path(&name);
        let file = disk.open(&name).map_err(io_error(path.clone()))?;
        file.sync().map_err(io_error(path.clone()))?;
        let (header, snapshot) = read_header(&*file, &path, number)?;
        if header.owner != owner {
            return Err(ScanError::Foreign {
                path,
                found: header.owner,
                expected: owner,
            });
        }
        files.push((Arc::new(JournalFile { header, file }), snapshot));
    }
    Ok(files)
}

fn read_header(file: &dyn File, path: &Path, number: u64) -> Result<(FileHeader, Snapshot), ScanError> {
    let bad = |at, source| ScanError::Header {
        path: path.to_owned(),
        at,
        source,
    };
    let read = |at, len: u64| {
        let mut buffer = Buffer::new(usize::try_from(len).unwrap_or(usize::MAX));
        let read = file
            .read_at(buffer.as_mut_slice(), at)
            .map_err(|source| ScanError::Io {
                path: path.to_owned(),
                source,
            })?;
        if (read as u64) < len {
            let need = usize::try_from(len).unwrap_or(usize::MAX);
            return Err(bad(at, FormatError::Truncated { have: read, need }));
        }
        Ok(buffer)
    };
    let first = read(0, BLOCK_LEN_U64)?;
    let header = FileHeader::decode(first.as_slice()).map_err(|source| bad(0, source))?;
    if header.number != number {
        let foreign = FormatError::Foreign {
            field: "file number",
            found: header.number,
            expected: number,
        };
        return Err(bad(0, foreign));
    }
    // The length is bounded by that of the file, which is read before memory is taken.
    let have = file.length().map_err(|source| ScanError::Io {
        path: path.to_owned(),
        source,
    })?;
    if header.snapshot_len > have {
        let value = FormatError::Value {
            field: "snapshot length",
            value: header.snapshot_len,
        };
        return Err(bad(0, value));
    }
    let bytes = read(BLOCK_LEN_U64, header.snapshot_len)?;
    let len = usize::try_from(header.snapshot_len).unwrap_or(usize::MAX);
    let bytes = bytes.as_slice().get(..len).unwrap_or_default();
    let computed = crc32c(bytes);
    if computed != header.snapshot_checksum {
        let checksum = FormatError::Checksum {
            found: header.snapshot_checksum,
            computed,
        };
        return Err(bad(BLOCK_LEN_U64, checksum));
    }
    let snapshot = Snapshot::decode(header.floor, bytes).map_err(|source| bad(BLOCK_LEN_U64, source))?;
    Ok((header, snapshot))
}

struct Scanner<'a> {
    disk: &'a dyn Disk,
    window: Window,
    rebuild: Rebuild,
    found: Found,
}

impl Scanner<'_> {
    fn file(&mut self, file: Arc<JournalFile>, snapshot: &Snapshot, next: Option<&FileHeader>) {
        let header = file.header;
        self.window.forget();
        self.rebuild.file(snapshot);
        self.found.newest = header.number;
        // The next file says where this one ended.
        let end = next
            .filter(|next| next.number == header.number + 1 && next.start > header.start)
            .map(|next| (next.start - header.start).min(header.len));
        let places_before = self.found.damaged_places;
        let limit = end.unwrap_or(header.len);
        let (mut at, mut prev, mut after_damage) = (header.blocks_at(), header.prev_block, false);
        let mut last_block = None;
        while at + BLOCK_LEN_U64 <= limit {
            match self.block(&file, at) {
                Ok((block, pieces)) => {
                    if block.prev != prev && !after_damage {
                        self.damaged(&file, at, "the block before is not the one it follows".to_owned());
                    }
                    self.feed(pieces);
                    after_damage = false;
                    prev = block.checksum();
                    last_block = Some(at);
                    at += block.total_len();
                }
                Err(fault) => {
                    let follows = self.next_block(&file, at, limit);
                    let torn = follows.right.is_none() && end.is_none() && !follows.unreadable;
                    let torn = torn || mutant::is(Mutant::DamageIsTorn);
                    if torn && !matches!(fault, BlockFault::Unreadable(_)) {
                        if !matches!(fault, BlockFault::None(_)) {
                            let path = self.disk.path(&file.name());
                            self.found.cut = Some(Cut {
                                path,
                                at,
                                reason: fault.to_string(),
                            });
                        }
                        break;
                    }
                    self.salvage(&file, at, fault.to_string());
                    let Some(right) = follows.right else { break };
                    at = right;
                    after_damage = true;
                }
            }
        }
        if end.is_some_and(|end| at > end) {
            self.damaged(&file, at, "its last block reaches into the next file".to_owned());
        }
        let whole = file.file.length().is_ok_and(|len| len >= header.len);
        let writable = self.found.damaged_places == places_before && whole;
        self.found.prev = prev;
        self.found.last_block = last_block;
        self.found.durable = header.start + at;
        self.found.next_start = header.start + if writable { at } else { header.len };
        self.found.place = writable.then(|| Place {
            file: Arc::clone(&file),
            at,
            prev,
        });
        self.found.table.insert(file);
    }

    /// Uses what is right of a damaged block.
    fn salvage(&mut self, file: &JournalFile, at: u64, reason: String) {
        let pieces = self.right_pieces(file, at).unwrap_or_default();
        let mut untold = Some(reason);
        for piece in pieces {
            match (piece, untold.is_some()) {
                (Some(piece), _) => self.feed(vec![piece]),
                (None, true) => self.damaged(file, at, untold.take().unwrap_or_default()),
                (None, false) => self.rebuild.damaged(),
            }
        }
        if let Some(reason) = untold {
            self.damaged(file, at, reason);
        }
    }

    /// The frames of a block in their order, none in the place of one that is lost.
    fn right_pieces(&mut self, file: &JournalFile, at: u64) -> Option<Vec<Option<Piece>>> {
        let bytes = self.window.get(&*file.file, at, BLOCK_LEN).ok()?;
        let block = BlockHeader::decode(bytes, &file.header, at).ok()?;
        let len = usize::try_from(block.total_len()).ok()?;
        let bytes = self.window.get(&*file.file, at, len).ok()?;
        let body_end = BLOCK_HEADER_LEN + block.body_len as usize;
        let mut body = Bytes::copy_from_slice(bytes.get(BLOCK_HEADER_LEN..body_end)?);
        let mut position = file.header.start + at + BLOCK_HEADER_LEN as u64;
        let mut pieces = Vec::new();
        let mut lost_at = None;
        for _ in 0..block.frames {
            let header = FrameHeader::parse(&body).ok();
            let Some(header) = header.filter(|header| header.frame_len() <= body.len()) else {
                pieces.push(None);
                lost_at.get_or_insert(pieces.len());
                break;
            };
            let len = header.frame_len();
            let payload = body.split_to(len).slice(HEADER_LEN..);
            let piece = piece(header, payload, position).ok();
            if piece.is_none() {
                lost_at.get_or_insert(pieces.len() + 1);
            }
            pieces.push(piece);
            position += len as u64;
        }
        if let Some(lost_at) = lost_at
            && (!body.is_empty() || pieces.len() != block.frames as usize)
        {
            // A length was wrong: what was taken for frames after it may be anything.
            pieces.truncate(lost_at);
        }
        Some(pieces)
    }

    fn damaged(&mut self, file: &JournalFile, at: u64, reason: String) {
        self.rebuild.damaged();
        self.found.damaged_places += 1;
        if self.found.damage.len() < DAMAGE_TOLD_MAX {
            let path = self.disk.path(&file.name());
            self.found.damage.push(Damage { path, at, reason });
        }
    }

    fn feed(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            match piece {
                Piece::Frame(frame, position) => self.rebuild.frame(&frame, position),
                Piece::Note(note) => self.rebuild.note(note),
            }
        }
    }

    fn block(&mut self, file: &JournalFile, at: u64) -> Result<(BlockHeader, Vec<Piece>), BlockFault> {
        let bytes = self.window.get(&*file.file, at, BLOCK_LEN)?;
        let block = BlockHeader::decode(bytes, &file.header, at).map_err(BlockFault::None)?;
        let len = usize::try_from(block.total_len()).unwrap_or(usize::MAX);
        let bytes = self.window.get(&*file.file, at, len)?;
        let body_end = BLOCK_HEADER_LEN + block.body_len as usize;
        let body = Bytes::copy_from_slice(bytes.get(BLOCK_HEADER_LEN..body_end).unwrap_or_default());
        let start = file.header.start + at + BLOCK_HEADER_LEN as u64;
        Ok((block, pieces(body, block.frames, start)?))
    }

    /// The next place at which a right block header is, and whether anything on the way to it
    /// could not be read.
    fn next_block(&mut self, file: &JournalFile, after: u64, limit: u64) -> Follows {
        let mut follows = Follows {
            right: None,
            unreadable: false,
        };
        let mut at = after + BLOCK_LEN_U64;
        while at + BLOCK_LEN_U64 <= limit {
            match self.window.get(&*file.file, at, BLOCK_LEN) {
                Ok(bytes) if BlockHeader::decode(bytes, &file.header, at).is_ok() => {
                    follows.right = Some(at);
                    break;
                }
                Ok(_) => {}
                Err(_) => follows.unreadable = true,
            }
            at += BLOCK_LEN_U64;
        }
        follows
    }
}

struct Follows {
    right: Option<u64>,
    unreadable: bool,
}

fn pieces(mut body: Bytes, frames: u32, start: u64) -> Result<Vec<Piece>, BlockFault> {
    let mut position = start;
    let mut pieces = Vec::new();
    for _ in 0..frames {
        let header = FrameHeader::parse(&body)?;
        let len = header.frame_len();
        if len > body.len() {
            return Err(BlockFault::Length);
        }
        let payload = body.split_to(len).slice(HEADER_LEN..);
        pieces.push(piece(header, payload, position)?);
        position += len as u64;
    }
    if body.is_empty() {
        Ok(pieces)
    } else {
        Err(BlockFault::Length)
    }
}

/// One frame of a block, checked.
fn piece(header: FrameHeader, payload: Bytes, position: u64) -> Result<Piece, BlockFault> {
    match Note::read(&header, &payload).map_err(BlockFault::Note)? {
        Some(note) => {
            header.verify(&[payload])?;
            Ok(Piece::Note(note))
        }
        None => {
            let frame = CheckedFrame::new(Frame {
                header,
                payload: vec![payload],
            })?;
            Ok(Piece::Frame(frame, position))
        }
    }
}

/// Writes the last block of a file again and syncs it, so that what is served from now on is on
/// the disk, whatever the page cache held. `last` is where the last block is.
///
/// # Errors
/// Of the disk.
pub fn rewrite_last(place: &Place, last: Option<u64>) -> io::Result<()> {
    if let Some(last) = last {
        let len = place.at.saturating_sub(last);
        let mut buffer = Buffer::new(usize::try_from(len).unwrap_or(usize::MAX));
        let read = place.file.file.read_at(buffer.as_mut_slice(), last)?;
        let block = buffer
            .as_slice()
            .get(..read)
            .filter(|block| block.len() as u64 == len);
        let block = block.ok_or(io::ErrorKind::UnexpectedEof)?;
        place.file.file.write_at(block, last)?;
    }
    place.file.file.sync()
}
