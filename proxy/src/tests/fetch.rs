//! Fetch over gRPC: owners' tails, storage nodes behind them, and what they answer wrongly.

use forebay_proto::data::front::{Fetch, Fetched, PlanSegment, Position, ReadPlan};
use forebay_proto::data::replica::{NodeFailure, ReadRequest};
use forebay_proto::v1::{FetchRequest, FetchResponse, PartitionFetch};
use forebay_record::{PartitionId, SegmentId};

use super::*;

fn ask(partitions: &[(u32, u64)], min_bytes: u32, max_wait_ms: u32) -> FetchRequest {
    let partition = |(number, offset): &(u32, u64)| PartitionFetch {
        topic: "t".to_owned(),
        partition: *number,
        offset: *offset,
        max_bytes: 0,
    };
    FetchRequest {
        partitions: partitions.iter().map(partition).collect(),
        min_bytes,
        max_bytes: 1 << 20,
        max_wait_ms,
    }
}

fn found(high_watermark: u64, batches: Vec<Bytes>) -> Result<Fetched, Failure> {
    let (high_watermark, log_start) = (Offset(high_watermark), Offset(0));
    Ok(Fetched {
        high_watermark,
        log_start,
        batches,
        behind: false,
    })
}

impl Conversation<FrontProtocol> {
    async fn fetch(&mut self) -> Fetch {
        match self.next().await {
            ToBroker::Fetch(fetch) => fetch,
            other => panic!("{other:?}"),
        }
    }

    async fn fetched(&mut self, fetch: &Fetch, partitions: Vec<Result<Fetched, Failure>>) {
        self.say(FromBroker::Fetched {
            request: fetch.request,
            partitions,
        })
        .await;
    }

    async fn offsets(&mut self, expected: Position, answer: Option<u64>) {
        match self.next().await {
            ToBroker::Offsets {
                request, position, ..
            } if position == expected => {
                self.say(FromBroker::Offsets {
                    request,
                    result: Ok(answer.map(Offset)),
                })
                .await;
            }
            other => panic!("{other:?}"),
        }
    }

    async fn plan(&mut self, plan: ReadPlan) {
        match self.next().await {
            ToBroker::Plan { request, .. } => {
                self.say(FromBroker::Plan {
                    request,
                    result: Ok(plan),
                })
                .await
            }
            other => panic!("{other:?}"),
        }
    }
}

fn fetching(
    cluster: &Cluster,
    request: FetchRequest,
) -> tokio::task::JoinHandle<Result<FetchResponse, Status>> {
    let mut client = cluster.client.clone();
    tokio::spawn(async move { client.fetch(request).await.map(Response::into_inner) })
}

async fn done(task: tokio::task::JoinHandle<Result<FetchResponse, Status>>) -> FetchResponse {
    soon(task).await.unwrap().unwrap()
}

#[tokio::test]
async fn partitions_of_two_owners_come_back_in_the_order_asked_with_untouched_bytes() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1), (2, 1), (1, 1)]);
    let (mut one, mut two) = (cluster.broker(1).await, cluster.broker(2).await);
    let task = fetching(&cluster, ask(&[(2, 5), (1, 0), (0, 7)], 1, 5000));
    let (mut first, mut second) = (one.accept().await, two.accept().await);
    let fetch = first.fetch().await;
    let asked: Vec<_> = fetch
        .partitions
        .iter()
        .map(|one| (one.partition.0, one.offset.0))
        .collect();
    assert_eq!(
        (asked.as_slice(), fetch.max_wait_ms),
        ([(102, 5), (100, 7)].as_slice(), 0)
    );
    first
        .fetched(&fetch, vec![found(9, vec![stored(5, 4)]), found(7, vec![])])
        .await;
    let fetch = second.fetch().await;
    second
        .fetched(&fetch, vec![found(3, vec![stored(0, 2), stored(2, 1)])])
        .await;
    let answer = done(task).await;
    let numbers: Vec<_> = answer
        .partitions
        .iter()
        .map(|one| (one.partition, one.high_watermark))
        .collect();
    assert_eq!(numbers, [(2, 9), (1, 3), (0, 7)]);
    assert_eq!(answer.partitions[0].batches, stored(5, 4));
    assert_eq!(
        answer.partitions[1].batches,
        [stored(0, 2), stored(2, 1)].concat()
    );
    assert!(answer.partitions[2].batches.is_empty());
}

