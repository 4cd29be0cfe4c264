//! What is known of one partition's log.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::{Position, uncovered};
use crate::event::{ChainRecord, Range, Value};

/// What is known of one offset.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub(super) value: Value,
    /// The event that acknowledged it there, 0 for none.
    pub(super) acked: Position,
    /// The event that first read it there, 0 for none.
    pub(super) read: Position,
}

/// Whose word an offset's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Ack,
    Read,
}

/// The furthest that something reached, and the event that took it there.
pub(super) type Reached = (u64, Position);

/// One partition.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) slots: BTreeMap<u64, Slot>,
    /// Declared gaps: begin to end, not touching each other.
    pub(super) gaps: BTreeMap<u64, u64>,
    /// Behind the last acknowledged offset.
    pub(super) acked_end: Reached,
    /// Behind the last offset that anyone read.
    pub(super) read_end: Reached,
    /// The newest acknowledgement, 0 for none.
    pub(super) last_ack: Position,
    /// Complete scans of all that is kept, begun after the newest acknowledgement.
    pub(super) final_scans: u64,
    /// Acknowledged, at an offset that nobody told.
    pub(super) unplaced: Vec<(Value, Position)>,
    /// What may be dropped, exclusive.
    pub(super) retention_until: u64,
    /// Log start and end that the first scan after quiescence was told.
    pub(super) settled: Option<(Option<u64>, u64, Position)>,
    /// The newest version of its record.
    pub(super) chain: Option<(ChainRecord, Position)>,
}

impl Log {
    /// Adds a declared gap.
    pub(super) fn declare(&mut self, range: Range) {
        if range.from >= range.until {
            return;
        }
        let (mut from, mut until) = (range.from, range.until);
        while let Some((begin, end)) = self.gaps.range(..=until).next_back().map(|(b, e)| (*b, *e))
            && end >= from
        {
            self.gaps.remove(&begin);
            from = from.min(begin);
            until = until.max(end);
        }
        self.gaps.insert(from, until);
    }

    /// Parts of a range that lie in no declared gap.
    pub(super) fn undeclared(&self, range: Range) -> Vec<Range> {
        uncovered(range, &self.gaps)
    }

    /// Takes someone's word for an offset's value.
    ///
    /// # Errors
    /// With what was known before, where that differs.
    pub(super) fn place(&mut self, offset: u64, value: Value, by: By, at: Position) -> Result<(), Slot> {
        let slot = match self.slots.entry(offset) {
            Entry::Vacant(free) => free.insert(Slot {
                value,
                acked: 0,
                read: 0,
            }),
            Entry::Occupied(taken) => taken.into_mut(),
        };
        if slot.value != value {
            return Err(*slot);
        }
        let (first, end) = match by {
            By::Ack => (&mut slot.acked, &mut self.acked_end),
            By::Read => (&mut slot.read, &mut self.read_end),
        };
        if *first == 0 {
            *first = at;
        }
        if offset >= end.0 {
            *end = (offset.saturating_add(1), at);
        }
        Ok(())
    }
}

impl Log {
    /// Whether all from one offset until another is declared missing.
    pub(super) fn is_declared(&self, from: u64, until: u64) -> bool {
        self.undeclared(Range { from, until }).is_empty()
    }
}
