//! What is left once nothing is written: what each storage node holds of the log (H7), what is on disks
//! and in the object store (H10).
//!
//! Looks through the product's own reads, from a host of its own. Where sealed segments go to the object
//! store, it first waits until they did, until nodes forgot them and until garbage was collected: what is
//! still there after that is noted, and the history checker says whether it should be.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use forebay_history::{Event, Value};
use forebay_meta::cluster;
use forebay_meta::model::{Partition, Segment};
use forebay_proto::data::endpoint::{ClientLink, Dialer, Exchange, ReplicaProtocol};
use forebay_proto::data::replica::{FromNode, Hello, ReadRequest, ToNode};
use forebay_record::batch::{Header, Limits, decode};
use forebay_record::{Generation, NodeId, Offset};
use forebay_runtime::clock::Clock;
use forebay_runtime::metrics::Metrics;
use forebay_runtime::tasks::Tasks;
use forebay_tier::{Bucket, Manifests, ObjectKind, ObjectName, ObjectStoreConfig};

use crate::network::DATA;
use crate::world::World;

/// Host that looks.
const CHECKER: &str = "checker";
/// All that goes has gone this long after the last write: owners tell once a minute which names they are
/// done with, and garbage waits for that.
const SETTLES: Duration = Duration::from_secs(240);
/// Nodes that ended last are up again after this long.
const COMES_UP: Duration = Duration::from_secs(60);
/// Bytes that a node may hold of an open segment without records: its first frame, with what is known of
/// producers.
const OPEN_BYTES_MAX: u64 = 64 << 10;
/// Bytes of one read.
const READ_BYTES: u32 = 1 << 20;
/// A node that says nothing for so long is not asked further.
const ANSWER: Duration = Duration::from_secs(10);

/// Notes copies, disks and objects.
///
/// # Errors
/// Where nodes or the object store cannot be asked.
pub async fn note(world: &World) -> anyhow::Result<()> {
    let tasks = Tasks::new(CHECKER);
    let noted = async {
        let begun = tokio::time::Instant::now();
        // A node may be on its way up still.
        while let Err(error) = note_copies(world, &tasks).await {
            if begun.elapsed() > COMES_UP {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if world.options.offload {
            note_leftovers(world).await?;
        }
        anyhow::Ok(())
    };
    let noted = noted.await;
    tasks.abort();
    noted
}

// ---- copies ----------------------------------------------------------------------------------

/// Asks every replica that a record names for what it holds below the sealed end, or of what is committed.
async fn note_copies(world: &World, tasks: &Tasks) -> anyhow::Result<()> {
    let store = world
        .store
        .client(world.network.wire(CHECKER), tasks.group("metadata"));
    let (_, cluster) = cluster::stored(&*store).await?.context("there is no cluster")?;
    let connector = world.network.connector(CHECKER);
    let dialer = Dialer::<ReplicaProtocol>::new(connector, Exchange::default(), tasks.group("links"));
    for number in 1..=world.options.nodes {
        let node = NodeId(number);
        let mut link = dialer.dial(&format!("tcp://node-{number}:{DATA}")).await?;
        let hello = Hello {
            cluster: cluster.id.clone(),
            incarnation: cluster.incarnation,
            node,
            peer: CHECKER.to_owned(),
        };
        link.tx.send(ToNode::Hello(hello)).await?;
        let welcome = tokio::time::timeout(ANSWER, link.rx.recv()).await??;
        let Some(FromNode::Welcome { generation, .. }) = welcome else {
            anyhow::bail!("{node} does not welcome a reader: {welcome:?}");
        };
        for record in world.records() {
            for segment in &record.chain {
                // A generation that is gone has nothing; its place is taken by repair, or will be.
                if segment.generation_of(node) == Some(generation) {
                    let values = copy(&mut link, segment, generation).await?;
                    if !values.is_empty() {
                        world.note(Event::Copy {
                            source: format!("{node} in {}", segment.id),
                            partition: u64::from(record.number),
                            from: segment.base.get(),
                            values,
                        });
                    }
                }
            }
        }
    }
    Ok(())
}

/// What a node gives of a segment, from its base on: to the end, or as far as it has it.
async fn copy(
    link: &mut ClientLink<ReplicaProtocol>,
    segment: &Segment,
    generation: Generation,
) -> anyhow::Result<Vec<Value>> {
    let mut next = segment.base;
    let mut values = Vec::new();
    for request in 1.. {
        let read = ReadRequest {
            segment: segment.id,
            generation,
            from: next,
            // Of an open segment, what its owner told the node is committed.
            until: segment.end.unwrap_or(segment.base),
            max_bytes: READ_BYTES,
        };
        if segment.end.is_some_and(|end| next >= end) {
            break;
        }
        link.tx.send(ToNode::Read { request, read }).await?;
        let given = loop {
            match tokio::time::timeout(ANSWER, link.rx.recv()).await?? {
                Some(FromNode::Read { request: of, result }) if of == request => break result,
                Some(_) => {}
                None => anyhow::bail!("a node ended the connection while it was read"),
            }
        };
        let Ok(mut bytes) = given else { break };
        let before = next;
        while !bytes.is_empty() {
            next = take_batch(&mut bytes, next, &mut values)?;
        }
        if next == before {
            break;
        }
    }
    Ok(values)
}

/// Takes the values of one batch from an offset on; says where the next one begins.
fn take_batch(bytes: &mut Bytes, from: Offset, values: &mut Vec<Value>) -> anyhow::Result<Offset> {
    let header = Header::parse(bytes)?;
    let base = header.base_offset();
    let batch = bytes.split_to(header.len_bytes().min(bytes.len()));
    let decoded = decode(&batch, &Limits::default())?;
    let mut next = from;
    for record in decoded.records() {
        let record = record?;
        let offset = base.get() + u64::try_from(record.offset_delta)?;
        if offset >= from.get() {
            let number = record.value.and_then(|value| value.first_chunk::<8>());
            values.push(Value(number.map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))));
            next = Offset(offset + 1);
        }
    }
    Ok(next)
}