#[tokio::test]
async fn a_wait_ends_with_the_first_data_and_withdraws_the_other_questions() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1), (2, 1)]);
    let (mut one, mut two) = (cluster.broker(1).await, cluster.broker(2).await);
    let task = fetching(&cluster, ask(&[(0, 4), (1, 4)], 1, 15_000));
    let (mut first, mut second) = (one.accept().await, two.accept().await);
    for talk in [&mut first, &mut second] {
        let fetch = talk.fetch().await;
        talk.fetched(&fetch, vec![found(4, vec![])]).await;
    }
    let (waiting, other) = (first.fetch().await, second.fetch().await);
    assert!(waiting.max_wait_ms > 5000 && waiting.min_bytes == 1);
    first.fetched(&waiting, vec![found(5, vec![stored(4, 1)])]).await;
    assert_eq!(done(task).await.partitions[0].batches, stored(4, 1));
    let ToBroker::CancelFetch(request) = second.next().await else {
        panic!("not withdrawn")
    };
    assert_eq!(request, other.request);
}

#[tokio::test]
async fn a_client_that_goes_away_withdraws_its_fetch_and_gives_its_bytes_back() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1)]);
    let mut broker = cluster.broker(1).await;
    let task = fetching(&cluster, ask(&[(0, 4)], 1, 15_000));
    let mut talk = broker.accept().await;
    let fetch = talk.fetch().await;
    talk.fetched(&fetch, vec![found(4, vec![])]).await;
    let waiting = talk.fetch().await;
    assert_eq!(cluster.metric("answer_held_bytes"), 128 << 10);
    task.abort();
    let ToBroker::CancelFetch(request) = talk.next().await else {
        panic!("not withdrawn")
    };
    assert_eq!(request, waiting.request);
    soon(async {
        while cluster.metric("answer_held_bytes") > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_fetch_follows_the_owner_when_it_moves() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1)]);
    let (mut one, mut two) = (cluster.broker(1).await, cluster.broker(2).await);
    let task = fetching(&cluster, ask(&[(0, 4)], 1, 10_000));
    let mut talk = one.accept().await;
    let fetch = talk.fetch().await;
    cluster.map.set("t", &[(2, 2)]);
    talk.fetched(&fetch, vec![Err(Failure::new(ErrorCode::NotOwner, "moved"))])
        .await;
    let mut talk = two.accept().await;
    let fetch = talk.fetch().await;
    assert_eq!(fetch.partitions[0].epoch, Epoch(2));
    talk.fetched(&fetch, vec![found(5, vec![stored(4, 1)])]).await;
    assert_eq!(done(task).await.partitions[0].batches, stored(4, 1));
}

#[tokio::test]
async fn beyond_the_end_is_out_of_range_only_where_the_owner_confirms_its_end() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1)]);
    let mut broker = cluster.broker(1).await;
    let task = fetching(&cluster, ask(&[(0, 50)], 0, 0));
    let mut talk = broker.accept().await;
    let fetch = talk.fetch().await;
    talk.fetched(&fetch, vec![found(9, vec![])]).await;
    talk.offsets(Position::Earliest, Some(3)).await;
    talk.offsets(Position::Latest, Some(60)).await;
    let answer = done(task).await;
    assert_eq!(
        (
            answer.partitions[0].error.clone(),
            answer.partitions[0].high_watermark
        ),
        (None, 60)
    );

    for (offset, words) in [(61, "beyond the end @60"), (2, "below the log start @3")] {
        let task = fetching(&cluster, ask(&[(0, offset)], 0, 0));
        let fetch = talk.fetch().await;
        talk.fetched(&fetch, vec![Err(Failure::new(ErrorCode::OffsetOutOfRange, "no"))])
            .await;
        talk.offsets(Position::Earliest, Some(3)).await;
        talk.offsets(Position::Latest, Some(60)).await;
        let error = done(task).await.partitions[0].error.clone().unwrap();
        assert_eq!(error.code(), ErrorCode::OffsetOutOfRange);
        assert!(
            error.message.contains(words) && error.message.contains(&offset.to_string()),
            "{}",
            error.message
        );
    }
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
        replicas: [1, 2, 3].map(|node| (NodeId(node), Generation(1))).to_vec(),
    }
}

fn plan(segments: Vec<PlanSegment>) -> ReadPlan {
    ReadPlan {
        epoch: Epoch(1),
        log_start: Offset(0),
        high_watermark: Offset(100),
        manifest: None,
        runs: Vec::new(),
        segments,
        gaps: Vec::new(),
    }
}

