//! The node's record in the metadata store, and what it says about starting here.
//!
//! A folder and a record must agree on who this is: a node that came back with other bytes than
//! it acknowledged would count as evidence for what it no longer has (I18). [`plan`] is the pure
//! rule; [`register`] takes the record by compare-and-swap, so of two processes with copies of one
//! disk only one starts; [`checkpoint`] stores how far the journal is durable, which shows a
//! folder that was restored from an older image.

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use forebay_meta::keys;
use forebay_meta::record::{RecordError, decode, encode};
use forebay_meta::store::{Compare, Entry, MetaStore, Op, ReadError, Revision, Txn, TxnError};
use forebay_proto::stored::{NodeRecord, NodeState};
use forebay_record::{Generation, NodeId, SegmentId};
use forebay_runtime::mutant::{self, Mutant};
use uuid::Uuid;

use crate::config::Config;
use crate::superblock::Superblock;

/// Generations of one node between two restores of the metadata store.
const GENERATIONS_PER_INCARNATION: u32 = 1_000;

/// Why a node must not start with this folder.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// The folder has no superblock, and the store knows the node.
    #[error(
        "data folder {} holds no data of storage node {node}, which the metadata store knows with \
         generation {generation}: is it mounted? if its data is lost for good, `forebay storage reformat` takes \
         a new generation", .path.display()
    )]
    Missing {
        /// The folder.
        path: PathBuf,
        /// The node.
        node: NodeId,
        /// As recorded.
        generation: Generation,
    },
    /// The folder is somebody else's.
    #[error("data folder {} is of {what} {found}, this is {expected}", .path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// As in the folder.
        found: String,
        /// As it should be.
        expected: String,
    },
    /// The folder is older than what the store remembers.
    #[error(
        "data folder {} was restored from an older image: its {what} is {found}, the metadata \
         store remembers {expected}; `forebay storage reformat` takes a new generation", .path.display()
    )]
    Older {
        /// The folder.
        path: PathBuf,
        /// What is older.
        what: &'static str,
        /// As in the folder.
        found: u64,
        /// As remembered.
        expected: u64,
    },
    /// Another copy of the folder's disk was started last.
    #[error(
        "data folder {} is a copy of the disk of storage node {node}, and boot {boot} of the node started from another \
         one, at {address}: what that was given is missing here; `forebay storage reformat` takes a new generation",
        .path.display()
    )]
    Copied {
        /// The folder.
        path: PathBuf,
        /// The node.
        node: NodeId,
        /// As recorded.
        boot: u64,
        /// Where that start is reached.
        address: String,
    },
    /// The node runs elsewhere.
    #[error(
        "storage node {node} runs at {address}, with boot {boot}: is data folder {} a copy of its disk, or is {node} \
         not the id of this node?", .path.display()
    )]
    Runs {
        /// The folder.
        path: PathBuf,
        /// The node.
        node: NodeId,
        /// Of the process that runs.
        boot: u64,
        /// Where it answers.
        address: String,
    },
    /// The store is older than what the folder remembers, or another one.
    #[error(
        "metadata store is behind data folder {}: {what} is {found} there and {expected} here (I24); if the \
         store was restored from a backup, `forebay metadata raise-incarnation` brings both together",
        .path.display()
    )]
    StoreBehind {
        /// The folder.
        path: PathBuf,
        /// What is older.
        what: &'static str,
        /// As in the store.
        found: u64,
        /// As the folder remembers.
        expected: u64,
    },
    /// The folder holds what the store knows nothing of.
    #[error(
        "metadata store is behind data folder {}: {segment} is there, {why} (I24); if the store was \
         restored from a backup, `forebay metadata raise-incarnation` brings both together", .path.display()
    )]
    Unknown {
        /// The folder.
        path: PathBuf,
        /// What is held.
        segment: SegmentId,
        /// What the store says instead.
        why: String,
    },
    /// An operator declared the node gone.
    #[error(
        "storage node {node} was declared gone; `forebay storage reformat` of {} takes a new generation",
        .path.display()
    )]
    Gone {
        /// The node.
        node: NodeId,
        /// The folder.
        path: PathBuf,
    },
    /// There is nothing to reformat.
    #[error(
        "the metadata store does not know storage node {node}: it starts on {} without being reformatted",
        .path.display()
    )]
    NeverStarted {
        /// The node.
        node: NodeId,
        /// The folder.
        path: PathBuf,
    },
    /// Journal files lie in a folder without a superblock.
    #[error("data folder {} holds {file} but no superblock", .path.display())]
    Leftover {
        /// The folder.
        path: PathBuf,
        /// One of the files.
        file: String,
    },
}

