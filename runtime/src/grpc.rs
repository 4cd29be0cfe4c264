//! Rate, errors and duration of each gRPC method, around whatever serves them.
//!
//! A call ends with its answer's last byte, so a stream is one long call; its status is in the
//! trailers, or in the headers where there is nothing else. One that its client gives up counts as
//! `CANCELLED`. Only methods that were named count by name; whatever else comes is `other`, so that
//! nobody outside makes label values.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::clock::Clock;
use crate::metrics::{Labelled, Metrics};

const OTHER: &str = "other";

/// Counts calls. Clones count together.
#[derive(Clone)]
pub struct GrpcMetrics {
    methods: Arc<HashMap<String, Method>>,
    other: Method,
    ended: Labelled<Counter, 2>,
    clock: Arc<dyn Clock>,
}

#[derive(Clone)]
struct Method {
    name: Arc<str>,
    in_flight: Gauge,
    seconds: Histogram,
}

impl GrpcMetrics {
    /// Counts calls of these methods, given as `package.Service/Method`.
    pub fn new(metrics: &Metrics, clock: Arc<dyn Clock>, methods: impl IntoIterator<Item = String>) -> Self {
        let scope = metrics.scope("grpc");
        let ended = scope.counters(
            "calls",
            "Calls that ended, by method and status code",
            ["method", "code"],
        );
        let in_flight = scope.gauges("calls_in_flight", "Calls under way", ["method"]);
        let seconds = scope.latency_histograms(
            "call_seconds",
            "From the headers of a call to the last byte of its answer",
            ["method"],
        );
        let method = |name: &str| Method {
            in_flight: in_flight.with([name.to_owned()]),
            seconds: seconds.with([name.to_owned()]),
            name: name.into(),
        };
        let methods = methods
            .into_iter()
            .map(|name| (format!("/{name}"), method(&name)))
            .collect();
        Self {
            methods: Arc::new(methods),
            other: method(OTHER),
            ended,
            clock,
        }
    }

    /// The same routes, counted.
    pub fn around(self, router: Router) -> Router {
        router.layer(from_fn(move |request: Request, next: Next| {
            let call = self.begin(request.uri().path());
            async move { call.answered(next.run(request).await) }
        }))
    }

    fn begin(&self, path: &str) -> Call {
        let method = self.methods.get(path).unwrap_or(&self.other).clone();
        method.in_flight.inc();
        Call {
            method,
            code: None,
            began: self.clock.monotonic(),
            ended: self.ended.clone(),
            clock: Arc::clone(&self.clock),
        }
    }
}

impl std::fmt::Debug for GrpcMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcMetrics").finish_non_exhaustive()
    }
}

/// One call; ends when it is dropped.
struct Call {
    method: Method,
    code: Option<tonic::Code>,
    began: Duration,
    ended: Labelled<Counter, 2>,
    clock: Arc<dyn Clock>,
}

impl Call {
    fn answered(mut self, response: Response) -> Response {
        self.look_at(response.headers());
        if !response.status().is_success() {
            self.code = Some(tonic::Code::Unknown);
        }
        response.map(|inner| Body::new(Counted { inner, call: self }))
    }

    fn look_at(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.code = Some(tonic::Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let took = self.clock.monotonic().saturating_sub(self.began);
        self.method.seconds.observe(took.as_secs_f64());
        self.method.in_flight.dec();
        let code = name_of(self.code.unwrap_or(tonic::Code::Cancelled));
        let method = self.method.name.to_string();
        self.ended.with([method, code.to_owned()]).inc();
    }
}

struct Counted {
    inner: Body,
    call: Call,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            self.call.look_at(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A code as the standard writes it.
const fn name_of(code: tonic::Code) -> &'static str {
    use tonic::Code as C;
    match code {
        C::Ok => "OK",
        C::Cancelled => "CANCELLED",
        C::Unknown => "UNKNOWN",
        C::InvalidArgument => "INVALID_ARGUMENT",
        C::DeadlineExceeded => "DEADLINE_EXCEEDED",
        C::NotFound => "NOT_FOUND",
        C::AlreadyExists => "ALREADY_EXISTS",
        C::PermissionDenied => "PERMISSION_DENIED",
        C::ResourceExhausted => "RESOURCE_EXHAUSTED",
        C::FailedPrecondition => "FAILED_PRECONDITION",
        C::Aborted => "ABORTED",
        C::OutOfRange => "OUT_OF_RANGE",
        C::Unimplemented => "UNIMPLEMENTED",
        C::Internal => "INTERNAL",
        C::Unavailable => "UNAVAILABLE",
        C::DataLoss => "DATA_LOSS",
        C::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;
    use crate::clock::SystemClock;

    #[tokio::test]
    async fn calls_are_counted_by_method_and_by_the_code_they_end_with() {
        let metrics = Metrics::new();
        let methods = ["grpc.health.v1.Health/Check".to_owned()];
        let counted = GrpcMetrics::new(&metrics, Arc::new(SystemClock::new()), methods);
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter
            .set_service_status("known", tonic_health::ServingStatus::Serving)
            .await;
        let routes = tonic::service::Routes::new(health).into_axum_router();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let serving = tonic::transport::Server::builder()
            .add_routes(counted.around(routes).into())
            .serve_with_incoming(incoming);
        let server = tokio::spawn(serving);
        let channel = tonic::transport::Endpoint::from_shared(address)
            .unwrap()
            .connect()
            .await
            .unwrap();
        let mut client = HealthClient::new(channel);
        let ask = |service: &str| HealthCheckRequest {
            service: service.to_owned(),
        };
        client.check(ask("known")).await.unwrap();
        client.check(ask("known")).await.unwrap();
        client.check(ask("unknown")).await.unwrap_err();
        // A stream counts when it ends: this one, by its client.
        let mut watch = client.watch(ask("known")).await.unwrap().into_inner();
        watch.message().await.unwrap();
        let text = metrics.encode().unwrap();
        assert!(
            text.contains("forebay_grpc_calls_in_flight{method=\"other\"} 1\n"),
            "{text}"
        );
        drop(watch);
        drop(client);
        let line = |code: &str, method: &str, count: u32| {
            format!("forebay_grpc_calls_total{{method=\"{method}\",code=\"{code}\"}} {count}\n")
        };
        for wanted in [
            line("OK", "grpc.health.v1.Health/Check", 2),
            line("NOT_FOUND", "grpc.health.v1.Health/Check", 1),
            line("CANCELLED", "other", 1),
        ] {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
            loop {
                let text = metrics.encode().unwrap();
                if text.contains(&wanted) {
                    break;
                }
                assert!(tokio::time::Instant::now() < deadline, "no {wanted} in {text}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        server.abort();
    }
}
