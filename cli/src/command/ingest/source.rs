//! What a path leads to: files by identity, whatever they are called.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use forebay_record::crc32c;
use serde::{Deserialize, Serialize};

/// Bytes at the beginning of a file that its fingerprint covers at most.
const FINGERPRINT_BYTES: usize = 4096;

/// Which file it is, as long as it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileId {
    /// The device it lies on.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

impl FileId {
    /// Of an open or looked-up file.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// A checksum of a file's first bytes: the number of a file is used again once it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// How many bytes are covered.
    pub bytes: u32,
    /// Their CRC-32C.
    pub crc32c: u32,
}

impl Fingerprint {
    /// Of what there is, up to 4 KiB.
    pub fn of(file: &File) -> io::Result<Self> {
        Self::over(file, FINGERPRINT_BYTES)
    }

    /// Of what there is, up to so many bytes and 4 KiB.
    pub fn over(file: &File, bytes: usize) -> io::Result<Self> {
        let start = first_bytes(file, bytes.min(FINGERPRINT_BYTES))?;
        Ok(Self {
            bytes: u32::try_from(start.len()).unwrap_or_default(),
            crc32c: crc32c(&start),
        })
    }

    /// Whether a file begins with the bytes that it covers. If so it is extended to what there is
    /// now.
    pub fn matches(&mut self, file: &File) -> io::Result<bool> {
        let start = first_bytes(file, FINGERPRINT_BYTES)?;
        let Some(covered) = start.get(..self.bytes as usize) else {
            return Ok(false);
        };
        if crc32c(covered) != self.crc32c {
            return Ok(false);
        }
        if start.len() > covered.len() {
            self.bytes = u32::try_from(start.len()).unwrap_or_default();
            self.crc32c = crc32c(&start);
        }
        Ok(true)
    }
}

fn first_bytes(file: &File, most: usize) -> io::Result<Vec<u8>> {
    let mut start = vec![0; most];
    let mut filled = 0;
    while let Some(room) = start.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read_at(room, filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    start.truncate(filled);
    Ok(start)
}

/// What a path leads to.
#[derive(Debug)]
pub enum Kind {
    /// A regular file, which can be read again.
    File,
    /// A pipe, a terminal or the like: bytes come once.
    Stream,
}

/// Opens what a path leads to; a directory is refused.
pub fn open(path: &Path) -> io::Result<(File, Metadata, Kind)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory"));
    }
    let kind = if kind.is_fifo() || kind.is_char_device() || kind.is_socket() {
        Kind::Stream
    } else {
        Kind::File
    };
    Ok((file, metadata, kind))
}

/// Where in a folder the file with this identity is; none where it is not there.
pub fn find_in(folder: &Path, id: FileId) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries
        .filter_map(Result::ok)
        .find(|entry| entry.metadata().is_ok_and(|found| FileId::of(&found) == id))
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_fingerprint_grows_with_its_file_and_does_not_match_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(&path)
            .unwrap();
        let mut print = Fingerprint::of(&file).unwrap();
        assert_eq!(print.bytes, 0);
        file.write_all(b"first\n").unwrap();
        assert!(print.matches(&file).unwrap());
        assert_eq!(print.bytes, 6);
        file.write_all(&[b'x'; 10_000]).unwrap();
        assert!(print.matches(&file).unwrap());
        assert_eq!(print.bytes, 4096);
        std::fs::write(&path, b"first\n").unwrap();
        assert!(!print.matches(&file).unwrap(), "too short");
        std::fs::write(&path, [b'y'; 10_000]).unwrap();
        assert!(!print.matches(&file).unwrap(), "other bytes");
    }

    #[test]
    fn a_renamed_file_is_found_by_its_identity() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, b"x").unwrap();
        let id = FileId::of(&std::fs::metadata(&path).unwrap());
        let renamed = folder.path().join("log.1");
        std::fs::rename(&path, &renamed).unwrap();
        std::fs::write(&path, b"y").unwrap();
        assert_eq!(find_in(folder.path(), id), Some(renamed));
        assert!(open(folder.path()).is_err_and(|error| error.kind() == io::ErrorKind::IsADirectory));
    }
}
