//! The end of an object: trailer, footer and, mostly in the same read, the index of its run.

use bytes::Bytes;
use forebay_record::object::{Footer, ObjectError, RunIndex, RunInfo, Trailer};

use crate::bucket::Bucket;
use crate::error::StoreError;

/// Bytes of the first read: enough for the index of 600 MiB and all after it.
const SUFFIX_BYTES: u64 = 256 << 10;

/// The end of an object, as read.
#[derive(Debug, Clone)]
pub(crate) struct Tail {
    pub object_len: u64,
    pub trailer: Trailer,
    pub footer: Footer,
    /// The object's last bytes.
    suffix: Bytes,
}

impl Tail {
    pub async fn read(bucket: &Bucket, name: &str) -> Result<Self, StoreError> {
        let (suffix, object_len) = bucket.get_suffix(name, SUFFIX_BYTES).await?;
        let corrupt = |error: ObjectError| corrupt(bucket, name, &error);
        let trailer = Trailer::decode(&suffix, object_len).map_err(corrupt)?;
        let mut tail = Self {
            object_len,
            trailer,
            footer: Footer {
                session: forebay_record::SessionId(0),
                runs: Vec::new(),
            },
            suffix,
        };
        let bytes = tail
            .section(bucket, name, trailer.footer_position, trailer.footer_len)
            .await?;
        tail.footer = Footer::decode(&bytes, &trailer).map_err(corrupt)?;
        Ok(tail)
    }

    /// The index of one of the footer's runs.
    pub async fn index(&self, bucket: &Bucket, name: &str, run: &RunInfo) -> Result<RunIndex, StoreError> {
        if run.index.len > INDEX_BYTES_MAX {
            let error = ObjectError::Count {
                what: "bytes of an index",
                count: run.index.len,
                max: INDEX_BYTES_MAX,
            };
            return Err(corrupt(bucket, name, &error));
        }
        let bytes = self
            .section(bucket, name, run.index.position, run.index.len)
            .await?;
        RunIndex::decode(&bytes, run).map_err(|error| corrupt(bucket, name, &error))
    }

    /// A part of the object, from what was read already where it is there.
    async fn section(
        &self,
        bucket: &Bucket,
        name: &str,
        position: u64,
        len: u64,
    ) -> Result<Bytes, StoreError> {
        let held_from = self.object_len.saturating_sub(self.suffix.len() as u64);
        let start = position
            .checked_sub(held_from)
            .and_then(|at| usize::try_from(at).ok());
        let end = start.and_then(|start| start.checked_add(usize::try_from(len).ok()?));
        match (start, end) {
            (Some(start), Some(end)) if end <= self.suffix.len() => Ok(self.suffix.slice(start..end)),
            _ => {
                bucket
                    .get_range(name, position..position.saturating_add(len))
                    .await
            }
        }
    }
}

/// More than the largest index there can be.
const INDEX_BYTES_MAX: u64 = 32 << 20;

fn corrupt(bucket: &Bucket, name: &str, error: &ObjectError) -> StoreError {
    StoreError::Corrupt {
        place: bucket.place().to_owned(),
        name: name.to_owned(),
        reason: error.to_string(),
    }
}
