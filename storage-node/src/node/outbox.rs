//! Answers on their way to one peer.
//!
//! Acknowledgements are cumulative, so those that wait are merged by segment and their number is
//! bounded by that of segments. Other answers are bounded because a session stops reading from a
//! peer that has [`REPLIES_MAX`] answers waiting. What the node asks for unasked, it asks for again:
//! only the newest such message waits.

use std::collections::{BTreeMap, VecDeque};

use forebay_proto::data::replica::{Ack, FromNode};
use forebay_record::SegmentId;
use forebay_runtime::permits::BytePermit;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Answers that may wait before the peer is no longer read from.
pub(crate) const REPLIES_MAX: usize = 4096;

#[derive(Debug, Default)]
struct Waiting {
    acks: BTreeMap<SegmentId, Ack>,
    queue_delay_us: u32,
    replies: VecDeque<Answer>,
    urged: Vec<SegmentId>,
    damaged: Vec<SegmentId>,
}

/// An answer, and the memory that is accounted for it until it is handed over.
#[derive(Debug)]
pub(crate) struct Answer {
    pub message: FromNode,
    pub permit: Option<BytePermit>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    filled: Notify,
    drained: Notify,
}

impl Outbox {
    pub(crate) fn push(&self, message: FromNode, permit: Option<BytePermit>) {
        {
            let mut waiting = self.waiting.lock();
            match message {
                FromNode::Acks { acks, queue_delay_us } => {
                    waiting.queue_delay_us = queue_delay_us;
                    for ack in acks {
                        // A later one never says less.
                        waiting.acks.insert(ack.segment, ack);
                    }
                }
                FromNode::Urge(segments) => waiting.urged = segments,
                FromNode::Damaged(segments) => waiting.damaged = segments,
                message => waiting.replies.push_back(Answer { message, permit }),
            }
        }
        self.filled.notify_one();
    }

    /// Waits until there are answers and takes them all, acknowledgements first.
    ///
    /// Cancel safety: nothing is taken before this returns.
    pub(crate) async fn take(&self) -> Vec<Answer> {
        loop {
            {
                let mut waiting = self.waiting.lock();
                let mut answers = Vec::with_capacity(waiting.replies.len() + 2);
                if !waiting.acks.is_empty() {
                    let acks = std::mem::take(&mut waiting.acks).into_values().collect();
                    let queue_delay_us = waiting.queue_delay_us;
                    answers.push(Answer {
                        message: FromNode::Acks { acks, queue_delay_us },
                        permit: None,
                    });
                }
                // Before an answer that says that one of them is whole again.
                if !waiting.damaged.is_empty() {
                    answers.push(Answer {
                        message: FromNode::Damaged(std::mem::take(&mut waiting.damaged)),
                        permit: None,
                    });
                }
                answers.extend(waiting.replies.drain(..));
                if !waiting.urged.is_empty() {
                    answers.push(Answer {
                        message: FromNode::Urge(std::mem::take(&mut waiting.urged)),
                        permit: None,
                    });
                }
                if !answers.is_empty() {
                    self.drained.notify_waiters();
                    return answers;
                }
            }
            self.filled.notified().await;
        }
    }

    /// Waits until fewer than [`REPLIES_MAX`] answers wait.
    pub(crate) async fn has_room(&self) {
        loop {
            let drained = self.drained.notified();
            if self.waiting.lock().replies.len() < REPLIES_MAX {
                return;
            }
            drained.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use forebay_record::Offset;

    use super::*;
    use crate::testing::segment;

    #[tokio::test]
    async fn acknowledgements_and_urges_that_wait_are_merged() {
        let outbox = Outbox::default();
        for frames in 1..=3 {
            let ack = Ack {
                segment: segment(1),
                tail: Offset(u64::from(frames)),
                frames,
            };
            outbox.push(
                FromNode::Acks {
                    acks: vec![ack],
                    queue_delay_us: frames,
                },
                None,
            );
        }
        outbox.push(FromNode::Refused("x".to_owned()), None);
        for seq in 1..=2 {
            outbox.push(FromNode::Urge(vec![segment(seq)]), None);
        }
        let answers: Vec<FromNode> = outbox
            .take()
            .await
            .into_iter()
            .map(|answer| answer.message)
            .collect();
        let ack = Ack {
            segment: segment(1),
            tail: Offset(3),
            frames: 3,
        };
        let acks = FromNode::Acks {
            acks: vec![ack],
            queue_delay_us: 3,
        };
        let urge = FromNode::Urge(vec![segment(2)]);
        assert_eq!(answers, [acks, FromNode::Refused("x".to_owned()), urge]);
    }
}
