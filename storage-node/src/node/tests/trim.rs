//! What a running node lets go, by real records, and how its disk stays bounded.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use forebay_meta::keys;
use forebay_meta::model::{Partition, Run, Sealed, Segment};
use forebay_meta::store::{Op, Txn};
use forebay_record::{BrokerId, Epoch, SegmentId, SessionId, Token};
use uuid::Uuid;

use super::*;

const GRACE: HumanDuration = HumanDuration::millis(40);
const FILES: u64 = 24;

/// A node that lets go soon, on a small disk.
async fn start(world: &World) -> StorageNode {
    let config = Config {
        trim_grace: GRACE,
        disk_budget_bytes: ByteSize::mib(FILES),
        ..world.config()
    };
    StorageNode::start(config, world.environment()).await.unwrap()
}

fn linked(writer: &Writer, base: u64) -> Segment {
    Segment {
        id: writer.segment,
        token: writer.token,
        base: Offset(base),
        end: None,
        ack_quorum: 1,
        replicas: vec![(NODE, GENERATION)],
        bytes: 0,
        sealed_ms: 0,
    }
}

/// A partition at the epoch of [`segment`], whose log begins at 10 and is empty.
fn granted() -> Partition {
    let mut record = Partition::new(segment(1).partition, Uuid::from_u128(1), 0);
    record.log_start = Offset(10);
    let record = record.grant(BrokerId(1), SessionId(5), 1).unwrap();
    record.grant(BrokerId(1), SessionId(6), 2).unwrap()
}

fn roll(record: &Partition, end: u64, next: &Writer) -> Partition {
    let sealed = Sealed::default();
    record
        .seal(Offset(end), sealed, Some(linked(next, end)), 3)
        .unwrap()
}

fn offload(record: &Partition) -> Partition {
    let oldest = &record.chain[0];
    let run = Run {
        base: oldest.base,
        end: oldest.end.unwrap(),
        object: format!("d/{}", oldest.id.seq),
        position: 0,
        len: 1,
        crc32c: 0,
        max_timestamp_ms: 0,
    };
    record.offload(oldest.id, &[run], 4).unwrap()
}

async fn put(world: &World, record: &Partition) {
    let put = Op::put(keys::partition(record.id), record.encode());
    assert!(world.meta.txn(Txn::new().then(put)).await.unwrap().succeeded);
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waited)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

fn holds(node: &StorageNode, id: SegmentId) -> bool {
    node.inner.shared.index.get(id).is_some()
}

fn metric(world: &World, name: &str) -> u64 {
    let text = world.metrics.encode().unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
    line.and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .unwrap_or_default()
}

/// Waits for a whole round after now: each reads at least one record.
async fn a_round(world: &World) {
    let before = metric(world, "forebay_storage_trim_reads_total");
    until("another round", async || {
        metric(world, "forebay_storage_trim_reads_total") > before + 1
    })
    .await;
}

