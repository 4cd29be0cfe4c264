//! The report: every measurement, the medians, the ratios round by round, and the goals.

use serde::{Deserialize, Serialize};

use super::subject::{BARE_LOOP, Operation, RAW_PIPE};
use crate::measure::{Counts, Measurement, median};
use crate::pack::Load;

/// The product in one process, in the report.
pub const STANDALONE: &str = "standalone";
/// The product as a cluster, in the report.
pub const CLUSTER: &str = "cluster";
/// The cell that the goals are about.
const GOAL_BATCH_BYTES: usize = 256 << 10;
const GOAL_PARTITIONS: u32 = 64;

/// One whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// Rounds of each subject and cell.
    pub rounds: usize,
    /// Bytes of a round.
    pub bytes: u64,
    /// What a reader of the figures must know.
    pub notes: Vec<String>,
    /// By batch size and partitions.
    pub cells: Vec<Cell>,
    /// What was asked for and what was found.
    pub goals: Vec<Goal>,
}

/// Where a run took place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Processors.
    pub cpus: usize,
    /// The kernel's release.
    pub kernel: String,
}

impl Machine {
    /// This one.
    pub fn here() -> anyhow::Result<Self> {
        let cpus = std::thread::available_parallelism()?.get();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned();
        Ok(Self { cpus, kernel })
    }
}

/// One batch size and number of partitions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Bytes of a batch.
    pub batch_bytes: usize,
    /// Partitions.
    pub partitions: u32,
    /// By subject and operation.
    pub series: Vec<Series>,
    /// Between subjects.
    pub ratios: Vec<Ratio>,
}

/// All rounds of one subject and operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// The subject.
    pub subject: String,
    /// What it did.
    pub operation: Operation,
    /// In order.
    pub rounds: Vec<Measurement>,
    /// Field by field.
    pub median: Option<Measurement>,
}

/// A figure that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Throughput.
    MibPerS,
    /// CPU of all roles, client included.
    CpuSPerGib,
    /// Bytes written per byte acknowledged.
    WrittenPerByte,
}

impl Figure {
    /// As tables show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MibPerS => "MiB/s",
            Self::CpuSPerGib => "CPU-s/GiB",
            Self::WrittenPerByte => "written/byte",
        }
    }

    fn of(self, measured: &Measurement) -> Option<f64> {
        match self {
            Self::MibPerS => Some(measured.mib_per_s),
            Self::CpuSPerGib => Some(measured.cpu_s_per_gib_total),
            Self::WrittenPerByte => measured.written_per_byte,
        }
    }
}

/// One subject's figure over another's, for producing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The figure.
    pub figure: Figure,
    /// Above the line.
    pub subject: String,
    /// Below the line.
    pub yardstick: String,
    /// In order.
    pub rounds: Vec<f64>,
    /// Of the rounds.
    pub median: Option<f64>,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// In words.
    pub what: String,
    /// The bound.
    pub bound: Bound,
    /// None where the run did not measure it.
    pub found: Option<f64>,
}

/// A bound, which itself is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// From here up.
    AtLeast(f64),
    /// Up to here.
    AtMost(f64),
}

impl Goal {
    /// Whether it is met; none where it was not measured.
    #[must_use]
    pub fn met(&self) -> Option<bool> {
        self.found.map(|found| match self.bound {
            Bound::AtLeast(bound) => found >= bound,
            Bound::AtMost(bound) => found <= bound,
        })
    }
}

impl Report {
    /// Nothing measured yet.
    pub fn new(rounds: usize, bytes: u64) -> anyhow::Result<Self> {
        Ok(Self {
            machine: Machine::here()?,
            rounds,
            bytes,
            notes: Vec::new(),
            cells: Vec::new(),
            goals: Vec::new(),
        })
    }

    /// Looks up what the goals ask for.
    pub fn judge(&mut self) {
        let cell = self
            .cells
            .iter()
            .find(|cell| cell.batch_bytes == GOAL_BATCH_BYTES && cell.partitions == GOAL_PARTITIONS);
        let goal = |what: &str, bound, found: &dyn Fn(&Cell) -> Option<f64>| Goal {
            what: format!("{what}, 64 partitions, 256 KiB"),
            bound,
            found: cell.and_then(found),
        };
        use Figure::{CpuSPerGib, MibPerS, WrittenPerByte};
        use Operation::{FetchTail, Produce};
        self.goals = vec![
            goal(
                "standalone: throughput of the bare loop's",
                Bound::AtLeast(0.4),
                &|cell| cell.ratio(MibPerS, STANDALONE, BARE_LOOP),
            ),
            goal(
                "standalone: CPU-s/GiB, client included",
                Bound::AtMost(1.5),
                &|cell| cell.median(STANDALONE, Produce, CpuSPerGib),
            ),
            goal(
                "cluster: CPU of the raw pipe's, client included",
                Bound::AtMost(1.6),
                &|cell| cell.ratio(CpuSPerGib, CLUSTER, RAW_PIPE),
            ),
            goal(
                "cluster: bytes written per byte acknowledged",
                Bound::AtMost(3.1),
                &|cell| cell.median(CLUSTER, Produce, WrittenPerByte),
            ),
            goal(
                "cluster: tail fetch, CPU-s/GiB, client included",
                Bound::AtMost(1.5),
                &|cell| cell.median(CLUSTER, FetchTail, CpuSPerGib),
            ),
            goal(
                "standalone: tail fetch, CPU-s/GiB, client included",
                Bound::AtMost(1.5),
                &|cell| cell.median(STANDALONE, FetchTail, CpuSPerGib),
            ),
        ];
    }
}

