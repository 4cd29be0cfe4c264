//! Finding objects that no record and no manifest names, after metadata came back from a backup.
//!
//! The list of all objects is compared with what records name; what is left is read at its end, and its
//! runs are verified like those of a new object. Nothing is changed or deleted. An object that cannot be
//! read is told by its name and counts as not there.

use std::collections::BTreeSet;

use forebay_meta::model::{Partition, Run};
use forebay_meta::restore::FoundRun;
use forebay_record::Offset;
use forebay_runtime::random::Random;
use futures_util::{StreamExt, stream};

use crate::bucket::Bucket;
use crate::error::StoreError;
use crate::manifest::Manifests;
use crate::names::{ObjectKind, ObjectName};
use crate::run_writer::Written;
use crate::tail::Tail;
use crate::verify::verify;

/// Objects read at a time.
const AT_ONCE: usize = 16;

/// What was found.
#[derive(Debug, Default)]
pub struct Unnamed {
    /// Verified ranges.
    pub runs: Vec<FoundRun>,
    /// Objects that cannot be used, with the reason.
    pub unusable: Vec<(String, String)>,
}

/// Objects of a bucket that none of these records names, and no manifest of theirs.
///
/// # Errors
/// Where a manifest cannot be read, or the list of objects is not complete.
pub async fn find_unnamed(
    bucket: &Bucket,
    manifests: &Manifests,
    records: &[Partition],
    random: &dyn Random,
) -> Result<Unnamed, StoreError> {
    let mut named = BTreeSet::new();
    for record in records {
        named.extend(record.recent.iter().map(|run| run.object.clone()));
        if let Some(manifest) = &record.manifest {
            let runs = manifests
                .runs_from(record.id, manifest, Offset(0), usize::MAX)
                .await?;
            named.extend(runs.into_iter().map(|run| run.object));
        }
    }
    let mut unnamed = Vec::new();
    let each = |listed: crate::bucket::Listed| {
        let is_data = ObjectName::parse(&listed.name).is_some_and(|name| name.kind == ObjectKind::Data);
        if is_data && !named.contains(&listed.name) {
            unnamed.push(listed.name);
        }
    };
    bucket.list(ObjectKind::Data.prefix(), each).await?;
    let mut found = Unnamed::default();
    let mut reads = stream::iter(unnamed.into_iter().map(|name| async move {
        let read = runs_of(bucket, &name, random).await;
        (name, read)
    }))
    .buffer_unordered(AT_ONCE);
    while let Some((name, read)) = reads.next().await {
        match read {
            Ok(runs) => found.runs.extend(runs),
            Err(error @ (StoreError::Corrupt { .. } | StoreError::NotFound { .. })) => {
                found.unusable.push((name, error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    drop(reads);
    found.runs.sort_by(|one, other| {
        (one.segment, one.run.base, &one.run.object).cmp(&(other.segment, other.run.base, &other.run.object))
    });
    Ok(found)
}

async fn runs_of(bucket: &Bucket, name: &str, random: &dyn Random) -> Result<Vec<FoundRun>, StoreError> {
    let tail = Tail::read(bucket, name).await?;
    let mut runs = Vec::with_capacity(tail.footer.runs.len());
    for info in &tail.footer.runs {
        let written = Written {
            object_len: tail.object_len,
            position: info.position,
            len: info.len,
            crc32c: info.crc32c,
            max_timestamp_ms: info.max_timestamp_ms,
            footer_crc32c: tail.trailer.footer_crc32c,
        };
        let info = verify(bucket, name, info.segment.partition, &written, random).await?;
        runs.push(FoundRun {
            segment: info.segment,
            run: Run {
                base: info.base,
                end: info.end,
                object: name.to_owned(),
                position: info.position,
                len: info.len,
                crc32c: info.crc32c,
                max_timestamp_ms: info.max_timestamp_ms,
            },
        });
    }
    Ok(runs)
}
