//! Everything in one process: all roles, embedded metadata, one replica on one disk.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use forebay_runtime::config::ByteSize;
use forebay_runtime::trace::Tracer;

use super::config::{Config, Role};
use super::process::Process;
use super::roles::start_with;
use super::running::Running;

/// Size of a journal file where neither it nor a budget is set.
const JOURNAL_FILE: ByteSize = ByteSize::mib(256);

/// How a standalone process runs.
#[derive(Debug, Clone)]
pub struct StandaloneOptions {
    /// Where everything is kept; made if missing.
    pub data_dir: PathBuf,
    /// gRPC.
    pub grpc_listen: SocketAddr,
    /// Metrics and health.
    pub admin_listen: SocketAddr,
    /// The rest.
    pub config: Config,
    /// Where spans go.
    pub tracer: Tracer,
}

impl Default for StandaloneOptions {
    fn default() -> Self {
        let mut config = Config::default();
        config.broker.tail_cache_bytes = ByteSize::mib(64);
        Self {
            data_dir: PathBuf::from("forebay-data"),
            grpc_listen: config.listen.grpc,
            admin_listen: config.listen.admin,
            config,
            tracer: Tracer::off(),
        }
    }
}

/// Starts all roles over one folder.
///
/// # Errors
/// Where the folder is in use or damaged, or a port is taken.
pub async fn start_standalone(options: StandaloneOptions) -> anyhow::Result<Running> {
    let StandaloneOptions {
        data_dir,
        grpc_listen,
        admin_listen,
        mut config,
        tracer,
    } = options;
    std::fs::create_dir_all(&data_dir)
        .with_context(|| format!("cannot make the data folder {}", data_dir.display()))?;
    config.cluster.replicas = 1;
    config.cluster.ack_quorum = 1;
    config.listen.grpc = grpc_listen;
    config.listen.admin = admin_listen;
    config.storage.data_dir = data_dir.join("log");
    let storage = &mut config.storage;
    if storage.journal_file_bytes.as_u64() == 0 && storage.disk_budget_bytes.as_u64() == 0 {
        // A laptop should not have to give whole gibibytes before the first record.
        storage.journal_file_bytes = JOURNAL_FILE;
    }
    // The roles meet inside the process.
    config.storage.data_listen = String::new();
    config.broker.data_listen = String::new();
    if config.object_store.url.is_empty() {
        let objects = std::path::absolute(data_dir.join("objects"))
            .with_context(|| format!("the data folder {} has no absolute path", data_dir.display()))?;
        config.object_store.url = format!("file://{}", objects.display());
    }
    let metadata = data_dir.join("metadata.redb");
    start_with(
        Process::new("standalone", tracer),
        &Role::ALL,
        config,
        Some(&metadata),
    )
    .await
}
