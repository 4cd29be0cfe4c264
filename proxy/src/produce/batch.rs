//! From what a client sent to one checked batch: the only place that looks into records.
//!
//! A batch in Kafka's format passes as the slice of the request that it is, checked once in full.
//! Records of a client without an encoder are made into a batch. Each refusal names the topic,
//! the partition and what was wrong.

use bytes::Bytes;
use forebay_proto::error::Failure;
use forebay_proto::v1::partition_produce::Data;
use forebay_proto::v1::{Compression, ErrorCode, Records};
use forebay_record::ProducerId;
use forebay_record::batch::{
    BatchError, BuildError, Builder, Codec, Limits, RecordFault, Scratch, validate_with,
};
use parking_lot::Mutex;

/// Bytes per record beside key, value and headers, generously.
const RECORD_OVERHEAD: usize = 32;

/// Decompression memory: as many as there are threads that validate at once.
#[derive(Default)]
pub(crate) struct Scratches {
    idle: Mutex<Vec<Scratch>>,
}

impl Scratches {
    /// Runs `work` with a scratch of its own. There are at most as many as run at once, since
    /// `work` never waits.
    fn with<T>(&self, work: impl FnOnce(&mut Scratch) -> T) -> T {
        let mut scratch = self.idle.lock().pop().unwrap_or_default();
        let done = work(&mut scratch);
        self.idle.lock().push(scratch);
        done
    }
}

/// The bytes of the batch: as they came, or made of records.
pub(crate) fn batch_of(
    data: Option<Data>,
    topic: &str,
    partition: u32,
    now_unix_ms: i64,
) -> Result<Bytes, Failure> {
    match data {
        Some(Data::Batch(batch)) => Ok(batch),
        Some(Data::Records(records)) => {
            build(&records, now_unix_ms).map_err(|failure| placed(failure, topic, partition))
        }
        None => Err(placed(
            Failure::new(ErrorCode::InvalidRequest, "neither a batch nor records are given"),
            topic,
            partition,
        )),
    }
}

fn build(records: &Records, now_unix_ms: i64) -> Result<Bytes, Failure> {
    let codec = match Compression::try_from(records.compression) {
        Ok(Compression::None) => Codec::None,
        Ok(Compression::Gzip) => Codec::Gzip,
        Ok(Compression::Snappy) => Codec::Snappy,
        Ok(Compression::Lz4) => Codec::Lz4,
        Ok(Compression::Zstd) => Codec::Zstd,
        Err(_) => {
            let what = format!("unknown compression {}", records.compression);
            return Err(Failure::new(ErrorCode::UnsupportedCompression, what));
        }
    };
    let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
    let capacity = records.records.iter().fold(RECORD_OVERHEAD * 2, |sum, record| {
        let headers: usize = record
            .headers
            .iter()
            .map(|header| header.key.len() + len(&header.value) + RECORD_OVERHEAD)
            .sum();
        sum.saturating_add(RECORD_OVERHEAD + len(&record.key) + len(&record.value) + headers)
    });
    let mut builder = Builder::new(codec, capacity);
    let mut headers: Vec<(&str, Option<&[u8]>)> = Vec::new();
    for record in &records.records {
        headers.clear();
        headers.extend(
            record
                .headers
                .iter()
                .map(|header| (header.key.as_str(), header.value.as_deref())),
        );
        let timestamp = if record.timestamp_ms == 0 {
            now_unix_ms
        } else {
            record.timestamp_ms
        };
        builder
            .append(
                timestamp,
                record.key.as_deref(),
                record.value.as_deref(),
                &headers,
            )
            .map_err(not_built)?;
    }
    builder.finish(None).map_err(not_built)
}

fn not_built(error: BuildError) -> Failure {
    let code = match &error {
        BuildError::TooLarge { .. } => ErrorCode::BatchTooLarge,
        BuildError::TimestampRange { .. } | BuildError::Producer { .. } => ErrorCode::InvalidBatch,
        BuildError::Empty => ErrorCode::InvalidRequest,
        BuildError::Compress { .. } => ErrorCode::Internal,
    };
    Failure::new(code, error.to_string())
}

/// What the rest of the proxy wants to know of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Of idempotent batches.
    pub producer: Option<ProducerId>,
    pub records: u32,
}

