//! A partition's manifest: found in, folded into, expired from.
//!
//! 1. [`Manifests`] reads roots and pages, verified against what names them, and keeps them in memory.
//! 2. `fold` writes a new version: only the pages that change, and a root.
//! 3. `retention` says which of the oldest runs have expired.
//!
//! Nothing here changes a record: a new version counts once the record's pointer names it (I20).

mod fold;
mod retention;

use std::sync::Arc;

use forebay_meta::model::{ManifestRef, Run};
use forebay_record::object::{
    ManifestPage, ManifestRoot, ManifestRun, ObjectError, PAGE_BYTES_MAX, PageRef, ROOT_BYTES_MAX,
};
use forebay_record::{Offset, PartitionId, crc32c};

pub use self::retention::{Log, Retention, RunSpan, plan_retention};
use crate::bucket::Bucket;
use crate::cache::{BlockKey, Decoded};
use crate::error::StoreError;

/// Reads and writes manifests. Clones share the memory.
#[derive(Clone)]
pub struct Manifests {
    bucket: Bucket,
    roots: Decoded<ManifestRoot>,
    pages: Decoded<ManifestPage>,
}

impl Manifests {
    /// Manifests of a bucket, of which about `memory_bytes` are kept decoded.
    #[must_use]
    pub fn new(bucket: Bucket, memory_bytes: usize) -> Self {
        Self {
            bucket,
            roots: Decoded::new("manifest roots", memory_bytes / 4),
            pages: Decoded::new("manifest pages", memory_bytes - memory_bytes / 4),
        }
    }

    /// The root that a record names.
    ///
    /// # Errors
    /// As the store answers; [`StoreError::Corrupt`] where it is not what the record says.
    pub async fn root(
        &self,
        partition: PartitionId,
        manifest: &ManifestRef,
    ) -> Result<Arc<ManifestRoot>, StoreError> {
        let load = || {
            let (bucket, manifest) = (self.bucket.clone(), manifest.clone());
            async move {
                let root = load_root(&bucket, partition, &manifest).await?;
                let bytes = root.pages.len() * (size_of::<PageRef>() + 64);
                Ok((root, bytes))
            }
        };
        self.roots.get(&key(&manifest.object, manifest.len), load).await
    }

    /// A page that a root names.
    ///
    /// # Errors
    /// As the store answers; [`StoreError::Corrupt`] where it is not what the root says.
    pub async fn page(
        &self,
        partition: PartitionId,
        page: &PageRef,
    ) -> Result<Arc<ManifestPage>, StoreError> {
        let load = || {
            let (bucket, page) = (self.bucket.clone(), page.clone());
            async move {
                let page = load_page(&bucket, partition, &page).await?;
                let bytes = page.runs.len() * (size_of::<ManifestRun>() + 64);
                Ok((page, bytes))
            }
        };
        self.pages.get(&key(&page.object, page.len), load).await
    }

    /// The run that holds an offset; none where the manifest does not cover it.
    ///
    /// # Errors
    /// As [`Manifests::root`].
    pub async fn run_at(
        &self,
        partition: PartitionId,
        manifest: &ManifestRef,
        offset: Offset,
    ) -> Result<Option<Run>, StoreError> {
        self.first_run(partition, manifest, |base, end, _| base <= offset && offset < end)
            .await
    }

    /// The first run with offsets from `from` on whose largest timestamp reaches `timestamp_ms`.
    ///
    /// # Errors
    /// As [`Manifests::root`].
    pub async fn run_reaching(
        &self,
        partition: PartitionId,
        manifest: &ManifestRef,
        from: Offset,
        timestamp_ms: i64,
    ) -> Result<Option<Run>, StoreError> {
        self.first_run(partition, manifest, |_, end, max_timestamp_ms| {
            end > from && max_timestamp_ms >= timestamp_ms
        })
        .await
    }

    /// All runs from the one that holds `from` on, oldest first, at most `runs_max`.
    ///
    /// # Errors
    /// As [`Manifests::root`].
    pub async fn runs_from(
        &self,
        partition: PartitionId,
        manifest: &ManifestRef,
        from: Offset,
        runs_max: usize,
    ) -> Result<Vec<Run>, StoreError> {
        let root = self.root(partition, manifest).await?;
        let mut runs = Vec::new();
        for page in root.pages.iter().filter(|page| page.end > from) {
            let page = self.page(partition, page).await?;
            let after = page.runs.iter().filter(|run| run.end > from);
            runs.extend(after.take(runs_max - runs.len()).map(to_run));
            if runs.len() >= runs_max {
                break;
            }
        }
        Ok(runs)
    }

