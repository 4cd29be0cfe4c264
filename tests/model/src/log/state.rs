//! The state of the log model: one partition's record, its segments, storage nodes, brokers.
//!
//! Everything is a small array of small numbers, so that millions of states can be copied and
//! compared. Offsets, segments and revisions count from 0, nodes and brokers are indices.
//! `Replicas` holds a generation for each node, 0 for "not a replica", so that renaming nodes is a
//! change of order.
#![allow(missing_docs, reason = "fields are named in the words of docs/protocol.md")]

use crate::search::Fingerprint;

/// Storage nodes.
pub const NODES: usize = 4;
/// Segments that a run can create.
pub const SEGMENTS: usize = 5;
/// Broker incarnations; the first owns the partition at the start.
pub const BROKERS: usize = 3;
/// Entries that a log can hold.
pub const ENTRIES: usize = 4;
/// Entries sent for one segment; more than fit, for a writer that writes an offset twice.
pub const SENDS: usize = 5;
/// Transactions of one broker that may be on their way.
pub const TXNS: usize = 2;

/// Values at consecutive offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entries {
    len: u8,
    values: [u8; ENTRIES],
}

impl Entries {
    pub fn len(&self) -> u8 {
        self.len
    }

    pub fn get(&self, index: u8) -> Option<u8> {
        self.as_slice().get(usize::from(index)).copied()
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.values[..usize::from(self.len)]
    }

    pub fn push(&mut self, value: u8) {
        self.values[usize::from(self.len)] = value;
        self.len += 1;
    }

    pub fn truncate(&mut self, len: u8) {
        while self.len > len {
            self.len -= 1;
            self.values[usize::from(self.len)] = 0;
        }
    }

    pub fn from_slice(values: &[u8]) -> Self {
        let mut entries = Self::default();
        for &value in values {
            entries.push(value);
        }
        entries
    }

    pub fn since(&self, index: u8) -> Self {
        Self::from_slice(self.as_slice().get(usize::from(index)..).unwrap_or_default())
    }

    fn feed(&self, into: &mut Fingerprint) {
        into.byte(self.len);
        into.bytes(self.as_slice());
    }
}

/// The generation of each node that is a replica; 0 for the others.
pub type Replicas = [u8; NODES];

/// The nodes of a replica set.
pub fn members(replicas: &Replicas) -> impl Iterator<Item = usize> {
    let replicas = *replicas;
    (0..NODES).filter(move |&node| replicas[node] != 0)
}

/// A segment's place in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    pub segment: u8,
    pub base: u8,
    /// `OPEN` or the sealed end.
    pub end: u8,
    pub replicas: Replicas,
}

/// The end of an open segment.
pub const OPEN: u8 = u8::MAX;

/// The partition's record in the metadata store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Record {
    pub epoch: u8,
    pub revision: u8,
    /// Sequence of the newest segment that this epoch linked.
    pub last_seq: u8,
    /// What is in the object store, from offset 0.
    pub archived: Entries,
    pub links: [Link; SEGMENTS],
    pub len: u8,
}

impl Record {
    pub fn chain(&self) -> &[Link] {
        &self.links[..usize::from(self.len)]
    }

    pub fn last(&self) -> Option<&Link> {
        self.chain().last()
    }

    pub fn position(&self, segment: u8) -> Option<usize> {
        self.chain().iter().position(|link| link.segment == segment)
    }

    pub fn push(&mut self, link: Link) {
        self.links[usize::from(self.len)] = link;
        self.len += 1;
    }

    pub fn truncate(&mut self, len: usize) {
        for link in &mut self.links[len..] {
            *link = Link::default();
        }
        self.len = len as u8;
    }

    pub fn drop_first(&mut self) {
        self.links.rotate_left(1);
        self.truncate(usize::from(self.len) - 1);
    }
}

/// An entry on its way to the replicas, with the committed offset known when it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Send {
    pub offset: u8,
    pub value: u8,
    pub committed: u8,
}