/// The full check of a batch.
pub(crate) fn check(
    batch: &Bytes,
    limits: &Limits,
    scratches: &Scratches,
    topic: &str,
    partition: u32,
) -> Result<Checked, Failure> {
    // Said before anything is read of it: what else is wrong with it matters less.
    if batch.len() > limits.batch_bytes_max {
        let (bytes, max) = (batch.len(), limits.batch_bytes_max);
        return Err(placed(
            refused(&BatchError::TooLarge { bytes, max }),
            topic,
            partition,
        ));
    }
    let checked = scratches.with(|scratch| validate_with(batch, limits, scratch));
    let header = checked.map_err(|error| placed(refused(&error), topic, partition))?;
    if header.is_transactional() {
        let what = Failure::new(
            ErrorCode::Unsupported,
            "transactional batches are not supported in this version",
        );
        return Err(placed(what, topic, partition));
    }
    Ok(Checked {
        producer: header.producer().map(|stamp| stamp.id),
        records: header.record_count(),
    })
}

fn refused(error: &BatchError) -> Failure {
    use BatchError as B;
    let code = match error {
        B::Truncated { .. }
        | B::Length { .. }
        | B::TrailingBytes { .. }
        | B::Checksum { .. }
        | B::Corrupt { .. } => ErrorCode::CorruptBatch,
        B::OldFormat { .. } | B::Magic { .. } => ErrorCode::UnsupportedFormat,
        B::UnknownCodec { .. } => ErrorCode::UnsupportedCompression,
        B::TooLarge { .. } | B::DecompressedTooLarge { .. } => ErrorCode::BatchTooLarge,
        B::Record { fault, .. } => match fault {
            RecordFault::OffsetDelta { .. }
            | RecordFault::OffsetOrder { .. }
            | RecordFault::TimestampOverflow { .. }
            | RecordFault::TimestampAboveMax { .. } => ErrorCode::InvalidBatch,
            _ => ErrorCode::CorruptBatch,
        },
        _ => ErrorCode::InvalidBatch,
    };
    Failure::new(code, error.to_string())
}

