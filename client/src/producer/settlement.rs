//! What a batch owes to those who put records into it.
//!
//! One shared outcome per batch, made only when someone wants it, serves all its records: a
//! record costs no allocation and no task. The ledger counts what is not settled, for flushing.
//! A batch that is dropped without a word settles itself, so that nobody waits for ever.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use forebay_record::Offset;
use forebay_record::batch::BuildError;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::record::RecordMetadata;
use crate::error::Refusal;
use crate::trace::{Span, TraceContext};

/// Why a record is not known to be delivered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeliveryError {
    /// The service refused its batch; it was not written.
    #[error("{topic}/{partition} refused a batch: {refusal}")]
    Refused {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// What the service says.
        refusal: Refusal,
    },
    /// It may have been written, or may still be.
    #[error("outcome of a batch for {topic}/{partition} is unknown: {refusal}")]
    OutcomeUnknown {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// What is known.
        refusal: Refusal,
    },
    /// It was not written in time, and will not be.
    #[error("batch for {topic}/{partition} was not delivered within {after:?}{}", last_words(.last))]
    TimedOut {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// The delivery timeout.
        after: Duration,
        /// The last refusal, if it was ever sent.
        last: Option<Refusal>,
    },
    /// The records cannot be made into a batch; nothing was sent.
    #[error("batch for {topic}/{partition} cannot be built: {source}")]
    Build {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// What is wrong.
        source: BuildError,
    },
    /// The producer was dropped before the batch was sent.
    #[error("producer dropped before a batch for {topic}/{partition} was sent")]
    Dropped {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
    },
}

impl DeliveryError {
    /// Whether the record may have been written.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Self::OutcomeUnknown { .. })
    }
}

fn last_words(last: &Option<Refusal>) -> String {
    last.as_ref()
        .map(|refusal| format!(", last: {refusal}"))
        .unwrap_or_default()
}

/// Where a batch begins, if that is known, or why it is not delivered.
type Outcome = Result<Option<Offset>, DeliveryError>;

/// The outcome of one batch, waited for by any number of its records.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    outcome: Option<Outcome>,
    /// By the record's place in the batch.
    waiting: BTreeMap<u32, Waker>,
}

/// Resolves when a record is delivered, or will not be. Dropping it does not take the record back.
#[derive(Debug)]
#[must_use = "the outcome is lost if it is not awaited"]
pub struct Delivery {
    shared: Arc<Shared>,
    index: u32,
    topic: Arc<str>,
    partition: u32,
    timestamp_ms: i64,
}

impl Future for Delivery {
    type Output = Result<RecordMetadata, DeliveryError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.shared.state.lock();
        match &state.outcome {
            Some(outcome) => Poll::Ready(outcome.clone().map(|base| RecordMetadata {
                topic: self.topic.clone(),
                partition: self.partition,
                offset: base.and_then(|base| base.checked_add(self.index.into())),
                timestamp_ms: self.timestamp_ms,
            })),
            None => {
                state.waiting.insert(self.index, cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.shared.state.lock().waiting.remove(&self.index);
    }
}

/// What a flush reports: records that were enqueued and not delivered since the last one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{failed} records not delivered and {unknown} of unknown outcome, first: {first}")]
pub struct FlushError {
    /// Records that were certainly not written.
    pub failed: u64,
    /// Records that may have been written.
    pub unknown: u64,
    /// The first error among them.
    pub first: DeliveryError,
}

/// Counts the batches that are not settled, by the flush they belong to.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    book: Mutex<Book>,
    settled: Notify,
}

#[derive(Debug, Default)]
struct Book {
    /// Raised by each flush: batches opened later are not waited for by it.
    epoch: u64,
    open: BTreeMap<u64, usize>,
    failures: Option<FlushError>,
}

impl Ledger {
    fn enter(&self) -> u64 {
        let mut book = self.book.lock();
        let epoch = book.epoch;
        *book.open.entry(epoch).or_default() += 1;
        epoch
    }

    fn leave(&self, epoch: u64, enqueued: u32, error: Option<&DeliveryError>) {
        let mut book = self.book.lock();
        if let Some(error) = error.filter(|_| enqueued > 0) {
            let failures = book.failures.get_or_insert_with(|| FlushError {
                failed: 0,
                unknown: 0,
                first: error.clone(),
            });
            let count = if error.is_unknown() {
                &mut failures.unknown
            } else {
                &mut failures.failed
            };
            *count += u64::from(enqueued);
        }
        if let Some(open) = book.open.get_mut(&epoch) {
            *open -= 1;
            if *open == 0 {
                book.open.remove(&epoch);
                self.settled.notify_waiters();
            }
        }
    }

