//! Copies of sealed segments from one storage node to another, and surveys of what nodes have.
//!
//! 1. A partition asks for a copy; it waits here, the most endangered first, while [`RUNNING_MAX`]
//!    others run. It is asked again whether it still wants the copy when its turn comes.
//! 2. The new node says how far it is, an old one gives the frames after that, and so on, until the new
//!    node has durably all of the segment. Who gives may change in between: frames are checked, and
//!    follow each other by number and chain hash, whoever sent them. A replica that is healed where it
//!    is gets the frames after its first hole in the same way, and keeps those that it has.
//! 3. All copies together send no more bytes a second than configured.
//!
//! What waits is bounded by the partitions owned, what is in memory by [`RUNNING_MAX`] reads.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use forebay_proto::data::replica::{
    Copied, CopyRequest, ITEMS_MAX, NodeFailure, SealedRequest, Surveyed, ToNode,
};
use forebay_record::frame::Frame;
use forebay_record::{Generation, NodeId, PartitionId, SegmentId};

use super::calls::Call;
use super::driver::Driver;
use crate::partition::{Endangered, Repair};

/// Copies that run at a time.
const RUNNING_MAX: usize = 2;
/// Bytes read at a time; one frame may be larger.
const READ_BYTES: u32 = 1 << 20;
/// A storage node that has not answered a step after this long counts as silent.
const STEP_TIMEOUT_MS: u64 = 30_000;

/// A copy that runs.
#[derive(Debug)]
struct Running {
    repair: Repair,
    /// Who may have the next frames; who did not is left out until there was progress.
    sources: VecDeque<(NodeId, Generation)>,
    /// How far the new node was when all sources were last asked from the first on.
    asked_from: u32,
    /// How far the new node is.
    at: Copied,
    bytes: u64,
    started_ms: u64,
}

/// All copies of a broker.
#[derive(Debug)]
pub(super) struct Repairs {
    bytes_per_second: u64,
    /// Bytes that may be sent now; less than nothing where a frame was larger than what was left.
    allowance: i64,
    refilled_ms: u64,
    waiting: BTreeMap<(crate::partition::Urgency, SegmentId), Repair>,
    running: HashMap<u64, Running>,
    /// Frames that wait for their share of the rate.
    throttled: VecDeque<(u64, Vec<Frame>)>,
    next: u64,
    surveys: HashMap<NodeId, Vec<(SegmentId, Generation)>>,
}

impl Repairs {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            allowance: 0,
            refilled_ms: 0,
            waiting: BTreeMap::new(),
            running: HashMap::new(),
            throttled: VecDeque::new(),
            next: 0,
            surveys: HashMap::new(),
        }
    }

    /// Copies that wait or run.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    fn refill(&mut self, now_ms: u64) {
        let passed = now_ms.saturating_sub(self.refilled_ms).min(1_000);
        self.refilled_ms = now_ms;
        let most = i64::try_from(self.bytes_per_second).unwrap_or(i64::MAX);
        let more = self.bytes_per_second.saturating_mul(passed) / 1_000;
        let more = i64::try_from(more).unwrap_or(i64::MAX);
        self.allowance = self.allowance.saturating_add(more).min(most);
    }

    /// Takes bytes from the rate; false where they have to wait.
    fn take(&mut self, bytes: u64) -> bool {
        if self.bytes_per_second > 0 {
            if self.allowance <= 0 {
                return false;
            }
            self.allowance -= i64::try_from(bytes).unwrap_or(i64::MAX);
        }
        true
    }
}

fn len_of(frames: &[Frame]) -> u64 {
    frames.iter().map(|frame| frame.header.frame_len() as u64).sum()
}

impl Driver {
    /// What a replica has is wanted; asked together with others at the end of the burst.
    pub(super) fn on_survey(&mut self, node: NodeId, segment: SegmentId, generation: Generation) {
        let items = self.repairs.surveys.entry(node).or_default();
        items.push((segment, generation));
    }

    /// Asks what was gathered.
    pub(super) fn send_surveys(&mut self) {
        for (node, items) in std::mem::take(&mut self.repairs.surveys) {
            for items in items.chunks(ITEMS_MAX) {
                let segments = items.iter().map(|(segment, _)| *segment).collect();
                let request = self.calls.begin(node, Call::Survey(segments), self.now_ms);
                let items = items.to_vec();
                self.request(node, ToNode::Survey { request, items });
            }
        }
    }

