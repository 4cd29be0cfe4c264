//! What was lost for good and declared so: gaps that readers are led over.
//!
//! A gap is declared by an operator's verb and never by itself. It stays in the record for as long as
//! offsets after it are retained, and no offset of it is used again.

use forebay_record::{Generation, NodeId, Offset, SegmentId};

use super::{Gap, Partition, Refused, Sealed};

impl Partition {
    /// Where the log goes on from an offset: behind a declared gap that holds it, else there.
    #[must_use]
    pub fn after_gap(&self, offset: Offset) -> Offset {
        self.gaps.iter().fold(offset, |at, gap| {
            if gap.base <= at && at < gap.end {
                gap.end
            } else {
                at
            }
        })
    }

    /// Declares offsets lost. Gaps that touch become one.
    pub fn declare(&mut self, gap: Gap) {
        if gap.end <= gap.base {
            return;
        }
        self.gaps.push(gap);
        self.gaps.sort_by_key(|gap| (gap.base, gap.end));
        let mut merged: Vec<Gap> = Vec::with_capacity(self.gaps.len());
        for gap in self.gaps.drain(..) {
            match merged.last_mut() {
                Some(last) if gap.base <= last.end && (last.reason == gap.reason || gap.base < last.end) => {
                    last.end = last.end.max(gap.end);
                }
                _ => merged.push(gap),
            }
        }
        self.gaps = merged;
    }

    /// What of `[base, end)` was not declared lost, in order.
    #[must_use]
    pub fn pieces(&self, base: Offset, end: Offset) -> Vec<(Offset, Offset)> {
        let mut pieces = Vec::new();
        let mut from = base;
        for gap in self.gaps.iter().filter(|gap| gap.end > base && gap.base < end) {
            if gap.base > from {
                pieces.push((from, gap.base));
            }
            from = from.max(gap.end);
        }
        if from < end {
            pieces.push((from, end));
        }
        pieces
    }

    /// The first range of the offloaded past that neither is listed nor was declared lost: the record
    /// contradicts itself there. The manifest counts as whole.
    #[must_use]
    pub fn undeclared(&self) -> Option<(Offset, Offset)> {
        let start = self.manifest.as_ref().map(|manifest| manifest.end);
        let mut at = start.or_else(|| self.recent.first().map(|run| run.base))?;
        for run in &self.recent {
            if let Some(range) = self.pieces(at, run.base).first() {
                return Some(*range);
            }
            at = run.end;
        }
        None
    }

    /// Declares what no copy of a sealed segment has any more. A segment of which nothing is left
    /// leaves the chain.
    ///
    /// # Errors
    /// Where the segment is not in the chain or open, or a range is empty or not of the segment.
    pub fn declare_lost(
        &self,
        segment: SegmentId,
        ranges: &[(Offset, Offset)],
        reason: &str,
        op: u64,
    ) -> Result<Self, Refused> {
        self.alive()?;
        let mut next = Self { op, ..self.clone() };
        let found = next.chain.iter().position(|one| one.id == segment);
        let sealed = found.and_then(|at| Some((at, next.chain.get(at)?.base, next.chain.get(at)?.end?)));
        let Some((at, base, end)) = sealed else {
            return Err(Refused::Open(self.id, "no such sealed segment"));
        };
        for (from, until) in ranges.iter().copied() {
            if from < base || until > end || from >= until {
                return Err(Refused::End {
                    segment,
                    base: from,
                    end: until,
                });
            }
            next.declare(Gap {
                base: from,
                end: until,
                reason: reason.to_owned(),
            });
        }
        if next.pieces(base, end).is_empty() {
            next.chain.remove(at);
        }
        Ok(next)
    }

    /// Takes replicas of a sealed segment whose copy is not to be used out of it: under generation 0,
    /// which no node ever has, they count as lost and are replaced.
    pub fn disown(&mut self, segment: SegmentId, is_disowned: impl Fn(NodeId) -> bool) {
        let found = self
            .chain
            .iter_mut()
            .find(|one| one.id == segment && one.end.is_some());
        for (node, generation) in found.into_iter().flat_map(|one| &mut one.replicas) {
            if is_disowned(*node) {
                *generation = Generation(0);
            }
        }
    }

    /// Gives up what nobody can say of the open segment, or of the end of the log: the segment ends
    /// at `end`, everything from there to `next` is declared lost, and the log goes on at `next`,
    /// which must lie above every offset that anybody may have seen.
    ///
    /// # Errors
    /// Where no segment is open, or the offsets do not rise.
    pub fn force_seal(
        &self,
        end: Offset,
        next: Offset,
        sealed: Sealed,
        reason: &str,
        op: u64,
    ) -> Result<Self, Refused> {
        if let Some(open) = self.open()
            && next <= end
        {
            return Err(Refused::End {
                segment: open.id,
                base: end,
                end: next,
            });
        }
        let mut forced = self.seal(end, sealed, None, op)?;
        forced.declare(Gap {
            base: end,
            end: next,
            reason: reason.to_owned(),
        });
        Ok(forced)
    }
}
