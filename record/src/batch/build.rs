//! Writing a batch, on the producer's side.
//!
//! Without compression a record's bytes are copied once, into the buffer that becomes the batch:
//! room for the header is left in front and filled in by `finish`. With compression the records
//! gather in a buffer of the builder and the batch is allocated at its exact size.
//!
//! A record that is refused leaves the builder as it was. The builder sets no limit but those of
//! the format: a producer asks `len_estimate` and decides when a batch is full.

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{Codec, Compressor};
use super::header::{Fields, HEADER_LEN, write_checksum};
use super::varint::{encoded_len, write};
use crate::ProducerId;

/// Largest batch that the length field can describe.
const BATCH_BYTES_MAX: usize = i32::MAX as usize;

/// Identifies a batch of an idempotent producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerStamp {
    /// The producer.
    pub id: ProducerId,
    /// Fences earlier incarnations of the producer; not negative.
    pub epoch: i16,
    /// Number of the first record among all that the producer wrote to the partition; not
    /// negative. See [`super::sequence_after`].
    pub sequence: i32,
}

/// Why a record or a batch cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The length field cannot describe the batch.
    #[error("batch of {bytes} bytes exceeds {max}")]
    TooLarge {
        /// Bytes the batch would have.
        bytes: usize,
        /// Limit of the format.
        max: usize,
    },
    /// Two timestamps too far apart.
    #[error("timestamp {timestamp} has no difference from {base}")]
    TimestampRange {
        /// Timestamp of the record.
        timestamp: i64,
        /// Timestamp of the first record.
        base: i64,
    },
    /// A batch has at least one record.
    #[error("batch without records")]
    Empty,
    /// A stamp that a batch cannot carry.
    #[error("{id} with epoch {epoch} and sequence {sequence} is out of range")]
    Producer {
        /// The producer.
        id: ProducerId,
        /// Its epoch.
        epoch: i16,
        /// Sequence of the batch.
        sequence: i32,
    },
    /// The compressor failed.
    #[error("{codec} cannot compress: {reason}")]
    Compress {
        /// Codec of the builder.
        codec: Codec,
        /// What it says.
        reason: String,
    },
}

/// Gathers records and makes batches of them.
pub struct Builder {
    codec: Codec,
    capacity: usize,
    /// Header space and records so far.
    buf: BytesMut,
    /// Made at the first use, since making one can fail.
    compressor: Option<Compressor>,
    compressed: Vec<u8>,
    count: i32,
    base_timestamp: i64,
    max_timestamp: i64,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("codec", &self.codec)
            .field("count", &self.count)
            .field("bytes", &self.buf.len())
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// A builder without records. `capacity` is the number of bytes a batch will have, before
    /// compression: a batch that stays below it is one allocation.
    #[must_use]
    pub fn new(codec: Codec, capacity: usize) -> Self {
        let capacity = capacity.clamp(HEADER_LEN, BATCH_BYTES_MAX);
        let mut builder = Self {
            codec,
            capacity,
            buf: BytesMut::new(),
            compressor: None,
            compressed: Vec::new(),
            count: 0,
            base_timestamp: 0,
            max_timestamp: 0,
        };
        builder.reset();
        builder
    }

    /// Bytes the batch would have now, before compression.
    #[must_use]
    pub fn len_estimate(&self) -> usize {
        self.buf.len()
    }

