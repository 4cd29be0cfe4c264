//! The embedded store on disk.
//!
//! ```text
//! <file>.lock   decimal process id of the holder, under an exclusive advisory lock
//! <file>        redb: magic, versions and page checksums are redb's own
//!   table "meta"     &str -> u64
//!     "format"         1
//!     "revision"       of the newest transaction that changed anything
//!     "openings"       how often the file was opened
//!   table "entries"  &str -> (create u64, mod u64, version u64, lease u64, value bytes)
//! ```
//!
//! Commits are two-phase: a page that fails its checksum is then damage, and never taken for a
//! commit that did not finish and may be rolled back. A new file is made under another name and
//! renamed, so an empty or half-made one is damage too.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::state::Change;
use crate::store::types::{Entry, LeaseId, Revision};

const FORMAT: u64 = 1;
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const ENTRIES: TableDefinition<&str, (u64, u64, u64, u64, &[u8])> = TableDefinition::new("entries");
/// redb's cache: everything is in memory here already.
const CACHE_BYTES: usize = 16 << 20;
/// Longest process id that is read from a lock file.
const PID_BYTES_MAX: u64 = 20;

/// Why the embedded store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another store in this one, has it.
    #[error("metadata file {} is in use{}", .path.display(), .pid.map_or_else(String::new, |pid| format!(" by process {pid}")))]
    Locked {
        /// The file.
        path: PathBuf,
        /// The holder, as far as known.
        pid: Option<u32>,
    },
    /// Its content is damaged.
    #[error("metadata file {} is damaged: {what}", .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where it was noticed.
        what: String,
    },
    /// Another release wrote it.
    #[error("metadata file {} has format {found}, this release reads {FORMAT}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// As written.
        found: u64,
    },
    /// The disk or the file system failed.
    #[error("metadata file {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
}

/// An open file and its lock.
pub(super) struct MetaFile {
    database: Database,
    // Dropped after the database.
    _lock: Lock,
}

/// Closing the file would give the lock back too, but not while a process that is just being
/// started has inherited it.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "lock of the metadata file not given back before it is closed");
        }
    }
}

/// What a file held when it was opened, without what hung on leases.
pub(super) struct Loaded {
    pub(super) entries: BTreeMap<String, Entry>,
    pub(super) revision: Revision,
    pub(super) openings: u64,
}

impl MetaFile {
    pub(super) fn open(path: &Path) -> Result<(Self, Loaded), OpenError> {
        let lock = lock(path)?;
        let io = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        if !path.try_exists().map_err(io)? {
            create(path)?;
        }
        if path.metadata().map_err(io)?.len() == 0 {
            let what = "it is empty".to_owned();
            return Err(OpenError::Corrupt {
                path: path.to_owned(),
                what,
            });
        }
        let mut database = builder().open(path).map_err(|error| sort(path, error.into()))?;
        // Everything is about to be read, so every checksum may as well be verified.
        let clean = database
            .check_integrity()
            .map_err(|error| sort(path, error.into()))?;
        if !clean {
            tracing::warn!(path = %path.display(), "free pages of the metadata file were recounted");
        }
        let (entries, leased, meta) = load(&database).map_err(|error| sort(path, error))?;
        let number = |name: &str| {
            meta.get(name).copied().ok_or_else(|| OpenError::Corrupt {
                path: path.to_owned(),
                what: format!("it has no {name}"),
            })
        };
        let (format, revision, openings) = (number("format")?, number("revision")?, number("openings")?);
        if format != FORMAT {
            return Err(OpenError::Format {
                path: path.to_owned(),
                found: format,
            });
        }
        let openings = openings.saturating_add(1);
        let revision = revision.saturating_add(u64::from(!leased.is_empty()));
        void_sessions(&database, &leased, revision, openings).map_err(|error| sort(path, error))?;
        let loaded = Loaded {
            entries,
            revision: Revision(revision),
            openings,
        };
        Ok((
            Self {
                database,
                _lock: lock,
            },
            loaded,
        ))
    }

    /// A new store on a disk of the test's making.
    #[cfg(test)]
    pub(super) fn on(disk: impl redb::StorageBackend) -> Result<(Self, Loaded), redb::Error> {
        let database = builder().create_with_backend(disk)?;
        initialize(&database)?;
        let loaded = Loaded {
            entries: BTreeMap::new(),
            revision: Revision(0),
            openings: 1,
        };
        Ok((
            Self {
                database,
                _lock: Lock(tempfile::tempfile()?),
            },
            loaded,
        ))
    }

