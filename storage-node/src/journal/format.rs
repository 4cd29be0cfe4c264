//! The bytes of a journal file: one header with a snapshot, then blocks of frames.
//!
//! All integers are little endian; header, snapshot and blocks each start on a 4 KiB boundary.
//! A *position in the journal* (lsn) counts bytes from the journal's first file on; it is the
//! file's start plus the place within the file, so a block knows where it belongs.
//!
//! File header, one block of 4 KiB:
//!
//! | bytes     | field                                                               |
//! |-----------|---------------------------------------------------------------------|
//! | 0–3       | magic `FBJF`                                                        |
//! | 4         | format version, 1                                                   |
//! | 5–7       | zero                                                                |
//! | 8–15      | number of the file, from 1                                          |
//! | 16–23     | position of the file's first byte                                   |
//! | 24–31     | salt, random for each use of a file                                 |
//! | 32–39     | length of the file                                                  |
//! | 40–43     | CRC-32C of the cluster id                                           |
//! | 44–47     | node                                                                |
//! | 48–51     | generation                                                          |
//! | 52–55     | header checksum of the last block before this file, 0 if none       |
//! | 56–63     | boot                                                                |
//! | 64–71     | floor                                                               |
//! | 72–79     | length of the snapshot that follows this block                      |
//! | 80–83     | CRC-32C of the snapshot                                             |
//! | 84–4091   | zero                                                                |
//! | 4092–4095 | CRC-32C of bytes 0–4091                                             |
//!
//! Snapshot: one entry of 72 bytes for each live segment. It says what was durable when the file
//! was begun, and it is durable itself before the file is used.
//!
//! | bytes | field                                      |
//! |-------|--------------------------------------------|
//! | 0–15  | segment: partition u64, epoch u32, seq u32 |
//! | 16–23 | token                                      |
//! | 24–31 | base                                       |
//! | 32–39 | tail                                       |
//! | 40–47 | committed offset                           |
//! | 48–55 | chain hash                                 |
//! | 56–59 | frames                                     |
//! | 60–63 | epoch that fenced it                       |
//! | 64–67 | flags: bit 0 fenced, bit 1 limbo           |
//! | 68–71 | zero                                       |
//!
//! Block header, then frames back to back, then zero up to the next boundary:
//!
//! | bytes | field                                                                |
//! |-------|----------------------------------------------------------------------|
//! | 0–3   | magic `FBJB`                                                         |
//! | 4     | format version, 1                                                    |
//! | 5–7   | zero                                                                 |
//! | 8–15  | number of the file                                                   |
//! | 16–23 | position of this block                                               |
//! | 24–31 | synced: everything below this position was durable before            |
//! | 32–39 | salt of the file                                                     |
//! | 40–43 | length of the frames together                                        |
//! | 44–47 | number of frames                                                     |
//! | 48–51 | header checksum of the block before, of the file before at the first |
//! | 52–59 | zero                                                                 |
//! | 60–63 | header checksum: CRC-32C of bytes 0–59                               |
//!
//! File number, position and salt tell a block from what an earlier use of the file left behind,
//! and from a record that looks like a block: nobody outside knows the salt.

use bytes::{Buf, BufMut};
use forebay_record::frame::ChainHash;
use forebay_record::{Epoch, Generation, NodeId, Offset, PartitionId, SegmentId, Token, crc32c};

use crate::disk::{BLOCK_LEN, BLOCK_LEN_U64, round_up};

/// Bytes of a block before its frames.
pub const BLOCK_HEADER_LEN: usize = 64;
/// Bytes of a segment in a snapshot.
pub const SEGMENT_STATE_LEN: usize = 72;

const FILE_MAGIC: [u8; 4] = *b"FBJF";
const BLOCK_MAGIC: [u8; 4] = *b"FBJB";
const VERSION: u8 = 1;
const FILE_CHECKED_LEN: usize = BLOCK_LEN - 4;
const BLOCK_CHECKED_LEN: usize = BLOCK_HEADER_LEN - 4;
const FLAG_FENCED: u32 = 1;
const FLAG_LIMBO: u32 = 2;
const FLAG_COPIED: u32 = 4;

