//! A fixed number of threads that read the journal for sessions.
//!
//! Requests wait in two bounded queues, those of recoveries before those of readers, and their
//! answers' memory is taken from two budgets: neither load by readers nor appends can keep a takeover
//! waiting. What finds no room is refused as overloaded.
//!
//! Readers may ask another replica, so memory is taken when they ask. Who takes over a broker's
//! partitions asks for all of them at once, and hardly any answer is as large as it might be: memory is
//! taken when it is their turn, and given back but for what the answer holds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::data::replica::{
    FramesRequest, FromNode, HeadersRequest, MissingRequest, NodeFailure, ReadRequest, SealedRequest,
};
use forebay_runtime::clock::Clock;
use forebay_runtime::execution::Execution;
use forebay_runtime::permits::{BytePermit, BytePermits};
use forebay_runtime::trace::Span;
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::outbox::Outbox;
use crate::disk::BLOCK_LEN_U64;
use crate::metrics::NodeMetrics;
use crate::read::{ANSWER_BYTES_MAX, GAP_MAX, Reader};

/// Threads that read.
pub(crate) const THREADS: usize = 2;
/// Requests of readers that wait.
const READS_MAX: usize = 1024;
/// Requests of recoveries that wait: more than the partitions of a broker.
const RECOVERIES_MAX: usize = 16 << 10;
const BYTES_MAX: u64 = 128 << 20;
const SMALL_ANSWER: u32 = 64 << 10;
const HEADERS_ANSWER: u32 = 1 << 20;

/// Bytes that an answer gives to a takeover: a state, headers, and frames that were not decided.
fn recovered_bytes(answer: &FromNode) -> u64 {
    let bytes = match answer {
        FromNode::Headers {
            result: Ok(found), ..
        } => found.state.len() + found.headers.len(),
        FromNode::Frames {
            result: Ok(frames), ..
        } => frames.iter().map(|frame| frame.header.frame_len()).sum(),
        _ => 0,
    };
    bytes as u64
}

/// Bytes that such an answer holds in memory, at most: it keeps the buffers that it was read into.
fn held_bytes(answer: &FromNode) -> u64 {
    let buffers = match answer {
        FromNode::Frames {
            result: Ok(frames), ..
        } => frames.len() as u64,
        _ => 1,
    };
    recovered_bytes(answer) + buffers * (GAP_MAX + 2 * BLOCK_LEN_U64)
}

/// What is to be read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Job {
    Read(ReadRequest),
    Lookup(ReadRequest, i64),
    Frames(FramesRequest),
    Headers(HeadersRequest),
    Sealed(SealedRequest),
    Missing(MissingRequest),
}

impl Job {
    const fn name(&self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::Lookup(..) => "lookup",
            Self::Frames(_) => "frames",
            Self::Headers(_) => "headers",
            Self::Sealed(_) => "sealed",
            Self::Missing(_) => "missing",
        }
    }

    const fn is_recovery(&self) -> bool {
        matches!(self, Self::Frames(_) | Self::Headers(_))
    }

    fn bytes(&self) -> u64 {
        u64::from(match self {
            Self::Read(read) => read.max_bytes.min(ANSWER_BYTES_MAX),
            Self::Lookup(..) | Self::Missing(_) => SMALL_ANSWER,
            Self::Frames(frames) => frames.max_bytes.min(ANSWER_BYTES_MAX),
            Self::Headers(_) => HEADERS_ANSWER,
            Self::Sealed(sealed) => sealed.max_bytes.min(ANSWER_BYTES_MAX),
        })
    }

    fn refused(&self, request: u64, failure: NodeFailure) -> FromNode {
        match self {
            Self::Read(_) => FromNode::Read {
                request,
                result: Err(failure),
            },
            Self::Lookup(..) => FromNode::Lookup {
                request,
                result: Err(failure),
            },
            Self::Frames(_) | Self::Sealed(_) => FromNode::Frames {
                request,
                result: Err(failure),
            },
            Self::Headers(_) => FromNode::Headers {
                request,
                result: Err(failure),
            },
            Self::Missing(_) => FromNode::Missing {
                request,
                result: Err(failure),
            },
        }
    }

    fn run(&self, request: u64, reader: &Reader) -> FromNode {
        match self {
            Self::Read(read) => FromNode::Read {
                request,
                result: reader.read(read),
            },
            Self::Lookup(read, timestamp_ms) => FromNode::Lookup {
                request,
                result: reader.lookup(read, *timestamp_ms),
            },
            Self::Frames(frames) => FromNode::Frames {
                request,
                result: reader.recover(frames),
            },
            Self::Sealed(sealed) => FromNode::Frames {
                request,
                result: reader.sealed(sealed),
            },
            Self::Missing(missing) => FromNode::Missing {
                request,
                result: reader.missing(missing),
            },
            Self::Headers(headers) => FromNode::Headers {
                request,
                result: reader.headers(headers),
            },
        }
    }
}

