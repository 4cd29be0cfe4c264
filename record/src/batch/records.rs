//! Reading the records of a batch: borrowed, or as slices of one shared buffer.
//!
//! `decode` is for consumers and for whoever reads stored batches, so it is tolerant where
//! `validate` is strict: compaction may have left gaps between offsets. It still trusts nothing:
//! the checksum is checked, decompression is bounded, and every length is compared with what is
//! left. Header keys keep their order and their duplicates. Nothing is allocated per record.

use bytes::Bytes;

use super::codec::{Codec, Scratch};
use super::error::{BatchError, Field, RecordFault};
use super::header::{CHECKED_FROM, HEADER_LEN, Header, TimestampType};
use super::validate::Limits;
use super::varint::Reader;
use crate::{Offset, crc32c};

/// One record, borrowed from the bytes of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Offset less the base offset of the batch.
    pub offset_delta: i32,
    /// Timestamp less the base timestamp of the batch, milliseconds.
    pub timestamp_delta: i64,
    /// Key, none where it is null.
    pub key: Option<&'a [u8]>,
    /// Value, none where it is null: a tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers, in order, duplicates included.
    pub headers: RecordHeaders<'a>,
}

impl<'a> Record<'a> {
    /// Reads one record and checks every length in it.
    #[inline(always)]
    pub(super) fn read(area: &mut Reader<'a>) -> Result<Self, RecordFault> {
        let length = area.varint(Field::Length)?;
        let mut body = Reader::new(area.take(length, Field::Length)?);
        body.byte(Field::Attributes)?;
        let timestamp_delta = body.varlong(Field::TimestampDelta)?;
        let offset_delta = body.varint(Field::OffsetDelta)?;
        let key = body.nullable(Field::Key)?;
        let value = body.nullable(Field::Value)?;
        let headers = RecordHeaders::read(&mut body)?;
        match body.rest().len() {
            0 => Ok(Self {
                offset_delta,
                timestamp_delta,
                key,
                value,
                headers,
            }),
            left => Err(RecordFault::BytesLeft { left }),
        }
    }

    /// The record's offset in its partition. `batch` is the header of its batch.
    #[must_use]
    pub const fn offset(&self, batch: &Header) -> Offset {
        // A record that was read from a batch lies within its offsets, so this cannot wrap.
        Offset(batch.base_offset().0.wrapping_add(self.offset_delta as u64))
    }

    /// The record's timestamp, milliseconds. `batch` is the header of its batch.
    #[must_use]
    pub const fn timestamp_ms(&self, batch: &Header) -> i64 {
        match batch.timestamp_type() {
            TimestampType::CreateTime => batch.base_timestamp().wrapping_add(self.timestamp_delta),
            TimestampType::LogAppendTime => batch.max_timestamp(),
        }
    }
}

/// The headers of a record. Their lengths were checked when the record was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeaders<'a> {
    count: usize,
    bytes: &'a [u8],
}

impl<'a> RecordHeaders<'a> {
    #[inline(always)]
    fn read(body: &mut Reader<'a>) -> Result<Self, RecordFault> {
        let left = body.rest().len();
        let length = body.varint(Field::HeaderCount)?;
        // A header takes two bytes at least, so a count cannot make us loop past the record.
        let count = usize::try_from(length)
            .ok()
            .filter(|count| *count <= body.rest().len() / 2)
            .ok_or(RecordFault::Length {
                field: Field::HeaderCount,
                length,
                left,
            })?;
        let bytes = body.rest();
        for _ in 0..count {
            read_header(body)?;
        }
        let used = bytes.len() - body.rest().len();
        Ok(Self {
            count,
            bytes: bytes.get(..used).unwrap_or_default(),
        })
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Keys and values in order.
    #[must_use]
    pub const fn iter(&self) -> HeadersIter<'a> {
        HeadersIter {
            reader: Reader::new(self.bytes),
        }
    }
}

impl<'a> IntoIterator for RecordHeaders<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);
    type IntoIter = HeadersIter<'a>;

    fn into_iter(self) -> HeadersIter<'a> {
        self.iter()
    }
}

/// Walks the headers of a record.
#[derive(Clone)]
pub struct HeadersIter<'a> {
    reader: Reader<'a>,
}

