//! After etcd was restored from a backup: bringing records and storage nodes together again.
//!
//! 1. [`raise`] gives the cluster its next incarnation: from there on only storage nodes run, nothing
//!    is trimmed, sessions of whoever still runs are gone, and new revisions (tokens, names, sessions)
//!    lie above all old ones.
//! 2. Storage nodes say what they hold, and the object store what nothing names. [`plan`] compares that
//!    with one record: objects that continue the offloaded past are listed again, segments that were
//!    linked after the backup enter the chain again, where each continues the one before; what is
//!    missing between is declared as a gap.
//! 3. [`skip_ids`] keeps ids that were given out after the backup from being given out again,
//!    [`store_record`] writes the records, [`finish`] lets everything run.
//!
//! Promises: no `(epoch, sequence)` that any node may hold is used again; what is lost is declared,
//! never silent; each step may be repeated. Never trusts a record about what it cannot know.

mod inventory;
mod objects;

use std::collections::BTreeMap;

use forebay_proto::stored::{ClusterRecord, CounterRecord};
use forebay_record::{Epoch, Generation, NodeId, Offset, PartitionId, SegmentId, SessionId, Token};
use forebay_runtime::random::Random;

pub use self::inventory::Inventory;
pub use self::objects::FoundRun;
use crate::cluster;
use crate::failure::{MetaFailure, TRIES_MAX, decode};
use crate::keys;
use crate::model::{Gap, Partition, Segment};
use crate::record::encode;
use crate::store::{Compare, Entry, MetaStore, Op, PUTS_MAX, Txn, TxnError, scan};

/// Epochs that are left out: more takeovers than can have happened to one partition since a backup
/// without a trace on the storage nodes. Names of manifests have the epoch in them.
const EPOCHS_SKIPPED: u32 = 1_000;
/// Producer ids that are left out.
const PRODUCER_IDS_SKIPPED: u64 = 1 << 32;
/// Partition ids that are left out above the highest that a node holds anything of.
const PARTITION_IDS_SKIPPED: u64 = 1_000;
/// Offsets that are left out where nobody can say how far readers have come.
pub const OFFSETS_SKIPPED: u64 = 1 << 32;
/// Sessions that can be there.
const SESSIONS_MAX: usize = 100_000;

/// One storage node's copy of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    /// Of the node, now.
    pub generation: Generation,
    /// First offset not held.
    pub tail: Offset,
    /// Highest committed offset that the segment's owner stated.
    pub committed: Offset,
    /// Bytes may be missing.
    pub limbo: bool,
}

/// A segment that storage nodes hold, as its first frame describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The segment.
    pub id: SegmentId,
    /// Its token.
    pub token: Token,
    /// Its first offset.
    pub base: Offset,
    /// Replicas that must have synced an entry before it is committed.
    pub ack_quorum: u8,
    /// Its replica set.
    pub replicas: Vec<(NodeId, Generation)>,
    /// Bytes of its frames on the node that has most.
    pub bytes: u64,
    /// Who has how much.
    pub copies: BTreeMap<NodeId, Copy>,
}

impl Held {
    /// What those hold who were its replicas while it was written.
    fn originals(&self) -> impl Iterator<Item = &Copy> {
        let was = |node: &NodeId, copy: &Copy| self.replicas.contains(&(*node, copy.generation));
        self.copies
            .iter()
            .filter(move |(node, copy)| was(node, copy))
            .map(|(_, copy)| copy)
    }

    /// The end of the segment, where a copy of all of it was made later, on a node that was no replica:
    /// only sealed segments are copied, up to their end, and a copy is in limbo until it is whole.
    fn copied_end(&self) -> Option<Offset> {
        let was = |node: &NodeId, copy: &Copy| self.replicas.contains(&(*node, copy.generation));
        let later = self
            .copies
            .iter()
            .filter(|(node, copy)| !was(node, copy) && !copy.limbo);
        later
            .map(|(_, copy)| copy.tail)
            .max()
            .filter(|end| *end > self.base)
    }

    fn tail(&self) -> Offset {
        // Beyond its end nothing was committed.
        if let Some(end) = self.copied_end() {
            return end;
        }
        let tails = self.originals().map(|copy| copy.tail);
        tails.max().unwrap_or(self.base).max(self.base)
    }

    fn committed(&self) -> Offset {
        if let Some(end) = self.copied_end() {
            return end;
        }
        let committed = self.originals().map(|copy| copy.committed);
        committed.max().unwrap_or(self.base).max(self.base)
    }

    /// Whether anybody has something of it that can be read.
    fn is_held(&self) -> bool {
        self.copied_end().is_some() || self.originals().next().is_some()
    }

