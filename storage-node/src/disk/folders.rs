//! Where a node's folder comes from: each is held by one node at a time.

use std::any::Any;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{DirectIo, Disk, FolderLock, LockError, RealDisk};

/// A folder that nobody else holds.
pub struct HeldFolder {
    /// Gives it back when dropped.
    pub lock: Box<dyn Any + Send>,
    /// Its files.
    pub disk: Arc<dyn Disk>,
}

impl fmt::Debug for HeldFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldFolder")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

/// Why a folder was not opened.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Somebody else holds it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Of the file system.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Gives out folders.
pub trait Folders: Send + Sync + fmt::Debug + 'static {
    /// Locks and opens a folder; none where there is none. Blocks.
    ///
    /// # Errors
    /// Where it is held, or of the file system.
    fn open(&self, folder: &Path, direct_io: DirectIo) -> Result<Option<HeldFolder>, FolderError>;

    /// Makes a folder with all that is missing above it.
    ///
    /// # Errors
    /// Of the file system.
    fn create(&self, folder: &Path) -> io::Result<()>;
}

/// The machine's folders.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealFolders;

impl Folders for RealFolders {
    fn open(&self, folder: &Path, direct_io: DirectIo) -> Result<Option<HeldFolder>, FolderError> {
        match std::fs::metadata(folder) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let lock = FolderLock::take(folder)?;
        let disk = RealDisk::open(folder, direct_io)?;
        Ok(Some(HeldFolder {
            lock: Box::new(lock),
            disk: Arc::new(disk),
        }))
    }

    fn create(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder)
    }
}
