//! Segments that went into the object store after the backup: their objects are there, and nothing names
//! them.
//!
//! An object is written of a sealed segment only, and the oldest segment goes first. So the objects of a
//! partition continue the offloaded past that the backup knows without a hole, but for what was declared
//! lost in between; of one segment there may be several, of which any will do.

use std::collections::BTreeMap;

use forebay_record::{Offset, SegmentId};

use super::{Held, Planned};
use crate::model::Run;

/// A range of a partition in an object that no record names. The object was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRun {
    /// The segment that it was copied from.
    pub segment: SegmentId,
    /// Where it is.
    pub run: Run,
}

impl Planned {
    /// Lists objects again that continue the offloaded past.
    pub(super) fn find_runs(&mut self, found: &[FoundRun], held: &BTreeMap<SegmentId, Held>, now_ms: i64) {
        let mut segments: BTreeMap<SegmentId, BTreeMap<Offset, &Run>> = BTreeMap::new();
        for one in found.iter().filter(|one| one.segment.partition == self.record.id) {
            let pieces = segments.entry(one.segment).or_default();
            let longest = pieces
                .get(&one.run.base)
                .is_none_or(|known| known.end < one.run.end);
            if longest {
                pieces.insert(one.run.base, &one.run);
            }
        }
        while let Some((id, pieces)) = self.next_offloaded(&segments, held) {
            self.list(id, pieces, now_ms);
            segments.retain(|other, _| *other > id);
        }
    }

    /// The segment whose objects follow what is offloaded: the oldest of the chain, or one that begins
    /// where it did or where the log ended.
    fn next_offloaded<'a>(
        &self,
        segments: &BTreeMap<SegmentId, BTreeMap<Offset, &'a Run>>,
        held: &BTreeMap<SegmentId, Held>,
    ) -> Option<(SegmentId, Vec<&'a Run>)> {
        let oldest = self.record.chain.first();
        let at = self.record.offloaded_end();
        let of = |id: SegmentId, pieces: &BTreeMap<Offset, &'a Run>| {
            (id, pieces.values().copied().collect::<Vec<_>>())
        };
        if let Some(oldest) = oldest
            && let Some(pieces) = segments.get(&oldest.id)
        {
            return Some(of(oldest.id, pieces));
        }
        let base = |pieces: &BTreeMap<Offset, &Run>| pieces.first_key_value().map(|(base, _)| *base);
        let after = oldest.map(|oldest| oldest.id);
        let later = || segments.iter().filter(move |(id, _)| Some(**id) > after);
        // An open segment was dropped where it held nothing. A sealed one went first, and its object is
        // gone where retention took it; what a node still has of it is better than a hole.
        let (id, pieces) = later()
            .filter(|(_, pieces)| base(pieces) >= Some(at))
            .min_by_key(|(id, pieces)| (base(pieces), std::cmp::Reverse(**id)))?;
        let until = base(pieces)?;
        let between = held
            .values()
            .any(|one| one.base >= at && one.base < until && one.tail() > one.base);
        (!between).then(|| of(*id, pieces))
    }

    /// Takes a segment out of the chain and lists its objects; what lies between them is lost.
    fn list(&mut self, id: SegmentId, pieces: Vec<&Run>, now_ms: i64) {
        let mut at = self.record.offloaded_end();
        let oldest = self.record.chain.first();
        let sealed = oldest
            .filter(|oldest| oldest.id == id)
            .and_then(|oldest| oldest.end);
        for run in pieces {
            // What overlaps is of an upload that was repeated after a loss was declared.
            if run.base < at {
                continue;
            }
            if run.base > at {
                self.lose(at, run.base, "in no object after a restore", now_ms);
            }
            at = run.end;
            self.record.recent.push(run.clone());
        }
        if let Some(end) = sealed.filter(|end| *end > at) {
            self.lose(at, end, "in no object after a restore", now_ms);
            at = end;
        }
        self.record.chain.retain(|segment| segment.base >= at);
        self.offloaded.push(id);
    }
}
