//! The object store as this system uses it: whole small objects, uploads in parts, ranges, lists.
//!
//! 1. `open` makes a client of the configured place; [`Bucket::check`] tries it at a start.
//! 2. Every operation has a time limit, is retried by the client library with jitter within
//!    `retry_timeout`, is counted, and fails with a [`StoreError`] that says what to do.
//! 3. `upload` writes large objects in parts.
//!
//! A success of a write means durable: in a folder, file and all folders above it are synced
//! before. Names are relative to the configured prefix. Nothing here decides what to write or delete.

mod classify;
mod metrics;
mod open;
mod probe;
mod upload;

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_runtime::clock::{Clock, timeout};
use forebay_runtime::metrics::Metrics;
use futures_util::{StreamExt, stream};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::classify::Asked;
use self::metrics::StoreMetrics;
pub(crate) use self::upload::Upload;
use crate::config::ObjectStoreConfig;
use crate::error::{OpenError, StoreError};

/// Most names of one [`Bucket::delete`], S3's own bound.
pub const DELETE_NAMES_MAX: usize = 1000;

/// A place for objects. Clones share everything.
#[derive(Clone)]
pub struct Bucket {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    place: String,
    folder: Option<PathBuf>,
    limit: Duration,
    part_bytes: usize,
    uploads: Arc<Semaphore>,
    clock: Arc<dyn Clock>,
    metrics: StoreMetrics,
}

/// An object as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub len: u64,
}

impl Bucket {
    /// A client of the configured place, none where no place is configured. Asks nothing yet but, for
    /// a folder, creates it. `env` gives variables of the environment, for credentials.
    ///
    /// # Errors
    /// Where the settings make no client.
    pub fn open(
        config: &ObjectStoreConfig,
        metrics: &Metrics,
        clock: Arc<dyn Clock>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, OpenError> {
        let Some(opened) = open::open(config, env)? else {
            return Ok(None);
        };
        Ok(Some(Self::of(opened, config, metrics, clock)))
    }

    /// A client of a store that the caller has made; `place` names it in messages.
    #[must_use]
    pub fn over(
        store: Arc<dyn ObjectStore>,
        place: String,
        config: &ObjectStoreConfig,
        metrics: &Metrics,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let opened = open::Opened {
            store,
            prefix: Path::default(),
            place,
            folder: None,
        };
        Self::of(opened, config, metrics, clock)
    }

    fn of(
        opened: open::Opened,
        config: &ObjectStoreConfig,
        metrics: &Metrics,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let inner = Inner {
            store: opened.store,
            prefix: opened.prefix,
            place: opened.place,
            folder: opened.folder,
            limit: config.retry_timeout.get() + config.request_timeout.get(),
            part_bytes: config.part_bytes.as_usize(),
            uploads: Arc::new(Semaphore::new(config.uploads_max as usize)),
            clock,
            metrics: StoreMetrics::new(metrics),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// For messages: the URL and endpoint, without secrets.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.inner.place
    }

    /// Size of the parts of an upload.
    pub(crate) fn part_bytes(&self) -> usize {
        self.inner.part_bytes
    }

    /// Waits for one of the configured number of uploads at a time.
    pub(crate) async fn upload_permit(&self) -> Option<OwnedSemaphorePermit> {
        // Closed never: the semaphore lives as long as the bucket.
        Arc::clone(&self.inner.uploads).acquire_owned().await.ok()
    }

    /// Writes a small object as a whole. After [`StoreError::Unavailable`] it may be there or not.
    ///
    /// # Errors
    /// As the store answers.
    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let len = bytes.len() as u64;
        let asked = self.asked("put", name);
        let path = self.path(asked)?;
        self.timed(asked, async {
            let payload = PutPayload::from_bytes(bytes);
            self.inner
                .store
                .put(&path, payload)
                .await
                .map_err(|error| asked.classify(&error))?;
            self.sync(asked, &path).await
        })
        .await?;
        self.inner.metrics.written_bytes.inc_by(len);
        Ok(())
    }

    /// Begins an upload in parts.
    pub(crate) async fn upload(&self, name: &str) -> Result<Upload, StoreError> {
        Upload::start(self.clone(), name).await
    }

    /// Reads an object of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// As the store answers; [`StoreError::Corrupt`] where it is larger.
    pub async fn get(&self, name: &str, bytes_max: u64) -> Result<Bytes, StoreError> {
        let (bytes, len) = self
            .read(name, GetRange::Bounded(0..bytes_max.saturating_add(1)))
            .await?;
        if len > bytes_max {
            let reason = format!("it has {len} bytes, at most {bytes_max} are possible");
            return Err(self.asked("get", name).corrupt(reason));
        }
        Ok(bytes)
    }

    /// Reads a range of an object that must be there to its end.
    ///
    /// # Errors
    /// As the store answers; [`StoreError::Corrupt`] where the object ends before the range does.
    pub async fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let need = range.end.saturating_sub(range.start);
        if need == 0 {
            return Ok(Bytes::new());
        }
        let (bytes, len) = self.read(name, GetRange::Bounded(range.clone())).await?;
        if bytes.len() as u64 != need {
            let reason = format!(
                "bytes {} to {} were asked for, it has {len}",
                range.start, range.end
            );
            return Err(self.asked("get", name).corrupt(reason));
        }
        Ok(bytes)
    }

