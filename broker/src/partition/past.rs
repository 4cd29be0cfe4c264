//! The past of a partition: its oldest sealed segment goes to the object store, the ranges there
//! are folded into the manifest, and what retention no longer wants goes altogether.
//!
//! 1. [`Owner::tend_past`] asks the driver to copy the oldest sealed segment, one at a time. What
//!    comes back was written and verified; one compare-and-swap (T5) takes the segment out of the
//!    chain and lists its range. Only then may its replicas trim it (I19).
//! 2. Before the list is full, and when retention may have something to remove, the driver is asked
//!    to write a manifest; one compare-and-swap (T6, T7) makes it count (I20).
//! 3. Where a topic is not offloaded, retention drops whole sealed segments from the chain.
//!
//! All of it can be repeated: a copy or a manifest whose change is lost is an object that nothing
//! names, and is collected as garbage. Nothing here delays or fails a write.

use std::collections::VecDeque;

use forebay_meta::model::{ManifestRef, Partition, RECENT_MAX, Refused, Run, Segment};
use forebay_record::{Offset, SegmentId};

use super::action::{Action, Context, Folded, Retention};
use super::owner::{Owner, Phase};
use super::repair::OFFLOAD_PATIENCE_MS;

/// Ranges in the record from which on they are folded into the manifest.
const FOLD_AT: usize = RECENT_MAX - 4;
/// How often retention looks.
const RETENTION_MS: u64 = 5_000;
/// Pauses after failures: from here, doubling, up to the second.
const PAUSE_MS: (u64, u64) = (1_000, 60_000);

/// What an owner knows of its partition's past besides the record.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// Being copied and verified.
    offloading: Option<Offloading>,
    /// Copied and verified, to be stored.
    copied: Option<(SegmentId, Vec<Run>)>,
    /// A manifest is being written.
    folding: bool,
    /// Written and read back, to be stored.
    folded: Option<Folded>,
    /// What the newest manifest says of itself; none until one was read.
    manifest: Option<(Option<ManifestRef>, Manifest)>,
    failures: u32,
    /// Since when copies into the object store fail.
    failing_since_ms: Option<u64>,
    next_offload_ms: u64,
    next_fold_ms: u64,
    next_retention_ms: u64,
    urged: bool,
}

/// A segment that is being copied, piece by piece: what was declared lost of it lies between.
#[derive(Debug)]
struct Offloading {
    segment: Box<Segment>,
    /// Pieces that are not asked for yet.
    left: VecDeque<(Offset, Offset)>,
    runs: Vec<Run>,
}

/// What retention must know of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Manifest {
    /// Largest timestamp of the oldest range.
    oldest_ms: i64,
    /// Bytes of all ranges.
    bytes: u64,
}

impl Past {
    /// The next copy does not wait for the end of a pause.
    pub(super) const fn hasten(&mut self) {
        self.next_offload_ms = 0;
        self.failures = 0;
    }

    /// The next copy goes before those of other partitions.
    pub(super) const fn urge(&mut self) {
        self.urged = true;
    }
}

impl Owner {
    /// Whether sealed segments go into the object store, and it has taken them lately.
    pub(super) fn is_offload_working(&self, ctx: &Context<'_>) -> bool {
        let since = self.past.failing_since_ms;
        let failing = since.is_some_and(|since| ctx.now_ms.saturating_sub(since) >= OFFLOAD_PATIENCE_MS);
        self.config.offload && !failing
    }

    /// Where storage nodes ran short of space, they ask for the segments that hold their oldest
    /// files: an open one is rolled, a sealed one goes before those of other partitions.
    pub fn on_urged(&mut self, segment: SegmentId, ctx: &mut Context<'_>) {
        let open = self
            .linked
            .as_ref()
            .is_some_and(|writer| writer.segment.id == segment && writer.tail > writer.segment.base);
        if !open && self.record.chain.iter().all(|one| one.id != segment) {
            return;
        }
        if self.config.offload {
            self.past.urged = true;
            if open {
                self.roll(ctx);
            }
        }
        self.tend_past(ctx);
    }