/// Answers every read of a node, and tells what was asked.
fn serve(
    cluster: &Cluster,
    mut node: ScriptedNode,
    answer: impl Fn(ReadRequest) -> Result<Bytes, NodeFailure> + Send + 'static,
) -> mpsc::UnboundedReceiver<(u32, ReadRequest)> {
    let (tx, rx) = mpsc::unbounded_channel();
    cluster.tasks.spawn("node", async move {
        let mut talk = node.accept().await;
        while let Ok(Some(message)) = talk.link.rx.recv().await {
            let ToNode::Read { request, read } = message else {
                panic!("{message:?}")
            };
            tx.send((node.id, read)).unwrap();
            talk.say(FromNode::Read {
                request,
                result: answer(read),
            })
            .await;
        }
    });
    rx
}

#[tokio::test]
async fn what_the_owner_forgot_is_read_from_nodes_up_to_each_segments_own_bound() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1)]);
    let mut broker = cluster.broker(1).await;
    let mut reads = Vec::new();
    for id in 1..=3 {
        let node = cluster.node(id).await;
        // Two of three do not have it; the third has more than the seal allows.
        let answer = move |read: ReadRequest| match id {
            1 => Err(NodeFailure::NotFound),
            2 => Err(NodeFailure::WrongGeneration(Generation(4))),
            _ if read.from == Offset(10) => Ok([stored(10, 5), stored(15, 5), stored(20, 9)].concat().into()),
            _ => Ok(stored(read.from.0, 3)),
        };
        reads.push(serve(&cluster, node, answer));
    }
    let task = fetching(&cluster, ask(&[(0, 10)], 1, 0));
    let mut talk = broker.accept().await;
    let fetch = talk.fetch().await;
    let behind = Fetched {
        behind: true,
        ..found(100, vec![]).unwrap()
    };
    talk.fetched(&fetch, vec![Ok(behind)]).await;
    talk.plan(plan(vec![segment(1, 10, 20, true), segment(2, 20, 90, false)]))
        .await;
    let answer = done(task).await;
    assert_eq!(
        answer.partitions[0].batches,
        [stored(10, 5), stored(15, 5)].concat()
    );
    assert_eq!(answer.partitions[0].high_watermark, 100);
    let (_, read) = soon(reads[2].recv()).await.unwrap();
    assert_eq!(
        (read.until, read.generation, read.segment.seq),
        (Offset(20), Generation(1), 1)
    );

    // The plan is fresh: the owner is not asked at all.
    let answer = done(fetching(&cluster, ask(&[(0, 20)], 1, 0))).await;
    assert_eq!(answer.partitions[0].batches, stored(20, 3));
    let (_, read) = soon(reads[2].recv()).await.unwrap();
    assert_eq!((read.until, read.segment.seq), (Offset(90), 2));
}

#[tokio::test]
async fn when_no_replica_helps_a_new_plan_is_asked_for_and_damage_everywhere_is_said() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1)]);
    let mut broker = cluster.broker(1).await;
    let mut reads = Vec::new();
    for id in 1..=3 {
        let node = cluster.node(id).await;
        let answer = |read: ReadRequest| match read.segment.seq {
            1 => Err(NodeFailure::NotFound),
            2 => Ok(stored(10, 3)),
            _ => Err(NodeFailure::Corrupt),
        };
        reads.push(serve(&cluster, node, answer));
    }
    let behind = || {
        vec![Ok(Fetched {
            behind: true,
            ..found(100, vec![]).unwrap()
        })]
    };
    let task = fetching(&cluster, ask(&[(0, 10)], 1, 0));
    let mut talk = broker.accept().await;
    let fetch = talk.fetch().await;
    talk.fetched(&fetch, behind()).await;
    talk.plan(plan(vec![segment(1, 10, 20, true)])).await;
    talk.plan(plan(vec![segment(2, 10, 20, true)])).await;
    assert_eq!(done(task).await.partitions[0].batches, stored(10, 3));

    cluster.map.set("t", &[(1, 1)]);
    let task = fetching(&cluster, ask(&[(0, 30)], 1, 0));
    let fetch = talk.fetch().await;
    talk.fetched(&fetch, behind()).await;
    for _ in 0..5 {
        talk.plan(plan(vec![segment(3, 30, 40, true)])).await;
    }
    let error = done(task).await.partitions[0].error.clone().unwrap();
    assert_eq!(error.code(), ErrorCode::CorruptLog, "{}", error.message);

    // What failed with five plans is asked for with one, after a rest.
    tokio::time::sleep(Duration::from_millis(60)).await;
    let task = fetching(&cluster, ask(&[(0, 30)], 1, 0));
    let fetch = talk.fetch().await;
    talk.fetched(&fetch, behind()).await;
    talk.plan(plan(vec![segment(3, 30, 40, true)])).await;
    let error = done(task).await.partitions[0].error.clone().unwrap();
    assert_eq!(error.code(), ErrorCode::CorruptLog, "{}", error.message);
}
