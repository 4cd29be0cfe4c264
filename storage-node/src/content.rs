//! Frames whose content was checked, as a type of their own: nothing else reaches the journal.
//!
//! A storage node checks a frame's checksum and that its payload is what the kind says: batches
//! that lie one after the other and fill the frame's offsets, or a state that parses. It reads
//! the fixed fields of a batch and never its records; whether those are right was checked where
//! they entered the system. The same check runs when a journal is read back.

use bytes::Bytes;
use forebay_record::batch::HEADER_LEN;
use forebay_record::frame::{Frame, FrameError, FrameHeader, FrameKind};
use forebay_record::state::{OpenPayload, PartitionState, StateError};
use forebay_record::{Generation, NodeId, Offset};

/// Why a frame is not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// The bytes are not the ones its writer summed: the connection cannot be trusted.
    #[error("damaged frame")]
    Damaged(#[from] FrameError),
    /// The payload is no state.
    #[error("frame {number} of a segment carries a malformed state")]
    State {
        /// Of the frame.
        number: u32,
        /// Why.
        source: StateError,
    },
    /// Batches and header do not go together.
    #[error("frame {number} of a segment: {field} is {found}, not {expected}")]
    Mismatch {
        /// Of the frame.
        number: u32,
        /// What differs.
        field: &'static str,
        /// As found.
        found: u64,
        /// As it must be.
        expected: u64,
    },
    /// A batch is cut or has a field that cannot be.
    #[error("frame {number} of a segment: malformed batch {batch}")]
    Batch {
        /// Of the frame.
        number: u32,
        /// Counted from 0.
        batch: u32,
    },
    /// A kind that is not part of a segment, or not supported.
    #[error("frame {number} of a segment is of kind {kind:?}")]
    Kind {
        /// Of the frame.
        number: u32,
        /// The kind.
        kind: FrameKind,
    },
}

/// What the fixed fields of a batch say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchFacts {
    pub base: Offset,
    pub end: Offset,
    pub max_timestamp_ms: i64,
    pub len: usize,
}

// Where in a batch header these fields are; big endian. See `forebay_record::batch`.
const LENGTH_AT: usize = 8;
const LENGTH_END: usize = 12;
const MAGIC_AT: usize = 16;
const MAGIC: u8 = 2;
const LAST_DELTA_AT: usize = 23;
const MAX_TIMESTAMP_AT: usize = 35;

impl BatchFacts {
    /// Reads a batch's fixed fields; none where they cannot be right.
    pub(crate) fn read(header: &[u8; HEADER_LEN]) -> Option<Self> {
        if header.get(MAGIC_AT) != Some(&MAGIC) {
            return None;
        }
        let base = u64::try_from(i64::from_be_bytes(field(header, 0)?)).ok()?;
        let length = usize::try_from(i32::from_be_bytes(field(header, LENGTH_AT)?)).ok()?;
        let delta = u64::try_from(i32::from_be_bytes(field(header, LAST_DELTA_AT)?)).ok()?;
        let len = LENGTH_END + length;
        if len < HEADER_LEN {
            return None;
        }
        Some(Self {
            base: Offset(base),
            end: Offset(base.checked_add(delta)?.checked_add(1)?),
            max_timestamp_ms: i64::from_be_bytes(field(header, MAX_TIMESTAMP_AT)?),
            len,
        })
    }
}

fn field<const N: usize>(header: &[u8; HEADER_LEN], at: usize) -> Option<[u8; N]> {
    header.get(at..)?.first_chunk::<N>().copied()
}

/// The batches of a payload in one piece, each with its bytes; none in place of a batch that is
/// cut or malformed, and then nothing more.
pub(crate) fn batches(payload: &Bytes) -> impl Iterator<Item = Option<(BatchFacts, Bytes)>> {
    let mut rest = Some(payload.clone());
    std::iter::from_fn(move || {
        let bytes = rest.take().filter(|bytes| !bytes.is_empty())?;
        let facts = bytes.first_chunk::<HEADER_LEN>().and_then(BatchFacts::read);
        Some(facts.filter(|facts| facts.len <= bytes.len()).map(|facts| {
            let mut batch = bytes;
            rest = Some(batch.split_off(facts.len));
            (facts, batch)
        }))
    })
}

