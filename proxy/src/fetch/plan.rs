//! Pure decisions of a fetch: budgets, where in a plan an offset lies, what a node's answer means.

use bytes::Bytes;
use forebay_proto::data::front::{PlanManifest, PlanRun, PlanSegment, ReadPlan};
use forebay_proto::data::replica::NodeFailure;
use forebay_record::batch::Batches;
use forebay_record::{Generation, NodeId, Offset};

/// Where an offset lies in a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// In this segment.
    Segment(&'a PlanSegment),
    /// In this range of an object.
    Run(&'a PlanRun),
    /// In a range that the manifest lists.
    Manifest(&'a PlanManifest),
    /// In a range that was declared lost; the log goes on there.
    Gap(Offset),
    /// Below the first offset that is kept.
    BelowStart,
    /// At or after everything the plan covers: the owner has it.
    Beyond,
    /// Kept, but in no segment of the plan.
    Missing,
}

/// Finds an offset in a plan.
pub(crate) fn place(plan: &ReadPlan, offset: Offset) -> Place<'_> {
    if offset < plan.log_start {
        return Place::BelowStart;
    }
    let after = plan.gaps.iter().fold(
        offset,
        |at, (base, end)| if *base <= at && at < *end { *end } else { at },
    );
    if after > offset {
        return Place::Gap(after);
    }
    if let Some(manifest) = plan.manifest.as_ref().filter(|manifest| offset < manifest.end) {
        return Place::Manifest(manifest);
    }
    if let Some(run) = plan
        .runs
        .iter()
        .find(|run| offset >= run.base && offset < run.end)
    {
        return Place::Run(run);
    }
    let last_run = plan.runs.last().map(|run| run.end);
    match plan
        .segments
        .iter()
        .find(|one| offset >= one.base && offset < one.until)
    {
        Some(segment) => Place::Segment(segment),
        None if plan
            .segments
            .last()
            .map(|last| last.until)
            .or(last_run)
            .is_none_or(|end| offset >= end) =>
        {
            Place::Beyond
        }
        None => Place::Missing,
    }
}

/// What is left of a node's answer once nothing at or beyond a sealed end is shown (I14), and
/// nothing that ends before what was asked for. None where the answer has no such batch, or does
/// not parse.
pub(crate) fn visible(bytes: Bytes, from: Offset, segment: &PlanSegment) -> Option<Bytes> {
    let mut len = 0;
    let mut first = true;
    for batch in Batches::new(bytes.clone()) {
        // The last batch may be cut off by the size of the answer.
        let Ok((header, batch)) = batch else { break };
        if first && (header.end_offset() <= from || header.base_offset() > from) {
            return None;
        }
        first = false;
        if segment.sealed && header.base_offset() >= segment.until {
            break;
        }
        len += batch.len();
    }
    (len > 0).then(|| bytes.slice(..len))
}

/// What the answer of one replica says about the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The plan may be old: another replica first, then a new plan.
    Replan,
    /// The bytes are damaged there; another replica may have them.
    Damaged,
    /// Not now; another replica.
    Elsewhere,
}

/// Sorts a storage node's failure. None of them says that the log ends (I15, I23).
pub(crate) const fn after(failure: NodeFailure) -> Next {
    match failure {
        NodeFailure::WrongGeneration(_) | NodeFailure::NotFound => Next::Replan,
        NodeFailure::Corrupt => Next::Damaged,
        NodeFailure::Behind(_)
        | NodeFailure::Failed
        | NodeFailure::Overloaded
        | NodeFailure::ObjectStore
        | NodeFailure::Held
        | NodeFailure::TooLarge(_) => Next::Elsewhere,
    }
}

/// Replicas in the order in which to ask them: those that are near before the others, and among equals
/// another first one each turn.
pub(crate) fn order(
    replicas: &[(NodeId, Generation)],
    turn: usize,
    is_near: impl Fn(NodeId) -> bool,
) -> Vec<(NodeId, Generation)> {
    let (mut near, mut far): (Vec<_>, Vec<_>) = replicas.iter().partition(|(node, _)| is_near(*node));
    for group in [&mut near, &mut far] {
        let count = group.len().max(1);
        group.rotate_left(turn % count);
    }
    near.extend(far);
    near
}

