//! `serve`: some roles of a cluster.

use std::path::PathBuf;

use tracing::info;

use super::{Usage, end_log, lifetime, log};
use crate::server::{Config, Role, start_roles};

/// Which roles, and how they are configured.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// Roles of this process: proxy, broker, storage, controller
    #[arg(long, required = true, value_delimiter = ',', value_name = "ROLE,...")]
    pub roles: Vec<Role>,
    /// A TOML file; may be repeated, the later over the earlier
    #[arg(long = "config", value_name = "FILE")]
    pub configs: Vec<PathBuf>,
    /// A setting, such as storage.data_dir=/data; over files and environment; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

/// Serves until stopped.
pub async fn run(args: ServeArgs, log_level: Option<String>) -> anyhow::Result<()> {
    let roles = once_each(args.roles)?;
    let layers = lifetime::layers(&args.configs, &args.settings, log_level)?;
    let config: Config = layers.load()?;
    let logs = log(&config.telemetry, &config.service(&roles))?;
    let running = start_roles(&roles, &layers, logs.tracer()).await?;
    let named: Vec<_> = roles.iter().map(ToString::to_string).collect();
    info!(roles = named.join(","), grpc = %running.grpc_address(), admin = %running.admin_address(), "ready");
    let served = lifetime::serve(running).await;
    end_log(logs).await;
    served
}

fn once_each(roles: Vec<Role>) -> Result<Vec<Role>, Usage> {
    let mut sorted = roles.clone();
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        if let [first, second] = pair
            && first == second
        {
            return Err(Usage(format!("role {first} is given twice")));
        }
    }
    Ok(roles)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_role_twice_is_refused() {
        assert!(once_each(Role::ALL.to_vec()).is_ok());
        let error = once_each(vec![Role::Broker, Role::Proxy, Role::Broker]).unwrap_err();
        assert_eq!(error.0, "role broker is given twice");
    }
}
