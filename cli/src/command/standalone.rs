//! `standalone`: all roles in one process.

use std::net::SocketAddr;
use std::path::PathBuf;

use tracing::info;

use super::{end_log, lifetime, log};
use crate::server::{Config, Role, StandaloneOptions, start_standalone};

/// Where it keeps and serves what it has.
#[derive(Debug, clap::Args)]
pub struct StandaloneArgs {
    /// Folder for everything that is kept; made if missing
    #[arg(long, default_value = "forebay-data", value_name = "FOLDER")]
    pub data: PathBuf,
    /// Where gRPC is served; 127.0.0.1:7450 unless configured otherwise
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where metrics and health are served; 127.0.0.1:7451 unless configured otherwise
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub admin_listen: Option<SocketAddr>,
    /// A setting, such as storage.journal_file_bytes=64MiB; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

/// Serves until stopped.
pub async fn run(args: StandaloneArgs, log_level: Option<String>) -> anyhow::Result<()> {
    let config: Config = lifetime::layers(&[], &args.settings, log_level)?.load()?;
    let logs = log(&config.telemetry, &config.service(&Role::ALL))?;
    let data = args.data.clone();
    let running = start_standalone(StandaloneOptions {
        data_dir: args.data,
        grpc_listen: args.listen.unwrap_or(config.listen.grpc),
        admin_listen: args.admin_listen.unwrap_or(config.listen.admin),
        config,
        tracer: logs.tracer(),
    })
    .await?;
    info!(grpc = %running.grpc_address(), admin = %running.admin_address(), data = %data.display(), "ready");
    let served = lifetime::serve(running).await;
    end_log(logs).await;
    served
}
