//! One partition's batches on their way to its owner, in order: a state machine without I/O.
//!
//! 1. Batches queue in the order they arrive and are sent ahead of their answers, up to a window.
//! 2. The first failure that allows another try stops the sending. What is in flight is answered
//!    or fails as well; only when nothing is, do the batches to repeat go back to the front of
//!    the queue, in order (`settle`).
//! 3. The lane then rests for a backoff, asks for the route anew where it was wrong, and goes on.
//!
//! So an answer is never waited for under one owner while another gets the next batch, and a
//! repeated batch never follows one that was sent after it: where a later batch of the same
//! source was taken meanwhile, or may have been, the earlier one is answered with its failure.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_proto::data::front::Acks;
use forebay_proto::error::Failure;
use forebay_proto::v1::{ErrorCode, RetryClass};
use forebay_record::state::PRODUCER_BATCHES_MAX;
use forebay_record::{Offset, PartitionId, ProducerId};
use forebay_runtime::trace::TraceContext;

use super::retry::{self, Tried, Verdict};
use crate::routes::Owner;

/// Batches in flight per partition.
pub(crate) const IN_FLIGHT_MAX: usize = 256;
/// Bytes in flight per partition, one batch at least: the owner's append window.
pub(crate) const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// Batches that wait per partition; what they weigh is bounded by the permits they hold.
pub(crate) const QUEUE_MAX: usize = 8192;

/// A batch and what it takes to decide about it.
#[derive(Debug)]
pub(crate) struct Entry<R> {
    pub batch: Bytes,
    /// The stream it came by; order is kept within it.
    pub source: u64,
    /// Set for idempotent batches.
    pub producer: Option<ProducerId>,
    pub acks: Acks,
    /// On the monotonic clock.
    pub deadline: Duration,
    pub reply: R,
    /// Of the span that its owner's spans belong to.
    pub trace: Option<Box<TraceContext>>,
    pub doubt: bool,
    pub last: Option<Failure>,
}

enum Flight<R> {
    /// Sent, not answered.
    Sent(Entry<R>),
    /// Failed, to be sent again once all others in flight are answered.
    Failed(Entry<R>),
    /// Sent, not answered, and nobody waits any more: only its place in the order matters.
    Abandoned {
        source: u64,
        producer: Option<ProducerId>,
        bytes: usize,
    },
    /// Answered.
    Done,
}

impl<R> Flight<R> {
    const fn is_open(&self) -> bool {
        matches!(self, Self::Sent(_) | Self::Abandoned { .. })
    }

    const fn bytes(&self) -> usize {
        match self {
            Self::Sent(entry) => entry.batch.len(),
            Self::Abandoned { bytes, .. } => *bytes,
            Self::Failed(_) | Self::Done => 0,
        }
    }

    const fn producer(&self) -> Option<ProducerId> {
        match self {
            Self::Sent(entry) | Self::Failed(entry) => entry.producer,
            Self::Abandoned { producer, .. } => *producer,
            Self::Done => None,
        }
    }
}

/// What a lane needs before it can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Nothing: it sends.
    Open,
    /// Answers to everything in flight.
    Draining,
    /// Time, and then the route where it is stale.
    Resting {
        /// Until when.
        until: Duration,
        /// The route must be asked for then.
        stale: bool,
    },
    /// The answer to a question about the route.
    Route,
}

/// One step for whoever drives the lane.
#[derive(Debug)]
pub(crate) enum Step<R> {
    /// Answer a batch.
    Answer(R, Result<Offset, Failure>),
    /// Send a batch to the lane's owner.
    Send {
        request: u64,
        acks: Acks,
        deadline: Duration,
        batch: Bytes,
        trace: Option<Box<TraceContext>>,
    },
}

pub(crate) struct Lane<R> {
    pub topic: Arc<str>,
    pub number: u32,
    pub id: PartitionId,
    pub owner: Option<Owner>,
    pub gate: Gate,
    /// Tries since the last success, for the backoff.
    pub tries: u32,
    queue: VecDeque<Entry<R>>,
    flights: VecDeque<(u64, Flight<R>)>,
    open: usize,
    open_bytes: usize,
    stale: bool,
}