/// One owner's part of a bound over all, in proportion to its partitions, at least 1.
pub(crate) fn share(total: u32, parts: usize, of: usize) -> u32 {
    let share = u64::from(total)
        .saturating_mul(parts as u64)
        .div_ceil(of.max(1) as u64);
    u32::try_from(share).unwrap_or(total).clamp(1, total.max(1))
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use forebay_record::batch::{Builder, Codec, stamp_in_place};
    use forebay_record::{Epoch, PartitionId, SegmentId};

    use super::*;

    fn segment(base: u64, until: u64, sealed: bool) -> PlanSegment {
        PlanSegment {
            segment: SegmentId {
                partition: PartitionId(1),
                epoch: Epoch(1),
                seq: 1,
            },
            base: Offset(base),
            until: Offset(until),
            sealed,
            replicas: vec![(NodeId(1), Generation(1))],
        }
    }

    fn plan(log_start: u64, segments: Vec<PlanSegment>) -> ReadPlan {
        ReadPlan {
            epoch: Epoch(1),
            log_start: Offset(log_start),
            high_watermark: Offset(99),
            manifest: None,
            runs: Vec::new(),
            segments,
            gaps: Vec::new(),
        }
    }

    fn batch(base: u64, records: usize) -> Vec<u8> {
        let mut builder = Builder::new(Codec::None, 256);
        for _ in 0..records {
            builder.append::<&str>(1, None, Some(b"v"), &[]).unwrap();
        }
        let mut bytes = builder.finish(None).unwrap().to_vec();
        stamp_in_place(&mut bytes, Offset(base), Epoch(1)).unwrap();
        bytes
    }

    #[test]
    fn an_offset_that_was_declared_lost_leads_behind_the_gap() {
        let plan = ReadPlan {
            gaps: vec![(Offset(20), Offset(25)), (Offset(25), Offset(30))],
            ..plan(0, vec![segment(0, 20, true), segment(30, 40, false)])
        };
        assert!(matches!(place(&plan, Offset(19)), Place::Segment(_)));
        for lost in 20..30 {
            assert_eq!(place(&plan, Offset(lost)), Place::Gap(Offset(30)));
        }
        assert!(matches!(place(&plan, Offset(30)), Place::Segment(_)));
    }

    #[test]
    fn an_offset_is_found_in_the_segment_that_holds_it() {
        let plan = plan(10, vec![segment(10, 20, true), segment(20, 30, false)]);
        assert_eq!(place(&plan, Offset(9)), Place::BelowStart);
        assert_eq!(place(&plan, Offset(10)), Place::Segment(&plan.segments[0]));
        assert_eq!(place(&plan, Offset(19)), Place::Segment(&plan.segments[0]));
        assert_eq!(place(&plan, Offset(20)), Place::Segment(&plan.segments[1]));
        assert_eq!(place(&plan, Offset(30)), Place::Beyond);
    }

    #[test]
    fn an_offset_before_all_segments_is_missing_and_not_beyond() {
        let plan = plan(0, vec![segment(10, 20, true)]);
        assert_eq!(place(&plan, Offset(5)), Place::Missing);
    }

    #[test]
    fn nothing_at_or_beyond_a_sealed_end_is_visible() {
        let bytes: Bytes = [batch(10, 3), batch(13, 2), batch(15, 4)].concat().into();
        let all = visible(bytes.clone(), Offset(11), &segment(10, 19, true)).unwrap();
        assert_eq!(all, bytes);
        let cut = visible(bytes.clone(), Offset(11), &segment(10, 15, true)).unwrap();
        assert_eq!(cut, [batch(10, 3), batch(13, 2)].concat());
        assert_eq!(visible(bytes.clone(), Offset(19), &segment(10, 30, true)), None);
        assert_eq!(visible(bytes, Offset(9), &segment(9, 30, true)), None);
        assert_eq!(visible(Bytes::new(), Offset(9), &segment(9, 30, true)), None);
        assert_eq!(
            visible(Bytes::from_static(b"nonsense"), Offset(9), &segment(9, 30, true)),
            None
        );
    }

    #[test]
    fn no_failure_of_a_node_means_the_end_of_the_log() {
        assert_eq!(after(NodeFailure::NotFound), Next::Replan);
        assert_eq!(after(NodeFailure::WrongGeneration(Generation(3))), Next::Replan);
        assert_eq!(after(NodeFailure::Corrupt), Next::Damaged);
        assert_eq!(after(NodeFailure::Behind(Offset(4))), Next::Elsewhere);
    }

    #[test]
    fn shares_add_up_to_about_the_whole_and_are_never_zero() {
        assert_eq!(share(1000, 1, 1), 1000);
        assert_eq!(share(1000, 1, 3), 334);
        assert_eq!(share(0, 1, 3), 1);
        assert_eq!(share(2, 1, 10), 1);
        assert_eq!(share(u32::MAX, 5, 5), u32::MAX);
    }

    #[test]
    fn near_replicas_are_asked_first_and_take_turns() {
        let replicas: Vec<_> = (1..=4).map(|id| (NodeId(id), Generation(1))).collect();
        let ids = |turn, near: &[u32]| -> Vec<u32> {
            let ordered = order(&replicas, turn, |node| near.contains(&node.0));
            ordered.into_iter().map(|(node, _)| node.0).collect()
        };
        assert_eq!(ids(0, &[]), [1, 2, 3, 4]);
        assert_eq!(ids(5, &[]), [2, 3, 4, 1]);
        assert_eq!(ids(0, &[3]), [3, 1, 2, 4]);
        assert_eq!(ids(1, &[2, 4]), [4, 2, 3, 1]);
        assert!(order(&[], 3, |_| true).is_empty());
    }
}
