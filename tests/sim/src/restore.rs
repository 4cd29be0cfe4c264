//! A metadata store that was put back to an earlier state: everything ends, the store goes back, and nobody
//! may serve as if nothing had been.

use std::time::Duration;

use forebay_meta::store::Image;

use crate::host::{Harm, Host, Order};
use crate::load::{self, Numbers};
use crate::world::World;

/// Kills everything and puts the metadata store back. Nobody may go on as if nothing had been: a scan
/// that ends now ends too early, which the history tells.
pub async fn go_back(world: &World, hosts: &[Host], image: Image, numbers: &Numbers) {
    tracing::info!(target: "sim", "the metadata store goes back");
    for host in hosts {
        host.order(Order::Kill {
            harm: Harm::None,
            down: Duration::from_secs(2),
        });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.store.restore(image);
    let scanned = tokio::time::timeout(Duration::from_secs(30), load::scan(world, 0, numbers)).await;
    match scanned {
        Ok(Ok(())) => tracing::info!(target: "sim", "the log was read after the store went back"),
        Ok(Err(error)) => tracing::info!(target: "sim", error = format!("{error:#}"), "refused"),
        Err(_) => tracing::info!(target: "sim", "nobody answers"),
    }
}
