//! Blocks of objects in memory and, where a folder is configured, on disk.
//!
//! A block never changes, so nothing here is ever stale; it can only be missing or, on disk,
//! damaged. A failure of the cache is never a failure of the read. Concurrent readers of one block
//! make one request. Memory: `memory_bytes`, and on top with a disk the write buffers below.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use forebay_runtime::metrics::{Labelled, Metrics};
use foyer::{
    BlockEngineConfig, Code, DeviceBuilder, Error, ErrorKind, FsDeviceBuilder, HybridCache,
    HybridCacheBuilder, PsyncIoEngineConfig, Source,
};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::OwnedSemaphorePermit;

use crate::config::CacheConfig;
use crate::error::{OpenError, StoreError};

/// Erase unit of the disk cache; a larger block stays in memory only.
const DISK_BLOCK_BYTES: usize = 16 << 20;
/// What may wait to be written to disk; more is dropped, which costs a request later.
const DISK_BUFFER_BYTES: usize = 32 << 20;
const DISK_QUEUE_BYTES: usize = 64 << 20;
/// A shard of the memory must hold many blocks, or the large ones would find no place.
const SHARD_BYTES: usize = 32 << 20;
const SHARDS_MAX: usize = 8;
/// What an entry costs besides its bytes.
const ENTRY_BYTES: usize = 256;
const NAME_BYTES_MAX: usize = 255;

/// Names a block: bytes of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct BlockKey {
    pub object: String,
    pub position: u64,
    pub len: u64,
}

/// A block's bytes, which are not a part of anything larger.
#[derive(Debug, Clone)]
pub(crate) struct Block(pub Bytes);

fn damaged(what: &'static str) -> Error {
    Error::new(ErrorKind::Parse, what)
}

impl Code for BlockKey {
    fn encode(&self, writer: &mut impl std::io::Write) -> foyer::Result<()> {
        self.position.encode(writer)?;
        self.len.encode(writer)?;
        (self.object.len() as u64).encode(writer)?;
        writer.write_all(self.object.as_bytes()).map_err(Error::io_error)
    }

    fn decode(reader: &mut impl std::io::Read) -> foyer::Result<Self> {
        let position = u64::decode(reader)?;
        let len = u64::decode(reader)?;
        let name = read_exact(reader, NAME_BYTES_MAX)?;
        let object = String::from_utf8(name).map_err(|_| damaged("name of a cached block"))?;
        Ok(Self {
            object,
            position,
            len,
        })
    }

    fn estimated_size(&self) -> usize {
        24 + self.object.len()
    }
}

impl Code for Block {
    fn encode(&self, writer: &mut impl std::io::Write) -> foyer::Result<()> {
        (self.0.len() as u64).encode(writer)?;
        writer.write_all(&self.0).map_err(Error::io_error)
    }

    fn decode(reader: &mut impl std::io::Read) -> foyer::Result<Self> {
        read_exact(reader, DISK_BLOCK_BYTES).map(|bytes| Self(bytes.into()))
    }

    fn estimated_size(&self) -> usize {
        8 + self.0.len()
    }
}

fn read_exact(reader: &mut impl std::io::Read, bytes_max: usize) -> foyer::Result<Vec<u8>> {
    let len = usize::try_from(u64::decode(reader)?).unwrap_or(usize::MAX);
    if len > bytes_max {
        return Err(damaged("length of a cached block"));
    }
    let mut bytes = vec![0; len];
    reader.read_exact(&mut bytes).map_err(Error::io_error)?;
    Ok(bytes)
}

/// The cache.
#[derive(Clone)]
pub(crate) struct BlockCache {
    blocks: HybridCache<BlockKey, Block>,
    metrics: CacheMetrics,
    /// Held for as long as the folder is used.
    _lock: Option<Arc<File>>,
}

#[derive(Clone)]
struct CacheMetrics {
    reads: Labelled<Counter, 1>,
    failures: Counter,
}

impl BlockCache {
    pub async fn open(config: &CacheConfig, metrics: &Metrics) -> Result<Self, OpenError> {
        let memory = config.memory_bytes.as_usize();
        let builder = HybridCacheBuilder::new()
            .with_name("objects")
            .memory(memory)
            .with_shards((memory / SHARD_BYTES).clamp(1, SHARDS_MAX))
            .with_weighter(|key: &BlockKey, block: &Block| ENTRY_BYTES + key.object.len() + block.0.len())
            .storage();
        let failed = |reason: String| OpenError::Settings {
            place: format!("cache {}", config.dir),
            reason,
        };
        let mut lock = None;
        let builder = if config.dir.is_empty() {
            builder
        } else {
            // First of all, for the device panics where it has no folder.
            lock = Some(Arc::new(
                lock_folder(&config.dir).map_err(|error| failed(error.to_string()))?,
            ));
            let device = FsDeviceBuilder::new(&config.dir)
                .with_capacity(config.disk_bytes.as_usize())
                .build()
                .map_err(|error| failed(error.to_string()))?;
            builder
                .with_io_engine_config(PsyncIoEngineConfig::new())
                .with_engine_config(
                    BlockEngineConfig::new(device)
                        .with_block_size(DISK_BLOCK_BYTES)
                        .with_flushers(2)
                        .with_buffer_pool_size(DISK_BUFFER_BYTES)
                        .with_submit_queue_size_threshold(DISK_QUEUE_BYTES),
                )
        };
        let blocks = builder.build().await.map_err(|error| failed(error.to_string()))?;
        let scope = metrics.scope("object_cache");
        Ok(Self {
            blocks,
            _lock: lock,
            metrics: CacheMetrics {
                reads: scope.counters(
                    "reads",
                    "Blocks of objects read, by where they were found",
                    ["source"],
                ),
                failures: scope.counter("failures", "Blocks that the cache failed to give or hold"),
            },
        })
    }

