//! From a request to its batches in the driver's mailbox, in the order they were sent.
//!
//! Records are encoded first, before anything is waited for: from then on a request is no more
//! than its batches. Then each batch is routed, checked by its topic's limits, and submitted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_proto::error::Failure;
use forebay_proto::v1::{Acks, ErrorCode, PartitionProduce, ProduceRequest, RetryClass};
use forebay_record::batch::Limits;
use forebay_runtime::trace::{Span, SpanKind, TraceContext};
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument as _;

use super::Entry;
use super::batch::{Checked, batch_of, check};
use super::dispatch::{Destination, acks_of};
use super::reply::{Opening, Outlet, replies};
use crate::core::{Core, stopping};
use crate::front::Admitted;
use crate::routes::TopicRoute;

/// Where a request names no timeout.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// Between questions for a topic that no broker can be asked about.
const REST: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// One request on its way in.
pub(crate) struct Arrival {
    pub request: ProduceRequest,
    /// The stream it came by.
    pub source: u64,
    pub outlet: Outlet,
    pub place: Option<OwnedSemaphorePermit>,
    pub admitted: Option<Admitted>,
    /// Of the span that sent the request, for batches that name none of their own.
    pub parent: Option<TraceContext>,
}

/// A partition's part of a request.
struct Part {
    topic: String,
    partition: u32,
    batch: Result<Bytes, Failure>,
    span: Span,
}

impl Core {
    /// Submits a request's batches. Its answer goes to the outlet, sooner or later, unless nobody
    /// is to be answered.
    ///
    /// Cancel safety: what was not submitted when this is dropped is answered as of unknown
    /// outcome.
    pub(crate) async fn submit(&self, arrival: Arrival) {
        let Arrival {
            request,
            source,
            outlet,
            place,
            admitted,
            parent,
        } = arrival;
        let started = self.clock.monotonic();
        let acks = Acks::try_from(request.acks);
        let answered = acks != Ok(Acks::None);
        let timeout = match request.timeout_ms {
            0 => TIMEOUT_DEFAULT,
            ms => Duration::from_millis(ms.into()).min(TIMEOUT_MAX),
        };
        let deadline = started.saturating_add(timeout);
        let parts = self.parts_of(request.partitions, parent.as_ref());
        let mut places = Vec::with_capacity(parts.len());
        let mut routed = Vec::with_capacity(parts.len());
        for part in parts {
            let Part {
                topic,
                partition,
                batch,
                span,
            } = part;
            let ready = match (batch, acks) {
                (Ok(_), Err(_)) => {
                    let what = format!("acknowledgement level {} does not exist", request.acks);
                    Err(Failure::new(ErrorCode::InvalidRequest, what))
                }
                (Ok(batch), Ok(_)) => {
                    let ready = self.ready(&topic, partition, batch, deadline, &span);
                    if span.is_some() {
                        ready.instrument(span.log()).await
                    } else {
                        ready.await
                    }
                }
                (Err(failure), _) => Err(failure),
            };
            places.push((topic, partition));
            routed.push((ready, span));
        }
        let opening = Opening {
            request_id: request.request_id,
            outlet: answered.then_some(outlet),
            place,
            admitted,
            started,
            metrics: self.metrics.clone(),
        };
        let acks = acks_of(acks.unwrap_or(Acks::All));
        for (reply, (ready, span)) in replies(opening, places.into_iter()).into_iter().zip(routed) {
            let trace = span.context().cloned().map(Box::new);
            let reply = reply.traced(span);
            match ready {
                Ok(Ready { to, batch, checked }) => {
                    self.count(&to.topic, &batch, checked);
                    let entry = Entry {
                        batch,
                        source,
                        producer: checked.producer,
                        acks,
                        deadline,
                        reply,
                        trace,
                        doubt: false,
                        last: None,
                    };
                    if let Err(refused) = self.batches.send((to, entry)).await {
                        let (_, entry) = refused.0;
                        entry.reply.answer(Err(stopping()));
                    }
                }
                Err(failure) => reply.answer(Err(failure)),
            }
        }
    }

