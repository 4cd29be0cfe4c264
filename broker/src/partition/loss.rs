//! What no copy has any more of sealed segments, and of an open one that nobody vouches for.
//!
//! 1. [`Owner::tend_losses`] asks connected replicas whose bytes are suspect, of segments without a sound
//!    copy, which offsets they cannot read.
//! 2. [`Owner::plan_declare_lost`] says what no replica can read: that is lost, unless somebody who is
//!    away comes back with it.
//! 3. [`Owner::on_declare_lost`] declares it, when an operator says so: one change of the record, like any
//!    other (I10). Readers are led over it, and the rest goes into the object store in pieces.
//!
//! Nothing is declared by itself, and nothing that a replica can read is ever given up.

use std::collections::{BTreeMap, BTreeSet};

use forebay_meta::model::Segment;
use forebay_proto::data::replica::{Missing, MissingRequest, NodeFailure};
use forebay_record::{Generation, NodeId, Offset, PartitionId, SegmentId};
use forebay_runtime::time::rfc3339;

use super::action::{Action, Context, Nodes};
use super::force::{Awaited, Evidence};
use super::owner::{Owner, Phase};
use super::takeover::Recovery;

/// Time between two looks.
const LOOK_MS: u64 = 1_000;
/// A replica that did not say what it misses is asked again after this long.
const AGAIN_MS: u64 = 10_000;

/// Rising ranges of offsets that do not touch each other.
pub type Ranges = Vec<(Offset, Offset)>;

/// What nobody can read of one sealed segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostSegment {
    /// The segment.
    pub segment: SegmentId,
    /// Its first offset.
    pub base: Offset,
    /// Its sealed end.
    pub end: Offset,
    /// What is lost of it, all or a part.
    pub ranges: Ranges,
    /// Its replicas.
    pub replicas: Vec<Awaited>,
}

/// What nobody can read of a partition's sealed segments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lost {
    /// In the chain's order.
    pub segments: Vec<LostSegment>,
    /// Why some of it may still be found.
    pub still_possible: Option<String>,
}

impl Lost {
    /// Whether the same was meant.
    fn is_meant_by(&self, other: &Self) -> bool {
        let ranges = |lost: &Self| -> Vec<_> {
            let of = |one: &LostSegment| (one.segment, one.ranges.clone());
            lost.segments.iter().map(of).collect()
        };
        ranges(self) == ranges(other)
    }
}

/// What an operator wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declaring {
    /// Also where somebody may come back with it.
    pub force: bool,
    /// What was found before and is meant; none to be told only.
    pub expected: Option<Lost>,
}

/// Why nothing is declared lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeclareRefused {
    /// It is being taken over, or goes to another broker.
    #[error("{0} is not served now; partition force-seal is for a partition that recovers")]
    NotServing(PartitionId),
    /// Every sealed segment can be read.
    #[error("nothing of {0} is lost: each of its sealed segments can be read, or is not looked at yet")]
    Nothing(PartitionId),
    /// Somebody may come back with it.
    #[error("not everything of {0} needs to be lost: {1}")]
    StillPossible(PartitionId, String),
    /// Something happened since it was looked at.
    #[error("what is lost of {0} is not what it was: look again")]
    Changed(PartitionId),
    /// Another declaration is on its way.
    #[error("a loss of {0} is being declared already")]
    Busy(PartitionId),
}

/// What an owner knows of losses besides the record.
#[derive(Debug, Default)]
pub(super) struct Losses {
    asked: BTreeMap<(SegmentId, NodeId), u64>,
    found: BTreeMap<(SegmentId, NodeId), (Generation, Missing)>,
    next_look_ms: u64,
    /// An operator said so; to be stored.
    declaring: Option<Lost>,
}

impl Losses {
    /// What a replica cannot read, where it said so.
    pub(super) fn of(&self, segment: SegmentId, node: NodeId, generation: Generation) -> Option<&Missing> {
        let found = self.found.get(&(segment, node));
        found
            .filter(|(of, _)| *of == generation)
            .map(|(_, missing)| missing)
    }

    /// A node came back: what it has is not known any more.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.asked.retain(|(_, of), _| *of != node);
        self.found.retain(|(_, of), _| *of != node);
    }
}

impl Owner {
    /// Looks for what is missing, and stores what an operator declared.
    pub(super) fn tend_losses(&mut self, ctx: &mut Context<'_>) {
        if self.storing.is_none() && matches!(self.phase, Phase::Serving) && self.losses.declaring.is_some() {
            return self.store_losses(ctx);
        }
        if ctx.now_ms < self.losses.next_look_ms {
            return;
        }
        self.losses.next_look_ms = ctx.now_ms + LOOK_MS;
        let wanted = self.suspects(ctx.nodes);
        let keys: BTreeSet<_> = wanted.iter().map(|(node, one)| (one.segment, *node)).collect();
        self.losses.asked.retain(|key, _| keys.contains(key));
        self.losses.found.retain(|key, _| keys.contains(key));
        for (node, request) in wanted {
            let key = (request.segment, node);
            let asked = self.losses.asked.get(&key);
            let waits = asked.is_some_and(|at| ctx.now_ms.saturating_sub(*at) < AGAIN_MS);
            if !waits && !self.losses.found.contains_key(&key) {
                self.losses.asked.insert(key, ctx.now_ms);
                ctx.out.push(Action::FindMissing { node, request });
            }
        }
    }

