//! Reading what only the object store has: ranges that a plan lists, or that its manifest does.
//!
//! Every chunk is verified by its reader. An object that is gone means that the plan is old (I23),
//! never that the log ends.

use bytes::Bytes;
use forebay_meta::model::{ManifestRef, Run};
use forebay_proto::data::front::{PlanManifest, PlanRun};
use forebay_proto::error::Failure;
use forebay_proto::v1::ErrorCode;
use forebay_record::{Offset, PartitionId};
use forebay_tier::{Manifests, Reader, StoreError};

/// The object store as a proxy reads it.
#[derive(Clone)]
pub struct Cold {
    /// Reads runs, through a cache.
    pub reader: Reader,
    /// Reads manifests.
    pub manifests: Manifests,
}

impl Cold {
    /// Whole batches from an offset of a listed range.
    pub(crate) async fn read_run(
        &self,
        partition: PartitionId,
        run: &PlanRun,
        from: Offset,
        max_bytes: u32,
    ) -> Result<Bytes, Failure> {
        self.read(partition, &run_of(run), from, max_bytes).await
    }

    /// Whole batches from an offset that the manifest covers.
    pub(crate) async fn read_manifest(
        &self,
        partition: PartitionId,
        manifest: &PlanManifest,
        from: Offset,
        max_bytes: u32,
    ) -> Result<Bytes, Failure> {
        let manifest = manifest_of(manifest);
        let found = self.manifests.run_at(partition, &manifest, from).await;
        let Some(run) = found.map_err(|error| failure(partition, from, &error))? else {
            let what = format!(
                "partition {partition} offset {from} is not in its manifest {}",
                manifest.object
            );
            return Err(Failure::new(ErrorCode::Unavailable, what));
        };
        self.read(partition, &run, from, max_bytes).await
    }

    /// The first batch of a listed range, from an offset on, that reaches a time.
    pub(crate) async fn run_batch_reaching(
        &self,
        partition: PartitionId,
        run: &PlanRun,
        from: Offset,
        timestamp_ms: i64,
    ) -> Result<Option<Bytes>, Failure> {
        self.batch_reaching(partition, &run_of(run), from, timestamp_ms)
            .await
    }

    /// The first batch of what the manifest covers, from an offset on, that reaches a time.
    pub(crate) async fn manifest_batch_reaching(
        &self,
        partition: PartitionId,
        manifest: &PlanManifest,
        mut from: Offset,
        timestamp_ms: i64,
    ) -> Result<Option<Bytes>, Failure> {
        let manifest = manifest_of(manifest);
        loop {
            let found = self
                .manifests
                .run_reaching(partition, &manifest, from, timestamp_ms)
                .await;
            let Some(run) = found.map_err(|error| failure(partition, from, &error))? else {
                return Ok(None);
            };
            let batch = self.batch_reaching(partition, &run, from, timestamp_ms).await?;
            if batch.is_some() {
                return Ok(batch);
            }
            // What reaches the time in it lies below the offset; the next one ends beyond it.
            from = run.end;
        }
    }

    async fn batch_reaching(
        &self,
        partition: PartitionId,
        run: &Run,
        from: Offset,
        timestamp_ms: i64,
    ) -> Result<Option<Bytes>, Failure> {
        let found = self.reader.lookup(run, from, timestamp_ms).await;
        match found.map_err(|error| failure(partition, from, &error))? {
            Some(base) => self.read(partition, run, base.max(from), 1).await.map(Some),
            None => Ok(None),
        }
    }

    async fn read(
        &self,
        partition: PartitionId,
        run: &Run,
        from: Offset,
        max_bytes: u32,
    ) -> Result<Bytes, Failure> {
        self.reader
            .read(run, from, run.end, max_bytes)
            .await
            .map_err(|error| failure(partition, from, &error))
    }
}

fn run_of(run: &PlanRun) -> Run {
    Run {
        base: run.base,
        end: run.end,
        object: run.object.clone(),
        position: run.position,
        len: run.len,
        crc32c: run.crc32c,
        max_timestamp_ms: run.max_timestamp_ms,
    }
}

fn manifest_of(manifest: &PlanManifest) -> ManifestRef {
    ManifestRef {
        object: manifest.object.clone(),
        generation: manifest.generation,
        end: manifest.end,
        len: manifest.len,
        crc32c: manifest.crc32c,
    }
}

fn failure(partition: PartitionId, from: Offset, error: &StoreError) -> Failure {
    let code = match error {
        StoreError::Corrupt { .. } => ErrorCode::CorruptLog,
        _ => ErrorCode::Unavailable,
    };
    Failure::new(code, format!("partition {partition} offset {from}: {error}"))
}