    /// A node said what it has.
    pub(super) fn on_surveyed(
        &mut self,
        node: NodeId,
        segments: Vec<SegmentId>,
        found: Vec<Option<Surveyed>>,
    ) {
        for (segment, found) in segments.into_iter().zip(found) {
            self.with_owner(segment.partition, |owner, ctx| {
                owner.on_surveyed(node, segment, found, ctx);
            });
        }
    }

    /// A sealed segment is to be copied.
    pub(super) fn on_repair(&mut self, repair: Repair) {
        let key = (repair.urgency, repair.segment.id);
        self.repairs.waiting.insert(key, repair);
        self.start_repairs();
    }

    pub(super) fn start_repairs(&mut self) {
        while self.repairs.running.len() < RUNNING_MAX
            && let Some((_, repair)) = self.repairs.waiting.pop_first()
        {
            let (partition, segment) = (repair.segment.id.partition, repair.segment.id);
            let mut wanted = false;
            self.with_owner(partition, |owner, ctx| wanted = owner.wants_repair(&repair, ctx));
            let (node, generation) = repair.to;
            if !wanted || !self.is_connected(node, generation) {
                self.with_owner(partition, |owner, ctx| owner.on_repaired(segment, false, ctx));
                continue;
            }
            tracing::info!(%segment, lost = %repair.lost.0, to = %node, copies = repair.urgency.copies,
                bytes = repair.segment.bytes, "copies a sealed segment");
            self.repairs.next += 1;
            let key = self.repairs.next;
            let running = Running {
                sources: repair.sources.iter().copied().collect(),
                asked_from: 0,
                at: Copied {
                    frames: 0,
                    tail: repair.segment.base,
                },
                repair,
                bytes: 0,
                started_ms: self.now_ms,
            };
            self.repairs.running.insert(key, running);
            self.send_copy(key, Vec::new());
        }
    }

    /// Time passes: frames that waited for the rate go on.
    pub(super) fn tick_repairs(&mut self) {
        self.repairs.refill(self.now_ms);
        while let Some((key, frames)) = self.repairs.throttled.pop_front() {
            if !self.repairs.take(len_of(&frames)) {
                self.repairs.throttled.push_front((key, frames));
                break;
            }
            self.send_copy(key, frames);
        }
        self.start_repairs();
    }

    fn send_copy(&mut self, key: u64, frames: Vec<Frame>) {
        let Some(running) = self.repairs.running.get_mut(&key) else {
            return;
        };
        let repair = &running.repair;
        let segment = &repair.segment;
        let bytes = len_of(&frames);
        running.bytes += bytes;
        let (node, generation) = repair.to;
        let copy = CopyRequest {
            segment: segment.id,
            generation,
            token: segment.token,
            base: segment.base,
            until: segment.end.unwrap_or(segment.base),
            by: repair.by,
            listed: repair.listed,
            frames,
        };
        self.settings.metrics.repaired_bytes.inc_by(bytes);
        let deadline_ms = self.now_ms + STEP_TIMEOUT_MS;
        let request = self.calls.begin_until(node, Call::Copy(key), deadline_ms);
        let copy = Box::new(copy);
        self.request(node, ToNode::Copy { request, copy });
    }

    /// The new node has taken frames durably, or not.
    pub(super) fn on_copied(&mut self, key: u64, node: NodeId, result: Result<Copied, NodeFailure>) {
        let Some(running) = self.repairs.running.get_mut(&key) else {
            return;
        };
        let segment = running.repair.segment.id;
        let end = running.repair.segment.end.unwrap_or_default();
        match result {
            Ok(copied) if copied.tail >= end => {
                let (bytes, took_ms) = (running.bytes, self.now_ms - running.started_ms);
                tracing::info!(%segment, %node, bytes, took_ms, "a sealed segment has another copy");
                self.end_repair(key, true);
            }
            Ok(copied) => {
                running.at = copied;
                self.read_sealed(key);
            }
            Err(failure) => {
                tracing::warn!(%segment, %node, ?failure, "a storage node did not take a copy");
                self.end_repair(key, false);
            }
        }
    }

