//! The index of a run: where its chunks of whole batches lie, and their checksums.
//!
//! Only lengths are stored, positions follow from them: chunks cannot overlap or leave gaps. A
//! decoded index is consistent with the run that the footer describes.

use super::error::ObjectError;
use super::fields::{Fields, verify};
use super::footer::RunInfo;
use crate::Offset;

/// A chunk ends with the batch that brings it to this many bytes.
pub const CHUNK_BYTES: usize = 64 << 10;
/// Chunks of one run: 64 GiB of batches at least, 24 MiB of index.
pub const CHUNKS_MAX: usize = 1 << 20;

pub(super) const HEADER_LEN: usize = 8;
pub(super) const ENTRY_LEN: usize = 24;
const PART: &str = "index";

/// Some whole batches of a run, the smallest thing that is read and verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// First offset.
    pub first: Offset,
    /// Where the next chunk or the run's end begins.
    pub end: Offset,
    /// Largest timestamp of its records, milliseconds since 1970.
    pub max_timestamp_ms: i64,
    /// Bytes from the start of the run.
    pub position: u64,
    /// Bytes.
    pub len: u32,
    /// CRC-32C of its bytes.
    pub crc32c: u32,
}

impl Chunk {
    /// Bytes from the start of the run to the chunk's end.
    #[must_use]
    pub const fn end_position(&self) -> u64 {
        self.position + self.len as u64
    }
}

/// The chunks of a run, in order; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunIndex {
    chunks: Vec<Chunk>,
}

impl RunIndex {
    pub(super) const fn new(chunks: Vec<Chunk>) -> Self {
        Self { chunks }
    }

    /// The chunks, in order.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Number of the chunk that holds an offset; the first for one below the run, the last for one
    /// beyond it.
    #[must_use]
    pub fn chunk_of(&self, offset: Offset) -> usize {
        self.chunks
            .partition_point(|chunk| chunk.first <= offset)
            .saturating_sub(1)
    }

    /// The index's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN + self.chunks.len() * ENTRY_LEN);
        let count = u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&0_u32.to_le_bytes());
        for chunk in &self.chunks {
            out.extend_from_slice(&chunk.first.0.to_le_bytes());
            out.extend_from_slice(&chunk.max_timestamp_ms.to_le_bytes());
            out.extend_from_slice(&chunk.len.to_le_bytes());
            out.extend_from_slice(&chunk.crc32c.to_le_bytes());
        }
        out
    }

    /// Reads the index of a run, and checks it against what the footer says of that run.
    ///
    /// # Errors
    /// Where the checksum is wrong, or index and run contradict each other.
    pub fn decode(bytes: &[u8], run: &RunInfo) -> Result<Self, ObjectError> {
        verify(PART, bytes, run.index.crc32c)?;
        let mut fields = Fields::new(PART, bytes);
        let count = fields.count("chunks in an index", CHUNKS_MAX, ENTRY_LEN)?;
        fields.zero_u32("index header")?;
        let mut chunks: Vec<Chunk> = Vec::with_capacity(count);
        let mut position = 0_u64;
        for _ in 0..count {
            let first = Offset(fields.u64()?);
            let max_timestamp_ms = fields.i64()?;
            let len = fields.u32()?;
            let crc32c = fields.u32()?;
            let least = chunks
                .last()
                .map_or(Some(run.base), |last| last.first.checked_add(1));
            if least.is_none_or(|least| first < least) || first >= run.end || len == 0 {
                let within = format!("{} to {}", run.base, run.end);
                return Err(ObjectError::value("first offset of a chunk", first.0, within));
            }
            if let Some(last) = chunks.last_mut() {
                last.end = first;
            }
            chunks.push(Chunk {
                first,
                end: run.end,
                max_timestamp_ms,
                position,
                len,
                crc32c,
            });
            position = position.saturating_add(u64::from(len));
        }
        fields.finish()?;
        if chunks.is_empty() {
            return Err(ObjectError::Empty(run.base));
        }
        if position != run.len {
            return Err(ObjectError::value(
                "bytes of all chunks",
                position,
                run.len.to_string(),
            ));
        }
        Ok(Self { chunks })
    }
}
