//! The object store as owners use it: names, verification, manifests, and the state that only objects
//! know. No state of its own; every call may be repeated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_meta::model::{ManifestRef, Partition};
use forebay_meta::store::Revision;
use forebay_proto::data::replica::Uploaded;
use forebay_record::state::PartitionState;
use forebay_record::{Offset, PartitionId, SessionId};
use forebay_runtime::random::Random;
use forebay_tier::{Bucket, Log, Manifests, ObjectKind, Reader, Written};

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
    /// Where objects are.
    pub bucket: Bucket,
    /// Reads runs.
    pub reader: Reader,
    /// Reads and writes manifests.
    pub manifests: Manifests,
    /// Chooses what is read back.
    pub random: Arc<dyn Random>,
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Objects").field(&self.bucket.place()).finish()
    }
}

impl Objects {
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

    /// Writes the manifest of all ranges that retention keeps.
    pub(crate) async fn fold(
        &self,
        names: &Names,
        revision: u64,
        record: &Partition,
        retention: &Retention,
    ) -> Result<Folded, String> {
        if let Some((base, end)) = record.undeclared() {
            return Err(format!(
                "the record lists nothing from {base} to {end}, and declares no loss there"
            ));
        }
        let log = Log {
            partition: record.id,
            log_start: retention.log_start,
            manifest: record.manifest.as_ref(),
            recent: &record.recent,
            tail_bytes: retention.newer_bytes,
        };
        let keep = forebay_tier::Retention {
            ms: retention.retention_ms,
            bytes: retention.retention_bytes,
        };
        let expired = self.manifests.plan_retention(log, keep, retention.now_ms).await;
        let log_start = expired
            .map_err(|error| error.to_string())?
            .map_or(retention.log_start, |end| end.max(retention.log_start));
        let manifest = self
            .manifests
            .fold(
                &names.names,
                Revision(revision),
                record.id,
                record.manifest.as_ref(),
                &record.recent,
                log_start,
            )
            .await
            .map_err(|error| error.to_string())?;
        let (oldest_ms, bytes) = match &manifest {
            Some(manifest) => self.extent(record.id, manifest, log_start).await?,
            None => (i64::MAX, 0),
        };
        Ok(Folded {
            manifest,
            log_start,
            oldest_ms,
            bytes,
        })
    }

    /// Largest timestamp of a manifest's oldest range, and the bytes of all.
    async fn extent(
        &self,
        partition: PartitionId,
        manifest: &ManifestRef,
        log_start: Offset,
    ) -> Result<(i64, u64), String> {
        let root = self.manifests.root(partition, manifest).await;
        let bytes = root
            .map_err(|error| error.to_string())?
            .pages
            .iter()
            .map(|page| page.bytes)
            .sum();
        let oldest = self
            .manifests
            .runs_from(partition, manifest, log_start, 1)
            .await
            .map_err(|error| error.to_string())?;
        let oldest_ms = oldest.first().map_or(i64::MAX, |run| run.max_timestamp_ms);
        Ok((oldest_ms, bytes))
    }

    /// The state at the end of what is offloaded.
    pub(crate) async fn state(&self, record: &Partition) -> Result<PartitionState, String> {
        let newest = match (record.recent.last(), &record.manifest) {
            (Some(run), _) => Some(run.clone()),
            (None, Some(manifest)) => self
                .manifests
                .run_at(record.id, manifest, Offset(manifest.end.0.saturating_sub(1)))
                .await
                .map_err(|error| error.to_string())?,
            (None, None) => None,
        };
        let run = newest.ok_or_else(|| format!("no object of {} is known", record.id))?;
        self.reader.state(&run).await.map_err(|error| error.to_string())
    }
}
