//! More is lost than a quorum survives: two of the three replicas of an open segment, for good.
//!
//! Nobody can say then what the segment's last records were. The partition must wait, and say so; an
//! operator ends the segment by force, as `forebay partition force-seal` does it, and declares lost what
//! no replica of sealed segments has. After that the cluster must take and give records again. What is
//! missing must be declared, and what the third replica has must not be missing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use forebay_client::{Admin, StartPosition};
use forebay_meta::model::Partition;
use forebay_record::{Offset, PartitionId, SegmentId};
use forebay_runtime::random::{Random, SeededRandom};

use crate::host::{Harm, Host, Order};
use crate::load::{self, Numbers, TOPIC};
use crate::restore;
use crate::scenes::{Scenes, Target, node};
use crate::world::World;

/// A partition is written within this time, or nothing can be lost of it.
const WRITTEN: Duration = Duration::from_secs(30);
/// The operator is done within this time.
const FORCED: Duration = Duration::from_secs(400);
/// One partition tells its end within this time where it is served.
const SERVED: Duration = Duration::from_secs(8);

/// Loses two replicas, does what the runbook says, lets clients write and reads everything.
///
/// # Errors
/// Where the cluster does not come back, or gives up what it need not.
pub async fn lose_quorum(world: &World, hosts: &[Host], numbers: &Arc<Numbers>) -> anyhow::Result<()> {
    let early = gaps(world);
    anyhow::ensure!(early.is_empty(), "declared lost before anything was: {early:?}");
    let stop = Arc::new(AtomicBool::new(false));
    let producer = load::produce(world.clone(), 90, Arc::clone(numbers), Arc::clone(&stop));
    let producer = tokio::spawn(producer);
    let kept = lose(world, hosts).await;
    let forced = async {
        let admin = load::reach(world, "operator", 0).await?.admin();
        while !force(world, &admin).await {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        stop.store(true, Ordering::Relaxed);
        producer.await.context("a producer panicked")?;
        // What is lost of sealed segments shows only once repairs of them have failed.
        let goes_on = async {
            loop {
                tokio::time::sleep(Duration::from_secs(5)).await;
                force(world, &admin).await;
            }
        };
        tokio::select! {
            served = load::serve(world, numbers) => served,
            () = goes_on => Ok(()),
        }
    };
    let forced = tokio::time::timeout(FORCED, forced).await;
    forced
        .context("not all partitions are served after a quorum was lost and an operator did what he can")??;
    for (partition, gap) in gaps(world) {
        for (segment, (base, tail)) in kept.range(first(partition)..=last(partition)) {
            anyhow::ensure!(
                gap.end <= *base || gap.base >= *tail,
                "{} to {} is declared lost, and a replica has {segment} up to {tail}",
                gap.base,
                gap.end
            );
        }
    }
    Ok(())
}

const fn first(partition: PartitionId) -> SegmentId {
    SegmentId {
        partition,
        epoch: forebay_record::Epoch(0),
        seq: 0,
    }
}

const fn last(partition: PartitionId) -> SegmentId {
    SegmentId {
        partition,
        epoch: forebay_record::Epoch(u32::MAX),
        seq: u32::MAX,
    }
}

fn gaps(world: &World) -> Vec<(PartitionId, forebay_meta::model::Gap)> {
    let all = world.records().into_iter();
    all.flat_map(|record| record.gaps.into_iter().map(move |gap| (record.id, gap)))
        .collect()
}

/// What is left of open segments: base, and the end of the longest copy.
type Kept = BTreeMap<SegmentId, (Offset, Offset)>;

/// Takes two replicas and the owner away from a partition that is being written.
async fn lose(world: &World, hosts: &[Host]) -> Kept {
    let random = SeededRandom::stream(world.seed, 0x1057);
    let scenes = Scenes::new(world, hosts);
    let begun = tokio::time::Instant::now();
    let mut target: Option<Target> = None;
    while target.is_none() && begun.elapsed() < WRITTEN {
        tokio::time::sleep(Duration::from_millis(random.range(300, 2_000))).await;
        target = scenes.target().filter(|found| found.replicas.len() >= 3);
    }
    let Some(Target { owner, replicas, .. }) = target else {
        tracing::info!(target: "sim", "no partition is written: nothing is lost");
        return Kept::new();
    };
    let at = usize::try_from(random.range(0, replicas.len() as u64)).unwrap_or_default();
    let survivor = replicas
        .get(at)
        .copied()
        .unwrap_or(node(forebay_record::NodeId(1)));
    if random.range(0, 2) == 0 {
        // It lags, so that it lacks what is acknowledged.
        world.network.block(&owner.to_string(), &survivor.to_string());
        tokio::time::sleep(Duration::from_millis(random.range(10, 1_000))).await;
    }
    tracing::info!(target: "sim", %owner, %survivor, ?replicas, "two replicas are lost for good");
    let down = Duration::from_millis(random.range(50, 3_000));
    let gone: Vec<_> = replicas.into_iter().filter(|id| *id != survivor).collect();
    for host in hosts {
        let harm = if gone.contains(&host.id) {
            Harm::Wipe
        } else {
            Harm::None
        };
        if host.id == owner || gone.contains(&host.id) {
            host.order(Order::Kill { harm, down });
        }
    }
    // Their supervisors have heard it.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let kept = kept(world, |number| gone.iter().all(|id| id.number != number)).await;
    world.network.unblock_all();
    kept
}

/// What the nodes that are left have of open segments.
async fn kept(world: &World, is_left: impl Fn(u32) -> bool) -> Kept {
    let records = world.records();
    let mut kept = Kept::new();
    for (number, node) in world.storage_nodes() {
        if !is_left(number) {
            continue;
        }
        let mut after = None;
        while let Ok(page) = restore::page(&node, after.take()).await {
            for one in &page.segments {
                let open = records.iter().filter_map(Partition::open).find(|open| {
                    (open.id.partition.0, open.id.epoch.0, open.id.seq)
                        == (one.partition_id, one.epoch, one.seq)
                });
                let Some(open) = open else { continue };
                let counts = open.generation_of(forebay_record::NodeId(number)) == Some(node.generation());
                if counts && !one.limbo {
                    let (_, tail) = kept.entry(open.id).or_insert((open.base, open.base));
                    *tail = (*tail).max(Offset(one.tail));
                }
            }
            after = page.segments.last().cloned();
            if !page.more || after.is_none() {
                break;
            }
        }
    }
    kept
}

/// What an operator does who looks at all partitions once. True where all are served.
async fn force(world: &World, admin: &Admin) -> bool {
    let mut served = true;
    for partition in 0..world.options.partitions {
        match admin.plan_force_seal(TOPIC, partition, None, None).await {
            Ok(planned) if planned.still_possible.is_empty() => {
                tracing::info!(target: "sim", partition, ?planned, "sealed by force");
                if let Err(error) = admin.force_seal(TOPIC, partition, planned, false).await {
                    tracing::info!(target: "sim", partition, %error, "not sealed by force");
                }
            }
            Ok(planned) => {
                tracing::info!(target: "sim", partition, why = planned.still_possible, "the operator waits");
            }
            Err(error) => tracing::debug!(target: "sim", partition, %error, "nothing to force"),
        }
        match admin.plan_declare_lost(TOPIC, partition).await {
            Ok(planned) if planned.still_possible.is_empty() && !planned.segments.is_empty() => {
                tracing::info!(target: "sim", partition, ?planned, "declared lost");
                let declared = admin
                    .declare_lost(TOPIC, partition, planned.segments, false)
                    .await;
                if let Err(error) = declared {
                    tracing::info!(target: "sim", partition, %error, "not declared lost");
                }
                served = false;
            }
            Ok(planned) if !planned.segments.is_empty() => served = false,
            Ok(_) => {}
            Err(error) => tracing::debug!(target: "sim", partition, %error, "nothing to declare lost"),
        }
        let wanted = vec![(TOPIC.to_owned(), partition, StartPosition::Latest)];
        let end = tokio::time::timeout(SERVED, admin.list_offsets(wanted)).await;
        let told = matches!(&end, Ok(Ok(ends)) if ends.iter().all(|end| end.offset.is_some()));
        served &= told;
    }
    served
}
