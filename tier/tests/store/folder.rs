//! A store in a folder or in memory, where the number of requests and files on disk can be counted.

use std::sync::Arc;

use forebay_record::Offset;
use forebay_runtime::config::ByteSize;
use forebay_runtime::metrics::Metrics;
use forebay_tier::{CacheConfig, Reader, RunWriter};

use crate::support::{
    batch, batches, concat, config, metric, name, names, open, open_with, run, start, write,
};

const GETS: &str = "forebay_object_store_requests_total{op=\"get\",outcome=\"ok\"}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_of_a_block_make_one_request() {
    let metrics = Metrics::new();
    let bucket = open_with(&config("memory://"), &metrics);
    let name = name(&names());
    let written = write(&bucket, &name, 0, &batches(0, 6, 1, 50_000), 6)
        .await
        .unwrap();
    let run = Arc::new(run(&name, 0, 6, &written));
    let cache = CacheConfig {
        memory_bytes: ByteSize::mib(16),
        ..CacheConfig::default()
    };
    let reader = Reader::open(bucket, &cache, &metrics).await.unwrap();
    let readers: Vec<_> = (0..20)
        .map(|n| {
            let (reader, run) = (reader.clone(), Arc::clone(&run));
            tokio::spawn(async move { reader.read(&run, Offset(n % 6), Offset(6), 1 << 20).await })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap().unwrap();
    }
    assert_eq!(metric(&metrics, GETS), 2, "the object's end and one block");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_on_finds_the_next_blocks_there() {
    let metrics = Metrics::new();
    let bucket = open_with(&config("memory://"), &metrics);
    let name = name(&names());
    let all = batches(0, 60, 1, 200_000);
    let written = write(&bucket, &name, 0, &all, 60).await.unwrap();
    let run = run(&name, 0, 60, &written);
    let reader = Reader::open(bucket, &CacheConfig::default(), &metrics)
        .await
        .unwrap();
    let mut found = Vec::new();
    for batch in 0..60 {
        let bytes = reader.read(&run, Offset(batch), Offset(60), 1).await.unwrap();
        found.extend_from_slice(&bytes);
    }
    assert!(found == concat(&all), "the bytes differ");
    let reads = |source| {
        metric(
            &metrics,
            &format!("forebay_object_cache_reads_total{{source=\"{source}\"}}"),
        )
    };
    assert!(reads("ahead") >= 8, "{}", metrics.encode().unwrap());
    assert!(
        metric(&metrics, GETS) <= 12,
        "each of ten blocks once: {}",
        metrics.encode().unwrap()
    );
    // A reader elsewhere has nothing fetched ahead.
    let before = reads("ahead");
    reader.read(&run, Offset(31), Offset(60), 1).await.unwrap();
    assert_eq!(reads("ahead"), before);
}

#[tokio::test]
async fn a_disk_cache_survives_a_restart_and_its_loss() {
    let folder = tempfile::tempdir().unwrap();
    let cache = CacheConfig {
        memory_bytes: ByteSize::mib(16),
        disk_bytes: ByteSize::mib(64),
        dir: folder.path().join("cache").display().to_string(),
    };
    let bucket = open(&config(&format!("file://{}/objects", folder.path().display())));
    let name = name(&names());
    let all = batches(0, 40, 1, 100_000);
    let written = write(&bucket, &name, 0, &all, 40).await.unwrap();
    let run = run(&name, 0, 40, &written);
    let mut disk = 0;
    for _ in 0..3 {
        let metrics = Metrics::new();
        let reader = Reader::open(bucket.clone(), &cache, &metrics).await.unwrap();
        for _ in 0..2 {
            let found = reader.read(&run, Offset(0), Offset(40), 8 << 20).await.unwrap();
            assert!(found == concat(&all), "the bytes differ");
        }
        disk += metric(&metrics, "forebay_object_cache_reads_total{source=\"disk\"}");
        let other = Reader::open(bucket.clone(), &cache, &metrics).await.unwrap_err();
        assert!(other.to_string().contains("another process"), "{other}");
        reader.close().await;
    }
    assert!(disk > 0, "nothing came from the disk cache");
    // Other bytes in its files: read past it.
    for entry in std::fs::read_dir(&cache.dir).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("lock") {
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        bytes
            .iter_mut()
            .skip(4096)
            .step_by(997)
            .for_each(|byte| *byte ^= 1);
        std::fs::write(&path, bytes).unwrap();
    }
    let reader = Reader::open(bucket, &cache, &Metrics::new()).await.unwrap();
    let found = reader.read(&run, Offset(0), Offset(40), 8 << 20).await.unwrap();
    assert!(found == concat(&all), "the bytes differ");
    reader.close().await;
}

#[tokio::test]
async fn a_folder_holds_finished_objects_only() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = open(&config(&format!("file://{}/a/b", folder.path().display())));
    let names = names();
    let files = || walk(&folder.path().join("a/b"));
    let mut writer = RunWriter::start(&bucket, &name(&names), start(0)).await;
    for n in 0..12 {
        writer.write(batch(n, 1, 1 << 20)).await.unwrap();
    }
    writer.abort().await;
    assert!(files().is_empty(), "{:?}", files());
    let mut dropped = RunWriter::start(&bucket, &name(&names), start(0)).await;
    for n in 0..12 {
        dropped.write(batch(n, 1, 1 << 20)).await.unwrap();
    }
    drop(dropped);
    crate::support::eventually("an empty folder", async || files().is_empty().then_some(())).await;
    write(&bucket, &name(&names), 0, &batches(0, 2, 1, 9), 2)
        .await
        .unwrap();
    assert_eq!(files().len(), 1);
    let objects = crate::support::list(&bucket, "d").await;
    bucket.delete(&objects).await.unwrap();
    let own = folder.path().join("a/b").join(&objects[0]);
    assert!(!own.parent().unwrap().exists(), "its folder goes with it");
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[tokio::test]
async fn a_folder_that_cannot_be_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let url = format!("file://{}/below", file.display());
    let clock = Arc::new(forebay_runtime::clock::SystemClock::new());
    let error = forebay_tier::Bucket::open(&config(&url), &Metrics::new(), clock, &|_| None).unwrap_err();
    assert!(error.to_string().contains(&url), "{error}");
    let cache = CacheConfig {
        dir: format!("{}/below", file.display()),
        ..CacheConfig::default()
    };
    let bucket = open(&config("memory://"));
    let error = Reader::open(bucket, &cache, &Metrics::new()).await.unwrap_err();
    assert!(error.to_string().contains(&cache.dir), "{error}");
}
