//! What a checkpoint says, and its bytes.
//!
//! | line | content                                                                  |
//! |------|--------------------------------------------------------------------------|
//! | 1    | `forebay-ingest-checkpoint 1 <checksum> <bytes>`: magic, version, CRC-32C of what follows the line feed in eight hex digits, and how many bytes follow |
//! | 2…   | JSON of [`Checkpoint`], an input on each line; unknown fields are refused |
//!
//! A file that was cut, changed or is of another version is refused as a whole: going on from a
//! wrong place would lose or repeat lines without a word.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use forebay_client::{ProducerId, ProducerStamp};
use forebay_record::crc32c;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::command::ingest::cut::Cutting;
use crate::command::ingest::mark::Mark;
use crate::command::ingest::source::{FileId, Fingerprint};

const MAGIC: &str = "forebay-ingest-checkpoint";
const VERSION: u32 = 1;
/// About what an input takes.
const ENTRY_BYTES: usize = 640;
/// More than ten thousand inputs take; a file beyond it is not read.
pub const BYTES_MAX: u64 = 256 << 20;

/// How far each input was written to a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The cluster, as it names itself.
    pub cluster: String,
    /// Name of the topic.
    pub topic: String,
    /// Its id, in hex: another one once the topic was deleted and made again.
    pub topic_id: String,
    /// By input.
    pub inputs: Vec<Entry>,
}

/// How far one file was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Where it was first found.
    #[serde(with = "path")]
    pub path: PathBuf,
    /// Which file it is.
    pub file: FileId,
    /// What it begins with.
    pub fingerprint: Fingerprint,
    /// Its size when it was first found.
    pub first_size: u64,
    /// Bytes before this place are acknowledged.
    pub position: u64,
    /// Lines that end before it.
    pub line: u64,
    /// Whether it lies inside a line that is left out.
    pub skipping: bool,
    /// Whether nothing beyond it was sent.
    pub settled: bool,
    /// Places beyond it where batches end early that may have been sent.
    pub cuts: Vec<u64>,
    /// Who its batches are from.
    pub producer_id: u64,
    /// The producer's epoch.
    pub producer_epoch: i16,
    /// Where its batches go, in turn.
    pub partitions: Vec<u32>,
    /// Batches before the place.
    pub batches: u64,
    /// The next sequence number in each of the partitions.
    pub sequences: Vec<i32>,
    /// How it is cut.
    pub cutting: Cutting,
}

impl Entry {
    /// Where to go on.
    pub fn mark(&self) -> Mark {
        Mark {
            position: self.position,
            line: self.line,
            skipping: self.skipping,
            batches: self.batches,
            sequences: self.sequences.clone(),
        }
    }

    /// Who its batches are from.
    pub const fn producer(&self) -> ProducerStamp {
        ProducerStamp {
            id: ProducerId(self.producer_id),
            epoch: self.producer_epoch,
            sequence: 0,
        }
    }
}

/// Why bytes are not a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Something else altogether.
    #[error("it does not begin with {MAGIC:?}")]
    Magic,
    /// Of another version of this program.
    #[error("it has version {found}, this program reads version {VERSION}")]
    Version {
        /// What it says.
        found: String,
    },
    /// Cut off, or longer than it should be.
    #[error("it says {expected} bytes follow its first line, and {found} do")]
    Length {
        /// What it says.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// Changed.
    #[error("its checksum is {found:08x}, it says {expected:08x}")]
    Checksum {
        /// What it says.
        expected: u32,
        /// What is there.
        found: u32,
    },
    /// Well sealed and still not understood.
    #[error("{0}")]
    Content(String),
}

impl Checkpoint {
    /// The first line of the file, and what follows it: one input a line.
    pub fn encode(&self) -> Result<(String, Vec<u8>), serde_json::Error> {
        let text = |text: &str| serde_json::to_string(text);
        let (cluster, topic, id) = (text(&self.cluster)?, text(&self.topic)?, text(&self.topic_id)?);
        let mut body = Vec::with_capacity(ENTRY_BYTES * (self.inputs.len() + 1));
        body.extend_from_slice(
            format!("{{\"cluster\":{cluster},\n\"topic\":{topic},\n\"topic_id\":{id},\n\"inputs\":[")
                .as_bytes(),
        );
        for (at, entry) in self.inputs.iter().enumerate() {
            body.extend_from_slice(if at == 0 { b"\n" } else { b",\n" });
            serde_json::to_writer(&mut body, entry)?;
        }
        body.extend_from_slice(b"\n]}\n");
        let head = format!("{MAGIC} {VERSION} {:08x} {}\n", crc32c(&body), body.len());
        Ok((head, body))
    }

    /// Reads the bytes of a file.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let end = memchr::memchr(b'\n', bytes).ok_or(FormatError::Magic)?;
        let (head, rest) = bytes.split_at(end);
        let body = rest.get(1..).unwrap_or_default();
        let head = std::str::from_utf8(head).map_err(|_| FormatError::Magic)?;
        let mut words = head.split(' ');
        if words.next() != Some(MAGIC) {
            return Err(FormatError::Magic);
        }
        let version = words.next().unwrap_or_default();
        if version != VERSION.to_string() {
            let found = version.to_owned();
            return Err(FormatError::Version { found });
        }
        let checksum = words.next().and_then(|word| u32::from_str_radix(word, 16).ok());
        let length = words.next().and_then(|word| word.parse::<u64>().ok());
        let (Some(expected), Some(length), None) = (checksum, length, words.next()) else {
            return Err(FormatError::Magic);
        };
        if length != body.len() as u64 {
            let (expected, found) = (length, body.len() as u64);
            return Err(FormatError::Length { expected, found });
        }
        let found = crc32c(body);
        if found != expected {
            return Err(FormatError::Checksum { expected, found });
        }
        let checkpoint: Self =
            serde_json::from_slice(body).map_err(|error| FormatError::Content(error.to_string()))?;
        checkpoint.check()?;
        Ok(checkpoint)
    }

    fn check(&self) -> Result<(), FormatError> {
        for entry in &self.inputs {
            let wrong = |what: &str| {
                let path = entry.path.display();
                Err(FormatError::Content(format!("{path}: {what}")))
            };
            if entry.partitions.is_empty() || entry.partitions.len() != entry.sequences.len() {
                return wrong("partitions and sequence numbers do not go together");
            }
            if entry.sequences.iter().any(|sequence| *sequence < 0) || entry.producer_epoch < 0 {
                return wrong("a sequence number or the epoch is negative");
            }
            if !entry.cuts.is_sorted() || entry.cuts.iter().any(|cut| *cut <= entry.position) {
                return wrong("ends of batches are not in order behind the position");
            }
        }
        Ok(())
    }
}

/// A path as text, or as bytes where it is none.
mod path {
    use super::*;

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Stored {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        let stored = match path.to_str() {
            Some(text) => Stored::Text(text.to_owned()),
            None => Stored::Bytes(path.as_os_str().as_bytes().to_vec()),
        };
        stored.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Ok(match Stored::deserialize(deserializer)? {
            Stored::Text(text) => PathBuf::from(text),
            Stored::Bytes(bytes) => PathBuf::from(OsString::from_vec(bytes)),
        })
    }
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