// ---- disks and objects -----------------------------------------------------------------------

/// What is named and what is there.
struct Objects {
    named: BTreeSet<String>,
    present: BTreeSet<String>,
}

/// Waits until everything has gone that goes, and notes what is there.
async fn note_leftovers(world: &World) -> anyhow::Result<()> {
    let bucket = bucket(world, CHECKER);
    // Garbage may have to stay longer than a run takes.
    let collected = world.options.garbage_grace < SETTLES / 2;
    let begun = tokio::time::Instant::now();
    loop {
        let offloaded = world
            .records()
            .iter()
            .all(|record| record.chain.iter().all(|segment| segment.end.is_none()));
        let objects = objects(world, &bucket).await?;
        let held = held(world);
        let settled = offloaded
            && (objects.named == objects.present || !collected)
            && held.iter().all(|(_, bytes, max)| bytes <= max);
        if !settled && begun.elapsed() < SETTLES {
            tokio::time::sleep(Duration::from_secs(2)).await;
            continue;
        }
        anyhow::ensure!(
            offloaded,
            "sealed segments are not in the object store after {SETTLES:?}"
        );
        for (node, bytes, bytes_max) in held {
            world.note(Event::NodeHeld {
                node: u64::from(node),
                bytes,
                bytes_max,
            });
        }
        let present = collected.then_some(&objects.present);
        let nothing = BTreeSet::new();
        for object in objects.named.union(present.unwrap_or(&nothing)) {
            world.note(Event::Object {
                object: object.clone(),
                referenced: objects.named.contains(object),
                present: objects.present.contains(object),
            });
        }
        return Ok(());
    }
}

/// What each node holds, and the most that open segments leave it.
fn held(world: &World) -> Vec<(u32, u64, u64)> {
    let records = world.records();
    let open: Vec<_> = records.iter().filter_map(Partition::open).collect();
    let mut held = Vec::new();
    for (number, node) in world.storage_nodes() {
        let of_node = |segment: &&&Segment| segment.generation_of(NodeId(number)).is_some();
        let count = open.iter().filter(of_node).count() as u64;
        held.push((number, node.status().bytes_held, (count + 1) * OPEN_BYTES_MAX));
    }
    held
}

/// The object store as a host sees it.
#[must_use]
pub fn bucket(world: &World, host: &str) -> Bucket {
    let clock: Arc<dyn Clock> = world.clock.clone();
    Bucket::over(
        world.objects.of_host(host),
        "simulated".to_owned(),
        &ObjectStoreConfig::default(),
        &Metrics::new(),
        clock,
    )
}

async fn objects(world: &World, bucket: &Bucket) -> anyhow::Result<Objects> {
    let manifests = Manifests::new(bucket.clone(), 0);
    let mut named = BTreeSet::new();
    for record in world.records() {
        named.extend(record.recent.iter().map(|run| run.object.clone()));
        let Some(manifest) = &record.manifest else {
            continue;
        };
        named.insert(manifest.object.clone());
        let root = manifests.root(record.id, manifest).await?;
        named.extend(root.pages.iter().map(|page| page.object.clone()));
        let runs = manifests
            .runs_from(record.id, manifest, Offset(0), usize::MAX)
            .await?;
        named.extend(runs.into_iter().map(|run| run.object));
    }
    let mut present = BTreeSet::new();
    for kind in ObjectKind::ALL {
        let list = bucket.list(kind.prefix(), |object| {
            if ObjectName::parse(&object.name).is_some() {
                present.insert(object.name);
            }
        });
        list.await?;
    }
    Ok(Objects { named, present })
}
