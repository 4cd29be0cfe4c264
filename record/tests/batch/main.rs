//! The record batch from the outside: what is written can be read, what is wrong is refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod golden;
mod header;
mod properties;
mod refusals;
mod streams;

use bytes::Bytes;
use forebay_record::batch::{Builder, Codec, HEADER_LEN, Limits, Record};
use forebay_record::crc32c;

/// One record with parts of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plain {
    timestamp_ms: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Plain {
    fn new(timestamp_ms: i64, key: Option<&[u8]>, value: Option<&[u8]>) -> Self {
        Self {
            timestamp_ms,
            key: key.map(<[u8]>::to_vec),
            value: value.map(<[u8]>::to_vec),
            headers: Vec::new(),
        }
    }

    fn with_header(mut self, key: &str, value: Option<&[u8]>) -> Self {
        self.headers
            .push((key.as_bytes().to_vec(), value.map(<[u8]>::to_vec)));
        self
    }

    fn append_to(&self, builder: &mut Builder) {
        let headers: Vec<(&[u8], Option<&[u8]>)> = self
            .headers
            .iter()
            .map(|(key, value)| (key.as_slice(), value.as_deref()))
            .collect();
        builder
            .append(
                self.timestamp_ms,
                self.key.as_deref(),
                self.value.as_deref(),
                &headers,
            )
            .unwrap();
    }

    fn of(record: &Record<'_>, base_timestamp: i64) -> Self {
        Self {
            timestamp_ms: base_timestamp + record.timestamp_delta,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record
                .headers
                .iter()
                .map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec)))
                .collect(),
        }
    }
}

/// A batch of `records`.
fn build(codec: Codec, records: &[Plain]) -> Bytes {
    let mut builder = Builder::new(codec, 1 << 10);
    for record in records {
        record.append_to(&mut builder);
    }
    builder.finish(None).unwrap()
}

/// A small batch of two records.
fn sample(codec: Codec) -> Bytes {
    build(
        codec,
        &[
            Plain::new(1000, Some(b"key"), Some(b"value")).with_header("h", Some(b"x")),
            Plain::new(1005, None, Some(&[b'y'; 300])).with_header("h", None),
        ],
    )
}

/// `batch` with `bytes` at `at`, and the checksum made right again.
fn edited(batch: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut batch = batch.to_vec();
    batch[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch
}

/// A batch that says it has `count` records and holds `area`, whatever that is.
fn with_area(codec: Codec, count: i32, area: &[u8]) -> Vec<u8> {
    let mut batch = sample(Codec::None)[..HEADER_LEN].to_vec();
    batch.extend_from_slice(area);
    let length = (batch.len() - 12) as i32;
    let batch = edited(&batch, 8, &length.to_be_bytes());
    let batch = edited(&batch, 21, &u16::from(codec.id()).to_be_bytes());
    let batch = edited(&batch, 23, &(count - 1).to_be_bytes());
    edited(&batch, 57, &count.to_be_bytes())
}

/// The bytes of the records of `batch`, as they are stored.
fn area(batch: &[u8]) -> Vec<u8> {
    batch[HEADER_LEN..].to_vec()
}

const LIMITS: Limits = Limits {
    batch_bytes_max: 1 << 20,
    decompressed_bytes_max: 1 << 20,
    allow_control: false,
};
