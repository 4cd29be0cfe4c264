//! The report of an ingest: every round, medians, ratios to the bare loop, and the goals.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::{Deserialize, Serialize};

use crate::measure::{CLIENT, Counts, Measurement, median};
use crate::produce::report::{Bound, Goal, Machine, STANDALONE};

/// The yardstick, in the report.
pub const BARE_LOOP: &str = "bare loop";

/// The shipper with a codec, in the report.
pub fn subject(codec: &str) -> String {
    format!("ingest, codec {codec}")
}

/// One whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// Rounds of each subject.
    pub rounds: usize,
    /// Bytes of the log file.
    pub bytes: u64,
    /// What a reader of the figures must know.
    pub notes: Vec<String>,
    /// By subject.
    pub series: Vec<Series>,
    /// What was asked for and what was found.
    pub goals: Vec<Goal>,
}

/// All rounds of one subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// The subject.
    pub subject: String,
    /// In order.
    pub rounds: Vec<Measurement>,
    /// Field by field.
    pub median: Option<Measurement>,
    /// MiB/s of the bare loop's in the same round.
    pub ratios: Vec<f64>,
    /// Of the rounds.
    pub ratio: Option<f64>,
}

impl Report {
    /// Nothing measured yet.
    pub fn new(rounds: usize, bytes: u64) -> anyhow::Result<Self> {
        Ok(Self {
            machine: Machine::here()?,
            rounds,
            bytes,
            notes: Vec::new(),
            series: Vec::new(),
            goals: Vec::new(),
        })
    }

    /// Takes in one run.
    pub fn add(&mut self, subject: &str, counts: &Counts) {
        let measured = Measurement::from(counts);
        match self.series.iter_mut().find(|series| series.subject == subject) {
            Some(series) => series.rounds.push(measured),
            None => self.series.push(Series {
                subject: subject.to_owned(),
                rounds: vec![measured],
                median: None,
                ratios: Vec::new(),
                ratio: None,
            }),
        }
    }

    /// Computes medians and ratios from all rounds, and looks up what the goals ask for.
    pub fn judge(&mut self) {
        let bare = self.series.iter().find(|series| series.subject == BARE_LOOP);
        let bare: Vec<f64> = bare.map_or_else(Vec::new, |bare| {
            bare.rounds.iter().map(|round| round.mib_per_s).collect()
        });
        for series in &mut self.series {
            series.median = Measurement::median(&series.rounds);
            if series.subject != BARE_LOOP {
                let pairs = series.rounds.iter().zip(&bare);
                series.ratios = pairs
                    .map(|(round, bare)| round.mib_per_s / bare.max(1e-9))
                    .collect();
                series.ratio = median(&series.ratios);
            }
        }
        let plain = self.find("none").and_then(|series| series.ratio);
        self.goals = vec![Goal {
            what: "codec none: throughput of the bare loop's".to_owned(),
            bound: Bound::AtLeast(0.35),
            found: plain,
        }];
        for codec in ["none", "zstd"] {
            let peak = |series: &Series| {
                let peaks = series
                    .rounds
                    .iter()
                    .filter_map(|round| round.rss_peak_mib.get(CLIENT));
                peaks.copied().reduce(f64::max)
            };
            self.goals.push(Goal {
                what: format!("codec {codec}: largest peak memory of the shipper, MiB"),
                bound: Bound::AtMost(150.0),
                found: self.find(codec).and_then(peak),
            });
        }
    }

    fn find(&self, codec: &str) -> Option<&Series> {
        let subject = subject(codec);
        self.series.iter().find(|series| series.subject == subject)
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut rows = table(&[
            "",
            "MiB/s",
            "of the bare loop",
            "rounds",
            "CPU-s/GiB shipper",
            "CPU-s/GiB server",
            "peak MiB shipper",
        ]);
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
        };
        for series in &self.series {
            let Some(median) = &series.median else { continue };
            let rounds: Vec<_> = series.ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
            rows.add_row([
                series.subject.clone(),
                format!("{:.0}", median.mib_per_s),
                number(series.ratio, 2),
                rounds.join(" "),
                number(median.cpu_s_per_gib.get(CLIENT).copied(), 2),
                number(median.cpu_s_per_gib.get(STANDALONE).copied(), 2),
                number(median.rss_peak_mib.get(CLIENT).copied(), 0),
            ]);
        }
        let mut goals = table(&["goal", "bound", "found", ""]);
        for goal in &self.goals {
            let bound = match goal.bound {
                Bound::AtLeast(bound) => format!("≥ {bound}"),
                Bound::AtMost(bound) => format!("≤ {bound}"),
            };
            let verdict = match goal.met() {
                Some(true) => "met",
                Some(false) => "missed",
                None => "not measured",
            };
            goals.add_row([
                goal.what.clone(),
                bound,
                number(goal.found, 2),
                verdict.to_owned(),
            ]);
        }
        let mib = self.bytes >> 20;
        let notes: String = self.notes.iter().map(|note| format!("\n{note}")).collect();
        format!(
            "\na log file of {mib} MiB, medians of {} rounds; {} CPUs, Linux {}\n{rows}\n\n{goals}{notes}",
            self.rounds, self.machine.cpus, self.machine.kernel
        )
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use std::time::Duration;

    use super::*;
    use crate::measure::ClientCounts;

    fn counts(ms: u64, peak: u64) -> Counts {
        Counts {
            client: ClientCounts {
                bytes: 1 << 30,
                records: 1,
                elapsed: Duration::from_millis(ms),
                latency_us: None,
                cpu: Duration::from_millis(500),
            },
            cpu: [(STANDALONE.to_owned(), Duration::from_secs(1))].into(),
            rss_peak: [(CLIENT.to_owned(), peak << 20)].into(),
            disk: None,
        }
    }

    #[test]
    fn rounds_are_compared_with_the_bare_loop_beside_them() {
        let mut report = Report::new(2, 1 << 30).unwrap();
        // The machine was twice as slow in the second round.
        for slow in [1, 2] {
            report.add(BARE_LOOP, &counts(1000 * slow, 0));
            report.add(&subject("none"), &counts(2000 * slow, 100 * slow));
        }
        report.judge();
        assert_eq!(report.series[1].ratios, [0.5, 0.5]);
        let met: Vec<_> = report.goals.iter().map(Goal::met).collect();
        assert_eq!(met, [Some(true), Some(false), None]);
        let text = report.text();
        assert!(text.contains("0.50 0.50") && text.contains("missed"), "{text}");
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }
}