    /// Makes changes durable, in their order, by one commit.
    pub(super) fn save(&self, revision: Revision, changes: &[Change]) -> Result<(), redb::Error> {
        let mut commit = self.database.begin_write()?;
        commit.set_two_phase_commit(true);
        {
            let mut entries = commit.open_table(ENTRIES)?;
            for change in changes {
                match &change.after {
                    Some(entry) => {
                        let row = (
                            entry.create_revision.0,
                            entry.mod_revision.0,
                            entry.version,
                            entry.lease.map_or(0, |lease| lease.0),
                            &*entry.value,
                        );
                        entries.insert(change.key.as_str(), row)?;
                    }
                    None => {
                        entries.remove(change.key.as_str())?;
                    }
                }
            }
            commit.open_table(META)?.insert("revision", revision.0)?;
        }
        commit.commit()?;
        Ok(())
    }
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Takes the lock beside the file; it is held until the returned file is closed.
fn lock(path: &Path) -> Result<Lock, OpenError> {
    let io = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&beside)
        .map_err(io)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only decorates the error: a holder that has not written its id yet stays unnamed.
            let _ = lock.take(PID_BYTES_MAX).read_to_string(&mut holder);
            let pid = holder.trim().parse().ok();
            return Err(OpenError::Locked {
                path: path.to_owned(),
                pid,
            });
        }
        Err(TryLockError::Error(error)) => return Err(io(error)),
    }
    let mut lock = Lock(lock);
    lock.0.set_len(0).map_err(io)?;
    lock.0.rewind().map_err(io)?;
    writeln!(lock.0, "{}", std::process::id()).map_err(io)?;
    Ok(lock)
}

/// Makes a new file that is either complete or not there.
fn create(path: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let database = builder()
        .create(&unfinished)
        .map_err(|error| sort(path, error.into()))?;
    initialize(&database).map_err(|error| sort(path, error))?;
    drop(database);
    std::fs::rename(&unfinished, path).map_err(io)?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io)
}

fn initialize(database: &Database) -> Result<(), redb::Error> {
    let mut commit = database.begin_write()?;
    commit.set_two_phase_commit(true);
    {
        commit.open_table(ENTRIES)?;
        let mut meta = commit.open_table(META)?;
        meta.insert("format", FORMAT)?;
        meta.insert("revision", 0)?;
        meta.insert("openings", 0)?;
    }
    commit.commit()?;
    Ok(())
}

type Tables = (BTreeMap<String, Entry>, Vec<String>, BTreeMap<String, u64>);

/// Entries without a lease, keys with one, and the numbers.
fn load(database: &Database) -> Result<Tables, redb::Error> {
    let read = database.begin_read()?;
    let mut meta = BTreeMap::new();
    for row in read.open_table(META)?.iter()? {
        let (name, number) = row?;
        meta.insert(name.value().to_owned(), number.value());
    }
    let (mut entries, mut leased) = (BTreeMap::new(), Vec::new());
    for row in read.open_table(ENTRIES)?.iter()? {
        let (key, row) = row?;
        let (create, modified, version, lease, value) = row.value();
        let key = key.value().to_owned();
        if lease != 0 {
            leased.push(key);
            continue;
        }
        let entry = Entry {
            key: key.clone(),
            value: Bytes::copy_from_slice(value),
            create_revision: Revision(create),
            mod_revision: Revision(modified),
            version,
            lease: None::<LeaseId>,
        };
        entries.insert(key, entry);
    }
    Ok((entries, leased, meta))
}

/// Whoever held a lease is gone: one process has the file, and it has just opened it.
fn void_sessions(
    database: &Database,
    leased: &[String],
    revision: u64,
    openings: u64,
) -> Result<(), redb::Error> {
    let mut commit = database.begin_write()?;
    commit.set_two_phase_commit(true);
    {
        let mut entries = commit.open_table(ENTRIES)?;
        for key in leased {
            entries.remove(key.as_str())?;
        }
        let mut meta = commit.open_table(META)?;
        meta.insert("revision", revision)?;
        meta.insert("openings", openings)?;
    }
    commit.commit()?;
    Ok(())
}

/// Tells damage from a failing disk.
fn sort(path: &Path, error: redb::Error) -> OpenError {
    let path = path.to_owned();
    match error {
        redb::Error::DatabaseAlreadyOpen => OpenError::Locked { path, pid: None },
        redb::Error::Io(source)
            if !matches!(
                source.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            OpenError::Io { path, source }
        }
        damage => OpenError::Corrupt {
            path,
            what: damage.to_string(),
        },
    }
}
