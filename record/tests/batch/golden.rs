//! Batches as files, so that no change of ours or of a library changes what they mean.
//!
//! `forebay-*.batch` were written by this crate's builder. `kafka-python-3.0.12-*.batch` were
//! written by the record builder of kafka-python 3.0.12 with python-snappy 0.7.3, lz4 4.4.5 (its
//! frame states the content size) and zstandard 0.25.0; `aiokafka-0.14.0-*.batch` by that of
//! aiokafka 0.14.0 with cramjam 2.14.0 (its LZ4 blocks are linked).

use std::path::PathBuf;

use bytes::Bytes;
use forebay_record::batch::{Builder, Codec, ProducerStamp, decode, validate};
use forebay_record::{Offset, ProducerId};

use crate::{LIMITS, Plain};

fn file(name: &str) -> Bytes {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    std::fs::read(path).unwrap().into()
}

fn records() -> Vec<Plain> {
    let all_bytes: Vec<u8> = (0..=255).collect();
    vec![
        Plain::new(1_700_000_000_000, Some(b"key"), Some(b"value")),
        Plain::new(1_700_000_000_250, None, Some(b"no key"))
            .with_header("h", Some(b"1"))
            .with_header("h", Some(b"2"))
            .with_header("empty", Some(b""))
            .with_header("null", None),
        Plain::new(1_699_999_999_000, Some(b""), None),
        Plain::new(
            1_700_000_000_001,
            Some(b"big"),
            Some(&b"0123456789abcdef".repeat(256)),
        )
        .with_header("trace-\u{fc}", Some(&all_bytes)),
    ]
}

fn stamp() -> ProducerStamp {
    ProducerStamp {
        id: ProducerId(4242),
        epoch: 7,
        sequence: i32::MAX - 1,
    }
}

fn built(codec: Codec) -> Bytes {
    let mut builder = Builder::new(codec, 8 << 10);
    for record in records() {
        record.append_to(&mut builder);
    }
    builder.finish(Some(stamp())).unwrap()
}

fn assert_holds_the_records(name: &str, codec: Codec) {
    let batch = file(name);
    let header = validate(&batch, &LIMITS).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(header.codec(), codec, "{name}");
    assert_eq!(header.len_bytes(), batch.len());
    assert_eq!(header.base_offset(), Offset(0));
    assert_eq!(header.last_offset_delta(), 3);
    assert_eq!(header.base_timestamp(), 1_700_000_000_000);
    assert_eq!(header.max_timestamp(), 1_700_000_000_250);
    assert_eq!(header.producer(), Some(stamp()));
    assert_eq!(header.last_sequence(), Some(1));
    let decoded = decode(&batch, &LIMITS).unwrap();
    let found: Vec<Plain> = decoded
        .records()
        .map(|record| Plain::of(&record.unwrap(), header.base_timestamp()))
        .collect();
    assert_eq!(found, records(), "{name}");
}

#[test]
fn our_own_files_are_read() {
    for codec in Codec::ALL {
        assert_holds_the_records(&format!("forebay-{codec}.batch"), codec);
    }
}

#[test]
fn files_of_kafka_python_are_read() {
    for codec in Codec::ALL {
        assert_holds_the_records(&format!("kafka-python-3.0.12-{codec}.batch"), codec);
    }
}

#[test]
fn files_of_aiokafka_are_read() {
    for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let batch = file(&format!("aiokafka-0.14.0-{codec}.batch"));
        let header = validate(&batch, &LIMITS).unwrap_or_else(|error| panic!("{codec}: {error}"));
        assert!(header.is_transactional());
        assert_eq!(header.record_count(), 200);
        for (index, record) in decode(&batch, &LIMITS).unwrap().into_iter().enumerate() {
            let record = record.unwrap();
            assert_eq!(record.offset, Offset(index as u64));
            assert_eq!(record.timestamp_ms, 1_700_000_000_000 + index as i64 * 10);
            assert_eq!(record.key.unwrap(), format!("user-{}", index % 7));
            assert_eq!(record.value.unwrap(), format!("event {index}; ").repeat(40));
            let headers: Vec<_> = record.headers.iter().collect();
            assert_eq!(headers, [("n".into(), Some(index.to_string().into()))]);
        }
    }
}

#[test]
fn an_uncompressed_batch_is_written_to_the_byte() {
    assert_eq!(built(Codec::None), file("forebay-none.batch"));
}

#[test]
fn an_uncompressed_batch_differs_from_kafka_python_only_in_the_leader_epoch() {
    // kafka-python leaves the epoch 0, we say that there is none yet. A broker sets it.
    let ours = built(Codec::None);
    let theirs = file("kafka-python-3.0.12-none.batch");
    assert_eq!(ours[..12], theirs[..12]);
    assert_eq!(ours[16..], theirs[16..]);
}