/// A checkpoint that lost to another change of the record is tried again so often.
const CHECKPOINT_TRIES: u32 = 16;

/// How to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// With nothing.
    Fresh { generation: Generation, boot: u64 },
    /// With what the folder holds.
    Resume { boot: u64 },
}

/// Who asks to start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity<'a> {
    pub path: &'a Path,
    pub node: NodeId,
    pub cluster: &'a str,
    pub incarnation: u32,
    pub revision: Revision,
    /// Revision of the node's record, zero where there is none.
    pub record_revision: Revision,
}

/// Decides by what the folder and the store say.
pub(crate) fn plan(
    me: Identity<'_>,
    superblock: Option<&Superblock>,
    record: Option<&NodeRecord>,
) -> Result<Plan, Refused> {
    let path = || me.path.to_owned();
    let gone = record.is_some_and(|record| record.state() == NodeState::Gone);
    match (superblock, record) {
        (None, None) => Ok(Plan::Fresh {
            generation: Generation(1),
            boot: 1,
        }),
        (None, Some(record)) if gone => Ok(Plan::Fresh {
            generation: next_generation(record, me.incarnation),
            boot: record.boot + 1,
        }),
        (None, Some(record)) => {
            let generation = Generation(record.generation);
            Err(Refused::Missing {
                path: path(),
                node: me.node,
                generation,
            })
        }
        // A first start with a new generation that ended between folder and store: nobody was ever told
        // of what the folder holds.
        (Some(superblock), Some(record))
            if gone
                && superblock.generation == next_generation(record, me.incarnation)
                && superblock.boot == record.boot + 1 =>
        {
            check_identity(me, superblock)?;
            Ok(Plan::Resume {
                boot: superblock.boot,
            })
        }
        // The backup is from before the node came back with a new generation.
        (Some(superblock), Some(record))
            if gone
                && me.incarnation > superblock.incarnation
                && superblock.generation.0 > record.generation =>
        {
            check_identity(me, superblock)?;
            raised(me, superblock, Some(record))
        }
        (Some(_), Some(_)) if gone => Err(Refused::Gone {
            node: me.node,
            path: path(),
        }),
        (Some(superblock), record) => {
            check_identity(me, superblock)?;
            if me.incarnation > superblock.incarnation {
                return raised(me, superblock, record);
            }
            let seen = superblock.record_revision;
            let older = me.record_revision.0 < seen && !mutant::is(Mutant::OlderAnswerTaken);
            if record.is_some() && older {
                return Err(Refused::StoreBehind {
                    path: path(),
                    what: "revision of this node's record",
                    found: me.record_revision.0,
                    expected: seen,
                });
            }
            let boot = match record {
                Some(record) => resumed_boot(me, superblock, record)?,
                // The first start may have ended between folder and store.
                None if superblock.boot <= 1 => 1,
                None => return Err(behind(me, 0, superblock.boot)),
            };
            Ok(Plan::Resume { boot })
        }
    }
}

/// The generation after a record's. Each incarnation begins with its own: a record that was restored
/// from a backup does not know how many there were.
pub(crate) fn next_generation(record: &NodeRecord, incarnation: u32) -> Generation {
    if mutant::is(Mutant::GenerationKept) {
        return Generation(record.generation);
    }
    let first = incarnation
        .saturating_sub(1)
        .saturating_mul(GENERATIONS_PER_INCARNATION)
        .saturating_add(1);
    Generation(record.generation.saturating_add(1).max(first))
}

/// A start after the incarnation was raised: the record is as old as the backup, so the folder may be
/// of a later boot, a later generation, or of a node that the backup does not know. An older one, or
/// another disk of the same generation, is refused as always.
fn raised(me: Identity<'_>, superblock: &Superblock, record: Option<&NodeRecord>) -> Result<Plan, Refused> {
    let boot = superblock.boot + 1;
    let Some(record) = record else {
        return Ok(Plan::Resume { boot });
    };
    if superblock.generation.0 > record.generation {
        return Ok(Plan::Resume {
            boot: boot.max(record.boot + 1),
        });
    }
    match resumed_boot(me, superblock, record) {
        Err(Refused::StoreBehind { .. }) => Ok(Plan::Resume { boot }),
        resumed => resumed.map(|boot| Plan::Resume { boot }),
    }
}