    /// Reads the last `bytes` bytes of an object, or all of a smaller one; also tells its length.
    ///
    /// # Errors
    /// As the store answers.
    pub async fn get_suffix(&self, name: &str, bytes: u64) -> Result<(Bytes, u64), StoreError> {
        let (suffix, len) = self.read(name, GetRange::Suffix(bytes)).await?;
        let need = bytes.min(len);
        if suffix.len() as u64 != need {
            let reason = format!("the last {need} bytes were asked for, {} came", suffix.len());
            return Err(self.asked("get", name).corrupt(reason));
        }
        Ok((suffix, len))
    }

    async fn read(&self, name: &str, range: GetRange) -> Result<(Bytes, u64), StoreError> {
        let asked = self.asked("get", name);
        let path = self.path(asked)?;
        let read = self
            .timed(asked, async {
                let options = GetOptions {
                    range: Some(range),
                    ..GetOptions::default()
                };
                let result = self
                    .inner
                    .store
                    .get_opts(&path, options)
                    .await
                    .map_err(|error| asked.classify(&error))?;
                let len = result.meta.size;
                let bytes = result.bytes().await.map_err(|error| asked.classify(&error))?;
                Ok((bytes, len))
            })
            .await?;
        self.inner.metrics.read_bytes.inc_by(read.0.len() as u64);
        Ok(read)
    }

    /// The length of an object.
    ///
    /// # Errors
    /// As the store answers.
    pub async fn head(&self, name: &str) -> Result<u64, StoreError> {
        let asked = self.asked("head", name);
        let path = self.path(asked)?;
        self.timed(asked, async {
            let meta = self.inner.store.head(&path).await;
            meta.map(|meta| meta.size).map_err(|error| asked.classify(&error))
        })
        .await
    }

    /// Deletes objects, at most [`DELETE_NAMES_MAX`]; one that is not there counts as deleted.
    /// After an error any of them may be gone.
    ///
    /// # Errors
    /// As the store answers for the first that fails.
    pub async fn delete(&self, names: &[String]) -> Result<(), StoreError> {
        let first = names.first().map_or("", String::as_str);
        let asked = self.asked("delete", first);
        let mut paths = Vec::with_capacity(names.len());
        for name in names {
            paths.push(Ok(self.path(self.asked("delete", name))?));
        }
        let result = self
            .timed(asked, async {
                let mut deleted = self.inner.store.delete_stream(stream::iter(paths).boxed());
                let mut failed = None;
                while let Some(result) = deleted.next().await {
                    let Err(error) = result else { continue };
                    match asked.classify(&error) {
                        StoreError::NotFound { .. } => {}
                        error => failed = failed.or(Some(error)),
                    }
                }
                failed.map_or(Ok(()), Err)
            })
            .await;
        match &result {
            Ok(()) => self.inner.metrics.deletes_refused.set(0),
            Err(StoreError::Refused { .. }) => self.inner.metrics.deletes_refused.set(1),
            Err(_) => 0,
        };
        result
    }

