//! What every role of a process shares: clock, randomness, metrics, tasks, exchanges, metadata.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use forebay_broker::Objects;
use forebay_meta::cluster::{self, Cluster, ClusterSettings};
use forebay_meta::store::{EmbeddedStore, EtcdOptions, EtcdStore, MetaStore, MeteredStore};
use forebay_proto::data::endpoint::{Dialer, Exchange, FrontProtocol, ReplicaProtocol};
use forebay_runtime::admin_http::Readiness;
use forebay_runtime::clock::{Clock, SystemClock};
use forebay_runtime::metrics::Metrics;
use forebay_runtime::net::{MemNetwork, SystemConnector};
use forebay_runtime::random::{OsRandom, Random};
use forebay_runtime::tasks::Tasks;
use forebay_runtime::trace::Tracer;
use forebay_tier::{Bucket, Manifests, OpenError, Reader, StoreError};

use super::config::Config;

/// Manifests kept decoded: roots and pages of some thousand partitions.
const MANIFEST_BYTES: usize = 32 << 20;

/// Connects to the etcd that a configuration names, with the revisions of the cluster's incarnation.
///
/// # Errors
/// Where none is named or none answers, or the cluster's record is damaged.
pub async fn open_etcd(config: &Config, tasks: &Tasks) -> anyhow::Result<EtcdStore> {
    let endpoints = config.metadata.etcd.clone();
    anyhow::ensure!(
        !endpoints.is_empty(),
        "metadata.etcd names no endpoint; one machine alone runs `forebay standalone`"
    );
    let options = EtcdOptions::new(endpoints, &config.cluster.name);
    let store = EtcdStore::connect_within(options, tasks, config.metadata.start_timeout.get()).await?;
    // Before anything else is read: revisions of a raised incarnation lie above all older ones.
    let cluster = cluster::stored(&store).await.context("the cluster's record")?;
    let incarnation = cluster.map_or(1, |(_, record)| record.incarnation);
    Ok(store.of_incarnation(incarnation))
}

/// The shared parts of one process.
pub struct Process {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) random: Arc<dyn Random>,
    pub(super) metrics: Metrics,
    pub(super) tracer: Tracer,
    pub(super) readiness: Readiness,
    pub(super) tasks: Tasks,
    pub(super) connector: Arc<SystemConnector>,
    pub(super) fronts: Exchange<FrontProtocol>,
    pub(super) nodes: Exchange<ReplicaProtocol>,
}

impl Process {
    /// The parts of a process on the machine's own clock and network.
    #[must_use]
    pub fn new(name: &str, tracer: Tracer) -> Self {
        Self {
            clock: Arc::new(SystemClock::new()),
            random: Arc::new(OsRandom),
            metrics: Metrics::new(),
            tracer,
            readiness: Readiness::new(),
            tasks: Tasks::new(name),
            connector: Arc::new(SystemConnector::new(MemNetwork::new())),
            fronts: Exchange::default(),
            nodes: Exchange::default(),
        }
    }

    pub(super) fn front_dialer(&self) -> Dialer<FrontProtocol> {
        Dialer::new(
            self.connector.clone(),
            self.fronts.clone(),
            self.tasks.group("fronts"),
        )
    }

    pub(super) fn node_dialer(&self) -> Dialer<ReplicaProtocol> {
        Dialer::new(
            self.connector.clone(),
            self.nodes.clone(),
            self.tasks.group("nodes"),
        )
    }

    /// Opens the metadata store that a configuration names.
    pub(super) async fn open_store(
        &self,
        config: &Config,
        embedded: Option<&Path>,
    ) -> anyhow::Result<Arc<dyn MetaStore>> {
        let tasks = self.tasks.group("metadata");
        if let Some(path) = embedded {
            let store = EmbeddedStore::open(path, Arc::clone(&self.clock), &tasks)
                .await
                .with_context(|| format!("embedded metadata in {}", path.display()))?;
            return Ok(self.metered(store));
        }
        Ok(self.metered(open_etcd(config, &tasks).await?))
    }

    fn metered(&self, store: impl MetaStore) -> Arc<dyn MetaStore> {
        let store = MeteredStore::new(Arc::new(store), Arc::clone(&self.clock), &self.metrics);
        Arc::new(store)
    }

    /// Opens the object store that a configuration names, and tries it. One that does not answer now
    /// holds nothing up but offload; one that refuses, or is another cluster's, does.
    pub(super) async fn open_objects(
        &self,
        config: &Config,
        cluster: &Cluster,
    ) -> anyhow::Result<Option<Objects>> {
        let environment = |name: &str| std::env::var(name).ok();
        let clock = Arc::clone(&self.clock);
        let bucket =
            Bucket::open(&config.object_store, &self.metrics, clock, &environment).context("object_store")?;
        let Some(bucket) = bucket else {
            tracing::info!("object_store.url is empty: sealed segments stay on the storage nodes");
            return Ok(None);
        };
        match bucket.check(&cluster.id, self.random.as_ref()).await {
            Ok(()) => {}
            Err(OpenError::Store(error @ StoreError::Unavailable { .. })) => {
                tracing::warn!(%error, "the object store does not answer; segments wait on the storage nodes");
            }
            Err(error) => return Err(error).context("object_store"),
        }
        let reader = Reader::open(bucket.clone(), &config.cache, &self.metrics)
            .await
            .context("cache")?;
        Ok(Some(Objects {
            manifests: Manifests::new(bucket.clone(), MANIFEST_BYTES),
            reader,
            bucket,
            random: Arc::clone(&self.random),
        }))
    }

    /// Joins the cluster of a metadata store, or founds it.
    pub(super) async fn join(&self, config: &Config, store: &dyn MetaStore) -> anyhow::Result<Cluster> {
        let settings = ClusterSettings {
            cluster_id: None,
            replicas: config.cluster.replicas,
            ack_quorum: config.cluster.ack_quorum,
        };
        Ok(cluster::join(store, &settings, self.random.as_ref()).await?)
    }
}
