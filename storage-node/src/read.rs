//! Serving what is durable: batches to readers, frames and headers to a recoverer.
//!
//! Every frame is checked again after it was read: the header must be the one that the index
//! expects, the checksum right. Bytes that are not right are *corrupt*, never absent (I15). A
//! reader sees committed or sealed offsets only (I14); frames are given out only of a closed
//! segment.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use forebay_proto::data::replica::{
    FramesRequest, Headers, HeadersRequest, NodeFailure, ReadRequest, SealedRequest,
};
use forebay_record::batch::HEADER_LEN as BATCH_HEADER_LEN;
use forebay_record::frame::{Frame, FrameHeader, FrameKind};
use forebay_record::state::OpenPayload;
use forebay_record::{Generation, Offset, SegmentId, Token};
use forebay_runtime::mutant::{self, Mutant};

use crate::buffer::Buffer;
use crate::content::batches;
use crate::damage::Damages;
use crate::disk::BLOCK_LEN_U64;
use crate::index::{Entry, Index, SegmentIndex};
use crate::journal::files::{FileTable, JournalFile};

/// Most bytes of one answer, but for a first batch or frame that is larger by itself.
pub(crate) const ANSWER_BYTES_MAX: u32 = 8 << 20;
/// Most bytes of batch headers in one answer.
const HEADERS_BYTES_MAX: usize = 48 << 20;
/// Most entries of one answer of headers.
const HEADERS_FRAMES_MAX: usize = 1 << 20;
/// Frames that lie at most this far apart are read at once.
pub(crate) const GAP_MAX: u64 = 64 << 10;
/// Bytes that are read at once, but for a larger frame.
const RUN_MAX: u64 = 4 << 20;

/// Reads what is durable.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    pub generation: Generation,
    pub index: Arc<Index>,
    pub table: Arc<FileTable>,
    /// Where to bring frames that are damaged.
    pub damages: Arc<Damages>,
}

impl Reader {
    pub(crate) fn segment(
        &self,
        segment: SegmentId,
        generation: Generation,
    ) -> Result<Arc<SegmentIndex>, NodeFailure> {
        if generation != self.generation && !mutant::is(Mutant::GenerationIgnored) {
            return Err(NodeFailure::WrongGeneration(self.generation));
        }
        self.index.get(segment).ok_or(NodeFailure::NotFound)
    }

    /// Token and content of a segment's first frame.
    pub(crate) fn opened(&self, segment: SegmentId) -> Result<(Token, OpenPayload), NodeFailure> {
        let index = self.index.get(segment).ok_or(NodeFailure::NotFound)?;
        let first = index.first().filter(|entry| entry.kind == FrameKind::Open);
        let first = first.ok_or(NodeFailure::Corrupt)?;
        let mut opened = None;
        self.headers_and_frames(segment, &[first], |_, header, payload| {
            opened = OpenPayload::decode(&payload)
                .ok()
                .map(|open| (header.token, open));
            true
        })?;
        opened.ok_or(NodeFailure::Corrupt)
    }

    /// Whole batches from the one that holds `from` on.
    pub(crate) fn read(&self, read: &ReadRequest) -> Result<Bytes, NodeFailure> {
        let segment = self.segment(read.segment, read.generation)?;
        let visible = visible(&segment, read.until);
        if read.from < segment.base() {
            // It is in an earlier segment: whoever asks has an old plan.
            return Err(NodeFailure::NotFound);
        }
        if read.from >= visible {
            return Err(NodeFailure::Behind(visible));
        }
        let max_bytes = read.max_bytes.min(ANSWER_BYTES_MAX) as usize;
        let entries = data_entries(&segment, read.from, visible, max_bytes);
        let mut out = Vec::new();
        let mut total = 0;
        let mut next = read.from;
        let mut done = false;
        let result = self.frames(read.segment, &entries, |entry, payload| {
            // A hole, in a segment that lost frames.
            if entry.first > next || done {
                return false;
            }
            for batch in batches(&payload) {
                let Some((facts, bytes)) = batch else { return false };
                if facts.end > read.from {
                    let full = total > 0 && total + bytes.len() > max_bytes;
                    if facts.end > visible || full {
                        done = true;
                        return false;
                    }
                    total += bytes.len();
                    out.push(bytes);
                }
                next = facts.end;
            }
            true
        });
        match (out.is_empty(), result) {
            (false, _) => Ok(join(out, total)),
            (true, Err(failure)) => Err(failure),
            // The batch that holds `from` is not visible to its end.
            (true, Ok(())) if done => Err(NodeFailure::Behind(read.from)),
            (true, Ok(())) => Err(NodeFailure::Corrupt),
        }
    }

