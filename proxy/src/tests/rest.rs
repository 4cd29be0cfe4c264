//! Metadata, administration, shutdown.

use forebay_proto::stored::TopicRecord;
use forebay_proto::v1::admin_client::AdminClient;
use forebay_proto::v1::{
    CreateTopicRequest, DeleteTopicRequest, DescribeClusterRequest, DescribeTopicRequest, ListTopicsRequest,
    MetadataRequest,
};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::*;

#[tokio::test]
async fn a_topic_that_has_changed_is_located_anew_without_being_asked_to() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1)]);
    let mut client = cluster.client.clone();
    let mut count = async || {
        let topics = vec!["t".to_owned()];
        let answer = client.metadata(MetadataRequest { topics }).await.unwrap();
        answer.into_inner().topics[0].partitions
    };
    assert_eq!(count().await, 1);
    cluster.map.set("t", &[(1, 1), (2, 1)]);
    assert_eq!(count().await, 1, "a fresh route is believed");
    let id = uuid::Uuid::from_u128(7);
    let changed = TopicRecord {
        id: id.as_bytes().to_vec().into(),
        name: "t".to_owned(),
        partition_ids: vec![100, 101],
        ..TopicRecord::default()
    };
    put(&*cluster.meta, keys::topic(id), record::encode(&changed)).await;
    soon(async {
        while count().await != 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_unknown_topic_is_asked_about_once_and_then_remembered_for_a_moment() {
    let cluster = Cluster::start().await;
    let mut client = cluster.client.clone();
    for _ in 0..3 {
        let request = MetadataRequest {
            topics: vec!["missing".to_owned()],
        };
        let answer = client.metadata(request).await.unwrap().into_inner();
        assert_eq!(
            answer.topics[0].error.as_ref().unwrap().code(),
            ErrorCode::UnknownTopic
        );
        assert_eq!(answer.cluster, CLUSTER);
    }
    assert_eq!(cluster.map.located.load(Ordering::SeqCst), 1);
    assert_eq!(
        client
            .init_producer(InitProducerRequest {})
            .await
            .unwrap()
            .into_inner()
            .producer_id,
        77
    );
}

#[tokio::test]
async fn topics_are_made_listed_described_and_deleted() {
    let cluster = Cluster::start().await;
    let mut admin = AdminClient::new(cluster.channel.clone());
    let create = |name: &str, partitions| CreateTopicRequest {
        name: name.to_owned(),
        partitions,
        ..Default::default()
    };
    let made = admin
        .create_topic(create("orders", 3))
        .await
        .unwrap()
        .into_inner()
        .topic
        .unwrap();
    assert_eq!((made.partitions.len(), made.id.len()), (3, 16));
    let failure = Failure::from(admin.create_topic(create("orders", 1)).await.unwrap_err());
    assert_eq!(failure.code, ErrorCode::TopicExists);
    let failure = Failure::from(admin.create_topic(create("a/b", 1)).await.unwrap_err());
    assert_eq!(failure.code, ErrorCode::InvalidTopicName);
    let listed = admin
        .list_topics(ListTopicsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (listed.topics.len(), listed.topics[0].partitions, listed.more),
        (1, 3, false)
    );
    let all = cluster
        .client
        .clone()
        .metadata(MetadataRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!((all.topics.len(), all.topics[0].partitions), (1, 3));
    let name = || "orders".to_owned();
    let topic = admin
        .describe_topic(DescribeTopicRequest { name: name() })
        .await
        .unwrap()
        .into_inner()
        .topic
        .unwrap();
    assert_eq!(
        (topic.partitions.len(), topic.partitions[0].high_watermark),
        (3, None)
    );
    let about = soon(admin.describe_cluster(DescribeClusterRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (about.brokers.len(), about.storage_nodes.len(), about.partitions),
        (2, 3, 3)
    );
    assert_eq!((about.topics, about.partitions_without_owner), (1, 3));
    assert!(about.storage_nodes.iter().all(|node| node.state == "UNREACHABLE"));
    admin
        .delete_topic(DeleteTopicRequest { name: name() })
        .await
        .unwrap();
    let gone = admin
        .describe_topic(DescribeTopicRequest { name: name() })
        .await
        .unwrap_err();
    assert_eq!(Failure::from(gone).code, ErrorCode::UnknownTopic);
}

#[tokio::test]
async fn a_shutdown_takes_nothing_new_and_finishes_what_was_accepted() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1)]);
    let mut broker = cluster.broker(1).await;
    let mut health = HealthClient::new(cluster.channel.clone());
    let check = || HealthCheckRequest {
        service: "forebay.v1.Data".to_owned(),
    };
    assert_eq!(health.check(check()).await.unwrap().into_inner().status, 1);
    let (requests, mut stream) = cluster.stream().await;
    requests.send(request(1, &[(0, batch(1))])).unwrap();
    let mut talk = broker.accept().await;
    let accepted = talk.produce().await;
    let proxy = cluster.proxy.clone();
    let stopping = tokio::spawn(async move { proxy.shutdown().await });
    soon(async {
        while health.check(check()).await.unwrap().into_inner().status == 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let refused = cluster
        .client
        .clone()
        .produce(request(2, &[(0, batch(2))]))
        .await
        .unwrap_err();
    assert_eq!(Failure::from(refused).code, ErrorCode::ShuttingDown);
    assert!(!stopping.is_finished());
    talk.produced(&accepted, Ok(8)).await;
    assert_eq!(answers(&mut stream, 1).await, BTreeMap::from([(1, Ok(8))]));
    assert!(soon(stream.message()).await.unwrap().is_none());
    soon(stopping).await.unwrap();
    assert!(
        soon(talk.link.rx.recv()).await.unwrap().is_none(),
        "the session is closed"
    );
}

#[tokio::test]
async fn brokers_that_come_and_go_are_followed() {
    let cluster = Cluster::start().await;
    cluster.map.set("t", &[(1, 1)]);
    for id in [1, 2] {
        let gone = Txn::new().then(Op::delete(keys::broker(BrokerId(id))));
        assert!(cluster.meta.txn(gone).await.unwrap().succeeded);
    }
    let short = || ProduceRequest {
        timeout_ms: 100,
        ..request(1, &[(0, batch(1))])
    };
    soon(async {
        loop {
            let answer = cluster
                .client
                .clone()
                .metadata(MetadataRequest {
                    topics: vec!["t".to_owned()],
                })
                .await
                .unwrap();
            match &answer.into_inner().topics[0].error {
                Some(error) if error.code() == ErrorCode::Unavailable => return,
                _ => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    let answer = soon(cluster.client.clone().produce(short()))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        answer.partitions[0].error.as_ref().unwrap().code(),
        ErrorCode::Timeout
    );
}
