//! The way to the journal thread: bounded in bytes, emptied as a whole.
//!
//! Each message is charged its bytes and a fixed overhead against one budget, so their number is
//! bounded too; who finds the budget used up waits, and stops reading from its peer meanwhile.
//! Fences have a budget of their own: no load can keep a segment from being closed (I5).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use forebay_meta::store::Revision;
use forebay_proto::data::replica::{CopyRequest, FenceItem};
use forebay_record::{Epoch, Generation, Offset, SegmentId};
use forebay_runtime::clock::Clock;
use forebay_runtime::permits::{BytePermit, BytePermits};
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};

use super::outbox::Outbox;
use super::traces::FrameTrace;
use crate::content::CheckedFrame;
use crate::index::Entry;
use crate::replica::{Admission, Peer};

const BYTES_MAX: u64 = 64 << 20;
const FENCE_BYTES_MAX: u64 = 16 << 20;
const OVERHEAD: u64 = 512;

/// What the journal thread is told.
#[derive(Debug)]
pub(crate) enum Message {
    Connected(Peer, Arc<Outbox>),
    Gone(Peer),
    Append {
        peer: Peer,
        generation: Generation,
        frame: CheckedFrame,
    },
    Commit(Vec<(SegmentId, Offset)>),
    Fence {
        peer: Peer,
        request: u64,
        items: Vec<FenceItem>,
    },
    Confirm {
        peer: Peer,
        request: u64,
        items: Vec<(SegmentId, Generation)>,
    },
    /// Frames of a sealed segment that another node lost; the request without them, and they checked.
    Copy {
        peer: Peer,
        request: u64,
        copy: Box<CopyRequest>,
        frames: Vec<CheckedFrame>,
    },
    ForgetCopy(SegmentId, Epoch),
    /// Copies that records name now.
    Adopt(Vec<SegmentId>),
    /// Forgets segments; answered with how many it were, once that is durable.
    Trim {
        segments: Vec<SegmentId>,
        done: oneshot::Sender<u64>,
    },
    /// For all peers.
    Urge(Vec<SegmentId>),
    /// Frames found to be damaged, each once; peers learn what is damaged now.
    Damaged(Vec<(SegmentId, Entry)>),
    /// The span of the frame that follows.
    Trace(Box<FrameTrace>),
    Want(Admission),
    /// How far the metadata store has come: the newest revision, and that of the node's own record.
    Remember(Revision, Revision),
    StopWriting(String),
}

impl Message {
    fn bytes(&self) -> u64 {
        let body = match self {
            Self::Append { frame, .. } => frame.header().frame_len(),
            Self::Commit(items) => items.len() * size_of::<(SegmentId, Offset)>(),
            Self::Fence { items, .. } => items.len() * size_of::<FenceItem>() * 4,
            Self::Confirm { items, .. } => items.len() * size_of::<(SegmentId, Generation)>(),
            Self::Copy { frames, .. } => frames.iter().map(|frame| frame.header().frame_len()).sum(),
            Self::Trim { segments, .. } | Self::Urge(segments) | Self::Adopt(segments) => {
                segments.len() * size_of::<SegmentId>()
            }
            Self::Damaged(_)
            | Self::ForgetCopy(..)
            | Self::Connected(..)
            | Self::Gone(_)
            | Self::Trace(_)
            | Self::Want(_)
            | Self::Remember(..)
            | Self::StopWriting(_) => 0,
        };
        body as u64 + OVERHEAD
    }
}

/// A message and when it came.
#[derive(Debug)]
pub(crate) struct Item {
    pub message: Message,
    pub at: Duration,
    _permit: Option<BytePermit>,
}

/// What a wait ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Popped {
    Items,
    Idle,
    Closed,
}

/// Nobody takes messages any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node is stopping")]
pub(crate) struct Closed;

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    /// The thread sleeps: only then is it worth a system call to wake it.
    asleep: bool,
    closed: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    /// The same for a task.
    arrived: Notify,
    permits: BytePermits,
    fence_permits: BytePermits,
}