    /// Whole frames from the one that holds `from` on.
    pub(crate) fn recover(&self, request: &FramesRequest) -> Result<Vec<Frame>, NodeFailure> {
        let segment = self.segment(request.segment, request.generation)?;
        let tail = segment.tail();
        if !segment.is_fenced() || request.from >= tail {
            return Err(NodeFailure::Behind(tail));
        }
        let max_bytes = u64::from(request.max_bytes.min(ANSWER_BYTES_MAX));
        let mut total = 0;
        let entries = segment.entries_from(request.from, tail, |entry| {
            let first = total == 0;
            total += entry.frame_len();
            first || total <= max_bytes
        });
        let mut frames = Vec::with_capacity(entries.len());
        let mut number = entries.first().map_or(0, |entry| entry.number);
        let from = request.from.max(segment.base());
        let holds = entries.first().is_some_and(|entry| entry.first <= from);
        let result = self.headers_and_frames(request.segment, &entries, |entry, header, payload| {
            if entry.number != number {
                return false;
            }
            number += 1;
            frames.push(Frame {
                header: *header,
                payload: vec![payload],
            });
            true
        });
        match result {
            _ if !holds => Err(NodeFailure::Corrupt),
            Err(failure) if frames.is_empty() => Err(failure),
            _ => Ok(frames),
        }
    }

    /// Whole frames from a number on, up to the sealed end, for another node to hold.
    pub(crate) fn sealed(&self, request: &SealedRequest) -> Result<Vec<Frame>, NodeFailure> {
        let segment = self.segment(request.segment, request.generation)?;
        let max_bytes = u64::from(request.max_bytes.min(ANSWER_BYTES_MAX));
        let mut total = 0;
        let entries = segment.entries_of(request.number, request.until, |entry| {
            let first = total == 0;
            total += entry.frame_len();
            first || total <= max_bytes
        });
        let mut frames = Vec::with_capacity(entries.len());
        let mut number = request.number;
        let result = self.headers_and_frames(request.segment, &entries, |entry, header, payload| {
            if entry.number != number {
                return false;
            }
            number += 1;
            frames.push(Frame {
                header: *header,
                payload: vec![payload],
            });
            true
        });
        match result {
            Err(failure) if frames.is_empty() => Err(failure),
            _ if !frames.is_empty() => Ok(frames),
            _ if segment.is_limbo() => Err(NodeFailure::Corrupt),
            _ => Err(NodeFailure::Behind(segment.tail())),
        }
    }

    /// The last state at or below `until`, and the headers of the batches between.
    pub(crate) fn headers(&self, request: &HeadersRequest) -> Result<Headers, NodeFailure> {
        let segment = self.segment(request.segment, request.generation)?;
        let (until, tail) = (request.until, segment.tail());
        // A replica may lack the end of a sealed segment: what it knows of producers is too old then.
        if tail < until {
            return Err(NodeFailure::Behind(tail));
        }
        let entries = segment.entries_from_state(until, HEADERS_FRAMES_MAX);
        let Some((first, rest)) = entries.split_first() else {
            let lost = segment.is_limbo();
            return Err(if lost {
                NodeFailure::Corrupt
            } else {
                NodeFailure::NotFound
            });
        };
        let mut state = Bytes::new();
        self.headers_and_frames(request.segment, &[*first], |_, _, payload| {
            state = payload;
            true
        })?;
        let mut headers = BytesMut::new();
        let (mut next, mut whole) = (first.end, true);
        let below: Vec<Entry> = rest.iter().filter(|entry| entry.first < until).copied().collect();
        self.frames(request.segment, &below, |entry, payload| {
            whole &= entry.first == next && headers.len() <= HEADERS_BYTES_MAX;
            next = entry.end;
            for batch in batches(&payload) {
                let Some((facts, bytes)) = batch else { return false };
                if facts.base < until {
                    headers.extend_from_slice(bytes.get(..BATCH_HEADER_LEN).unwrap_or_default());
                }
            }
            whole
        })?;
        if headers.len() > HEADERS_BYTES_MAX {
            tracing::warn!(segment = %request.segment, "too many batches since the last state");
            return Err(NodeFailure::Failed);
        }
        if !whole || next < until {
            return Err(NodeFailure::Corrupt);
        }
        let headers = headers.freeze();
        Ok(Headers {
            state_kind: first.kind as u8,
            state,
            state_at: first.first,
            headers,
        })
    }

