//! The way out of a takeover that waits for replicas which are lost for good.
//!
//! With fewer closed replicas than close a segment nobody can say which entry was its last. Only an
//! operator can say that the others will not come back. Then the open segment ends as far as a
//! replica that answered has it, everything from there to an offset far above is declared lost, and
//! the log goes on behind that: [`Owner::plan_force_seal`] says what that would be,
//! [`Owner::on_force_seal`] does it, by one change of the record like any other (I10).
//!
//! Promises: nothing that a replica which answered has is given up; no offset is given out that
//! anybody may have seen; refused while the replicas can still answer, unless that is overridden.

use std::collections::BTreeMap;

use forebay_meta::model::{Partition, Refused, Sealed, Segment};
use forebay_meta::restore::OFFSETS_SKIPPED;
use forebay_proto::data::replica::FencedState;
use forebay_record::frame::ChainHash;
use forebay_record::{Generation, NodeId, Offset, SegmentId};
use forebay_runtime::time::rfc3339;

use super::action::{Context, Nodes};
use super::loss::{Ranges, common, shown};
use super::owner::{Owner, Phase};
use super::takeover::{Fencing, Loading, PATIENT_PAUSES, Recovery};

/// A takeover is young until silent nodes were asked so often, half a second apart.
const YOUNG_ASKED: u32 = 10;

/// What a replica of a segment that is being closed has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// It is closed, and knows what it has.
    Answered,
    /// It is connected and has not answered yet.
    Silent,
    /// It is not connected.
    Away,
    /// Out of the cluster, or another generation now: what it had does not come back.
    Lost,
    /// It is closed, and bytes may be missing.
    Damaged,
}

impl Evidence {
    /// As people read it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Answered => "ANSWERED",
            Self::Silent => "SILENT",
            Self::Away => "AWAY",
            Self::Lost => "LOST",
            Self::Damaged => "DAMAGED",
        }
    }
}

/// A replica of the segment that is being closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Awaited {
    /// Its node.
    pub node: NodeId,
    /// As the segment names it.
    pub generation: Generation,
    /// What it has said.
    pub evidence: Evidence,
    /// First offset that it does not have, none where it did not answer.
    pub tail: Option<Offset>,
    /// What it said when it was closed, none where it did not answer.
    pub said: Option<Said>,
}

/// What a replica of a segment said when it was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// Frames that it has.
    pub frames: u32,
    /// Hash over all of them.
    pub hash: ChainHash,
    /// Highest committed offset that it was told.
    pub committed: Offset,
}

/// How an open segment ends that lost its quorum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForcedEnd {
    /// The segment.
    pub segment: SegmentId,
    /// Its first offset.
    pub base: Offset,
    /// Highest committed offset that a replica which answered was told.
    pub committed: Offset,
    /// Where it ends.
    pub end: Offset,
    /// Where the log goes on.
    pub next: Offset,
    /// What lies below the end and nobody can read.
    pub lost: Ranges,
    /// The replica whose history is taken for the right one, where they contradict each other.
    pub trusted: Option<NodeId>,
    /// The segment stays as it is: only what is known of producers is given up.
    pub state_only: bool,
    /// Its replicas.
    pub replicas: Vec<Awaited>,
    /// Why the takeover might still end by itself.
    pub still_possible: Option<String>,
}

impl ForcedEnd {
    /// The record with the segment ended and the rest declared lost.
    ///
    /// # Errors
    /// Where another segment is open.
    pub(super) fn apply(&self, record: &Partition, sealed: Sealed, op: u64) -> Result<Partition, Refused> {
        let lost = self.replicas.iter().filter(|one| one.tail.is_none());
        let lost: Vec<_> = lost.map(|one| one.node.to_string()).collect();
        let without = match self.trusted {
            Some(trusted) => format!("as {trusted} has it, against what others have"),
            None if lost.is_empty() => "the only copies are damaged".to_owned(),
            None => format!("without storage nodes {}", lost.join(", ")),
        };
        let reason = format!(
            "{} sealed by force at {}, {without}",
            self.segment,
            rfc3339(sealed.at_ms)
        );
        let mut forced = record.force_seal(self.end, self.next, sealed, &reason, op)?;
        if let Some(trusted) = self.trusted {
            forced.disown(self.segment, |node| !self.is_like(trusted, node));
        }
        if !self.lost.is_empty() && self.end > self.base {
            forced = forced.declare_lost(self.segment, &self.lost, &reason, op)?;
        }
        Ok(forced)
    }

