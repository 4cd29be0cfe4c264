//! What the owners' task is told.

use forebay_meta::topics::TopicChange;
use forebay_proto::data::front::{Fetch, FromBroker, Position, Produce};
use forebay_proto::data::link::{LinkSender, TrySendError};
use forebay_proto::data::replica::Uploaded;
use forebay_record::state::PartitionState;
use forebay_record::{Epoch, Offset, PartitionId};
use forebay_runtime::trace::Span;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::nodes::NodeEvent;
use crate::partition::{Declaring, Folded, ForcedEnd, Forcing, Lost, Recovering, Stored};
use crate::store::Granted;
use forebay_proto::error::Failure;
use uuid::Uuid;

/// Where answers to one connection go.
///
/// The connection's queue is used directly while it has room; what does not fit waits in an
/// overflow, which is bounded by the requests that the connection may have open.
#[derive(Debug, Clone)]
pub struct Outbox {
    /// Number of the connection.
    pub connection: u64,
    /// The connection's own queue.
    pub link: LinkSender<FromBroker>,
    /// What did not fit.
    pub overflow: mpsc::UnboundedSender<FromBroker>,
}

impl Outbox {
    /// Sends an answer. A connection that is gone no longer waits for it.
    pub fn send(&self, message: FromBroker) {
        if let Err(TrySendError::Full(message)) = self.link.try_send(message) {
            let _ = self.overflow.send(message);
        }
    }
}

/// A partition that is owned here, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// The partition.
    pub partition: PartitionId,
    /// Epoch of the ownership.
    pub epoch: Epoch,
    /// First offset kept.
    pub log_start: Offset,
    /// First offset not committed, none while recovering.
    pub high_watermark: Option<Offset>,
    /// Bytes appended and not committed.
    pub undecided_bytes: u64,
    /// That came and went lately, none where that is not known yet.
    pub bytes_per_s: Option<u64>,
    /// Where its takeover is, while it is not over.
    pub taking: Option<Taking>,
}

/// A takeover that is not over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taking {
    /// The partition.
    pub partition: PartitionId,
    /// Its topic.
    pub topic: Uuid,
    /// Its number there.
    pub number: u32,
    /// Where it is.
    pub recovering: Recovering,
    /// Milliseconds since the grant.
    pub for_ms: u64,
}

/// All that is owned here, in a few numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// Partitions.
    pub partitions: usize,
    /// Of these, those still being taken over.
    pub recovering: usize,
    /// Segments of their chains.
    pub segments: usize,
    /// Of these, those that a storage node of theirs is away from.
    pub under_replicated: usize,
    /// Sealed segments of which no copy is left.
    pub lost: usize,
    /// Sealed segments of which one sound copy is left.
    pub last_copy: usize,
    /// Bytes of sealed segments in the chains: what is not offloaded.
    pub unoffloaded_bytes: u64,
    /// Bytes appended and not committed.
    pub undecided_bytes: u64,
    /// The longest takeovers that are not over, the longest first.
    pub taking: Vec<Taking>,
}

/// What of sealed segments was declared lost, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// What is lost.
    pub lost: Lost,
    /// The record says so.
    pub done: bool,
}

/// How an open segment was ended by force, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forced {
    /// How.
    pub end: ForcedEnd,
    /// Whether it was done.
    pub done: bool,
}

/// A message to the owners' task.
#[derive(Debug)]
pub enum Command {
    /// A batch.
    Produce {
        /// The batch.
        produce: Produce,
        /// Where the answer goes.
        outbox: Outbox,
        /// Counts against the connection's open requests until it is answered.
        permit: OwnedSemaphorePermit,
        /// The broker's work on it.
        span: Span,
    },
    /// A fetch.
    Fetch {
        /// The fetch.
        fetch: Fetch,
        /// Where the answer goes.
        outbox: Outbox,
        /// As above.
        permit: OwnedSemaphorePermit,
        /// As above.
        span: Span,
    },
    /// A fetch is given up.
    CancelFetch {
        /// Of which connection.
        connection: u64,
        /// Which.
        request: u64,
    },
    /// A position is to be resolved.
    Offsets {
        /// Of the answer.
        request: u64,
        /// The partition.
        partition: PartitionId,
        /// Epoch of the route.
        epoch: Epoch,
        /// Which place.
        position: Position,
        /// Where the answer goes.
        outbox: Outbox,
    },
    /// A plan is wanted.
    Plan {
        /// Of the answer.
        request: u64,
        /// The partition.
        partition: PartitionId,
        /// Epoch of the route.
        epoch: Epoch,
        /// Segments that end at or before this are left out.
        from: Offset,
        /// Where the answer goes.
        outbox: Outbox,
    },
    /// A connection is gone: its fetches no longer wait.
    Disconnected(u64),
    /// A storage node's news.
    Node(NodeEvent),
    /// Partitions were granted to this session.
    Granted(Vec<Granted>),
    /// A partition should be given up in order.
    Resign(PartitionId),
    /// A record's change ended.
    Stored(PartitionId, Stored),
    /// A record was read again, to confirm that it is still this session's.
    Confirmed {
        /// The call that waits.
        call: u64,
        /// Whether it is.
        mine: bool,
    },
    /// The metadata store has answered just now, at this revision.
    MetadataAnswered(u64),
    /// An object was read back: what it is, or why it is not what it should be.
    Verified(u64, Result<Uploaded, String>),
    /// A manifest was written, or not.
    Folded(PartitionId, Option<Box<Folded>>),
    /// The state at the end of a partition's offloaded past, or none where it cannot be read.
    ObjectState(PartitionId, Option<Box<PartitionState>>),
    /// A topic was changed or deleted.
    TopicChanged(TopicChange),
    /// Epochs at which records were found that name another session as owner.
    EpochsSeen(Vec<(PartitionId, Epoch)>),
    /// All that is owned, in a few numbers.
    Summarize(oneshot::Sender<Summary>),
    /// Which partitions are owned, all where the list is empty.
    Describe {
        /// Which.
        partitions: Vec<PartitionId>,
        /// Where the answer goes.
        reply: oneshot::Sender<Vec<Owned>>,
    },
    /// The open segment of a partition that is being taken over is to end by force.
    ForceSeal {
        /// The partition.
        partition: PartitionId,
        /// What is wanted.
        forcing: Forcing,
        /// Answered when the partition is served again, or at once where nothing is done.
        reply: oneshot::Sender<Result<Forced, Failure>>,
    },
    /// What no copy of sealed segments has any more is to be declared lost.
    DeclareLost {
        /// The partition.
        partition: PartitionId,
        /// What is wanted.
        declaring: Declaring,
        /// Answered when the record says so, or at once where nothing is done.
        reply: oneshot::Sender<Result<Declared, Failure>>,
    },
    /// Give everything up in order; answered when nothing is owned.
    ResignAll(oneshot::Sender<()>),
}
