//! Every case, on every kind of store.

use std::sync::Arc;

use forebay_tier::{Bucket, StoreError};

use crate::support::{config, open, s3_config};
use crate::weed::{Weed, weed};
use crate::{bucket, gc, manifests, runs};

/// One place per case, and what keeps the store alive.
struct Memory;
struct Folder(tempfile::TempDir);
struct S3(Arc<Weed>);

trait Place {
    async fn bucket(&self, case: &str) -> Bucket;
}

impl Place for Memory {
    async fn bucket(&self, _case: &str) -> Bucket {
        open(&config("memory://"))
    }
}

impl Place for Folder {
    async fn bucket(&self, case: &str) -> Bucket {
        open(&config(&format!("file://{}/{case}", self.0.path().display())))
    }
}

impl Place for S3 {
    async fn bucket(&self, case: &str) -> Bucket {
        let bucket = open(&s3_config(&self.0.endpoint(), case));
        ready(&bucket).await;
        bucket
    }
}

/// Waits until the server has made its bucket.
pub async fn ready(bucket: &Bucket) {
    crate::support::eventually("the bucket", async || match bucket.head("nothing").await {
        Err(StoreError::NotFound { .. }) => match bucket.put("ready", "x".into()).await {
            Ok(()) => bucket.delete(&["ready".to_owned()]).await.ok(),
            Err(_) => None,
        },
        _ => None,
    })
    .await;
}

macro_rules! contract {
    ($($module:ident::$case:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                use super::Place;
                super::$module::$case(super::Memory.bucket("").await).await;
            })*
        }
        mod folder {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                use super::Place;
                let place = super::Folder(tempfile::tempdir().unwrap());
                super::$module::$case(place.bucket(stringify!($case)).await).await;
            })*
        }
        mod s3 {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                use super::Place;
                let place = super::S3(super::weed());
                super::$module::$case(place.bucket(stringify!($case)).await).await;
            })*
        }
    };
}

contract!(
    bucket::objects_are_written_read_listed_and_deleted,
    bucket::a_missing_object_is_not_found,
    bucket::a_range_beyond_the_end_is_corrupt,
    bucket::a_check_leaves_nothing_but_the_claim,
    bucket::another_clusters_place_is_refused,
    runs::a_small_run_is_one_object_that_verifies,
    runs::a_large_run_goes_up_in_parts_and_verifies,
    runs::what_is_aborted_or_refused_leaves_no_object,
    runs::verification_finds_every_difference,
    runs::every_damaged_section_is_named_by_the_reader,
    runs::reads_give_whole_batches_within_their_bounds,
    runs::lookups_find_the_first_batch_that_reaches_a_time,
    runs::a_run_that_is_not_the_records_is_corrupt,
    runs::what_is_good_before_damage_is_read,
    runs::the_runs_of_a_combined_object_are_read_one_by_one,
    manifests::folds_add_runs_and_drop_expired_ones,
    manifests::a_damaged_manifest_is_named,
    manifests::retention_reads_what_it_needs,
    gc::garbage_goes_after_the_grace_and_nothing_else_does,
);
