//! Requests to storage nodes whose answers are awaited.

use std::collections::{BTreeSet, HashMap};

use forebay_record::{NodeId, Offset, PartitionId, SegmentId};

use super::message::Outbox;

/// A node that has not answered after this long counts as silent.
pub const CALL_TIMEOUT_MS: u64 = 5_000;

/// Whom an answer is for.
#[derive(Debug)]
pub enum Call {
    /// Fences of any number of partitions.
    Fence,
    /// Frames of a segment that is being taken over.
    Frames(PartitionId, SegmentId),
    /// State and headers of it.
    Headers(PartitionId, SegmentId),
    /// Part of a confirmation.
    Confirm(u64),
    /// Whether segments are open, asked at a time while the metadata store is silent.
    Standing(u64, Vec<SegmentId>),
    /// A copy into the object store.
    Upload(u64),
    /// What a node has of segments.
    Survey(Vec<SegmentId>),
    /// Which bytes of a segment cannot be read.
    Missing(PartitionId, SegmentId),
    /// Frames of a sealed segment, for a copy.
    Sealed(u64),
    /// Frames for the node that is to have a copy.
    Copy(u64),
}

/// A call on its way.
#[derive(Debug)]
pub struct Sent {
    pub node: NodeId,
    pub call: Call,
    pub deadline_ms: u64,
}

/// A position that is being resolved for a client.
#[derive(Debug)]
pub struct Question {
    pub request: u64,
    pub partition: PartitionId,
    pub outbox: Outbox,
    pub deadline_ms: u64,
    pub kind: QuestionKind,
}

/// What a question waits for.
#[derive(Debug)]
pub enum QuestionKind {
    /// Replicas that say that the segment is not closed (the end is current).
    Confirm {
        /// The answer, once confirmed.
        high_watermark: Offset,
        /// Confirmations needed.
        needed: usize,
        /// Replicas that confirmed.
        confirmed: BTreeSet<NodeId>,
        /// Replicas whose answer is out.
        pending: BTreeSet<NodeId>,
    },
    /// The record, read again: nothing is open.
    Record {
        /// The answer, once confirmed.
        high_watermark: Offset,
    },
}

/// All calls and questions on their way.
#[derive(Debug, Default)]
pub struct Calls {
    sent: HashMap<u64, Sent>,
    questions: HashMap<u64, Question>,
    next: u64,
}

impl Calls {
    /// Remembers a call; the number goes with it.
    pub fn begin(&mut self, node: NodeId, call: Call, now_ms: u64) -> u64 {
        self.begin_until(node, call, now_ms + CALL_TIMEOUT_MS)
    }

    /// As [`Calls::begin`], for what takes longer than usual.
    pub fn begin_until(&mut self, node: NodeId, call: Call, deadline_ms: u64) -> u64 {
        self.next += 1;
        self.sent.insert(
            self.next,
            Sent {
                node,
                call,
                deadline_ms,
            },
        );
        self.next
    }

    /// The call that an answer belongs to.
    pub fn end(&mut self, request: u64) -> Option<Sent> {
        self.sent.remove(&request)
    }

    /// Calls that will not be answered: those of a node, and those overdue.
    pub fn fail(&mut self, node: Option<NodeId>, now_ms: u64) -> Vec<Sent> {
        let dead = |sent: &Sent| Some(sent.node) == node || sent.deadline_ms <= now_ms;
        let keys: Vec<_> = self
            .sent
            .iter()
            .filter(|(_, sent)| dead(sent))
            .map(|(key, _)| *key)
            .collect();
        keys.into_iter()
            .filter_map(|key| self.sent.remove(&key))
            .collect()
    }

    /// Remembers a question.
    pub fn ask(&mut self, question: Question) -> u64 {
        self.next += 1;
        self.questions.insert(self.next, question);
        self.next
    }

    /// A question that waits.
    pub fn question(&mut self, key: u64) -> Option<&mut Question> {
        self.questions.get_mut(&key)
    }

    /// A question is over.
    pub fn answered(&mut self, key: u64) -> Option<Question> {
        self.questions.remove(&key)
    }

    /// Questions whose time is up.
    pub fn overdue_questions(&mut self, now_ms: u64) -> Vec<Question> {
        let keys: Vec<_> = self
            .questions
            .iter()
            .filter(|(_, one)| one.deadline_ms <= now_ms)
            .map(|(key, _)| *key)
            .collect();
        keys.into_iter()
            .filter_map(|key| self.questions.remove(&key))
            .collect()
    }
}
