//! Spans of the produces that belong to a recorded trace.
//!
//! A batch's span has two parts: `broker.place`, until a frame that holds it is made, and
//! `broker.replicate`, until its answer; the storage nodes' spans are below the second. A frame
//! takes one context along: of the first traced batch in it, to which the others are linked.
//! Where nothing is traced this is an empty map. There is one entry for each traced produce that
//! waits for its answer, so their number is bounded as those are.

use std::collections::HashMap;

use bytes::Bytes;
use forebay_proto::error::Failure;
use forebay_record::batch::Header;
use forebay_record::frame::{FrameHeader, FrameKind};
use forebay_record::{BrokerId, Epoch, Offset, PartitionId};
use forebay_runtime::trace::{Span, SpanKind, TraceContext, Tracer};

use crate::partition::Ticket;

struct Batch {
    ticket: Ticket,
    append: Span,
    place: Span,
    replicate: Span,
    placed: Option<(Offset, Offset)>,
}

/// The traced produces, by partition.
pub struct Traces {
    tracer: Tracer,
    open: HashMap<PartitionId, Vec<Batch>>,
}

impl Traces {
    pub fn new(tracer: Tracer) -> Self {
        Self {
            tracer,
            open: HashMap::new(),
        }
    }

    /// A produce arrived; its span ends with its answer.
    pub fn begin(
        &mut self,
        (partition, epoch, me): (PartitionId, Epoch, BrokerId),
        ticket: Ticket,
        batch: &Bytes,
        mut append: Span,
    ) {
        append.set_number("forebay.broker", me.0.into());
        append.set_number("forebay.partition", partition.0);
        append.set_number("forebay.epoch", epoch.0.into());
        append.set_number("messaging.message.body.size", batch.len() as u64);
        if let Ok(header) = Header::parse(batch) {
            append.set_number("messaging.batch.message_count", header.record_count().into());
        }
        let place = self
            .tracer
            .child(append.context(), SpanKind::Internal, || "broker.place");
        self.open.entry(partition).or_default().push(Batch {
            ticket,
            append,
            place,
            replicate: Span::none(),
            placed: None,
        });
    }

    /// A traced produce has its offsets.
    pub fn placed(&mut self, partition: PartitionId, ticket: Ticket, base: Offset, end: Offset) {
        let batches = self.open.get_mut(&partition).into_iter().flatten();
        for batch in batches.filter(|batch| batch.ticket == ticket) {
            batch.placed = Some((base, end));
            batch.place.set_number("forebay.offset", base.0);
        }
    }

    /// A frame goes to a replica: the context that goes with it, where it holds something traced.
    pub fn on_append(&mut self, partition: PartitionId, frame: &FrameHeader) -> Option<TraceContext> {
        if self.open.is_empty() || frame.kind != FrameKind::Data {
            return None;
        }
        let mut first: Option<TraceContext> = None;
        for batch in self.open.get_mut(&partition)? {
            let Some((base, end)) = batch.placed else { continue };
            if base < frame.first || end > frame.end {
                continue;
            }
            if batch.place.is_some() {
                drop(std::mem::take(&mut batch.place));
                batch.replicate =
                    self.tracer
                        .child(batch.append.context(), SpanKind::Client, || "broker.replicate");
                let span = &mut batch.replicate;
                span.set_display("forebay.segment", &frame.segment);
                span.set_number("forebay.frame", frame.number.into());
                span.set_number("forebay.frame.batches", frame.batches.into());
                if let Some(first) = &first {
                    span.link(first);
                }
            }
            if first.is_none() {
                first = batch.replicate.context().cloned();
            }
        }
        first
    }

    /// A produce is answered.
    pub fn answered(&mut self, partition: PartitionId, ticket: Ticket, result: &Result<Offset, Failure>) {
        let Some(batches) = self.open.get_mut(&partition) else {
            return;
        };
        if let Some(at) = batches.iter().position(|batch| batch.ticket == ticket) {
            let mut batch = batches.swap_remove(at);
            match result {
                Ok(offset) => batch.append.set_number("forebay.offset", offset.0),
                Err(failure) => batch.append.fail(failure),
            }
        }
        if batches.is_empty() {
            self.open.remove(&partition);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use forebay_record::frame::{ChainHash, Frame, FrameSpec};
    use forebay_record::{SegmentId, Token};

    use super::*;

    const PARTITION: PartitionId = PartitionId(7);

    fn frame(first: u64, end: u64) -> FrameHeader {
        let spec = FrameSpec {
            kind: FrameKind::Data,
            batches: 1,
            segment: SegmentId {
                partition: PARTITION,
                epoch: Epoch(1),
                seq: 1,
            },
            token: Token(1),
            first: Offset(first),
            end: Offset(end),
            prev_hash: ChainHash(1),
            number: 3,
            committed: Offset(0),
        };
        Frame::new(spec, vec![Bytes::from_static(b"payload")])
            .unwrap()
            .header
    }

    /// A process that does not export passes contexts on, which is all that is looked at here.
    fn traced(ids: &[(u64, u8)]) -> Traces {
        let mut traces = Traces::new(Tracer::off());
        for (ticket, id) in ids {
            let context = TraceContext::new([*id; 16], [*id; 8], 1, "").unwrap();
            let span = Tracer::off().child(Some(&context), SpanKind::Server, || "broker.append");
            let to = (PARTITION, Epoch(1), BrokerId(1));
            traces.begin(to, Ticket(*ticket), &Bytes::new(), span);
        }
        traces
    }

    #[test]
    fn a_frame_takes_the_context_of_the_first_traced_batch_in_it() {
        let mut traces = traced(&[(1, 0xa), (2, 0xb)]);
        assert_eq!(
            traces.on_append(PARTITION, &frame(0, 10)),
            None,
            "nothing is placed"
        );
        traces.placed(PARTITION, Ticket(1), Offset(10), Offset(12));
        traces.placed(PARTITION, Ticket(2), Offset(12), Offset(15));
        assert_eq!(traces.on_append(PARTITION, &frame(0, 10)), None);
        let trace = |found: Option<TraceContext>| found.unwrap().trace_id();
        assert_eq!(trace(traces.on_append(PARTITION, &frame(10, 15))), [0xa; 16]);
        // Sent again, and in another frame.
        assert_eq!(trace(traces.on_append(PARTITION, &frame(12, 15))), [0xb; 16]);
        traces.answered(PARTITION, Ticket(1), &Ok(Offset(10)));
        assert_eq!(trace(traces.on_append(PARTITION, &frame(10, 15))), [0xb; 16]);
        traces.answered(PARTITION, Ticket(2), &Ok(Offset(12)));
        assert!(traces.open.is_empty());
    }
}
