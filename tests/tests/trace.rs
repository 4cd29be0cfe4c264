//! One record's trace through real processes: etcd, three storage nodes, a broker, a proxy, and an
//! application that sends and one that receives, all exporting to one collector.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use forebay_client::trace::TraceContext;
use forebay_client::{Client, ClientConfig, ConsumerConfig, ProducerConfig, ProducerRecord, StartPosition};
use forebay_proto::v1;
use forebay_proto::v1::data_client::DataClient;
use forebay_runtime::random::OsRandom;
use forebay_runtime::telemetry::{self, Service, TelemetryConfig, TelemetryGuard};
use forebay_runtime::trace::SpanKind;
use forebay_tests::cluster::Cluster;
use forebay_tests::collector::{Collector, Exported, tree};
use forebay_tests::process::Process;

const TOPIC: &str = "orders";

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_forebay-under-test"))
}

/// The tracing of an application.
fn application(name: &str, collector: &Collector) -> TelemetryGuard {
    let config = TelemetryConfig {
        otlp_endpoint: Some(collector.endpoint().to_owned()),
        traces_sample_ratio: 1.0,
        ..TelemetryConfig::default()
    };
    let service = Service {
        name: name.to_owned(),
        instance: "app-1".to_owned(),
        namespace: "shop".to_owned(),
    };
    telemetry::traces(&config, &service, &OsRandom).unwrap()
}

async fn client(server: String, telemetry: &TelemetryGuard) -> Client {
    let config = ClientConfig {
        tracer: telemetry.tracer(),
        ..ClientConfig::new([server])
    };
    Client::connect(config).await.unwrap()
}

fn settings(collector: &Collector, ratio: f64) -> String {
    format!(
        "[telemetry]\notlp_endpoint = \"{}\"\ntraces_sample_ratio = {ratio:.1}\nlog_format = \"json\"\nlog_filter = \"debug\"\n",
        collector.endpoint()
    )
}

