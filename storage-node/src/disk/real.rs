//! A folder of a real file system.
//!
//! With [`DirectIo::Auto`] files bypass the page cache where a probe shows that the file system
//! takes aligned direct writes, and fall back to the cache where it does not (tmpfs, some
//! overlays). Which of the two is decided once, at the opening of the folder.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags};
use serde::{Deserialize, Serialize};

use super::{BLOCK_LEN, Disk, File, Space};
use crate::buffer::Buffer;

const PROBE: &str = "direct-io-probe";

/// Whether to bypass the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DirectIo {
    /// Where the file system can.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// A folder of a real file system.
#[derive(Debug)]
pub struct RealDisk {
    folder: PathBuf,
    direct: bool,
}

impl RealDisk {
    /// Opens a folder that exists.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn open(folder: &Path, direct_io: DirectIo) -> io::Result<Self> {
        let direct = match direct_io {
            DirectIo::Auto => probe(folder)?,
            DirectIo::Off => false,
        };
        Ok(Self {
            folder: folder.to_owned(),
            direct,
        })
    }

    fn options(&self) -> fs::OpenOptions {
        options(self.direct)
    }
}

fn options(direct: bool) -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true);
    if direct {
        options.custom_flags(OFlags::DIRECT.bits().cast_signed());
    }
    options
}

/// Whether an aligned direct write works in `folder`. Only a refusal of the kind of access means
/// no; a full or failing disk is an error, not a reason to go on through the page cache.
fn probe(folder: &Path) -> io::Result<bool> {
    let path = folder.join(PROBE);
    let tried = options(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .and_then(|file| {
            let block = Buffer::new(BLOCK_LEN);
            file.write_all_at(block.as_slice(), 0)
        });
    match fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    match tried {
        Ok(()) => Ok(true),
        Err(error) => match rustix::io::Errno::from_io_error(&error) {
            Some(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(false),
            _ => Err(error),
        },
    }
}

impl Disk for RealDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = self.options().create_new(true).open(self.path(name))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile(self.options().open(self.path(name))?)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            // A name that is not text is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        fs::File::open(&self.folder)?.sync_all()
    }

    fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(&self.folder)?;
        Ok(Space {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    fn is_direct(&self) -> bool {
        self.direct
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

#[derive(Debug)]
struct RealFile(fs::File);

impl File for RealFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.0.read_at(rest, position + filled as u64) {
                Ok(0) => break,
                // A direct read that stops off a block boundary has met the end of the file;
                // going on from there would not be aligned.
                Ok(read) if !read.is_multiple_of(BLOCK_LEN) && read < rest.len() => {
                    filled += read;
                    break;
                }
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, buf: &[u8], position: u64) -> io::Result<()> {
        self.0.write_all_at(buf, position)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, len) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP) => self.0.set_len(len),
            Err(error) => Err(error.into()),
        }
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
    fn what_is_written_is_read_in_either_mode() {
        for mode in [DirectIo::Auto, DirectIo::Off] {
            let folder = tempfile::tempdir().unwrap();
            let disk = RealDisk::open(folder.path(), mode).unwrap();
            assert_eq!(disk.list().unwrap(), Vec::<String>::new());
            let file = disk.create("a").unwrap();
            file.allocate(3 * BLOCK_LEN as u64).unwrap();
            let mut out = Buffer::new(BLOCK_LEN);
            out.as_mut_slice().fill(7);
            file.write_at(out.as_slice(), BLOCK_LEN as u64).unwrap();
            file.sync().unwrap();
            disk.rename("a", "b").unwrap();
            disk.sync_names().unwrap();
            let file = disk.open("b").unwrap();
            assert_eq!(file.length().unwrap(), 3 * BLOCK_LEN as u64);
            let mut all = Buffer::new(4 * BLOCK_LEN);
            assert_eq!(file.read_at(all.as_mut_slice(), 0).unwrap(), 3 * BLOCK_LEN);
            let sevens = all.as_slice().iter().filter(|byte| **byte == 7).count();
            assert_eq!((sevens, all.as_slice()[BLOCK_LEN]), (BLOCK_LEN, 7));
            assert_eq!(disk.list().unwrap(), ["b"]);
            assert!(disk.create("b").is_err());
            let space = disk.space().unwrap();
            assert!(space.total >= space.free && space.total > 0);
        }
    }
}
