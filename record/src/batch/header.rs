//! The first 61 bytes of a batch, parsed without copying the rest, and the two fields a broker sets.
//!
//! A parsed [`Header`] holds facts that were checked against each other: the batch is all there,
//! its offsets are in range, its codec is known, its count goes with its last offset delta. It
//! says nothing about the checksum or the records: that is `validate` and `decode`.
//!
//! Base offset and leader epoch lie outside the checksum. Batches are shared slices, so a broker
//! sends a stamped copy of the header followed by the untouched rest.

use bytes::{Buf, BufMut};

use super::build::ProducerStamp;
use super::codec::Codec;
use super::error::BatchError;
use crate::{Epoch, Offset, ProducerId};

/// Bytes of a batch before its records.
pub const HEADER_LEN: usize = 61;
/// Where the bytes that the checksum covers begin.
pub(super) const CHECKED_FROM: usize = 21;

/// Bytes that the batch length does not count.
const LENGTH_END: usize = 12;
/// Smallest batch length there is: a header alone.
const LENGTH_LEAST: i32 = (HEADER_LEN - LENGTH_END) as i32;
const MAGIC_AT: usize = 16;
const MAGIC: u8 = 2;

const CODEC_BITS: u16 = 0b0000_0111;
const LOG_APPEND_TIME: u16 = 1 << 3;
const TRANSACTIONAL: u16 = 1 << 4;
const CONTROL: u16 = 1 << 5;
const DELETE_HORIZON: u16 = 1 << 6;
const KNOWN_BITS: u16 = CODEC_BITS | LOG_APPEND_TIME | TRANSACTIONAL | CONTROL | DELETE_HORIZON;

/// Whose clock the timestamps of a batch show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's, one for each record.
    CreateTime,
    /// The broker's, one for the whole batch: its max timestamp.
    LogAppendTime,
}

/// The header of a batch whose bytes are all at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    base_offset: Offset,
    batch_length: i32,
    leader_epoch: i32,
    crc: u32,
    attributes: u16,
    codec: Codec,
    last_offset_delta: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
    record_count: u32,
}