    /// The block, from the cache or from `fetch`, which runs once however many ask.
    pub async fn get<F>(&self, key: &BlockKey, fetch: impl Fn() -> F) -> Result<Bytes, StoreError>
    where
        F: Future<Output = Result<Bytes, StoreError>> + Send + 'static,
    {
        let fetched = fetch();
        let found = self
            .blocks
            .get_or_fetch(key, || async move { fetched.await.map(Block) })
            .await;
        match found {
            Ok(entry) => {
                self.count(match entry.source() {
                    Source::Memory => "memory",
                    Source::Disk => "disk",
                    Source::Outer => "store",
                });
                Ok(entry.value().0.clone())
            }
            Err(error) => match error.downcast_ref::<StoreError>() {
                Some(store) => Err(store.clone()),
                None => {
                    tracing::debug!(%error, object = key.object, "the cache failed to give a block");
                    self.metrics.failures.inc();
                    self.count("store");
                    fetch().await
                }
            },
        }
    }

    /// Has a block fetched in the background, unless it is there; the permit is given back then.
    pub fn ahead<F>(&self, key: &BlockKey, permit: OwnedSemaphorePermit, fetch: F)
    where
        F: Future<Output = Result<Bytes, StoreError>> + Send + 'static,
    {
        // The cache runs the fetch in a task of its own, so that it goes on when one of those who
        // wait goes away. It ends within the time limit of one read.
        let ahead = self.blocks.get_or_fetch(key, || async move {
            let fetched = fetch.await.map(Block);
            drop(permit);
            fetched
        });
        if ahead.need_await() {
            self.count("ahead");
        }
    }

    pub fn remove(&self, key: &BlockKey) {
        self.metrics.failures.inc();
        self.blocks.remove(key);
    }

    pub async fn close(&self) {
        if let Err(error) = self.blocks.close().await {
            tracing::warn!(%error, "the object cache could not be closed");
        }
    }

    fn count(&self, source: &'static str) {
        self.metrics.reads.with([source]).inc();
    }

    /// For tests of damaged caches.
    #[cfg(test)]
    pub fn insert(&self, key: BlockKey, bytes: Bytes) {
        self.blocks.insert(key, Block(bytes));
    }
}

/// Creates the folder and takes it for this process.
fn lock_folder(folder: &str) -> std::io::Result<File> {
    std::fs::create_dir_all(folder)?;
    let lock = File::create(Path::new(folder).join("lock"))?;
    lock.try_lock()
        .map_err(|error| std::io::Error::other(format!("is it used by another process? {error}")))?;
    Ok(lock)
}

/// A small cache of decoded, immutable values by name.
pub(crate) struct Decoded<T: Send + Sync + 'static> {
    values: foyer::Cache<BlockKey, Weighed<T>>,
}

struct Weighed<T> {
    value: Arc<T>,
    bytes: usize,
}

// Not derived: that would ask for values that can be cloned.
impl<T: Send + Sync + 'static> Clone for Decoded<T> {
    fn clone(&self) -> Self {
        Self {
            values: self.values.clone(),
        }
    }
}

impl<T: Send + Sync + 'static> Decoded<T> {
    pub fn new(name: &'static str, memory_bytes: usize) -> Self {
        let values = foyer::CacheBuilder::new(memory_bytes)
            .with_name(name)
            // One shard: a large value must find a place.
            .with_shards(1)
            .with_weighter(|key: &BlockKey, value: &Weighed<T>| ENTRY_BYTES + key.object.len() + value.bytes)
            .build();
        Self { values }
    }

    /// The value, from the cache or from `load`, which gives it with its size in memory and runs once
    /// however many ask.
    pub async fn get<F>(&self, key: &BlockKey, load: impl Fn() -> F) -> Result<Arc<T>, StoreError>
    where
        F: Future<Output = Result<(T, usize), StoreError>> + Send + 'static,
    {
        let loaded = load();
        let found = self
            .values
            .get_or_fetch(key, || async move {
                loaded.await.map(|(value, bytes)| Weighed {
                    value: Arc::new(value),
                    bytes,
                })
            })
            .await;
        match found {
            Ok(entry) => Ok(Arc::clone(&entry.value().value)),
            Err(error) => match error.downcast_ref::<StoreError>() {
                Some(store) => Err(store.clone()),
                None => load().await.map(|(value, _)| Arc::new(value)),
            },
        }
    }
}
