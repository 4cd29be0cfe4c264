//! Cases of manifests: folded, found in, expired, damaged.

use forebay_meta::model::{ManifestRef, Run};
use forebay_meta::store::Revision;
use forebay_record::Offset;
use forebay_record::object::PAGE_RUNS_MAX;
use forebay_tier::{Bucket, Log, Manifests, ObjectName, Retention};

use crate::support::{PARTITION, assert_corrupt, assert_not_found, list, names};

/// Runs of ten offsets and 100 bytes each; the largest timestamp is the end.
fn runs(first: u64, count: u64) -> Vec<Run> {
    (first..first + count)
        .map(|n| Run {
            base: Offset(n * 10),
            end: Offset(n * 10 + 10),
            object: format!("d/00/{n}"),
            position: 0,
            len: 100,
            crc32c: 1,
            max_timestamp_ms: n as i64 * 10 + 10,
        })
        .collect()
}

fn manifests(bucket: &Bucket) -> Manifests {
    Manifests::new(bucket.clone(), 8 << 20)
}

async fn find(bucket: &Bucket, manifest: &ManifestRef, offset: u64) -> Option<Run> {
    let manifests = manifests(bucket);
    manifests
        .run_at(PARTITION, manifest, Offset(offset))
        .await
        .unwrap()
}

pub async fn folds_add_runs_and_drop_expired_ones(bucket: Bucket) {
    let names = names();
    let page = PAGE_RUNS_MAX as u64;
    let write = manifests(&bucket);
    let fold = async |old: Option<&ManifestRef>, runs: &[Run], log_start: u64| {
        let folded = write
            .fold(&names, Revision(9), PARTITION, old, runs, Offset(log_start))
            .await;
        folded.unwrap()
    };
    let one = fold(None, &runs(0, 3), 0).await.unwrap();
    assert_eq!((one.generation, one.end), (1, Offset(30)));
    assert_eq!(list(&bucket, "m").await.len(), 2, "a page and a root");
    assert!(
        list(&bucket, "m")
            .await
            .iter()
            .all(|name| ObjectName::parse(name).is_some())
    );
    // Nothing changes: nothing is written.
    assert_eq!(fold(Some(&one), &[], 5).await.as_ref(), Some(&one));
    assert_eq!(list(&bucket, "m").await.len(), 2);

    let two = fold(Some(&one), &runs(3, 2 * page), 0).await.unwrap();
    assert_eq!((two.generation, two.end), (2, Offset((2 * page + 3) * 10)));
    assert_eq!(list(&bucket, "m").await.len(), 6, "three pages and a root");
    let three = fold(Some(&two), &runs(2 * page + 3, 2), 0).await.unwrap();
    assert_eq!(list(&bucket, "m").await.len(), 8, "the last page and a root");
    for (offset, found) in [
        (0, Some(0)),
        (9, Some(0)),
        (29, Some(2)),
        (page * 10, Some(page)),
        (page * 20 + 49, Some(2 * page + 4)),
    ] {
        let found = found.map(|n| runs(n, 1).remove(0));
        assert_eq!(find(&bucket, &three, offset).await, found, "{offset}");
    }
    assert_eq!(find(&bucket, &three, three.end.0).await, None);
    let reaching = async |from: u64, timestamp_ms: i64| {
        let found = write
            .run_reaching(PARTITION, &three, Offset(from), timestamp_ms)
            .await
            .unwrap();
        found.map(|run| run.base.0)
    };
    assert_eq!(reaching(0, 0).await, Some(0));
    assert_eq!(reaching(0, 11).await, Some(10));
    assert_eq!(reaching(25, 0).await, Some(20));
    assert_eq!(reaching(0, page as i64 * 10 + 1).await, Some(page * 10));
    assert_eq!(reaching(0, i64::MAX).await, None);
    let some = write
        .runs_from(PARTITION, &three, Offset(page * 10 - 5), 3)
        .await
        .unwrap();
    assert_eq!(some, runs(page - 1, 3), "over the end of a page");

    // The first page and a part of the second expire; the last is named again.
    let four = fold(Some(&three), &[], page * 10 + 25).await.unwrap();
    assert_eq!(list(&bucket, "m").await.len(), 10, "the second page and a root");
    assert_eq!(four.generation, 4);
    assert_eq!(find(&bucket, &four, page * 10 + 19).await, None);
    assert_eq!(
        find(&bucket, &four, page * 10 + 20).await,
        Some(runs(page + 2, 1).remove(0))
    );
    assert_eq!(
        find(&bucket, &four, 2 * page * 10 + 49).await,
        Some(runs(2 * page + 4, 1).remove(0))
    );

    assert_eq!(
        fold(Some(&four), &runs(2 * page + 5, 1), (2 * page + 6) * 10).await,
        None
    );
    let before = runs(1, 1);
    let gap = write
        .fold(&names, Revision(9), PARTITION, Some(&four), &before, Offset(0))
        .await;
    assert!(gap.unwrap_err().to_string().contains("expected"));
}

