//! A partition's record at each revision (H9): contiguous, rising, and nothing sealed ever changes.
//!
//! Everything is compared with what came before only by what rises or stays, so versions that
//! nobody observed do no harm.

use super::{Checker, Place, Position, uncovered};
use crate::event::{ChainRecord, ChainSegment, Range};
use crate::report::Rule;

impl Checker<'_> {
    pub(super) fn on_chain(&mut self, at: Position, record: &ChainRecord) {
        self.report.counts.chain_records += 1;
        let partition = record.partition;
        let before = self.log(partition).chain.replace((record.clone(), at));
        let mut wrong: Vec<(Option<u64>, String, Position)> = Vec::new();
        within(record, &mut wrong);
        if let Some((old, old_at)) = &before {
            if record.revision <= old.revision {
                let what = format!(
                    "revision {} is noted after revision {}",
                    record.revision, old.revision
                );
                self.violated(Rule::History, Place::of(partition), &[*old_at, at], what);
                return;
            }
            between(old, record, *old_at, &mut wrong);
        }
        for segment in &record.segments {
            let key = (partition, segment.epoch, segment.seq);
            let known = self.segments.entry(key).or_insert((*segment, at));
            let (first, first_at) = *known;
            if (first.base, first.token) != (segment.base, segment.token)
                || (first.end.is_some() && first.end != segment.end)
            {
                let what = format!("segment {} was {}", name(segment), name(&first));
                wrong.push((Some(segment.base), what, first_at));
            } else {
                *known = (*segment, at);
            }
        }
        for (offset, what, earlier) in wrong {
            let place = Place {
                partition: Some(partition),
                offset,
            };
            let what = format!("at revision {}, {what}", record.revision);
            self.violated(Rule::H9, place, &[earlier, at], what);
        }
        self.on_log_start(at, partition, record.log_start);
    }
}

fn name(segment: &ChainSegment) -> String {
    let end = segment
        .end
        .map_or_else(|| "open".to_owned(), |end| end.to_string());
    format!(
        "{}.{} {}..{end} token {}",
        segment.epoch, segment.seq, segment.base, segment.token
    )
}

/// What is wrong with one version by itself.
fn within(record: &ChainRecord, wrong: &mut Vec<(Option<u64>, String, Position)>) {
    let mut tell = |offset: u64, what: String| wrong.push((Some(offset), what, 0));
    let past = record.offloaded_end.max(record.log_start);
    if let Some(first) = record.segments.first() {
        if first.base > past && !bridged(record, past, first.base) {
            tell(
                past,
                format!("the chain has a hole from {past} to segment {}", name(first)),
            );
        }
        if first.base < record.offloaded_end {
            tell(
                first.base,
                format!(
                    "segment {} overlaps what is offloaded up to {}",
                    name(first),
                    record.offloaded_end
                ),
            );
        }
    }
    for segment in &record.segments {
        if segment.end.is_some_and(|end| end < segment.base) {
            tell(
                segment.base,
                format!("segment {} ends before it begins", name(segment)),
            );
        }
        if segment.epoch > record.epoch {
            tell(
                segment.base,
                format!(
                    "segment {} is of a later epoch than {}",
                    name(segment),
                    record.epoch
                ),
            );
        }
    }
    for pair in record.segments.windows(2) {
        let [one, next] = pair else { continue };
        match one.end {
            None => tell(
                one.base,
                format!("segment {} is open and {} follows it", name(one), name(next)),
            ),
            Some(end) if end != next.base && !bridged(record, end, next.base) => {
                tell(
                    end,
                    format!(
                        "the chain has a hole between segments {} and {}",
                        name(one),
                        name(next)
                    ),
                );
            }
            Some(_) => {}
        }
        if one.token >= next.token || (one.epoch, one.seq) >= (next.epoch, next.seq) {
            tell(
                next.base,
                format!("segment {} does not rise above {}", name(next), name(one)),
            );
        }
    }
}

/// Whether declared gaps cover all between two offsets.
fn bridged(record: &ChainRecord, from: u64, until: u64) -> bool {
    let gaps = record.gaps.iter().map(|gap| (gap.from, gap.until)).collect();
    from < until && uncovered(Range { from, until }, &gaps).is_empty()
}

/// Where the log of a version ends for sure: everything below is sealed or offloaded.
fn sealed_end(record: &ChainRecord) -> u64 {
    record
        .segments
        .last()
        .map_or(0, |last| last.end.unwrap_or(last.base))
        .max(record.offloaded_end)
        .max(record.log_start)
}

/// Whether all of a range lies in gaps that a version declares.
fn is_lost(record: &ChainRecord, base: u64, end: u64) -> bool {
    let mut at = base;
    while let Some(gap) = record.gaps.iter().find(|gap| gap.from <= at && at < gap.until) {
        at = gap.until;
    }
    at >= end
}

/// What is wrong with one version after another.
fn between(
    old: &ChainRecord,
    new: &ChainRecord,
    old_at: Position,
    wrong: &mut Vec<(Option<u64>, String, Position)>,
) {
    let past = |record: &ChainRecord| record.offloaded_end.max(record.log_start);
    for (what, before, after) in [
        ("epoch", old.epoch, new.epoch),
        ("log start", old.log_start, new.log_start),
        ("end of the past", past(old), past(new)),
        ("sealed end", sealed_end(old), sealed_end(new)),
    ] {
        if after < before {
            wrong.push((None, format!("the {what} fell from {before} to {after}"), old_at));
        }
    }
    for segment in &old.segments {
        let stays = new
            .segments
            .iter()
            .any(|one| (one.epoch, one.seq) == (segment.epoch, segment.seq));
        let kept = |end: u64| end > past(new) && end > segment.base && !is_lost(new, segment.base, end);
        if !stays && segment.end.is_some_and(kept) {
            let what = format!(
                "segment {} left the chain, and only what is below {} is offloaded or dropped",
                name(segment),
                past(new)
            );
            wrong.push((Some(segment.base), what, old_at));
        }
    }
}
