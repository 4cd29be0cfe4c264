//! Writing one run into an object of its own, while its batches pass by.
//!
//! Memory: the part being filled and two on their way, nothing else grows with the run but its
//! index. A run that fits into one part is written with one request. Whoever fails, or is dropped,
//! leaves no object, or one that nobody knows; the next try takes a new name (I19).

use bytes::{Bytes, BytesMut};
use forebay_record::object::{ObjectError, RunBuilder, RunPlace, encode_tail};
use forebay_record::state::PartitionState;
use forebay_record::{Offset, SegmentId, SessionId};
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use crate::bucket::{Bucket, Upload};
use crate::error::WriteError;

/// What was written: what verification goes by, and the record's run is made of.
pub use forebay_proto::data::replica::Uploaded as Written;

/// What a run is, known before its first batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunStart {
    /// The partition's topic.
    pub topic: Uuid,
    /// The partition, and the segment that is copied.
    pub segment: SegmentId,
    /// Its first offset.
    pub base: Offset,
    /// Session of the owner that had it written.
    pub session: SessionId,
}

/// Writes a run.
pub struct RunWriter {
    bucket: Bucket,
    name: String,
    start: RunStart,
    run: RunBuilder,
    part: BytesMut,
    written: u64,
    upload: Option<Upload>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl RunWriter {
    /// Begins a run in an object that does not exist yet. Waits for one of `uploads_max` places.
    pub async fn start(bucket: &Bucket, name: &str, start: RunStart) -> Self {
        let permit = bucket.upload_permit().await;
        Self {
            bucket: bucket.clone(),
            name: name.to_owned(),
            start,
            run: RunBuilder::new(start.base),
            part: BytesMut::new(),
            written: 0,
            upload: None,
            _permit: permit,
        }
    }

    /// First offset that was not written yet.
    #[must_use]
    pub const fn next_offset(&self) -> Offset {
        self.run.next_offset()
    }

    /// Writes whole batches, the next ones of the run; waits while two parts are on their way. After
    /// an error call [`RunWriter::abort`].
    ///
    /// # Errors
    /// Where the batches do not continue the run, or the store fails.
    pub async fn write(&mut self, batches: Bytes) -> Result<(), WriteError> {
        self.run.push(&batches).map_err(|error| self.bad(error))?;
        self.append(&batches).await
    }

    async fn append(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        let part_bytes = self.bucket.part_bytes();
        while !bytes.is_empty() {
            // Only when more follows: the last part, whatever its length, is sent by `finish`.
            if self.part.len() == part_bytes {
                self.send_part().await?;
            }
            if self.part.capacity() == 0 {
                self.part.reserve(part_bytes.min(bytes.len()));
            }
            let take = bytes.len().min(part_bytes - self.part.len());
            let (now, later) = bytes.split_at_checked(take).unwrap_or((bytes, &[]));
            self.part.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    async fn send_part(&mut self) -> Result<(), WriteError> {
        let part = std::mem::take(&mut self.part).freeze();
        self.written += part.len() as u64;
        let upload = match &mut self.upload {
            Some(upload) => upload,
            none => none.insert(self.bucket.upload(&self.name).await?),
        };
        Ok(upload.put_part(part).await?)
    }

    /// Ends the run at `end`, where the partition's state is `state`. Afterwards the object is there,
    /// durable, and has to be verified.
    ///
    /// # Errors
    /// Where the run does not end at `end`, or the store fails; the object is then given up.
    pub async fn finish(mut self, state: PartitionState, end: Offset) -> Result<Written, WriteError> {
        match self.finish_parts(state, end).await {
            Ok(written) => Ok(written),
            Err(error) => {
                self.abort().await;
                Err(error)
            }
        }
    }

    async fn finish_parts(&mut self, state: PartitionState, end: Offset) -> Result<Written, WriteError> {
        let run = std::mem::replace(&mut self.run, RunBuilder::new(end));
        let run = run.finish(end).map_err(|error| self.bad(error))?;
        let place = RunPlace {
            position: 0,
            segment: self.start.segment,
            topic: self.start.topic.as_u128(),
            run,
            state,
        };
        let tail =
            encode_tail(self.start.session, std::slice::from_ref(&place)).map_err(|error| self.bad(error))?;
        self.append(&tail.bytes).await?;
        let object_len = self.written + self.part.len() as u64;
        if self.upload.is_none() {
            let whole = std::mem::take(&mut self.part).freeze();
            self.bucket.put(&self.name, whole).await?;
        } else {
            self.send_part().await?;
            if let Some(upload) = &mut self.upload {
                upload.complete().await?;
            }
            self.upload = None;
        }
        Ok(Written {
            object_len,
            position: place.position,
            len: place.run.len,
            crc32c: place.run.crc32c,
            max_timestamp_ms: place.run.max_timestamp_ms,
            footer_crc32c: tail.footer_crc32c,
        })
    }

    /// Gives up what was written so far.
    pub async fn abort(self) {
        if let Some(upload) = self.upload {
            upload.abort().await;
        }
    }

    fn bad(&self, source: ObjectError) -> WriteError {
        WriteError::Run {
            name: self.name.clone(),
            source,
        }
    }
}

impl std::fmt::Debug for RunWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunWriter")
            .field("name", &self.name)
            .field("next", &self.run.next_offset())
            .finish_non_exhaustive()
    }
}
