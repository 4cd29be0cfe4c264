//! One object written in parts, two of them on their way at a time.
//!
//! An upload ends with `complete` or `abort`. One that is merely dropped leaves parts in an S3 store,
//! as a crash does: a lifecycle rule of the bucket has to remove incomplete uploads.

use bytes::Bytes;
use object_store::{MultipartUpload, PutPayload};
use tokio::task::JoinSet;

use super::Bucket;
use crate::error::StoreError;

/// Parts on their way at a time.
const PARTS_MAX: usize = 2;

/// An upload that is not complete.
pub(crate) struct Upload {
    bucket: Bucket,
    name: String,
    upload: Box<dyn MultipartUpload>,
    parts: JoinSet<Result<(), StoreError>>,
}

impl Upload {
    pub(super) async fn start(bucket: Bucket, name: &str) -> Result<Self, StoreError> {
        let asked = bucket.asked("upload", name);
        let path = bucket.path(asked)?;
        let upload = bucket
            .timed(asked, async {
                let started = object_store::ObjectStoreExt::put_multipart(&*bucket.inner.store, &path).await;
                started.map_err(|error| asked.classify(&error))
            })
            .await?;
        Ok(Self {
            bucket: bucket.clone(),
            name: name.to_owned(),
            upload,
            parts: JoinSet::new(),
        })
    }

    /// Sends the next part; waits while two are on their way. All but the last must have the same
    /// length.
    pub async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        while self.parts.len() >= PARTS_MAX {
            self.join_one().await?;
        }
        let len = part.len() as u64;
        let sent = self.upload.put_part(PutPayload::from_bytes(part));
        let (bucket, name) = (self.bucket.clone(), self.name.clone());
        self.parts.spawn(async move {
            let asked = bucket.asked("upload", &name);
            let sent = async { sent.await.map_err(|error| asked.classify(&error)) };
            bucket
                .timed(asked, sent)
                .await
                .map_err(|error| lost(asked, error))?;
            bucket.inner.metrics.written_bytes.inc_by(len);
            Ok(())
        });
        Ok(())
    }

    async fn join_one(&mut self) -> Result<(), StoreError> {
        match self.parts.join_next().await {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(error)) => {
                let asked = self.bucket.asked("upload", &self.name);
                Err(asked.unavailable(error.to_string()))
            }
        }
    }

    /// Makes the object of its parts. After an error it may be there or not.
    pub async fn complete(&mut self) -> Result<(), StoreError> {
        while !self.parts.is_empty() {
            self.join_one().await?;
        }
        let bucket = self.bucket.clone();
        let asked = bucket.asked("upload", &self.name);
        let path = bucket.path(asked)?;
        let upload = &mut self.upload;
        let done = bucket.timed(asked, async {
            upload.complete().await.map_err(|error| asked.classify(&error))?;
            bucket.sync(asked, &path).await
        });
        done.await.map_err(|error| lost(asked, error))
    }

    /// Gives the parts back, as far as the store lets us: what stays is garbage, never an object.
    pub async fn abort(mut self) {
        self.parts.shutdown().await;
        let asked = self.bucket.asked("upload", &self.name);
        let upload = &mut self.upload;
        let aborted = self
            .bucket
            .timed(asked, async {
                upload.abort().await.map_err(|error| asked.classify(&error))
            })
            .await;
        if let Err(error) = aborted {
            tracing::debug!(%error, "an upload's parts could not be given back");
        }
    }
}

/// "Not found" of an upload means that it ended: by a try whose answer was lost, or by someone else.
fn lost(asked: super::Asked<'_>, error: StoreError) -> StoreError {
    match error {
        StoreError::NotFound { .. } => asked.unavailable("the store no longer knows the upload"),
        other => other,
    }
}
