//! Frames that the node writes about itself, beside the frames of its segments.
//!
//! They use the frame's header and checksums, but no chain: their chain hash before is the state
//! they speak of, and they are never counted among a segment's frames. Little endian.
//!
//! | kind      | header                                            | payload                         |
//! |-----------|---------------------------------------------------|---------------------------------|
//! | FENCE     | segment, token, first = end = tail, chain hash,   | epoch u32, flags u32 (bit 0     |
//! |           | number = frames held, committed                   | fenced, bit 1 limbo, bit 2      |
//! |           |                                                   | copied), base u64               |
//! | COMMITTED | zero                                              | n × (partition u64, epoch u32,  |
//! |           |                                                   | seq u32, committed offset u64)  |
//! | FLOOR     | token = the floor                                 | none                            |
//! | TRIM      | segment, token                                    | none                            |

use bytes::{Buf, BufMut, Bytes, BytesMut};
use forebay_record::frame::{ChainHash, Frame, FrameError, FrameHeader, FrameKind, FrameSpec};
use forebay_record::{Epoch, Offset, PartitionId, SegmentId, Token};

use super::format::{FormatError, SegmentState};

const STANDING_LEN: usize = 16;
const COMMITTED_LEN: usize = 24;
const FLAG_FENCED: u32 = 1;
const FLAG_LIMBO: u32 = 2;
const FLAG_COPIED: u32 = 4;

/// Segments in one COMMITTED frame.
pub const COMMITTED_MAX: usize = 4096;

/// What a frame of the node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A segment is fenced, in limbo, or both.
    Standing(SegmentState),
    /// Committed offsets.
    Committed(Vec<(SegmentId, Offset)>),
    /// The floor is at least this.
    Floor(Token),
    /// The segment is no longer held.
    Trim(SegmentId, Token),
}

impl Note {
    /// The frame that says it.
    ///
    /// # Errors
    /// Where there is too much to say for one frame.
    pub fn to_frame(&self) -> Result<Frame, FrameError> {
        let nothing = FrameSpec {
            kind: FrameKind::Floor,
            batches: 0,
            segment: SegmentId::default(),
            token: Token::default(),
            first: Offset::default(),
            end: Offset::default(),
            prev_hash: ChainHash::default(),
            number: 0,
            committed: Offset::default(),
        };
        let mut payload = BytesMut::new();
        let spec = match self {
            Self::Standing(state) => {
                payload.put_u32_le(state.fenced.unwrap_or_default().0);
                let fenced = if state.fenced.is_some() { FLAG_FENCED } else { 0 };
                let limbo = if state.limbo { FLAG_LIMBO } else { 0 };
                let copied = if state.copied { FLAG_COPIED } else { 0 };
                payload.put_u32_le(fenced | limbo | copied);
                payload.put_u64_le(state.base.0);
                FrameSpec {
                    kind: FrameKind::Fence,
                    segment: state.segment,
                    token: state.token,
                    first: state.tail,
                    end: state.tail,
                    prev_hash: state.hash,
                    number: state.frames,
                    committed: state.committed,
                    ..nothing
                }
            }
            Self::Committed(items) => {
                for (segment, offset) in items {
                    payload.put_u64_le(segment.partition.0);
                    payload.put_u32_le(segment.epoch.0);
                    payload.put_u32_le(segment.seq);
                    payload.put_u64_le(offset.0);
                }
                FrameSpec {
                    kind: FrameKind::Committed,
                    ..nothing
                }
            }
            Self::Floor(token) => FrameSpec {
                token: *token,
                ..nothing
            },
            Self::Trim(segment, token) => FrameSpec {
                kind: FrameKind::Trim,
                segment: *segment,
                token: *token,
                ..nothing
            },
        };
        Frame::new(spec, vec![payload.freeze()])
    }