    /// Base offset of the first visible batch from `from` on that reaches a time. That there is
    /// none is said only of a range that is here as a whole: a replica may be behind, or have lost
    /// frames (I15).
    pub(crate) fn lookup(
        &self,
        read: &ReadRequest,
        timestamp_ms: i64,
    ) -> Result<Option<Offset>, NodeFailure> {
        let segment = self.segment(read.segment, read.generation)?;
        let visible = visible(&segment, read.until);
        let mut next = read.from.max(segment.base());
        let (mut found, mut whole) = (None, true);
        segment.entries_from(read.from, visible, |entry| {
            if found.is_none() && whole && entry.kind == FrameKind::Data {
                whole = entry.first <= next;
                next = entry.end;
                found = Some(*entry).filter(|entry| whole && entry.max_timestamp_ms >= timestamp_ms);
            }
            found.is_none() && whole
        });
        if !whole || (found.is_none() && next < visible) {
            return Err(NodeFailure::Corrupt);
        }
        let absent = || {
            if visible < read.until {
                Err(NodeFailure::Behind(visible))
            } else {
                Ok(None)
            }
        };
        let Some(entry) = found else { return absent() };
        let mut base = None;
        self.frames(read.segment, &[entry], |_, payload| {
            base = batches(&payload)
                .flatten()
                .map(|(facts, _)| facts)
                .filter(|facts| facts.end > read.from && facts.end <= visible)
                .find(|facts| facts.max_timestamp_ms >= timestamp_ms)
                .map(|facts| facts.base);
            true
        })?;
        // A frame may reach the time by a batch that is not visible yet: then nothing after it is.
        base.map_or_else(absent, |base| Ok(Some(base)))
    }

    /// Payloads of data frames, as long as `take` wants more.
    pub(crate) fn frames(
        &self,
        segment: SegmentId,
        entries: &[Entry],
        mut take: impl FnMut(&Entry, Bytes) -> bool,
    ) -> Result<(), NodeFailure> {
        self.headers_and_frames(segment, entries, |entry, header, payload| {
            header.kind != FrameKind::Data || take(entry, payload)
        })
    }

    /// A segment may be trimmed while it is read. Its files are written again only after every reader
    /// let go of them, but one that was not taken hold of yet is no longer found, or found to be
    /// another: then the segment is gone, and nothing is damaged. A frame that is damaged is brought up.
    pub(crate) fn headers_and_frames(
        &self,
        segment: SegmentId,
        entries: &[Entry],
        take: impl FnMut(&Entry, &FrameHeader, Bytes) -> bool,
    ) -> Result<(), NodeFailure> {
        match self.stored_frames(segment, entries, take) {
            Ok(()) => Ok(()),
            Err(Misread::Failed(failure)) => Err(failure),
            Err(Misread::Wrong(entry)) => {
                self.suspect(segment, &entry);
                // A segment that is held as ever may only have had the frame's place changed.
                Err(match self.index.get(segment) {
                    Some(_) => NodeFailure::Corrupt,
                    None => NodeFailure::NotFound,
                })
            }
        }
    }

    fn stored_frames(
        &self,
        segment: SegmentId,
        entries: &[Entry],
        mut take: impl FnMut(&Entry, &FrameHeader, Bytes) -> bool,
    ) -> Result<(), Misread> {
        let mut rest = entries;
        while let Some((first, _)) = rest.split_first() {
            let (file, file_end) = self.table.find(first.position).ok_or(Misread::Wrong(*first))?;
            let (run, after) = rest.split_at(run_len(rest, file_end, RUN_MAX));
            let end = run
                .last()
                .map_or(first.position, |last| last.position + last.frame_len());
            let bytes = load(&file, first.position, end).map_err(Misread::Failed)?;
            for entry in run {
                let start = usize::try_from(entry.position - first.position).unwrap_or(usize::MAX);
                let len = usize::try_from(entry.frame_len()).unwrap_or(usize::MAX);
                let end = start.saturating_add(len);
                let frame = if end <= bytes.len() {
                    bytes.slice(start..end)
                } else {
                    Bytes::new()
                };
                let Some((header, payload)) = check(segment, entry, &frame) else {
                    return Err(Misread::Wrong(*entry));
                };
                if !take(entry, &header, payload) {
                    return Ok(());
                }
            }
            rest = after;
        }
        Ok(())
    }
}

