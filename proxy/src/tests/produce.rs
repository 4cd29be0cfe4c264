//! Produce over gRPC.

use super::*;

#[tokio::test]
async fn a_stream_is_answered_as_batches_are_and_the_bytes_are_the_clients() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1)]);
    let mut broker = cluster.broker(1).await;
    let (requests, mut stream) = cluster.stream().await;
    (1..=3).for_each(|id| requests.send(request(id, &[(0, batch(id as u32))])).unwrap());
    let mut talk = broker.accept().await;
    let mut taken = Vec::new();
    for value in 1..=3 {
        let produce = talk.produce().await;
        assert_eq!((produce.batch.clone(), produce.epoch), (batch(value), Epoch(1)));
        taken.push(produce);
    }
    talk.produced(&taken[2], Ok(12)).await;
    assert_eq!(answers(&mut stream, 1).await, BTreeMap::from([(3, Ok(12))]));
    talk.produced(&taken[0], Ok(10)).await;
    talk.produced(&taken[1], Ok(11)).await;
    assert_eq!(
        answers(&mut stream, 2).await,
        BTreeMap::from([(1, Ok(10)), (2, Ok(11))])
    );
    drop(requests);
    assert!(
        soon(stream.message()).await.unwrap().is_none(),
        "the stream ends with its last answer"
    );
}

#[tokio::test]
async fn order_is_kept_while_the_owner_moves() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1)]);
    let (mut old, mut new) = (cluster.broker(1).await, cluster.broker(2).await);
    let (requests, mut stream) = cluster.stream().await;
    (1..=4).for_each(|id| requests.send(request(id, &[(0, batch(id as u32))])).unwrap());
    let mut talk = old.accept().await;
    let mut refused = Vec::new();
    for _ in 1..=4 {
        refused.push(talk.produce().await);
    }
    // Nobody owns it for a moment, then the other broker does.
    cluster.map.set("t", &[(0, 1)]);
    for produce in refused.iter().rev() {
        talk.produced(produce, Err(ErrorCode::NotOwner)).await;
    }
    requests.send(request(5, &[(0, batch(5))])).unwrap();
    let before = cluster.map.located.load(Ordering::SeqCst);
    soon(async {
        while cluster.map.located.load(Ordering::SeqCst) < before + 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    cluster.map.set("t", &[(2, 2)]);
    let mut talk = new.accept().await;
    for value in 1..=5 {
        let produce = talk.produce().await;
        assert_eq!((value_of(&produce.batch), produce.epoch), (value, Epoch(2)));
        talk.produced(&produce, Ok(u64::from(value))).await;
    }
    let expected = (1..=5).map(|id| (id, Ok(id))).collect();
    assert_eq!(answers(&mut stream, 5).await, expected);
}

#[tokio::test]
async fn a_lost_connection_is_an_unknown_outcome_for_plain_batches_and_a_repetition_for_idempotent_ones() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1), (1, 1)]);
    let mut broker = cluster.broker(1).await;
    let (requests, mut stream) = cluster.stream().await;
    requests.send(request(1, &[(0, batch(1))])).unwrap();
    requests.send(request(2, &[(1, idempotent(2, 0))])).unwrap();
    requests.send(request(3, &[(1, idempotent(3, 1))])).unwrap();
    let mut talk = broker.accept().await;
    for _ in 1..=3 {
        talk.produce().await;
    }
    drop(talk);
    assert_eq!(
        answers(&mut stream, 1).await,
        BTreeMap::from([(1, Err(ErrorCode::OutcomeUnknown))])
    );
    let mut talk = broker.accept().await;
    for value in [2, 3] {
        let produce = talk.produce().await;
        assert_eq!(value_of(&produce.batch), value);
        talk.produced(&produce, Ok(u64::from(value))).await;
    }
    assert_eq!(
        answers(&mut stream, 2).await,
        BTreeMap::from([(2, Ok(2)), (3, Ok(3))])
    );
}

#[tokio::test]
async fn bad_batches_are_refused_one_by_one_and_the_good_one_beside_them_is_taken() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1)]);
    let mut broker = cluster.broker(1).await;
    let mut flipped = batch(1).to_vec();
    flipped[65] ^= 1;
    let mut large = vec![0; 2 << 20];
    large[16] = 2;
    let bad = request(
        9,
        &[
            (0, flipped.into()),
            (0, batch(2)),
            (5, batch(3)),
            (0, large.into()),
        ],
    );
    let mut unknown = request(0, &[(0, batch(4))]).partitions.remove(0);
    unknown.topic = "nowhere".to_owned();
    let partitions = bad.partitions.into_iter().chain([unknown]).collect();
    let mut client = cluster.client.clone();
    let asking = tokio::spawn(async move { client.produce(ProduceRequest { partitions, ..bad }).await });
    let mut talk = broker.accept().await;
    let produce = talk.produce().await;
    assert_eq!(value_of(&produce.batch), 2);
    talk.produced(&produce, Ok(40)).await;
    let answer = soon(asking).await.unwrap().unwrap().into_inner();
    let codes: Vec<_> = answer
        .partitions
        .iter()
        .map(|one| one.error.as_ref().map(|error| error.code()))
        .collect();
    let expected = [
        ErrorCode::CorruptBatch,
        ErrorCode::UnknownPartition,
        ErrorCode::BatchTooLarge,
        ErrorCode::UnknownTopic,
    ];
    assert_eq!(
        codes,
        [
            Some(expected[0]),
            None,
            Some(expected[1]),
            Some(expected[2]),
            Some(expected[3])
        ]
    );
    assert_eq!(answer.partitions[1].base_offset, 40);
    let message = &answer.partitions[0].error.as_ref().unwrap().message;
    assert!(
        message.contains("topic t partition 0") && message.contains("checksum"),
        "{message}"
    );
}

