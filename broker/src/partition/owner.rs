//! The owner of one partition, as a state machine without I/O.
//!
//! 1. [`Owner::new`] takes a record that this broker's grant is in, and recovers: [`super::takeover`].
//! 2. [`super::append`] gives a batch its offset, and makes one frame of all that arrived together.
//! 3. [`super::commit`] moves the committed offset once a quorum has synced a frame, answers
//!    produces, and makes records visible.
//! 4. Size, age or trouble end the segment: [`super::change`].
//! 5. The oldest sealed segment goes to the object store: [`super::past`]; sealed segments keep their
//!    copies: [`super::repair`].
//! 6. A fence, a lost compare-and-swap or a resignation end the ownership: [`super::leave`].

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use forebay_meta::model::{Partition, Segment, TopicConfig};
use forebay_proto::data::front::Acks;
use forebay_record::{BrokerId, Epoch, NodeId, Offset, SegmentId, SessionId};

use super::action::{Context, Nodes, Produce, Ticket};
use super::force::ForcedEnd;
use super::loss::Losses;
use super::past::Past;
use super::repair::Repairs;
use super::tail::Tail;
use super::takeover::Recovery;
use super::writer::Writer;
use forebay_record::producers::Producers;

/// How partitions are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Replicas of a segment.
    pub replicas: usize,
    /// Replicas that must have synced an entry before it is committed.
    pub ack_quorum: u8,
    /// Bytes that may be appended and not committed (I22).
    pub window_bytes: u64,
    /// Bytes that may wait for a place in the window.
    pub waiting_bytes_max: u64,
    /// Largest batch.
    pub batch_bytes_max: usize,
    /// Sealed segments go to the object store.
    pub offload: bool,
    /// Milliseconds for which records are kept, unlimited where none.
    pub retention_ms: Option<u64>,
    /// Bytes that are kept, unlimited where none.
    pub retention_bytes: Option<u64>,
    /// Roll a segment at this size.
    pub segment_bytes: u64,
    /// Roll a segment that holds something at this age.
    pub segment_ms: u64,
    /// A sealed segment's replica that is away for this long is replaced; at once where fewer than
    /// the acknowledging quorum are left.
    pub repair_after_ms: u64,
    /// A replica without progress for this long is cut off.
    pub straggler_ms: u64,
    /// A replica whose backlog keeps more than this in memory is cut off.
    pub straggler_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            replicas: 3,
            ack_quorum: 2,
            window_bytes: 8 << 20,
            waiting_bytes_max: 16 << 20,
            batch_bytes_max: 8 << 20,
            offload: false,
            retention_ms: None,
            retention_bytes: None,
            segment_bytes: 256 << 20,
            segment_ms: 600_000,
            repair_after_ms: 300_000,
            straggler_ms: 2_000,
            straggler_bytes: 16 << 20,
        }
    }
}

impl Config {
    /// The same with what a topic says of its own partitions.
    #[must_use]
    pub fn of_topic(&self, topic: &TopicConfig) -> Self {
        Self {
            batch_bytes_max: topic.batch_bytes_max as usize,
            segment_bytes: topic.segment_bytes,
            segment_ms: topic.segment_ms,
            offload: topic.offload,
            retention_ms: topic.retention_ms,
            retention_bytes: topic.retention_bytes,
            ..self.clone()
        }
    }
}

/// Where an owner is in its life.
// There is one for each partition, and boxing would put a pointer into every match.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub(super) enum Phase {
    /// Reading what the last owner left.
    Recovering(Recovery),
    /// Taking writes.
    Serving,
    /// Draining, to leave in order.
    Resigning,
    /// Over.
    Released,
}

/// How many replicas of a partition's open segment can take frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// All that there should be.
    Whole,
    /// Fewer, and enough to commit.
    UnderReplicated,
    /// Too few to commit anything.
    WithoutQuorum,
}

/// How the segment being prepared will enter the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// After a sealed end.
    First,
    /// The open segment is sealed at `end` once it has committed that far.
    Roll {
        /// The switch point.
        end: Offset,
    },
    /// The open segment is in trouble and sealed where it was committed; it commits no further.
    Change {
        /// Its committed offset, frozen.
        end: Offset,
    },
    /// A former owner's segment is sealed where it is known to be committed; what lay beyond was
    /// carried and must be durable here first (I9).
    Takeover {
        /// Highest committed offset known.
        end: Offset,
    },
}

/// The segment being prepared.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) writer: Writer,
    pub(super) plan: Plan,
}

/// A batch with its offset, not in a frame yet.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) end: Offset,
    pub(super) chunks: [Bytes; 2],
}

/// An appended batch whose commit is awaited.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) base: Offset,
    pub(super) end: Offset,
    pub(super) bytes: u64,
    pub(super) answer: Option<(Ticket, Acks)>,
    pub(super) deadline_ms: u64,
}

/// A repetition that waits for its original's commit.
#[derive(Debug)]
pub(super) struct Echo {
    pub(super) base: Offset,
    pub(super) ticket: Ticket,
    pub(super) deadline_ms: u64,
}