impl Header {
    /// Reads the header of the batch that `bytes` begin with; more bytes may follow the batch.
    ///
    /// # Errors
    /// [`BatchError::Truncated`] where the batch goes on after `bytes`, else the first field
    /// that cannot be right.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        let header = Self::parse_prefix(bytes)?;
        let need = header.len_bytes();
        if bytes.len() < need {
            return Err(BatchError::Truncated {
                have: bytes.len(),
                need,
            });
        }
        Ok(header)
    }

    /// Reads a header of whose batch nothing but the header need be at hand.
    ///
    /// # Errors
    /// As [`Header::parse`], but a missing body is none.
    pub fn parse_prefix(bytes: &[u8]) -> Result<Self, BatchError> {
        // The magic decides what every other field means, so it is read as soon as it is there.
        match bytes.get(MAGIC_AT) {
            Some(&MAGIC) | None => {}
            Some(&magic @ (0 | 1)) => return Err(BatchError::OldFormat { magic }),
            Some(&magic) => return Err(BatchError::Magic { magic }),
        }
        let truncated = |need| BatchError::Truncated {
            have: bytes.len(),
            need,
        };
        let fields = bytes.first_chunk::<HEADER_LEN>().ok_or(truncated(HEADER_LEN))?;

        // The array is as long as the sum of these reads, so none of them can run short.
        let mut at = fields.as_slice();
        let base_offset = at.get_i64();
        let batch_length = at.get_i32();
        let leader_epoch = at.get_i32();
        at.advance(size_of_val(&MAGIC));
        let crc = at.get_u32();
        let attributes = at.get_u16();
        let last_offset_delta = at.get_i32();
        let base_timestamp = at.get_i64();
        let max_timestamp = at.get_i64();
        let producer_id = at.get_i64();
        let producer_epoch = at.get_i16();
        let base_sequence = at.get_i32();
        let count = at.get_i32();

        if batch_length < LENGTH_LEAST {
            return Err(BatchError::Length {
                length: batch_length,
                least: LENGTH_LEAST,
            });
        }
        let codec_id = (attributes & CODEC_BITS) as u8;
        let codec = Codec::from_id(codec_id).ok_or(BatchError::UnknownCodec { codec: codec_id })?;
        // Compaction keeps the last offset and drops records, so a stored batch may have fewer
        // records than offsets, down to none, but never more.
        let record_count = u32::try_from(count)
            .ok()
            .filter(|&count| last_offset_delta >= 0 && i64::from(count) <= i64::from(last_offset_delta) + 1)
            .ok_or(BatchError::Count {
                count,
                delta: last_offset_delta,
            })?;

        Ok(Self {
            base_offset: checked_base(base_offset.into(), last_offset_delta)?,
            batch_length,
            leader_epoch,
            crc,
            attributes,
            codec,
            last_offset_delta,
            base_timestamp,
            max_timestamp,
            producer_id,
            producer_epoch,
            base_sequence,
            record_count,
        })
    }

    /// Offset of the first record, or what it was before compaction dropped that record.
    #[must_use]
    pub const fn base_offset(&self) -> Offset {
        self.base_offset
    }

    /// Offset of the last record, or what it was before compaction dropped that record.
    #[must_use]
    pub const fn last_offset(&self) -> Offset {
        Offset(self.base_offset.0 + self.last_offset_delta.unsigned_abs() as u64)
    }

    /// The first offset after the batch.
    #[must_use]
    pub const fn end_offset(&self) -> Offset {
        Offset(self.last_offset().0 + 1)
    }

    /// Bytes of the whole batch, header included.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        LENGTH_END + self.batch_length.unsigned_abs() as usize
    }

    /// Epoch of the owner that stored the batch, none before it is stored.
    #[must_use]
    pub fn leader_epoch(&self) -> Option<Epoch> {
        u32::try_from(self.leader_epoch).ok().map(Epoch)
    }

    /// The checksum as stored, of bytes 21 to the end.
    #[must_use]
    pub const fn crc(&self) -> u32 {
        self.crc
    }

    /// The attribute bits as they are.
    #[must_use]
    pub const fn attributes(&self) -> u16 {
        self.attributes
    }

    /// How the records are compressed.
    #[must_use]
    pub const fn codec(&self) -> Codec {
        self.codec
    }

    /// Whose clock the timestamps show.
    #[must_use]
    pub const fn timestamp_type(&self) -> TimestampType {
        if self.attributes & LOG_APPEND_TIME == 0 {
            TimestampType::CreateTime
        } else {
            TimestampType::LogAppendTime
        }
    }

    /// Whether the batch belongs to a transaction.
    #[must_use]
    pub const fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether the records are markers of the broker and not data.
    #[must_use]
    pub const fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Whether the base timestamp tells when compaction may drop the tombstones.
    #[must_use]
    pub const fn has_delete_horizon(&self) -> bool {
        self.attributes & DELETE_HORIZON != 0
    }

    /// Whether attribute bits are set that have no meaning.
    pub(super) const fn has_unknown_attributes(&self) -> bool {
        self.attributes & !KNOWN_BITS != 0
    }

    /// Last offset less base offset.
    #[must_use]
    pub const fn last_offset_delta(&self) -> i32 {
        self.last_offset_delta
    }

    /// Milliseconds that the records' timestamps are relative to.
    #[must_use]
    pub const fn base_timestamp(&self) -> i64 {
        self.base_timestamp
    }

    /// The latest timestamp in the batch, milliseconds.
    #[must_use]
    pub const fn max_timestamp(&self) -> i64 {
        self.max_timestamp
    }

    /// The idempotent producer, if one wrote the batch.
    #[must_use]
    pub fn producer_id(&self) -> Option<ProducerId> {
        u64::try_from(self.producer_id).ok().map(ProducerId)
    }

    /// The producer id field as it is.
    pub(super) const fn producer_id_raw(&self) -> i64 {
        self.producer_id
    }

    /// Epoch of the producer; without meaning where there is no producer id.
    #[must_use]
    pub const fn producer_epoch(&self) -> i16 {
        self.producer_epoch
    }

    /// Sequence number of the first record; without meaning where there is no producer id.
    #[must_use]
    pub const fn base_sequence(&self) -> i32 {
        self.base_sequence
    }

    /// Sequence number of the last record, none where the batch has no sequence.
    #[must_use]
    pub fn last_sequence(&self) -> Option<i32> {
        self.producer()
            .map(|producer| sequence_after(producer.sequence, self.last_offset_delta))
    }

    /// Id, epoch and sequence where all three are given.
    #[must_use]
    pub fn producer(&self) -> Option<ProducerStamp> {
        let id = self.producer_id()?;
        let numbered = self.producer_epoch >= 0 && self.base_sequence >= 0;
        numbered.then_some(ProducerStamp {
            id,
            epoch: self.producer_epoch,
            sequence: self.base_sequence,
        })
    }

    /// Records in the batch.
    #[must_use]
    pub const fn record_count(&self) -> u32 {
        self.record_count
    }
}

