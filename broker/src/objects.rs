//! The object store as owners use it: names, verification, manifests, and the state and times that
//! only objects know. No state of its own; every call may be repeated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_meta::model::Partition;
use forebay_proto::data::replica::Uploaded;
use forebay_record::state::PartitionState;
use forebay_record::{Offset, SessionId};

use crate::partition::{Folded, Retention};

/// Makes names that are used once: the session is this process's alone, and the counter only rises.
#[derive(Debug, Clone)]
pub struct Names {
    session: SessionId,
    counter: Arc<AtomicU64>,
    revision: Arc<AtomicU64>,
}

impl Names {
    pub(crate) fn new(session: SessionId) -> Self {
        Self {
            session,
            counter: Arc::default(),
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

    fn next(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    /// A name for an object of batches.
    pub(crate) fn data(&self, revision: u64) -> String {
        let _ = (revision, self.session);
        self.next().to_string()
    }
}

/// The object store as an owner uses it.
#[derive(Debug, Clone)]
pub struct Objects {}

impl Objects {
    pub(crate) async fn verify(&self, _object: &str, _uploaded: &Uploaded) -> Result<(), String> {
        Err("x".into())
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
