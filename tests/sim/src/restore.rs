//! A metadata store that was put back to an earlier state, and the operator's way on.
//!
//! First everything ends and the store goes back: nobody may serve as if nothing had been. Then the
//! operator raises the incarnation, as `forebay metadata raise-incarnation` does it: brokers and proxies
//! stay down until the records are brought together with what storage nodes hold. After that the cluster
//! must take and give records again, and only what was declared may be missing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use forebay_history::{Event, Range};
use forebay_meta::model::Partition;
use forebay_meta::restore::{self, FoundRun, Inventory};
use forebay_meta::store::{Entry, Image, scan};
use forebay_meta::{cluster, keys};
use forebay_proto::v1;
use forebay_proto::v1::storage_node_server::StorageNode as _;
use forebay_record::NodeId;
use forebay_runtime::clock::Clock;
use forebay_runtime::random::Random;
use forebay_runtime::tasks::Tasks;
use forebay_storage_node::StorageNode;
use forebay_tier::{Manifests, find_unnamed};

use crate::host::{Harm, Host, Order, Role};
use crate::load::{self, Numbers};
use crate::rest;
use crate::world::World;

/// Host from which the operator works.
const OPERATOR: &str = "operator";
/// Entries with one prefix.
const ENTRIES_MAX: usize = 10_000;
/// Storage nodes run with the new incarnation, and the cluster serves again, within this time.
const RAISED: Duration = Duration::from_secs(180);

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

/// Does what the runbook says, lets clients write and reads everything.
///
/// # Errors
/// Where the cluster does not come back.
pub async fn raise(world: &World, hosts: &[Host], numbers: &Arc<Numbers>) -> anyhow::Result<()> {
    hosts.iter().for_each(|host| host.order(Order::Halt));
    tokio::time::sleep(Duration::from_secs(5)).await;
    let tasks = Tasks::new(OPERATOR);
    let raised = tokio::time::timeout(RAISED, bring_together(world, hosts, &tasks)).await;
    tasks.abort();
    raised.context("storage nodes do not come back with the new incarnation")??;
    let others = hosts.iter().filter(|host| host.id.role != Role::Storage);
    others.for_each(|host| host.order(Order::Go));
    let serves = tokio::time::timeout(RAISED, load::serve(world, numbers)).await;
    serves.context("the cluster does not serve after its incarnation was raised")?
}

async fn bring_together(world: &World, hosts: &[Host], tasks: &Tasks) -> anyhow::Result<()> {
    let store = world
        .store
        .client(world.network.wire(OPERATOR), tasks.group("raising"));
    let raised = restore::raise(&*store).await?;
    tracing::info!(target: "sim", incarnation = raised.incarnation, "incarnation raised");
    world.store.raise();
    let nodes = hosts.iter().filter(|host| host.id.role == Role::Storage);
    nodes.for_each(|host| host.order(Order::Go));
    // Again, with the revisions of the new incarnation.
    let store = world
        .store
        .client(world.network.wire(OPERATOR), tasks.group("restoring"));
    let all = world.options.nodes as usize;
    loop {
        let nodes = world.storage_nodes();
        let ready = |incarnation| incarnation == raised.incarnation;
        if nodes.len() == all && nodes.iter().all(|(_, node)| ready(node.status().incarnation)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let held = inventory(world).await?;
    let (entries, _) = scan(&*store, keys::PARTITIONS, ENTRIES_MAX).await?;
    let found = objects(world, entries.iter()).await?;
    let highest = held
        .partitions()
        .chain(found.iter().map(|one| one.segment.partition));
    restore::skip_ids(&*store, highest.max()).await?;
    for entry in &entries {
        let before = Partition::decode(&entry.value)?;
        let of_one = held.of(before.id);
        let of = |one: &&FoundRun| one.segment.partition == before.id;
        let runs: Vec<_> = found.iter().filter(of).cloned().collect();
        let now_ms = world.clock.now_unix_ms();
        let planned = restore::plan(&before, of_one, &runs, now_ms, world.random.u64());
        let nodes = of_one.values();
        let nodes = nodes.map(|one| (one.id.to_string(), one.base, one.copies.clone()));
        tracing::debug!(target: "sim", record = ?before, held = ?nodes.collect::<Vec<_>>(), "brought together");
        for gap in &planned.lost {
            tracing::info!(target: "sim", partition = %before.id, base = %gap.base, end = %gap.end, why = gap.reason, "declared lost");
            world.note(Event::GapDeclared {
                partition: u64::from(before.number),
                range: Range {
                    from: gap.base.get(),
                    until: gap.end.get(),
                },
            });
        }
        restore::store_record(&*store, entry, &planned.record).await?;
    }
    let (_, record) = cluster::stored(&*store).await?.context("there is no cluster")?;
    anyhow::ensure!(record.restoring, "somebody else ended the restore");
    restore::finish(&*store).await?;
    Ok(())
}

/// What the object store has and no record names.
async fn objects(world: &World, entries: impl Iterator<Item = &Entry>) -> anyhow::Result<Vec<FoundRun>> {
    if !world.options.offload {
        return Ok(Vec::new());
    }
    let records: Result<Vec<_>, _> = entries.map(|entry| Partition::decode(&entry.value)).collect();
    let bucket = rest::bucket(world, OPERATOR);
    let manifests = Manifests::new(bucket.clone(), 1 << 20);
    let found = find_unnamed(&bucket, &manifests, &records?, &*world.random).await?;
    for (name, why) in &found.unusable {
        tracing::info!(target: "sim", name, why, "an object that nothing names cannot be used");
    }
    for one in &found.runs {
        tracing::info!(target: "sim", segment = %one.segment, base = %one.run.base, end = %one.run.end, object = one.run.object, "nothing names it");
    }
    Ok(found.runs)
}

/// What all nodes hold.
async fn inventory(world: &World) -> anyhow::Result<Inventory> {
    let mut held = Inventory::default();
    for (number, node) in world.storage_nodes() {
        let mut after = None;
        loop {
            let page = page(&node, after.take()).await?;
            for one in &page.segments {
                held.take(NodeId(number), node.generation(), one);
            }
            after = page.segments.last().cloned();
            if !page.more || after.is_none() {
                break;
            }
        }
    }
    Ok(held)
}

/// What a node holds after a segment.
///
/// # Errors
/// Where the node has stopped.
pub async fn page(
    node: &StorageNode,
    after: Option<v1::InventorySegment>,
) -> anyhow::Result<v1::InventoryResponse> {
    let request = tonic::Request::new(v1::InventoryRequest { after });
    Ok(node.control().inventory(request).await?.into_inner())
}