impl<R> Lane<R> {
    pub(crate) fn new(topic: Arc<str>, number: u32, id: PartitionId, owner: Option<Owner>) -> Self {
        let gate = if owner.is_some() { Gate::Open } else { Gate::Route };
        Self {
            topic,
            number,
            id,
            owner,
            gate,
            tries: 0,
            queue: VecDeque::new(),
            flights: VecDeque::new(),
            open: 0,
            open_bytes: 0,
            stale: false,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.flights.is_empty()
    }

    pub(crate) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(crate) const fn in_flight(&self) -> usize {
        self.open
    }

    /// Takes a batch at the end of the queue.
    pub(crate) fn push(&mut self, entry: Entry<R>, steps: &mut Vec<Step<R>>) {
        if self.queue.len() < QUEUE_MAX {
            self.queue.push_back(entry);
        } else {
            let full = format!(
                "{QUEUE_MAX} batches wait for topic {} partition {}",
                self.topic, self.number
            );
            steps.push(Step::Answer(
                entry.reply,
                Err(Failure::new(ErrorCode::Overloaded, full)),
            ));
        }
    }

    /// Sends what the window allows. `budget` is how many more the session takes; the number sent
    /// is returned.
    pub(crate) fn pump(
        &mut self,
        now: Duration,
        budget: usize,
        next: &mut u64,
        steps: &mut Vec<Step<R>>,
    ) -> usize {
        let mut sent = 0;
        while self.gate == Gate::Open && sent < budget {
            let Some(entry) = self.queue.front() else { break };
            let fits = self.open == 0
                || (self.open < IN_FLIGHT_MAX && self.open_bytes + entry.batch.len() <= IN_FLIGHT_BYTES_MAX);
            if !fits || self.producer_is_full(entry.producer) {
                break;
            }
            let Some(entry) = self.queue.pop_front() else {
                break;
            };
            if entry.deadline <= now {
                steps.push(Step::Answer(
                    entry.reply,
                    Err(retry::given_up(entry.last, entry.doubt)),
                ));
                continue;
            }
            *next += 1;
            let request = *next;
            // The owner answers none for acks none, but the order of what follows depends on it.
            let acks = if entry.acks == Acks::None {
                Acks::One
            } else {
                entry.acks
            };
            steps.push(Step::Send {
                request,
                acks,
                deadline: entry.deadline,
                batch: entry.batch.clone(),
                trace: entry.trace.clone(),
            });
            self.open += 1;
            self.open_bytes += entry.batch.len();
            self.flights.push_back((request, Flight::Sent(entry)));
            sent += 1;
        }
        sent
    }

    /// An owner remembers this many batches of a producer; more in flight could not be repeated.
    fn producer_is_full(&self, producer: Option<ProducerId>) -> bool {
        producer.is_some()
            && self.open >= PRODUCER_BATCHES_MAX
            && self
                .flights
                .iter()
                .filter(|(_, flight)| flight.is_open() && flight.producer() == producer)
                .count()
                >= PRODUCER_BATCHES_MAX
    }

    /// An answer arrived. False where no such request is in flight.
    pub(crate) fn on_answer(
        &mut self,
        request: u64,
        result: Result<Offset, Failure>,
        steps: &mut Vec<Step<R>>,
    ) -> bool {
        let Ok(at) = self.flights.binary_search_by_key(&request, |(number, _)| *number) else {
            return false;
        };
        let Some((_, slot)) = self.flights.get_mut(at) else {
            return false;
        };
        if !slot.is_open() {
            return false;
        }
        self.open -= 1;
        self.open_bytes -= slot.bytes();
        let maybe_applied = result
            .as_ref()
            .err()
            .is_none_or(|failure| failure.retry() == RetryClass::Unknown);
        match (std::mem::replace(slot, Flight::Done), result) {
            (Flight::Sent(entry), Ok(offset)) => {
                self.tries = 0;
                self.overtaken(at, entry.source, entry.producer, steps);
                steps.push(Step::Answer(entry.reply, Ok(offset)));
            }
            // Its outcome was answered as unknown when it was abandoned.
            (Flight::Abandoned { source, producer, .. }, _) => {
                if maybe_applied {
                    self.overtaken(at, source, producer, steps);
                }
            }
            (Flight::Sent(entry), Err(failure)) => self.on_failure(at, entry, failure, steps),
            (Flight::Failed(_) | Flight::Done, _) => {}
        }
        self.trim();
        true
    }

    fn on_failure(&mut self, at: usize, mut entry: Entry<R>, failure: Failure, steps: &mut Vec<Step<R>>) {
        let gap_before = entry.producer.is_some()
            && self.flights.range(..at.min(self.flights.len())).any(
                |(_, flight)| matches!(flight, Flight::Failed(earlier) if earlier.producer == entry.producer),
            );
        let tried = Tried {
            idempotent: entry.producer.is_some(),
            doubt: entry.doubt,
            gap_before,
        };
        match retry::after_failure(failure.clone(), tried) {
            Verdict::Answer(failure) => {
                if failure.retry() == RetryClass::Unknown {
                    self.overtaken(at, entry.source, entry.producer, steps);
                }
                steps.push(Step::Answer(entry.reply, Err(failure)));
            }
            Verdict::Again { stale, doubt } => {
                entry.doubt |= doubt;
                entry.last = Some(failure);
                self.stale |= stale;
                self.gate = Gate::Draining;
                if let Some((_, slot)) = self.flights.get_mut(at) {
                    *slot = Flight::Failed(entry);
                }
            }
        }
    }

    /// A later batch of this source was taken, or may have been: earlier ones can no longer be sent
    /// in order.
    fn overtaken(&mut self, at: usize, source: u64, producer: Option<ProducerId>, steps: &mut Vec<Step<R>>) {
        if self.gate == Gate::Open {
            return;
        }
        for (_, flight) in self.flights.range_mut(..at.min(self.flights.len())) {
            let same = matches!(flight, Flight::Failed(earlier)
                if earlier.source == source || (producer.is_some() && earlier.producer == producer));
            if same && let Flight::Failed(earlier) = std::mem::replace(flight, Flight::Done) {
                let last = earlier
                    .last
                    .unwrap_or_else(|| retry::given_up(None, earlier.doubt));
                steps.push(Step::Answer(
                    earlier.reply,
                    Err(retry::final_answer(last, earlier.doubt)),
                ));
            }
        }
    }

    /// The session that everything in flight was sent by has ended.
    pub(crate) fn on_lost(&mut self, reason: &str, steps: &mut Vec<Step<R>>) {
        let open: Vec<_> = self
            .flights
            .iter()
            .filter(|(_, flight)| flight.is_open())
            .map(|(request, _)| *request)
            .collect();
        for request in open {
            let lost = Failure::new(
                ErrorCode::OutcomeUnknown,
                format!("connection to the owner was lost: {reason}"),
            );
            self.on_answer(request, Err(lost), steps);
        }
        self.stale = true;
        if self.gate == Gate::Open {
            self.gate = Gate::Draining;
        }
    }

    /// Where everything in flight is answered, moves what failed back into the queue and says
    /// that the lane has to rest. Whoever drives the lane sets the time.
    pub(crate) fn settle(&mut self) -> bool {
        if self.gate != Gate::Draining || self.open > 0 {
            return false;
        }
        for (_, flight) in self.flights.drain(..).rev() {
            if let Flight::Failed(entry) = flight {
                self.queue.push_front(entry);
            }
        }
        self.tries = self.tries.saturating_add(1);
        self.gate = Gate::Resting {
            until: Duration::ZERO,
            stale: std::mem::take(&mut self.stale),
        };
        true
    }

    /// Gives up what waits and is past its deadline. What is in flight keeps its place.
    pub(crate) fn expire(&mut self, now: Duration, grace: Duration, steps: &mut Vec<Step<R>>) {
        let mut at = 0;
        while let Some(entry) = self.queue.get(at) {
            if entry.deadline > now {
                at += 1;
            } else if let Some(entry) = self.queue.remove(at) {
                steps.push(Step::Answer(
                    entry.reply,
                    Err(retry::given_up(entry.last, entry.doubt)),
                ));
            }
        }
        for (_, flight) in &mut self.flights {
            match flight {
                Flight::Failed(entry) if entry.deadline <= now => {
                    if let Flight::Failed(entry) = std::mem::replace(flight, Flight::Done) {
                        steps.push(Step::Answer(
                            entry.reply,
                            Err(retry::given_up(entry.last, entry.doubt)),
                        ));
                    }
                }
                // The owner answers by itself at the deadline; this is for one that does not.
                Flight::Sent(entry) if entry.deadline.saturating_add(grace) <= now => {
                    let (source, producer, bytes) = (entry.source, entry.producer, entry.batch.len());
                    let gone = Flight::Abandoned {
                        source,
                        producer,
                        bytes,
                    };
                    if let Flight::Sent(entry) = std::mem::replace(flight, gone) {
                        let silent =
                            Failure::new(ErrorCode::OutcomeUnknown, "the owner did not answer in time");
                        steps.push(Step::Answer(entry.reply, Err(silent)));
                    }
                }
                Flight::Failed(_) | Flight::Sent(_) | Flight::Abandoned { .. } | Flight::Done => {}
            }
        }
        self.trim();
    }

    /// Answers everything that waits: the partition is not there any more, or the proxy stops.
    pub(crate) fn fail_queued(&mut self, failure: &Failure, steps: &mut Vec<Step<R>>) {
        for entry in self.queue.drain(..) {
            let answer = retry::final_answer(failure.clone(), entry.doubt);
            steps.push(Step::Answer(entry.reply, Err(answer)));
        }
    }

    /// Takes out everything that waits and was certainly not applied; the rest is answered.
    pub(crate) fn take_untouched(&mut self, failure: &Failure, steps: &mut Vec<Step<R>>) -> Vec<Entry<R>> {
        let (doubtful, untouched): (Vec<_>, Vec<_>) = self.queue.drain(..).partition(|entry| entry.doubt);
        self.queue.extend(doubtful);
        self.fail_queued(failure, steps);
        untouched
    }

    /// Answers everything, as the proxy stops.
    pub(crate) fn stop(&mut self, steps: &mut Vec<Step<R>>) {
        for (_, flight) in self.flights.drain(..) {
            match flight {
                Flight::Sent(entry) => {
                    let left = Failure::new(
                        ErrorCode::OutcomeUnknown,
                        "the proxy stopped before the owner answered",
                    );
                    steps.push(Step::Answer(entry.reply, Err(left)));
                }
                Flight::Failed(entry) => self.queue.push_back(entry),
                Flight::Abandoned { .. } | Flight::Done => {}
            }
        }
        self.open = 0;
        self.open_bytes = 0;
        self.fail_queued(
            &Failure::new(ErrorCode::ShuttingDown, "the proxy is stopping"),
            steps,
        );
    }

    fn trim(&mut self) {
        while matches!(self.flights.front(), Some((_, Flight::Done))) {
            self.flights.pop_front();
        }
    }
}