#[tokio::test]
async fn requests_under_way_never_hold_more_than_the_pool_and_all_are_answered_in_the_end() {
    const POOL: u64 = 1 << 20;
    const EACH: usize = 200 << 10;
    let cluster = Cluster::with(ProxyConfig {
        memory_bytes: 2 * POOL,
        ..ProxyConfig::default()
    })
    .await;
    cluster.map.set("t", &[(1, 1), (1, 1)]);
    let mut broker = cluster.broker(1).await;
    let mut builder = Builder::new(Codec::None, EACH);
    builder
        .append::<&str>(1, None, Some(&vec![7; EACH]), &[])
        .unwrap();
    let large = builder.finish(None).unwrap();
    let mut streams = Vec::new();
    for number in 0..4 {
        let (requests, stream) = cluster.stream().await;
        for id in 0..10 {
            requests
                .send(request(id, &[(number % 2, large.clone())]))
                .unwrap();
        }
        streams.push((requests, stream));
    }
    let mut talk = broker.accept().await;
    let (mut open, mut answered) = (Vec::new(), 0);
    while answered < 40 {
        // Whatever the proxy lets through without an answer fits into the pool.
        while open.len() < POOL as usize / large.len() && answered + open.len() < 40 {
            open.push(talk.produce().await);
        }
        let held = cluster.metric("request_held_bytes");
        assert!((0..=POOL as i64).contains(&held), "{held} bytes held");
        let more = tokio::time::timeout(Duration::from_millis(20), talk.link.rx.recv()).await;
        assert!(
            more.is_err() || answered + open.len() >= 40,
            "more than the pool was let through: {more:?}"
        );
        for produce in open.drain(..) {
            talk.produced(&produce, Ok(answered as u64)).await;
            answered += 1;
        }
    }
    for (_, stream) in &mut streams {
        assert!(answers(stream, 10).await.values().all(Result::is_ok));
    }
    assert_eq!(cluster.metric("request_held_bytes"), 0);
}

#[tokio::test]
async fn a_unary_call_is_told_when_there_is_no_room() {
    let config = ProxyConfig {
        memory_bytes: 2 << 20,
        admission_timeout: Duration::from_millis(50),
        ..ProxyConfig::default()
    };
    let cluster = Cluster::with(config).await;
    cluster.map.set("t", &[(1, 1)]);
    let mut broker = cluster.broker(1).await;
    let mut builder = Builder::new(Codec::None, 1 << 20);
    builder
        .append::<&str>(1, None, Some(&vec![7; 700 << 10]), &[])
        .unwrap();
    let large = builder.finish(None).unwrap();
    let (requests, mut stream) = cluster.stream().await;
    requests.send(request(1, &[(0, large.clone())])).unwrap();
    let mut talk = broker.accept().await;
    let held = talk.produce().await;
    let status = soon(cluster.client.clone().produce(request(2, &[(0, large)])))
        .await
        .unwrap_err();
    let failure = Failure::from(status);
    assert_eq!(failure.code, ErrorCode::Overloaded, "{failure}");
    talk.produced(&held, Ok(0)).await;
    assert_eq!(answers(&mut stream, 1).await, BTreeMap::from([(1, Ok(0))]));
}

#[tokio::test]
async fn no_acknowledgement_is_refused_on_a_unary_call_and_unanswered_on_a_stream() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1)]);
    let mut broker = cluster.broker(1).await;
    let silent = ProduceRequest {
        acks: Acks::None as i32,
        ..request(1, &[(0, batch(1))])
    };
    let status = soon(cluster.client.clone().produce(silent.clone()))
        .await
        .unwrap_err();
    assert_eq!(Failure::from(status).code, ErrorCode::InvalidRequest);
    let (requests, mut stream) = cluster.stream().await;
    requests.send(silent).unwrap();
    requests.send(request(2, &[(0, batch(2))])).unwrap();
    let mut talk = broker.accept().await;
    for _ in 0..2 {
        let produce = talk.produce().await;
        talk.produced(&produce, Ok(3)).await;
    }
    assert_eq!(answers(&mut stream, 1).await, BTreeMap::from([(2, Ok(3))]));
}

#[tokio::test]
async fn a_request_that_does_not_parse_ends_the_stream_after_what_came_before_it() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1)]);
    let mut broker = cluster.broker(1).await;
    let (requests, mut stream) = cluster.stream().await;
    requests.send(request(1, &[(0, batch(1))])).unwrap();
    let record = forebay_proto::v1::Record::default();
    let records = forebay_proto::v1::Records {
        records: vec![record; 200_000],
        compression: 0,
    };
    let mut bomb = request(2, &[(0, batch(2))]);
    bomb.partitions[0].data = Some(Data::Records(records));
    requests.send(bomb).unwrap();
    let mut talk = broker.accept().await;
    let produce = talk.produce().await;
    talk.produced(&produce, Ok(3)).await;
    assert_eq!(answers(&mut stream, 1).await, BTreeMap::from([(1, Ok(3))]));
    let failure = Failure::from(soon(stream.message()).await.unwrap_err());
    assert_eq!(failure.code, ErrorCode::InvalidRequest, "{failure}");
}

#[tokio::test]
async fn a_batch_without_an_owner_times_out_and_says_so() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(0, 0)]);
    let short = ProduceRequest {
        timeout_ms: 150,
        ..request(1, &[(0, batch(1))])
    };
    let answer = soon(cluster.client.clone().produce(short))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        answer.partitions[0].error.as_ref().unwrap().code(),
        ErrorCode::Timeout
    );
}
