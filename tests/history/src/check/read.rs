//! What readers were given: H1, H2, H3, H4, H6 and the scans of H7.

use super::log::{By, Reached};
use super::{Checker, Outcome, Place, Position};
use crate::event::{Range, Value};
use crate::report::Rule;

/// A scan under way.
#[derive(Debug)]
pub(super) struct Scan {
    begun: Position,
    from: u64,
    /// The offset that it must be given next.
    next: u64,
    /// How far the log was acknowledged when it began.
    acked_end: Reached,
    /// How far the log had been read by anyone when it began.
    read_end: Reached,
}

/// What a scan was told at its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) until: u64,
    pub(super) log_start: Option<u64>,
    pub(super) high_watermark: Option<u64>,
}

impl Checker<'_> {
    pub(super) fn on_scan_begun(&mut self, at: Position, reader: u64, partition: u64, from: u64) {
        let log = self.log(partition);
        let scan = Scan {
            begun: at,
            from,
            next: from,
            acked_end: log.acked_end,
            read_end: log.read_end,
        };
        // A scan that was under way ends here: its reader starts anew.
        self.scans.insert((reader, partition), scan);
    }

    pub(super) fn on_read(&mut self, at: Position, reader: u64, partition: u64, offset: u64, value: Value) {
        self.report.counts.reads += 1;
        match self.scans.get_mut(&(reader, partition)) {
            None => {
                let what = format!("reader {reader} was given {value} and never began");
                self.violated(Rule::History, Place::at(partition, offset), &[at], what);
            }
            Some(scan) => {
                let (begun, next) = (scan.begun, scan.next);
                scan.next = offset.saturating_add(1);
                if offset < next {
                    let what = format!("reader {reader} went back, {next} was to be next");
                    self.violated(Rule::H3, Place::at(partition, offset), &[begun, at], what);
                } else {
                    let range = Range {
                        from: next,
                        until: offset,
                    };
                    self.passed_over(reader, partition, range, at);
                }
            }
        }
        if let Err(slot) = self.log(partition).place(offset, value, By::Read, at) {
            let (mine, other) = (self.tell(value), self.tell(slot.value));
            let rule = if slot.acked > 0 { Rule::H1 } else { Rule::H2 };
            let before = if slot.acked > 0 { "acknowledged" } else { "read" };
            let what = format!("reader {reader} was given {mine}, {before} before: {other}");
            let first = if slot.acked > 0 { slot.acked } else { slot.read };
            self.violated(rule, Place::at(partition, offset), &[first, at], what);
        }
        self.check_value(at, reader, partition, offset, value);
        self.found_at(at, value, partition, offset);
    }

    /// H6: somebody wrote it, to this partition, and was not refused.
    fn check_value(&mut self, at: Position, reader: u64, partition: u64, offset: u64, value: Value) {
        let place = Place::at(partition, offset);
        let Some(written) = self.written.get_mut(&value) else {
            let what = format!("reader {reader} was given {value}, which nobody wrote");
            self.violated(Rule::H6, place, &[at], what);
            return;
        };
        written.read = true;
        let (record, begun, outcome) = (written.record, written.begun, written.outcome);
        if record.partition != partition {
            let what = format!(
                "reader {reader} was given {value} ({record}), which was sent to partition {}",
                record.partition
            );
            self.violated(Rule::H6, place, &[begun, at], what);
        } else if outcome == Outcome::Failed {
            let what = format!("reader {reader} was given {value} ({record}), which was refused for sure");
            self.violated(Rule::H6, place, &[begun, at], what);
        }
    }

    pub(super) fn on_scan_ended(&mut self, at: Position, reader: u64, partition: u64, ended: Ended) {
        let Some(scan) = self.scans.remove(&(reader, partition)) else {
            let what = format!("reader {reader} ended a scan that it never began");
            self.violated(Rule::History, Place::of(partition), &[at], what);
            return;
        };
        if ended.until < scan.next {
            let what = format!(
                "reader {reader} ended at {} and was given {}",
                ended.until,
                scan.next - 1
            );
            self.violated(Rule::History, Place::of(partition), &[scan.begun, at], what);
        }
        if let Some(log_start) = ended.log_start {
            self.on_log_start(at, partition, log_start);
        }
        let until = ended.high_watermark.unwrap_or(ended.until).max(ended.until);
        let rest = Range {
            from: scan.next,
            until,
        };
        self.passed_over(reader, partition, rest, at);
        let Some(high_watermark) = ended.high_watermark else {
            return;
        };
        self.report.counts.complete_scans += 1;
        for (rule, reached, how) in [
            (Rule::H1, scan.acked_end, "acknowledged"),
            (Rule::H4, scan.read_end, "read"),
        ] {
            let (end, by) = reached;
            if high_watermark < end && !self.log(partition).is_declared(high_watermark, end) {
                let what = format!(
                    "reader {reader} was told that the log ends at {high_watermark}, {} was {how} before",
                    end - 1
                );
                self.violated(rule, Place::at(partition, end - 1), &[by, scan.begun, at], what);
                break;
            }
        }
        self.on_complete(at, partition, &scan, ended.log_start, high_watermark);
    }

    /// A scan was told the log's end: it counts for what must be read at last, and for H7.
    fn on_complete(&mut self, at: Position, partition: u64, scan: &Scan, log_start: Option<u64>, end: u64) {
        let quiesced = self.quiesced.is_some_and(|since| since < scan.begun);
        let whole = scan.from <= log_start.unwrap_or(0);
        let log = self.log(partition);
        if whole && scan.begun > log.last_ack {
            log.final_scans += 1;
        }
        let mut missing = Vec::new();
        if whole {
            let unplaced = std::mem::take(&mut log.unplaced);
            let (due, later): (Vec<_>, Vec<_>) =
                unplaced.into_iter().partition(|(_, acked)| *acked < scan.begun);
            log.unplaced = later;
            if scan.from == 0 {
                missing = due;
            }
        }
        let settled = log.settled;
        if quiesced && settled.is_none() {
            log.settled = Some((log_start, end, at));
        }
        for (value, acked) in missing {
            if self.written.get(&value).is_some_and(|written| !written.read) {
                let what = format!(
                    "{} was acknowledged as a repetition and is not in the log",
                    self.tell(value)
                );
                self.violated(Rule::H1, Place::of(partition), &[acked, scan.begun, at], what);
            }
        }
        if let (true, Some((first_start, first_end, first))) = (quiesced, settled) {
            let differ = log_start.is_some() && first_start.is_some() && log_start != first_start;
            if differ || first_end != end {
                let what = format!(
                    "nothing is written, yet the log is {first_start:?} to {first_end} for one reader and {log_start:?} to {end} for another"
                );
                self.violated(Rule::H7, Place::of(partition), &[first, at], what);
            }
        }
    }

    /// A reader was not given a range: each part must be a declared gap.
    fn passed_over(&mut self, reader: u64, partition: u64, range: Range, at: Position) {
        if range.from >= range.until {
            return;
        }
        for part in self.log(partition).undeclared(range) {
            let place = Place::at(partition, part.from);
            let what = format!(
                "reader {reader} was not given {} to {}, and no gap is declared",
                part.from, part.until
            );
            self.violated(Rule::H3, place, &[at], what);
            let known = &self.log(partition).slots;
            let find = |wanted: By| {
                let mut missing = known
                    .range(part.from..part.until)
                    .filter(|(_, slot)| match wanted {
                        By::Ack => slot.acked > 0,
                        By::Read => slot.read > 0,
                    });
                let first = missing.next().map(|(offset, slot)| (*offset, *slot));
                first.map(|(offset, slot)| (offset, slot, missing.count()))
            };
            let (acked, read) = (find(By::Ack), find(By::Read));
            if let Some((offset, slot, more)) = acked {
                let what = format!(
                    "reader {reader} was not given {}, which is acknowledged, nor {more} more",
                    self.tell(slot.value)
                );
                self.violated(Rule::H1, Place::at(partition, offset), &[slot.acked, at], what);
            }
            if let Some((offset, slot, more)) = read {
                let what = format!(
                    "reader {reader} was not given {}, which was read before, nor {more} more",
                    self.tell(slot.value)
                );
                self.violated(Rule::H4, Place::at(partition, offset), &[slot.read, at], what);
            }
        }
    }

    pub(super) fn finish_gaps(&mut self) {
        if self.rules.losses_allowed {
            return;
        }
        let mut found = Vec::new();
        for (partition, log) in &self.logs {
            for (from, until) in &log.gaps {
                let lost = log
                    .slots
                    .range(*from..*until)
                    .map(|(offset, slot)| (*partition, *from, *until, *offset, *slot));
                found.extend(lost.take(1));
            }
        }
        for (partition, from, until, offset, slot) in found {
            let rule = if slot.acked > 0 { Rule::H1 } else { Rule::H4 };
            let what = format!("the gap {from} to {until} covers {}", self.tell(slot.value));
            self.violated(rule, Place::at(partition, offset), &[slot.acked, slot.read], what);
        }
    }

    pub(super) fn finish_scans(&mut self) {
        let wanted = self.rules.final_scans_min;
        let short: Vec<_> = self
            .logs
            .iter()
            .filter(|(_, log)| log.last_ack > 0 && log.final_scans < wanted)
            .map(|(partition, log)| (*partition, log.last_ack, log.final_scans))
            .collect();
        for (partition, last_ack, scans) in short {
            let what = format!(
                "{scans} complete scans begin after the last acknowledgement, {wanted} are needed to tell"
            );
            self.violated(Rule::H1, Place::of(partition), &[last_ack], what);
        }
    }
}