    /// Records so far.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count.unsigned_abs() as usize
    }

    /// Whether there are no records.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How batches are compressed.
    #[must_use]
    pub const fn codec(&self) -> Codec {
        self.codec
    }

    /// Adds a record. Header keys are UTF-8 by convention; order and duplicates are kept.
    ///
    /// # Errors
    /// The format cannot hold the record; the builder is then unchanged.
    pub fn append<K: AsRef<[u8]>>(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(K, Option<&[u8]>)],
    ) -> Result<(), BuildError> {
        let base = if self.is_empty() {
            timestamp_ms
        } else {
            self.base_timestamp
        };
        let delta = timestamp_ms.checked_sub(base).ok_or(BuildError::TimestampRange {
            timestamp: timestamp_ms,
            base,
        })?;

        let headers_len = headers.iter().fold(0usize, |sum, (name, value)| {
            sum.saturating_add(field_len(Some(name.as_ref())))
                .saturating_add(field_len(*value))
        });
        let fixed = 1 + encoded_len(delta) + encoded_len(self.count.into()) + len_len(headers.len());
        let body = fixed
            .saturating_add(field_len(key))
            .saturating_add(field_len(value))
            .saturating_add(headers_len);
        let record = body.saturating_add(len_len(body));
        let bytes = self.buf.len().saturating_add(record);
        // Records have at least one byte, so this bounds their count too.
        if bytes > BATCH_BYTES_MAX {
            return Err(BuildError::TooLarge {
                bytes,
                max: BATCH_BYTES_MAX,
            });
        }

        let out = &mut self.buf;
        out.reserve(record);
        write_len(out, body);
        out.put_u8(0);
        write(out, delta);
        write(out, self.count.into());
        write_field(out, key);
        write_field(out, value);
        write_len(out, headers.len());
        for (name, value) in headers {
            write_field(out, Some(name.as_ref()));
            write_field(out, *value);
        }

        self.max_timestamp = if self.is_empty() {
            timestamp_ms
        } else {
            self.max_timestamp.max(timestamp_ms)
        };
        self.base_timestamp = base;
        self.count += 1;
        Ok(())
    }

    /// The batch of all records so far: base offset 0, leader epoch −1, checksum set. The builder
    /// is then empty and can be used again.
    ///
    /// # Errors
    /// There are no records or the stamp is out of range, and the builder is unchanged; or the
    /// compressor failed, and the records are still there.
    pub fn finish(&mut self, producer: Option<ProducerStamp>) -> Result<Bytes, BuildError> {
        if self.is_empty() {
            return Err(BuildError::Empty);
        }
        if let Some(ProducerStamp { id, epoch, sequence }) = producer
            && (i64::try_from(id.0).is_err() || epoch < 0 || sequence < 0)
        {
            return Err(BuildError::Producer { id, epoch, sequence });
        }
        let batch = match self.codec {
            Codec::None => {
                let fields = self.fields(self.buf.len(), producer)?;
                seal(&mut self.buf, &fields);
                self.buf.split().freeze()
            }
            codec => {
                self.compress()
                    .map_err(|reason| BuildError::Compress { codec, reason })?;
                let fields = self.fields(self.compressed.len(), producer)?;
                seal(&mut self.compressed, &fields);
                Bytes::copy_from_slice(&self.compressed)
            }
        };
        self.reset();
        Ok(batch)
    }

    /// Fills `compressed` with header space and the compressed records.
    fn compress(&mut self) -> Result<(), String> {
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            none => none.insert(Compressor::new(self.codec)?),
        };
        self.compressed.clear();
        self.compressed.resize(HEADER_LEN, 0);
        compressor.compress(
            self.buf.get(HEADER_LEN..).unwrap_or_default(),
            &mut self.compressed,
        )
    }

    fn fields(&self, bytes: usize, producer: Option<ProducerStamp>) -> Result<Fields, BuildError> {
        let batch_bytes = i32::try_from(bytes).map_err(|_| BuildError::TooLarge {
            bytes,
            max: BATCH_BYTES_MAX,
        })?;
        Ok(Fields {
            batch_bytes,
            codec: self.codec,
            record_count: self.count,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer,
        })
    }

    /// Drops all records and leaves room for a header.
    fn reset(&mut self) {
        self.buf.clear();
        self.buf.reserve(self.capacity);
        self.buf.put_bytes(0, HEADER_LEN);
        self.count = 0;
        self.base_timestamp = 0;
        self.max_timestamp = 0;
    }
}

/// Writes the header into the space left for it.
fn seal(batch: &mut [u8], fields: &Fields) {
    if let Some(header) = batch.first_chunk_mut() {
        fields.write(header);
    }
    write_checksum(batch);
}

/// Bytes of a nullable field with its length.
fn field_len(field: Option<&[u8]>) -> usize {
    match field {
        None => encoded_len(-1),
        Some(bytes) => bytes.len().saturating_add(len_len(bytes.len())),
    }
}

/// Bytes of a length. No length beyond the limit is ever written, whatever this says of it.
fn len_len(len: usize) -> usize {
    encoded_len(len as i64)
}

fn write_len(out: &mut BytesMut, len: usize) {
    write(out, len as i64);
}

fn write_field(out: &mut BytesMut, field: Option<&[u8]>) {
    match field {
        None => write(out, -1),
        Some(bytes) => {
            write_len(out, bytes.len());
            out.put_slice(bytes);
        }
    }
}