/// Reads across chunks without joining them.
struct Chunks<'a> {
    chunks: &'a [Bytes],
    at: usize,
}

impl Chunks<'_> {
    fn is_empty(&mut self) -> bool {
        while let Some((chunk, rest)) = self.chunks.split_first() {
            if self.at < chunk.len() {
                return false;
            }
            self.at -= chunk.len();
            self.chunks = rest;
        }
        true
    }

    /// The next bytes, without going past them; none where there are fewer.
    fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        let mut out = [0; N];
        let mut at = self.at;
        let mut to = out.as_mut_slice();
        for chunk in self.chunks {
            let from = chunk.get(at..).unwrap_or_default();
            at = at.saturating_sub(chunk.len());
            let step = from.len().min(to.len());
            let (head, tail) = std::mem::take(&mut to).split_at_mut(step);
            head.copy_from_slice(from.get(..step)?);
            to = tail;
            if to.is_empty() {
                return Some(out);
            }
        }
        None
    }
}

/// A frame of a segment whose checksum and content are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedFrame {
    frame: Frame,
    max_timestamp_ms: i64,
    replicas: Vec<(NodeId, Generation)>,
}

impl CheckedFrame {
    /// Checks a frame.
    ///
    /// # Errors
    /// [`ContentError::Damaged`] where the checksum is wrong, else what is malformed.
    pub fn new(frame: Frame) -> Result<Self, ContentError> {
        frame.header.verify(&frame.payload)?;
        let mut checked = Self {
            frame,
            max_timestamp_ms: i64::MIN,
            replicas: Vec::new(),
        };
        let number = checked.frame.header.number;
        let state_error = |source| ContentError::State { number, source };
        match checked.frame.header.kind {
            FrameKind::Data => checked.max_timestamp_ms = check_batches(&checked.frame)?,
            FrameKind::Open => {
                let open = OpenPayload::decode(&checked.frame.payload_bytes()).map_err(state_error)?;
                checked.expect("base", checked.frame.header.first.0, open.base.0)?;
                checked.expect("number", u64::from(number), 0)?;
                checked.expect_no_records()?;
                checked.replicas = open.replicas;
            }
            FrameKind::State => {
                PartitionState::decode(&checked.frame.payload_bytes()).map_err(state_error)?;
                checked.expect_no_records()?;
            }
            kind @ (FrameKind::Ref
            | FrameKind::Fence
            | FrameKind::Committed
            | FrameKind::Trim
            | FrameKind::Floor
            | FrameKind::Copy) => return Err(ContentError::Kind { number, kind }),
        }
        Ok(checked)
    }

    fn expect(&self, field: &'static str, found: u64, expected: u64) -> Result<(), ContentError> {
        expect(self.frame.header.number, field, found, expected)
    }

    fn expect_no_records(&self) -> Result<(), ContentError> {
        self.expect("end", self.frame.header.end.0, self.frame.header.first.0)?;
        self.expect("batches", u64::from(self.frame.header.batches), 0)
    }

    /// The frame's header.
    #[must_use]
    pub const fn header(&self) -> &FrameHeader {
        &self.frame.header
    }

    /// The frame's payload.
    #[must_use]
    pub fn payload(&self) -> &[Bytes] {
        &self.frame.payload
    }

    /// Largest timestamp of its batches, the smallest there is where it has none.
    #[must_use]
    pub const fn max_timestamp_ms(&self) -> i64 {
        self.max_timestamp_ms
    }

    /// The segment's replicas, as its first frame names them.
    pub(crate) fn replicas(&self) -> &[(NodeId, Generation)] {
        &self.replicas
    }
}

fn expect(number: u32, field: &'static str, found: u64, expected: u64) -> Result<(), ContentError> {
    if found == expected {
        return Ok(());
    }
    Err(ContentError::Mismatch {
        number,
        field,
        found,
        expected,
    })
}

