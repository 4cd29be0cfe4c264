//! Starting on a data folder: whose it is, what it holds, and only then who may know.
//!
//! 1. Ask at the address in the node's record whether the node runs there; lock the folder, read its
//!    superblock, and compare it with the record.
//! 2. Read the journal back. What was lost goes into limbo.
//! 3. Write the superblock with the new boot, then the place to go on writing, then the record.
//! 4. Only then start threads.
//!
//! Ends early without harm at any point: a boot that the store did not learn of is used again.

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forebay_meta::model::TopicConfig;
use forebay_meta::record::RecordError;
use forebay_meta::store::ReadError;
use forebay_runtime::random::Random;

use crate::config::Config;
use crate::disk::{Disk, FolderError, Folders, HeldFolder, LockError};
use crate::journal::files::{file_len, is_ours, journal_number};
use crate::register::{Identity, Plan, Refused, RegisterError, Seen, plan};
use crate::resume::{ResumeError, Resumed, Terms, resume};
use crate::superblock::{CLUSTER_LEN_MAX, STARTS, Superblock, SuperblockError};

/// Why a storage node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be used.
    #[error("storage node configuration")]
    Config(#[from] forebay_runtime::config::ConfigError),
    /// The cluster id is too long.
    #[error("cluster id of {len} bytes, at most {CLUSTER_LEN_MAX}")]
    ClusterId {
        /// Its length.
        len: usize,
    },
    /// The folder cannot be used.
    #[error("data folder {}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process uses the folder.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The superblock cannot be used.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// Folder and metadata store contradict each other.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The node's record could not be read or written.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The records of the partitions held here could not be read.
    #[error("cannot compare what is held with the partitions' records")]
    Records(#[source] ReadError),
    /// The counter of partitions is damaged.
    #[error("counter of partitions")]
    Counter(#[source] RecordError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] ResumeError),
    /// A thread could not be started.
    #[error("cannot start thread {name}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Preparing the start was cut short.
    #[error("the start was interrupted")]
    Interrupted,
}

/// What a start is made of beside the configuration.
pub(super) struct Context {
    pub cluster: String,
    pub incarnation: u32,
    pub random: Arc<dyn Random>,
    pub folders: Arc<dyn Folders>,
}

/// A folder that was read back and may be written.
pub(super) struct Opened {
    pub lock: Box<dyn Any + Send>,
    pub resumed: Resumed,
    pub capacity: u64,
}

/// Steps 1 to 3 but for the record. Blocks: call it off the runtime's threads.
pub(super) fn open(config: &Config, context: &Context, seen: &Seen) -> Result<Opened, StartError> {
    let folder = config.data_dir.as_path();
    let here = open_folder(config, folder, &*context.folders)?;
    let superblock = here
        .as_ref()
        .map(|held| Superblock::read(&*held.disk))
        .transpose()?
        .flatten();
    let me = Identity {
        path: folder,
        node: config.node(),
        cluster: &context.cluster,
        incarnation: context.incarnation,
        revision: seen.revision,
        record_revision: seen.record_revision(),
    };
    let plan = plan(me, superblock.as_ref(), seen.record.as_ref())?;
    let HeldFolder { lock, disk } = match here {
        Some(here) => here,
        // Only a node that may start with nothing gets this far without a folder.
        None => {
            context.folders.create(folder).map_err(folder_error(folder))?;
            open_folder(config, folder, &*context.folders)?
                .ok_or_else(|| folder_error(folder)(io::ErrorKind::NotFound.into()))?
        }
    };
    let superblock = match (superblock, plan) {
        (Some(superblock), Plan::Resume { boot }) => Superblock { boot, ..superblock },
        (superblock, Plan::Fresh { generation, boot }) => {
            debug_assert!(superblock.is_none());
            refuse_leftovers(&*disk, folder)?;
            let mut uuid = [0; 16];
            context.random.fill(&mut uuid);
            Superblock {
                disk: uuid::Builder::from_random_bytes(uuid).into_uuid(),
                node: config.node(),
                generation,
                boot,
                newest_file: 0,
                incarnation: context.incarnation,
                revision: 0,
                record_revision: 0,
                starts: [0; STARTS],
                cluster: context.cluster.clone(),
            }
        }
        (None, Plan::Resume { .. }) => return Err(StartError::Interrupted),
    };
    let superblock = Superblock {
        incarnation: context.incarnation,
        revision: seen.revision.0,
        record_revision: seen.record_revision().0,
        starts: superblock.starts_with(context.random.u64().max(1)),
        ..superblock
    };
    let io_error = folder_error(folder);
    let capacity = budget(config, &*disk).map_err(&io_error)?;
    config.check_budget(capacity)?;
    let terms = Terms {
        file_len: file_len(config.file_bytes(capacity)),
        commit_bytes_max: config.commit_bytes_max.as_usize(),
        budget_bytes: Config::files_bytes_max(capacity),
        checkpoint: seen.record.as_ref().map_or(0, |record| record.lsn_checkpoint),
        revision: seen.revision,
    };
    let resumed = resume(disk, superblock, &terms, Arc::clone(&context.random))?;
    Ok(Opened {
        lock,
        resumed,
        capacity,
    })
}

/// Says where topics have to do with smaller batches than they may have by default.
pub(super) fn warn_of_small_files(file_len: u64, frame_bytes_max: usize) {
    let batch_bytes_max = TopicConfig::default().batch_bytes_max;
    if frame_bytes_max < batch_bytes_max as usize {
        tracing::warn!(
            journal_file_bytes = file_len,
            frame_bytes_max,
            max_message_bytes = batch_bytes_max,
            "journal files take no batch as large as topics allow by default: batches over \
             frame_bytes_max are refused (storage.journal_file_bytes)"
        );
    }
}

fn folder_error(path: &Path) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::Folder {
        path: path.to_owned(),
        source,
    }
}

/// Locks and opens a folder; none where there is none.
fn open_folder(
    config: &Config,
    folder: &Path,
    folders: &dyn Folders,
) -> Result<Option<HeldFolder>, StartError> {
    folders
        .open(folder, config.direct_io)
        .map_err(|error| match error {
            FolderError::Lock(error) => error.into(),
            FolderError::Io(error) => folder_error(folder)(error),
        })
}

fn refuse_leftovers(disk: &dyn Disk, folder: &Path) -> Result<(), StartError> {
    let names = disk.list().map_err(folder_error(folder))?;
    match names.into_iter().find(|name| journal_number(name).is_some()) {
        Some(file) => Err(Refused::Leftover {
            path: folder.to_owned(),
            file,
        }
        .into()),
        None => Ok(()),
    }
}

fn budget(config: &Config, disk: &dyn Disk) -> io::Result<u64> {
    match config.disk_budget_bytes.as_u64() {
        0 => Ok(disk.space()?.total / 10 * 9),
        bytes => Ok(bytes),
    }
}

/// A locked folder whose journal is to go.
#[derive(Debug)]
pub(super) struct Wiping {
    path: PathBuf,
    held: HeldFolder,
    /// Of journal files.
    pub bytes: u64,
}

impl Wiping {
    /// Locks the folder; it is made where there is none.
    pub(super) fn begin(config: &Config, folders: &dyn Folders) -> Result<Self, StartError> {
        let folder = config.data_dir.as_path();
        folders.create(folder).map_err(folder_error(folder))?;
        let Some(held) = open_folder(config, folder, folders)? else {
            return Err(StartError::Interrupted);
        };
        // A damaged one is a reason to reformat.
        if let Ok(Some(superblock)) = Superblock::read(&*held.disk)
            && superblock.node != config.node()
        {
            return Err(Refused::Foreign {
                path: folder.to_owned(),
                what: "storage node",
                found: superblock.node.to_string(),
                expected: config.node().to_string(),
            }
            .into());
        }
        let mut bytes = 0;
        for name in held.disk.list().map_err(folder_error(folder))? {
            if is_ours(&name) {
                let len = held.disk.open(&name).and_then(|file| file.length());
                bytes += len.map_err(folder_error(folder))?;
            }
        }
        Ok(Self {
            path: folder.to_owned(),
            held,
            bytes,
        })
    }

    /// Removes everything of the journal and the superblock.
    pub(super) fn wipe(self) -> Result<(), StartError> {
        let error = folder_error(&self.path);
        let disk = &*self.held.disk;
        Superblock::remove(disk)?;
        for name in disk.list().map_err(&error)? {
            if is_ours(&name) {
                disk.remove(&name).map_err(&error)?;
            }
        }
        disk.sync_names().map_err(&error)
    }
}