fn named<'a>(spans: &'a [Exported], name: &str) -> Vec<&'a Exported> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn one<'a>(spans: &'a [Exported], name: &str) -> &'a Exported {
    let found = named(spans, name);
    assert_eq!(found.len(), 1, "{name} in:\n{}", tree(spans));
    found[0]
}

/// Every line of a log is a JSON object; gives the trace ids that lines name.
fn traces_in_log(log: &str) -> BTreeSet<String> {
    assert!(log.lines().count() > 0);
    let mut traces = BTreeSet::new();
    for line in log.lines() {
        let parsed: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for key in ["timestamp", "level", "target", "message"] {
            assert!(parsed[key].is_string(), "no {key} in {line}");
        }
        traces.extend(parsed["span"]["trace_id"].as_str().map(str::to_owned));
    }
    traces
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_spans_sender_proxy_broker_storage_nodes_and_receiver() {
    let collector = Collector::start().await.unwrap();
    // The service begins no trace of its own: it follows the applications' decisions.
    let mut cluster = Cluster::start_with(binary(), 3, 1, &settings(&collector, 0.0)).unwrap();
    let shop = application("shop", &collector);
    let billing = application("billing", &collector);
    let server = cluster.proxies[0].grpc.to_string();

    let sender = client(server.clone(), &shop).await;
    sender
        .admin()
        .create_topic(TOPIC, 2, BTreeMap::new())
        .await
        .unwrap();
    let producer = sender.producer(ProducerConfig::default()).await.unwrap();
    let record = ProducerRecord::new(TOPIC, b"one order").partition(1).key(b"k");
    let written = producer.send(record).await.unwrap().await.unwrap();
    producer.close().await.unwrap();

    let receiver = client(server, &billing).await;
    let mut consumer = receiver.consumer(ConsumerConfig::default()).unwrap();
    consumer.assign(TOPIC, 1, StartPosition::Earliest).await.unwrap();
    let batch = consumer.next_batch().await.unwrap();
    let received = batch.into_iter().next().unwrap().unwrap();
    assert_eq!(received.offset, written.offset.unwrap());
    let reception: TraceContext = *received.trace.clone().unwrap();
    let parent = received.headers.iter().next().unwrap();
    assert_eq!(parent.0, "traceparent");
    // What the application does about the record belongs to its trace too.
    drop(
        billing
            .tracer()
            .child(Some(&reception), SpanKind::Consumer, || "process orders"),
    );
    drop(consumer);
    shop.shutdown().await.unwrap();
    billing.shutdown().await.unwrap();

    let of_trace = |spans: &[Exported]| -> Vec<Exported> {
        let is_its = |span: &&Exported| span.trace == reception.trace_id();
        spans.iter().filter(is_its).cloned().collect()
    };
    let whole = |spans: &[Exported]| {
        let spans = of_trace(spans);
        let count = |name: &str| named(&spans, name).len();
        count("storage.fsync") >= 2 && count("proxy.produce") == 1 && count("broker.append") == 1
    };
    collector.wait_for("the produce's trace", whole).await.unwrap();
    // A third replica, if it was slow, ends its span by now as well.
    for process in cluster
        .proxies
        .iter_mut()
        .chain(&mut cluster.brokers)
        .chain(&mut cluster.nodes)
    {
        process.stop().unwrap();
    }
    let all = collector.spans();
    let spans = of_trace(&all);
    println!("{}", tree(&spans));

    let publish = one(&spans, "publish orders");
    assert!(publish.parent.is_empty());
    assert_eq!(publish.service, "shop");
    assert_eq!(publish.attributes["messaging.destination.name"], "orders");
    assert_eq!(publish.attributes["messaging.destination.partition.id"], "1");
    assert_eq!(publish.attributes["forebay.offset"], "0");
    let produce = one(&spans, "proxy.produce");
    assert_eq!(
        (produce.service.as_str(), &produce.parent),
        ("forebay-proxy", &publish.id)
    );
    assert_eq!(produce.attributes["messaging.destination.name"], "orders");
    assert_eq!(produce.attributes["forebay.offset"], "0");
    for part in ["proxy.route", "proxy.validate"] {
        assert_eq!(one(&spans, part).parent, produce.id, "{part}");
    }
    let append = one(&spans, "broker.append");
    assert_eq!(
        (append.service.as_str(), append.instance.as_str(), &append.parent),
        ("forebay-broker-controller", "broker-1", &produce.id)
    );
    assert_eq!(append.attributes["messaging.batch.message_count"], "1");
    assert_eq!(append.attributes["forebay.offset"], "0");
    assert_eq!(one(&spans, "broker.place").parent, append.id);
    let replicate = one(&spans, "broker.replicate");
    assert_eq!(replicate.parent, append.id);
    let writes = named(&spans, "storage.append");
    let nodes: BTreeSet<_> = writes.iter().map(|span| span.instance.as_str()).collect();
    assert!(nodes.len() >= 2, "{nodes:?}");
    for write in writes {
        assert_eq!(write.service, "forebay-storage");
        assert_eq!(write.parent, replicate.id);
        for part in ["storage.queue", "storage.write", "storage.fsync"] {
            let below = named(&spans, part)
                .into_iter()
                .filter(|span| span.parent == write.id);
            let below: Vec<_> = below.collect();
            assert_eq!(below.len(), 1, "{part} of {}", write.instance);
            assert!(below[0].end_ns >= below[0].start_ns);
        }
    }
    let receive = one(&spans, "receive orders");
    assert_eq!(
        (receive.service.as_str(), &receive.parent),
        ("billing", &publish.id)
    );
    assert_eq!(receive.attributes["forebay.offset"], "0");
    assert_eq!(one(&spans, "process orders").parent, receive.id);
    assert!(spans.iter().all(|span| span.error.is_empty()));

    // The fetch began before anybody knew what it would bring: a trace of its own, linked.
    let fetch = all
        .iter()
        .find(|span| receive.links == [span.id.clone()])
        .unwrap();
    assert_eq!(
        (fetch.name.as_str(), fetch.service.as_str()),
        ("fetch", "billing")
    );
    let fetching: Vec<_> = all
        .iter()
        .filter(|span| span.trace == fetch.trace)
        .cloned()
        .collect();
    println!("{}", tree(&fetching));
    let served = one(&fetching, "proxy.fetch");
    assert_eq!(served.parent, fetch.id);
    assert!(
        fetching
            .iter()
            .any(|span| span.name == "broker.fetch" && span.parent == served.id)
    );

    // Nothing else was traced: topics were made, producers got ids, and none of that was asked for.
    let roots = all.iter().filter(|span| span.parent.is_empty());
    assert!(
        roots
            .clone()
            .all(|span| span.name == "publish orders" || span.name == "fetch")
    );
    for process in cluster
        .proxies
        .iter()
        .chain(&cluster.brokers)
        .chain(&cluster.nodes)
    {
        traces_in_log(&process.log());
    }
}

/// Everything in one process, which traces every batch.
fn standalone(folder: &Path, endpoint: &str) -> Process {
    let data = folder.join("data").display().to_string();
    let endpoint = format!("telemetry.otlp_endpoint={endpoint}");
    let args = [
        "standalone",
        "--data",
        &data,
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--set",
        "storage.journal_file_bytes=16MiB",
        // Nothing stays in the broker's memory, so that a fetch reads the journal.
        "--set",
        "broker.tail_cache_bytes=0",
        "--set",
        &endpoint,
        "--set",
        "telemetry.traces_sample_ratio=1.0",
        "--set",
        "telemetry.log_format=json",
        "--set",
        "telemetry.log_filter=debug",
    ];
    let args: Vec<_> = args.into_iter().map(str::to_owned).collect();
    Process::start("standalone", binary(), &args, folder).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_costs_spans_and_a_line_in_the_log_and_nothing_else() {
    // Bound and dropped, so nobody listens there.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut process = standalone(folder.path(), &format!("http://{nobody}"));
    let client = Client::connect(ClientConfig::new([process.grpc.to_string()]))
        .await
        .unwrap();
    client
        .admin()
        .create_topic(TOPIC, 1, BTreeMap::new())
        .await
        .unwrap();
    let producer = client.producer(ProducerConfig::default()).await.unwrap();
    for _ in 0..100 {
        let delivery = producer.send(ProducerRecord::new(TOPIC, b"v")).await.unwrap();
        assert!(delivery.await.unwrap().offset.is_some());
    }
    producer.close().await.unwrap();
    // With the exit code of a process that did what it should.
    process.stop().unwrap();
    let log = process.log();
    traces_in_log(&log);
    assert!(log.contains("trace export fails, spans are dropped"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_begins_traces_for_clients_that_name_none_and_follows_those_that_do() {
    let collector = Collector::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut process = standalone(folder.path(), collector.endpoint());
    let server = process.grpc.to_string();
    let admin = Client::connect(ClientConfig::new([server.as_str()]))
        .await
        .unwrap();
    admin
        .admin()
        .create_topic(TOPIC, 1, BTreeMap::new())
        .await
        .unwrap();

    let mut raw = DataClient::connect(format!("http://{server}")).await.unwrap();
    let request = |data| v1::ProduceRequest {
        request_id: 1,
        acks: v1::Acks::All as i32,
        timeout_ms: 10_000,
        partitions: vec![v1::PartitionProduce {
            topic: TOPIC.to_owned(),
            partition: 0,
            data: Some(data),
            ..v1::PartitionProduce::default()
        }],
    };
    let record = v1::Record {
        value: Some(bytes::Bytes::from_static(b"v")),
        ..v1::Record::default()
    };
    let records = v1::partition_produce::Data::Records(v1::Records {
        records: vec![record],
        compression: 0,
    });
    let named = TraceContext::new([7; 16], [8; 8], 1, "vendor=x").unwrap();
    let declined = TraceContext::new([9; 16], [8; 8], 0, "").unwrap();
    for context in [None, Some(&named), Some(&declined)] {
        let mut request = tonic::Request::new(request(records.clone()));
        if let Some(context) = context {
            let parent = context.traceparent().parse().unwrap();
            request.metadata_mut().insert("traceparent", parent);
        }
        let answer = raw.produce(request).await.unwrap().into_inner();
        assert_eq!(answer.partitions[0].error, None);
    }
    // What is refused says so in its trace and, with the trace's id, in the log.
    let broken = v1::partition_produce::Data::Batch(bytes::Bytes::from_static(b"no batch at all"));
    let answer = raw.produce(request(broken)).await.unwrap().into_inner();
    assert!(answer.partitions[0].error.is_some());

    let looked = TraceContext::new([5; 16], [6; 8], 1, "").unwrap();
    let mut fetch = tonic::Request::new(v1::FetchRequest {
        partitions: vec![v1::PartitionFetch {
            topic: TOPIC.to_owned(),
            partition: 0,
            offset: 0,
            max_bytes: 0,
        }],
        min_bytes: 1,
        max_bytes: 1 << 20,
        max_wait_ms: 5_000,
    });
    let parent = looked.traceparent().parse().unwrap();
    fetch.metadata_mut().insert("traceparent", parent);
    let fetched = raw.fetch(fetch).await.unwrap().into_inner();
    assert!(!fetched.partitions[0].batches.is_empty());

    let spans = collector
        .wait_for("all appends", |spans| {
            named_in(spans, "storage.append") == 2
                && named_in(spans, "proxy.produce") == 3
                && named_in(spans, "proxy.fetch") == 1
        })
        .await
        .unwrap();
    process.stop().unwrap();
    let produces = || spans.iter().filter(|span| span.name == "proxy.produce");
    assert!(spans.iter().all(|span| span.service == "forebay-standalone"));
    assert!(spans.iter().all(|span| span.instance == "broker-1+node-1"));
    assert!(spans.iter().all(|span| span.trace != declined.trace_id()));
    let followed = produces()
        .find(|span| span.trace == named.trace_id())
        .expect("the named trace");
    assert_eq!(followed.parent, named.span_id());
    assert_eq!(produces().filter(|span| span.parent.is_empty()).count(), 2);
    let read = spans
        .iter()
        .find(|span| span.name == "storage.read")
        .expect("a read");
    let fetch = spans
        .iter()
        .find(|span| span.name == "proxy.fetch")
        .expect("a fetch");
    assert_eq!(
        (&read.trace[..], &read.parent),
        (&looked.trace_id()[..], &fetch.id)
    );
    assert_eq!(fetch.parent, looked.span_id());
    assert_ne!(read.attributes["messaging.message.body.size"], "0");
    let refused = produces().find(|span| !span.error.is_empty()).expect("an error");
    let id: String = refused.trace.iter().map(|byte| format!("{byte:02x}")).collect();
    let logged = traces_in_log(&process.log());
    assert!(logged.contains(&id), "{id} is not among {logged:?}");
}

fn named_in(spans: &[Exported], name: &str) -> usize {
    spans.iter().filter(|span| span.name == name).count()
}
