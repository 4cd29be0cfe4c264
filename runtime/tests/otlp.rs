//! Trace export to a real gRPC collector. One test in a process of its own, because it sets the
//! global subscriber.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::time::Duration;

use forebay_runtime::telemetry::{self, TelemetryConfig, TelemetryError};
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
async fn spans_reach_the_collector_by_the_shutdown_and_those_of_the_export_do_not() {
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
        // Down to trace level: the libraries below would be heard if they were not kept out.
        otlp_filter: "trace".to_owned(),
        log_filter: "error".to_owned(),
        service_name: "forebay-test".to_owned(),
        ..Default::default()
    };
    let guard = telemetry::init(&config).unwrap();
    let again = telemetry::init(&TelemetryConfig::default()).unwrap_err();
    assert!(matches!(again, TelemetryError::AlreadyInitialised(_)), "{again}");

    tracing::info_span!("append batch", partition = 7).in_scope(|| {
        tracing::debug_span!("sync journal").in_scope(|| tracing::info!("synced"));
    });
    tracing::info_span!(target: "h2::codec", "frame").in_scope(|| {});
    tokio::time::timeout(Duration::from_secs(20), guard.shutdown())
        .await
        .unwrap()
        .unwrap();

    let mut spans = Vec::new();
    while let Ok(request) = requests.try_recv() {
        for resource_spans in request.resource_spans {
            let attributes = resource_spans.resource.unwrap().attributes;
            let name = attributes
                .into_iter()
                .find(|pair| pair.key == "service.name")
                .unwrap();
            let value = name.value.unwrap().value.unwrap();
            assert_eq!(value, Value::StringValue("forebay-test".to_owned()));
            spans.extend(
                resource_spans
                    .scope_spans
                    .into_iter()
                    .flat_map(|scope| scope.spans),
            );
        }
    }
    let mut names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["append batch", "sync journal"]);
    let span = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    assert_eq!(span("sync journal").parent_span_id, span("append batch").span_id);
    assert_eq!(span("sync journal").events[0].name, "synced");
    assert!(
        span("append batch")
            .attributes
            .iter()
            .any(|pair| pair.key == "partition")
    );
}