pub async fn a_damaged_manifest_is_named(bucket: Bucket) {
    let names = names();
    let write = manifests(&bucket);
    let manifest = write
        .fold(&names, Revision(9), PARTITION, None, &runs(0, 3), Offset(0))
        .await
        .unwrap()
        .unwrap();
    let objects = list(&bucket, "m").await;
    let page = objects.iter().find(|name| **name != manifest.object).unwrap();
    for name in [&manifest.object, page] {
        let good = bucket.get(name, 1 << 20).await.unwrap();
        let mut damaged = good.to_vec();
        damaged[17] ^= 1;
        bucket.put(name, damaged.into()).await.unwrap();
        let found = manifests(&bucket).run_at(PARTITION, &manifest, Offset(5)).await;
        assert_corrupt(found, name, &["checksum", "expected"]);
        bucket.put(name, good.slice(..good.len() - 1)).await.unwrap();
        let found = manifests(&bucket).run_at(PARTITION, &manifest, Offset(5)).await;
        assert_corrupt(found, name, &["bytes", "expected"]);
        bucket.delete(std::slice::from_ref(name)).await.unwrap();
        assert_not_found(
            manifests(&bucket).run_at(PARTITION, &manifest, Offset(5)).await,
            name,
        );
        bucket.put(name, good).await.unwrap();
    }
    let other = manifests(&bucket)
        .run_at(forebay_record::PartitionId(8), &manifest, Offset(5))
        .await;
    assert_corrupt(other, &manifest.object, &["p8", "p7"]);
    let older = ManifestRef {
        generation: 2,
        ..manifest.clone()
    };
    let other = manifests(&bucket).run_at(PARTITION, &older, Offset(5)).await;
    assert_corrupt(other, &manifest.object, &["generation"]);
}

pub async fn retention_reads_what_it_needs(bucket: Bucket) {
    let names = names();
    let manifests = manifests(&bucket);
    let manifest = manifests
        .fold(&names, Revision(9), PARTITION, None, &runs(0, 10), Offset(0))
        .await
        .unwrap();
    let recent = runs(10, 2);
    let plan = async |log_start: u64, retention: Retention, now_ms: i64| {
        let log = Log {
            partition: PARTITION,
            log_start: Offset(log_start),
            manifest: manifest.as_ref(),
            recent: &recent,
            tail_bytes: 50,
        };
        manifests
            .plan_retention(log, retention, now_ms)
            .await
            .unwrap()
            .map(|offset| offset.0)
    };
    let bytes = |bytes| Retention {
        bytes: Some(bytes),
        ms: None,
    };
    let ms = |ms| Retention {
        ms: Some(ms),
        bytes: None,
    };
    // 1250 bytes in all.
    assert_eq!(plan(0, Retention::default(), 1 << 40).await, None);
    assert_eq!(plan(0, bytes(1151), 0).await, None);
    assert_eq!(plan(0, bytes(1150), 0).await, Some(10));
    assert_eq!(plan(0, bytes(250), 0).await, Some(100));
    assert_eq!(
        plan(0, bytes(0), 0).await,
        Some(120),
        "never what is not offloaded"
    );
    assert_eq!(
        plan(35, bytes(850), 0).await,
        Some(40),
        "from the run that holds the log start"
    );
    assert_eq!(plan(35, bytes(851), 0).await, None);
    assert_eq!(plan(0, ms(100), 110).await, None);
    assert_eq!(plan(0, ms(100), 111).await, Some(10));
    assert_eq!(plan(0, ms(100), 1000).await, Some(120));
    let both = Retention {
        ms: Some(100),
        bytes: Some(1050),
    };
    assert_eq!(plan(0, both, 111).await, Some(20), "one by age, one more by size");
}