    /// The replica set of the sealed segment: nodes that have all of it take the places of those that
    /// do not.
    fn replicas_of(&self, named: &[(NodeId, Generation)], end: Offset) -> Vec<(NodeId, Generation)> {
        let has_all = |one: &(NodeId, Generation)| {
            let copy = self.copies.get(&one.0).filter(|copy| copy.generation == one.1);
            copy.is_some_and(|copy| !copy.limbo && copy.tail >= end)
        };
        let mut replicas = named.to_vec();
        let others = self.copies.iter().map(|(node, copy)| (*node, copy.generation));
        for other in others.filter(has_all) {
            if replicas.contains(&other) {
                continue;
            }
            // The same node under the generation that it had before, or else any that has not all.
            let same = replicas.iter().position(|one| one.0 == other.0);
            let place = same.or_else(|| replicas.iter().position(|one| !has_all(one)));
            if let Some(place) = place.and_then(|place| replicas.get_mut(place)) {
                *place = other;
            }
        }
        replicas
    }

    /// It was in a chain: a committed offset is stated only after that.
    fn was_linked(&self) -> bool {
        self.committed() > self.base
    }

    fn linked(&self) -> Segment {
        Segment {
            id: self.id,
            token: self.token,
            base: self.base,
            end: None,
            ack_quorum: self.ack_quorum,
            replicas: self.replicas.clone(),
            bytes: 0,
            sealed_ms: 0,
        }
    }
}

/// Whether a node that the record names, and the first frame does not, holds something of a segment.
fn is_kept(segment: &Segment, held: &BTreeMap<SegmentId, Held>) -> bool {
    let copies = held.get(&segment.id).map(|one| &one.copies);
    copies.is_some_and(|copies| {
        copies
            .iter()
            .any(|(node, copy)| segment.generation_of(*node) == Some(copy.generation))
    })
}

/// What becomes of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its new record.
    pub record: Partition,
    /// Segments that enter the chain again.
    pub adopted: Vec<SegmentId>,
    /// Segments whose objects are listed again.
    pub offloaded: Vec<SegmentId>,
    /// Ranges that are lost, or whose end nobody knows.
    pub lost: Vec<Gap>,
    /// Segments that nodes hold, that hold something, and that continue nothing: they will be trimmed.
    pub left: Vec<SegmentId>,
}

/// Compares a record of the backup with what nodes hold of the partition, and with the objects that
/// nothing names.
#[must_use]
pub fn plan(
    record: &Partition,
    held: &BTreeMap<SegmentId, Held>,
    found: &[FoundRun],
    now_ms: i64,
    op: u64,
) -> Planned {
    let mut planned = Planned {
        record: record.clone(),
        adopted: Vec::new(),
        offloaded: Vec::new(),
        lost: Vec::new(),
        left: Vec::new(),
    };
    let epochs = held.keys().chain(found.iter().map(|one| &one.segment));
    let highest = epochs.map(|id| id.epoch.0).max().unwrap_or(0);
    let highest = highest.max(record.epoch.0);
    // Not by the record's epoch: brokers that ran on the store before the incarnation was raised have
    // taken partitions over, and changed nothing else.
    let newest = record.chain.last().map(|last| last.id);
    let newer = |id: SegmentId| newest.is_none_or(|newest| id > newest);
    if !record.deleted {
        planned.find_runs(found, held, now_ms);
        planned.drop_vanished(held, now_ms);
        let past = planned.record.recent.last().map_or(Offset(0), |run| run.end);
        let is_left = |one: &Held| newer(one.id) && one.tail() > one.base && one.base >= past;
        let mut rest: Vec<&Held> = held.values().filter(|one| is_left(one)).collect();
        while let Some(next) = planned.successor(held, &rest) {
            planned.adopt(held, next, now_ms);
            rest.retain(|one| one.id > next.id && one.token > next.token);
        }
        planned.find_copies(held, now_ms);
        let (chain, adopted) = (&record.chain, &planned.adopted);
        planned.left = held
            .values()
            .filter(|one| is_left(one) && !adopted.contains(&one.id))
            .filter(|one| !chain.iter().any(|linked| linked.id == one.id))
            .map(|one| one.id)
            .collect();
    }
    planned.record.epoch = Epoch(highest.saturating_add(EPOCHS_SKIPPED));
    planned.record.owner = None;
    planned.record.session = SessionId(0);
    planned.record.last_seq = 0;
    planned.record.op = op;
    planned
}

