//! The checkpoint file: what is acknowledged, kept so that a run can go on after a kill.
//!
//! Written whole beside the old one, synced, renamed over it, and the folder synced: at any moment
//! there is one whole checkpoint. A lock beside it keeps two runs from sharing one.

mod format;

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};

pub use format::{Checkpoint, Entry};

/// Ends of the names of the files beside it.
const NEW: &str = ".new";
const LOCK: &str = ".lock";

/// The file, for this run alone.
#[derive(Debug)]
pub struct CheckpointFile {
    path: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

impl CheckpointFile {
    /// Takes the file for this run, and reads what is in it; none where there is no file yet.
    pub fn open(path: &Path) -> anyhow::Result<(Self, Option<Checkpoint>)> {
        let path = std::path::absolute(path)?;
        let lock_path = beside(&path, LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .with_context(|| format!("cannot open {}, the lock of the checkpoint", lock_path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("checkpoint {} is in use by another ingest", path.display());
        }
        let found = match read(&path) {
            Ok(bytes) => Some(Checkpoint::decode(&bytes).with_context(|| {
                format!(
                    "checkpoint {} cannot be used; restore it, or remove it to start over, \
                     which writes again what was written already",
                    path.display()
                )
            })?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read checkpoint {}", path.display()));
            }
        };
        Ok((Self { path, _lock: lock }, found))
    }

    /// The files that are written for a checkpoint at this path.
    pub fn files(path: &Path) -> io::Result<[PathBuf; 3]> {
        let path = std::path::absolute(path)?;
        Ok([beside(&path, NEW), beside(&path, LOCK), path])
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces what is in it; durable once this returns. Blocks.
    pub fn write(&self, checkpoint: &Checkpoint) -> io::Result<()> {
        let (head, body) = checkpoint.encode()?;
        let new = beside(&self.path, NEW);
        let mut file = File::create(&new)?;
        file.write_all(head.as_bytes())?;
        file.write_all(&body)?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        File::open(folder)?.sync_all()
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(format::BYTES_MAX)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn checkpoint(topic: &str) -> Checkpoint {
        Checkpoint {
            cluster: "c".to_owned(),
            topic: topic.to_owned(),
            topic_id: "00".to_owned(),
            inputs: Vec::new(),
        }
    }

    #[test]
    fn what_was_written_last_is_read_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("progress");
        let (file, found) = CheckpointFile::open(&path).unwrap();
        assert_eq!(found, None);
        file.write(&checkpoint("a")).unwrap();
        file.write(&checkpoint("b")).unwrap();
        let shared = CheckpointFile::open(&path).unwrap_err().to_string();
        assert!(shared.contains("in use by another ingest"), "{shared}");
        drop(file);
        let (_file, found) = CheckpointFile::open(&path).unwrap();
        assert_eq!(found, Some(checkpoint("b")));
        assert!(!folder.path().join("progress.new").exists());
    }

    #[test]
    fn a_file_that_is_none_is_refused_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("progress");
        std::fs::write(&path, "{}").unwrap();
        let error = format!("{:#}", CheckpointFile::open(&path).unwrap_err());
        assert!(
            error.contains("progress cannot be used") && error.contains("remove it"),
            "{error}"
        );
    }
}
