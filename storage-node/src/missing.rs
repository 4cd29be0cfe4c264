//! What is missing of a segment: where its bytes are damaged, or were lost before a start.
//!
//! Every frame is read and checked, so that the answer is about bytes and not about what is remembered
//! of them. What remains is good: [`Reader::salvage`] makes the state at an offset from it, for the
//! pieces of a segment of which a part was declared lost. Nothing here changes anything.

use forebay_proto::data::replica::{Missing, MissingRequest, NodeFailure};
use forebay_record::batch::Header;
use forebay_record::frame::FrameKind;
use forebay_record::producers::Producers;
use forebay_record::state::{OpenPayload, PartitionState};
use forebay_record::{Generation, Offset, SegmentId};

use crate::content::batches;
use crate::index::Entry;
use crate::read::Reader;

/// Ranges that are told; what is missing after so many others counts as missing to the end.
const RANGES_MAX: usize = 256;

impl Reader {
    /// Which offsets below `until` cannot be read here, and where what can be read ends.
    pub(crate) fn missing(&self, request: &MissingRequest) -> Result<Missing, NodeFailure> {
        let segment = self.segment(request.segment, request.generation)?;
        let until = request.until.unwrap_or(Offset(u64::MAX));
        let mut missing = Missing {
            tail: segment.base(),
            ranges: Vec::new(),
        };
        for entry in segment.entries_from(segment.base(), until, |_| true) {
            if entry.kind != FrameKind::Data || !self.is_readable(request.segment, entry)? {
                continue;
            }
            if entry.first > missing.tail {
                if missing.ranges.len() + 1 >= RANGES_MAX {
                    break;
                }
                missing.ranges.push((missing.tail, entry.first));
            }
            missing.tail = entry.end;
        }
        if let Some(until) = request.until.filter(|until| *until > missing.tail) {
            missing.ranges.push((missing.tail, until));
        }
        Ok(missing)
    }

    fn is_readable(&self, segment: SegmentId, entry: Entry) -> Result<bool, NodeFailure> {
        match self.frames(segment, &[entry], |_, _| true) {
            Ok(()) => Ok(true),
            Err(NodeFailure::Corrupt) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// The partition's state at an offset, as far as what is readable below it says.
    pub(crate) fn salvage(
        &self,
        id: SegmentId,
        generation: Generation,
        until: Offset,
    ) -> Result<PartitionState, NodeFailure> {
        let segment = self.segment(id, generation)?;
        let (mut epochs, mut producers) = (Vec::new(), Producers::default());
        for entry in segment.entries_from_state(until, usize::MAX) {
            let read = self.headers_and_frames(id, &[entry], |_, _, payload| {
                let state = match entry.kind {
                    FrameKind::Open => OpenPayload::decode(&payload).ok().map(|open| open.state),
                    FrameKind::State => PartitionState::decode(&payload).ok(),
                    _ => None,
                };
                if let Some(state) = state {
                    epochs = state.epochs;
                    producers = Producers::from_entries(state.producers);
                    return true;
                }
                for (facts, batch) in batches(&payload)
                    .flatten()
                    .filter(|(facts, _)| facts.end <= until)
                {
                    let Ok(header) = Header::parse_prefix(&batch) else {
                        continue;
                    };
                    producers.record(&header, facts.base);
                    if let Some(epoch) = header.leader_epoch()
                        && epochs.last().is_none_or(|(last, _)| *last < epoch)
                    {
                        epochs.push((epoch, facts.base));
                    }
                }
                true
            });
            match read {
                Ok(()) | Err(NodeFailure::Corrupt) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(PartitionState {
            epochs,
            producers: producers.snapshot_below(until),
        })
    }
}
