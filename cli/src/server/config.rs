//! The configuration of a process: one section per concern, every key with a default that works.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use forebay_meta::session::CONFIGURED_BROKER_ID_MAX;
use forebay_runtime::config::{ByteSize, ConfigError, HumanDuration, Validate};
use forebay_runtime::telemetry::{Service, TelemetryConfig};
use forebay_tier::{CacheConfig, ObjectStoreConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a process can be. One process may be several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// What clients talk to.
    Proxy,
    /// Owns partitions.
    Broker,
    /// Keeps the log.
    Storage,
    /// Places partitions.
    Controller,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Proxy, Self::Broker, Self::Storage, Self::Controller];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Proxy => "proxy",
            Self::Broker => "broker",
            Self::Storage => "storage",
            Self::Controller => "controller",
        })
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|role| role.to_string() == text)
            .ok_or_else(|| format!("\"{text}\" is no role; known are proxy, broker, storage, controller"))
    }
}

/// A process's configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    /// What all processes of the cluster agree on.
    pub cluster: ClusterConfig,
    /// Where metadata lives.
    pub metadata: MetadataConfig,
    /// Sockets of the process.
    pub listen: ListenConfig,
    /// The broker role.
    pub broker: BrokerSection,
    /// The storage role.
    pub storage: StorageSection,
    /// The proxy role.
    pub proxy: ProxySection,
    /// The controller role.
    pub controller: ControllerSection,
    /// Where offloaded segments go.
    pub object_store: ObjectStoreConfig,
    /// What is kept of objects that were read.
    pub cache: CacheConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

/// What all processes of the cluster agree on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ClusterConfig {
    /// Name under which the cluster's keys are kept.
    pub name: String,
    /// Replicas of each segment.
    pub replicas: u8,
    /// Replicas that must have synced an entry before it is committed.
    pub ack_quorum: u8,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            name: "forebay".to_owned(),
            replicas: 3,
            ack_quorum: 2,
        }
    }
}

/// Where metadata lives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MetadataConfig {
    /// etcd's client endpoints, `http://host:port`. Empty for the embedded store, which only a
    /// process that is all roles can use.
    pub etcd: Vec<String>,
    /// How long a start waits for etcd before it gives up.
    pub start_timeout: HumanDuration,
}

impl Default for MetadataConfig {
    fn default() -> Self {
        Self {
            etcd: Vec::new(),
            start_timeout: HumanDuration::secs(30),
        }
    }
}

/// Sockets of the process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListenConfig {
    /// gRPC services of all roles.
    pub grpc: SocketAddr,
    /// Metrics and health.
    pub admin: SocketAddr,
    /// Host under which other processes reach this one, where it differs from the bound address.
    pub advertised_host: Option<String>,
    /// Where this process is: a failure domain such as an availability zone.
    pub zone: String,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            grpc: SocketAddr::from(([127, 0, 0, 1], 7450)),
            admin: SocketAddr::from(([127, 0, 0, 1], 7451)),
            advertised_host: None,
            zone: String::new(),
        }
    }
}

/// The broker role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct BrokerSection {
    /// Number of this broker, unique in the cluster, from 1 to 1000; 0 for one that each start
    /// takes from the metadata store, above 1000.
    pub id: u32,
    /// Where proxies connect: `tcp://host:port` or `unix:///path`.
    pub data_listen: String,
    /// Life of the broker's session without a sign of life.
    pub session_ttl: HumanDuration,
    /// Recent batches kept in memory for consumers at the tail.
    pub tail_cache_bytes: ByteSize,
    /// How long a storage node may be away before its sealed segments are copied to others. Where
    /// fewer copies are left than acknowledge a write, that happens at once.
    pub repair_after: HumanDuration,
    /// Bytes a second that one broker may copy between storage nodes; 0 for no bound.
    pub repair_bytes_per_second: ByteSize,
}

impl Default for BrokerSection {
    fn default() -> Self {
        Self {
            id: 1,
            data_listen: "tcp://127.0.0.1:7460".to_owned(),
            session_ttl: HumanDuration::secs(10),
            tail_cache_bytes: ByteSize::mib(128),
            repair_after: HumanDuration::secs(300),
            repair_bytes_per_second: ByteSize::mib(64),
        }
    }
}

