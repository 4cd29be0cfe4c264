//! `storage drain` and `storage undrain`: emptying a storage node, and taking that back.
//!
//! What is wanted is written down in the cluster, which does the rest by itself: waiting for it only
//! watches.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use forebay_client::Admin;
use forebay_proto::v1;

use super::view::Described;
use crate::output::{FormatArgs, bytes};

/// Between two looks, where a look takes no longer.
const LOOK: Duration = Duration::from_secs(2);
/// A look may take this part of the time.
const LOOK_SHARE: u32 = 5;

/// What to empty.
#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    /// Number of the storage node
    pub id: u32,
    /// Wait until nothing is left, and show how far it is
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}

/// What not to empty any more.
#[derive(Debug, clap::Args)]
pub struct UndrainArgs {
    /// Number of the storage node
    pub id: u32,
    #[command(flatten)]
    pub format: FormatArgs,
}

/// Empties a node.
pub async fn run(args: DrainArgs, admin: &Admin) -> anyhow::Result<()> {
    let id = args.id;
    let set = admin
        .set_storage_node_state(id, v1::StorageNodeState::Draining, false)
        .await
        .with_context(|| format!("cannot drain storage node {id}"))?;
    let mut found = Described::from(set);
    if args.wait {
        found = wait(id, found, admin).await?;
    }
    args.format.print(&found, |found| {
        if found.is_empty() {
            let stays = match found.unrecorded_bytes() {
                0 => String::new(),
                stays => format!(", but for {} of partitions that have no record", bytes(stays)),
            };
            format!(
                "storage node {id} is empty{stays}; forebay storage remove {id} takes it out of the cluster"
            )
        } else {
            format!(
                "storage node {id} is being emptied: {} left; forebay storage drain {id} --wait shows how far it is",
                found.left()
            )
        }
    })
}

/// Watches until nothing is left.
async fn wait(id: u32, mut found: Described, admin: &Admin) -> anyhow::Result<Described> {
    let mut progress = Progress::new(&found);
    while !found.is_empty() {
        let eta = progress
            .eta(&found)
            .map(shown)
            .unwrap_or_else(|| "unknown".to_owned());
        eprintln!("storage node {id}: {} left, ETA {eta}", found.left());
        let asked = Instant::now();
        tokio::time::sleep(LOOK.max(progress.look * LOOK_SHARE)).await;
        let looked = Instant::now();
        found = admin
            .describe_storage_node(id)
            .await
            .with_context(|| format!("cannot describe storage node {id}"))?
            .into();
        progress.look = looked.elapsed();
        progress.passed += asked.elapsed();
        let state = found.node.state.as_str();
        anyhow::ensure!(
            state == "DRAINING" || state == "UNREACHABLE",
            "storage node {id} is {state} now: nobody empties it any more"
        );
    }
    Ok(found)
}

/// How fast it goes: what was there at first, and since when.
struct Progress {
    bytes: u64,
    segments: u64,
    passed: Duration,
    look: Duration,
}

impl Progress {
    fn new(found: &Described) -> Self {
        Self {
            bytes: found.bytes.max(found.leftover_bytes()),
            segments: found.segments_open + found.segments_sealed,
            passed: Duration::ZERO,
            look: Duration::ZERO,
        }
    }

    /// Time that is left at the speed so far, by bytes, or by segments where no bytes are known.
    fn eta(&self, found: &Described) -> Option<Duration> {
        let segments = found.segments_open + found.segments_sealed;
        let by = |first: u64, left: u64| {
            let done = first.checked_sub(left).filter(|done| *done > 0)?;
            let seconds = self.passed.as_secs_f64() * left as f64 / done as f64;
            Duration::try_from_secs_f64(seconds).ok()
        };
        let left = found.bytes.max(found.leftover_bytes());
        if left > 0 {
            by(self.bytes, left)
        } else {
            by(self.segments, segments)
        }
    }
}

fn shown(left: Duration) -> String {
    let seconds = left.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{}s", seconds.max(1)),
        (0, minutes, seconds) => format!("{minutes}min {seconds}s"),
        (hours, minutes, _) => format!("{hours}h {minutes}min"),
    }
}

/// Lets a node take new segments again.
pub async fn undrain(args: UndrainArgs, admin: &Admin) -> anyhow::Result<()> {
    let id = args.id;
    let set = admin
        .set_storage_node_state(id, v1::StorageNodeState::Active, false)
        .await
        .with_context(|| format!("cannot undrain storage node {id}"))?;
    args.format.print(&Described::from(set), |_| {
        format!("storage node {id} takes new segments again")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(bytes: u64, sealed: u64) -> Described {
        v1::DescribeStorageNodeResponse {
            node: None,
            holdings: Some(v1::StorageNodeHoldings {
                segments_sealed: sealed,
                bytes,
                ..v1::StorageNodeHoldings::default()
            }),
        }
        .into()
    }

    #[test]
    fn the_time_left_follows_the_speed_so_far() {
        let mut progress = Progress::new(&left(1_000, 4));
        assert_eq!(progress.eta(&left(1_000, 4)), None, "nothing is known yet");
        progress.passed = Duration::from_secs(10);
        assert_eq!(progress.eta(&left(1_000, 4)), None, "nothing has moved");
        assert_eq!(progress.eta(&left(750, 3)), Some(Duration::from_secs(30)));
        assert_eq!(progress.eta(&left(0, 2)), Some(Duration::from_secs(10)));
        assert_eq!(progress.eta(&left(2_000, 5)), None, "more than at first");
    }

    #[test]
    fn a_time_is_shown_in_the_two_units_that_matter() {
        for (seconds, text) in [(0, "1s"), (59, "59s"), (61, "1min 1s"), (7_322, "2h 2min")] {
            assert_eq!(shown(Duration::from_secs(seconds)), text);
        }
    }
}
