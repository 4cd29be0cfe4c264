//! Storage nodes that are slow, or hang with their connections open: a segment goes on without them.
//!
//! A replica without progress for [`super::Config::straggler_ms`] is given up for its segment, and its node
//! gets no new one for a while. Where a quorum needs it that is sooner: after [`QUORUM_LATE_MS`] the segment
//! ends at its committed offset, as it does where nodes are gone. There must be enough others that go on
//! meanwhile, since where all are slow, changing from one to the next would help nobody. A broker that was
//! held up itself takes nobody for slow before it has listened for as long.

use std::collections::BTreeSet;

use super::action::Context;
use super::owner::Owner;
use super::writer::Writer;

/// How long a node that was given up for its slowness gets no new segment, unless it connects anew.
const AVOID_SLOW_MS: u64 = 10_000;

/// A quorum waits so long for a node, where enough others have said something since.
const QUORUM_LATE_MS: u64 = 500;

impl Owner {
    /// Gives up replicas that are late. Where that leaves too few, [`Owner::mend`] does the rest.
    pub(super) fn give_up_late(&mut self, ctx: &Context<'_>) {
        self.avoid.retain(|_, until| *until > ctx.now_ms);
        let since = ctx.now_ms.saturating_sub(self.config.straggler_ms);
        let kept_max = self.config.straggler_bytes;
        let until = ctx.now_ms + AVOID_SLOW_MS;
        let steady = |since| if ctx.steady_ms <= since { since } else { 0 };
        for writer in writers(&mut self.linked, &mut self.next) {
            let cut = writer.give_up_stragglers(steady(since), kept_max);
            self.avoid.extend(cut.into_iter().map(|node| (node, until)));
        }
        // At first only those count as others that certainly go on; later all that are connected.
        let soon = ctx
            .now_ms
            .saturating_sub(QUORUM_LATE_MS.min(self.config.straggler_ms));
        for (late_since, heard_since) in [(soon, soon), (since, 0)] {
            self.replace_quorum(steady(late_since), heard_since, until, ctx);
        }
    }

    /// Gives up those that a quorum waits for since before `late_since`, where there are enough others that
    /// said something since `heard_since`.
    fn replace_quorum(&mut self, late_since: u64, heard_since: u64, until: u64, ctx: &Context<'_>) {
        let late: BTreeSet<_> = writers(&mut self.linked, &mut self.next)
            .flat_map(|writer| writer.awaited(late_since))
            .collect();
        if late.is_empty() {
            return;
        }
        let go_on: BTreeSet<_> = ctx
            .nodes
            .iter()
            .filter(|(id, view)| view.usable && view.connected && !late.contains(id))
            .filter(|(_, view)| view.heard_ms >= heard_since)
            .map(|(id, _)| *id)
            .collect();
        let quorum = usize::from(self.config.ack_quorum);
        if go_on.len() < quorum {
            return;
        }
        if go_on.iter().filter(|id| !self.avoid.contains_key(id)).count() < quorum {
            // One that was slow and answers is better than one that does not.
            self.avoid.retain(|id, _| !go_on.contains(id));
        }
        for writer in writers(&mut self.linked, &mut self.next) {
            for node in writer.awaited(late_since) {
                let replicas = writer.standing(ctx.now_ms);
                tracing::warn!(segment = %writer.segment.id, %node, ?replicas, "a quorum waits for a slow storage node: others take over");
                writer.give_up(node);
            }
        }
        self.avoid.extend(late.into_iter().map(|node| (node, until)));
    }
}