/// The storage role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StorageSection {
    /// Number of this node, unique in the cluster, from 1. One node is one disk.
    pub id: u32,
    /// The disk's folder.
    pub data_dir: PathBuf,
    /// Where brokers and proxies connect: `tcp://host:port` or `unix:///path`.
    pub data_listen: String,
    /// Size of one journal file; 0 for one that fits the budget: a 32nd of it, from 16MiB to 1GiB. No record batch
    /// may be larger than five eighths of it less 88 bytes, on any node of the cluster: 8MiB fit from 16MiB on,
    /// 32MiB from 64MiB on. Less than 4MiB is for tests: partitions with thousands of producers need more.
    pub journal_file_bytes: ByteSize,
    /// Most bytes of one write and fsync.
    pub commit_bytes_max: ByteSize,
    /// Most bytes in the folder; 0 for nine tenths of the file system. What is offloaded is deleted
    /// so that it stays below.
    pub disk_budget_bytes: ByteSize,
    /// How long offloaded data stays on the disk for consumers that catch up: at least so long
    /// while the budget is used to less than 75 %, five times as long below 60 %.
    pub trim_grace: HumanDuration,
    /// How often all that is held is read back from the disk to see whether it is right; 0 for never.
    pub scrub_interval: HumanDuration,
    /// Most bytes that are read for that in a second.
    pub scrub_rate: ByteSize,
    /// Write past the page cache where the file system can.
    pub direct_io: bool,
}

impl Default for StorageSection {
    fn default() -> Self {
        Self {
            id: 1,
            data_dir: PathBuf::from("forebay-data"),
            data_listen: "tcp://127.0.0.1:7470".to_owned(),
            journal_file_bytes: ByteSize::bytes(0),
            commit_bytes_max: ByteSize::mib(4),
            disk_budget_bytes: ByteSize::bytes(0),
            trim_grace: HumanDuration::secs(120),
            scrub_interval: HumanDuration::secs(6 * 3600),
            scrub_rate: ByteSize::mib(32),
            direct_io: true,
        }
    }
}

/// The controller role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ControllerSection {
    /// Moves partitions from brokers with much load to those with little. Without it, partitions only
    /// leave brokers that are lost, drained or stopped.
    pub rebalance: bool,
}

impl Default for ControllerSection {
    fn default() -> Self {
        Self { rebalance: true }
    }
}

/// The proxy role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProxySection {
    /// Name of this proxy; empty for one made from its address.
    pub id: String,
    /// Bytes of requests and answers in memory at a time.
    pub memory_bytes: ByteSize,
    /// Most bytes that a batch may have when decompressed.
    pub decompressed_bytes_max: ByteSize,
    /// Topics that are counted by name in metrics; the others share one series.
    pub topic_metrics_max: usize,
}

impl Default for ProxySection {
    fn default() -> Self {
        Self {
            id: String::new(),
            memory_bytes: ByteSize::mib(512),
            decompressed_bytes_max: ByteSize::mib(64),
            topic_metrics_max: 200,
        }
    }
}

impl Config {
    /// What a process of these roles is called in its traces, where the configuration does not say.
    #[must_use]
    pub fn service(&self, roles: &[Role]) -> Service {
        let all = Role::ALL.iter().all(|role| roles.contains(role));
        let mut names: Vec<_> = roles.iter().map(ToString::to_string).collect();
        if all {
            names = vec!["standalone".to_owned()];
        }
        let mut instance: Vec<_> = roles
            .iter()
            .filter_map(|role| match role {
                Role::Broker => Some(format!("broker-{}", self.broker.id)),
                Role::Storage => Some(format!("node-{}", self.storage.id)),
                Role::Proxy if !self.proxy.id.is_empty() => Some(self.proxy.id.clone()),
                Role::Proxy | Role::Controller => None,
            })
            .collect();
        if instance.is_empty() {
            // Nothing but its address tells such a process from its like.
            let host = self.listen.advertised_host.clone();
            let host = host.unwrap_or_else(|| self.listen.grpc.ip().to_string());
            instance.push(format!(
                "{host}-{}-{}",
                self.listen.grpc.port(),
                std::process::id()
            ));
        }
        Service {
            name: format!("forebay-{}", names.join("-")),
            instance: instance.join("+"),
            namespace: self.cluster.name.clone(),
        }
    }
}

