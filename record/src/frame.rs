//! The frame: one segment's entries, the same bytes on the wire and in the journal.
//!
//! A broker writes a frame once; every replica checks it, stores it as it came and can hand it
//! on. The frame checksum covers everything but the committed offset, which is a statement about
//! the moment of sending and may differ between two sendings of the same frame. Checksums are
//! chained: a replica that holds frame `n` holds exactly the history its writer had (I3).
//!
//! | bytes | field                                                                |
//! |-------|----------------------------------------------------------------------|
//! | 0–3   | magic `FBF1`                                                         |
//! | 4     | format version, 1                                                    |
//! | 5     | kind                                                                 |
//! | 6–7   | flags, zero; unknown bits are refused                                |
//! | 8–11  | payload length                                                       |
//! | 12–15 | record batches in the payload                                        |
//! | 16–23 | partition                                                            |
//! | 24–27 | epoch                                                                |
//! | 28–31 | sequence of the segment within the epoch                             |
//! | 32–39 | token                                                                |
//! | 40–47 | first offset                                                         |
//! | 48–55 | end offset, exclusive                                                |
//! | 56–63 | chain hash before this frame                                         |
//! | 64–67 | number of this frame in its segment, from 0                          |
//! | 68–71 | frame checksum: CRC-32C of bytes 0–67 and the payload                |
//! | 72–79 | committed offset of the segment when this was sent                   |
//! | 80–83 | header checksum: CRC-32C of bytes 0–79                               |
//! | 84–87 | zero                                                                 |
//! | 88–   | payload                                                              |
//!
//! All integers are little endian. The payload of DATA is record batches as clients made them.

use bytes::{Bytes, BytesMut};

use crate::{Crc32c, Epoch, Offset, PartitionId, SegmentId, Token, crc32c};

/// Bytes of a frame before its payload.
pub const HEADER_LEN: usize = 88;
/// Largest payload that any decoder accepts: bounds what one length field can make us allocate.
pub const PAYLOAD_LEN_MAX: usize = 64 << 20;

const MAGIC: [u8; 4] = *b"FBF1";
const VERSION: u8 = 1;
const CHECKED_LEN: usize = 68;
const HEADER_CHECKED_LEN: usize = 80;
const RESERVED_AT: usize = 84;

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than a header, or than the header promises.
    #[error("frame truncated: {have} bytes, {need} needed")]
    Truncated {
        /// Bytes at hand.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// The first four bytes are not a frame's.
    #[error("not a frame: magic {0:02x?}")]
    Magic([u8; 4]),
    /// A later or damaged format.
    #[error("frame format version {0} is not supported")]
    Version(u8),
    /// The kind is not one of ours.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// Bits that this version does not define.
    #[error("unknown frame flags {0:#06x}")]
    Flags(u16),
    /// Bytes that this version leaves zero.
    #[error("reserved frame bytes are {0:#010x}, not zero")]
    Reserved(u32),
    /// The header does not match its checksum.
    #[error("frame header checksum {found:08x}, computed {computed:08x}")]
    HeaderChecksum {
        /// As stored.
        found: u32,
        /// As the bytes give it.
        computed: u32,
    },
    /// The content does not match its checksum.
    #[error("frame checksum {found:08x}, computed {computed:08x} in {segment} frame {number}")]
    Checksum {
        /// The segment named by the header.
        segment: SegmentId,
        /// The frame's number.
        number: u32,
        /// As stored.
        found: u32,
        /// As the bytes give it.
        computed: u32,
    },
    /// More than [`PAYLOAD_LEN_MAX`].
    #[error("frame payload of {0} bytes is over the limit of {PAYLOAD_LEN_MAX}")]
    TooLarge(usize),
    /// The end lies before the first offset.
    #[error("frame of {segment} ends at {end} before its first offset {first}")]
    Range {
        /// The segment named by the header.
        segment: SegmentId,
        /// First offset.
        first: Offset,
        /// End offset.
        end: Offset,
    },
}