    /// The first run that `wanted` accepts, given base, end and largest timestamp. What it accepts of
    /// a run it must accept of the page that holds the run.
    async fn first_run(
        &self,
        partition: PartitionId,
        manifest: &ManifestRef,
        wanted: impl Fn(Offset, Offset, i64) -> bool,
    ) -> Result<Option<Run>, StoreError> {
        let root = self.root(partition, manifest).await?;
        let pages = root.pages.iter();
        for page in pages.filter(|page| wanted(page.base, page.end, page.max_timestamp_ms)) {
            let page = self.page(partition, page).await?;
            let found = page
                .runs
                .iter()
                .find(|run| wanted(run.base, run.end, run.max_timestamp_ms));
            if let Some(run) = found {
                return Ok(Some(to_run(run)));
            }
        }
        Ok(None)
    }
}

impl std::fmt::Debug for Manifests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manifests")
            .field("bucket", &self.bucket)
            .finish_non_exhaustive()
    }
}

fn key(object: &str, len: u64) -> BlockKey {
    BlockKey {
        object: object.to_owned(),
        position: 0,
        len,
    }
}

pub(crate) fn to_run(run: &ManifestRun) -> Run {
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

fn from_run(run: &Run) -> ManifestRun {
    ManifestRun {
        base: run.base,
        end: run.end,
        object: run.object.clone(),
        position: run.position,
        len: run.len,
        crc32c: run.crc32c,
        max_timestamp_ms: run.max_timestamp_ms,
    }
}

fn corrupt(bucket: &Bucket, object: &str, reason: String) -> StoreError {
    StoreError::Corrupt {
        place: bucket.place().to_owned(),
        name: object.to_owned(),
        reason,
    }
}

fn malformed(bucket: &Bucket, object: &str) -> impl Fn(ObjectError) -> StoreError {
    let (bucket, object) = (bucket.clone(), object.to_owned());
    move |error| corrupt(&bucket, &object, error.to_string())
}

/// Reads a whole object and compares it with what names it; reads once more where it differs.
async fn read(
    bucket: &Bucket,
    object: &str,
    len: u64,
    checksum: u32,
    bytes_max: usize,
) -> Result<bytes::Bytes, StoreError> {
    let mut again = true;
    loop {
        let bytes = bucket.get(object, bytes_max as u64).await?;
        let (found_len, found) = (bytes.len() as u64, crc32c(&bytes));
        if found_len == len && found == checksum {
            return Ok(bytes);
        }
        let reason = format!(
            "it has {found_len} bytes with checksum {found:08x}; {len} bytes with {checksum:08x} expected"
        );
        if !again {
            return Err(corrupt(bucket, object, reason));
        }
        tracing::warn!(object, reason, "read again");
        again = false;
    }
}

pub(crate) async fn load_root(
    bucket: &Bucket,
    partition: PartitionId,
    manifest: &ManifestRef,
) -> Result<ManifestRoot, StoreError> {
    let object = &manifest.object;
    let bytes = read(bucket, object, manifest.len, manifest.crc32c, ROOT_BYTES_MAX).await?;
    let root = ManifestRoot::decode(&bytes).map_err(malformed(bucket, object))?;
    let found = (root.partition, root.generation, root.end());
    let expected = (partition, manifest.generation, manifest.end);
    if found != expected {
        let reason = format!("it is of (partition, generation, end) {found:?}, {expected:?} expected");
        return Err(corrupt(bucket, object, reason));
    }
    Ok(root)
}

pub(crate) async fn load_page(
    bucket: &Bucket,
    partition: PartitionId,
    page: &PageRef,
) -> Result<ManifestPage, StoreError> {
    let object = &page.object;
    let bytes = read(bucket, object, page.len, page.crc32c, PAGE_BYTES_MAX).await?;
    let decoded = ManifestPage::decode(&bytes).map_err(malformed(bucket, object))?;
    let says = decoded.page_ref(object.clone(), &bytes);
    if decoded.partition != partition || says != *page {
        let reason = format!(
            "it is a page of {} from {} to {}; one of {partition} from {} to {} expected",
            decoded.partition, says.base, says.end, page.base, page.end
        );
        return Err(corrupt(bucket, object, reason));
    }
    Ok(decoded)
}
