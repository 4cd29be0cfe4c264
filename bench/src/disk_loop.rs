//! The bare loop: what one thread and one disk can do with the journal's own flags.
//!
//! Writes a commit's bytes past the page cache to a recycled file and flushes, again and again.
//! No checksum, no queue, no hand-over: the ceiling that a journal is compared with.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::disk::{Aligned, Recycled};
use crate::measure::{ClientCounts, Counts, DiskCounts, Latencies};
use crate::pack::Values;
use crate::process::thread_cpu;

/// When a run is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// This many bytes are durable.
    Bytes(u64),
    /// This much time has passed.
    Elapsed(Duration),
}

/// A loop over one file, which stays warm from run to run.
#[derive(Debug)]
pub struct DiskLoop {
    file: Recycled,
}

impl DiskLoop {
    /// Opens the file, and fills it where it is missing or has another size.
    ///
    /// # Errors
    /// Where the file cannot be opened or filled.
    pub fn open(path: &Path, file_bytes: u64) -> io::Result<Self> {
        Ok(Self {
            file: Recycled::open(path, file_bytes)?,
        })
    }

    /// Whether the loop goes past the page cache.
    #[must_use]
    pub const fn is_direct(&self) -> bool {
        self.file.is_direct()
    }

    /// Commits `commit_bytes` at a time, rounded up to whole blocks; at least once.
    ///
    /// # Errors
    /// Where a write or a flush fails.
    pub fn run(&mut self, commit_bytes: usize, until: Until) -> anyhow::Result<Counts> {
        let mut blocks = Aligned::new(commit_bytes);
        let mut values = Values::new();
        while blocks.room() > 0 {
            blocks.extend(values.take());
        }
        let mut latencies = Latencies::new()?;
        let mut disk = DiskCounts::default();
        let cpu = thread_cpu();
        let start = Instant::now();
        let mut last = start;
        loop {
            self.file.commit(&blocks)?;
            let now = Instant::now();
            latencies.record(now - last);
            last = now;
            disk.written += blocks.bytes().len() as u64;
            disk.fsyncs += 1;
            let done = match until {
                Until::Bytes(bytes) => disk.written >= bytes,
                Until::Elapsed(elapsed) => last - start >= elapsed,
            };
            if done {
                break;
            }
        }
        let client = ClientCounts {
            bytes: disk.written,
            records: 0,
            elapsed: last - start,
            latency_us: Some(latencies.quantiles()),
            cpu: thread_cpu() - cpu,
        };
        Ok(Counts {
            client,
            cpu: [].into(),
            rss_peak: [].into(),
            disk: Some(disk),
        })
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
    use crate::disk::BLOCK;

    #[test]
    fn each_commit_is_one_write_and_one_flush() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk_loop = DiskLoop::open(&folder.path().join("journal"), 16 * BLOCK as u64).unwrap();
        let counts = disk_loop.run(BLOCK + 1, Until::Bytes(32 * BLOCK as u64)).unwrap();
        let disk = counts.disk.unwrap();
        assert_eq!((disk.written, disk.fsyncs), (32 * BLOCK as u64, 16));
        assert_eq!(counts.client.bytes, disk.written);
        assert!(counts.client.latency_us.unwrap().p50 > 0);
    }
}