fn check_batches(frame: &Frame) -> Result<i64, ContentError> {
    let FrameHeader {
        number, first, end, ..
    } = frame.header;
    let mut chunks = Chunks {
        chunks: &frame.payload,
        at: 0,
    };
    let mut left = frame.header.payload_len as usize;
    let (mut next, mut count, mut max_timestamp_ms) = (first, 0_u32, i64::MIN);
    while !chunks.is_empty() {
        let facts = chunks
            .peek::<HEADER_LEN>()
            .and_then(|header| BatchFacts::read(&header))
            .filter(|facts| facts.len <= left)
            .ok_or(ContentError::Batch { number, batch: count })?;
        expect(number, "base offset of a batch", facts.base.0, next.0)?;
        next = facts.end;
        count = count.saturating_add(1);
        max_timestamp_ms = max_timestamp_ms.max(facts.max_timestamp_ms);
        left -= facts.len;
        chunks.at += facts.len;
    }
    if count == 0 {
        return Err(ContentError::Batch { number, batch: 0 });
    }
    expect(number, "end of the last batch", next.0, end.0)?;
    expect(
        number,
        "number of batches",
        u64::from(count),
        u64::from(frame.header.batches),
    )?;
    Ok(max_timestamp_ms)
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
    use crate::testing::{Writer, batch};

    #[test]
    fn batches_that_fill_the_offsets_are_taken_in_any_chunking() {
        let payload: Vec<u8> = [batch(10, 3, 500), batch(13, 1, 900), batch(14, 2, 700)].concat();
        for step in [1, 7, 61, 62, 1000] {
            let mut writer = Writer::new(1, 10);
            let chunks = payload.chunks(step).map(Bytes::copy_from_slice).collect();
            let frame = writer.data_of(chunks, 3, 16);
            assert_eq!(CheckedFrame::new(frame).unwrap().max_timestamp_ms(), 900);
        }
    }

    #[test]
    fn batches_that_leave_a_hole_overlap_or_miscount_are_malformed() {
        let cases = [
            (vec![batch(10, 3, 0), batch(14, 1, 0)], 2, 15),
            (vec![batch(10, 3, 0), batch(12, 1, 0)], 2, 13),
            (vec![batch(10, 3, 0)], 2, 13),
            (vec![batch(10, 3, 0)], 1, 14),
            (vec![batch(11, 2, 0)], 1, 13),
            (vec![batch(10, 3, 0)[..70].to_vec()], 1, 13),
            (vec![vec![0; 61]], 1, 11),
            (vec![], 0, 10),
        ];
        for (batches, count, end) in cases {
            let mut writer = Writer::new(1, 10);
            let frame = writer.data_of(batches.into_iter().map(Bytes::from).collect(), count, end);
            let error = CheckedFrame::new(frame).unwrap_err();
            assert!(!matches!(error, ContentError::Damaged(_)), "{error}");
        }
    }

    #[test]
    fn a_wrong_checksum_is_damage_and_not_a_malformed_frame() {
        let mut frame = Writer::new(1, 10).data(2);
        frame.header.checksum ^= 1;
        assert!(matches!(CheckedFrame::new(frame), Err(ContentError::Damaged(_))));
    }

    #[test]
    fn a_malformed_first_frame_is_refused() {
        let writer = Writer::new(1, 10);
        let spec = writer.spec(FrameKind::Open, 0, 0);
        let frame = Frame::new(spec, vec![Bytes::from_static(b"nonsense")]).unwrap();
        assert!(matches!(
            CheckedFrame::new(frame),
            Err(ContentError::State { .. })
        ));
    }

    proptest! {
        #[test]
        fn arbitrary_payloads_never_panic(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..90), 0..5)) {
            let frame = Writer::new(1, 10).data_of(chunks.into_iter().map(Bytes::from).collect(), 1, 11);
            let whole = frame.payload_bytes();
            prop_assert!(batches(&whole).count() <= whole.len());
            let _ = CheckedFrame::new(frame);
        }
    }
}