/// A segment as its creator knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    pub epoch: u8,
    pub seq: u8,
    pub token: u8,
    pub base: u8,
    pub replicas: Replicas,
    pub sends: [Send; SENDS],
    pub sent: u8,
    /// For each node, a bit for each send that may still arrive.
    pub in_flight: [u8; NODES],
}

/// What a node holds of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Replica {
    pub present: bool,
    pub fenced: bool,
    pub limbo: bool,
    pub entries: Entries,
    /// How many entries are synced; the rest dies with the process.
    pub synced: u8,
    pub committed: u8,
}

/// A storage node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Node {
    pub generation: u8,
    pub floor: u8,
    pub held: [Replica; SEGMENTS],
    /// A bit for each segment that it held and forgot, under this generation.
    pub forgotten: u8,
}

/// What a broker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Has no grant yet.
    #[default]
    Idle,
    /// Has a grant, closes the last segment.
    Fencing,
    /// Fills a new segment that is not linked.
    Preparing,
    /// Has sent the transaction that links it.
    Linking,
    /// Gave up waiting for the transaction's answer.
    Unsure,
    /// Owns an open segment.
    Active,
    /// Was told that it is no owner.
    Deposed,
}

/// Where a transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TxnState {
    #[default]
    None,
    InFlight,
    Applied,
    Refused,
}

/// The change that seals one segment and links the next, as sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Txn {
    pub state: TxnState,
    pub seen: u8,
    pub epoch: u8,
    pub sealed: u8,
    pub sealed_end: u8,
    pub linked: u8,
}

/// A broker incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Broker {
    pub phase: Phase,
    pub epoch: u8,
    pub seq: u8,
    /// The segment that it writes; while fencing, the one that it closes.
    pub segment: u8,
    pub log: Entries,
    /// For each node, how many entries of `segment` it reported durable.
    pub acks: [u8; NODES],
    pub committed: u8,
    /// The segment that the next link seals, and where.
    pub sealed: u8,
    pub sealed_end: u8,
    pub recovering: bool,
    /// The segment to be sealed still drains to `sealed_end`.
    pub draining: bool,
    /// Nodes that gave evidence after they were closed, and nodes that were closed.
    pub evidence: u8,
    pub closed: u8,
    pub longest: Entries,
    pub shortest: Option<Entries>,
    pub committed_seen: u8,
    /// Acknowledgements of the segment that is being sealed, while it drains or for a mutant.
    pub old_acks: [u8; NODES],
    pub txns: [Txn; TXNS],
}

/// A copy of a sealed segment to a node that takes the place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repair {
    pub record: Record,
    pub segment: u8,
    pub from: u8,
    pub to: u8,
    pub copied: bool,
}

/// The whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    pub record: Record,
    pub segments: [Segment; SEGMENTS],
    pub segment_count: u8,
    pub nodes: [Node; NODES],
    pub brokers: [Broker; BROKERS],
    pub repair: Option<Repair>,
    /// What was acknowledged or shown, by offset.
    pub visible: Entries,
    pub next_value: u8,
    /// Disks lost or rotten, process crashes, answers lost, repairs begun: against their budgets.
    pub losses: u8,
    pub crashes: u8,
    pub unanswered: u8,
    pub repairs: u8,
    /// What a step itself did wrong.
    pub broken: Option<&'static str>,
}

impl State {
    /// Where a record says that a segment's replicas are.
    pub fn replicas_of(&self, segment: u8) -> Replicas {
        match self.record.position(segment) {
            Some(at) => self.record.links[at].replicas,
            None => self.segments[usize::from(segment)].replicas,
        }
    }

    pub fn replica(&self, node: usize, segment: u8) -> &Replica {
        &self.nodes[node].held[usize::from(segment)]
    }

    pub fn replica_mut(&mut self, node: usize, segment: u8) -> &mut Replica {
        &mut self.nodes[node].held[usize::from(segment)]
    }

