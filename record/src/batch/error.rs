//! Why bytes are not a batch that may be stored or read.
//!
//! One enum serves parsing, validation and decoding, since a reader meets the same faults as a
//! check does. Every variant names the values it compared; none carries bytes of a record.

use super::codec::Codec;

/// Why bytes are not an acceptable record batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// The batch goes on after the bytes at hand; more of them may make it whole.
    #[error("batch truncated: {have} bytes, {need} needed")]
    Truncated {
        /// Bytes at hand.
        have: usize,
        /// Bytes known to be needed, a lower bound where even the length is missing.
        need: usize,
    },
    /// The message formats before record batches.
    #[error("message format v{magic} is not supported, only v2 is")]
    OldFormat {
        /// 0 or 1.
        magic: u8,
    },
    /// Not a known message format.
    #[error("unknown message format: magic {magic}, expected 2")]
    Magic {
        /// The magic byte.
        magic: u8,
    },
    /// The length field cannot be that of a batch.
    #[error("batch length {length} is below the least possible {least}")]
    Length {
        /// The field's value.
        length: i32,
        /// What a batch without records has.
        least: i32,
    },
    /// More bytes than the one batch that was expected.
    #[error("{extra} bytes after a batch of {batch} bytes")]
    TrailingBytes {
        /// Bytes of the batch.
        batch: usize,
        /// Bytes after it.
        extra: usize,
    },
    /// Larger than the topic allows, as sent.
    #[error("batch of {bytes} bytes exceeds the limit of {max}")]
    TooLarge {
        /// Bytes of the batch.
        bytes: usize,
        /// Limit.
        max: usize,
    },
    /// The bytes are not those that were checksummed.
    #[error("checksum mismatch: stored {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// What the header says.
        stored: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// No such compression.
    #[error("unknown codec {codec}")]
    UnknownCodec {
        /// The codec bits of the attributes.
        codec: u8,
    },
    /// Attribute bits nobody has given a meaning.
    #[error("unknown attribute bits in {attributes:#06x}")]
    UnknownAttributes {
        /// The attributes.
        attributes: u16,
    },
    /// A negative base offset, or a batch that ends beyond the largest offset.
    #[error("base offset {base} with last offset delta {delta} is out of range")]
    OffsetRange {
        /// Base offset.
        base: i128,
        /// Last offset delta.
        delta: i32,
    },
    /// A leader epoch that the field cannot hold.
    #[error("leader epoch {epoch} exceeds {max}", max = i32::MAX)]
    LeaderEpochRange {
        /// The epoch.
        epoch: u32,
    },
    /// Record count and last offset delta contradict each other.
    #[error("record count {count} does not go with last offset delta {delta}")]
    Count {
        /// Record count in the header.
        count: i32,
        /// Last offset delta in the header.
        delta: i32,
    },
    /// A producer must leave the base offset to the broker.
    #[error("base offset {base} from a producer, expected 0")]
    BaseOffset {
        /// Base offset.
        base: u64,
    },
    /// Control batches are the broker's.
    #[error("control batch from a client")]
    Control,
    /// Only a broker stamps batches with its own time.
    #[error("log append time set by a producer")]
    LogAppendTime,
    /// Only compaction sets a delete horizon.
    #[error("delete horizon set by a producer")]
    DeleteHorizon,
    /// Producer id, epoch and sequence that do not go together.
    #[error("producer id {id} with epoch {epoch} and base sequence {sequence}")]
    Producer {
        /// Producer id, −1 for none.
        id: i64,
        /// Producer epoch.
        epoch: i16,
        /// Base sequence.
        sequence: i32,
    },
    /// A transactional batch needs a producer id.
    #[error("transactional batch without a producer id")]
    TransactionWithoutProducer,
    /// The compressed records do not decompress.
    #[error("{codec} stream is corrupt: {reason}")]
    Corrupt {
        /// Codec of the batch.
        codec: Codec,
        /// What the decoder met.
        reason: String,
    },
    /// The compressed records inflate past what we are ready to hold.
    #[error("{codec} stream inflates past {max} bytes")]
    DecompressedTooLarge {
        /// Codec of the batch.
        codec: Codec,
        /// Limit.
        max: usize,
    },
    /// The records end before the count is reached.
    #[error("{found} records, {declared} declared")]
    RecordsMissing {
        /// Record count in the header.
        declared: u32,
        /// Records found.
        found: u32,
    },
    /// Bytes are left after the last record.
    #[error("{left} bytes after the last of {declared} records")]
    RecordsLeft {
        /// Record count in the header.
        declared: u32,
        /// Bytes left over.
        left: usize,
    },
    /// One record is malformed.
    #[error("record {index}: {fault}")]
    Record {
        /// Place of the record in its batch, from 0.
        index: u32,
        /// What is wrong with it.
        fault: RecordFault,
    },
}

/// What is wrong with one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordFault {
    /// The bytes end within a field.
    #[error("ends within {field}")]
    Ended {
        /// The field.
        field: Field,
    },
    /// A varint with more bytes or bits than its type has.
    #[error("varint of {field} is too long")]
    Varint {
        /// The field.
        field: Field,
    },
    /// A negative length where null is not allowed, or one that exceeds what is left.
    #[error("{field} of {length} does not fit in the {left} bytes left")]
    Length {
        /// What the length is of.
        field: Field,
        /// The length, or the count of headers.
        length: i32,
        /// Bytes left.
        left: usize,
    },
    /// The fields of the record end before its length does.
    #[error("{left} bytes left over after the headers")]
    BytesLeft {
        /// Bytes left over.
        left: usize,
    },
    /// A producer numbers its records 0, 1, 2 and so on.
    #[error("offset delta {found}, expected {expected}")]
    OffsetDelta {
        /// Place of the record in the batch.
        expected: i64,
        /// What the record says.
        found: i32,
    },
    /// Offsets in a stored batch rise and stay within it.
    #[error("offset delta {found} after {previous} in a batch that ends at {last}")]
    OffsetOrder {
        /// Offset delta of the record before, −1 for none.
        previous: i32,
        /// What the record says.
        found: i32,
        /// Last offset delta of the batch.
        last: i32,
    },
    /// Base and delta have no sum.
    #[error("timestamp delta {delta} overflows from {base}")]
    TimestampOverflow {
        /// Base timestamp of the batch.
        base: i64,
        /// What the record says.
        delta: i64,
    },
    /// The header promises that no record is later than this.
    #[error("timestamp {timestamp} exceeds the batch's max timestamp {max}")]
    TimestampAboveMax {
        /// Timestamp of the record.
        timestamp: i64,
        /// Max timestamp of the batch.
        max: i64,
    },
}

/// A field of a record, in the words of an error message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Length of the whole record.
    Length,
    /// Attributes byte.
    Attributes,
    /// Timestamp delta.
    TimestampDelta,
    /// Offset delta.
    OffsetDelta,
    /// Key.
    Key,
    /// Value.
    Value,
    /// Number of headers.
    HeaderCount,
    /// Key of a header.
    HeaderKey,
    /// Value of a header.
    HeaderValue,
}

impl std::fmt::Display for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Length => "record length",
            Self::Attributes => "attributes",
            Self::TimestampDelta => "timestamp delta",
            Self::OffsetDelta => "offset delta",
            Self::Key => "key",
            Self::Value => "value",
            Self::HeaderCount => "header count",
            Self::HeaderKey => "header key",
            Self::HeaderValue => "header value",
        })
    }
}
