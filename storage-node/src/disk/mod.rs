//! The disk as a seam: one folder of files that are written in aligned blocks.
//!
//! The journal is written and recovered through [`Disk`] only, so a simulated disk can lose
//! unsynced writes, tear them, fill up or fail. Nothing is durable before [`File::sync`], no
//! name before [`Disk::sync_names`]. Positions, lengths and buffers of reads and writes are
//! multiples of [`BLOCK_LEN`] in files opened directly, and every caller here keeps to that.

#[cfg(any(test, feature = "simulation"))]
pub mod fault;
mod folders;
mod lock;
mod real;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

pub use folders::{FolderError, Folders, HeldFolder, RealFolders};
pub use lock::{FolderLock, LockError};
pub use real::{DirectIo, RealDisk};

/// Bytes that a disk writes as one; everything in the journal is aligned to it.
pub const BLOCK_LEN: usize = 4096;

/// [`BLOCK_LEN`] as a position.
pub(crate) const BLOCK_LEN_U64: u64 = BLOCK_LEN as u64;

/// `len` rounded up to whole blocks.
pub(crate) const fn round_up(len: u64) -> u64 {
    len.div_ceil(BLOCK_LEN_U64).saturating_mul(BLOCK_LEN_U64)
}

/// How much room a file system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that may still be taken.
    pub free: u64,
}

/// A folder of files.
pub trait Disk: Send + Sync + fmt::Debug + 'static {
    /// Makes a file that must not exist yet.
    ///
    /// # Errors
    /// Of the file system.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// Of the file system.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Names of all files, in no particular order.
    ///
    /// # Errors
    /// Of the file system.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Gives a file another name, replacing what has that name.
    ///
    /// # Errors
    /// Of the file system.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// Of the file system.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the names durable as they are now.
    ///
    /// # Errors
    /// Of the file system.
    fn sync_names(&self) -> io::Result<()>;

    /// Room of the file system.
    ///
    /// # Errors
    /// Of the file system.
    fn space(&self) -> io::Result<Space>;

    /// Whether files bypass the page cache.
    fn is_direct(&self) -> bool;

    /// A file's path, for messages.
    fn path(&self, name: &str) -> PathBuf;
}

/// An open file.
pub trait File: Send + Sync + fmt::Debug {
    /// Its length in bytes.
    ///
    /// # Errors
    /// Of the file system.
    fn length(&self) -> io::Result<u64>;

    /// Fills `buf` from `position` on; returns fewer bytes only at the end of the file.
    ///
    /// # Errors
    /// Of the file system.
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize>;

    /// Writes all of `buf` at `position`.
    ///
    /// # Errors
    /// Of the file system; then any part of `buf` may have been written.
    fn write_at(&self, buf: &[u8], position: u64) -> io::Result<()>;

    /// Returns once everything written before is durable. An error is final: what was written
    /// since the last success may be lost, and asking again proves nothing.
    ///
    /// # Errors
    /// Of the file system.
    fn sync(&self) -> io::Result<()>;

    /// Takes room for `len` bytes and makes the file that long; its new bytes read as zero.
    ///
    /// # Errors
    /// Of the file system, first of all that it is full.
    fn allocate(&self, len: u64) -> io::Result<()>;
}