#[derive(Debug)]
struct Waiting {
    job: Job,
    request: u64,
    outbox: Arc<Outbox>,
    /// A recovery takes it when it is its turn.
    permit: Option<BytePermit>,
    /// Ends with the answer.
    span: Span,
    /// When it came.
    at: Duration,
}

#[derive(Debug, Default)]
struct State {
    recoveries: VecDeque<Waiting>,
    reads: VecDeque<Waiting>,
    stopped: bool,
}

impl State {
    /// Requests of recoveries go first.
    fn next(&mut self) -> Option<Waiting> {
        self.recoveries.pop_front().or_else(|| self.reads.pop_front())
    }
}

/// See the module.
pub(crate) struct Readers {
    state: Mutex<State>,
    filled: Condvar,
    /// The same for a task.
    arrived: Notify,
    recovery_permits: BytePermits,
    read_permits: BytePermits,
    metrics: NodeMetrics,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readers")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Readers {
    pub(crate) fn new(metrics: NodeMetrics, clock: Arc<dyn Clock>) -> Self {
        Self {
            state: Mutex::default(),
            filled: Condvar::new(),
            arrived: Notify::new(),
            recovery_permits: BytePermits::new(BYTES_MAX),
            read_permits: BytePermits::new(BYTES_MAX),
            metrics,
            clock,
        }
    }

    /// Queues a request, or answers it as overloaded.
    pub(crate) fn submit(&self, job: Job, request: u64, outbox: &Arc<Outbox>, span: Span) {
        let recovery = job.is_recovery();
        let taken = (!recovery).then(|| self.read_permits.try_acquire(job.bytes()));
        let mut waiting = Waiting {
            job,
            request,
            outbox: Arc::clone(outbox),
            permit: None,
            span,
            at: self.clock.monotonic(),
        };
        let mut state = self.state.lock();
        let (queue, max) = if recovery {
            (&mut state.recoveries, RECOVERIES_MAX)
        } else {
            (&mut state.reads, READS_MAX)
        };
        match taken.transpose() {
            Ok(permit) if queue.len() < max => {
                waiting.permit = permit;
                queue.push_back(waiting);
                drop(state);
                self.filled.notify_one();
                self.arrived.notify_one();
            }
            _ => {
                drop(state);
                self.refuse(waiting);
            }
        }
    }

    fn refuse(&self, mut waiting: Waiting) {
        waiting.span.fail(&"overloaded");
        self.metrics.reads_overloaded.inc();
        let refused = waiting.job.refused(waiting.request, NodeFailure::Overloaded);
        waiting.outbox.push(refused, None);
    }

    /// Serves until [`Readers::stop`].
    pub(crate) fn run(&self, reader: &Reader) {
        loop {
            let waiting = {
                let mut state = self.state.lock();
                loop {
                    if state.stopped {
                        return;
                    }
                    match state.next() {
                        Some(waiting) => break waiting,
                        None => self.filled.wait(&mut state),
                    }
                }
            };
            self.answer(waiting, reader);
        }
    }

    /// The same as a task, where a simulation has no threads.
    ///
    /// Cancel safety: a request that was taken is not answered.
    pub(crate) async fn run_as_task(&self, reader: &Reader, execution: &Execution) {
        loop {
            let next = {
                let mut state = self.state.lock();
                if state.stopped {
                    return;
                }
                state.next()
            };
            match next {
                Some(waiting) => {
                    execution.pause(&*self.clock).await;
                    self.answer(waiting, reader);
                }
                None => self.arrived.notified().await,
            }
        }
    }

    fn answer(&self, mut waiting: Waiting, reader: &Reader) {
        let recovery = waiting.job.is_recovery();
        if recovery {
            match self.recovery_permits.try_acquire(waiting.job.bytes()) {
                Ok(permit) => waiting.permit = Some(permit),
                Err(_) => return self.refuse(waiting),
            }
        }
        let answer = waiting.job.run(waiting.request, reader);
        self.metrics.reads.inc();
        let took = self.clock.monotonic().saturating_sub(waiting.at);
        self.metrics.read(waiting.job.name(), took);
        if let FromNode::Read {
            result: Ok(bytes), ..
        } = &answer
        {
            self.metrics.read_bytes.inc_by(bytes.len() as u64);
            waiting
                .span
                .set_number("messaging.message.body.size", bytes.len() as u64);
        }
        self.metrics.recovery_bytes.inc_by(recovered_bytes(&answer));
        if let Some(permit) = waiting.permit.as_mut().filter(|_| recovery) {
            permit.shrink_to(held_bytes(&answer));
        }
        waiting.outbox.push(answer, waiting.permit);
    }

    /// Ends [`Readers::run`]; requests that wait are forgotten with their sessions.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        state.recoveries.clear();
        state.reads.clear();
        drop(state);
        self.filled.notify_all();
        self.arrived.notify_one();
    }
}