/// The owner of one partition.
#[derive(Debug)]
pub struct Owner {
    pub(super) config: Config,
    pub(super) me: BrokerId,
    pub(super) session: SessionId,
    pub(super) record: Partition,
    pub(super) revision: u64,
    pub(super) phase: Phase,
    /// The segment that takes writes and whose link is confirmed.
    pub(super) linked: Option<Writer>,
    /// The segment that will follow.
    pub(super) next: Option<Next>,
    /// Sealed segments whose slower replicas still get their frames, and until when.
    pub(super) trailing: Vec<(Writer, u64)>,
    /// The change of the record on its way.
    pub(super) storing: Option<Box<Partition>>,
    /// Newest segment sequence used under this epoch.
    pub(super) seq: u32,
    pub(super) producers: Producers,
    pub(super) epochs: Vec<(Epoch, Offset)>,
    /// Next offset to assign.
    pub(super) tail: Offset,
    pub(super) cache: Tail,
    /// Nodes that refused lately, and until when they are avoided.
    pub(super) avoid: BTreeMap<NodeId, u64>,
    /// No ensemble change for comfort before this time.
    pub(super) next_comfort_ms: u64,
    pub(super) staged: Vec<Staged>,
    pub(super) pending: VecDeque<Pending>,
    pub(super) undecided_bytes: u64,
    pub(super) waiting: VecDeque<Produce>,
    pub(super) waiting_bytes: u64,
    pub(super) echoes: Vec<Echo>,
    pub(super) past: Past,
    pub(super) repairs: Repairs,
    pub(super) losses: Losses,
    /// An operator said that the takeover goes on without the producers' state.
    pub(super) stateless: bool,
    /// How an operator said that the segment being taken over ends.
    pub(super) forced: Option<ForcedEnd>,
    /// The open segment, while a replica of it is away, and since when.
    pub(super) open_away: Option<(SegmentId, u64)>,
    pub(super) announce_at_ms: Option<u64>,
    pub(super) visible: Offset,
    /// Kept by whoever drives the owner: it is ticked often.
    pub awake: bool,
}

impl Owner {
    /// Begins to own a partition whose record names this broker's session, and to recover it.
    #[must_use]
    pub fn new(
        config: Config,
        me: BrokerId,
        record: Partition,
        revision: u64,
        ctx: &mut Context<'_>,
    ) -> Self {
        let session = record.session;
        let start = record.sealed_end();
        let mut owner = Self {
            config,
            me,
            session,
            seq: record.last_seq,
            record,
            revision,
            phase: Phase::Serving,
            linked: None,
            next: None,
            trailing: Vec::new(),
            storing: None,
            producers: Producers::default(),
            epochs: Vec::new(),
            tail: start,
            cache: Tail::default(),
            avoid: BTreeMap::new(),
            next_comfort_ms: 0,
            staged: Vec::new(),
            pending: VecDeque::new(),
            undecided_bytes: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            echoes: Vec::new(),
            past: Past::default(),
            repairs: Repairs::default(),
            losses: Losses::default(),
            stateless: false,
            forced: None,
            open_away: None,
            announce_at_ms: None,
            visible: start,
            awake: false,
        };
        owner.recover(ctx);
        owner
    }

    /// Takes a configuration; the next decision goes by it. Whether it is another one.
    pub fn configure(&mut self, config: &Config) -> bool {
        let changed = self.config != *config;
        if changed {
            self.config = config.clone();
        }
        changed
    }

    /// The record as this owner knows it.
    #[must_use]
    pub const fn record(&self) -> &Partition {
        &self.record
    }

    /// Revision at which the record was last changed, as this owner knows it.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// True once reads and writes are served; before, there is no high watermark to show.
    #[must_use]
    pub const fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Resigning)
    }

    /// True once the ownership is over.
    #[must_use]
    pub const fn is_released(&self) -> bool {
        matches!(self.phase, Phase::Released)
    }

    /// First offset not committed, none while recovering.
    #[must_use]
    pub fn high_watermark(&self) -> Option<Offset> {
        self.is_serving().then_some(self.visible)
    }

    /// Below this everything is committed, whatever becomes of the open segment of a takeover. Nothing is
    /// known to be where nobody has witnessed that the record is not an older one.
    #[must_use]
    pub fn settled(&self) -> Offset {
        if matches!(self.phase, Phase::Recovering(Recovery::Witnessing)) {
            return Offset(0);
        }
        self.record.sealed_end()
    }

    /// Next offset to assign.
    #[must_use]
    pub const fn tail(&self) -> Offset {
        self.tail
    }

    /// The cached end of the log.
    #[must_use]
    pub const fn cache(&self) -> &Tail {
        &self.cache
    }

    /// Lets the cached end of the log keep at most so much.
    pub fn shrink_cache(&mut self, bytes_max: u64) {
        self.cache.shrink(bytes_max, self.visible);
    }

    /// Bytes appended and not committed.
    #[must_use]
    pub const fn undecided_bytes(&self) -> u64 {
        self.undecided_bytes
    }

    /// Bytes that wait for a place in the window.
    #[must_use]
    pub const fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// How the open segment's replicas are; a partition without one is whole.
    #[must_use]
    pub fn health(&self, nodes: &Nodes) -> Health {
        match &self.linked {
            Some(writer) if writer.is_stuck(nodes) => Health::WithoutQuorum,
            Some(writer) if writer.healthy(nodes) < self.config.replicas => Health::UnderReplicated,
            _ => Health::Whole,
        }
    }

    /// The open segment and its committed offset, where its link is confirmed.
    #[must_use]
    pub fn open_segment(&self) -> Option<(&Segment, Offset)> {
        self.linked
            .as_ref()
            .map(|writer| (&writer.segment, writer.committed))
    }
}