    /// Whether a node's copy may be used: all may, but those that contradict the trusted one.
    pub(super) fn counts(&self, node: NodeId) -> bool {
        self.trusted.is_none_or(|trusted| self.is_like(trusted, node))
    }

    /// Whether a node is known to have the same frames as another.
    fn is_like(&self, trusted: NodeId, node: NodeId) -> bool {
        let said = |of: NodeId| {
            let found = self.replicas.iter().find(|one| one.node == of);
            found
                .and_then(|one| one.said)
                .map(|said| (said.frames, said.hash))
        };
        node == trusted || said(node).is_some_and(|its| Some(its) == said(trusted))
    }

    /// Whether the same was meant: the same segment, the same end, the same offset to go on at.
    fn is_meant_by(&self, other: &Self) -> bool {
        (self.segment, self.end, self.next) == (other.segment, other.end, other.next)
            && (&self.lost, self.trusted, self.state_only) == (&other.lost, other.trusted, other.state_only)
    }
}

/// What an operator wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forcing {
    /// Where the log is to go on, none for far above all that is known.
    pub next: Option<Offset>,
    /// Also where the takeover might still end by itself.
    pub force: bool,
    /// The replica whose history is to be taken for the right one.
    pub trust: Option<NodeId>,
    /// What was found before and is meant; none to be told only.
    pub expected: Option<ForcedEnd>,
}

/// Why a segment is not ended by force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForceRefused {
    /// It is not the quorum that the partition waits for.
    #[error("{0}: {1}")]
    NotWaiting(forebay_record::PartitionId, String),
    /// The takeover might still end by itself.
    #[error("{0} may still be taken over without loss: {1}")]
    StillPossible(forebay_record::PartitionId, String),
    /// Offsets would be given out again.
    #[error(
        "the log of {partition} cannot go on at {given}: {least} is the lowest offset that nobody can have seen"
    )]
    Next {
        /// The partition.
        partition: forebay_record::PartitionId,
        /// As given.
        given: Offset,
        /// At least.
        least: Offset,
    },
    /// The replicas that answered disagree.
    #[error(
        "{0} and {1} have different histories of {2}: nobody can say which one is right; trust names one"
    )]
    Contradiction(NodeId, NodeId, SegmentId),
    /// As above, and it is not known who is right where two of them differ.
    #[error("replicas of {0} contradict each other: {1}; trust names the one that is right")]
    Disputed(SegmentId, String),
    /// It cannot be trusted.
    #[error("{0} cannot be trusted with {1}: {2}")]
    Trust(NodeId, SegmentId, &'static str),
    /// Something happened since it was looked at.
    #[error(
        "{segment} would end at {end} and the log go on at {next}, not at {expected_end} and {expected_next} as before: look again"
    )]
    Changed {
        /// The segment now.
        segment: SegmentId,
        /// Its end now.
        end: Offset,
        /// Where the log would go on now.
        next: Offset,
        /// As before.
        expected_end: Offset,
        /// As before.
        expected_next: Offset,
    },
}

/// A takeover that is not over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovering {
    /// Its step.
    pub step: &'static str,
    /// What it waits for.
    pub waits_for: String,
    /// Nodes whose answer is missing or is no evidence.
    pub nodes: Vec<Awaited>,
}

