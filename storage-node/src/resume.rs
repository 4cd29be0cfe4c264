//! Reading a folder's journal back and going on where it ends.
//!
//! What was lost goes into limbo: an operator decides what becomes of it. Then the
//! superblock is written with the new boot, and the place to go on: in the last file, whose last
//! block is written again and marked as synced, or in a new file where anything was damaged, so
//! that its snapshot remembers. Everything that is served afterwards is durable.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use forebay_meta::store::Revision;
use forebay_record::{Token, crc32c};
use forebay_runtime::random::Random;

use crate::core::{Core, Parts, Salts};
use crate::disk::Disk;
use crate::index::Index;
use crate::journal::files::{FileTable, frame_bytes_max};
use crate::journal::format::{Owner, SEGMENT_STATE_LEN};
use crate::journal::pool::{Pool, Purpose};
use crate::journal::scan::{self, Found, ScanError};
use crate::journal::writer::{self, Beginning, Place, Settings, Writer};
use crate::register::Refused;
use crate::replica::{Limits, Replica};
use crate::superblock::{Superblock, SuperblockError};

/// Frames that a node holds at most: 48 bytes of index and 4 of checksum each.
const FRAMES_MAX: u64 = 8 << 20;

/// Segments that a node holds at most, fenced ones included: each snapshot names all of them.
const SEGMENTS_MAX: usize = 256 << 10;

/// Why a journal could not be resumed.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// A file cannot be used.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// The superblock cannot be used.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// The journal is older than what the metadata store remembers.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The newest journal file is missing.
    #[error("data folder {}: journal file {expected} is missing, the newest is {found}", .path.display())]
    FileMissing {
        /// The folder.
        path: PathBuf,
        /// Number of the newest file there.
        found: u64,
        /// Number of the newest file begun.
        expected: u64,
    },
    /// The disk failed.
    #[error("cannot write data folder {}", .path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How a journal is resumed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub file_len: u64,
    pub commit_bytes_max: usize,
    pub budget_bytes: u64,
    /// Position that was durable at the last checkpoint.
    pub checkpoint: u64,
    /// Newest revision of the metadata store: no token there is can be above it.
    pub revision: Revision,
}

/// A journal that can be written and read.
#[derive(Debug)]
pub(crate) struct Resumed {
    pub core: Core,
    pub superblock: Superblock,
    pub disk: Arc<dyn Disk>,
    pub index: Arc<Index>,
    pub table: Arc<FileTable>,
    pub pool: Arc<Pool>,
    pub limits: Limits,
}

/// Reads a journal back and goes on; `superblock` is the one of this start. Blocks.
pub(crate) fn resume(
    disk: Arc<dyn Disk>,
    mut superblock: Superblock,
    terms: &Terms,
    random: Arc<dyn Random>,
) -> Result<Resumed, ResumeError> {
    let io_error = |source| ResumeError::Io {
        path: disk.path(""),
        source,
    };
    let owner = Owner {
        cluster: crc32c(superblock.cluster.as_bytes()),
        node: superblock.node,
        generation: superblock.generation,
    };
    let found = scan::scan(&*disk, owner)?;
    check(&*disk, &superblock, &found, terms)?;
    superblock.write(&*disk)?;
    let settings = Settings {
        owner,
        boot: superblock.boot,
        commit_bytes_max: terms.commit_bytes_max,
    };
    let limits = limits(terms.file_len);
    let Found {
        mut held,
        table,
        place,
        last_block,
        newest,
        next_start,
        prev,
        ..
    } = found;
    if held.floor_uncertain {
        // A lost tombstone or floor is of a token that some revision up to now gave (I5). Damage
        // leads to a new file, whose snapshot holds the floor before anything is answered.
        held.floor = held.floor.max(Token(terms.revision.0));
    }
    let replica = Replica::restore(superblock.node, superblock.generation, limits, &held);
    let pool = Arc::new(Pool::open(Arc::clone(&disk), terms.file_len, terms.budget_bytes).map_err(io_error)?);
    let table = Arc::new(table);
    let place = if let Some(place) = place {
        scan::rewrite_last(&place, last_block).map_err(io_error)?;
        place
    } else {
        let snapshot = replica.snapshot();
        let (number, start, salt) = (newest + 1, next_start, random.u64());
        let with = Beginning {
            number,
            start,
            prev,
            salt,
            snapshot: &snapshot,
        };
        let place = begin(&disk, &pool, &settings, with).map_err(io_error)?;
        table.insert(Arc::clone(&place.file));
        superblock.newest_file = number;
        superblock.write(&*disk)?;
        place
    };
    let index = Arc::new(Index::restore(held));
    let mut core = Core::new(Parts {
        disk: Arc::clone(&disk),
        superblock: superblock.clone(),
        replica,
        writer: Writer::new(Arc::clone(&disk), Arc::clone(&table), settings, place),
        table: Arc::clone(&table),
        pool: Arc::clone(&pool),
        index: Arc::clone(&index),
        random: Arc::new(Salts(random)),
    });
    core.idle();
    if let Some(reason) = core.failure() {
        return Err(io_error(io::Error::other(reason.to_owned())));
    }
    Ok(Resumed {
        core,
        superblock,
        disk,
        index,
        table,
        pool,
        limits,
    })
}

/// What a snapshot and a file of this length can hold: a quarter is for the snapshot, and the largest
/// frame fits the rest.
fn limits(file_len: u64) -> Limits {
    let snapshot = usize::try_from(file_len / 4).unwrap_or(usize::MAX);
    Limits {
        segments_max: (snapshot / SEGMENT_STATE_LEN).min(SEGMENTS_MAX),
        frames_max: FRAMES_MAX,
        frame_bytes_max: frame_bytes_max(file_len),
    }
}

fn begin(disk: &Arc<dyn Disk>, pool: &Pool, settings: &Settings, with: Beginning<'_>) -> io::Result<Place> {
    let prev = with.prev;
    let (file, _) = writer::begin(&**disk, settings, pool.take(Purpose::Data)?, with)?;
    Ok(Place {
        at: file.header.blocks_at(),
        prev,
        file: Arc::new(file),
    })
}

fn check(disk: &dyn Disk, superblock: &Superblock, found: &Found, terms: &Terms) -> Result<(), ResumeError> {
    let path = disk.path("");
    if found.newest < superblock.newest_file {
        let (found, expected) = (found.newest, superblock.newest_file);
        return Err(ResumeError::FileMissing {
            path,
            found,
            expected,
        });
    }
    if let Some(cut) = &found.cut {
        tracing::info!(file = %cut.path.display(), at = cut.at, reason = cut.reason, "cut an unsynced tail");
    }
    for damage in &found.damage {
        tracing::error!(file = %damage.path.display(), at = damage.at, reason = damage.reason,
            "durable bytes of the journal are damaged");
    }
    // A folder that never had a file has nothing to be older than.
    if superblock.newest_file > 0 && found.next_start < terms.checkpoint {
        let (found, expected) = (found.next_start, terms.checkpoint);
        return Err(Refused::Older {
            path,
            what: "journal",
            found,
            expected,
        }
        .into());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
