//! Traces of records, from the application that sends them to the one that receives them.
//!
//! A producer with a [`Tracer`] makes a span `publish <topic>` for a record whose trace is recorded
//! and names it in the record's headers `traceparent` and `tracestate`, unless the application has
//! done so itself. The trace is that of the application's current OpenTelemetry context; where
//! there is none, the first record of a batch may begin one, as the provider's sampler decides. A
//! consumer with a tracer makes a span `receive <topic>` below it, and hands its context out with
//! the record, for the spans of what is done about it.
//!
//! ```no_run
//! use forebay_client::{Client, ClientConfig, trace::Tracer};
//!
//! # async fn example(provider: opentelemetry_sdk::trace::SdkTracerProvider) -> Result<(), Box<dyn std::error::Error>> {
//! let config = ClientConfig {
//!     tracer: Tracer::new(&provider),
//!     ..ClientConfig::new(["127.0.0.1:7450"])
//! };
//! let client = Client::connect(config).await?;
//! # Ok(())
//! # }
//! ```

use std::borrow::Cow;

use forebay_proto::v1::FetchResponse;
use forebay_record::Offset;
use forebay_record::batch::OwnedHeaders;
use forebay_runtime::trace::{self, STATE_LEN_MAX, TRACEPARENT, TRACEPARENT_LEN, TRACESTATE};
use tokio::time::Instant;
use tonic::metadata::{AsciiMetadataKey, MetadataMap};

pub(crate) use forebay_runtime::trace::{Span, SpanKind};
pub use forebay_runtime::trace::{TraceContext, Tracer};

use crate::error::Refusal;
use crate::producer::ProducerRecord;

/// Most bytes that the two headers add to a record.
pub(crate) const HEADERS_BYTES_MAX: usize =
    TRACEPARENT.len() + TRACEPARENT_LEN + TRACESTATE.len() + STATE_LEN_MAX + 20;
/// Records of one batch that have spans of their own; others only carry the context they are in.
const TRACED_MAX: usize = 64;

/// A record on its way out whose trace is recorded.
pub(crate) struct Publish {
    pub span: Span,
    /// What the record's headers are to say; none where they say it already.
    named: Option<(String, Option<String>)>,
}

impl Publish {
    /// The span of a record, if it has one. `traced` records of its batch have one already.
    pub(crate) fn begin(
        tracer: &Tracer,
        topic: &str,
        partition: u32,
        record: &ProducerRecord<'_>,
        may_begin: bool,
        traced: usize,
    ) -> Option<Self> {
        let own = named_in(record.headers.iter().map(|(key, value)| (key.as_bytes(), *value)));
        let has_own = own.is_some();
        let parent = own.or_else(trace::ambient);
        if parent.is_none() && !may_begin {
            return None;
        }
        let name = || format!("publish {topic}");
        let mut span = if traced < TRACED_MAX {
            tracer.begin(parent.as_ref(), SpanKind::Producer, name)
        } else {
            Span::none()
        };
        let context = span
            .context()
            .or(parent.as_ref())
            .filter(|context| context.is_sampled())?;
        let named = (!has_own).then(|| (context.traceparent(), context.tracestate().map(str::to_owned)));
        describe(&mut span, "send", topic, partition);
        let bytes = record.value.map_or(0, <[u8]>::len);
        span.set_number("messaging.message.body.size", bytes as u64);
        Some(Self { span, named })
    }

    /// The record's headers with the context.
    pub(crate) fn headers<'a>(
        &'a self,
        own: &[(&'a str, Option<&'a [u8]>)],
    ) -> Vec<(&'a str, Option<&'a [u8]>)> {
        let mut headers = own.to_vec();
        if let Some((parent, state)) = &self.named {
            headers.push((TRACEPARENT, Some(parent.as_bytes())));
            headers.extend(state.as_ref().map(|state| (TRACESTATE, Some(state.as_bytes()))));
        }
        headers
    }
}

/// How records that are handed out now were fetched.
#[derive(Debug, Clone)]
pub(crate) struct Receive {
    tracer: Tracer,
    fetch: Option<TraceContext>,
    at: Option<Instant>,
}

impl Receive {
    pub(crate) const fn off() -> Self {
        Self {
            tracer: Tracer::off(),
            fetch: None,
            at: None,
        }
    }