    /// Does what is due.
    pub(super) fn tend_past(&mut self, ctx: &mut Context<'_>) {
        if self.storing.is_some() || !matches!(self.phase, Phase::Serving) {
            return;
        }
        if let Some((segment, runs)) = self.past.copied.take() {
            let changed = self.record.offload(segment, &runs, ctx.nonce);
            return self.submit_past(changed, ctx);
        }
        if let Some(folded) = self.past.folded.take() {
            return self.store_fold(folded, ctx);
        }
        self.offload_next(ctx);
        if !self.past.folding && ctx.now_ms >= self.past.next_fold_ms {
            let full = self.record.recent.len() >= FOLD_AT || !self.has_room_for_next();
            if full || self.is_retention_due(ctx) {
                self.past.folding = true;
                ctx.out.push(Action::Fold(Retention {
                    log_start: self.record.log_start,
                    retention_ms: self.config.retention_ms,
                    retention_bytes: self.config.retention_bytes,
                    now_ms: ctx.wall_ms,
                    newer_bytes: self.chain_bytes(),
                }));
            } else if !self.config.offload {
                self.expire_chain(ctx);
            }
        }
    }

    fn offload_next(&mut self, ctx: &mut Context<'_>) {
        let held = !self.config.offload
            || self.past.offloading.is_some()
            || ctx.now_ms < self.past.next_offload_ms
            || !self.has_room_for_next()
            || !ctx.meta_healthy;
        if held {
            return;
        }
        let Some(segment) = self.record.chain.first().filter(|segment| segment.end.is_some()) else {
            self.past.urged = false;
            return;
        };
        let left = self
            .record
            .pieces(segment.base, segment.end.unwrap_or(segment.base));
        self.past.offloading = Some(Offloading {
            segment: Box::new(segment.clone()),
            left: left.into(),
            runs: Vec::new(),
        });
        self.offload_piece(ctx);
    }

    /// Asks for the next piece of the segment that is being copied; false where it has all.
    fn offload_piece(&mut self, ctx: &mut Context<'_>) -> bool {
        let Some(offloading) = &mut self.past.offloading else {
            return false;
        };
        let Some(piece) = offloading.left.pop_front() else {
            return false;
        };
        ctx.out.push(Action::Offload {
            segment: offloading.segment.clone(),
            piece,
            urged: self.past.urged,
        });
        true
    }

    /// Whether the record can list what the oldest segment becomes.
    fn has_room_for_next(&self) -> bool {
        let oldest = self.record.chain.first();
        let pieces = oldest.and_then(|one| Some(self.record.pieces(one.base, one.end?).len()));
        self.record.has_room_for(pieces.unwrap_or(0).max(1))
    }

    /// A segment was copied and the copy verified, or that failed; the driver has logged why.
    pub fn on_offloaded(&mut self, segment: SegmentId, run: Option<Run>, ctx: &mut Context<'_>) {
        let Some(offloading) = self
            .past
            .offloading
            .as_mut()
            .filter(|one| one.segment.id == segment)
        else {
            return;
        };
        let copied = run.is_some();
        offloading.runs.extend(run);
        if copied && self.offload_piece(ctx) {
            return;
        }
        let runs = self.past.offloading.take().map_or_else(Vec::new, |one| one.runs);
        match Some(runs).filter(|_| copied) {
            Some(runs) => {
                self.past.failures = 0;
                self.past.failing_since_ms = None;
                self.past.copied = Some((segment, runs));
            }
            None => {
                let (first, most) = PAUSE_MS;
                let pause = first.saturating_mul(1 << self.past.failures.min(6)).min(most);
                self.past.failures = self.past.failures.saturating_add(1);
                self.past.failing_since_ms.get_or_insert(ctx.now_ms);
                self.past.next_offload_ms = ctx.now_ms + pause;
            }
        }
        self.tend_past(ctx);
    }

    /// A manifest was written and read back, or that failed; the driver has logged why.
    pub fn on_folded(&mut self, folded: Option<Folded>, ctx: &mut Context<'_>) {
        if !std::mem::take(&mut self.past.folding) {
            return;
        }
        self.past.next_retention_ms = ctx.now_ms + RETENTION_MS;
        match folded {
            Some(folded) => self.past.folded = Some(folded),
            None => self.past.next_fold_ms = ctx.now_ms + PAUSE_MS.0 * 10,
        }
        self.tend_past(ctx);
    }

    fn store_fold(&mut self, folded: Folded, ctx: &mut Context<'_>) {
        self.past.manifest = Some((
            folded.manifest.clone(),
            Manifest {
                oldest_ms: folded.oldest_ms,
                bytes: folded.bytes,
            },
        ));
        let changes = folded.manifest != self.record.manifest || folded.log_start > self.record.log_start;
        if changes {
            let changed = self.record.fold(folded.manifest, folded.log_start, ctx.nonce);
            self.submit_past(changed, ctx);
        } else {
            // Nothing whole was old enough.
            self.past.next_retention_ms = ctx.now_ms + RETENTION_MS * 12;
        }
    }