    /// What a frame of the node says; none for frames of segments.
    ///
    /// # Errors
    /// Where the payload is not what the kind has.
    pub fn read(header: &FrameHeader, payload: &Bytes) -> Result<Option<Self>, FormatError> {
        Ok(Some(match header.kind {
            FrameKind::Fence => Self::Standing(standing(header, payload)?),
            FrameKind::Committed => {
                let (items, rest) = payload.as_chunks::<COMMITTED_LEN>();
                if !rest.is_empty() {
                    return Err(FormatError::Truncated {
                        have: rest.len(),
                        need: COMMITTED_LEN,
                    });
                }
                Self::Committed(items.iter().map(committed).collect())
            }
            FrameKind::Floor => Self::Floor(header.token),
            FrameKind::Trim => Self::Trim(header.segment, header.token),
            FrameKind::Open | FrameKind::Data | FrameKind::State | FrameKind::Ref | FrameKind::Copy => {
                return Ok(None);
            }
        }))
    }
}

// The arrays are as long as the sum of the reads, here and below, so none of them can run short.
fn standing(header: &FrameHeader, payload: &Bytes) -> Result<SegmentState, FormatError> {
    let fields: &[u8; STANDING_LEN] = payload.as_ref().try_into().map_err(|_| FormatError::Truncated {
        have: payload.len(),
        need: STANDING_LEN,
    })?;
    let mut at = fields.as_slice();
    let by = Epoch(at.get_u32_le());
    let flags = at.get_u32_le();
    let base = Offset(at.get_u64_le());
    if flags & !(FLAG_FENCED | FLAG_LIMBO | FLAG_COPIED) != 0 || base > header.first {
        return Err(FormatError::Value {
            field: "standing",
            value: u64::from(flags),
        });
    }
    Ok(SegmentState {
        segment: header.segment,
        token: header.token,
        base,
        tail: header.first,
        committed: header.committed,
        hash: header.prev_hash,
        frames: header.number,
        fenced: (flags & FLAG_FENCED != 0).then_some(by),
        limbo: flags & FLAG_LIMBO != 0,
        copied: flags & FLAG_COPIED != 0,
    })
}

fn committed(item: &[u8; COMMITTED_LEN]) -> (SegmentId, Offset) {
    let mut at = item.as_slice();
    let segment = SegmentId {
        partition: PartitionId(at.get_u64_le()),
        epoch: Epoch(at.get_u32_le()),
        seq: at.get_u32_le(),
    };
    (segment, Offset(at.get_u64_le()))
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use proptest::prelude::*;

    use super::*;

    fn segment() -> impl Strategy<Value = SegmentId> {
        (any::<u64>(), any::<u32>(), any::<u32>()).prop_map(|(partition, epoch, seq)| SegmentId {
            partition: PartitionId(partition),
            epoch: Epoch(epoch),
            seq,
        })
    }

    fn note() -> impl Strategy<Value = Note> {
        let standing = (
            segment(),
            any::<[u64; 3]>(),
            any::<u32>(),
            0..=u64::MAX / 2,
            any::<u32>(),
            any::<Option<u32>>(),
            any::<[bool; 2]>(),
        )
            .prop_map(
                |(segment, [token, committed, hash], held, base, frames, by, [limbo, copied])| {
                    Note::Standing(SegmentState {
                        segment,
                        token: Token(token),
                        base: Offset(base),
                        tail: Offset(base + u64::from(held)),
                        committed: Offset(committed),
                        hash: ChainHash(hash),
                        frames,
                        fenced: by.map(Epoch),
                        limbo,
                        copied,
                    })
                },
            );
        prop_oneof![
            standing,
            prop::collection::vec((segment(), any::<u64>().prop_map(Offset)), 0..9).prop_map(Note::Committed),
            any::<u64>().prop_map(|token| Note::Floor(Token(token))),
            (segment(), any::<u64>()).prop_map(|(segment, token)| Note::Trim(segment, Token(token))),
        ]
    }

    proptest! {
        #[test]
        fn a_note_survives_the_round_trip(note in note()) {
            let frame = note.to_frame().unwrap();
            prop_assert_eq!(Note::read(&frame.header, &frame.payload_bytes()).unwrap(), Some(note));
        }

        #[test]
        fn arbitrary_payloads_never_panic(note in note(), payload in prop::collection::vec(any::<u8>(), 0..60)) {
            let frame = note.to_frame().unwrap();
            let _ = Note::read(&frame.header, &payload.into());
        }
    }
}