    /// The fingerprint with the nodes in the given order. Nodes 1 and 2 always stand in the same
    /// replica sets, so either order names the same situation.
    pub fn fingerprint_as(&self, order: [usize; NODES]) -> u64 {
        let mut into = Fingerprint::default();
        self.record.feed(order, &mut into);
        into.byte(self.segment_count);
        for segment in &self.segments[..usize::from(self.segment_count)] {
            segment.feed(order, &mut into);
        }
        for node in order {
            self.nodes[node].feed(self.segment_count, &mut into);
        }
        for broker in &self.brokers {
            broker.feed(order, &mut into);
        }
        if let Some(repair) = &self.repair {
            repair.record.feed(order, &mut into);
            let place = |node: u8| order.iter().position(|&at| at == usize::from(node)).unwrap_or(0) as u8;
            into.bytes(&[
                repair.segment,
                place(repair.from),
                place(repair.to),
                repair.copied.into(),
            ]);
        }
        self.visible.feed(&mut into);
        into.bytes(&[
            self.next_value,
            self.losses,
            self.crashes,
            self.unanswered,
            self.repairs,
        ]);
        into.byte(u8::from(self.broken.is_some()));
        into.end()
    }
}

fn ordered(values: &[u8; NODES], order: [usize; NODES]) -> [u8; NODES] {
    order.map(|node| values[node])
}

fn bits(mask: u8, order: [usize; NODES]) -> u8 {
    order.iter().fold(0, |bits, &node| bits << 1 | (mask >> node & 1))
}

impl Record {
    fn feed(&self, order: [usize; NODES], into: &mut Fingerprint) {
        into.bytes(&[self.epoch, self.revision, self.last_seq, self.len]);
        self.archived.feed(into);
        for link in self.chain() {
            into.bytes(&[link.segment, link.base, link.end]);
            into.bytes(&ordered(&link.replicas, order));
        }
    }
}

impl Segment {
    fn feed(&self, order: [usize; NODES], into: &mut Fingerprint) {
        into.bytes(&[self.epoch, self.seq, self.token, self.base, self.sent]);
        into.bytes(&ordered(&self.replicas, order));
        into.bytes(&ordered(&self.in_flight, order));
        for send in &self.sends[..usize::from(self.sent)] {
            into.bytes(&[send.offset, send.value, send.committed]);
        }
    }
}

impl Node {
    fn feed(&self, segments: u8, into: &mut Fingerprint) {
        into.bytes(&[self.generation, self.floor, self.forgotten]);
        for held in &self.held[..usize::from(segments)] {
            into.byte(u8::from(held.present) | u8::from(held.fenced) << 1 | u8::from(held.limbo) << 2);
            if held.present {
                into.bytes(&[held.synced, held.committed]);
                held.entries.feed(into);
            }
        }
    }
}

impl Broker {
    fn feed(&self, order: [usize; NODES], into: &mut Fingerprint) {
        into.byte(self.phase as u8);
        if matches!(self.phase, Phase::Idle) {
            return;
        }
        into.bytes(&[
            self.epoch,
            self.seq,
            self.segment,
            self.committed,
            self.sealed,
            self.sealed_end,
        ]);
        into.bytes(&ordered(&self.acks, order));
        into.bytes(&ordered(&self.old_acks, order));
        into.bytes(&[
            bits(self.evidence, order),
            bits(self.closed, order),
            u8::from(self.recovering) | u8::from(self.draining) << 1,
            self.committed_seen,
        ]);
        self.log.feed(into);
        self.longest.feed(into);
        self.shortest.unwrap_or_default().feed(into);
        for txn in &self.txns {
            into.byte(txn.state as u8);
            if !matches!(txn.state, TxnState::None) {
                into.bytes(&[txn.seen, txn.epoch, txn.sealed, txn.sealed_end, txn.linked]);
            }
        }
    }
}
