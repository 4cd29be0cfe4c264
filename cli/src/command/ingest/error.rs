//! What ends the ingest, in words that name the input and the place.

use std::io;

use forebay_client::{BuildError, DeliveryError, WriteError};

/// Why an input cannot be read on. The message is completed by the input's name in front.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// Reading failed.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It has become shorter than what was read of it.
    #[error(
        "became shorter while it was read: {size} bytes are left, reading had come to byte {position} of {expected}; \
         --follow starts such a file over"
    )]
    Shrunk {
        /// Where reading had come to.
        position: u64,
        /// Its size when it was opened.
        expected: u64,
        /// Its size now.
        size: u64,
    },
    /// Another file is there than the one that was looked at.
    #[error("was replaced by another file before it was read: inode {found} in place of {expected}")]
    Replaced {
        /// The inode that was looked at.
        expected: u64,
        /// The one that is there.
        found: u64,
    },
    /// A line fits no batch.
    #[error(
        "line {line} (byte {position}) is longer than {max} bytes, which a record may have; \
         --long-lines skip leaves such lines out, --long-lines split makes several records of them"
    )]
    LongLine {
        /// Number of the line, from 1.
        line: u64,
        /// Where it begins.
        position: u64,
        /// Largest value.
        max: usize,
    },
    /// A line is not UTF-8.
    #[error("line {line} is not UTF-8 at byte {position}; --utf8 keep takes any bytes")]
    NotUtf8 {
        /// Number of the line, from 1.
        line: u64,
        /// The first byte that is wrong.
        position: u64,
    },
    /// A batch was not taken.
    #[error("a batch was not taken: {0}")]
    Write(#[from] WriteError),
    /// A batch cannot be made.
    #[error("a batch cannot be made: {0}")]
    Build(#[from] BuildError),
}

/// Why the ingest ends before its inputs do.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// One of the inputs.
    #[error("{name}: {source}")]
    Input {
        /// Its name.
        name: String,
        /// What is wrong.
        source: InputError,
    },
    /// The service refused a batch.
    #[error("{name}: bytes {from} to {to} were not written: {source}")]
    Delivery {
        /// Name of the input.
        name: String,
        /// Where the batch begins.
        from: u64,
        /// Where it ends.
        to: u64,
        /// What the service says.
        source: DeliveryError,
    },
    /// The service no longer knows the numbers of a file's batches.
    #[error(
        "{name}: the service has forgotten the numbers of this file's batches, so it cannot say whether bytes {from} to \
         {to} are written already; all before them is acknowledged. --renumber goes on from there with new numbers: \
         {source}"
    )]
    Forgotten {
        /// Name of the input.
        name: String,
        /// Where the batch begins.
        from: u64,
        /// Where it ends.
        to: u64,
        /// What the service says.
        source: DeliveryError,
    },
    /// The checkpoint cannot be written.
    #[error("checkpoint {path} cannot be written: {source}")]
    Checkpoint {
        /// Its path.
        path: String,
        /// What is wrong.
        source: io::Error,
    },
    /// Something else.
    #[error("{0}")]
    Other(String),
}