    /// Waits until every batch that is open now is settled. Others that open meanwhile are not
    /// waited for.
    pub(crate) async fn settle_all(&self) {
        let epoch = {
            let mut book = self.book.lock();
            book.epoch += 1;
            book.epoch
        };
        loop {
            let settled = self.settled.notified();
            if self.book.lock().open.range(..epoch).next().is_none() {
                return;
            }
            settled.await;
        }
    }

    /// Whether nothing is open.
    pub(crate) fn is_settled(&self) -> bool {
        self.book.lock().open.is_empty()
    }

    /// Failures of enqueued records since the last call.
    pub(crate) fn take_failures(&self) -> Result<(), FlushError> {
        self.book.lock().failures.take().map_or(Ok(()), Err)
    }
}

/// The debts of one batch; settled once.
#[derive(Debug)]
pub(crate) struct Settlement {
    topic: Arc<str>,
    partition: u32,
    ledger: Arc<Ledger>,
    epoch: u64,
    shared: Option<Arc<Shared>>,
    /// Records whose outcome is reported by flushing.
    enqueued: u32,
    /// Whether it was handed to a connection.
    pub sent: bool,
    settled: bool,
    /// Of records whose traces are recorded, by their place in the batch.
    spans: Vec<(u32, Span)>,
}

impl Settlement {
    pub(crate) fn new(topic: Arc<str>, partition: u32, ledger: Arc<Ledger>) -> Self {
        let epoch = ledger.enter();
        Self {
            topic,
            partition,
            ledger,
            epoch,
            shared: None,
            enqueued: 0,
            sent: false,
            settled: false,
            spans: Vec::new(),
        }
    }

    /// Counts a record whose outcome flushing reports.
    pub(crate) const fn count(&mut self) {
        self.enqueued += 1;
    }

    /// How many records are traced.
    pub(crate) fn traced(&self) -> usize {
        self.spans.len()
    }

    /// A record's span ends with its outcome. The batch travels under the first of them.
    pub(crate) fn trace(&mut self, index: u32, mut span: Span) {
        if span.is_some() {
            if let Some(first) = self.context() {
                span.link(first);
            }
            self.spans.push((index, span));
        }
    }

    /// The span that the service's spans of this batch belong to.
    pub(crate) fn context(&self) -> Option<&TraceContext> {
        self.spans.first().and_then(|(_, span)| span.context())
    }

    /// The outcome of a record.
    pub(crate) fn delivery(&mut self, index: u32, timestamp_ms: i64) -> Delivery {
        Delivery {
            shared: self.shared.get_or_insert_default().clone(),
            index,
            topic: self.topic.clone(),
            partition: self.partition,
            timestamp_ms,
        }
    }

    pub(crate) fn delivered(mut self, base: Option<Offset>) {
        self.settle(Ok(base));
    }

    pub(crate) fn refused(mut self, refusal: Refusal) {
        let (topic, partition) = (self.topic.clone(), self.partition);
        self.settle(Err(DeliveryError::Refused {
            topic,
            partition,
            refusal,
        }));
    }

    pub(crate) fn unknown(mut self, refusal: Refusal) {
        let (topic, partition) = (self.topic.clone(), self.partition);
        self.settle(Err(DeliveryError::OutcomeUnknown {
            topic,
            partition,
            refusal,
        }));
    }

    pub(crate) fn timed_out(mut self, after: Duration, last: Option<Refusal>) {
        let (topic, partition) = (self.topic.clone(), self.partition);
        self.settle(Err(DeliveryError::TimedOut {
            topic,
            partition,
            after,
            last,
        }));
    }

    pub(crate) fn unbuilt(mut self, source: BuildError) {
        let (topic, partition) = (self.topic.clone(), self.partition);
        self.settle(Err(DeliveryError::Build {
            topic,
            partition,
            source,
        }));
    }

    fn settle(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        self.ledger
            .leave(self.epoch, self.enqueued, outcome.as_ref().err());
        for (index, mut span) in self.spans.drain(..) {
            match &outcome {
                Ok(Some(base)) => span.set_number("forebay.offset", base.0.saturating_add(index.into())),
                Ok(None) => {}
                Err(error) => span.fail(error),
            }
        }
        if let Some(shared) = self.shared.take() {
            let waiting = {
                let mut state = shared.state.lock();
                state.outcome = Some(outcome);
                std::mem::take(&mut state.waiting)
            };
            waiting.into_values().for_each(Waker::wake);
        }
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let (topic, partition) = (self.topic.clone(), self.partition);
        let outcome = if self.sent {
            let code = forebay_proto::v1::ErrorCode::OutcomeUnknown;
            let refusal = Refusal::new(code, "producer dropped before the answer came");
            DeliveryError::OutcomeUnknown {
                topic,
                partition,
                refusal,
            }
        } else {
            DeliveryError::Dropped { topic, partition }
        };
        self.settle(Err(outcome));
    }
}

#[cfg(test)]
#[path = "settlement_tests.rs"]
mod tests;
