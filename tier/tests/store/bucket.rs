//! Cases of the bucket itself.

use bytes::Bytes;
use forebay_runtime::random::SeededRandom;
use forebay_tier::{Bucket, OpenError};

use crate::support::{assert_corrupt, assert_not_found, list};

pub async fn objects_are_written_read_listed_and_deleted(bucket: Bucket) {
    bucket.put("d/a/1", "one".into()).await.unwrap();
    bucket.put("d/a/2", Bytes::new()).await.unwrap();
    bucket.put("d/b/3", "three".into()).await.unwrap();
    bucket.put("e/x", "other".into()).await.unwrap();
    assert_eq!(bucket.get("d/a/1", 3).await.unwrap(), "one");
    assert_corrupt(bucket.get("d/a/1", 2).await, "d/a/1", &["3 bytes", "at most 2"]);
    assert_eq!(bucket.head("d/b/3").await.unwrap(), 5);
    assert_eq!(bucket.get_range("d/b/3", 1..3).await.unwrap(), "hr");
    assert_eq!(bucket.get_range("d/b/3", 2..2).await.unwrap(), "");
    assert_eq!(bucket.get_suffix("d/b/3", 2).await.unwrap(), ("ee".into(), 5));
    assert_eq!(bucket.get_suffix("d/b/3", 99).await.unwrap(), ("three".into(), 5));
    assert_eq!(list(&bucket, "d").await, ["d/a/1", "d/a/2", "d/b/3"]);
    assert_eq!(list(&bucket, "d/a").await, ["d/a/1", "d/a/2"]);
    assert!(list(&bucket, "f").await.is_empty());

    bucket.put("d/a/1", "again".into()).await.unwrap();
    assert_eq!(bucket.get("d/a/1", 9).await.unwrap(), "again");
    let gone = ["d/a/1".to_owned(), "d/nothing".to_owned(), "d/b/3".to_owned()];
    bucket.delete(&gone).await.unwrap();
    bucket.delete(&gone).await.unwrap();
    bucket.delete(&[]).await.unwrap();
    assert_eq!(list(&bucket, "d").await, ["d/a/2"]);
}

pub async fn a_missing_object_is_not_found(bucket: Bucket) {
    assert_not_found(bucket.get("d/0", 9).await, "d/0");
    assert_not_found(bucket.get_range("d/0", 0..9).await, "d/0");
    assert_not_found(bucket.get_suffix("d/0", 9).await, "d/0");
    assert_not_found(bucket.head("d/0").await, "d/0");
    let error = bucket.get("d/../../x", 9).await.unwrap_err();
    assert_eq!(error.outcome(), "refused", "{error}");
}

pub async fn a_range_beyond_the_end_is_corrupt(bucket: Bucket) {
    bucket.put("d/1", "12345".into()).await.unwrap();
    assert_corrupt(bucket.get_range("d/1", 3..9).await, "d/1", &["3 to 9", "5"]);
    assert_corrupt(bucket.get_range("d/1", 7..9).await, "d/1", &["ends before"]);
}

pub async fn a_check_leaves_nothing_but_the_claim(bucket: Bucket) {
    let random = SeededRandom::new(1);
    bucket.check("c1", &random).await.unwrap();
    bucket.check("c1", &random).await.unwrap();
    assert!(list(&bucket, "probe").await.is_empty());
    assert_eq!(bucket.get("cluster", 9).await.unwrap(), "c1\n");
}

pub async fn another_clusters_place_is_refused(bucket: Bucket) {
    let random = SeededRandom::new(1);
    bucket.check("lake", &random).await.unwrap();
    let error = bucket.check("pond", &random).await.unwrap_err();
    assert!(matches!(error, OpenError::Foreign { .. }));
    let message = error.to_string();
    for part in [bucket.place(), "lake", "pond", "object_store.url"] {
        assert!(message.contains(part), "{message}");
    }
}