impl Planned {
    /// Segments of the backup's chain that no node holds any more were moved into the object store
    /// after the backup, or lost: their offsets are a gap. How far an open one went is unknown.
    fn drop_vanished(&mut self, held: &BTreeMap<SegmentId, Held>, now_ms: i64) {
        let has =
            |segment: &Segment| held.get(&segment.id).is_some_and(Held::is_held) || is_kept(segment, held);
        let (kept, vanished): (Vec<_>, Vec<_>) = self.record.chain.drain(..).partition(has);
        let open_is_kept = kept.last().is_some_and(|last| last.end.is_none());
        self.record.chain = kept;
        for segment in vanished {
            match segment.end {
                Some(end) => self.lose(segment.base, end, "on no storage node after a restore", now_ms),
                None => {
                    debug_assert!(!open_is_kept);
                    // What follows, where something does, says how far it went: nowhere, where that begins
                    // with it. Records are enough; its owner may have ended before it stated any as
                    // committed.
                    let follows = held.values().filter(|one| {
                        let has_any = one.was_linked() || (one.is_held() && one.tail() > one.base);
                        one.id > segment.id && has_any && one.base >= segment.base
                    });
                    if let Some(next) = follows.map(|one| one.base).min() {
                        if next > segment.base {
                            self.lose(segment.base, next, "on no storage node after a restore", now_ms);
                        }
                    } else {
                        let end = Offset(segment.base.0.saturating_add(OFFSETS_SKIPPED));
                        self.lose(
                            segment.base,
                            end,
                            "on no storage node after a restore, end unknown",
                            now_ms,
                        );
                    }
                }
            }
        }
    }

    /// Names the nodes that hold what was copied after the backup, or before it to nodes that the first
    /// frame does not name. An open segment of which there is such a copy was sealed where the copy ends.
    fn find_copies(&mut self, held: &BTreeMap<SegmentId, Held>, now_ms: i64) {
        for segment in &mut self.record.chain {
            let Some(one) = held.get(&segment.id) else {
                continue;
            };
            if segment.end.is_none()
                && let Some(end) = one.copied_end()
            {
                segment.end = Some(end);
                segment.sealed_ms = now_ms;
                segment.bytes = one.bytes;
            }
            if let Some(end) = segment.end {
                segment.replicas = one.replicas_of(&segment.replicas, end);
            }
        }
    }

    fn lose(&mut self, base: Offset, end: Offset, why: &str, now_ms: i64) {
        let gap = Gap {
            base,
            end,
            reason: format!("{why}, at {now_ms}"),
        };
        self.lost.push(gap.clone());
        self.record.declare(gap);
    }

    /// The next segment of the chain among what nodes hold beyond it.
    fn successor<'a>(&self, held: &BTreeMap<SegmentId, Held>, rest: &[&'a Held]) -> Option<&'a Held> {
        let last = self.record.chain.last();
        let (begin, low, high) = match last {
            Some(Segment {
                end: None, id, base, ..
            }) => {
                let one = held.get(id);
                (
                    *base,
                    one.map_or(*base, Held::committed),
                    one.map_or(*base, Held::tail),
                )
            }
            _ => {
                let end = self.record.sealed_end();
                (end, end, end)
            }
        };
        let token = last.map_or(Token(0), |last| last.token);
        let candidates = || rest.iter().copied().filter(move |one| one.token > token);
        // In the chain for certain, and continuing it: the earliest. Then what continues it and
        // reaches further than what is known: the latest, since its owner knew all earlier ones.
        // Then what was in the chain behind a hole.
        let continues = |one: &&Held| one.base >= low && one.base <= high;
        // A takeover carries what it does not know to be committed, and an owner that was replaced may
        // state later that it was: the chain goes on below that.
        candidates()
            .filter(|one| one.was_linked() && one.base >= begin && one.base <= high)
            .min_by_key(|one| one.id)
            .or_else(|| {
                candidates()
                    .filter(continues)
                    .filter(|one| {
                        one.tail() > high
                            && !candidates().any(|later| later.was_linked() && later.id < one.id)
                    })
                    .max_by_key(|one| one.id)
            })
            .or_else(|| {
                candidates()
                    .filter(|one| one.was_linked() && one.base > high)
                    .min_by_key(|one| (one.base, one.id))
            })
    }

    fn adopt(&mut self, held: &BTreeMap<SegmentId, Held>, next: &Held, now_ms: i64) {
        let open = self.record.open().map(|open| (open.id, open.base));
        if let Some((id, base)) = open {
            let reached = held.get(&id).map_or(base, Held::tail).min(next.base);
            if reached == base {
                self.record.chain.pop();
            } else if let Some(open) = self.record.chain.last_mut() {
                open.end = Some(reached);
                open.sealed_ms = now_ms;
                open.bytes = held.get(&id).map_or(0, |one| one.bytes);
            }
            if reached < next.base {
                self.lose(reached, next.base, "on no storage node after a restore", now_ms);
            }
        } else {
            let end = self.record.sealed_end();
            if end < next.base {
                self.lose(end, next.base, "on no storage node after a restore", now_ms);
            }
        }
        self.record.chain.push(next.linked());
        self.adopted.push(next.id);
    }
}