impl<'a> Iterator for HeadersIter<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        // These very bytes were walked once already, so the only failure is their end.
        read_header(&mut self.reader).ok()
    }
}

#[inline(always)]
fn read_header<'a>(body: &mut Reader<'a>) -> Result<(&'a [u8], Option<&'a [u8]>), RecordFault> {
    let length = body.varint(Field::HeaderKey)?;
    Ok((
        body.take(length, Field::HeaderKey)?,
        body.nullable(Field::HeaderValue)?,
    ))
}

/// Where the walk over the records of a stored batch stands.
#[derive(Debug, Clone, Copy)]
struct Walk {
    header: Header,
    found: u32,
    previous: i32,
    ended: bool,
}

impl Walk {
    const fn new(header: Header) -> Self {
        Self {
            header,
            found: 0,
            previous: -1,
            ended: false,
        }
    }

    /// The next record of `area`, none after the last one or after an error.
    fn next<'a>(&mut self, area: &mut Reader<'a>) -> Option<Result<Record<'a>, BatchError>> {
        if self.ended {
            return None;
        }
        let declared = self.header.record_count();
        let outcome = match (self.found < declared, area.rest().len()) {
            (false, 0) => None,
            (false, left) => Some(Err(BatchError::RecordsLeft { declared, left })),
            (true, 0) => Some(Err(BatchError::RecordsMissing {
                declared,
                found: self.found,
            })),
            (true, _) => Some(self.read(area).map_err(|fault| BatchError::Record {
                index: self.found,
                fault,
            })),
        };
        match &outcome {
            Some(Ok(record)) => {
                self.found += 1;
                self.previous = record.offset_delta;
            }
            Some(Err(_)) | None => self.ended = true,
        }
        outcome
    }

    fn read<'a>(&self, area: &mut Reader<'a>) -> Result<Record<'a>, RecordFault> {
        let record = Record::read(area)?;
        let (found, last) = (record.offset_delta, self.header.last_offset_delta());
        if found <= self.previous || found > last {
            return Err(RecordFault::OffsetOrder {
                previous: self.previous,
                found,
                last,
            });
        }
        let (base, delta) = (self.header.base_timestamp(), record.timestamp_delta);
        if base.checked_add(delta).is_none() {
            return Err(RecordFault::TimestampOverflow { base, delta });
        }
        Ok(record)
    }
}

/// Checks the checksum of `batch` and makes its records readable.
///
/// Without compression the records stay slices of `batch`; else they are decompressed once into a
/// buffer that all of them share. Keep the returned batch no longer than its records are needed:
/// the smallest slice keeps the whole buffer.
///
/// # Errors
/// The header, the checksum or the compressed stream is wrong, or the records inflate past
/// `limits.decompressed_bytes_max`. Of `limits` nothing else is used. A malformed record shows
/// when it is reached.
pub fn decode(batch: &Bytes, limits: &Limits) -> Result<DecodedBatch, BatchError> {
    decode_with(batch, limits, &mut Scratch::new())
}

/// [`decode`] for many batches: decompression reuses what `scratch` holds.
///
/// # Errors
/// As [`decode`].
pub fn decode_with(
    batch: &Bytes,
    limits: &Limits,
    scratch: &mut Scratch,
) -> Result<DecodedBatch, BatchError> {
    let header = Header::parse(batch)?;
    let mut batch = batch.clone();
    batch.truncate(header.len_bytes());
    check_crc(&header, &batch)?;
    let stored = batch.split_off(HEADER_LEN.min(batch.len()));
    let area = match header.codec() {
        // Compaction keeps an emptied batch for its header: no records, no stream.
        _ if header.record_count() == 0 && stored.is_empty() => stored,
        Codec::None => stored,
        codec => {
            let plain = scratch.decompress(codec, &stored, limits.decompressed_bytes_max)?;
            Bytes::copy_from_slice(plain)
        }
    };
    Ok(DecodedBatch { header, area })
}

/// Compares the checksum in `header` with the bytes of its `batch`.
pub(super) fn check_crc(header: &Header, batch: &[u8]) -> Result<(), BatchError> {
    let computed = crc32c(batch.get(CHECKED_FROM..).unwrap_or_default());
    let stored = header.crc();
    if stored == computed {
        Ok(())
    } else {
        Err(BatchError::Checksum { stored, computed })
    }
}