/// Why bytes are not what the journal's format says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Fewer bytes than the structure has.
    #[error("{have} bytes, {need} needed")]
    Truncated {
        /// Bytes at hand.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// The first four bytes are others.
    #[error("magic {0:02x?}")]
    Magic([u8; 4]),
    /// A later format.
    #[error("format version {0} is not supported")]
    Version(u8),
    /// Damaged.
    #[error("checksum {found:08x}, computed {computed:08x}")]
    Checksum {
        /// As stored.
        found: u32,
        /// As the bytes give it.
        computed: u32,
    },
    /// A value that cannot be.
    #[error("{field} is {value}")]
    Value {
        /// Which.
        field: &'static str,
        /// As stored.
        value: u64,
    },
    /// Right in itself, but of another place.
    #[error("{field} is {found}, not {expected}")]
    Foreign {
        /// Which.
        field: &'static str,
        /// As stored.
        found: u64,
        /// As it must be here.
        expected: u64,
    },
}

/// What a node durably held of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentState {
    /// The segment.
    pub segment: SegmentId,
    /// Its token.
    pub token: Token,
    /// Its first offset.
    pub base: Offset,
    /// First offset not held.
    pub tail: Offset,
    /// Highest committed offset that its owner stated.
    pub committed: Offset,
    /// Chain hash after the last frame.
    pub hash: ChainHash,
    /// Frames held.
    pub frames: u32,
    /// The epoch that closed it.
    pub fenced: Option<Epoch>,
    /// Bytes may be missing.
    pub limbo: bool,
    /// It came as a copy of the epoch that closed it, and no record is known to name it.
    pub copied: bool,
}

/// The state of a node between two blocks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Tokens up to this one are closed where the segment is unknown.
    pub floor: Token,
    /// Live segments, rising.
    pub segments: Vec<SegmentState>,
}

impl Snapshot {
    /// Bytes of the segments' states.
    #[must_use]
    pub fn encode_segments(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.segments.len() * SEGMENT_STATE_LEN);
        for state in &self.segments {
            put_segment(&mut out, state.segment);
            out.put_u64_le(state.token.0);
            out.put_u64_le(state.base.0);
            out.put_u64_le(state.tail.0);
            out.put_u64_le(state.committed.0);
            out.put_u64_le(state.hash.0);
            out.put_u32_le(state.frames);
            out.put_u32_le(state.fenced.unwrap_or_default().0);
            let fenced = if state.fenced.is_some() { FLAG_FENCED } else { 0 };
            let limbo = if state.limbo { FLAG_LIMBO } else { 0 };
            let copied = if state.copied { FLAG_COPIED } else { 0 };
            out.put_u32_le(fenced | limbo | copied);
            out.put_u32_le(0);
        }
        out
    }

    /// Reads the segments' states.
    ///
    /// # Errors
    /// Where the bytes are not whole entries or hold impossible values.
    pub fn decode(floor: Token, bytes: &[u8]) -> Result<Self, FormatError> {
        let (entries, rest) = bytes.as_chunks::<SEGMENT_STATE_LEN>();
        if !rest.is_empty() {
            let need = bytes.len().next_multiple_of(SEGMENT_STATE_LEN);
            return Err(FormatError::Truncated {
                have: bytes.len(),
                need,
            });
        }
        let segments = entries.iter().map(segment_state).collect::<Result<_, _>>()?;
        Ok(Self { floor, segments })
    }
}

fn put_segment(out: &mut Vec<u8>, segment: SegmentId) {
    out.put_u64_le(segment.partition.0);
    out.put_u32_le(segment.epoch.0);
    out.put_u32_le(segment.seq);
}

// The array is as long as the sum of the reads, here and below, so none of them can run short.
fn segment_state(entry: &[u8; SEGMENT_STATE_LEN]) -> Result<SegmentState, FormatError> {
    let mut at = entry.as_slice();
    let segment = SegmentId {
        partition: PartitionId(at.get_u64_le()),
        epoch: Epoch(at.get_u32_le()),
        seq: at.get_u32_le(),
    };
    let token = Token(at.get_u64_le());
    let base = Offset(at.get_u64_le());
    let tail = Offset(at.get_u64_le());
    let committed = Offset(at.get_u64_le());
    let hash = ChainHash(at.get_u64_le());
    let frames = at.get_u32_le();
    let by = Epoch(at.get_u32_le());
    let flags = at.get_u32_le();
    if flags & !(FLAG_FENCED | FLAG_LIMBO | FLAG_COPIED) != 0 {
        return Err(FormatError::Value {
            field: "segment flags",
            value: u64::from(flags),
        });
    }
    if tail < base {
        return Err(FormatError::Value {
            field: "segment tail",
            value: tail.0,
        });
    }
    let fenced = (flags & FLAG_FENCED != 0).then_some(by);
    let limbo = flags & FLAG_LIMBO != 0;
    let copied = flags & FLAG_COPIED != 0;
    Ok(SegmentState {
        segment,
        token,
        base,
        tail,
        committed,
        hash,
        frames,
        fenced,
        limbo,
        copied,
    })
}