/// The boot of a start with the recorded disk and generation.
fn resumed_boot(me: Identity<'_>, superblock: &Superblock, record: &NodeRecord) -> Result<u64, Refused> {
    let foreign = |what, found: String, expected: String| {
        Err(Refused::Foreign {
            path: me.path.to_owned(),
            what,
            found,
            expected,
        })
    };
    if superblock.generation.0 != record.generation {
        let expected = Generation(record.generation).to_string();
        return foreign("generation", superblock.generation.to_string(), expected);
    }
    if superblock.disk.as_bytes().as_slice() != record.disk.as_ref() {
        let expected = Uuid::from_slice(&record.disk).unwrap_or_default().to_string();
        return foreign("disk", superblock.disk.to_string(), expected);
    }
    // The folder is written first, the store second.
    let (found, expected) = (superblock.boot, record.boot);
    match found.checked_sub(expected) {
        // The record names one of this disk's own starts, or a copy of it has gone on alone.
        Some(0 | 1)
            if record.start != 0
                && !superblock.starts.contains(&record.start)
                && !mutant::is(Mutant::CopyStarts) =>
        {
            Err(Refused::Copied {
                path: me.path.to_owned(),
                node: me.node,
                boot: record.boot,
                address: record.data_address.clone(),
            })
        }
        Some(0 | 1) => Ok(expected + 1),
        Some(_) => Err(behind(me, expected, found)),
        None => Err(Refused::Older {
            path: me.path.to_owned(),
            what: "boot",
            found,
            expected,
        }),
    }
}

fn behind(me: Identity<'_>, found: u64, expected: u64) -> Refused {
    Refused::StoreBehind {
        path: me.path.to_owned(),
        what: "boot of this node",
        found,
        expected,
    }
}

fn check_identity(me: Identity<'_>, superblock: &Superblock) -> Result<(), Refused> {
    let path = me.path.to_owned();
    if superblock.cluster != me.cluster {
        let (found, expected) = (superblock.cluster.clone(), me.cluster.to_owned());
        return Err(Refused::Foreign {
            path,
            what: "cluster",
            found,
            expected,
        });
    }
    if superblock.node != me.node {
        let (found, expected) = (superblock.node.to_string(), me.node.to_string());
        return Err(Refused::Foreign {
            path,
            what: "storage node",
            found,
            expected,
        });
    }
    let (seen, now) = (
        (superblock.incarnation, superblock.revision),
        (me.incarnation, me.revision.0),
    );
    if now.0 < seen.0 {
        let (found, expected) = (u64::from(now.0), u64::from(seen.0));
        return Err(Refused::StoreBehind {
            path,
            what: "incarnation",
            found,
            expected,
        });
    }
    if now < seen && !mutant::is(Mutant::OlderAnswerTaken) {
        return Err(Refused::StoreBehind {
            path,
            what: "revision",
            found: now.1,
            expected: seen.1,
        });
    }
    Ok(())
}

/// Why the record could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The store did not answer.
    #[error("cannot read the record of storage node {node}")]
    Read {
        /// The node.
        node: NodeId,
        /// Why.
        source: ReadError,
    },
    /// The store did not take the change, or did not say whether it did.
    #[error("cannot register storage node {node}")]
    Txn {
        /// The node.
        node: NodeId,
        /// Why.
        source: TxnError,
    },
    /// The record is damaged.
    #[error("record of storage node {node}")]
    Record {
        /// The node.
        node: NodeId,
        /// Why.
        source: RecordError,
    },
    /// Somebody else changed it.
    #[error(
        "record of storage node {node} was changed by another process: boot {boot}, generation {generation}"
    )]
    Changed {
        /// The node.
        node: NodeId,
        /// As recorded now.
        boot: u64,
        /// As recorded now.
        generation: Generation,
    },
}

/// The record as it was read.
#[derive(Debug)]
pub(crate) struct Seen {
    pub entry: Option<Entry>,
    pub record: Option<NodeRecord>,
    pub revision: Revision,
}

impl Seen {
    /// Revision of the record, zero where there is none.
    pub(crate) fn record_revision(&self) -> Revision {
        self.entry
            .as_ref()
            .map_or(Revision(0), |entry| entry.mod_revision)
    }
}