impl Cell {
    /// Nothing measured yet.
    pub const fn new(load: &Load) -> Self {
        Self {
            batch_bytes: load.batch_bytes,
            partitions: load.partitions,
            series: Vec::new(),
            ratios: Vec::new(),
        }
    }

    /// For people.
    #[must_use]
    pub fn title(&self) -> String {
        let plural = if self.partitions == 1 { "" } else { "s" };
        format!(
            "batches of {} KiB, {} partition{plural}",
            self.batch_bytes >> 10,
            self.partitions
        )
    }

    /// Takes in one run.
    pub fn add(&mut self, subject: &str, operation: Operation, counts: &Counts) {
        let measured = Measurement::from(counts);
        let known = self
            .series
            .iter_mut()
            .find(|series| series.subject == subject && series.operation == operation);
        match known {
            Some(series) => series.rounds.push(measured),
            None => self.series.push(Series {
                subject: subject.to_owned(),
                operation,
                rounds: vec![measured],
                median: None,
            }),
        }
    }

    /// Computes medians and ratios from all rounds.
    pub fn compare(&mut self) {
        for series in &mut self.series {
            series.median = Measurement::median(&series.rounds);
        }
        let pairs = [
            (Figure::MibPerS, STANDALONE, BARE_LOOP),
            (Figure::CpuSPerGib, STANDALONE, BARE_LOOP),
            (Figure::MibPerS, CLUSTER, RAW_PIPE),
            (Figure::CpuSPerGib, CLUSTER, RAW_PIPE),
            (Figure::MibPerS, RAW_PIPE, BARE_LOOP),
        ];
        self.ratios = pairs
            .into_iter()
            .filter_map(|(figure, above, below)| self.divide(figure, above, below))
            .collect();
    }

    fn divide(&self, figure: Figure, above: &str, below: &str) -> Option<Ratio> {
        let (subject, yardstick) = (
            self.find(above, Operation::Produce)?,
            self.find(below, Operation::Produce)?,
        );
        let quotient = |(above, below): (&Measurement, &Measurement)| {
            let below = figure.of(below).filter(|below| *below > 0.0)?;
            Some(figure.of(above)? / below)
        };
        let rounds = subject
            .rounds
            .iter()
            .zip(&yardstick.rounds)
            .filter_map(quotient)
            .collect::<Vec<_>>();
        Some(Ratio {
            figure,
            subject: above.to_owned(),
            yardstick: below.to_owned(),
            median: median(&rounds),
            rounds,
        })
    }

    fn find(&self, subject: &str, operation: Operation) -> Option<&Series> {
        self.series
            .iter()
            .find(|series| series.subject == subject && series.operation == operation)
    }

    fn ratio(&self, figure: Figure, subject: &str, yardstick: &str) -> Option<f64> {
        let found = self
            .ratios
            .iter()
            .find(|ratio| ratio.figure == figure && ratio.subject == subject && ratio.yardstick == yardstick);
        found?.median
    }

    fn median(&self, subject: &str, operation: Operation, figure: Figure) -> Option<f64> {
        figure.of(self.find(subject, operation)?.median.as_ref()?)
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

    use std::time::Duration;

    use super::*;
    use crate::measure::{ClientCounts, DiskCounts};

    fn counts(seconds: u64, cpu_ms: u64) -> Counts {
        let client = ClientCounts {
            bytes: 1 << 30,
            records: 1 << 20,
            elapsed: Duration::from_secs(seconds),
            latency_us: None,
            cpu: Duration::from_millis(cpu_ms),
        };
        let disk = DiskCounts {
            written: 3 << 30,
            zeroed: 0,
            fsyncs: 1,
        };
        Counts {
            client,
            cpu: [].into(),
            rss_peak: [].into(),
            disk: Some(disk),
        }
    }

    fn cell() -> Cell {
        let load = Load {
            batch_bytes: GOAL_BATCH_BYTES,
            partitions: GOAL_PARTITIONS,
            bytes: 1,
            warm_up_bytes: 0,
        };
        Cell::new(&load)
    }

    #[test]
    fn ratios_compare_rounds_that_ran_side_by_side() {
        let mut cell = cell();
        // The machine was twice as slow in the second round and four times in the third.
        for (slow, ours) in [(1, 3), (2, 4), (4, 8)] {
            cell.add(BARE_LOOP, Operation::Produce, &counts(slow, 1000));
            cell.add(STANDALONE, Operation::Produce, &counts(ours, 1000));
        }
        cell.compare();
        let ratio = &cell.ratios[0];
        assert_eq!(
            (ratio.subject.as_str(), ratio.yardstick.as_str()),
            (STANDALONE, BARE_LOOP)
        );
        assert_eq!(ratio.rounds, [1.0 / 3.0, 0.5, 0.5]);
        assert_eq!(ratio.median, Some(0.5));
    }

    #[test]
    fn a_goal_that_was_not_measured_is_neither_met_nor_missed() {
        let mut report = Report::new(1, 1).unwrap();
        let mut cell = cell();
        cell.add(RAW_PIPE, Operation::Produce, &counts(1, 1000));
        cell.add(CLUSTER, Operation::Produce, &counts(1, 1700));
        cell.compare();
        report.cells.push(cell);
        report.judge();
        let met = report.goals.iter().map(Goal::met).collect::<Vec<_>>();
        assert_eq!(met, [None, None, Some(false), Some(true), None, None]);
        assert_eq!(report.goals[2].found, Some(1.7));
    }

    #[test]
    fn a_report_survives_its_json() {
        let mut report = Report::new(2, 1).unwrap();
        let mut cell = cell();
        cell.add(STANDALONE, Operation::FetchTail, &counts(1, 1000));
        cell.compare();
        report.cells.push(cell);
        report.judge();
        let text = serde_json::to_string(&report).unwrap();
        assert!(text.contains("\"fetch-tail\""));
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
