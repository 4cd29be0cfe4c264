//! What can be set on a proxy, and what it is given.

use std::sync::Arc;
use std::time::Duration;

use forebay_meta::store::MetaStore;
use forebay_proto::data::endpoint::{Dialer, FrontProtocol, ReplicaProtocol};
use forebay_runtime::admin_http::Readiness;
use forebay_runtime::clock::Clock;
use forebay_runtime::metrics::Metrics;
use forebay_runtime::random::Random;
use forebay_runtime::tasks::Tasks;
use forebay_runtime::trace::Tracer;

use crate::control::Control;
use crate::fetch::cold::Cold;

/// Settings of a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// The proxy's name to its peers, for their logs.
    pub name: String,
    /// The proxy's failure domain, empty where it is not known: replicas there are read first.
    pub zone: String,
    /// Memory for requests and answers under way, half for each.
    pub memory_bytes: u64,
    /// Largest sum of one batch's records after decompression.
    pub decompressed_bytes_max: usize,
    /// Produce streams open at once.
    pub streams_max: usize,
    /// Requests of one produce stream that are not answered.
    pub stream_requests_max: usize,
    /// How long a unary call waits for memory before it is told that the proxy is overloaded.
    pub admission_timeout: Duration,
    /// How long a shutdown waits for what was accepted.
    pub drain_timeout: Duration,
    /// Topics that are counted by name; the others share one series.
    pub topic_metrics_max: usize,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            name: "proxy".to_owned(),
            zone: String::new(),
            memory_bytes: 512 << 20,
            decompressed_bytes_max: 64 << 20,
            streams_max: 4096,
            stream_requests_max: 512,
            admission_timeout: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(10),
            topic_metrics_max: 200,
        }
    }
}

/// What a proxy is given.
#[derive(Clone)]
pub struct Deps {
    /// Cluster id.
    pub cluster: String,
    /// Cluster incarnation.
    pub incarnation: u32,
    /// Where metadata lives.
    pub meta: Arc<dyn MetaStore>,
    /// Opens sessions with brokers.
    pub fronts: Dialer<FrontProtocol>,
    /// Opens sessions with storage nodes.
    pub nodes: Dialer<ReplicaProtocol>,
    /// The object store, where there is one.
    pub cold: Option<Cold>,
    /// Finds who answers control calls.
    pub control: Control,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness, for backoff and the choice of brokers.
    pub random: Arc<dyn Random>,
    /// Where metrics are registered.
    pub metrics: Metrics,
    /// Begins spans.
    pub tracer: Tracer,
    /// Where the proxy says whether it serves.
    pub readiness: Readiness,
    /// Where its tasks run.
    pub tasks: Tasks,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps")
            .field("cluster", &self.cluster)
            .field("meta", &self.meta)
            .finish_non_exhaustive()
    }
}