/// A batch whose records can be read.
#[derive(Debug, Clone)]
pub struct DecodedBatch {
    header: Header,
    area: Bytes,
}

impl DecodedBatch {
    /// The header.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of the records, decompressed.
    #[must_use]
    pub const fn records_bytes(&self) -> &Bytes {
        &self.area
    }

    /// The records, borrowed. The first error is the last item.
    #[must_use]
    pub fn records(&self) -> RecordsIter<'_> {
        RecordsIter {
            walk: Walk::new(self.header),
            area: Reader::new(&self.area),
        }
    }
}

impl IntoIterator for DecodedBatch {
    type Item = Result<OwnedRecord, BatchError>;
    type IntoIter = OwnedRecordsIter;

    /// The records as slices of the shared buffer. The first error is the last item.
    fn into_iter(self) -> OwnedRecordsIter {
        OwnedRecordsIter {
            walk: Walk::new(self.header),
            area: self.area,
            at: 0,
        }
    }
}

/// Walks records that borrow from their batch.
#[derive(Clone)]
pub struct RecordsIter<'a> {
    walk: Walk,
    area: Reader<'a>,
}

impl<'a> Iterator for RecordsIter<'a> {
    type Item = Result<Record<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.walk.next(&mut self.area)
    }
}

impl std::iter::FusedIterator for RecordsIter<'_> {}

/// Walks records that share their batch's buffer.
#[derive(Debug, Clone)]
pub struct OwnedRecordsIter {
    walk: Walk,
    area: Bytes,
    at: usize,
}

impl Iterator for OwnedRecordsIter {
    type Item = Result<OwnedRecord, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut reader = Reader::new(self.area.get(self.at..).unwrap_or_default());
        let outcome = self.walk.next(&mut reader)?;
        self.at = self.area.len() - reader.rest().len();
        let header = &self.walk.header;
        Some(outcome.map(|record| OwnedRecord {
            offset: record.offset(header),
            timestamp_ms: record.timestamp_ms(header),
            key: record.key.map(|key| self.area.slice_ref(key)),
            value: record.value.map(|value| self.area.slice_ref(value)),
            headers: OwnedHeaders {
                count: record.headers.count,
                bytes: self.area.slice_ref(record.headers.bytes),
            },
        }))
    }
}

impl std::iter::FusedIterator for OwnedRecordsIter {}

/// One record whose parts are slices of its batch's buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedRecord {
    /// Place in the partition.
    pub offset: Offset,
    /// Milliseconds, by the clock that the batch's timestamp type names.
    pub timestamp_ms: i64,
    /// Key, none where it is null.
    pub key: Option<Bytes>,
    /// Value, none where it is null: a tombstone.
    pub value: Option<Bytes>,
    /// Headers, in order, duplicates included.
    pub headers: OwnedHeaders,
}

/// The headers of an [`OwnedRecord`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnedHeaders {
    count: usize,
    bytes: Bytes,
}

impl OwnedHeaders {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Keys and values in order, as slices of the shared buffer.
    #[must_use]
    pub fn iter(&self) -> OwnedHeadersIter<'_> {
        OwnedHeadersIter {
            bytes: &self.bytes,
            borrowed: self.borrowed().iter(),
        }
    }

    /// The same headers, borrowed.
    #[must_use]
    pub fn borrowed(&self) -> RecordHeaders<'_> {
        RecordHeaders {
            count: self.count,
            bytes: &self.bytes,
        }
    }
}

impl<'a> IntoIterator for &'a OwnedHeaders {
    type Item = (Bytes, Option<Bytes>);
    type IntoIter = OwnedHeadersIter<'a>;

    fn into_iter(self) -> OwnedHeadersIter<'a> {
        self.iter()
    }
}

/// Walks the headers of an [`OwnedRecord`].
#[derive(Clone)]
pub struct OwnedHeadersIter<'a> {
    bytes: &'a Bytes,
    borrowed: HeadersIter<'a>,
}

impl Iterator for OwnedHeadersIter<'_> {
    type Item = (Bytes, Option<Bytes>);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, value) = self.borrowed.next()?;
        Some((
            self.bytes.slice_ref(key),
            value.map(|value| self.bytes.slice_ref(value)),
        ))
    }
}
