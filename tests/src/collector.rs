//! An OTLP collector on loopback that keeps what it is sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A span as it was exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// `service.name` of its process.
    pub service: String,
    /// `service.instance.id` of its process.
    pub instance: String,
    /// Its name.
    pub name: String,
    /// Its trace, 16 bytes.
    pub trace: Vec<u8>,
    /// Its id, 8 bytes.
    pub id: Vec<u8>,
    /// Its parent's id, empty without one.
    pub parent: Vec<u8>,
    /// Ids of the spans that it is linked to.
    pub links: Vec<Vec<u8>>,
    /// What it says.
    pub attributes: BTreeMap<String, String>,
    /// Names of the moments that it notes.
    pub events: Vec<String>,
    /// Why it failed, empty where it did not.
    pub error: String,
    /// Nanoseconds since 1970.
    pub start_ns: u64,
    /// Nanoseconds since 1970.
    pub end_ns: u64,
}

/// A running collector; ends with its runtime.
#[derive(Debug, Clone)]
pub struct Collector {
    endpoint: String,
    spans: Arc<Mutex<Vec<Exported>>>,
}

struct Service(Arc<Mutex<Vec<Exported>>>);

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock();
        for resource in request.into_inner().resource_spans {
            let of = texts(&resource.resource.map(|one| one.attributes).unwrap_or_default());
            let name = |key: &str| of.get(key).cloned().unwrap_or_default();
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push(Exported {
                    service: name("service.name"),
                    instance: name("service.instance.id"),
                    name: span.name,
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                    links: span.links.into_iter().map(|link| link.span_id).collect(),
                    attributes: texts(&span.attributes),
                    events: span.events.into_iter().map(|event| event.name).collect(),
                    error: span.status.map(|status| status.message).unwrap_or_default(),
                    start_ns: span.start_time_unix_nano,
                    end_ns: span.end_time_unix_nano,
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.clone().and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes
        .iter()
        .map(|pair| (pair.key.clone(), text(pair)))
        .collect()
}

impl Collector {
    /// Listens on a port of the system's choice.
    ///
    /// # Errors
    /// Where there is none.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let spans = Arc::new(Mutex::default());
        let service = TraceServiceServer::new(Service(Arc::clone(&spans)));
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);
        Ok(Self { endpoint, spans })
    }

    /// What `telemetry.otlp_endpoint` is to be.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// All spans so far.
    #[must_use]
    pub fn spans(&self) -> Vec<Exported> {
        self.spans.lock().clone()
    }

    /// Waits until the spans are as wanted, and gives them.
    ///
    /// # Errors
    /// Where they are not within 30 seconds; names the spans there are.
    pub async fn wait_for(
        &self,
        what: &str,
        wanted: impl Fn(&[Exported]) -> bool,
    ) -> anyhow::Result<Vec<Exported>> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let spans = self.spans();
            if wanted(&spans) {
                return Ok(spans);
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "{what} was not exported, only:\n{}",
                tree(&spans)
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Spans below their parents, with who made them, when they began after the first of their trace
/// and how long they took.
#[must_use]
pub fn tree(spans: &[Exported]) -> String {
    let mut text = String::new();
    let known = |id: &[u8]| spans.iter().any(|span| span.id == id);
    let mut roots: Vec<_> = spans.iter().filter(|span| !known(&span.parent)).collect();
    roots.sort_by_key(|span| span.start_ns);
    for root in roots {
        branch(spans, root, root.start_ns, 0, &mut text);
    }
    text
}

fn branch(spans: &[Exported], span: &Exported, begin_ns: u64, depth: usize, text: &mut String) {
    let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
    let name = format!("{}{}", "  ".repeat(depth), span.name);
    let who = format!("{} {}", span.service, span.instance);
    let (at, took) = (ms(begin_ns, span.start_ns), ms(span.start_ns, span.end_ns));
    let line = format!("{name:<28} {who:<38} +{at:>7.3} ms {took:>8.3} ms");
    text.push_str(line.trim_end());
    text.push('\n');
    let mut below: Vec<_> = spans.iter().filter(|one| one.parent == span.id).collect();
    below.sort_by_key(|one| one.start_ns);
    for one in below {
        branch(spans, one, begin_ns, depth + 1, text);
    }
}
