//! Whether the metadata store knows what a folder holds, before the folder is registered.
//!
//! A store that was restored from a backup knows less than the storage nodes. That shows in tokens and
//! floors, which are revisions; in epochs, which a record grants before anything is written under them;
//! and in committed offsets, which are stated only of segments that a record linked. A node that went
//! on with such a store would trim what the store has forgotten (I16, I24).
//!
//! Segments of an older incarnation are not judged: with them an operator has dealt. Never changes
//! anything.

use std::path::Path;

use forebay_meta::keys;
use forebay_meta::model::Partition;
use forebay_meta::record::decode;
use forebay_meta::store::{MetaStore, READ_KEYS_MAX, Revision, incarnation_base};
use forebay_proto::stored::CounterRecord;
use forebay_record::{Offset, PartitionId, SegmentId, Token};

use forebay_runtime::clock::Clock;
use forebay_runtime::execution::Execution;
use forebay_runtime::mutant::{self, Mutant};

use super::start::StartError;
use crate::index::Index;
use crate::read::Reader;
use crate::register::Refused;

/// What the store is compared with.
pub(super) struct Known<'a> {
    pub path: &'a Path,
    pub incarnation: u32,
    pub revision: Revision,
    pub floor: Token,
    /// The comparison is the operator's command's business now.
    pub restoring: bool,
}

/// What matters of a segment.
#[derive(Debug, Clone, Copy)]
struct Fact {
    segment: SegmentId,
    base: Offset,
    committed: Offset,
    token: Token,
}

/// Compares what is held with the records.
///
/// # Errors
/// [`Refused`] where the store has forgotten something; where it does not answer.
pub(super) async fn check(
    known: &Known<'_>,
    index: &Index,
    reader: &Reader,
    meta: &dyn MetaStore,
    (execution, clock): (&Execution, &dyn Clock),
) -> Result<(), StartError> {
    if known.restoring || mutant::is(Mutant::OlderAnswerTaken) {
        return Ok(());
    }
    let base = incarnation_base(known.incarnation);
    let refused = |what, expected: Token| Refused::StoreBehind {
        path: known.path.to_owned(),
        what,
        found: known.revision.0,
        expected: expected.0,
    };
    if known.floor.0 >= base && known.floor.0 > known.revision.0 {
        return Err(refused("revision below the floor", known.floor).into());
    }
    let facts = facts(index, reader, base, (execution, clock)).await?;
    if let Some(newest) = facts.iter().map(|fact| fact.token).max()
        && newest.0 > known.revision.0
    {
        return Err(refused("revision below a segment's token", newest).into());
    }
    let mut partitions: Vec<PartitionId> = facts.iter().map(|fact| fact.segment.partition).collect();
    partitions.dedup();
    if partitions.is_empty() {
        return Ok(());
    }
    let next = next_partition(meta).await?;
    for chunk in partitions.chunks(READ_KEYS_MAX) {
        let wanted: Vec<String> = chunk.iter().map(|id| keys::partition(*id)).collect();
        let (entries, _) = meta.get_many(&wanted).await.map_err(StartError::Records)?;
        for (partition, entry) in chunk.iter().zip(entries) {
            let record = entry.map(|entry| Partition::decode(&entry.value));
            let of_one = facts.iter().filter(|fact| fact.segment.partition == *partition);
            for fact in of_one {
                let why = match &record {
                    Some(Ok(record)) => forgotten(record, fact),
                    // A damaged record is told by whoever trims; it proves nothing.
                    Some(Err(_)) => None,
                    None => (partition.0 >= next)
                        .then(|| format!("and no partition above {} was ever made", next.saturating_sub(1))),
                };
                if let Some(why) = why {
                    return Err(Refused::Unknown {
                        path: known.path.to_owned(),
                        segment: fact.segment,
                        why,
                    }
                    .into());
                }
            }
        }
    }
    Ok(())
}

/// How a record shows that it has forgotten a segment.
fn forgotten(record: &Partition, fact: &Fact) -> Option<String> {
    let (segment, committed) = (fact.segment, fact.committed);
    if record.deleted || record.chain.iter().any(|linked| linked.id == segment) {
        return None;
    }
    if segment.epoch > record.epoch {
        return Some(format!("and its partition's record is at {}", record.epoch));
    }
    // A committed offset is stated only of what was linked, and what was linked is covered for good: by an
    // open segment, of which the record does not say how far it goes, or by the sealed end.
    let was_linked = committed > fact.base;
    let unknown = segment.epoch == record.epoch && segment.seq > record.last_seq;
    let beyond = record.open().is_none() && record.sealed_end() < committed;
    if was_linked && (unknown || beyond) {
        return Some(format!(
            "committed up to {committed}, and its partition's record ends at {}",
            record.sealed_end()
        ));
    }
    None
}

/// Segments of this incarnation that hold something. Their tokens are in their first frames.
async fn facts(
    index: &Index,
    reader: &Reader,
    base: u64,
    (execution, clock): (&Execution, &dyn Clock),
) -> Result<Vec<Fact>, StartError> {
    let (held, reader) = (index.held(), reader.clone());
    let reading = execution.run(clock, move || {
        held.iter()
            .filter(|one| one.frames > 0)
            .filter_map(|one| {
                // One that cannot be read is in limbo or will be found by the scrub.
                let (token, _) = reader.opened(one.segment).ok()?;
                (token.0 >= base).then_some(Fact {
                    segment: one.segment,
                    base: one.base,
                    committed: one.committed,
                    token,
                })
            })
            .collect()
    });
    reading.await.map_err(|_| StartError::Interrupted)
}

async fn next_partition(meta: &dyn MetaStore) -> Result<u64, StartError> {
    let (entry, _) = meta.get(keys::PARTITION_IDS).await.map_err(StartError::Records)?;
    let counter = entry.map(|entry| decode::<CounterRecord>(&entry.value));
    match counter {
        Some(Ok(counter)) => Ok(counter.next),
        Some(Err(error)) => Err(StartError::Counter(error)),
        None => Ok(1),
    }
}