/// The sequence number `count` records after `sequence`: 2³¹−1 is followed by 0.
///
/// Both arguments are taken as they are on the wire, where they are not negative.
#[must_use]
pub const fn sequence_after(sequence: i32, count: i32) -> i32 {
    sequence.wrapping_add(count) & i32::MAX
}

/// A copy of the header of `batch` with base offset and leader epoch set.
///
/// Send it before `batch[HEADER_LEN..]`: the checksum stays right, and the body is not copied.
///
/// # Errors
/// `batch` is shorter than a header, or the fields cannot hold the offsets or the epoch.
pub fn stamped_prefix(
    batch: &[u8],
    base: Offset,
    leader_epoch: Epoch,
) -> Result<[u8; HEADER_LEN], BatchError> {
    let short = BatchError::Truncated {
        have: batch.len(),
        need: HEADER_LEN,
    };
    let mut prefix = *batch.first_chunk::<HEADER_LEN>().ok_or(short)?;
    stamp_in_place(&mut prefix, base, leader_epoch)?;
    Ok(prefix)
}

/// Sets base offset and leader epoch of the batch that `batch` begins with.
///
/// # Errors
/// As [`stamped_prefix`]; `batch` is then unchanged.
pub fn stamp_in_place(batch: &mut [u8], base: Offset, leader_epoch: Epoch) -> Result<(), BatchError> {
    let have = batch.len();
    let prefix = batch
        .first_chunk_mut::<HEADER_LEN>()
        .ok_or(BatchError::Truncated {
            have,
            need: HEADER_LEN,
        })?;
    let [
        b0,
        b1,
        b2,
        b3,
        b4,
        b5,
        b6,
        b7,
        _,
        _,
        _,
        _,
        e0,
        e1,
        e2,
        e3,
        rest @ ..,
    ] = prefix;
    let [_, _, _, _, _, _, _, d0, d1, d2, d3, ..] = rest;
    let delta = i32::from_be_bytes([*d0, *d1, *d2, *d3]);
    let base = checked_base(base.0.into(), delta)?;
    let epoch = i32::try_from(leader_epoch.0).map_err(|_| BatchError::LeaderEpochRange {
        epoch: leader_epoch.0,
    })?;
    [*b0, *b1, *b2, *b3, *b4, *b5, *b6, *b7] = base.0.to_be_bytes();
    [*e0, *e1, *e2, *e3] = epoch.to_be_bytes();
    Ok(())
}

/// A base offset whose batch begins at or after 0 and ends before the largest offset.
fn checked_base(base: i128, delta: i32) -> Result<Offset, BatchError> {
    let last = base + i128::from(delta);
    u64::try_from(base)
        .ok()
        .filter(|_| delta >= 0 && last < i128::from(i64::MAX))
        .map(Offset)
        .ok_or(BatchError::OffsetRange { base, delta })
}

/// What a builder knows of a finished batch.
pub(super) struct Fields {
    pub batch_bytes: i32,
    pub codec: Codec,
    pub record_count: i32,
    pub base_timestamp: i64,
    pub max_timestamp: i64,
    pub producer: Option<ProducerStamp>,
}

impl Fields {
    /// The header as a producer sends it: base offset 0, leader epoch −1, and no checksum yet.
    pub(super) fn write(&self, header: &mut [u8; HEADER_LEN]) {
        let (id, epoch, sequence) = match self.producer {
            Some(stamp) => (stamp.id.0, stamp.epoch, stamp.sequence),
            None => (u64::MAX, -1, -1),
        };
        let mut out = header.as_mut_slice();
        out.put_i64(0);
        out.put_i32(self.batch_bytes - LENGTH_END as i32);
        out.put_i32(-1);
        out.put_u8(MAGIC);
        out.put_u32(0);
        out.put_u16(u16::from(self.codec.id()));
        out.put_i32(self.record_count - 1);
        out.put_i64(self.base_timestamp);
        out.put_i64(self.max_timestamp);
        out.put_u64(id);
        out.put_i16(epoch);
        out.put_i32(sequence);
        out.put_i32(self.record_count);
    }
}

/// Computes and sets the checksum of a whole batch; less than a header is left alone.
pub(super) fn write_checksum(batch: &mut [u8]) {
    if let Some((unchecked, checked)) = batch.split_at_mut_checked(CHECKED_FROM)
        && let Some(field) = unchecked.last_chunk_mut()
    {
        *field = crate::crc32c(checked).to_be_bytes();
    }
}
