//! `produce`: the product beside its yardsticks, in turns, on one machine in one run.
//!
//! 1. [`subject`]: what can be measured: the bare loop, the raw pipe, and ([`product`]) the
//!    product in one process and as a cluster, whose command lines are in [`deploy`].
//! 2. For each cell (batch size × partitions) every subject takes one round after the other,
//!    A, B, A, B, so that whatever else the machine does hits all of them.
//! 3. [`load`]: the programs that produce to and fetch from the product.
//! 4. [`report`]: medians, ratios round by round, and the goals; [`table`] prints them.
//!
//! Figures of different runs, and of different machines, are not to be compared; ratios are.

pub(crate) mod deploy;
mod load;
mod product;
pub(crate) mod report;
pub(crate) mod scrape;
mod subject;
mod table;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use forebay_runtime::config::ByteSize;

use crate::pack::Load;
use report::{Cell, Report};
use subject::{BareLoop, RawPipe, Subject};

pub use load::{Fetch, Send};
pub use table::single;

/// What to measure, and where.
#[derive(Debug, Args)]
pub struct Produce {
    /// Folder on the disk to be measured. The yardsticks' files, 4 GiB, stay there to be used
    /// again; the product's, up to 25 GiB at the default size, are removed.
    #[arg(long)]
    pub dir: PathBuf,
    /// The `forebay` program.
    #[arg(long)]
    pub forebay: PathBuf,
    /// The etcd program.
    #[arg(long, default_value = "etcd")]
    pub etcd: PathBuf,
    /// Write the report here too.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Batch sizes.
    #[arg(long, value_delimiter = ',', default_value = "16KiB,256KiB,960KiB")]
    pub batches: Vec<ByteSize>,
    /// Numbers of partitions.
    #[arg(long, value_delimiter = ',', default_value = "1,64")]
    pub partitions: Vec<u32>,
    /// Rounds of each subject and cell.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Bytes of a round.
    #[arg(long, default_value = "512MiB")]
    pub bytes: ByteSize,
    /// What to measure.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Which::ALL)]
    pub subjects: Vec<Which>,
}

/// A subject by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// One thread, one file.
    DiskLoop,
    /// The raw framed pipe.
    Pipe,
    /// The product in one process.
    Standalone,
    /// The product as etcd, three storage nodes, a broker and a proxy.
    Cluster,
}

impl Which {
    const ALL: [Self; 4] = [Self::DiskLoop, Self::Pipe, Self::Standalone, Self::Cluster];
}

/// Bytes that go through before the clock starts, in each round.
const WARM_UP_BYTES: u64 = 32 << 20;

impl Produce {
    /// Measures everything, prints tables as cells are done, and writes the report.
    ///
    /// # Errors
    /// Where any subject fails: a run with a failure in it is not a measurement.
    pub fn run(&self) -> anyhow::Result<()> {
        ensure!(self.rounds > 0, "--rounds is 0");
        let scratch = tempfile::Builder::new()
            .prefix("produce-")
            .tempdir_in(&self.dir)?;
        let mut subjects = self
            .subjects
            .iter()
            .map(|which| self.subject(*which, scratch.path()))
            .collect::<Vec<_>>();
        let mut report = Report::new(self.rounds, self.bytes.as_u64())?;
        for batch in &self.batches {
            for partitions in &self.partitions {
                let load = Load {
                    batch_bytes: batch.as_usize(),
                    partitions: *partitions,
                    bytes: self.bytes.as_u64(),
                    warm_up_bytes: WARM_UP_BYTES,
                };
                let cell = self.cell(&mut subjects, &load, &mut report.notes)?;
                println!("{}", table::cell(&cell));
                report.cells.push(cell);
            }
        }
        report.judge();
        println!("{}", table::goals(&report));
        for note in &report.notes {
            println!("{note}");
        }
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&report)?;
            std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn subject(&self, which: Which, scratch: &std::path::Path) -> Box<dyn Subject> {
        match which {
            Which::DiskLoop => Box::new(BareLoop::new(&self.dir)),
            Which::Pipe => Box::new(RawPipe::new(&self.dir)),
            Which::Standalone => Box::new(product::Product::standalone(&self.forebay, scratch)),
            Which::Cluster => Box::new(product::Product::cluster(&self.forebay, &self.etcd, scratch)),
        }
    }

    fn cell(
        &self,
        subjects: &mut [Box<dyn Subject>],
        load: &Load,
        notes: &mut Vec<String>,
    ) -> anyhow::Result<Cell> {
        let mut cell = Cell::new(load);
        for subject in subjects.iter_mut() {
            let note = subject
                .start(load)
                .with_context(|| format!("{} does not start", subject.name()))?;
            notes.extend(note.filter(|note| !notes.contains(note)));
        }
        for round in 1..=self.rounds {
            for subject in subjects.iter_mut() {
                eprintln!(
                    "{}: round {round} of {}, {}",
                    cell.title(),
                    self.rounds,
                    subject.name()
                );
                let runs = subject
                    .round(load)
                    .with_context(|| format!("{} failed", subject.name()))?;
                for (operation, counts) in runs {
                    cell.add(subject.name(), operation, &counts);
                }
            }
        }
        for subject in subjects.iter_mut() {
            subject
                .stop()
                .with_context(|| format!("{} does not stop", subject.name()))?;
        }
        cell.compare();
        Ok(cell)
    }
}
