//! What a check found.

use std::fmt;

/// Violations that a report lists; more are only counted.
pub(crate) const LISTED_MAX: usize = 1_000;

/// A promise about a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Every acknowledged record is read exactly at its offset by every later full scan.
    H1,
    /// Each offset has one value, for all readers and all time.
    H2,
    /// A reader passes over nothing but declared gaps, and never goes back.
    H3,
    /// What was read once does not vanish.
    H4,
    /// Offsets acknowledged to one producer rise in the order of sending, and nothing stands twice.
    H5,
    /// What was refused is never read, what is unknown at most once, and nothing that nobody wrote.
    H6,
    /// Once nothing is written, every source gives the same log.
    H7,
    /// The log's beginning moves no further than retention allows.
    H8,
    /// The chain has no hole, its tokens rise, only its last segment is open, and nothing sealed changes.
    H9,
    /// Disks hold no more than they should, and no object is missing or left behind.
    H10,
    /// The history contradicts itself: the fault lies with who noted it.
    History,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub rule: Rule,
    /// Where, if it is about one partition.
    pub partition: Option<u64>,
    /// Where, if it is about one offset.
    pub offset: Option<u64>,
    /// Events that show it, numbered from 1.
    pub events: Vec<u64>,
    /// What is wrong, with the values.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rule)?;
        if let Some(partition) = self.partition {
            write!(f, " partition {partition}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, " offset {offset}")?;
        }
        write!(f, ": {}", self.what)?;
        if !self.events.is_empty() {
            let events: Vec<_> = self.events.iter().map(u64::to_string).collect();
            write!(f, " (events {})", events.join(", "))?;
        }
        Ok(())
    }
}

/// How much a history has of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Events.
    pub events: u64,
    /// Records that were about to be sent.
    pub begun: u64,
    /// Acknowledged records.
    pub acked: u64,
    /// Records refused for sure.
    pub failed: u64,
    /// Records of unknown outcome, with those never answered.
    pub unknown: u64,
    /// Records of unknown outcome that were read.
    pub unknown_read: u64,
    /// Records given to readers.
    pub reads: u64,
    /// Scans that were told the log's end.
    pub complete_scans: u64,
    /// Versions of partition records.
    pub chain_records: u64,
    /// Values of copies that were compared.
    pub copied: u64,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Broken promises, the first thousand in the order of the history.
    pub violations: Vec<Violation>,
    /// Broken promises beyond those.
    pub left_out: u64,
    /// What was looked at.
    pub counts: Counts,
}

impl Report {
    /// Whether every promise was kept.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }

    pub(crate) fn add(&mut self, violation: Violation) {
        if self.violations.len() < LISTED_MAX {
            self.violations.push(violation);
        } else {
            self.left_out += 1;
        }
    }
}
