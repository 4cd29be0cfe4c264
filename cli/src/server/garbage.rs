//! Removes objects that no record names any more, from the process whose controller leads.
//!
//! The rule is `forebay_tier`'s and needs no leader: two collectors at a time do no harm, they only
//! list everything twice.

use std::sync::Arc;
use std::time::Duration;

use forebay_meta::controller::Controller;
use forebay_tier::{Collector, GcOptions, Round};

use super::process::Process;

/// Starts the rounds, which end with the process; `interval` lies between two of them.
pub(super) fn start(
    process: &Process,
    mut collector: Collector,
    interval: Duration,
    controller: &Controller,
) {
    let mut status = controller.subscribe();
    let clock = Arc::clone(&process.clock);
    let tasks = process.tasks.group("garbage");
    let stop = tasks.token();
    tasks.spawn("garbage", async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                led = status.wait_for(|status| status.leader) => if led.is_err() { return },
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = clock.sleep(interval) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                round = collector.round() => match round {
                    Ok(Round { deleted: 0, refused: false, garbage, listed, .. }) => {
                        tracing::debug!(listed, garbage, "no object to delete yet");
                    }
                    Ok(Round { deleted, refused, garbage, listed, .. }) => {
                        tracing::info!(listed, garbage, deleted, refused, "objects that nothing names");
                    }
                    Err(error) => tracing::warn!(%error, "garbage was not collected; it waits"),
                },
            }
        }
    });
}

/// How a configuration wants garbage to be collected.
pub(super) fn options(grace: Duration) -> GcOptions {
    GcOptions {
        grace,
        ..GcOptions::default()
    }
}