    /// Connected replicas whose bytes are suspect, of segments without a sound copy.
    fn suspects(&self, nodes: &Nodes) -> Vec<(NodeId, MissingRequest)> {
        let request = |segment: &Segment, node: &NodeId, generation: &Generation| {
            let request = MissingRequest {
                segment: segment.id,
                generation: *generation,
                until: segment.end,
            };
            (*node, request)
        };
        let here = |node: &NodeId, generation: &Generation| {
            nodes
                .get(node)
                .is_some_and(|view| view.connected && view.generation == *generation)
        };
        match &self.phase {
            Phase::Recovering(Recovery::Fencing(fencing)) => {
                let doubtful = |node: &NodeId| {
                    fencing
                        .replies
                        .get(node)
                        .is_some_and(|state| !state.authoritative)
                };
                let replicas = fencing.segment.replicas.iter();
                replicas
                    .filter(|(node, generation)| here(node, generation) && doubtful(node))
                    .map(|(node, generation)| request(&fencing.segment, node, generation))
                    .collect()
            }
            Phase::Serving => {
                let mut wanted = Vec::new();
                for segment in self.record.chain.iter().filter(|one| one.end.is_some()) {
                    let present = || segment.replicas.iter().filter(|(node, of)| here(node, of));
                    if present().all(|(node, _)| self.is_suspect(segment.id, *node)) {
                        wanted.extend(present().map(|(node, of)| request(segment, node, of)));
                    }
                }
                wanted
            }
            Phase::Recovering(_) | Phase::Resigning | Phase::Released => Vec::new(),
        }
    }

    /// A node said what it cannot read of a segment, or could not say.
    pub fn on_missing(
        &mut self,
        node: NodeId,
        segment: SegmentId,
        result: Result<Missing, NodeFailure>,
        ctx: &mut Context<'_>,
    ) {
        let linked = self.record.chain.iter().find(|one| one.id == segment);
        let Some((linked, generation)) = linked.and_then(|one| Some((one, one.generation_of(node)?))) else {
            return;
        };
        // Named in the chain, and without a frame: it lagged when the segment began, and nobody is left to
        // complete it from.
        let result = match result {
            Err(NodeFailure::NotFound) => Ok(Missing {
                tail: linked.base,
                ranges: linked.end.map(|end| (linked.base, end)).into_iter().collect(),
            }),
            result => result,
        };
        match result {
            Ok(missing) => {
                self.losses.found.insert((segment, node), (generation, missing));
            }
            Err(failure) => {
                tracing::info!(%segment, %node, ?failure, "a storage node cannot say what it has lost");
                self.losses.asked.insert((segment, node), ctx.now_ms);
            }
        }
    }

    /// What no replica of sealed segments can read.
    ///
    /// # Errors
    /// Where the partition is not served, or nothing is lost.
    pub fn plan_declare_lost(&self, nodes: &Nodes) -> Result<Lost, DeclareRefused> {
        let partition = self.record.id;
        if !matches!(self.phase, Phase::Serving) {
            return Err(DeclareRefused::NotServing(partition));
        }
        let (mut lost, mut silent, mut away) = (Lost::default(), Vec::new(), BTreeSet::new());
        for segment in &self.record.chain {
            let Some(end) = segment.end else { continue };
            let Some(replicas) = self.judged(segment, nodes) else {
                continue;
            };
            let of = |evidence| {
                replicas
                    .iter()
                    .filter(move |one: &&Awaited| one.evidence == evidence)
            };
            silent.extend(of(Evidence::Silent).map(|one| (segment.id, one.node)));
            let mut ranges = self.record.pieces(segment.base, end);
            for one in of(Evidence::Damaged) {
                if let Some(missing) = self.losses.of(segment.id, one.node, one.generation) {
                    ranges = common(&ranges, &missing.ranges);
                }
            }
            if of(Evidence::Silent).next().is_some() || ranges.is_empty() {
                continue;
            }
            away.extend(of(Evidence::Away).map(|one| one.node));
            lost.segments.push(LostSegment {
                segment: segment.id,
                base: segment.base,
                end,
                ranges,
                replicas,
            });
        }
        if lost.segments.is_empty() && silent.is_empty() {
            return Err(DeclareRefused::Nothing(partition));
        }
        if let Some((segment, node)) = silent.first() {
            lost.still_possible = Some(format!("{node} is reading what it has of {segment}"));
        } else if !away.is_empty() {
            let names: Vec<_> = away.iter().map(ToString::to_string).collect();
            lost.still_possible = Some(format!(
                "{} may come back with it; storage remove says of a node that it does not",
                names.join(", ")
            ));
        }
        Ok(lost)
    }

