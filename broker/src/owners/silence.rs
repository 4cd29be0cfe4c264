//! What is owned while the metadata store does not answer.
//!
//! 1. An open segment needs no store: it goes on to take and to commit, for hours if need be. What
//!    needs a change of the record waits.
//! 2. Storage nodes keep an owner that was replaced from committing, but not from showing readers an
//!    end that is not the end any more. So where the store is silent, the replicas of every open segment
//!    are asked once a second whether they still are open for it.
//! 3. A partition that no quorum has confirmed for [`Settings::silence_max_ms`](super::driver::Settings)
//!    is released, and so is one without an open segment, which nobody could confirm. Both are taken
//!    again when the store is back, where they are still wished here.
//!
//! Never ends a partition whose segment a quorum has open: nobody else can own it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use forebay_proto::data::replica::{ITEMS_MAX, ToNode};
use forebay_record::{Generation, NodeId, PartitionId, SegmentId};

use super::calls::Call;
use super::driver::Driver;
use crate::partition::Owner;

/// How often replicas are asked.
const EVERY_MS: u64 = 1_000;

/// What is known of partitions since the store fell silent.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// When the next questions are due.
    due_ms: u64,
    /// When each partition was last confirmed: the time of the question.
    confirmed_ms: HashMap<PartitionId, u64>,
    /// Who has confirmed the segment that was last asked for, and when that was.
    votes: HashMap<PartitionId, (SegmentId, u64, BTreeSet<NodeId>)>,
}

impl Driver {
    /// Asks replicas and lets go what nobody confirms, where the store is silent.
    pub(super) fn tend_silence(&mut self) {
        let silent_ms = self.now_ms.saturating_sub(self.meta_answered_ms);
        let silence_max_ms = self.settings.silence_max_ms;
        if silent_ms < silence_max_ms / 2 {
            if self.silence.due_ms > 0 {
                self.silence = Silence::default();
            }
            return;
        }
        if self.now_ms < self.silence.due_ms {
            return;
        }
        self.silence.due_ms = self.now_ms + EVERY_MS;
        if silent_ms >= silence_max_ms {
            let since = self.now_ms - silence_max_ms;
            let confirmed = &self.silence.confirmed_ms;
            let mut doubtful: Vec<_> = self
                .owners
                .iter()
                .filter(|(_, owner)| owner.is_serving())
                .map(|(partition, _)| *partition)
                .filter(|partition| confirmed.get(partition).is_none_or(|at| *at < since))
                .collect();
            doubtful.sort_unstable();
            for partition in doubtful {
                self.silence.confirmed_ms.remove(&partition);
                self.silence.votes.remove(&partition);
                self.with_owner(partition, Owner::on_unconfirmed);
            }
        }
        self.ask_standing();
    }

    fn ask_standing(&mut self) {
        let mut questions: BTreeMap<NodeId, Vec<(SegmentId, Generation)>> = BTreeMap::new();
        for (partition, owner) in &self.owners {
            let Some((segment, _)) = owner.open_segment().filter(|_| owner.is_serving()) else {
                continue;
            };
            for (node, generation) in &segment.replicas {
                questions
                    .entry(*node)
                    .or_default()
                    .push((segment.id, *generation));
            }
            let vote = (segment.id, self.now_ms, BTreeSet::new());
            self.silence.votes.insert(*partition, vote);
        }
        for (node, mut items) in questions {
            items.sort_unstable();
            for items in items.chunks(ITEMS_MAX) {
                let asked = items.iter().map(|(segment, _)| *segment).collect();
                let call = Call::Standing(self.now_ms, asked);
                let request = self.calls.begin(node, call, self.now_ms);
                let items = items.to_vec();
                self.request(node, ToNode::Confirm { request, items });
            }
        }
    }

    /// A storage node said which segments are open.
    pub(super) fn on_standing(&mut self, node: NodeId, asked_ms: u64, segments: &[SegmentId], open: &[bool]) {
        for (segment, open) in segments.iter().zip(open) {
            let partition = segment.partition;
            let quorum = self
                .owners
                .get(&partition)
                .and_then(Owner::open_segment)
                .map(|(segment, _)| usize::from(segment.ack_quorum));
            let (Some(quorum), Some((asked, at_ms, votes))) =
                (quorum, self.silence.votes.get_mut(&partition))
            else {
                continue;
            };
            // An answer that comes late says nothing about now.
            if !*open || asked != segment || *at_ms != asked_ms {
                continue;
            }
            votes.insert(node);
            if votes.len() >= quorum {
                self.silence.confirmed_ms.insert(partition, *at_ms);
            }
        }
    }
}
