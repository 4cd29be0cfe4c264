//! The life of a server process: its configuration, and waiting for its end.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;
use forebay_runtime::config::{ConfigError, Layers};
use forebay_runtime::tasks::{Signal, shutdown_signal};
use tracing::{error, info};

use crate::server::Running;

/// Variables that begin as configuration does and are something else: what commands talk to, and
/// where builds are kept.
const OTHER_VARIABLES: [&str; 1] = ["FOREBAY_SERVER"];

/// The configuration from files, the environment and `key=value` settings, the later over the
/// earlier.
pub fn layers(
    files: &[PathBuf],
    settings: &[String],
    log_level: Option<String>,
) -> Result<Layers, ConfigError> {
    let mut layers = Layers::new();
    for file in files {
        layers = layers.file(file)?;
    }
    let log_level = log_level.map(|level| format!("telemetry.log_filter={level}"));
    let settings = settings.iter().cloned().chain(log_level);
    layers.env(std::env::vars_os(), &OTHER_VARIABLES)?.flags(settings)
}

/// How long a server that failed may take to stop in order.
const FAILED_STOP: Duration = Duration::from_secs(15);

/// Why a server is to stop.
#[derive(Debug)]
pub enum Stop {
    /// Somebody outside wants it.
    Asked(Signal),
    /// Something inside cannot go on.
    Failed(String),
}

/// Waits until a server is to stop.
pub async fn stop_wanted(running: &Running) -> anyhow::Result<Stop> {
    tokio::select! {
        signal = shutdown_signal() => Ok(Stop::Asked(signal?)),
        reason = running.wait_for_shutdown_request() => Ok(Stop::Failed(reason)),
    }
}

/// Stops a server in order; a second signal does not wait for that.
pub async fn stop(running: Running) -> anyhow::Result<()> {
    tokio::select! {
        ended = running.shutdown() => ended,
        signal = shutdown_signal() => Err(anyhow!("{} before everything was stopped in order", signal?)),
    }
}

/// Says where a server is, on one line of standard output for whoever started it, and serves until
/// something wants the end of it; then stops in order.
pub async fn serve(running: Running) -> anyhow::Result<()> {
    let ready = format!(
        "forebay is ready: grpc {}, admin {}\n",
        running.grpc_address(),
        running.admin_address()
    );
    if let Err(error) = std::io::Write::write_all(&mut std::io::stdout(), ready.as_bytes()) {
        tracing::debug!(%error, "nobody reads standard output");
    }
    let wanted = stop_wanted(&running).await?;
    match &wanted {
        Stop::Asked(signal) => info!(%signal, "stopping"),
        Stop::Failed(reason) => error!(%reason, "stopping"),
    }
    match wanted {
        Stop::Asked(_) => stop(running).await,
        Stop::Failed(reason) => {
            // What failed, a disk say, may fail whatever waits for it: then the end is not in order.
            match tokio::time::timeout(FAILED_STOP, stop(running)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => error!(%error, "not everything was stopped in order"),
                Err(_) => error!("not everything was stopped within {FAILED_STOP:?}"),
            }
            Err(anyhow!("stopped because of {reason}"))
        }
    }
}