pub(crate) async fn read(meta: &dyn MetaStore, node: NodeId) -> Result<Seen, RegisterError> {
    let read = meta.get(&keys::node(node)).await;
    let (entry, revision) = read.map_err(|source| RegisterError::Read { node, source })?;
    let record = entry
        .as_ref()
        .map(|entry| decode::<NodeRecord>(&entry.value))
        .transpose()
        .map_err(|source| RegisterError::Record { node, source })?;
    Ok(Seen {
        entry,
        record,
        revision,
    })
}

/// The record of a start.
pub(crate) fn record_of(
    config: &Config,
    superblock: &Superblock,
    seen: &Seen,
    durable: u64,
    (capacity_bytes, frame_bytes_max): (u64, usize),
) -> NodeRecord {
    let state = match seen.record.as_ref().map(NodeRecord::state) {
        Some(state @ (NodeState::Draining | NodeState::Full)) => state,
        Some(NodeState::Unspecified | NodeState::Active | NodeState::Gone) | None => NodeState::Active,
    };
    NodeRecord {
        id: superblock.node.0,
        generation: superblock.generation.0,
        boot: superblock.boot,
        disk: superblock.disk.as_bytes().to_vec().into(),
        lsn_checkpoint: durable,
        state: state as i32,
        data_address: config.data_address.clone(),
        control_address: config.control_address.clone(),
        zone: config.zone.clone(),
        capacity_bytes,
        frame_bytes_max: frame_bytes_max as u64,
        start: superblock.starts.first().copied().unwrap_or_default(),
    }
}

/// Puts a record in the place of the one that was read. An unknown outcome is resolved by
/// reading: the start in a record is one process's own.
pub(crate) async fn register(
    meta: &dyn MetaStore,
    seen: &Seen,
    record: &NodeRecord,
) -> Result<Revision, RegisterError> {
    let node = NodeId(record.id);
    let key = keys::node(node);
    let unchanged = match &seen.entry {
        Some(entry) => Compare::unchanged(entry),
        None => Compare::absent(key.clone()),
    };
    let txn = Txn::new().when(unchanged).then(Op::put(key, encode(record)));
    match meta.txn(txn).await {
        Ok(reply) if reply.succeeded => return Ok(reply.revision),
        Ok(_) | Err(TxnError::Unknown(_)) => {}
        Err(source) => return Err(RegisterError::Txn { node, source }),
    }
    let now = read(meta, node).await?;
    let revision = now.record_revision();
    match now.record {
        Some(now) if now == *record => Ok(revision),
        now => {
            let now = now.unwrap_or_default();
            let generation = Generation(now.generation);
            Err(RegisterError::Changed {
                node,
                boot: now.boot,
                generation,
            })
        }
    }
}

/// What a checkpoint found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// What an operator wants of the node.
    pub state: NodeState,
    /// Newest revision of the store.
    pub revision: Revision,
    /// Revision of the node's record.
    pub record_revision: Revision,
}

/// Stores how far the journal is durable.
pub(crate) async fn checkpoint(
    meta: &dyn MetaStore,
    mine: &NodeRecord,
    durable: u64,
) -> Result<Checkpoint, RegisterError> {
    // An operator may change the record's state at the same moment: it is this start's record still.
    let mut result = checkpoint_once(meta, mine, durable).await;
    for _ in 1..CHECKPOINT_TRIES {
        match &result {
            Err(RegisterError::Changed { boot, generation, .. })
                if (*boot, generation.0) == (mine.boot, mine.generation) => {}
            _ => break,
        }
        result = checkpoint_once(meta, mine, durable).await;
    }
    result
}

async fn checkpoint_once(
    meta: &dyn MetaStore,
    mine: &NodeRecord,
    durable: u64,
) -> Result<Checkpoint, RegisterError> {
    let node = NodeId(mine.id);
    let seen = read(meta, node).await?;
    let record = seen.record.clone().unwrap_or_default();
    let who = |record: &NodeRecord| (record.boot, record.start, record.generation, record.disk.clone());
    let still_mine = who(&record) == who(mine);
    if !still_mine {
        let generation = Generation(record.generation);
        return Err(RegisterError::Changed {
            node,
            boot: record.boot,
            generation,
        });
    }
    let mut checkpoint = Checkpoint {
        state: record.state(),
        revision: seen.revision,
        record_revision: seen.record_revision(),
    };
    if record.lsn_checkpoint < durable {
        let written = register(
            meta,
            &seen,
            &NodeRecord {
                lsn_checkpoint: durable,
                ..record
            },
        )
        .await?;
        checkpoint.record_revision = written;
        checkpoint.revision = seen.revision.max(written);
    }
    Ok(checkpoint)
}
