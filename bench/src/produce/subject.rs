//! What can be measured, and the two yardsticks.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::FILE_BYTES;
use crate::disk_loop::{DiskLoop, Until};
use crate::measure::Counts;
use crate::pack::Load;
use crate::pipe::Pipe;

/// Bytes of the bare loop's commits, whatever the size of batches.
const COMMIT_BYTES: usize = 256 << 10;

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Wrote batches until they were acknowledged.
    Produce,
    /// Read what was written last, which the owner still holds in memory.
    FetchTail,
    /// Read everything that the round wrote, from wherever it is.
    FetchAll,
}

impl Operation {
    /// As tables show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Produce => "produce",
            Self::FetchTail => "fetch tail",
            Self::FetchAll => "fetch all",
        }
    }
}

/// Something that takes a load. Synchronous: the work is done by other processes.
pub trait Subject {
    /// Its name in the report.
    fn name(&self) -> &'static str;

    /// Makes ready for a cell; may tell what a reader of the figures must know.
    fn start(&mut self, load: &Load) -> anyhow::Result<Option<String>>;

    /// One round: one run of each operation that it knows.
    fn round(&mut self, load: &Load) -> anyhow::Result<Vec<(Operation, Counts)>>;

    /// Ends the cell.
    fn stop(&mut self) -> anyhow::Result<()>;
}

/// Its name in the report.
pub const BARE_LOOP: &str = "bare loop";
/// Its name in the report.
pub const RAW_PIPE: &str = "raw pipe";

/// The bare loop at 256 KiB commits, on one file for the whole run.
#[derive(Debug)]
pub struct BareLoop {
    folder: PathBuf,
    disk_loop: Option<DiskLoop>,
}

impl BareLoop {
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            disk_loop: None,
        }
    }
}

impl Subject for BareLoop {
    fn name(&self) -> &'static str {
        BARE_LOOP
    }

    fn start(&mut self, _: &Load) -> anyhow::Result<Option<String>> {
        let disk_loop = match self.disk_loop.take() {
            Some(disk_loop) => disk_loop,
            None => DiskLoop::open(&self.folder.join("disk-loop.log"), FILE_BYTES)?,
        };
        let note = buffered(BARE_LOOP, disk_loop.is_direct());
        self.disk_loop = Some(disk_loop);
        Ok(note)
    }

    fn round(&mut self, load: &Load) -> anyhow::Result<Vec<(Operation, Counts)>> {
        let disk_loop = self
            .disk_loop
            .as_mut()
            .ok_or_else(|| anyhow::anyhow!("not started"))?;
        Ok(vec![(
            Operation::Produce,
            disk_loop.run(COMMIT_BYTES, Until::Bytes(load.bytes))?,
        )])
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// The raw framed pipe, started anew for each cell on the same files.
#[derive(Debug)]
pub struct RawPipe {
    folder: PathBuf,
    pipe: Option<Pipe>,
}

impl RawPipe {
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            pipe: None,
        }
    }
}

impl Subject for RawPipe {
    fn name(&self) -> &'static str {
        RAW_PIPE
    }

    fn start(&mut self, _: &Load) -> anyhow::Result<Option<String>> {
        let mut pipe = Pipe::start(&std::env::current_exe()?, &self.folder, FILE_BYTES)?;
        let note = buffered(RAW_PIPE, pipe.is_direct()?);
        self.pipe = Some(pipe);
        Ok(note)
    }

    fn round(&mut self, load: &Load) -> anyhow::Result<Vec<(Operation, Counts)>> {
        let pipe = self.pipe.as_mut().ok_or_else(|| anyhow::anyhow!("not started"))?;
        Ok(vec![(Operation::Produce, pipe.run(load)?)])
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        self.pipe.take().map_or(Ok(()), Pipe::stop)
    }
}

fn buffered(name: &str, direct: bool) -> Option<String> {
    (!direct).then(|| format!("{name}: no direct writes on this file system, its figures are buffered"))
}