    /// Asks whoever may have the next frames.
    fn read_sealed(&mut self, key: u64) {
        loop {
            let Some(running) = self.repairs.running.get_mut(&key) else {
                return;
            };
            let segment = &running.repair.segment;
            let partition = segment.id.partition;
            if running.sources.is_empty() && running.at.frames > running.asked_from {
                // Of several that are damaged one may have what another lacks.
                running.asked_from = running.at.frames;
                running.sources = running.repair.sources.iter().copied().collect();
            }
            let Some((node, generation)) = running.sources.front().copied() else {
                tracing::warn!(segment = %segment.id, "no storage node gave a sealed segment's frames");
                return self.end_repair(key, false);
            };
            let sealed = SealedRequest {
                segment: segment.id,
                generation,
                number: running.at.frames,
                until: segment.end.unwrap_or(segment.base),
                max_bytes: READ_BYTES,
            };
            let by = running.repair.by;
            let owned = self.owners.get(&partition);
            if owned.is_none_or(|owner| owner.record().epoch != by) {
                // Whoever owns it now decides anew.
                return self.end_repair(key, false);
            }
            if self.is_connected(node, generation) {
                let deadline_ms = self.now_ms + STEP_TIMEOUT_MS;
                let request = self.calls.begin_until(node, Call::Sealed(key), deadline_ms);
                return self.request(node, ToNode::Sealed { request, sealed });
            }
            if let Some(running) = self.repairs.running.get_mut(&key) {
                running.sources.pop_front();
            }
        }
    }

    /// Frames came, or not.
    pub(super) fn on_sealed(&mut self, key: u64, node: NodeId, result: Result<Vec<Frame>, NodeFailure>) {
        let Some(running) = self.repairs.running.get_mut(&key) else {
            return;
        };
        let (segment, number) = (running.repair.segment.id, running.at.frames);
        let right = |frames: &Vec<Frame>| {
            !frames.is_empty()
                && frames.iter().zip(number..).all(|(frame, number)| {
                    let header = &frame.header;
                    header.segment == segment
                        && header.number == number
                        && header.verify(&frame.payload).is_ok()
                })
        };
        match result {
            Ok(frames) if right(&frames) => {
                if self.repairs.throttled.is_empty() && self.repairs.take(len_of(&frames)) {
                    self.send_copy(key, frames);
                } else {
                    self.repairs.throttled.push_back((key, frames));
                }
            }
            result => {
                let failure = result.err();
                tracing::warn!(%segment, %node, number, ?failure, "a storage node did not give a sealed segment's frames");
                running.sources.pop_front();
                self.read_sealed(key);
            }
        }
    }

    fn end_repair(&mut self, key: u64, whole: bool) {
        let Some(running) = self.repairs.running.remove(&key) else {
            return;
        };
        let segment = running.repair.segment.id;
        let told = self.with_owner(segment.partition, |owner, ctx| {
            owner.on_repaired(segment, whole, ctx);
        });
        if !whole {
            self.settings.metrics.repair_failures.inc();
        }
        if !told && !running.repair.listed {
            let by = running.repair.by;
            self.request(running.repair.to.0, ToNode::ForgetCopy { segment, by });
        }
        self.start_repairs();
    }

    /// A partition has a sound replica more.
    pub(super) fn on_repair_done(&mut self, repair: &Repair) {
        self.settings.metrics.repaired_segments.inc();
        tracing::info!(segment = %repair.segment.id, lost = %repair.lost.0, by = %repair.to.0,
            "a sealed segment is repaired");
    }

    /// Sums over all partitions, for metrics and status.
    pub(super) fn endangered(&self) -> Endangered {
        let mut sum = Endangered::default();
        for owner in self.owners.values() {
            let one = owner.endangered();
            sum.under_replicated += one.under_replicated;
            sum.last_copy += one.last_copy;
            sum.lost += one.lost;
            sum.bytes += one.bytes;
        }
        sum
    }

    /// Drops what waits for partitions that are no longer owned here.
    pub(super) fn forget_repairs(&mut self) {
        let owned: HashSet<PartitionId> = self.owners.keys().copied().collect();
        self.repairs
            .waiting
            .retain(|(_, segment), _| owned.contains(&segment.partition));
    }
}