/// Bytes of all files in the node's folder.
fn folder_bytes(world: &World) -> u64 {
    std::fs::read_dir(world.data())
        .unwrap()
        .filter_map(|entry| entry.ok()?.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

impl Client {
    /// Writes so many frames of 100 kB.
    async fn fill(&mut self, writer: &mut Writer, frames: u32) {
        if writer.number == 0 {
            self.append(writer.open()).await;
        }
        for _ in 0..frames {
            self.append(writer.data_of_len(5, 100_000)).await;
        }
        self.acked(writer).await;
    }

    async fn refusal(&mut self, frame: Frame) -> Refusal {
        self.append(frame).await;
        loop {
            match self.recv().await {
                FromNode::NotTaken { refusal, .. } => return refusal,
                // Sent unasked, whenever the disk is that full.
                FromNode::Urge(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn what_was_offloaded_is_given_up_with_its_files_and_stays_closed_over_a_kill() {
    let world = World::new().await;
    let node = start(&world).await;
    let mut client = Client::connect(&node).await;
    let mut first = Writer::new(1, 10);
    client.fill(&mut first, 45).await;
    let mut second = Writer::new(2, first.next.0);
    client.fill(&mut second, 3).await;
    let files = node.status().journal_files;
    assert!(files > 4, "{files}");

    let record = granted().open_first(linked(&first, 10), 3).unwrap();
    let record = roll(&record, first.next.0, &second);
    put(&world, &record).await;
    a_round(&world).await;
    assert!(holds(&node, first.segment) && holds(&node, second.segment));
    assert_eq!(node.status().segments_sealed, 1);

    put(&world, &offload(&record)).await;
    until("the first segment is gone", async || !holds(&node, first.segment)).await;
    until("its files are gone", async || node.status().journal_files < 3).await;
    assert_eq!(
        client.read(Client::read_of(&first, 10, 99)).await,
        Err(NodeFailure::NotFound)
    );
    assert_eq!(client.refusal(first.data(1)).await, Refusal::Closed);
    let until_end = Client::read_of(&second, second.next.0 - 15, second.next.0);
    assert!(client.read(until_end).await.unwrap().len() > 300_000);
    until("they are counted", async || {
        metric(&world, "forebay_storage_trim_files_total") >= 3
    })
    .await;

    node.kill().await;
    let node = start(&world).await;
    let mut client = Client::connect(&node).await;
    assert!(!holds(&node, first.segment) && holds(&node, second.segment));
    assert_eq!(client.refusal(Writer::new(1, 10).open()).await, Refusal::Closed);
    assert!(client.read(until_end).await.unwrap().len() > 300_000);
    assert_eq!(node.status().floor, first.token.0);
    node.shutdown().await;
}

#[tokio::test]
async fn without_a_record_nothing_is_given_up() {
    let world = World::new().await;
    let node = start(&world).await;
    let mut client = Client::connect(&node).await;
    let mut writer = Writer::new(1, 10);
    client.write(&mut writer, 3).await;
    until("the missing record is counted", async || {
        metric(&world, "forebay_storage_trim_partitions_without_record") == 1
    })
    .await;
    a_round(&world).await;
    assert!(holds(&node, writer.segment));
    // A damaged record is no evidence either.
    let put = Op::put(
        keys::partition(writer.segment.partition),
        Bytes::from_static(b"x"),
    );
    world.meta.txn(Txn::new().then(put)).await.unwrap();
    a_round(&world).await;
    assert!(holds(&node, writer.segment));
    assert_eq!(metric(&world, "forebay_storage_trim_segments_total"), 0);
    node.shutdown().await;
}

#[tokio::test]
async fn the_copy_of_a_recovery_in_progress_stays_where_an_orphan_goes() {
    let world = World::new().await;
    let node = start(&world).await;
    let mut client = Client::connect(&node).await;
    // Epoch 2 was granted and links nothing yet; what epoch 1 left was never linked.
    let mut carry = Writer::new(1, 10);
    let mut orphan = Writer::new(9, 10);
    orphan.segment.epoch = Epoch(1);
    orphan.hash = forebay_record::frame::ChainHash::seed(orphan.segment);
    orphan.token = Token(50);
    put(&world, &granted()).await;
    client.write(&mut carry, 3).await;
    client.write(&mut orphan, 3).await;
    until("the orphan is gone", async || !holds(&node, orphan.segment)).await;
    a_round(&world).await;
    assert!(holds(&node, carry.segment));
    let holds_any = async |ids: Vec<u64>| {
        let request = tonic::Request::new(v1::HoldsRequest { partition_ids: ids });
        let answer = node.control().holds(request).await;
        answer.map(|answer| answer.into_inner().partition_ids)
    };
    let id = carry.segment.partition.0;
    assert_eq!(holds_any(vec![1, id, 99]).await.unwrap(), [id]);
    // Its link makes it safe for good, a tombstone lets it go.
    let record = granted().open_first(linked(&carry, 10), 3).unwrap();
    put(&world, &record).await;
    a_round(&world).await;
    assert!(holds(&node, carry.segment));
    put(&world, &record.delete(9)).await;
    until("the deleted partition is gone", async || {
        holds_any(vec![id]).await.unwrap().is_empty()
    })
    .await;
    let error = holds_any(vec![1; 1001]).await.unwrap_err();
    assert!(error.message().contains("1001"), "{error}");
    node.shutdown().await;
}

#[tokio::test]
async fn a_full_disk_urges_its_owners_never_exceeds_its_budget_and_takes_data_again() {
    let world = World::new().await;
    let node = start(&world).await;
    let mut client = Client::connect(&node).await;
    let mut first = Writer::new(1, 10);
    client.fill(&mut first, 30).await;
    let mut second = Writer::new(2, first.next.0);
    let record = granted().open_first(linked(&first, 10), 3).unwrap();
    let record = roll(&record, first.next.0, &second);
    put(&world, &record).await;
    client.append(second.open()).await;
    client.acked(&second).await;
    // Nothing is offloaded, and the owner goes on writing.
    let (mut urged, mut refused) = (Vec::new(), 0);
    while refused == 0 {
        let before = second.clone();
        client.append(second.data_of_len(5, 100_000)).await;
        loop {
            match client.recv().await {
                FromNode::Urge(segments) => urged = segments,
                FromNode::Acks { acks, .. } if acks.iter().any(|ack| ack.tail == second.next) => break,
                FromNode::Acks { .. } => {}
                FromNode::NotTaken { refusal, .. } => {
                    assert_eq!(refusal, Refusal::DiskFull);
                    second = before;
                    refused += 1;
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(folder_bytes(&world) <= FILES << 20, "{}", folder_bytes(&world));
    }
    assert_eq!(
        client.refusal(Writer::new(3, 10).open()).await,
        Refusal::NoNewSegments
    );
    // Sent unasked, and again as long as it lasts.
    while urged.is_empty() {
        if let FromNode::Urge(segments) = client.recv().await {
            urged = segments;
        }
    }
    assert_eq!(urged.first(), Some(&first.segment));

    // The owner seals without opening, and offloads.
    let sealed = record.seal(second.next, Sealed::default(), None, 6).unwrap();
    put(&world, &offload(&sealed)).await;
    until("the oldest files are free", async || !holds(&node, first.segment)).await;
    put(&world, &offload(&offload(&sealed))).await;
    until("all files are free", async || node.status().journal_files == 1).await;
    let mut third = Writer::new(3, second.next.0);
    client.fill(&mut third, 40).await;
    assert!(folder_bytes(&world) <= FILES << 20);
    let status = node.status();
    assert!(status.disk_used_bytes <= status.disk_budget_bytes && status.failure.is_empty());
    node.shutdown().await;
}