/// What a frame says. The numbers are on disk: never renumber.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// First frame of a segment: base, replicas, state at the base.
    Open = 1,
    /// Record batches.
    Data = 2,
    /// References to batches in a shared object.
    Ref = 3,
    /// The segment is closed on this node, forever.
    Fence = 4,
    /// A committed offset, recorded while idle.
    Committed = 5,
    /// The segment's bytes are no longer needed here.
    Trim = 6,
    /// Tokens up to this one are closed where the segment is unknown.
    Floor = 7,
    /// A frame of another replica, copied by repair or moved within the journal.
    Copy = 8,
    /// A checkpoint of the partition's producer state.
    State = 9,
}

impl FrameKind {
    /// The kind of a number on wire or disk.
    ///
    /// # Errors
    /// Where the number is none of ours.
    pub const fn from_u8(value: u8) -> Result<Self, FrameError> {
        Ok(match value {
            1 => Self::Open,
            2 => Self::Data,
            3 => Self::Ref,
            4 => Self::Fence,
            5 => Self::Committed,
            6 => Self::Trim,
            7 => Self::Floor,
            8 => Self::Copy,
            9 => Self::State,
            other => return Err(FrameError::Kind(other)),
        })
    }
}

/// A rolling 64-bit hash of frame checksums: equal hashes mean equal histories.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct ChainHash(pub u64);

impl ChainHash {
    /// The hash of a segment before its first frame, different for each segment.
    #[must_use]
    pub fn seed(segment: SegmentId) -> Self {
        Self(mix(
            segment.partition.0 ^ (u64::from(segment.epoch.0) << 32 | u64::from(segment.seq))
        ))
    }

    /// The hash after a frame with this checksum.
    #[must_use]
    pub fn then(self, checksum: u32) -> Self {
        Self(mix(self.0.rotate_left(29) ^ u64::from(checksum)))
    }
}

impl std::fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "#{:016x}", self.0)
    }
}

impl std::fmt::Display for ChainHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// Multiply and fold, so that each input bit reaches each output bit.
const fn mix(value: u64) -> u64 {
    let mut x = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The fixed part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame says.
    pub kind: FrameKind,
    /// Bytes of payload.
    pub payload_len: u32,
    /// Record batches in the payload.
    pub batches: u32,
    /// The segment it belongs to.
    pub segment: SegmentId,
    /// The segment's token.
    pub token: Token,
    /// First offset.
    pub first: Offset,
    /// End offset, exclusive; equal to `first` where the frame carries no records.
    pub end: Offset,
    /// Chain hash before this frame.
    pub prev_hash: ChainHash,
    /// Number within the segment, from 0.
    pub number: u32,
    /// CRC-32C of the header up to here and the payload.
    pub checksum: u32,
    /// Committed offset of this segment when the frame was sent.
    pub committed: Offset,
}

fn u16_at(bytes: &[u8; HEADER_LEN], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8; HEADER_LEN], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(bytes.iter().skip(at)) {
        *to = *from;
    }
    out
}

