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
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0
            .send(request.into_inner())
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test]
async fn spans_reach_the_collector_by_the_shutdown_and_those_of_log_lines_do_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (received, mut requests) = mpsc::unbounded_channel();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Collector(received)))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );

    let config = TelemetryConfig {
        otlp_endpoint: Some(endpoint),
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

    let mut spans = Vec::new();
    while let Ok(request) = requests.try_recv() {
        for resource_spans in request.resource_spans {
            let attributes = resource_spans.resource.unwrap().attributes;
            let text = |key: &str| {
                let pair = attributes.iter().find(|pair| pair.key == key).unwrap();
                pair.value.clone().unwrap().value.unwrap()
            };
            assert_eq!(
                text("service.name"),
                Value::StringValue("forebay-broker".to_owned())
            );
            assert_eq!(
                text("service.instance.id"),
                Value::StringValue("broker-3".to_owned())
            );
            let scopes = resource_spans.scope_spans.into_iter();
            spans.extend(scopes.flat_map(|scope| scope.spans));
        }
    }
    let mut names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["broker.append", "storage.fsync"]);
    let span = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    assert_eq!(
        span("storage.fsync").parent_span_id,
        span("broker.append").span_id
    );
    assert_eq!(span("storage.fsync").events[0].name, "synced");
    assert_eq!(
        span("storage.fsync").status.as_ref().unwrap().message,
        "disk is gone"
    );
    assert_eq!(span("broker.append").attributes[0].key, "forebay.offset");
}
