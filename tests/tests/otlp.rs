//! Trace export to a real gRPC collector. One test in a process of its own, because it sets the
//! global subscriber.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::time::Duration;

use forebay_runtime::random::OsRandom;
use forebay_runtime::telemetry::{self, Service, TelemetryConfig, TelemetryError};
use forebay_runtime::trace::SpanKind;
use forebay_tests::collector::Collector;

#[tokio::test]
async fn spans_reach_the_collector_by_the_shutdown_and_those_of_log_lines_do_not() {
    let collector = Collector::start().await.unwrap();
    let config = TelemetryConfig {
        otlp_endpoint: Some(collector.endpoint().to_owned()),
        log_filter: "error".to_owned(),
        traces_sample_ratio: 1.0,
        ..Default::default()
    };
    let service = Service {
        name: "forebay-broker".to_owned(),
        instance: "broker-3".to_owned(),
        namespace: "test".to_owned(),
    };
    let guard = telemetry::init(&config, &service, &OsRandom).unwrap();
    let again = telemetry::init(&TelemetryConfig::default(), &service, &OsRandom).unwrap_err();
    assert!(matches!(again, TelemetryError::AlreadyInitialised(_)), "{again}");

    let tracer = guard.tracer();
    let mut append = tracer.root(SpanKind::Server, || "broker.append");
    append.set_number("forebay.offset", 7);
    let mut sync = tracer.child(append.context(), SpanKind::Internal, || "storage.fsync");
    sync.event("synced");
    sync.fail(&"disk is gone");
    drop(sync);
    append
        .log()
        .in_scope(|| tracing::info_span!("of a log line").in_scope(|| {}));
    drop(append);
    tokio::time::timeout(Duration::from_secs(20), guard.shutdown())
        .await
        .unwrap()
        .unwrap();

    let spans = collector.spans();
    for span in &spans {
        assert_eq!(
            (span.service.as_str(), span.instance.as_str()),
            ("forebay-broker", "broker-3")
        );
    }
    let mut names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["broker.append", "storage.fsync"]);
    let span = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    assert_eq!(span("storage.fsync").parent, span("broker.append").id);
    assert_eq!(span("storage.fsync").events, ["synced"]);
    assert_eq!(span("storage.fsync").error, "disk is gone");
    assert_eq!(span("broker.append").attributes["forebay.offset"], "7");
}