    /// Sends a change on its way. One that the record has overtaken is dropped: what it would have
    /// named is garbage now.
    fn submit_past(&mut self, changed: Result<Partition, Refused>, ctx: &mut Context<'_>) {
        match changed {
            Ok(changed) => self.submit(Ok(changed), ctx),
            Err(refused) => {
                tracing::info!(partition = %self.record.id, %refused, "the record has changed since");
            }
        }
    }

    /// Bytes of segments that are not offloaded, as far as they are known.
    fn chain_bytes(&self) -> u64 {
        let sealed: u64 = self.record.chain.iter().map(|segment| segment.bytes).sum();
        sealed + self.linked.as_ref().map_or(0, |writer| writer.bytes)
    }

    /// Bytes of sealed segments that are to be offloaded, 0 where the topic keeps its segments.
    #[must_use]
    pub fn offload_lag_bytes(&self) -> u64 {
        if !self.config.offload {
            return 0;
        }
        self.record.chain.iter().map(|segment| segment.bytes).sum()
    }

    /// True while an object may still get its first reference from this owner.
    #[must_use]
    pub fn may_name_objects(&self) -> bool {
        !self.is_released()
            && (self.past.offloading.is_some()
                || self.past.copied.is_some()
                || self.past.folding
                || self.past.folded.is_some()
                || self.storing.is_some())
    }

    /// True where the offloaded past may have something that retention does not want. A manifest
    /// that was not read yet may have anything.
    fn is_retention_due(&mut self, ctx: &Context<'_>) -> bool {
        let unlimited = self.config.retention_ms.is_none() && self.config.retention_bytes.is_none();
        let nothing = self.record.manifest.is_none() && self.record.recent.is_empty();
        if unlimited || nothing || ctx.now_ms < self.past.next_retention_ms {
            return false;
        }
        self.past.next_retention_ms = ctx.now_ms + RETENTION_MS;
        let recent: u64 = self.record.recent.iter().map(|run| run.len).sum();
        let known = match (&self.record.manifest, &self.past.manifest) {
            (None, _) => Manifest {
                oldest_ms: i64::MAX,
                bytes: 0,
            },
            (Some(_), Some((of, known))) if *of == self.record.manifest => *known,
            (Some(_), _) => return true,
        };
        let first = self
            .record
            .recent
            .first()
            .map_or(i64::MAX, |run| run.max_timestamp_ms);
        let old = self
            .config
            .retention_ms
            .is_some_and(|keep| ctx.wall_ms.saturating_sub(keep_ms(keep)) > known.oldest_ms.min(first));
        let large = self
            .config
            .retention_bytes
            .is_some_and(|keep| known.bytes + recent + self.chain_bytes() > keep);
        old || large
    }

    /// Retention where nothing is offloaded: drops the oldest sealed segments.
    fn expire_chain(&mut self, ctx: &mut Context<'_>) {
        if ctx.now_ms < self.past.next_retention_ms {
            return;
        }
        self.past.next_retention_ms = ctx.now_ms + RETENTION_MS;
        // What was offloaded while the topic still was goes first, by way of its manifest.
        if self.record.manifest.is_some() || !self.record.recent.is_empty() {
            return;
        }
        let mut total = self.chain_bytes();
        let mut log_start = self.record.log_start;
        for Segment {
            end,
            bytes,
            sealed_ms,
            ..
        } in &self.record.chain
        {
            let Some(end) = *end else { break };
            let old = self
                .config
                .retention_ms
                .is_some_and(|keep| ctx.wall_ms.saturating_sub(keep_ms(keep)) > *sealed_ms);
            let large = self
                .config
                .retention_bytes
                .is_some_and(|keep| total.saturating_sub(*bytes) >= keep);
            if !old && !large {
                break;
            }
            total = total.saturating_sub(*bytes);
            log_start = end;
        }
        // Consumers read what is committed; a sealed end always is.
        debug_assert!(log_start <= self.visible.max(Offset(0)));
        if log_start > self.record.log_start {
            let changed = self.record.fold(None, log_start, ctx.nonce);
            self.submit_past(changed, ctx);
        }
    }
}

fn keep_ms(keep: u64) -> i64 {
    i64::try_from(keep).unwrap_or(i64::MAX)
}
