//! The object store of all hosts: in memory, as far away as any other host, and now and then it fails,
//! before or after it did what it was asked.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use forebay_runtime::random::{Random, SeededRandom};
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

use crate::network::Network;

/// The object store's host.
pub const OBJECTS: &str = "s3";

/// The object store. Clones are handles to the same one.
#[derive(Clone)]
pub struct Objects {
    store: Arc<InMemory>,
    network: Network,
    random: Arc<SeededRandom>,
    /// One request in so many fails; none where 0.
    fails_one_in: Arc<Mutex<u64>>,
}

impl Objects {
    /// An empty store.
    #[must_use]
    pub fn new(seed: u64, network: Network) -> Self {
        Self {
            store: Arc::new(InMemory::new()),
            network,
            random: Arc::new(SeededRandom::stream(seed, 0x53)),
            fails_one_in: Arc::default(),
        }
    }

    /// The store as a host sees it.
    #[must_use]
    pub fn of_host(&self, host: &str) -> Arc<dyn ObjectStore> {
        Arc::new(Remote {
            objects: self.clone(),
            host: host.to_owned(),
        })
    }

    /// Lets one request in so many fail; none where 0.
    pub fn fail(&self, one_in: u64) {
        *self.fails_one_in.lock() = one_in;
    }

    /// All there is, without the way there.
    #[must_use]
    pub fn names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let mut list = self.store.list(None);
        // In memory: all of it is there at once.
        while let Some(Some(Ok(object))) = list.next().now_or_never() {
            names.insert(object.location.to_string());
        }
        names
    }

    fn fails(&self) -> bool {
        let one_in = *self.fails_one_in.lock();
        one_in > 0 && self.random.range(0, one_in) == 0
    }
}

fn failure() -> Error {
    Error::Generic {
        store: "simulated",
        source: "it fails now and then".into(),
    }
}

struct Remote {
    objects: Objects,
    host: String,
}

impl Remote {
    /// The way there; may fail before anything is done.
    async fn there(&self) -> Result<()> {
        self.objects.network.travel(&self.host, OBJECTS).await;
        if self.objects.fails() {
            return Err(failure());
        }
        Ok(())
    }

    /// The way back; may fail although all is done.
    async fn back<T>(&self, done: T) -> Result<T> {
        self.objects.network.travel(OBJECTS, &self.host).await;
        if self.objects.fails() {
            return Err(failure());
        }
        Ok(done)
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulated store of {}", self.host)
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[async_trait]
impl ObjectStore for Remote {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.there().await?;
        let done = self.objects.store.put_opts(at, payload, options).await?;
        self.back(done).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.there().await?;
        let upload = self.objects.store.put_multipart_opts(at, options).await?;
        self.back(upload).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.there().await?;
        let done = self.objects.store.get_opts(at, options).await?;
        self.back(done).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.objects.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.objects.fails() {
            return futures_util::stream::once(async { Err(failure()) }).boxed();
        }
        self.objects.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.there().await?;
        self.objects.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.there().await?;
        self.objects.store.copy_opts(from, to, options).await
    }
}