/// Why stored frames were not read.
enum Misread {
    /// The bytes at this place are not those of the frame that the index expects, or no file has its
    /// position.
    Wrong(Entry),
    Failed(NodeFailure),
}

/// The journal's bytes between two positions of one file.
pub(crate) fn load(file: &JournalFile, start: u64, end: u64) -> Result<Bytes, NodeFailure> {
    let place = start - file.header.start;
    let aligned = place / BLOCK_LEN_U64 * BLOCK_LEN_U64;
    let (skip, wanted) = (place - aligned, end - file.header.start - aligned);
    let mut buffer = Buffer::new(usize::try_from(wanted).map_err(|_| NodeFailure::Corrupt)?);
    let read = file
        .file
        .read_at(buffer.as_mut_slice(), aligned)
        .map_err(|error| {
            tracing::error!(%error, file = file.name(), at = place, "cannot read the journal");
            NodeFailure::Failed
        })?;
    let bytes = buffer.into_bytes();
    match (usize::try_from(skip), usize::try_from(wanted)) {
        (Ok(skip), Ok(wanted)) if wanted <= read => Ok(bytes.slice(skip..wanted)),
        _ => {
            tracing::error!(file = file.name(), at = place, "a journal file is too short");
            Err(NodeFailure::Corrupt)
        }
    }
}

fn visible(segment: &SegmentIndex, until: Offset) -> Offset {
    if mutant::is(Mutant::UncommittedRead) || mutant::is(Mutant::CommittedOfAnother) {
        return segment.tail();
    }
    segment.tail().min(segment.committed().max(until))
}

/// Entries that may be needed for about so many bytes.
fn data_entries(segment: &SegmentIndex, from: Offset, visible: Offset, max_bytes: usize) -> Vec<Entry> {
    let mut total = 0;
    let mut data = 0;
    let mut entries = segment.entries_from(from, visible, |entry| {
        // The first frame may begin below `from`, so its length says little.
        let more = data < 2 || total < max_bytes as u64;
        if entry.kind == FrameKind::Data {
            data += 1;
            if data > 1 {
                total += entry.frame_len();
            }
        }
        more
    });
    entries.retain(|entry| entry.kind == FrameKind::Data);
    entries
}

/// How many of the first entries lie close together, in one file, and in so many bytes if there is more
/// than one.
pub(crate) fn run_len(entries: &[Entry], file_end: u64, bytes_max: u64) -> usize {
    let Some(first) = entries.first() else { return 0 };
    let mut end = first.position + first.frame_len();
    let mut count = 1;
    for entry in entries.iter().skip(1) {
        let next_end = entry.position + entry.frame_len();
        let near = entry.position >= end && entry.position - end <= GAP_MAX;
        if !near || next_end > file_end || next_end - first.position > bytes_max {
            break;
        }
        end = next_end;
        count += 1;
    }
    count
}

/// The frame that the index expects, if these are its bytes.
pub(crate) fn check(segment: SegmentId, entry: &Entry, bytes: &Bytes) -> Option<(FrameHeader, Bytes)> {
    let Frame { header, mut payload } = Frame::parse(bytes).ok()?;
    let expected = header.segment == segment
        && header.number == entry.number
        && header.kind == entry.kind
        && header.first == entry.first
        && header.end == entry.end
        && header.payload_len == entry.payload_len;
    payload
        .pop()
        .filter(|_| expected)
        .map(|payload| (header, payload))
}

fn join(mut pieces: Vec<Bytes>, total: usize) -> Bytes {
    match (pieces.pop(), pieces.is_empty()) {
        (Some(only), true) => only,
        (last, _) => {
            let mut out = BytesMut::with_capacity(total);
            for piece in pieces.iter().chain(&last) {
                out.extend_from_slice(piece);
            }
            out.freeze()
        }
    }
}