    /// Takes the batches out of a request, encoding records. A span begins with its batch: below
    /// the one that the batch names, else the request's, else as a trace of its own.
    fn parts_of(&self, partitions: Vec<PartitionProduce>, parent: Option<&TraceContext>) -> Vec<Part> {
        let now = self.clock.now_unix_ms();
        let mut parts = Vec::with_capacity(partitions.len());
        for PartitionProduce {
            topic,
            partition,
            data,
            traceparent,
            tracestate,
        } in partitions
        {
            let named = (!traceparent.is_empty())
                .then(|| TraceContext::parse(traceparent.as_bytes(), Some(tracestate.as_bytes())))
                .flatten();
            let parent = named.as_ref().or(parent);
            let mut span = self.tracer.begin(parent, SpanKind::Server, || "proxy.produce");
            let batch = batch_of(data, &topic, partition, now);
            if span.is_some() {
                span.set("messaging.system", "forebay");
                span.set("messaging.destination.name", topic.clone());
                span.set("messaging.destination.partition.id", partition.to_string());
                span.set_number(
                    "messaging.message.body.size",
                    batch.as_ref().map_or(0, Bytes::len) as u64,
                );
            }
            parts.push(Part {
                topic,
                partition,
                batch,
                span,
            });
        }
        parts
    }

    async fn ready(
        &self,
        topic: &str,
        partition: u32,
        batch: Bytes,
        deadline: Duration,
        span: &Span,
    ) -> Result<Ready, Failure> {
        let step = self
            .tracer
            .child(span.context(), SpanKind::Internal, || "proxy.route");
        let route = self.route_until(topic, deadline).await?;
        drop(step);
        let found = route.partition(partition)?;
        let limits = Limits {
            batch_bytes_max: route.batch_bytes_max,
            decompressed_bytes_max: self.config.decompressed_bytes_max,
            allow_control: false,
        };
        let step = self
            .tracer
            .child(span.context(), SpanKind::Internal, || "proxy.validate");
        let checked = check(&batch, &limits, &self.scratches, topic, partition).inspect_err(|failure| {
            self.metrics.refused_batch(failure.code);
            tracing::debug!(topic, partition, %failure, "batch refused");
        })?;
        drop(step);
        let (id, owner) = (found.id, found.owner.clone());
        let to = Destination {
            topic: Arc::clone(&route.name),
            number: partition,
            id,
            owner,
        };
        Ok(Ready { to, batch, checked })
    }

    fn count(&self, topic: &str, batch: &Bytes, checked: Checked) {
        let (bytes, records) = (batch.len() as u64, u64::from(checked.records));
        self.metrics.batches_in.inc();
        self.metrics.bytes_in.inc_by(bytes);
        self.metrics.records_in.inc_by(records);
        self.metrics.batch_bytes.observe(bytes as f64);
        let topic = self.metrics.topics.of(topic);
        topic.bytes_in.inc_by(bytes);
        topic.records_in.inc_by(records);
    }

    /// A topic's route, waited for while no broker can tell it.
    async fn route_until(&self, topic: &str, deadline: Duration) -> Result<Arc<TopicRoute>, Failure> {
        let mut rest = REST.0;
        loop {
            let failure = match self.routes.get(topic).await {
                Err(failure) if failure.retry() != RetryClass::Reject => failure,
                known => return known,
            };
            let left = deadline.saturating_sub(self.clock.monotonic());
            if left.is_zero() {
                let what = format!(
                    "topic {topic} was not found before the deadline: {}",
                    failure.message
                );
                return Err(Failure::new(ErrorCode::Timeout, what));
            }
            tokio::select! {
                () = self.clock.sleep(rest.min(left)) => {}
                () = self.closing.cancelled() => return Err(stopping()),
            }
            rest = (rest * 2).min(REST.1);
        }
    }
}

/// A checked batch and where it goes.
struct Ready {
    to: Destination,
    batch: Bytes,
    checked: Checked,
}