impl Owner {
    /// Where the takeover is, none once it is over.
    #[must_use]
    pub fn recovering(&self, nodes: &Nodes) -> Option<Recovering> {
        let Phase::Recovering(recovery) = &self.phase else {
            return None;
        };
        let mut awaited = Vec::new();
        let (step, waits_for) = match recovery {
            Recovery::Fencing(fencing) => {
                awaited = evidence(&fencing.segment, &fencing.replies, nodes);
                let needed = fencing.segment.close_quorum();
                let have = awaited
                    .iter()
                    .filter(|one| one.evidence == Evidence::Answered)
                    .count();
                let missing = Fencing::waits_for(&fencing.segment, &fencing.replies);
                let segment = fencing.segment.id;
                let what =
                    format!("storage nodes {missing}: {have} of {needed} needed have closed {segment}");
                ("FENCING", what)
            }
            Recovery::Carrying(carrying) => {
                awaited = evidence(&carrying.segment, &carrying.replies, nodes);
                let (segment, at) = (carrying.segment.id, carrying.read_to());
                (
                    "CARRYING",
                    format!("a storage node that has {segment} from {at} on"),
                )
            }
            Recovery::Witnessing => (
                "WITNESSING",
                "storage nodes to say that the metadata store did not go back: too few are connected"
                    .to_owned(),
            ),
            Recovery::Loading(loading) if loading.offloaded => {
                ("LOADING", "the producers' state in the object store".to_owned())
            }
            Recovery::Loading(loading) => {
                let holders = loading
                    .candidates
                    .iter()
                    .map(|(segment, node, _)| format!("{node} ({segment})"));
                let holders: Vec<_> = holders.collect();
                (
                    "LOADING",
                    format!("the producers' state on storage nodes {}", holders.join(", ")),
                )
            }
            Recovery::Placing { .. } => {
                let needed = self.config.ack_quorum;
                (
                    "PLACING",
                    format!("{needed} storage nodes that take new segments"),
                )
            }
            Recovery::Linking => (
                "LINKING",
                "the storage nodes of the next segment, or the metadata store".to_owned(),
            ),
            Recovery::Halted(halted) => {
                let awaited = evidence(&halted.segment, &halted.replies, nodes);
                return Some(Recovering {
                    step: "HALTED",
                    waits_for: format!("an operator: {}", halted.contradiction),
                    nodes: awaited,
                });
            }
        };
        awaited.retain(|one| one.evidence != Evidence::Answered);
        Some(Recovering {
            step,
            waits_for,
            nodes: awaited,
        })
    }

    /// What ending the open segment by force would do now.
    ///
    /// # Errors
    /// Where it is no replica that the partition waits for, `next` is too low, or replicas contradict
    /// each other and `trust` does not say which one is right.
    pub fn plan_force_seal(
        &self,
        next: Option<Offset>,
        trust: Option<NodeId>,
        nodes: &Nodes,
    ) -> Result<ForcedEnd, ForceRefused> {
        let partition = self.record.id;
        let not_waiting = |what: String| Err(ForceRefused::NotWaiting(partition, what));
        let mut dispute = None;
        let (segment, replies, read_to, damaged) = match &self.phase {
            Phase::Recovering(Recovery::Fencing(fencing)) => (&fencing.segment, &fencing.replies, None, None),
            Phase::Recovering(Recovery::Halted(halted)) => {
                dispute = halted.disputed.then(|| halted.contradiction.clone());
                (&halted.segment, &halted.replies, None, None)
            }
            Phase::Recovering(Recovery::Loading(loading)) => return self.plan_stateless(loading),
            Phase::Recovering(Recovery::Carrying(carrying)) => (
                &carrying.segment,
                &carrying.replies,
                Some(carrying.read_to()),
                Some(&carrying.corrupt),
            ),
            Phase::Recovering(_) => {
                let recovering = self.recovering(nodes);
                let what = recovering.map_or_else(String::new, |one| one.waits_for);
                return not_waiting(format!(
                    "it waits for {what}, which no lost storage node explains"
                ));
            }
            Phase::Serving => return not_waiting("it is served, and has nothing to be forced".to_owned()),
            Phase::Resigning | Phase::Released => return not_waiting("it goes to another broker".to_owned()),
        };
        let replicas = evidence(segment, replies, nodes);
        check_trust(segment, (&replicas, replies), dispute, trust)?;
        let is_kept = |one: &&Awaited| trust.is_none_or(|trusted| one.node == trusted);
        let held = |one: &Awaited| {
            let missing = self.losses.of(segment.id, one.node, one.generation);
            let tail = missing.map(|missing| missing.tail).max(one.tail)?;
            // Behind what was read it is damaged there.
            let damaged = damaged.is_some_and(|damaged| damaged.contains(&one.node));
            Some(
                read_to
                    .filter(|_| damaged)
                    .map_or(tail, |read_to| tail.min(read_to)),
            )
        };
        let end = replicas
            .iter()
            .filter(is_kept)
            .filter_map(held)
            .max()
            .unwrap_or(segment.base)
            .max(segment.base);
        let told = replies.values().map(|state| state.committed).max();
        let committed = told.unwrap_or(segment.base).max(segment.base);
        let tails = replies.values().map(|state| state.tail).max().unwrap_or(end);
        let kept = replicas.iter().filter(is_kept);
        let lost = self.lost_below(segment, end, kept.filter_map(|one| Some((one, held(one)?))));
        let least = Offset(end.max(committed).max(tails).0.saturating_add(1));
        let next = next.unwrap_or(Offset(least.0.saturating_add(OFFSETS_SKIPPED - 1)));
        if next < least {
            return Err(ForceRefused::Next {
                partition,
                given: next,
                least,
            });
        }
        Ok(ForcedEnd {
            segment: segment.id,
            base: segment.base,
            committed,
            end,
            next,
            lost,
            trusted: trust,
            state_only: false,
            still_possible: self.still_possible(segment, &replicas, nodes),
            replicas,
        })
    }