impl Queue {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::default(),
            filled: Condvar::new(),
            arrived: Notify::new(),
            permits: BytePermits::new(BYTES_MAX),
            fence_permits: BytePermits::new(FENCE_BYTES_MAX),
        }
    }

    /// Queues a message, waiting for room.
    ///
    /// Cancel safety: a dropped push queues nothing.
    pub(crate) async fn push(&self, message: Message, at: Duration) -> Result<(), Closed> {
        let permits = if matches!(message, Message::Fence { .. }) {
            &self.fence_permits
        } else {
            &self.permits
        };
        // A frame is at most as large as the whole budget, and then has it for itself.
        let bytes = message.bytes().min(permits.request_bytes_max());
        let permit = permits.acquire(bytes).await.map_err(|_| Closed)?;
        self.put(Item {
            message,
            at,
            _permit: Some(permit),
        })
    }

    /// Queues a message that the node itself sends, a few at most.
    pub(crate) fn push_own(&self, message: Message) -> Result<(), Closed> {
        self.put(Item {
            message,
            at: Duration::ZERO,
            _permit: None,
        })
    }

    fn put(&self, item: Item) -> Result<(), Closed> {
        let asleep = {
            let mut state = self.state.lock();
            if state.closed {
                return Err(Closed);
            }
            state.items.push_back(item);
            std::mem::take(&mut state.asleep)
        };
        if asleep {
            self.wake();
        }
        Ok(())
    }

    /// Moves everything that is queued into `into`, waiting for the first message; `Idle` where
    /// nothing came for as long as `patience`.
    pub(crate) fn pop_all(&self, patience: Option<Duration>, into: &mut VecDeque<Item>) -> Popped {
        let mut state = self.state.lock();
        loop {
            if !state.items.is_empty() {
                std::mem::swap(&mut state.items, into);
                return Popped::Items;
            }
            if state.closed {
                return Popped::Closed;
            }
            state.asleep = true;
            match patience {
                None => self.filled.wait(&mut state),
                Some(patience) => {
                    let timed_out = self.filled.wait_for(&mut state, patience).timed_out();
                    if timed_out && state.items.is_empty() && !state.closed {
                        state.asleep = false;
                        return Popped::Idle;
                    }
                }
            }
        }
    }

    /// As [`Queue::pop_all`], for a task.
    ///
    /// Cancel safety: nothing is taken before this returns.
    pub(crate) async fn wait_and_pop_all(
        &self,
        patience: Option<Duration>,
        clock: &dyn Clock,
        into: &mut VecDeque<Item>,
    ) -> Popped {
        let until = patience.map(|patience| clock.monotonic() + patience);
        loop {
            {
                let mut state = self.state.lock();
                if !state.items.is_empty() {
                    std::mem::swap(&mut state.items, into);
                    return Popped::Items;
                }
                if state.closed {
                    return Popped::Closed;
                }
                state.asleep = true;
            }
            let Some(until) = until else {
                self.arrived.notified().await;
                continue;
            };
            let left = until.saturating_sub(clock.monotonic());
            if left.is_zero() {
                self.state.lock().asleep = false;
                return Popped::Idle;
            }
            // An arrival that is missed here keeps its permit for the next wait.
            tokio::select! {
                biased;
                () = self.arrived.notified() => {}
                () = clock.sleep(left) => {}
            }
        }
    }

    fn wake(&self) {
        self.filled.notify_one();
        self.arrived.notify_one();
    }

    /// Bytes of what waits or is being taken.
    pub(crate) fn bytes(&self) -> u64 {
        self.permits.bytes_max().saturating_sub(self.permits.available())
    }

    /// Takes no more messages; what is queued is still handed out.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.permits.close();
        self.fence_permits.close();
        self.wake();
    }

    /// Takes no more messages and forgets what is queued, as a crash would.
    pub(crate) fn abort(&self) {
        let dropped = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.items)
        };
        drop(dropped);
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everything_queued_comes_out_at_once_and_in_order() {
        let queue = Queue::new();
        for peer in 0..3 {
            queue
                .push(Message::Gone(Peer(peer)), Duration::from_micros(peer))
                .await
                .unwrap();
        }
        let mut items = VecDeque::new();
        assert_eq!(queue.pop_all(None, &mut items), Popped::Items);
        let peers: Vec<u64> = items.iter().map(|item| item.at.as_micros() as u64).collect();
        assert_eq!(peers, [0, 1, 2]);
        items.clear();
        assert_eq!(
            queue.pop_all(Some(Duration::from_millis(1)), &mut items),
            Popped::Idle
        );
        queue.push_own(Message::Gone(Peer(9))).unwrap();
        queue.close();
        assert_eq!(
            queue.push(Message::Gone(Peer(1)), Duration::ZERO).await,
            Err(Closed)
        );
        assert_eq!(queue.pop_all(None, &mut items), Popped::Items);
        assert_eq!(queue.pop_all(None, &mut VecDeque::new()), Popped::Closed);
    }

    #[tokio::test]
    async fn a_full_queue_makes_writers_wait_but_not_fences() {
        let queue = Queue::new();
        let items = vec![(SegmentId::default(), Offset(0)); 1 << 20];
        let mut pushed = 0;
        loop {
            let push = queue.push(Message::Commit(items.clone()), Duration::ZERO);
            if tokio::time::timeout(Duration::from_millis(20), push)
                .await
                .is_err()
            {
                break;
            }
            pushed += 1;
        }
        assert!((1..=4).contains(&pushed), "{pushed}");
        let fence = Message::Fence {
            peer: Peer(1),
            request: 1,
            items: Vec::new(),
        };
        queue.push(fence, Duration::ZERO).await.unwrap();
        let mut taken = VecDeque::new();
        assert_eq!(queue.pop_all(None, &mut taken), Popped::Items);
        taken.clear();
        queue.push(Message::Commit(items), Duration::ZERO).await.unwrap();
    }
}
