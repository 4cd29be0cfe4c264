//! The answer to one produce request, gathered from its batches.
//!
//! Whoever holds a [`Reply`] owes its batch an answer; one that is dropped answers that the
//! outcome is unknown. With the last answer the request's bytes are given back and the response
//! goes out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use forebay_proto::error::Failure;
use forebay_proto::v1::{self, ErrorCode, PartitionProduced, ProduceResponse};
use forebay_record::Offset;
use forebay_runtime::trace::Span;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::front::Admitted;
use crate::metrics::ProxyMetrics;

/// A response and its place among those that the stream may have in flight; the place is free
/// once the response was taken.
#[derive(Debug)]
pub(crate) struct Done {
    pub response: ProduceResponse,
    pub place: Option<OwnedSemaphorePermit>,
    pub started: Duration,
}

/// Where responses go. Unbounded as a channel, bounded by the places.
pub(crate) type Outlet = mpsc::UnboundedSender<Done>;

struct Held {
    response: ProduceResponse,
    place: Option<OwnedSemaphorePermit>,
    /// Bytes of the whole request: its batches are slices of one buffer.
    admitted: Option<Admitted>,
}

struct Request {
    left: AtomicUsize,
    held: Mutex<Held>,
    /// None where nobody is to be answered.
    outlet: Option<Outlet>,
    started: Duration,
    metrics: ProxyMetrics,
}

/// What a request needs beside its batches.
pub(crate) struct Opening {
    pub request_id: u64,
    pub outlet: Option<Outlet>,
    pub place: Option<OwnedSemaphorePermit>,
    pub admitted: Option<Admitted>,
    pub started: Duration,
    pub metrics: ProxyMetrics,
}

/// The debt of an answer for one batch.
pub(crate) struct Reply {
    request: Arc<Request>,
    index: usize,
    answered: bool,
    /// The proxy's whole work on the batch.
    span: Span,
}

/// One reply for each batch of a request, given as topic and partition. None at all answers at
/// once.
pub(crate) fn replies(opening: Opening, batches: impl Iterator<Item = (String, u32)>) -> Vec<Reply> {
    let partitions: Vec<_> = batches
        .map(|(topic, partition)| PartitionProduced {
            topic,
            partition,
            base_offset: 0,
            error: None,
        })
        .collect();
    let count = partitions.len();
    let request = Arc::new(Request {
        // One more than there are batches, so that none is the last while replies are made.
        left: AtomicUsize::new(count + 1),
        held: Mutex::new(Held {
            response: ProduceResponse {
                request_id: opening.request_id,
                partitions,
            },
            place: opening.place,
            admitted: opening.admitted,
        }),
        outlet: opening.outlet,
        started: opening.started,
        metrics: opening.metrics,
    });
    let replies = (0..count)
        .map(|index| Reply {
            request: Arc::clone(&request),
            index,
            answered: false,
            span: Span::none(),
        })
        .collect();
    request.one_less();
    replies
}

impl Request {
    fn one_less(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let (response, place) = {
            let mut held = self.held.lock();
            held.admitted = None;
            (std::mem::take(&mut held.response), held.place.take())
        };
        if let Some(outlet) = &self.outlet
            && outlet
                .send(Done {
                    response,
                    place,
                    started: self.started,
                })
                .is_err()
        {
            tracing::trace!("client went away before its produce was answered");
        }
    }
}

impl Reply {
    /// The span ends with the answer.
    pub(crate) fn traced(mut self, span: Span) -> Self {
        self.span = span;
        self
    }

    pub(crate) fn answer(mut self, result: Result<Offset, Failure>) {
        self.settle(result);
    }

    fn settle(&mut self, result: Result<Offset, Failure>) {
        self.answered = true;
        match &result {
            Ok(offset) => self.span.set_number("forebay.offset", offset.0),
            Err(failure) => {
                self.request.metrics.failure(failure.code);
                self.span.fail(failure);
            }
        }
        drop(std::mem::take(&mut self.span));
        if let Some(slot) = self.request.held.lock().response.partitions.get_mut(self.index) {
            match result {
                Ok(offset) => slot.base_offset = offset.0,
                Err(failure) => slot.error = Some(v1::Error::from(failure)),
            }
        }
        self.request.one_less();
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            self.settle(Err(Failure::new(
                ErrorCode::OutcomeUnknown,
                "the proxy dropped the batch while it stopped",
            )));
        }
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}