impl FrameHeader {
    /// Reads and checks a header; the payload is checked by [`FrameHeader::verify`].
    ///
    /// # Errors
    /// Where the bytes are too few, foreign, damaged, or promise more than the limit.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let Some(raw) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(FrameError::Truncated {
                have: bytes.len(),
                need: HEADER_LEN,
            });
        };
        let magic: [u8; 4] = array_at(raw, 0);
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        let [_, _, _, _, version, kind, ..] = *raw;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let found = u32_at(raw, HEADER_CHECKED_LEN);
        let computed = crc32c(raw.get(..HEADER_CHECKED_LEN).unwrap_or_default());
        if found != computed {
            return Err(FrameError::HeaderChecksum { found, computed });
        }
        let flags = u16_at(raw, 6);
        if flags != 0 {
            return Err(FrameError::Flags(flags));
        }
        let reserved = u32_at(raw, RESERVED_AT);
        if reserved != 0 {
            return Err(FrameError::Reserved(reserved));
        }
        let header = Self {
            kind: FrameKind::from_u8(kind)?,
            payload_len: u32_at(raw, 8),
            batches: u32_at(raw, 12),
            segment: SegmentId {
                partition: PartitionId(u64_at(raw, 16)),
                epoch: Epoch(u32_at(raw, 24)),
                seq: u32_at(raw, 28),
            },
            token: Token(u64_at(raw, 32)),
            first: Offset(u64_at(raw, 40)),
            end: Offset(u64_at(raw, 48)),
            prev_hash: ChainHash(u64_at(raw, 56)),
            number: u32_at(raw, 64),
            checksum: u32_at(raw, CHECKED_LEN),
            committed: Offset(u64_at(raw, 72)),
        };
        if header.payload_len as usize > PAYLOAD_LEN_MAX {
            return Err(FrameError::TooLarge(header.payload_len as usize));
        }
        if header.end < header.first {
            return Err(FrameError::Range {
                segment: header.segment,
                first: header.first,
                end: header.end,
            });
        }
        Ok(header)
    }

    /// The header's bytes, with the header checksum computed and the frame checksum as it is.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            for (to, from) in out.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
            at += bytes.len();
        };
        put(&MAGIC);
        put(&[VERSION, self.kind as u8, 0, 0]);
        put(&self.payload_len.to_le_bytes());
        put(&self.batches.to_le_bytes());
        put(&self.segment.partition.0.to_le_bytes());
        put(&self.segment.epoch.0.to_le_bytes());
        put(&self.segment.seq.to_le_bytes());
        put(&self.token.0.to_le_bytes());
        put(&self.first.0.to_le_bytes());
        put(&self.end.0.to_le_bytes());
        put(&self.prev_hash.0.to_le_bytes());
        put(&self.number.to_le_bytes());
        put(&self.checksum.to_le_bytes());
        put(&self.committed.0.to_le_bytes());
        let crc = crc32c(out.get(..HEADER_CHECKED_LEN).unwrap_or_default());
        for (to, from) in out.iter_mut().skip(HEADER_CHECKED_LEN).zip(crc.to_le_bytes()) {
            *to = from;
        }
        out
    }

    /// The frame checksum that this header and these payload chunks give.
    #[must_use]
    pub fn compute_checksum(&self, payload: &[Bytes]) -> u32 {
        let header = self.encode();
        let mut crc = Crc32c::new();
        crc.update(header.get(..CHECKED_LEN).unwrap_or_default());
        for chunk in payload {
            crc.update(chunk);
        }
        crc.finish()
    }

    /// Checks a payload against this header's length and checksum.
    ///
    /// # Errors
    /// Where either differs.
    pub fn verify(&self, payload: &[Bytes]) -> Result<(), FrameError> {
        let have = payload.iter().map(Bytes::len).sum::<usize>();
        if have != self.payload_len as usize {
            return Err(FrameError::Truncated {
                have,
                need: self.payload_len as usize,
            });
        }
        let computed = self.compute_checksum(payload);
        if computed == self.checksum {
            return Ok(());
        }
        Err(FrameError::Checksum {
            segment: self.segment,
            number: self.number,
            found: self.checksum,
            computed,
        })
    }

    /// Chain hash after this frame.
    #[must_use]
    pub fn hash(&self) -> ChainHash {
        self.prev_hash.then(self.checksum)
    }

    /// Header and payload together, in bytes.
    #[must_use]
    pub const fn frame_len(&self) -> usize {
        HEADER_LEN + self.payload_len as usize
    }
}

/// A frame in memory: its header and its payload in as many chunks as it was put together from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The fixed part.
    pub header: FrameHeader,
    /// The payload, in order. Chunks are shared, never copied between roles of one process.
    pub payload: Vec<Bytes>,
}

/// What a writer knows of a frame before its payload is measured and summed.
#[derive(Debug, Clone, Copy)]
pub struct FrameSpec {
    /// What the frame says.
    pub kind: FrameKind,
    /// Record batches in the payload.
    pub batches: u32,
    /// The segment it belongs to.
    pub segment: SegmentId,
    /// The segment's token.
    pub token: Token,
    /// First offset.
    pub first: Offset,
    /// End offset, exclusive.
    pub end: Offset,
    /// Chain hash before this frame.
    pub prev_hash: ChainHash,
    /// Number within the segment.
    pub number: u32,
    /// Committed offset of this segment.
    pub committed: Offset,
}