    /// Gives every object whose name begins with `prefix` and a slash, in no particular order. The
    /// list is complete only where this succeeds.
    ///
    /// # Errors
    /// As the store answers.
    pub async fn list(&self, prefix: &str, mut each: impl FnMut(Listed)) -> Result<(), StoreError> {
        let asked = self.asked("list", prefix);
        let path = self.path(asked)?;
        let mut objects = self.inner.store.list(Some(&path));
        loop {
            // A page at a time: each has the time of one operation.
            let next = self.limited(asked, async { Ok(objects.next().await) }).await;
            let object = match next {
                Ok(None) => {
                    self.inner.metrics.done("list", Duration::ZERO, &Ok::<(), _>(()));
                    return Ok(());
                }
                Ok(Some(Ok(object))) => object,
                Ok(Some(Err(error))) => return self.list_failed(asked.classify(&error)),
                Err(error) => return self.list_failed(error),
            };
            if let Some(name) = self.relative(&object.location) {
                each(Listed {
                    name,
                    len: object.size,
                });
            }
        }
    }

    fn list_failed(&self, error: StoreError) -> Result<(), StoreError> {
        let failed = Err(error);
        self.inner.metrics.done("list", Duration::ZERO, &failed);
        failed
    }

    fn asked<'a>(&'a self, op: &'static str, name: &'a str) -> Asked<'a> {
        Asked {
            place: &self.inner.place,
            op,
            name,
        }
    }

    fn path(&self, asked: Asked<'_>) -> Result<Path, StoreError> {
        let relative = Path::parse(asked.name)
            .map_err(|error| asked.refused(error.to_string(), "this is no object's name"))?;
        Ok(self.inner.prefix.parts().chain(relative.parts()).collect())
    }

    fn relative(&self, path: &Path) -> Option<String> {
        let parts: Vec<_> = path.prefix_match(&self.inner.prefix)?.collect();
        let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
        Some(parts.join("/"))
    }

    /// Runs one operation within its time, and counts it.
    async fn timed<T>(
        &self,
        asked: Asked<'_>,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let started = self.inner.clock.monotonic();
        let result = self.limited(asked, operation).await;
        let took = self.inner.clock.monotonic().saturating_sub(started);
        self.inner.metrics.done(asked.op, took, &result);
        result
    }

    /// Cancel safety: a write whose time is up may still be done; that is what Unavailable says.
    async fn limited<T>(
        &self,
        asked: Asked<'_>,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let limit = self.inner.limit;
        match timeout(&*self.inner.clock, limit, operation).await {
            Ok(result) => result,
            Err(elapsed) => Err(asked.unavailable(elapsed.to_string())),
        }
    }

    /// In a folder: makes the folders above a new file durable. The client syncs those that it
    /// created itself, but not those that another upload created and has not synced yet.
    async fn sync(&self, asked: Asked<'_>, path: &Path) -> Result<(), StoreError> {
        let Some(root) = self.inner.folder.clone() else {
            return Ok(());
        };
        let mut folder = root.clone();
        folder.extend(path.parts().map(|part| part.as_ref().to_owned()));
        folder.pop();
        let synced = tokio::task::spawn_blocking(move || open::sync_folders(&folder, &root)).await;
        match synced {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(asked.unavailable(format!("its folder could not be synced: {error}"))),
            Err(error) => Err(asked.unavailable(error.to_string())),
        }
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket")
            .field("place", &self.inner.place)
            .finish()
    }
}
