//! One process per data folder: an advisory lock that the kernel drops with its holder.
//!
//! The holder's process id is written into the lock file only to be shown to whoever is refused;
//! nothing is decided by it.

use std::fs;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

const NAME: &str = "lock";
const PID_LEN_MAX: u64 = 32;

/// Why a folder could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error("data folder {} is used by another process (pid {holder})", .folder.display())]
    Held {
        /// The folder.
        folder: PathBuf,
        /// The holder's process id as it wrote it.
        holder: String,
    },
    /// The lock file cannot be used.
    #[error("lock file {} cannot be used", .path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Held until dropped.
#[derive(Debug)]
pub struct FolderLock {
    _file: fs::File,
}

impl FolderLock {
    /// Locks a folder that exists.
    ///
    /// # Errors
    /// Where another process, or this one a second time, holds it.
    pub fn take(folder: &Path) -> Result<Self, LockError> {
        let path = folder.join(NAME);
        let io_error = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io_error)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                (&mut file)
                    .take(PID_LEN_MAX)
                    .read_to_string(&mut holder)
                    .map_err(io_error)?;
                let holder = holder.trim().to_owned();
                return Err(LockError::Held {
                    folder: folder.to_owned(),
                    holder,
                });
            }
            Err(error) => return Err(io_error(error.into())),
        }
        let pid = std::process::id();
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{pid}"))
            .map_err(io_error)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use super::*;

    #[test]
    fn a_second_holder_is_refused_with_path_and_pid_and_may_follow_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = FolderLock::take(folder.path()).unwrap();
        let text = FolderLock::take(folder.path()).unwrap_err().to_string();
        assert!(text.contains(&folder.path().display().to_string()), "{text}");
        assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
        drop(first);
        FolderLock::take(folder.path()).unwrap();
    }
}