impl Frame {
    /// Makes a frame, measuring and summing its payload.
    ///
    /// # Errors
    /// Where the payload is over [`PAYLOAD_LEN_MAX`].
    pub fn new(spec: FrameSpec, payload: Vec<Bytes>) -> Result<Self, FrameError> {
        let len = payload.iter().map(Bytes::len).sum::<usize>();
        let payload_len = match u32::try_from(len) {
            Ok(fits) if len <= PAYLOAD_LEN_MAX => fits,
            _ => return Err(FrameError::TooLarge(len)),
        };
        let mut header = FrameHeader {
            kind: spec.kind,
            payload_len,
            batches: spec.batches,
            segment: spec.segment,
            token: spec.token,
            first: spec.first,
            end: spec.end,
            prev_hash: spec.prev_hash,
            number: spec.number,
            checksum: 0,
            committed: spec.committed,
        };
        header.checksum = header.compute_checksum(&payload);
        Ok(Self { header, payload })
    }

    /// Reads and checks one frame at the start of `bytes`, sharing them.
    ///
    /// # Errors
    /// As [`FrameHeader::parse`] and [`FrameHeader::verify`].
    pub fn parse(bytes: &Bytes) -> Result<Self, FrameError> {
        let header = FrameHeader::parse(bytes)?;
        let need = header.frame_len();
        if bytes.len() < need {
            return Err(FrameError::Truncated {
                have: bytes.len(),
                need,
            });
        }
        let payload = vec![bytes.slice(HEADER_LEN..need)];
        header.verify(&payload)?;
        Ok(Self { header, payload })
    }

    /// The payload as one piece; copies only where it is in several chunks.
    #[must_use]
    pub fn payload_bytes(&self) -> Bytes {
        match self.payload.as_slice() {
            [] => Bytes::new(),
            [one] => one.clone(),
            many => {
                let mut whole = BytesMut::with_capacity(many.iter().map(Bytes::len).sum());
                for chunk in many {
                    whole.extend_from_slice(chunk);
                }
                whole.freeze()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use proptest::prelude::*;

    fn spec() -> FrameSpec {
        let segment = SegmentId {
            partition: PartitionId(7),
            epoch: Epoch(3),
            seq: 2,
        };
        FrameSpec {
            kind: FrameKind::Data,
            batches: 1,
            segment,
            token: Token(99),
            first: Offset(10),
            end: Offset(14),
            prev_hash: ChainHash::seed(segment),
            number: 4,
            committed: Offset(9),
        }
    }

    fn bytes_of(frame: &Frame) -> Vec<u8> {
        let mut out = frame.header.encode().to_vec();
        out.extend_from_slice(&frame.payload_bytes());
        out
    }

    #[test]
    fn the_bytes_of_a_frame_are_pinned() {
        let frame = Frame::new(
            spec(),
            vec![Bytes::from_static(b"hello"), Bytes::from_static(b" log")],
        )
        .unwrap();
        let golden = include_bytes!("../tests/golden/frame-v1.bin");
        assert_eq!(
            bytes_of(&frame),
            golden,
            "the frame format changed: that needs a new version"
        );
    }

    #[test]
    fn committed_offset_is_outside_the_checksum_and_the_hash() {
        let one = Frame::new(spec(), vec![]).unwrap();
        let two = Frame::new(
            FrameSpec {
                committed: Offset(12),
                ..spec()
            },
            vec![],
        )
        .unwrap();
        assert_eq!(one.header.checksum, two.header.checksum);
        assert_eq!(one.header.hash(), two.header.hash());
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_anything_is_allocated() {
        let frame = Frame::new(spec(), vec![]).unwrap();
        let mut header = frame.header;
        header.payload_len = u32::MAX;
        assert_eq!(
            FrameHeader::parse(&header.encode()),
            Err(FrameError::TooLarge(u32::MAX as usize))
        );
    }

    proptest! {
        #[test]
        fn a_frame_survives_the_round_trip(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..4)) {
            let frame = Frame::new(spec(), chunks.into_iter().map(Bytes::from).collect()).unwrap();
            let read = Frame::parse(&Bytes::from(bytes_of(&frame))).unwrap();
            prop_assert_eq!(read.header, frame.header);
            prop_assert_eq!(read.payload_bytes(), frame.payload_bytes());
        }

        #[test]
        fn any_flipped_bit_is_found(payload in prop::collection::vec(any::<u8>(), 1..200), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let frame = Frame::new(spec(), vec![Bytes::from(payload)]).unwrap();
            let mut bytes = bytes_of(&frame);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Frame::parse(&Bytes::from(bytes)).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Frame::parse(&Bytes::from(bytes));
        }
    }
}
