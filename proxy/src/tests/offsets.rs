//! Positions: bounds from the owner, times from the pieces of its plan.

use forebay_proto::data::front::{PlanManifest, PlanRun, PlanSegment, Position, ReadPlan};
use forebay_proto::data::replica::{NodeFailure, ReadRequest};
use forebay_proto::v1::partition_position::Position as Asked;
use forebay_proto::v1::{ListOffsetsRequest, PartitionOffset, PartitionPosition};
use forebay_record::{PartitionId, SegmentId};
use tokio::task::JoinHandle;

use super::*;
use crate::fetch::lookup::pieces;

fn position(partition: u32, position: Option<Asked>) -> PartitionPosition {
    PartitionPosition {
        topic: "t".to_owned(),
        partition,
        position,
    }
}

fn asking(cluster: &Cluster, partitions: Vec<PartitionPosition>) -> JoinHandle<Vec<PartitionOffset>> {
    let mut client = cluster.client.clone();
    tokio::spawn(async move {
        let answer = client.list_offsets(ListOffsetsRequest { partitions }).await;
        answer.unwrap().into_inner().partitions
    })
}

fn segment(seq: u32, base: u64, until: u64, sealed: bool) -> PlanSegment {
    PlanSegment {
        segment: SegmentId {
            partition: PartitionId(100),
            epoch: Epoch(1),
            seq,
        },
        base: Offset(base),
        until: Offset(until),
        sealed,
        replicas: [1, 2].map(|node| (NodeId(node), Generation(1))).to_vec(),
    }
}

/// Two sealed segments and an open one, with records 12 to 29.
fn plan() -> ReadPlan {
    ReadPlan {
        epoch: Epoch(1),
        log_start: Offset(12),
        high_watermark: Offset(30),
        manifest: None,
        runs: Vec::new(),
        segments: vec![
            segment(1, 10, 15, true),
            segment(2, 15, 20, true),
            segment(3, 20, 30, false),
        ],
        gaps: Vec::new(),
    }
}

async fn answer_plan(talk: &mut Conversation<FrontProtocol>, plan: ReadPlan) {
    let ToBroker::Plan { request, .. } = talk.next().await else {
        panic!("no plan was asked for")
    };
    let result = Ok(plan);
    talk.say(FromBroker::Plan { request, result }).await;
}

async fn answer_position(talk: &mut Conversation<FrontProtocol>, expected: Position, offset: u64) {
    match talk.next().await {
        ToBroker::Offsets {
            request, position, ..
        } if position == expected => {
            let result = Ok(Some(Offset(offset)));
            talk.say(FromBroker::Offsets { request, result }).await;
        }
        other => panic!("{other:?}"),
    }
}