/// Whose journal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// CRC-32C of the cluster id.
    pub cluster: u32,
    /// The node.
    pub node: NodeId,
    /// Its generation.
    pub generation: Generation,
}

/// The first block of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHeader {
    /// Number of the file, from 1.
    pub number: u64,
    /// Position of its first byte.
    pub start: u64,
    /// Random for each use of a file.
    pub salt: u64,
    /// Length of the file.
    pub len: u64,
    /// Whose it is.
    pub owner: Owner,
    /// The node's start that began it.
    pub boot: u64,
    /// Header checksum of the last block before it.
    pub prev_block: u32,
    /// The floor when it was begun.
    pub floor: Token,
    /// Length of the snapshot.
    pub snapshot_len: u64,
    /// Checksum of the snapshot.
    pub snapshot_checksum: u32,
}

impl FileHeader {
    /// The header's block.
    #[must_use]
    pub fn encode(&self) -> [u8; BLOCK_LEN] {
        let mut out = [0; BLOCK_LEN];
        let mut at = out.as_mut_slice();
        at.put_slice(&FILE_MAGIC);
        at.put_slice(&[VERSION, 0, 0, 0]);
        at.put_u64_le(self.number);
        at.put_u64_le(self.start);
        at.put_u64_le(self.salt);
        at.put_u64_le(self.len);
        at.put_u32_le(self.owner.cluster);
        at.put_u32_le(self.owner.node.0);
        at.put_u32_le(self.owner.generation.0);
        at.put_u32_le(self.prev_block);
        at.put_u64_le(self.boot);
        at.put_u64_le(self.floor.0);
        at.put_u64_le(self.snapshot_len);
        at.put_u32_le(self.snapshot_checksum);
        seal(&mut out);
        out
    }

    /// Reads a header's block.
    ///
    /// # Errors
    /// Where it is damaged, of a later format, or promises what a file cannot hold.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let block = bytes.first_chunk::<BLOCK_LEN>().ok_or(FormatError::Truncated {
            have: bytes.len(),
            need: BLOCK_LEN,
        })?;
        check(block, FILE_MAGIC, FILE_CHECKED_LEN)?;
        let mut at = block.get(8..).unwrap_or_default();
        let header = Self {
            number: at.get_u64_le(),
            start: at.get_u64_le(),
            salt: at.get_u64_le(),
            len: at.get_u64_le(),
            owner: Owner {
                cluster: at.get_u32_le(),
                node: NodeId(at.get_u32_le()),
                generation: Generation(at.get_u32_le()),
            },
            prev_block: at.get_u32_le(),
            boot: at.get_u64_le(),
            floor: Token(at.get_u64_le()),
            snapshot_len: at.get_u64_le(),
            snapshot_checksum: at.get_u32_le(),
        };
        let value = |field, value| Err(FormatError::Value { field, value });
        if header.snapshot_len > header.len.saturating_sub(BLOCK_LEN_U64) {
            return value("snapshot length", header.snapshot_len);
        }
        if !header.len.is_multiple_of(BLOCK_LEN_U64) || !header.start.is_multiple_of(BLOCK_LEN_U64) {
            return value("file length or start", header.len | header.start);
        }
        if header.start.checked_add(header.len).is_none() {
            return value("file start", header.start);
        }
        Ok(header)
    }

    /// Where in the file the first block is.
    #[must_use]
    pub const fn blocks_at(&self) -> u64 {
        BLOCK_LEN_U64 + round_up(self.snapshot_len)
    }
}

