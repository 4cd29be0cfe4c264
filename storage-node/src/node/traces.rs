//! Spans of the frames that belong to a recorded trace, from their arrival to their answer.
//!
//! A frame's trace goes through the queue just before it, so that the journal thread needs nothing
//! else to find it: it knows the frame by its number and its end by the answer that covers it. The
//! parts (queue, write, fsync) are added then, from times that were taken anyway. Without traced
//! frames this is an empty list.

use std::collections::VecDeque;
use std::time::Duration;

use forebay_proto::data::replica::{Ack, FromNode};
use forebay_record::SegmentId;
use forebay_runtime::trace::{Span, SpanKind, Tracer};

use crate::journal::writer::CommitTimes;

/// Traced frames whose answers are awaited; the oldest goes when there are more.
const OPEN_MAX: usize = 256;

/// One frame's span.
#[derive(Debug)]
pub(crate) struct FrameTrace {
    pub append: Span,
    pub segment: SegmentId,
    pub number: u32,
    /// When the session had received it, monotonic.
    pub came: Duration,
    /// When the journal thread took it up.
    pub taken: Duration,
}

/// The frames that the journal thread has taken up.
#[derive(Debug)]
pub(crate) struct Traces {
    tracer: Tracer,
    open: VecDeque<FrameTrace>,
}

impl Traces {
    pub(crate) const fn new(tracer: Tracer) -> Self {
        Self {
            tracer,
            open: VecDeque::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(crate) fn take(&mut self, mut trace: FrameTrace, now: Duration) {
        trace.taken = now;
        if self.open.len() == OPEN_MAX {
            self.open.pop_front();
        }
        self.open.push_back(trace);
    }

    /// An answer goes out: ends the spans of the frames that it is about.
    pub(crate) fn on_answer(&mut self, answer: &FromNode, times: &CommitTimes, now: Duration) {
        match answer {
            FromNode::Acks { acks, .. } => {
                for trace in self.extract(|one| acks.iter().any(|ack| covers(ack, one))) {
                    self.finish(trace, times, now);
                }
            }
            FromNode::NotTaken {
                segment,
                number,
                refusal,
            } => {
                for mut trace in self.extract(|one| one.segment == *segment && one.number == *number) {
                    trace.append.fail(&format_args!("{refusal:?}"));
                }
            }
            _ => {}
        }
    }

    /// Nothing is on its way any more: no answer will come for what is left.
    pub(crate) fn clear(&mut self) {
        self.open.clear();
    }

    fn extract(&mut self, is_meant: impl Fn(&FrameTrace) -> bool) -> Vec<FrameTrace> {
        let (meant, left): (VecDeque<_>, _) = std::mem::take(&mut self.open).into_iter().partition(is_meant);
        self.open = left;
        meant.into()
    }

    fn finish(&self, trace: FrameTrace, times: &CommitTimes, now: Duration) {
        let part = |name: &'static str, from: Duration, to: Duration| {
            let ago = |at: Duration| now.saturating_sub(at);
            let parent = trace.append.context();
            self.tracer
                .child_since(parent, SpanKind::Internal, ago(from), || name)
                .end_since(ago(to));
        };
        part("storage.queue", trace.came, trace.taken);
        let synced = times.ended;
        let written = synced.saturating_sub(times.sync);
        part("storage.write", written.saturating_sub(times.write), written);
        part("storage.fsync", written, synced);
    }
}

fn covers(ack: &Ack, trace: &FrameTrace) -> bool {
    ack.segment == trace.segment && trace.number < ack.frames
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use forebay_proto::data::replica::Refusal;
    use forebay_record::{Epoch, Offset, PartitionId};

    use super::*;

    fn segment(seq: u32) -> SegmentId {
        SegmentId {
            partition: PartitionId(1),
            epoch: Epoch(1),
            seq,
        }
    }

    fn traces(frames: &[(u32, u32)]) -> Traces {
        let mut traces = Traces::new(Tracer::off());
        for (seq, number) in frames {
            let trace = FrameTrace {
                append: Span::none(),
                segment: segment(*seq),
                number: *number,
                came: Duration::ZERO,
                taken: Duration::ZERO,
            };
            traces.take(trace, Duration::ZERO);
        }
        traces
    }

    fn left(traces: &Traces) -> Vec<(u32, u32)> {
        let open = traces.open.iter();
        open.map(|trace| (trace.segment.seq, trace.number)).collect()
    }

    #[test]
    fn an_acknowledgement_ends_the_frames_that_it_covers_and_a_refusal_ends_one() {
        let mut traces = traces(&[(1, 0), (1, 1), (1, 2), (2, 0)]);
        let acks = FromNode::Acks {
            acks: vec![Ack {
                segment: segment(1),
                tail: Offset(9),
                frames: 2,
            }],
            queue_delay_us: 0,
        };
        traces.on_answer(&acks, &CommitTimes::default(), Duration::ZERO);
        assert_eq!(left(&traces), [(1, 2), (2, 0)]);
        let refused = FromNode::NotTaken {
            segment: segment(2),
            number: 0,
            refusal: Refusal::Closed,
        };
        traces.on_answer(&refused, &CommitTimes::default(), Duration::ZERO);
        assert_eq!(left(&traces), [(1, 2)]);
    }

    #[test]
    fn frames_that_are_never_answered_do_not_pile_up() {
        let many: Vec<_> = (0..1000).map(|number| (1, number)).collect();
        let traces = traces(&many);
        assert_eq!(traces.open.len(), OPEN_MAX);
        assert_eq!(left(&traces).last(), Some(&(1, 999)));
    }
}
