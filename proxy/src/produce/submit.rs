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
use tokio::sync::OwnedSemaphorePermit;

use super::Entry;
use super::batch::{batch_of, check};
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
        } = arrival;
        let started = self.clock.monotonic();
        let acks = Acks::try_from(request.acks);
        let answered = acks != Ok(Acks::None);
        let timeout = match request.timeout_ms {
            0 => TIMEOUT_DEFAULT,
            ms => Duration::from_millis(ms.into()).min(TIMEOUT_MAX),
        };
        let deadline = started.saturating_add(timeout);
        let batches = self.batches_of(request.partitions);
        let mut places = Vec::with_capacity(batches.len());
        let mut routed = Vec::with_capacity(batches.len());
        for (topic, partition, batch) in batches {
            let ready = match (batch, acks) {
                (Ok(_), Err(_)) => {
                    let what = format!("acknowledgement level {} does not exist", request.acks);
                    Err(Failure::new(ErrorCode::InvalidRequest, what))
                }
                (Ok(batch), Ok(_)) => self.ready(&topic, partition, batch, deadline).await,
                (Err(failure), _) => Err(failure),
            };
            places.push((topic, partition));
            routed.push(ready);
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
        for (reply, ready) in replies(opening, places.into_iter()).into_iter().zip(routed) {
            match ready {
                Ok(Ready { to, batch, producer }) => {
                    self.metrics.batches_in.inc();
                    self.metrics.bytes_in.inc_by(batch.len() as u64);
                    let entry = Entry {
                        batch,
                        source,
                        producer,
                        acks,
                        deadline,
                        reply,
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

    /// Takes the batches out of a request, encoding records.
    fn batches_of(&self, partitions: Vec<PartitionProduce>) -> Vec<(String, u32, Result<Bytes, Failure>)> {
        let now = self.clock.now_unix_ms();
        let mut batches = Vec::with_capacity(partitions.len());
        for PartitionProduce {
            topic,
            partition,
            data,
        } in partitions
        {
            let batch = batch_of(data, &topic, partition, now);
            batches.push((topic, partition, batch));
        }
        batches
    }

    async fn ready(
        &self,
        topic: &str,
        partition: u32,
        batch: Bytes,
        deadline: Duration,
    ) -> Result<Ready, Failure> {
        let route = self.route_until(topic, deadline).await?;
        let found = route.partition(partition)?;
        let limits = Limits {
            batch_bytes_max: route.batch_bytes_max,
            decompressed_bytes_max: self.config.decompressed_bytes_max,
            allow_control: false,
        };
        let producer = check(&batch, &limits, &self.scratches, topic, partition).inspect_err(|failure| {
            self.metrics.refused_batch(failure.code);
        })?;
        let (id, owner) = (found.id, found.owner.clone());
        let to = Destination {
            topic: Arc::clone(&route.name),
            number: partition,
            id,
            owner,
        };
        Ok(Ready { to, batch, producer })
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
    producer: Option<forebay_record::ProducerId>,
}