/// Gives the cluster its next incarnation, where that was not begun already. Sessions of processes
/// that still run are gone after that: what they do can change no record. Returns the record.
///
/// # Errors
/// Where there is no cluster, the store does not answer, or somebody else is faster.
pub async fn raise(store: &dyn MetaStore) -> Result<ClusterRecord, MetaFailure> {
    let record = change(store, |record| {
        if !record.restoring {
            record.incarnation = record.incarnation.saturating_add(1);
            record.restoring = true;
        }
    })
    .await?;
    for prefix in [keys::BROKERS, keys::PROXIES, keys::CONTROLLER] {
        let (entries, _) = scan(store, prefix, SESSIONS_MAX).await?;
        for some in entries.chunks(PUTS_MAX) {
            let txn = some.iter().fold(Txn::new(), |txn, entry| {
                txn.then(Op::Delete {
                    key: entry.key.clone(),
                })
            });
            store.txn(txn).await?;
        }
    }
    Ok(record)
}

/// Ends what [`raise`] began.
///
/// # Errors
/// As [`raise`].
pub async fn finish(store: &dyn MetaStore) -> Result<ClusterRecord, MetaFailure> {
    change(store, |record| record.restoring = false).await
}

async fn change(
    store: &dyn MetaStore,
    change: impl Fn(&mut ClusterRecord),
) -> Result<ClusterRecord, MetaFailure> {
    let mut unknown: Option<TxnError> = None;
    for _ in 0..TRIES_MAX {
        let Some((entry, before)) = cluster::stored(store).await? else {
            return Err(MetaFailure::Inconsistent(
                "there is no cluster in this metadata store".to_owned(),
            ));
        };
        let mut after = before.clone();
        change(&mut after);
        if after == before {
            return Ok(after);
        }
        let txn = Txn::new()
            .when(Compare::unchanged(&entry))
            .then(Op::put(keys::CLUSTER, encode(&after)));
        match store.txn(txn).await {
            Ok(reply) if reply.succeeded => return Ok(after),
            Ok(_) => {}
            Err(error @ TxnError::Unknown(_)) => unknown = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(unknown.map_or_else(
        || MetaFailure::Contended {
            key: keys::CLUSTER.to_owned(),
            tries: TRIES_MAX,
        },
        MetaFailure::from,
    ))
}

/// Moves the counters beyond what may have been given out after the backup: `highest` is the highest
/// partition of which a node holds anything.
///
/// # Errors
/// Where the store fails.
pub async fn skip_ids(store: &dyn MetaStore, highest: Option<PartitionId>) -> Result<(), MetaFailure> {
    let (entry, _) = store.get(keys::PARTITION_IDS).await?;
    let next = match &entry {
        Some(entry) => decode::<CounterRecord>(entry)?.next,
        None => 1,
    };
    let beyond = highest
        .map_or(0, |id| id.0.saturating_add(1))
        .saturating_sub(next)
        .saturating_add(PARTITION_IDS_SKIPPED);
    crate::counter::allocate(store, keys::PARTITION_IDS, beyond).await?;
    crate::counter::allocate(store, keys::PRODUCER_IDS, PRODUCER_IDS_SKIPPED).await?;
    Ok(())
}

/// Puts a partition's new record in the place of the one that was planned from.
///
/// # Errors
/// Where the store fails, or the record has changed since.
pub async fn store_record(
    store: &dyn MetaStore,
    seen: &Entry,
    record: &Partition,
) -> Result<(), MetaFailure> {
    let txn = Txn::new()
        .when(Compare::unchanged(seen))
        .then(Op::put(seen.key.clone(), record.encode()));
    let sent = store.txn(txn).await;
    match sent {
        Ok(reply) if reply.succeeded => return Ok(()),
        Ok(_) | Err(TxnError::Unknown(_)) => {}
        Err(error) => return Err(error.into()),
    }
    // The nonce tells whether an attempt of unknown outcome landed.
    let (now, _) = store.get(&seen.key).await?;
    match now.map(|entry| Partition::decode(&entry.value)) {
        Some(Ok(now)) if now.op == record.op => Ok(()),
        _ => Err(MetaFailure::Inconsistent(format!(
            "the record of {} changed while it was restored: is a broker running?",
            record.id
        ))),
    }
}

/// A nonce for a change of a record.
#[must_use]
pub fn nonce(random: &dyn Random) -> u64 {
    random.u64()
}

#[cfg(test)]
mod tests;
