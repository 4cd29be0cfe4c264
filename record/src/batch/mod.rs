//! Kafka's RecordBatch v2: the unit that moves through the whole system, byte for byte.
//!
//! A producer's [`Builder`] writes it, a proxy checks it once with [`validate`], a broker reads
//! only its [`Header`] and sets two fields with [`stamped_prefix`], and a consumer cuts what it
//! fetched with [`Batches`] and reads the records with [`decode`]. In between nothing re-encodes
//! or re-compresses it, so the checksum a producer wrote is the one a consumer checks.
//!
//! All integers are big endian.
//!
//! | bytes | field                  | type |                                                     |
//! |-------|------------------------|------|-----------------------------------------------------|
//! | 0–7   | base offset            | i64  | 0 from a producer, set by the broker                |
//! | 8–11  | batch length           | i32  | bytes after this field; whole batch = this + 12     |
//! | 12–15 | partition leader epoch | i32  | −1 from a producer, set by the broker               |
//! | 16    | magic                  | i8   | 2                                                   |
//! | 17–20 | checksum               | u32  | CRC-32C of bytes 21 to the end                      |
//! | 21–22 | attributes             | i16  | bits below                                          |
//! | 23–26 | last offset delta      | i32  | last offset − base offset                           |
//! | 27–34 | base timestamp         | i64  | milliseconds; record timestamps are deltas from it  |
//! | 35–42 | max timestamp          | i64  |                                                     |
//! | 43–50 | producer id            | i64  | −1 none                                             |
//! | 51–52 | producer epoch         | i16  | −1 none                                             |
//! | 53–56 | base sequence          | i32  | −1 none; wraps from 2³¹−1 to 0                      |
//! | 57–60 | record count           | i32  |                                                     |
//! | 61–   | records                |      | plain, or one compressed stream of all of them      |
//!
//! Attributes: bits 0–2 codec (0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd), bit 3 timestamps are
//! the broker's, bit 4 transactional, bit 5 control, bit 6 base timestamp is a delete horizon.
//!
//! A record: varint length of what follows; attributes byte, unused; varlong timestamp delta;
//! varint offset delta; varint key length (−1 null) and key; varint value length (−1 null) and
//! value; varint header count; per header varint key length and key, varint value length
//! (−1 null) and value. Varints are zig-zag.

mod build;
mod codec;
mod error;
mod header;
mod records;
mod split;
mod validate;
mod varint;

pub use build::{BuildError, Builder, ProducerStamp};
pub use codec::{Codec, Scratch};
pub use error::{BatchError, Field, RecordFault};
pub use header::{HEADER_LEN, Header, TimestampType, sequence_after, stamp_in_place, stamped_prefix};
pub use records::{
    DecodedBatch, HeadersIter, OwnedHeaders, OwnedHeadersIter, OwnedRecord, OwnedRecordsIter, Record,
    RecordHeaders, RecordsIter, decode, decode_with,
};
pub use split::{Batches, split_first};
pub use validate::{Limits, validate, validate_with};