    /// A fetch is answered, and its span over.
    pub(crate) fn after(tracer: &Tracer, mut span: Span, answer: Result<&FetchResponse, &Refusal>) -> Self {
        if !tracer.is_on() {
            return Self::off();
        }
        span.set("messaging.system", "forebay");
        span.set("messaging.operation.type", "receive");
        match answer {
            Ok(answer) => {
                let bytes: usize = answer.partitions.iter().map(|one| one.batches.len()).sum();
                span.set_number("messaging.message.body.size", bytes as u64);
            }
            Err(refusal) => span.fail(refusal),
        }
        Self {
            tracer: tracer.clone(),
            fetch: span.context().cloned(),
            at: Some(Instant::now()),
        }
    }

    /// A record is handed out: what names its reception to the spans of what is done about it.
    pub(crate) fn record(
        &self,
        topic: &str,
        partition: u32,
        offset: Offset,
        headers: &OwnedHeaders,
    ) -> Option<Box<TraceContext>> {
        if !self.tracer.is_on() || headers.is_empty() {
            return None;
        }
        let sent = named_in(headers.borrowed())?;
        let ago = self.at.map(|at| at.elapsed()).unwrap_or_default();
        let mut span = self.tracer.child_since(Some(&sent), SpanKind::Consumer, ago, || {
            format!("receive {topic}")
        });
        describe(&mut span, "receive", topic, partition);
        span.set_number("forebay.offset", offset.0);
        if let Some(fetch) = &self.fetch {
            span.link(fetch);
        }
        span.context().cloned().map(Box::new)
    }
}

/// Names a call's span to the service.
pub(crate) fn name_in(metadata: &mut MetadataMap, context: Option<&TraceContext>) {
    let Some(context) = context else { return };
    let mut put = |name: &'static str, value: Cow<'_, str>| {
        // Both consist of printable ASCII, so this cannot fail.
        if let Ok(value) = value.parse() {
            metadata.insert(AsciiMetadataKey::from_static(name), value);
        }
    };
    put(TRACEPARENT, context.traceparent().into());
    if let Some(state) = context.tracestate() {
        put(TRACESTATE, state.into());
    }
}

/// The context that headers name. The last one of a name counts, as for everything in a record.
fn named_in<'a>(headers: impl IntoIterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> Option<TraceContext> {
    let (mut parent, mut state) = (None, None);
    for (key, value) in headers {
        if key == TRACEPARENT.as_bytes() {
            parent = value;
        } else if key == TRACESTATE.as_bytes() {
            state = value;
        }
    }
    TraceContext::parse(parent?, state)
}

/// What OpenTelemetry's conventions for messaging want to be said.
fn describe(span: &mut Span, operation: &'static str, topic: &str, partition: u32) {
    if span.is_some() {
        span.set("messaging.system", "forebay");
        span.set("messaging.operation.type", operation);
        span.set("messaging.destination.name", topic.to_owned());
        span.set("messaging.destination.partition.id", partition.to_string());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    const SENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_context_that_the_application_put_into_the_headers_stays_as_it_is() {
        let headers = [("a", Some(b"1".as_slice())), (TRACEPARENT, Some(SENT.as_bytes()))];
        let record = ProducerRecord::new("t", b"v").headers(&headers);
        let publish = Publish::begin(&Tracer::off(), "t", 0, &record, false, 0).unwrap();
        assert_eq!(publish.headers(record.headers), headers);
        assert_eq!(publish.span.context().unwrap().traceparent(), SENT);
    }

    #[test]
    fn a_record_without_a_trace_is_left_alone() {
        let record = ProducerRecord::new("t", b"v");
        assert!(Publish::begin(&Tracer::off(), "t", 0, &record, true, 0).is_none());
        let unsampled = SENT.replace("-01", "-00");
        let headers = [(TRACEPARENT, Some(unsampled.as_bytes()))];
        let record = record.headers(&headers);
        assert!(Publish::begin(&Tracer::off(), "t", 0, &record, true, 0).is_none());
    }

    #[test]
    fn headers_never_take_more_than_what_is_set_aside_for_them() {
        let state = "a".repeat(STATE_LEN_MAX);
        let publish = Publish {
            span: Span::none(),
            named: Some((SENT.to_owned(), Some(state))),
        };
        let headers = publish.headers(&[]);
        let lens = headers
            .iter()
            .map(|(key, value)| key.len() + value.map_or(0, <[u8]>::len) + 4);
        assert!(lens.sum::<usize>() <= HEADERS_BYTES_MAX);
    }

    #[test]
    fn a_call_names_its_span_in_its_metadata() {
        let context = TraceContext::parse(SENT.as_bytes(), Some(b"a=b")).unwrap();
        let mut metadata = MetadataMap::new();
        name_in(&mut metadata, Some(&context));
        assert_eq!(metadata.get(TRACEPARENT).unwrap(), SENT);
        assert_eq!(metadata.get(TRACESTATE).unwrap(), "a=b");
    }
}