fn placed(failure: Failure, topic: &str, partition: u32) -> Failure {
    Failure::new(
        failure.code,
        format!("topic {topic} partition {partition}: {}", failure.message),
    )
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use forebay_proto::v1::{Header, Record};
    use forebay_record::batch::{ProducerStamp, decode};
    use forebay_record::crc32c;

    use super::*;

    const LIMITS: Limits = Limits {
        batch_bytes_max: 4096,
        decompressed_bytes_max: 8192,
        allow_control: false,
    };

    fn batch(codec: Codec, value: &[u8]) -> Vec<u8> {
        let mut builder = Builder::new(codec, 1024);
        builder
            .append::<&str>(1_000, Some(b"k"), Some(value), &[])
            .unwrap();
        builder.append::<&str>(1_001, None, Some(value), &[]).unwrap();
        builder.finish(None).unwrap().to_vec()
    }

    /// Sets bytes and then the checksum right, so that only the field itself is wrong.
    fn changed(mut bytes: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
        bytes[at..at + new.len()].copy_from_slice(new);
        let crc = crc32c(&bytes[21..]).to_be_bytes();
        bytes[17..21].copy_from_slice(&crc);
        bytes
    }

    fn refusal(bytes: Vec<u8>) -> Failure {
        check(&Bytes::from(bytes), &LIMITS, &Scratches::default(), "orders", 3).unwrap_err()
    }

    #[test]
    fn each_bad_batch_has_its_code_and_names_topic_and_partition() {
        let good = || batch(Codec::None, b"value");
        let mut flipped = good();
        flipped[70] ^= 1;
        let mut trailing = good();
        trailing.push(0);
        let mut cut = good();
        cut.truncate(66);
        let cases = [
            (ErrorCode::CorruptBatch, flipped, "checksum"),
            (ErrorCode::CorruptBatch, trailing, "1 bytes after"),
            (ErrorCode::CorruptBatch, cut, "truncated"),
            (
                ErrorCode::CorruptBatch,
                changed(good(), 8, &(-5_i32).to_be_bytes()),
                "length -5",
            ),
            (ErrorCode::CorruptBatch, Vec::new(), "truncated"),
            (
                ErrorCode::InvalidBatch,
                changed(good(), 57, &7_i32.to_be_bytes()),
                "count 7",
            ),
            (
                ErrorCode::InvalidBatch,
                changed(good(), 57, &(-2_i32).to_be_bytes()),
                "count -2",
            ),
            (ErrorCode::InvalidBatch, changed(good(), 22, &[0x20]), "control"),
            (
                ErrorCode::InvalidBatch,
                changed(good(), 0, &9_i64.to_be_bytes()),
                "base offset 9",
            ),
            (
                ErrorCode::UnsupportedCompression,
                changed(good(), 22, &[5]),
                "codec 5",
            ),
            (ErrorCode::UnsupportedFormat, changed(good(), 16, &[0]), "v0"),
            (ErrorCode::UnsupportedFormat, changed(good(), 16, &[1]), "v1"),
            (ErrorCode::UnsupportedFormat, changed(good(), 16, &[9]), "magic 9"),
            (
                ErrorCode::BatchTooLarge,
                batch(Codec::None, &[7; 4096]),
                "exceeds",
            ),
            (
                ErrorCode::BatchTooLarge,
                batch(Codec::Zstd, &[7; 1 << 20]),
                "inflates past 8192",
            ),
        ];
        for (code, bytes, words) in cases {
            let failure = refusal(bytes);
            assert_eq!(failure.code, code, "{failure}");
            assert!(
                failure.message.starts_with("topic orders partition 3: "),
                "{failure}"
            );
            assert!(failure.message.contains(words), "{failure} does not say {words}");
        }
    }

    #[test]
    fn a_garbled_compressed_stream_is_corrupt() {
        for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
            let bytes = batch(codec, &[1; 500]);
            let garbled = changed(bytes, 61, &[0xff; 8]);
            assert_eq!(refusal(garbled).code, ErrorCode::CorruptBatch, "{codec}");
        }
    }

    #[test]
    fn the_producer_of_an_idempotent_batch_is_found() {
        let mut builder = Builder::new(Codec::None, 256);
        builder.append::<&str>(5, None, Some(b"v"), &[]).unwrap();
        let stamp = ProducerStamp {
            id: ProducerId(42),
            epoch: 0,
            sequence: 0,
        };
        let batch = builder.finish(Some(stamp)).unwrap();
        assert_eq!(
            check(&batch, &LIMITS, &Scratches::default(), "t", 0).unwrap(),
            Checked {
                producer: Some(ProducerId(42)),
                records: 1,
            }
        );
    }

    #[test]
    fn records_become_a_batch_with_all_they_say() {
        let header = Header {
            key: "h".into(),
            value: Some(Bytes::from_static(b"x")),
        };
        let record = |timestamp_ms| Record {
            key: Some(Bytes::from_static(b"k")),
            value: None,
            timestamp_ms,
            headers: vec![header.clone(), header.clone()],
        };
        for compression in 0..=4 {
            let records = Records {
                records: vec![record(0), record(77)],
                compression,
            };
            let batch = batch_of(Some(Data::Records(records)), "t", 0, 5_000).unwrap();
            check(&batch, &LIMITS, &Scratches::default(), "t", 0).unwrap();
            let decoded: Vec<_> = decode(&batch, &LIMITS)
                .unwrap()
                .into_iter()
                .map(Result::unwrap)
                .collect();
            assert_eq!(
                decoded.iter().map(|one| one.timestamp_ms).collect::<Vec<_>>(),
                [5_000, 77]
            );
            assert_eq!(decoded[1].headers.len(), 2);
            assert_eq!(decoded[1].value, None);
        }
    }

    #[test]
    fn records_that_make_no_batch_are_refused() {
        let empty = batch_of(Some(Data::Records(Records::default())), "t", 1, 0).unwrap_err();
        assert_eq!(empty.code, ErrorCode::InvalidRequest);
        let records = Records {
            records: vec![forebay_proto::v1::Record::default()],
            compression: 9,
        };
        let unknown = batch_of(Some(Data::Records(records)), "t", 1, 0).unwrap_err();
        assert_eq!(unknown.code, ErrorCode::UnsupportedCompression);
        assert_eq!(
            batch_of(None, "t", 1, 0).unwrap_err().code,
            ErrorCode::InvalidRequest
        );
    }
}