    /// The replicas of a segment without a sound copy, none where it has one.
    fn judged(&self, segment: &Segment, nodes: &Nodes) -> Option<Vec<Awaited>> {
        let of = |(node, generation): &(NodeId, Generation)| {
            let view = nodes.get(node).filter(|view| view.generation == *generation);
            let missing = self.losses.of(segment.id, *node, *generation);
            let evidence = match view {
                None => Evidence::Lost,
                Some(view) if !view.connected => Evidence::Away,
                Some(_) if missing.is_some() => Evidence::Damaged,
                Some(_) if self.is_suspect(segment.id, *node) => Evidence::Silent,
                Some(_) => Evidence::Answered,
            };
            Awaited {
                node: *node,
                generation: *generation,
                evidence,
                tail: missing.map(|missing| missing.tail),
                said: None,
            }
        };
        let replicas: Vec<_> = segment.replicas.iter().map(of).collect();
        let sound = replicas.iter().any(|one| one.evidence == Evidence::Answered);
        (!sound).then_some(replicas)
    }

    /// Declares what is lost, or says what that would be.
    ///
    /// # Errors
    /// As [`Owner::plan_declare_lost`]; where something has changed since it was looked at; where
    /// somebody may come back with it and that is not overridden.
    pub fn on_declare_lost(
        &mut self,
        declaring: &Declaring,
        ctx: &mut Context<'_>,
    ) -> Result<Lost, DeclareRefused> {
        let (partition, planned) = (self.record.id, self.plan_declare_lost(ctx.nodes)?);
        let Some(expected) = &declaring.expected else {
            return Ok(planned);
        };
        if self.losses.declaring.is_some() {
            return Err(DeclareRefused::Busy(partition));
        }
        if let Some(why) = planned.still_possible.clone().filter(|_| !declaring.force) {
            return Err(DeclareRefused::StillPossible(partition, why));
        }
        if planned.segments.is_empty() {
            return Err(DeclareRefused::Nothing(partition));
        }
        if !planned.is_meant_by(expected) {
            return Err(DeclareRefused::Changed(partition));
        }
        for one in &planned.segments {
            tracing::error!(segment = %one.segment, ranges = %shown(&one.ranges),
                "an operator declares offsets of a sealed segment lost");
        }
        self.losses.declaring = Some(planned.clone());
        self.past.hasten();
        self.tend_losses(ctx);
        Ok(planned)
    }

    fn store_losses(&mut self, ctx: &mut Context<'_>) {
        let Some(lost) = self.losses.declaring.take() else {
            return;
        };
        let mut record = self.record.clone();
        for one in &lost.segments {
            // What retention or the object store took meanwhile is not lost here any more.
            if !record.chain.iter().any(|linked| linked.id == one.segment) {
                continue;
            }
            let left: Ranges = one
                .ranges
                .iter()
                .flat_map(|(base, end)| record.pieces(*base, *end))
                .collect();
            let reason = format!(
                "{} declared lost by an operator at {}",
                one.segment,
                rfc3339(ctx.wall_ms)
            );
            match record.declare_lost(one.segment, &left, &reason, ctx.nonce) {
                Ok(next) => record = next,
                Err(refused) => {
                    tracing::warn!(segment = %one.segment, %refused, "a loss is not declared");
                }
            }
        }
        if record.gaps == self.record.gaps {
            // Stored: what is declared lost is not read from memory either.
            let ends = lost
                .segments
                .iter()
                .flat_map(|one| &one.ranges)
                .map(|(_, end)| *end);
            self.cache.shrink(0, ends.max().unwrap_or_default());
            return;
        }
        // Again after a race that was lost.
        self.losses.declaring = Some(lost);
        self.submit(Ok(record), ctx);
    }

    /// Whether a loss that an operator declared is not stored yet.
    #[must_use]
    pub const fn is_declaring(&self) -> bool {
        self.losses.declaring.is_some()
    }
}

/// What lies in both.
pub(super) fn common(some: &[(Offset, Offset)], others: &[(Offset, Offset)]) -> Ranges {
    let mut both = Vec::new();
    for (base, end) in some {
        for (from, until) in others {
            let (from, until) = ((*base).max(*from), (*end).min(*until));
            if from < until {
                both.push((from, until));
            }
        }
    }
    both
}

/// Ranges as people read them.
pub(super) fn shown(ranges: &[(Offset, Offset)]) -> String {
    let texts: Vec<_> = ranges
        .iter()
        .map(|(base, end)| format!("{base} to {end}"))
        .collect();
    texts.join(", ")
}