/// A storage node that holds batches, each of records at 1000, 1001, and so on.
fn serve(cluster: &Cluster, mut node: ScriptedNode, batches: Vec<Bytes>, tail: u64) {
    cluster.tasks.spawn("node", async move {
        let mut talk = node.accept().await;
        while let Ok(Some(message)) = talk.link.rx.recv().await {
            match message {
                ToNode::Lookup {
                    request,
                    read,
                    timestamp_ms,
                } => {
                    let result = look_up(&batches, read, timestamp_ms, tail);
                    talk.say(FromNode::Lookup { request, result }).await;
                }
                ToNode::Read { request, read } => {
                    let holds = |batch: &&Bytes| range_of(batch).contains(&read.from);
                    let result = batches
                        .iter()
                        .find(holds)
                        .cloned()
                        .ok_or(NodeFailure::Behind(Offset(tail)));
                    talk.say(FromNode::Read { request, result }).await;
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

fn range_of(batch: &Bytes) -> std::ops::Range<Offset> {
    let header = forebay_record::batch::Header::parse(batch).unwrap();
    header.base_offset()..header.end_offset()
}

fn look_up(
    batches: &[Bytes],
    read: ReadRequest,
    timestamp_ms: i64,
    tail: u64,
) -> Result<Option<Offset>, NodeFailure> {
    let found = batches.iter().find(|batch| {
        let range = range_of(batch);
        let reaches = forebay_record::batch::Header::parse(batch)
            .unwrap()
            .max_timestamp()
            >= timestamp_ms;
        range.end > read.from && range.end <= read.until && reaches
    });
    match found {
        Some(batch) => Ok(Some(range_of(batch).start)),
        None if tail < read.until.0 => Err(NodeFailure::Behind(Offset(tail))),
        None => Ok(None),
    }
}

#[tokio::test]
async fn bounds_are_the_owners_and_each_position_fails_on_its_own() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1)]);
    let mut broker = cluster.broker(1).await;
    let asked = vec![
        position(0, Some(Asked::Earliest(true))),
        position(0, None),
        position(9, Some(Asked::Latest(true))),
    ];
    let task = asking(&cluster, asked);
    let mut talk = broker.accept().await;
    answer_position(&mut talk, Position::Earliest, 4).await;
    let found = soon(task).await.unwrap();
    assert_eq!((found[0].offset, found[0].timestamp_ms), (Some(4), None));
    assert_eq!(found[1].error.as_ref().unwrap().code(), ErrorCode::InvalidRequest);
    assert_eq!(
        found[2].error.as_ref().unwrap().code(),
        ErrorCode::UnknownPartition
    );
}

#[tokio::test]
async fn a_time_is_the_lowest_offset_that_reaches_it_through_all_segments() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1)]);
    let mut broker = cluster.broker(1).await;
    // The first replica of every segment is behind; timestamps begin anew with each batch.
    let batches = vec![stored(10, 5), stored(15, 2), stored(17, 3), stored(20, 10)];
    let behind = cluster.node(1).await;
    serve(&cluster, behind, Vec::new(), 0);
    let whole = cluster.node(2).await;
    serve(&cluster, whole, batches, 30);
    let mut talk = None;
    for (time_ms, expected) in [
        // Offsets 10 and 11 reach it, and are not kept any more.
        (1_000, (12, 1_002)),
        (1_003, (13, 1_003)),
        // No batch before the open segment's reaches it.
        (1_005, (25, 1_005)),
        (1_009, (29, 1_009)),
    ] {
        let task = asking(&cluster, vec![position(0, Some(Asked::TimestampMs(time_ms)))]);
        let talk = match &mut talk {
            Some(talk) => talk,
            None => talk.insert(broker.accept().await),
        };
        answer_plan(talk, plan()).await;
        let found = soon(task).await.unwrap().remove(0);
        assert_eq!(
            (found.offset, found.timestamp_ms, found.error),
            (Some(expected.0), Some(expected.1), None),
            "{time_ms}"
        );
    }
}

#[tokio::test]
async fn that_nothing_reaches_a_time_is_said_only_of_a_confirmed_end() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1)]);
    let mut broker = cluster.broker(1).await;
    let node = cluster.node(1).await;
    let batches = vec![stored(10, 5), stored(15, 5), stored(20, 10), stored(30, 20)];
    serve(&cluster, node, batches, 50);
    let far = || vec![position(0, Some(Asked::TimestampMs(1_015)))];
    let task = asking(&cluster, far());
    let mut talk = broker.accept().await;
    answer_plan(&mut talk, plan()).await;
    answer_position(&mut talk, Position::Latest, 30).await;
    let found = soon(task).await.unwrap().remove(0);
    assert_eq!((found.offset, found.error), (None, None));

    // More was written meanwhile: that is searched too.
    let task = asking(&cluster, far());
    answer_plan(&mut talk, plan()).await;
    answer_position(&mut talk, Position::Latest, 50).await;
    let mut grown = plan();
    grown.high_watermark = Offset(50);
    grown.segments[2].until = Offset(50);
    answer_plan(&mut talk, grown).await;
    let found = soon(task).await.unwrap().remove(0);
    assert_eq!((found.offset, found.timestamp_ms), (Some(45), Some(1_015)));
}

#[test]
fn a_plan_is_searched_from_its_oldest_piece_to_its_newest() {
    let mut plan = plan();
    plan.manifest = Some(PlanManifest {
        object: "m".to_owned(),
        generation: 1,
        end: Offset(5),
        len: 1,
        crc32c: 0,
    });
    plan.runs = vec![PlanRun {
        base: Offset(5),
        end: Offset(10),
        object: "o".to_owned(),
        position: 0,
        len: 100,
        crc32c: 0,
        max_timestamp_ms: 0,
    }];
    let ends: Vec<u64> = pieces(&plan).map(|piece| piece.end().0).collect();
    assert_eq!(ends, [5, 10, 15, 20, 30]);
}