    /// What lies in an open segment below its end, and none of the replicas that are kept can read; each
    /// comes with how far it has the segment.
    fn lost_below<'a>(
        &self,
        segment: &Segment,
        end: Offset,
        kept: impl Iterator<Item = (&'a Awaited, Offset)>,
    ) -> Ranges {
        let mut lost = vec![(segment.base, end)];
        for (one, tail) in kept {
            let missing = self.losses.of(segment.id, one.node, one.generation);
            let mut ranges = missing.map_or_else(Vec::new, |missing| missing.ranges.clone());
            ranges.retain(|(base, _)| *base < tail);
            if tail < end {
                ranges.push((tail, end));
            }
            lost = common(&lost, &ranges);
        }
        lost.retain(|(base, until)| base < until);
        lost
    }

    /// A takeover that waits for the producers' state can go on without it.
    fn plan_stateless(&self, loading: &Loading) -> Result<ForcedEnd, ForceRefused> {
        let candidates = loading.candidates.iter();
        let newest = self.record.chain.last().map(|one| (one.id, one.base));
        let (segment, base) = newest.unwrap_or((
            SegmentId {
                partition: self.record.id,
                epoch: self.record.epoch,
                seq: 0,
            },
            self.record.sealed_end(),
        ));
        let replicas = candidates.map(|(_, node, request)| Awaited {
            node: *node,
            generation: request.generation,
            evidence: Evidence::Silent,
            tail: None,
            said: None,
        });
        let young = loading.pauses < YOUNG_ASKED;
        Ok(ForcedEnd {
            segment,
            base,
            committed: loading.end,
            end: loading.end,
            next: self.record.after_gap(loading.end),
            lost: Vec::new(),
            trusted: None,
            state_only: true,
            replicas: replicas.collect(),
            still_possible: young.then(|| "it began only seconds ago".to_owned()),
        })
    }