/// What stands before the frames of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHeader {
    /// Number of the file.
    pub number: u64,
    /// Position of the block.
    pub position: u64,
    /// Everything below was durable before.
    pub synced: u64,
    /// Salt of the file.
    pub salt: u64,
    /// Length of the frames together.
    pub body_len: u32,
    /// Number of frames.
    pub frames: u32,
    /// Header checksum of the block before.
    pub prev: u32,
}

impl BlockHeader {
    /// The header's bytes; the last four are its checksum.
    #[must_use]
    pub fn encode(&self) -> [u8; BLOCK_HEADER_LEN] {
        let mut out = [0; BLOCK_HEADER_LEN];
        let mut at = out.as_mut_slice();
        at.put_slice(&BLOCK_MAGIC);
        at.put_slice(&[VERSION, 0, 0, 0]);
        at.put_u64_le(self.number);
        at.put_u64_le(self.position);
        at.put_u64_le(self.synced);
        at.put_u64_le(self.salt);
        at.put_u32_le(self.body_len);
        at.put_u32_le(self.frames);
        at.put_u32_le(self.prev);
        seal(&mut out);
        out
    }

    /// Reads the header of the block at `place` in the file that `file` begins.
    ///
    /// # Errors
    /// Where the bytes are no block header, or one of another place or time.
    pub fn decode(bytes: &[u8], file: &FileHeader, place: u64) -> Result<Self, FormatError> {
        let raw = bytes
            .first_chunk::<BLOCK_HEADER_LEN>()
            .ok_or(FormatError::Truncated {
                have: bytes.len(),
                need: BLOCK_HEADER_LEN,
            })?;
        check(raw, BLOCK_MAGIC, BLOCK_CHECKED_LEN)?;
        let mut at = raw.get(8..).unwrap_or_default();
        let header = Self {
            number: at.get_u64_le(),
            position: at.get_u64_le(),
            synced: at.get_u64_le(),
            salt: at.get_u64_le(),
            body_len: at.get_u32_le(),
            frames: at.get_u32_le(),
            prev: at.get_u32_le(),
        };
        let position = file.start + place;
        for (field, found, expected) in [
            ("file number", header.number, file.number),
            ("block position", header.position, position),
            ("file salt", header.salt, file.salt),
        ] {
            if found != expected {
                return Err(FormatError::Foreign {
                    field,
                    found,
                    expected,
                });
            }
        }
        if header.synced > position {
            return Err(FormatError::Value {
                field: "synced position",
                value: header.synced,
            });
        }
        if header.total_len() > file.len.saturating_sub(place) {
            return Err(FormatError::Value {
                field: "block length",
                value: header.total_len(),
            });
        }
        Ok(header)
    }

    /// Its checksum, by which the next block names it.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        checksum_of(&self.encode())
    }

    /// Bytes of the whole block.
    #[must_use]
    pub const fn total_len(&self) -> u64 {
        round_up(BLOCK_HEADER_LEN as u64 + self.body_len as u64)
    }
}

/// Writes the checksum of all but the last four bytes into those.
fn seal(out: &mut [u8]) {
    if let Some((checked, checksum)) = out.split_last_chunk_mut::<4>() {
        *checksum = crc32c(checked).to_le_bytes();
    }
}

fn checksum_of(bytes: &[u8]) -> u32 {
    bytes
        .last_chunk::<4>()
        .map_or(0, |last| u32::from_le_bytes(*last))
}

/// Magic, checksum, version and the zero bytes after it, in the order that says most.
fn check(bytes: &[u8], magic: [u8; 4], checked_len: usize) -> Result<(), FormatError> {
    let Some([m0, m1, m2, m3, version, z0, z1, z2]) = bytes.first_chunk::<8>() else {
        return Err(FormatError::Truncated {
            have: bytes.len(),
            need: 8,
        });
    };
    let found_magic = [*m0, *m1, *m2, *m3];
    if found_magic != magic {
        return Err(FormatError::Magic(found_magic));
    }
    let found = checksum_of(bytes);
    let computed = crc32c(bytes.get(..checked_len).unwrap_or_default());
    if found != computed {
        return Err(FormatError::Checksum { found, computed });
    }
    if *version != VERSION || [*z0, *z1, *z2] != [0; 3] {
        return Err(FormatError::Version(*version));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
