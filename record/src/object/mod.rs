//! What lies in the object store: runs of record batches, and the manifests that list them.
//!
//! 1. [`RunBuilder`] takes the batches of one partition as they are written and makes their index.
//! 2. [`encode_tail`] makes everything that follows the batches in the object.
//! 3. A reader takes the object's last bytes, a [`Trailer`], then the [`Footer`], then a [`RunIndex`],
//!    and from there on reads only chunks, each with a checksum of its own.
//! 4. [`ManifestPage`] and [`ManifestRoot`] say which objects make up a partition's past.
//!
//! All integers are little endian; lengths and positions are u64. An object:
//!
//! | part                                                                                  |
//! |---------------------------------------------------------------------------------------|
//! | per run: record batches as they are, in offset order                                  |
//! | per run: the partition's state at the run's end                                       |
//! | per run: its index                                                                    |
//! | footer: the directory of runs                                                         |
//! | trailer: 32 bytes                                                                     |
//!
//! States may be large and are seldom read, so they lie before the indices: the last 256 KiB
//! hold trailer, footer and index of all but the largest objects.
//!
//! Trailer, at the very end:
//!
//! | bytes | field                                   |
//! |-------|-----------------------------------------|
//! | 0–7   | position of the footer                  |
//! | 8–15  | bytes of the footer                     |
//! | 16–19 | CRC-32C of the footer                   |
//! | 20–21 | format version, 1                       |
//! | 22–23 | zero                                    |
//! | 24–27 | CRC-32C of bytes 0–23                   |
//! | 28–31 | magic `FBO1`                            |
//!
//! Footer: bytes 0–3 magic `FBOF`, 4–5 format version, 6–7 flags (zero; others are refused), 8–15 session
//! of the uploader, 16–19 runs, 20–23 zero; then per run 144 bytes:
//!
//! | bytes   | field                                                                    |
//! |---------|--------------------------------------------------------------------------|
//! | 0–7     | partition                                                                |
//! | 8–23    | topic, the bytes of its UUID                                             |
//! | 24–27   | epoch of the segment                                                     |
//! | 28–31   | sequence of the segment                                                  |
//! | 32–39   | base: first offset                                                       |
//! | 40–47   | end, exclusive                                                           |
//! | 48–55   | position of the batches                                                  |
//! | 56–63   | bytes of the batches                                                     |
//! | 64–71   | batches                                                                  |
//! | 72–79   | records                                                                  |
//! | 80–87   | base timestamp of the first batch, milliseconds since 1970               |
//! | 88–95   | largest timestamp                                                        |
//! | 96–111  | index: position and bytes                                                |
//! | 112–127 | state: position and bytes                                                |
//! | 128–139 | CRC-32C of the batches, of the index, of the state                       |
//! | 140–143 | aborted transactions, 0; others are refused                              |
//!
//! Index: chunks u32, zero u32; then per chunk of whole batches, about 64 KiB each, 24 bytes: first
//! offset u64, largest timestamp i64, bytes u32, CRC-32C u32. Chunks lie one after the other.
//!
//! The state is what [`crate::state::PartitionState`] encodes: an owner whose chain is empty takes
//! the partition over with it alone.

mod build;
mod error;
mod fields;
mod footer;
mod index;
mod manifest;
#[cfg(test)]
mod tests;

pub use build::{BuiltRun, ObjectTail, RunBuilder, RunPlace, encode_tail};
pub use error::ObjectError;
pub use footer::{Footer, RunInfo, Section, TRAILER_LEN, Trailer};
pub use index::{CHUNK_BYTES, CHUNKS_MAX, Chunk, RunIndex};
pub use manifest::{
    ManifestPage, ManifestRoot, ManifestRun, NAME_BYTES_MAX, PAGE_BYTES_MAX, PAGE_RUNS_MAX, PAGES_MAX,
    PageRef, ROOT_BYTES_MAX,
};