impl Validate for Config {
    fn validate(&self) -> Result<(), ConfigError> {
        let ClusterConfig {
            name,
            replicas,
            ack_quorum,
        } = &self.cluster;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            let why = format!("\"{name}\" must be 1 to 64 letters, digits, - and _");
            return Err(ConfigError::invalid("cluster.name", why));
        }
        if *replicas == 0 || *replicas > 7 {
            return Err(ConfigError::invalid(
                "cluster.replicas",
                format!("{replicas} must lie between 1 and 7"),
            ));
        }
        if *ack_quorum == 0 || ack_quorum > replicas || (u16::from(*ack_quorum) * 2 <= u16::from(*replicas)) {
            let why = format!(
                "{ack_quorum} must be more than half of cluster.replicas = {replicas}, and not more than it"
            );
            return Err(ConfigError::invalid("cluster.ack_quorum", why));
        }
        if self.broker.id > CONFIGURED_BROKER_ID_MAX {
            let id = self.broker.id;
            let why = format!("{id} is more than {CONFIGURED_BROKER_ID_MAX}: ids above are handed out for 0");
            return Err(ConfigError::invalid("broker.id", why));
        }
        if self.storage.id == 0 {
            return Err(ConfigError::invalid(
                "storage.id",
                "0 is not allowed, ids begin at 1",
            ));
        }
        let ttl = self.broker.session_ttl.as_millis();
        if !(2_000..=600_000).contains(&ttl) {
            return Err(ConfigError::invalid(
                "broker.session_ttl",
                format!("{ttl} ms must lie between 2s and 10min"),
            ));
        }
        let file = self.storage.journal_file_bytes.as_u64();
        if file != 0 && !(1 << 20..=64 << 30).contains(&file) {
            let why = format!("{file} bytes must be 0 or lie between 1MiB and 64GiB");
            return Err(ConfigError::invalid("storage.journal_file_bytes", why));
        }
        let commit = self.storage.commit_bytes_max.as_u64();
        if !(64 << 10..=64 << 20).contains(&commit) {
            let why = format!("{commit} bytes must lie between 64KiB and 64MiB");
            return Err(ConfigError::invalid("storage.commit_bytes_max", why));
        }
        if self.proxy.memory_bytes.as_u64() < 64 << 20 {
            return Err(ConfigError::invalid("proxy.memory_bytes", "at least 64MiB"));
        }
        self.object_store
            .validate()
            .map_err(|error| error.under("object_store"))?;
        self.cache.validate().map_err(|error| error.under("cache"))?;
        if self.proxy.topic_metrics_max > 100_000 {
            let why = format!("{} is more than 100000", self.proxy.topic_metrics_max);
            return Err(ConfigError::invalid("proxy.topic_metrics_max", why));
        }
        self.telemetry
            .validate()
            .map_err(|error| error.under("telemetry"))
    }
}

/// Values that one command line gives on top of file and environment.
#[derive(Debug, Clone, Default)]
pub struct Overrides(pub BTreeMap<String, String>);

impl Overrides {
    /// As `key=value` flags.
    #[must_use]
    pub fn flags(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn a_broker_may_leave_its_id_to_the_store_and_not_take_one_of_those() {
        let mut config = Config::default();
        for (id, allowed) in [(0, true), (1_000, true), (1_001, false)] {
            config.broker.id = id;
            assert_eq!(config.validate().is_ok(), allowed, "{id}");
        }
    }

    #[test]
    fn a_quorum_that_two_owners_could_both_reach_is_refused() {
        let mut config = Config::default();
        config.cluster.ack_quorum = 1;
        assert!(
            config
                .validate()
                .unwrap_err()
                .to_string()
                .contains("cluster.ack_quorum")
        );
    }
}