fn writers<'a>(
    linked: &'a mut Option<Writer>,
    next: &'a mut Option<super::owner::Next>,
) -> impl Iterator<Item = &'a mut Writer> {
    linked
        .iter_mut()
        .chain(next.as_mut().map(|next| &mut next.writer))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

    use forebay_proto::data::replica::Ack;
    use forebay_record::{NodeId, Offset, SegmentId};

    use super::super::action::Action;
    use super::super::case::{Serving, nodes};
    use super::super::owner::Config;

    /// Replicas of the open segment.
    fn replicas(case: &Serving) -> Vec<u32> {
        let (segment, _) = case.owner.open_segment().unwrap();
        segment.replicas.iter().map(|(node, _)| node.0).collect()
    }

    /// The first of them acknowledge everything that was sent so far.
    fn ack(case: &mut Serving, count: usize, frames: u32, tail: u64) {
        let segment = case.owner.open_segment().unwrap().0.id;
        let tail = Offset(tail);
        for node in replicas(case).into_iter().take(count) {
            let ack = Ack {
                segment,
                frames,
                tail,
            };
            case.act(|owner, ctx| owner.on_ack(NodeId(node), ack, ctx));
        }
    }

    fn tick(case: &mut Serving, now_ms: u64) -> Vec<Action> {
        case.now_ms = now_ms;
        case.act(|owner, ctx| owner.on_tick(ctx))
    }

    /// The segment that is being prepared, and where to.
    fn prepared(actions: &[Action], after: SegmentId) -> Vec<u32> {
        let of = |action: &Action| match action {
            Action::Append { node, frame, .. } if frame.header.segment != after => Some(node.0),
            _ => None,
        };
        let mut found: Vec<_> = actions.iter().filter_map(of).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    fn serving(count: u32) -> (Serving, SegmentId) {
        let mut case = Serving::new(nodes(count), Config::default());
        case.produce(&[300]);
        case.stored();
        let segment = case.owner.open_segment().unwrap().0.id;
        (case, segment)
    }

    #[test]
    fn a_slow_node_is_left_out_and_the_next_segment_goes_to_others() {
        let (mut case, first) = serving(4);
        let slow = replicas(&case)[2];
        ack(&mut case, 2, 2, 1);
        assert!(prepared(&tick(&mut case, 1_900), first).is_empty());
        let next = prepared(&tick(&mut case, 2_100), first);
        assert_eq!(next.len(), 3, "away from the degraded segment");
        assert!(!next.contains(&slow), "{next:?} and {slow} is slow");
    }

    #[test]
    fn with_three_nodes_a_slow_one_is_left_out_and_nothing_is_changed_for_it() {
        let (mut case, first) = serving(3);
        ack(&mut case, 2, 2, 1);
        for now_ms in [2_100, 5_000, 11_000] {
            assert!(prepared(&tick(&mut case, now_ms), first).is_empty(), "{now_ms}");
        }
    }

    #[test]
    fn a_quorum_that_waits_for_slow_nodes_is_replaced_where_there_are_enough_others() {
        let (mut case, first) = serving(5);
        let slow = replicas(&case).split_off(1);
        ack(&mut case, 1, 2, 1);
        assert!(prepared(&tick(&mut case, 1_900), first).is_empty());
        let next = prepared(&tick(&mut case, 2_100), first);
        let usable = next.iter().filter(|node| !slow.contains(node)).count();
        assert_eq!((next.len(), usable), (3, 3), "{next:?}, and {slow:?} are slow");
    }

    #[test]
    fn that_is_sooner_where_the_others_certainly_go_on() {
        let (mut case, first) = serving(5);
        let slow = replicas(&case).split_off(1);
        ack(&mut case, 1, 2, 1);
        for (node, view) in &mut case.nodes {
            view.heard_ms = if slow.contains(&node.0) { 0 } else { 400 };
        }
        assert!(prepared(&tick(&mut case, 500), first).is_empty());
        let next = prepared(&tick(&mut case, 600), first);
        assert!(
            next.len() == 3 && next.iter().all(|node| !slow.contains(node)),
            "{next:?}"
        );
    }

    #[test]
    fn a_node_that_was_slow_and_answers_again_takes_the_place_of_one_that_does_not() {
        let (mut case, first) = serving(4);
        let (spare, slow) = ([1, 2, 3, 4], replicas(&case)[2]);
        let spare = spare
            .into_iter()
            .find(|id| !replicas(&case).contains(id))
            .unwrap();
        ack(&mut case, 2, 2, 1);
        let next = prepared(&tick(&mut case, 2_100), first);
        assert!(next.contains(&spare) && !next.contains(&slow), "{next:?}");
        case.stored();
        // Now one of the new ones hangs, and another does with it.
        let second = case.owner.open_segment().unwrap().0.id;
        case.now_ms = 2_200;
        case.produce(&[300]);
        let hanging = replicas(&case).split_off(1);
        ack(&mut case, 1, 2, 2);
        for (node, view) in &mut case.nodes {
            view.heard_ms = if hanging.contains(&node.0) { 0 } else { 2_500 };
        }
        let next = prepared(&tick(&mut case, 2_800), second);
        assert!(next.contains(&slow), "{next:?}");
    }

    #[test]
    fn a_broker_that_was_held_up_itself_takes_nobody_for_slow() {
        let (mut case, first) = serving(5);
        ack(&mut case, 1, 2, 1);
        case.steady_ms = 30_000;
        for now_ms in [30_000, 31_900] {
            assert!(prepared(&tick(&mut case, now_ms), first).is_empty(), "{now_ms}");
        }
        assert_eq!(prepared(&tick(&mut case, 32_000), first).len(), 3);
    }

    #[test]
    fn where_all_are_slow_nothing_is_changed() {
        let (mut case, first) = serving(4);
        for now_ms in [2_100, 4_500, 9_000] {
            assert!(prepared(&tick(&mut case, now_ms), first).is_empty(), "{now_ms}");
        }
        // They go on, and so does the segment.
        ack(&mut case, 3, 2, 1);
        assert_eq!(case.owner.open_segment().unwrap().1, Offset(1));
    }
}
