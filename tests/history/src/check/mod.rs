//! One pass over a history, in its order.
//!
//! What is known of a partition is a map from offsets to values, fed by acknowledgements and reads
//! alike: two that differ at one offset are a violation whoever noted them. A scan remembers how far
//! the log was acknowledged and read when it began; what it does not show of that has vanished.
//! Gaps are known from the start, since who observes the records may note them late.

mod chain;
mod log;
mod produce;
mod read;
mod rest;

use std::collections::{BTreeMap, HashMap};

use crate::event::{ChainSegment, Event, Produced, Range, Value};
use crate::history::History;
use crate::report::{Counts, Report, Rule, Violation};
use crate::rules::Rules;

use log::Log;
use read::Scan;

/// The number of an event, from 1; 0 for none.
type Position = u64;

/// Looks for everything in a history that breaks a promise.
#[must_use]
pub fn check(history: &History, rules: &Rules) -> Report {
    let mut checker = Checker::new(rules);
    for entry in history.entries() {
        checker.learn_gaps(&entry.event);
    }
    for (position, entry) in (1..).zip(history.entries()) {
        checker.on_event(position, &entry.event);
    }
    checker.finish(history)
}

/// Sequence, offset and event of an acknowledgement.
type Acknowledged = (u64, u64, Position);

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Open,
    Acked,
    Failed,
    Unknown,
}

/// A record that was sent.
#[derive(Debug)]
struct Written {
    record: Produced,
    begun: Position,
    outcome: Outcome,
    /// Where it stands, by the first acknowledgement or read that told.
    place: Option<(u64, Position)>,
    read: bool,
}

struct Checker<'a> {
    rules: &'a Rules,
    report: Report,
    written: HashMap<Value, Written>,
    values: HashMap<Produced, Value>,
    /// What was acknowledged, by producer and partition.
    acked: BTreeMap<(u64, u64), Vec<Acknowledged>>,
    logs: BTreeMap<u64, Log>,
    /// Scans under way, by reader and partition.
    scans: HashMap<(u64, u64), Scan>,
    /// Every segment that any record ever had, by partition, epoch and number.
    segments: HashMap<(u64, u64, u64), (ChainSegment, Position)>,
    quiesced: Option<Position>,
}

impl<'a> Checker<'a> {
    fn new(rules: &'a Rules) -> Self {
        Self {
            rules,
            report: Report::default(),
            written: HashMap::new(),
            values: HashMap::new(),
            acked: BTreeMap::new(),
            logs: BTreeMap::new(),
            scans: HashMap::new(),
            segments: HashMap::new(),
            quiesced: None,
        }
    }

    fn learn_gaps(&mut self, event: &Event) {
        match event {
            Event::GapDeclared { partition, range } => self.log(*partition).declare(*range),
            Event::Chain(record) => {
                for range in &record.gaps {
                    self.log(record.partition).declare(*range);
                }
            }
            _ => {}
        }
    }

    fn on_event(&mut self, at: Position, event: &Event) {
        match event {
            Event::Begun { record, value } => self.on_begun(at, *record, *value),
            Event::Acked { record, offset } => self.on_acked(at, *record, *offset),
            Event::Failed { record } => self.on_failed(at, *record),
            Event::Unknown { record } => {
                self.settle(at, *record, Outcome::Unknown);
            }
            Event::ScanBegun {
                reader,
                partition,
                from,
            } => self.on_scan_begun(at, *reader, *partition, *from),
            Event::Read {
                reader,
                partition,
                offset,
                value,
            } => self.on_read(at, *reader, *partition, *offset, *value),
            Event::ScanEnded {
                reader,
                partition,
                until,
                log_start,
                high_watermark,
            } => {
                let ended = read::Ended {
                    until: *until,
                    log_start: *log_start,
                    high_watermark: *high_watermark,
                };
                self.on_scan_ended(at, *reader, *partition, ended);
            }
            Event::LogStartSeen { partition, offset } => self.on_log_start(at, *partition, *offset),
            Event::RetentionAllowed { partition, until } => {
                let log = self.log(*partition);
                log.retention_until = log.retention_until.max(*until);
            }
            // Learned already.
            Event::GapDeclared { .. } => {}
            Event::Chain(record) => self.on_chain(at, record),
            Event::Quiesced => {
                // Again, where something was written in between.
                self.quiesced = Some(at);
                self.logs.values_mut().for_each(|log| log.settled = None);
            }
            Event::Copy {
                partition, values, ..
            } => {
                // Compared at the end, when all that readers were shown is known.
                self.log(*partition);
                self.report.counts.copied += values.len() as u64;
            }
            Event::NodeHeld {
                node,
                bytes,
                bytes_max,
            } => self.on_node_held(at, *node, *bytes, *bytes_max),
            Event::Object {
                object,
                referenced,
                present,
            } => self.on_object(at, object, *referenced, *present),
        }
    }

    fn finish(mut self, history: &History) -> Report {
        self.finish_produces();
        self.finish_gaps();
        self.finish_copies(history);
        self.finish_scans();
        let mut counts = Counts {
            events: history.entries().len() as u64,
            begun: self.written.len() as u64,
            ..self.report.counts
        };
        for written in self.written.values() {
            match written.outcome {
                Outcome::Acked => counts.acked += 1,
                Outcome::Failed => counts.failed += 1,
                Outcome::Open | Outcome::Unknown => {
                    counts.unknown += 1;
                    counts.unknown_read += u64::from(written.read);
                }
            }
        }
        self.report.counts = counts;
        self.report
    }

    fn log(&mut self, partition: u64) -> &mut Log {
        self.logs.entry(partition).or_default()
    }

    /// A value and who wrote it, for people.
    fn tell(&self, value: Value) -> String {
        match self.written.get(&value) {
            Some(written) => format!("{value} ({})", written.record),
            None => format!("{value} (written by nobody)"),
        }
    }

    fn violated(&mut self, rule: Rule, place: Place, events: &[Position], what: String) {
        let mut events: Vec<_> = events.iter().copied().filter(|event| *event > 0).collect();
        events.sort_unstable();
        events.dedup();
        self.report.add(Violation {
            rule,
            partition: place.partition,
            offset: place.offset,
            events,
            what,
        });
    }
}

/// What a violation is about.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    partition: Option<u64>,
    offset: Option<u64>,
}

impl Place {
    const fn at(partition: u64, offset: u64) -> Self {
        Self {
            partition: Some(partition),
            offset: Some(offset),
        }
    }

    const fn of(partition: u64) -> Self {
        Self {
            partition: Some(partition),
            offset: None,
        }
    }
}

/// Parts of a range that no other range covers; `covers` sorted and not touching each other.
fn uncovered(range: Range, covers: &BTreeMap<u64, u64>) -> Vec<Range> {
    let mut left = Vec::new();
    let mut from = range.from;
    let first = covers
        .range(..=range.from)
        .next_back()
        .map_or(range.from, |(begin, _)| *begin);
    for (begin, end) in covers.range(first..range.until.max(first)) {
        if *begin > from {
            left.push(Range { from, until: *begin });
        }
        from = from.max(*end);
    }
    if from < range.until {
        left.push(Range {
            from,
            until: range.until,
        });
    }
    left
}