    /// Why the takeover might still end without loss.
    fn still_possible(&self, segment: &Segment, replicas: &[Awaited], nodes: &Nodes) -> Option<String> {
        let names = |them: Vec<NodeId>| {
            them.iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let silent: Vec<_> = replicas
            .iter()
            .filter(|one| one.evidence == Evidence::Silent)
            .map(|one| one.node)
            .collect();
        if !silent.is_empty() {
            return Some(format!("{} is connected and has not answered yet", names(silent)));
        }
        let unread = replicas.iter().find(|one| {
            let known = self.losses.of(segment.id, one.node, one.generation).is_some();
            let connected = nodes.get(&one.node).is_some_and(|view| view.connected);
            one.evidence == Evidence::Damaged && connected && !known
        });
        if let (Some(one), Phase::Recovering(Recovery::Fencing(_))) = (unread, &self.phase) {
            return Some(format!("{} is reading what it has", one.node));
        }
        match &self.phase {
            Phase::Recovering(Recovery::Fencing(fencing)) if fencing.asked < YOUNG_ASKED => {
                Some("it began only seconds ago".to_owned())
            }
            Phase::Recovering(Recovery::Carrying(carrying)) => {
                let at = carrying.read_to();
                let can = |one: &&Awaited| {
                    let connected = nodes.get(&one.node).is_some_and(|view| view.connected);
                    connected && one.tail > Some(at) && !carrying.corrupt.contains(&one.node)
                };
                let readable: Vec<_> = replicas.iter().filter(can).map(|one| one.node).collect();
                (!readable.is_empty())
                    .then(|| format!("{} is connected and has what is to be carried", names(readable)))
            }
            _ => None,
        }
    }

    /// Ends the open segment by force, or says what that would do.
    ///
    /// # Errors
    /// As [`Owner::plan_force_seal`]; where something has changed since it was looked at; where the
    /// takeover might still end by itself and that is not overridden.
    pub fn on_force_seal(
        &mut self,
        forcing: &Forcing,
        ctx: &mut Context<'_>,
    ) -> Result<ForcedEnd, ForceRefused> {
        let planned = self.plan_force_seal(forcing.next, forcing.trust, ctx.nodes)?;
        let Some(expected) = &forcing.expected else {
            return Ok(planned);
        };
        if let Some(why) = planned.still_possible.clone().filter(|_| !forcing.force) {
            return Err(ForceRefused::StillPossible(self.record.id, why));
        }
        if !planned.is_meant_by(expected) {
            return Err(ForceRefused::Changed {
                segment: planned.segment,
                end: planned.end,
                next: planned.next,
                expected_end: expected.end,
                expected_next: expected.next,
            });
        }
        let (segment, replies) = match &mut self.phase {
            Phase::Recovering(Recovery::Loading(loading)) => {
                tracing::error!(partition = %self.record.id,
                    "an operator lets a takeover go on without the producers' state");
                loading.pauses = PATIENT_PAUSES;
                self.stateless = true;
                return Ok(planned);
            }
            Phase::Recovering(Recovery::Halted(one)) => {
                (one.segment.clone(), std::mem::take(&mut one.replies))
            }
            Phase::Recovering(Recovery::Fencing(one)) => {
                (one.segment.clone(), std::mem::take(&mut one.replies))
            }
            Phase::Recovering(Recovery::Carrying(one)) => {
                (one.segment.clone(), std::mem::take(&mut one.replies))
            }
            _ => {
                return Err(ForceRefused::NotWaiting(
                    self.record.id,
                    "it waits for nothing".to_owned(),
                ));
            }
        };
        tracing::error!(partition = %self.record.id, segment = %planned.segment, end = %planned.end,
            next = %planned.next, committed = %planned.committed, lost = %shown(&planned.lost),
            trusted = ?planned.trusted, "an operator ends a segment by force: what followed is lost");
        self.forced = Some(planned.clone());
        let candidates = self.state_candidates(&segment, &replies, planned.end);
        self.load(candidates, planned.end, planned.end, Vec::new(), ctx);
        Ok(planned)
    }
}

/// What each replica of a segment has said.
fn evidence(segment: &Segment, replies: &BTreeMap<NodeId, FencedState>, nodes: &Nodes) -> Vec<Awaited> {
    let of = |(node, generation): &(NodeId, Generation)| {
        let view = nodes.get(node);
        let is_same = view.is_some_and(|view| view.generation == *generation);
        let reply = replies.get(node).filter(|_| is_same);
        let evidence = match (reply, view) {
            (Some(reply), _) if reply.authoritative => Evidence::Answered,
            (Some(_), _) => Evidence::Damaged,
            (None, Some(view)) if is_same && view.connected => Evidence::Silent,
            (None, Some(_)) if is_same => Evidence::Away,
            (None, _) => Evidence::Lost,
        };
        Awaited {
            node: *node,
            generation: *generation,
            evidence,
            tail: reply.map(|reply| reply.tail.max(segment.base)),
            said: reply.map(|reply| Said {
                frames: reply.frames,
                hash: reply.hash,
                committed: reply.committed,
            }),
        }
    };
    segment.replicas.iter().map(of).collect()
}

/// Replicas that contradict each other need one that is trusted, and no others do.
fn check_trust(
    segment: &Segment,
    (replicas, replies): (&[Awaited], &BTreeMap<NodeId, FencedState>),
    dispute: Option<String>,
    trust: Option<NodeId>,
) -> Result<(), ForceRefused> {
    let agreed = match dispute {
        Some(contradiction) => Err(ForceRefused::Disputed(segment.id, contradiction)),
        None => agree(segment, replicas, replies),
    };
    let refuse = |node, why| Err(ForceRefused::Trust(node, segment.id, why));
    match (trust, agreed) {
        (None, agreed) => agreed,
        (Some(node), Ok(())) => refuse(node, "nobody who answered contradicts it"),
        (Some(node), Err(_)) => {
            let answered = replicas.iter().any(|one| one.node == node && one.said.is_some());
            if answered {
                return Ok(());
            }
            refuse(node, "it is no replica that answered")
        }
    }
}

/// Two replicas that have the same number of frames must have the same ones.
fn agree(
    segment: &Segment,
    replicas: &[Awaited],
    replies: &BTreeMap<NodeId, FencedState>,
) -> Result<(), ForceRefused> {
    let mut seen: BTreeMap<u32, (NodeId, &FencedState)> = BTreeMap::new();
    for one in replicas.iter().filter(|one| one.tail.is_some()) {
        let Some(state) = replies.get(&one.node) else {
            continue;
        };
        let (first, other) = *seen.entry(state.frames).or_insert((one.node, state));
        if other.hash != state.hash {
            return Err(ForceRefused::Contradiction(first, one.node, segment.id));
        }
    }
    Ok(())
}
