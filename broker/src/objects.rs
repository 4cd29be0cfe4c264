//! The object store as owners use it: names, verification, manifests, and the state and times that
//! only objects know. No state of its own; every call may be repeated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_meta::model::Partition;
use forebay_meta::store::Revision;
use forebay_proto::data::replica::Uploaded;
use forebay_record::state::PartitionState;
use forebay_record::{Offset, PartitionId, SessionId};
use forebay_runtime::random::Random;
use forebay_tier::{Bucket, ObjectKind, Written};

use crate::partition::{Folded, Retention};

/// Names of a session's objects, each used once. Clones count together.
#[derive(Debug, Clone)]
pub struct Names {
    names: Arc<forebay_tier::Names>,
    revision: Arc<AtomicU64>,
}

impl Names {
    pub(crate) fn new(session: SessionId) -> Self {
        Self {
            names: Arc::new(forebay_tier::Names::new(session)),
            revision: Arc::default(),
        }
    }

    /// The metadata store was seen at this revision.
    pub(crate) fn saw(&self, revision: u64) {
        self.revision.fetch_max(revision, Ordering::Relaxed);
    }

    /// The newest revision seen.
    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    /// A name for an object of batches.
    pub(crate) fn data(&self, revision: u64) -> String {
        self.names.next(ObjectKind::Data, Revision(revision)).to_string()
    }
}

/// The object store as an owner uses it. Clones share everything.
#[derive(Clone)]
pub struct Objects {
    bucket: Bucket,
    random: Arc<dyn Random>,
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Objects").field(&self.bucket.place()).finish()
    }
}

impl Objects {
    /// Over a bucket.
    #[must_use]
    pub fn new(bucket: Bucket, random: Arc<dyn Random>) -> Self {
        Self { bucket, random }
    }

    /// Reads a new object back, as far as that proves that it is what its writer said.
    pub(crate) async fn verify(
        &self,
        object: &str,
        partition: PartitionId,
        uploaded: &Uploaded,
    ) -> Result<(), String> {
        let Uploaded {
            object_len,
            position,
            len,
            crc32c,
            max_timestamp_ms,
            footer_crc32c,
        } = *uploaded;
        let written = Written {
            object_len,
            position,
            len,
            crc32c,
            max_timestamp_ms,
            footer_crc32c,
        };
        forebay_tier::verify(&self.bucket, object, partition, &written, &*self.random)
            .await
            .map(|_| ())
            .map_err(|error| error.to_string())
    }

    pub(crate) async fn fold(
        &self,
        _names: &Names,
        _revision: u64,
        _record: &Partition,
        _retention: &Retention,
    ) -> Result<Folded, String> {
        Err("x".into())
    }
    pub(crate) async fn state(&self, _record: &Partition) -> Result<PartitionState, String> {
        Err("x".into())
    }
    pub(crate) async fn lookup(
        &self,
        _record: &Partition,
        _timestamp_ms: i64,
    ) -> Result<Option<Offset>, String> {
        Err("x".into())
    }
}
