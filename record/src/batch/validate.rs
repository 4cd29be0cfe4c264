//! The one full check of a batch that a client sent, before anything stores it.
//!
//! What passes may be stored and read by every consumer without another look inside: checksum,
//! attributes, count, offsets, timestamps and every length in every record are right, and the
//! records inflate to no more than the limit. Stored bytes are never rewritten, so what Kafka
//! would repair on the way in is refused here.
//!
//! Without compression the check is one pass over the bytes in place and allocates nothing.

use super::codec::{Codec, Scratch};
use super::error::{BatchError, RecordFault};
use super::header::{HEADER_LEN, Header, TimestampType};
use super::records::{Record, check_crc};
use super::varint::Reader;

/// Bounds on a batch from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest batch, counted as sent.
    pub batch_bytes_max: usize,
    /// Largest sum of decompressed records; bounds what one batch can make us allocate.
    pub decompressed_bytes_max: usize,
    /// Whether control batches pass: only for batches of the system itself.
    pub allow_control: bool,
}

impl Default for Limits {
    /// Kafka's default batch size, 16 MiB decompressed, no control batches.
    fn default() -> Self {
        Self {
            batch_bytes_max: 1_048_588,
            decompressed_bytes_max: 16 << 20,
            allow_control: false,
        }
    }
}

/// Checks everything about the one batch that `batch` must be.
///
/// # Errors
/// The first thing found wrong, cheap checks first.
pub fn validate(batch: &[u8], limits: &Limits) -> Result<Header, BatchError> {
    validate_with(batch, limits, &mut Scratch::new())
}

/// [`validate`] for many batches: decompression reuses what `scratch` holds.
///
/// # Errors
/// As [`validate`].
pub fn validate_with(batch: &[u8], limits: &Limits, scratch: &mut Scratch) -> Result<Header, BatchError> {
    let header = Header::parse(batch)?;
    let bytes = header.len_bytes();
    if batch.len() > bytes {
        return Err(BatchError::TrailingBytes {
            batch: bytes,
            extra: batch.len() - bytes,
        });
    }
    if bytes > limits.batch_bytes_max {
        return Err(BatchError::TooLarge {
            bytes,
            max: limits.batch_bytes_max,
        });
    }
    check_header(&header, limits)?;
    check_crc(&header, batch)?;
    let stored = batch.get(HEADER_LEN..).unwrap_or_default();
    let area = match header.codec() {
        Codec::None => stored,
        codec => scratch.decompress(codec, stored, limits.decompressed_bytes_max)?,
    };
    check_records(&header, area)?;
    Ok(header)
}

/// What a producer may say in a header.
fn check_header(header: &Header, limits: &Limits) -> Result<(), BatchError> {
    if header.has_unknown_attributes() {
        return Err(BatchError::UnknownAttributes {
            attributes: header.attributes(),
        });
    }
    if header.is_control() && !limits.allow_control {
        return Err(BatchError::Control);
    }
    if header.timestamp_type() == TimestampType::LogAppendTime {
        return Err(BatchError::LogAppendTime);
    }
    if header.has_delete_horizon() {
        return Err(BatchError::DeleteHorizon);
    }
    if header.base_offset().0 != 0 {
        return Err(BatchError::BaseOffset {
            base: header.base_offset().0,
        });
    }
    let (count, delta) = (header.record_count(), header.last_offset_delta());
    if i64::from(count) != i64::from(delta) + 1 {
        return Err(BatchError::Count {
            count: count.cast_signed(),
            delta,
        });
    }
    check_producer(header)
}

fn check_producer(header: &Header) -> Result<(), BatchError> {
    let id = header.producer_id_raw();
    let (epoch, sequence) = (header.producer_epoch(), header.base_sequence());
    // Without an id the other two have no meaning, and clients differ in what they put there.
    // End markers of transactions carry a producer but no sequence.
    let consistent = match id {
        -1 => true,
        0.. => epoch >= 0 && (sequence >= 0 || header.is_control()),
        _ => false,
    };
    if !consistent {
        return Err(BatchError::Producer { id, epoch, sequence });
    }
    if header.is_transactional() && id == -1 {
        return Err(BatchError::TransactionWithoutProducer);
    }
    Ok(())
}

/// Walks all records once: the loop a proxy spends its time in.
fn check_records(header: &Header, area: &[u8]) -> Result<(), BatchError> {
    let declared = header.record_count();
    let (base, max) = (header.base_timestamp(), header.max_timestamp());
    let mut reader = Reader::new(area);
    for index in 0..declared {
        if reader.rest().is_empty() {
            return Err(BatchError::RecordsMissing {
                declared,
                found: index,
            });
        }
        let checked = Record::read(&mut reader).and_then(|record| check_record(&record, index, base, max));
        if let Err(fault) = checked {
            return Err(BatchError::Record { index, fault });
        }
    }
    match reader.rest().len() {
        0 => Ok(()),
        left => Err(BatchError::RecordsLeft { declared, left }),
    }
}

#[inline(always)]
fn check_record(record: &Record<'_>, index: u32, base: i64, max: i64) -> Result<(), RecordFault> {
    let (expected, found) = (i64::from(index), record.offset_delta);
    if i64::from(found) != expected {
        return Err(RecordFault::OffsetDelta { expected, found });
    }
    let delta = record.timestamp_delta;
    let timestamp = base
        .checked_add(delta)
        .ok_or(RecordFault::TimestampOverflow { base, delta })?;
    if timestamp > max {
        return Err(RecordFault::TimestampAboveMax { timestamp, max });
    }
    Ok(())
}
