//! What a run has done so far, and the summary at its end.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_client::Offset;
use serde::Serialize;

use super::pack::Passed;
use crate::output::{bytes, counted, grouped, mib_per_second};

/// Counts of a run; what is said to be written was acknowledged.
#[derive(Debug, Default)]
pub struct Tally {
    /// Inputs that were begun.
    pub files: u64,
    /// Bytes handed over to be sent.
    pub bytes_read: u64,
    /// Records handed over to be sent.
    pub records_read: u64,
    /// Bytes of input acknowledged.
    pub bytes: u64,
    /// Records acknowledged.
    pub records: u64,
    /// Batches acknowledged.
    pub batches: u64,
    /// Lines left out because they fit no batch.
    pub skipped_lines: u64,
    /// By partition.
    pub partitions: BTreeMap<u32, Partition>,
}

/// What was acknowledged in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Partition {
    /// Records.
    pub records: u64,
    /// Offset of the first one, where it was told.
    pub first_offset: Option<u64>,
    /// The offset after the last one, where it was told.
    pub next_offset: Option<u64>,
}

impl Tally {
    /// Counts what was handed over.
    pub const fn on_read(&mut self, passed: &Passed) {
        self.bytes_read += passed.bytes;
        self.records_read += passed.records;
    }

    /// Counts a batch that is written, wherever the service says.
    pub fn on_batch(&mut self, partition: u32, records: u64, base: Option<Offset>) {
        self.batches += 1;
        let one = self.partitions.entry(partition).or_default();
        one.records += records;
        if let Some(base) = base {
            one.first_offset = Some(one.first_offset.map_or(base.0, |first| first.min(base.0)));
            let next = base.0 + records;
            one.next_offset = Some(one.next_offset.map_or(next, |last| last.max(next)));
        }
    }

    /// Counts a stretch that is acknowledged without a gap before it.
    pub const fn on_acknowledged(&mut self, passed: &Passed) {
        self.bytes += passed.bytes;
        self.records += passed.records;
        self.skipped_lines += passed.skipped;
    }
}

/// What is told at the end; field names stay.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Topic written to.
    pub topic: String,
    /// Whether everything that was read is acknowledged.
    pub complete: bool,
    /// Inputs that were begun.
    pub files: u64,
    /// Lines acknowledged, each a record; none of blocks.
    pub lines: Option<u64>,
    /// Records acknowledged.
    pub records: u64,
    /// Bytes of input acknowledged.
    pub bytes: u64,
    /// From the first read to the last acknowledgement.
    pub seconds: f64,
    /// Throughput.
    pub mib_per_s: f64,
    /// Batches acknowledged.
    pub batches: u64,
    /// Lines left out because they fit no batch.
    pub skipped_lines: u64,
    /// Refusals and lost connections after which something was tried again.
    pub retries: u64,
    /// By partition.
    pub partitions: BTreeMap<u32, Partition>,
}

impl Summary {
    /// Of what was counted.
    pub fn new(tally: &Tally, topic: &str, lines: bool, elapsed: Duration, retries: u64) -> Self {
        let seconds = elapsed.as_secs_f64();
        Self {
            topic: topic.to_owned(),
            complete: tally.bytes == tally.bytes_read,
            files: tally.files,
            lines: lines.then_some(tally.records),
            records: tally.records,
            bytes: tally.bytes,
            seconds,
            mib_per_s: tally.bytes as f64 / f64::from(1 << 20) / seconds.max(1e-9),
            batches: tally.batches,
            skipped_lines: tally.skipped_lines,
            retries,
            partitions: tally.partitions.clone(),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let what = if self.lines.is_some() { "line" } else { "block" };
        let mut text = format!(
            "{} of {} acknowledged in {:?}, {} in {:.2} s, {}",
            counted(self.records, what),
            counted(self.files, "input"),
            self.topic,
            bytes(self.bytes),
            self.seconds,
            mib_per_second(self.bytes, self.seconds)
        );
        if self.skipped_lines > 0 {
            text += &format!(
                "\n{} left out: longer than a batch",
                counted(self.skipped_lines, "line")
            );
        }
        if self.retries > 0 {
            text += &format!("\n{} on the way", counted(self.retries, "retried failure"));
        }
        for (partition, one) in &self.partitions {
            let offsets = match (one.first_offset, one.next_offset) {
                (Some(first), Some(next)) if next > first => {
                    format!("offsets {} to {}", grouped(first), grouped(next - 1))
                }
                _ => "offsets not told".to_owned(),
            };
            text += &format!(
                "\npartition {partition}: {}, {offsets}",
                counted(one.records, "record")
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_of_batches_that_were_there_already_are_left_open() {
        let mut tally = Tally::default();
        tally.on_batch(1, 5, None);
        tally.on_batch(1, 10, Some(Offset(100)));
        tally.on_batch(1, 10, Some(Offset(120)));
        let found = tally.partitions.get(&1).copied();
        let wanted = Partition {
            records: 25,
            first_offset: Some(100),
            next_offset: Some(130),
        };
        assert_eq!(found, Some(wanted));
        let text = Summary::new(&tally, "t", true, Duration::from_secs(1), 2).text();
        assert!(
            text.contains("partition 1: 25 records, offsets 100 to 129"),
            "{text}"
        );
        assert!(text.contains("2 retried failures"), "{text}");
    }
}
