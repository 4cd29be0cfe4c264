//! What the journal thread does, without the thread: takes messages through the replica, puts what
//! is accepted into the journal, and says what may be answered.
//!
//! Room for a frame is made *before* the replica decides on it. So whenever a file is begun,
//! nothing is staged, and its snapshot claims only what is durable. A trimmed segment leaves the
//! index, and with it its bytes become free, only after floor and trim are durable (I17). An error of
//! the disk is final: nothing is written any more, nobody is told that anything is durable, reads
//! go on.

mod copies;
mod damage;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use forebay_meta::store::Revision;
use forebay_proto::data::replica::{FenceItem, FromNode, Refusal};
use forebay_record::frame::{FrameError, HEADER_LEN};
use forebay_record::{Generation, Offset, SegmentId, Token};
use forebay_runtime::clock::Clock;
use forebay_runtime::random::Random;

use crate::content::CheckedFrame;
use crate::disk::Disk;
use crate::index::{Entry, Index};
use crate::journal::files::FileTable;
use crate::journal::format::SegmentState;
use crate::journal::note::{COMMITTED_MAX, Note};
use crate::journal::pool::{Pool, Purpose, Spare};
use crate::journal::writer::{CommitTimes, Fit, Writer};
use crate::pressure::Level;
use crate::replica::{Admission, Appended, Counts, Peer, Replica, Synced};
use crate::superblock::{Superblock, SuperblockError};

/// Larger than any note but that of committed offsets.
const NOTE_LEN_MAX: usize = HEADER_LEN + 64;
/// One segment's part of a note of committed offsets.
const COMMITTED_LEN: usize = 24;

/// Why the journal is dead.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalFailure {
    #[error("journal write failed in {file}")]
    Disk { file: String, source: io::Error },
    #[error("journal failed")]
    Superblock(#[from] SuperblockError),
    #[error("journal failed")]
    Note(#[from] FrameError),
}

/// What is done with a file's bytes, for metrics.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Written {
    /// Frames of segments and notes.
    pub body: u64,
    /// Everything else: headers, padding, snapshots, marks.
    pub overhead: u64,
    pub fsyncs: u64,
}

/// What a core is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub disk: Arc<dyn Disk>,
    pub superblock: Superblock,
    pub replica: Replica,
    pub writer: Writer,
    pub table: Arc<FileTable>,
    pub pool: Arc<Pool>,
    pub index: Arc<Index>,
    pub random: Arc<dyn RandomSource>,
}

/// Randomness that can be printed as part of a struct.
pub(crate) trait RandomSource: std::fmt::Debug + Send + Sync {
    fn salt(&self) -> u64;
}

/// The runtime's randomness.
pub(crate) struct Salts(pub Arc<dyn Random>);

impl std::fmt::Debug for Salts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Salts")
    }
}

impl RandomSource for Salts {
    fn salt(&self) -> u64 {
        self.0.u64()
    }
}

/// For whom room is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    Data,
    Note,
    /// Trims alone may write to the end of the last file: they are what makes room again.
    Trim,
}

impl For {
    const fn purpose(self) -> Purpose {
        match self {
            Self::Data => Purpose::Data,
            Self::Note | Self::Trim => Purpose::Notes,
        }
    }
}

/// Why there is no room.
#[derive(Debug)]
enum NoRoom {
    Full,
    Failed(JournalFailure),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Core {
    parts: Parts,
    failed: Option<String>,
    staged: BTreeMap<SegmentId, Vec<Entry>>,
    /// Segments of which something else than their frames changed.
    changed: BTreeSet<SegmentId>,
    /// Segments whose trim is written and not durable yet.
    trimmed: Vec<SegmentId>,
    out: Vec<(Peer, FromNode)>,
    /// Only this thread knows that the last block is synced.
    unmarked: bool,
    /// A mark or a note waits for a quiet moment.
    idle_due: bool,
    full: bool,
    /// How full the disk is.
    level: Level,
    /// What the node as a whole takes, beside the disk's ladder.
    wanted: Admission,
    queue_delay_us: u32,
    written: Written,
    /// Damaged segments that are whole again, not told yet.
    healed: u64,
    last_commit_bytes: u64,
    last_commit: CommitTimes,
}

impl Core {
    pub(crate) fn new(parts: Parts) -> Self {
        let mut core = Self {
            parts,
            failed: None,
            staged: BTreeMap::new(),
            changed: BTreeSet::new(),
            trimmed: Vec::new(),
            out: Vec::new(),
            unmarked: true,
            idle_due: true,
            full: false,
            level: Level::Calm,
            wanted: Admission::All,
            queue_delay_us: 0,
            written: Written::default(),
            healed: 0,
            last_commit_bytes: 0,
            last_commit: CommitTimes::default(),
        };
        core.admit();
        core
    }

    /// Takes a frame in.
    pub(crate) fn append(&mut self, peer: Peer, generation: Generation, frame: &CheckedFrame) {
        let header = frame.header();
        let refused = |refusal| FromNode::NotTaken {
            segment: header.segment,
            number: header.number,
            refusal,
        };
        if self.failed.is_some() {
            return self.out.push((peer, refused(Refusal::Failed)));
        }
        if self.full && self.parts.pool.is_ready() {
            self.full = false;
        }
        if self.level.admission() != Admission::All {
            self.admit();
        }
        // A frame that is too large for any file will be refused, so no room is made for it.
        let room = if self.parts.replica.is_small_enough(header) {
            header.frame_len().max(NOTE_LEN_MAX)
        } else {
            NOTE_LEN_MAX
        };
        match self.make_room(room, For::Data) {
            Ok(()) => {}
            // The replica decides what that means for this frame.
            Err(NoRoom::Full) => {
                self.full = true;
                self.admit();
            }
            Err(NoRoom::Failed(failure)) => {
                self.fail(&failure);
                return self.out.push((peer, refused(Refusal::Failed)));
            }
        }
        match self.parts.replica.append(peer, generation, frame) {
            Appended::Stage => {
                let position = self.parts.writer.push(header, frame.payload());
                self.staged
                    .entry(header.segment)
                    .or_default()
                    .push(Entry::new(frame, position));
            }
            Appended::Known => {}
            Appended::Refused(refusal) => {
                self.out.push((peer, refused(refusal)));
            }
        }
        self.write_notes(For::Note);
    }

    /// Closes segments.
    pub(crate) fn fence(&mut self, peer: Peer, request: u64, items: &[FenceItem]) {
        let mut states = Vec::with_capacity(items.len());
        for item in items {
            // What cannot be made durable must not be said: such a request is not answered.
            if self.failed.is_some() {
                return;
            }
            if let Err(reason) = self.make_room(NOTE_LEN_MAX, For::Note) {
                return self.no_room_for_note(&reason);
            }
            states.push(self.parts.replica.fence(item));
            self.changed.insert(item.segment);
            self.write_notes(For::Note);
        }
        self.parts.replica.fenced(peer, request, states);
    }

    /// Forgets segments that nobody needs any more. Their bytes are given up by [`Core::flush`], once
    /// floor and trim are durable. Returns how many it were: less where the last room is used up.
    pub(crate) fn trim(&mut self, segments: &[SegmentId]) -> u64 {
        let mut count = 0;
        for segment in segments {
            if self.failed.is_some() {
                return count;
            }
            // For floor and trim in one block: the second must not follow without the first.
            if let Err(reason) = self.make_room(2 * NOTE_LEN_MAX, For::Trim) {
                self.no_room_for_note(&reason);
                return count;
            }
            if self.parts.replica.trim(*segment) {
                count += 1;
                self.staged.remove(segment);
                self.changed.remove(segment);
                self.write_notes(For::Trim);
                self.trimmed.push(*segment);
            }
        }
        count
    }

    /// Takes committed offsets.
    pub(crate) fn commit(&mut self, items: &[(SegmentId, Offset)]) {
        for (segment, committed) in items {
            if self.parts.replica.commit(*segment, *committed) {
                self.parts.index.commit(*segment, *committed);
                self.idle_due = true;
            }
        }
    }

    /// Says which segments take frames now.
    pub(crate) fn confirm(&mut self, peer: Peer, request: u64, items: &[(SegmentId, Generation)]) {
        let alive = self.failed.is_none();
        let open = items
            .iter()
            .map(|(segment, generation)| alive && self.parts.replica.confirm(*segment, *generation))
            .collect();
        self.out.push((peer, FromNode::Confirm { request, open }));
    }

    /// Makes everything that was taken durable, and says so.
    pub(crate) fn flush(&mut self) {
        if self.failed.is_some() {
            return;
        }
        if self.parts.writer.is_empty() {
            if self.parts.replica.is_waiting() || !self.changed.is_empty() {
                self.settle();
            }
            return;
        }
        if self.parts.writer.fit(self.committed_len()) == Fit::Now {
            self.write_committed();
        }
        if let Err(failure) = self.commit_block() {
            self.fail(&failure);
        }
    }

    /// Nothing came for a moment: marks the last block as synced, so that a later start can tell
    /// damage to it from a torn tail, and writes what waits for a block.
    pub(crate) fn idle(&mut self) {
        if !self.needs_mark() {
            return;
        }
        self.idle_due = false;
        match self.make_room(self.committed_len(), For::Data) {
            Ok(()) => {}
            Err(NoRoom::Full) => return,
            Err(NoRoom::Failed(failure)) => return self.fail(&failure),
        }
        self.write_committed();
        // A file that was begun just now is mark enough for what came before.
        if !self.unmarked && self.parts.writer.is_empty() {
            return;
        }
        match self.commit_block() {
            Ok(()) => {
                self.unmarked = false;
                self.idle_due = self.parts.replica.uncommitted() > 0;
            }
            Err(failure) => self.fail(&failure),
        }
    }

    /// Whether [`Core::idle`] has something to do.
    pub(crate) const fn needs_mark(&self) -> bool {
        self.failed.is_none() && self.idle_due
    }

    /// Length of the next note of committed offsets; a little even where there is none.
    fn committed_len(&self) -> usize {
        COMMITTED_LEN * self.parts.replica.uncommitted().min(COMMITTED_MAX) + HEADER_LEN
    }

    /// What to send now.
    pub(crate) fn take_out(&mut self) -> std::vec::Drain<'_, (Peer, FromNode)> {
        self.out.drain(..)
    }

    pub(crate) fn has_out(&self) -> bool {
        !self.out.is_empty()
    }

    /// Notes how long a frame waited before it came here.
    pub(crate) fn waited(&mut self, us: u32) {
        self.queue_delay_us = self.queue_delay_us.max(us);
    }

    /// Remembers how far the metadata store has come, durably: a start compares it with what the store
    /// says then (I24).
    pub(crate) fn remember(&mut self, revision: Revision, record_revision: Revision) {
        let superblock = &mut self.parts.superblock;
        let known = (superblock.revision, superblock.record_revision);
        let seen = (known.0.max(revision.0), known.1.max(record_revision.0));
        if self.failed.is_some() || known == seen {
            return;
        }
        (superblock.revision, superblock.record_revision) = seen;
        match superblock.write(&*self.parts.disk) {
            Ok(()) => {}
            Err(SuperblockError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
                tracing::warn!(error = %source, "the superblock does not learn the newest metadata revision");
            }
            Err(error) => self.fail(&error.into()),
        }
    }

    /// What the node as a whole takes from now on.
    pub(crate) fn want(&mut self, admission: Admission) {
        if self.wanted != admission {
            self.wanted = admission;
            self.admit();
        }
    }

    /// How full the disk is.
    pub(crate) const fn level(&self) -> Level {
        self.level
    }

    pub(crate) fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Stops writing for a reason from outside.
    pub(crate) fn stop_writing(&mut self, reason: &str) {
        self.failed.get_or_insert_with(|| reason.to_owned());
        self.refuse_waiting();
    }

    pub(crate) fn durable(&self) -> u64 {
        self.parts.writer.durable()
    }

    pub(crate) fn floor(&self) -> Token {
        self.parts.replica.floor()
    }

    #[cfg(test)]
    pub(crate) fn segment(&self, segment: SegmentId) -> Option<crate::journal::format::SegmentState> {
        self.parts.replica.segment(segment)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.parts.replica.counts()
    }

    pub(crate) fn take_written(&mut self) -> Written {
        std::mem::take(&mut self.written)
    }

    /// Damaged segments that came to be whole again since the last time.
    pub(crate) fn take_healed(&mut self) -> u64 {
        std::mem::take(&mut self.healed)
    }

    pub(crate) const fn last_commit_bytes(&self) -> u64 {
        self.last_commit_bytes
    }

    /// Times of the newest commit.
    pub(crate) const fn last_commit(&self) -> CommitTimes {
        self.last_commit
    }

    /// Measures commits from here on.
    pub(crate) fn time(&mut self, clock: Arc<dyn Clock>) {
        self.parts.writer.time(clock);
    }

    fn write_committed(&mut self) {
        if let Some(note) = self.parts.replica.take_committed() {
            self.write_note(&note, For::Note);
        }
    }

    fn write_notes(&mut self, whom: For) {
        let notes: Vec<Note> = self.parts.replica.take_notes().collect();
        for note in notes {
            if let Note::Standing(state) = &note {
                self.changed.insert(state.segment);
            }
            self.write_note(&note, whom);
        }
    }

    fn write_note(&mut self, note: &Note, whom: For) {
        let frame = match note.to_frame() {
            Ok(frame) => frame,
            Err(error) => return self.fail(&error.into()),
        };
        // Room was made for what was expected. A note that nobody could expect, that a segment is
        // in limbo, may find the disk full; the next snapshot says it too.
        match self.make_room(frame.header.frame_len(), whom) {
            Ok(()) => {
                self.parts.writer.push(&frame.header, &frame.payload);
            }
            Err(reason) => self.no_room_for_note(&reason),
        }
    }

    fn commit_block(&mut self) -> Result<(), JournalFailure> {
        let committed = self
            .parts
            .writer
            .commit()
            .map_err(|source| self.disk_failure(source))?;
        self.written.body += committed.body;
        self.written.overhead += committed.written - committed.body;
        self.written.fsyncs += 1;
        self.last_commit_bytes = committed.written;
        self.last_commit = committed.times;
        self.unmarked = true;
        self.idle_due = true;
        self.settle();
        self.admit();
        Ok(())
    }

    /// Everything staged is durable: shows it to readers, then to those who wait.
    fn settle(&mut self) {
        let Synced { acks, replies } = self.parts.replica.synced();
        for segment in self.trimmed.drain(..) {
            self.parts.index.forget(segment);
        }
        for (segment, entries) in std::mem::take(&mut self.staged) {
            if let Some(state) = self.parts.replica.segment(segment) {
                self.publish(&state, &entries);
            }
            self.changed.remove(&segment);
        }
        for segment in std::mem::take(&mut self.changed) {
            if let Some(state) = self.parts.replica.segment(segment) {
                self.publish(&state, &[]);
            }
        }
        let queue_delay_us = std::mem::take(&mut self.queue_delay_us);
        let acks = acks
            .into_iter()
            .map(|(peer, acks)| (peer, FromNode::Acks { acks, queue_delay_us }));
        self.out.extend(acks);
        self.out.extend(replies);
    }

    /// Shows a segment to readers, and whether a copy of it is under way.
    fn publish(&mut self, state: &SegmentState, entries: &[Entry]) {
        if self.parts.index.publish(state, entries) && !state.copied {
            self.healed += 1;
            tracing::info!(segment = %state.segment, tail = %state.tail, "a damaged segment is whole again");
        }
        if state.copied {
            let copying = self.parts.replica.is_copying(state.segment);
            self.parts.index.copying(state.segment, copying);
        }
    }

    /// Sees to it that a frame of this length can be pushed.
    fn make_room(&mut self, frame_len: usize, whom: For) -> Result<(), NoRoom> {
        if self.fits(frame_len, whom) {
            return Ok(());
        }
        if !self.parts.writer.is_empty() {
            self.commit_block().map_err(NoRoom::Failed)?;
        }
        if self.fits(frame_len, whom) {
            return Ok(());
        }
        let spare = self.spare(whom)?;
        self.roll(spare).map_err(NoRoom::Failed)?;
        match self.parts.writer.fit(frame_len) {
            Fit::Now => Ok(()),
            Fit::NextBlock | Fit::NextFile => Err(NoRoom::Full),
        }
    }

    /// Whether a frame goes into the current block. The last quarter of the last file there is
    /// belongs to trims.
    fn fits(&self, frame_len: usize, whom: For) -> bool {
        let (writer, pool) = (&self.parts.writer, &self.parts.pool);
        if writer.fit(frame_len) != Fit::Now {
            return false;
        }
        let kept = pool.file_len() / 4;
        whom == For::Trim
            || writer.room_left().saturating_sub(frame_len as u64) >= kept
            || pool.can_give(Purpose::Notes)
    }

    fn spare(&self, whom: For) -> Result<Spare, NoRoom> {
        let pool = &self.parts.pool;
        // While the disk is known to be full, data takes only a file that somebody else made.
        let hopeless = self.full && whom == For::Data && !pool.is_ready();
        if hopeless || !pool.can_give(whom.purpose()) {
            return Err(NoRoom::Full);
        }
        pool.take(whom.purpose()).map_err(|error| {
            tracing::warn!(%error, "no file to go on with");
            NoRoom::Full
        })
    }

    fn roll(&mut self, spare: Spare) -> Result<(), JournalFailure> {
        // Answers that need no write are due as well: everything before is durable.
        self.settle();
        let salt = self.parts.random.salt();
        let snapshot = self.parts.replica.snapshot();
        let rolled = self.parts.writer.roll(spare, salt, &snapshot);
        self.written.overhead += rolled.map_err(|source| self.disk_failure(source))?;
        self.written.fsyncs += 1;
        self.parts.superblock.newest_file = self.parts.writer.file().header.number;
        self.unmarked = false;
        match self.parts.superblock.write(&*self.parts.disk) {
            // It names the newest file only so that a missing one is noticed at a start; on a disk
            // that others have filled, the last one it named has to do.
            Err(SuperblockError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
                tracing::warn!(error = %source, "the superblock does not learn of the newest file");
                Ok(())
            }
            written => Ok(written?),
        }
    }

    /// Sets what is taken by what the disk has left.
    fn admit(&mut self) {
        let used = self.parts.table.written_bytes(self.parts.writer.durable());
        self.level = if self.full {
            Level::Full
        } else {
            Level::of(used, self.parts.pool.data_bytes_max())
        };
        self.parts.replica.admit(self.level.admission().max(self.wanted));
    }

    fn disk_failure(&self, source: io::Error) -> JournalFailure {
        JournalFailure::Disk {
            file: self.parts.writer.file().name(),
            source,
        }
    }

    fn no_room_for_note(&mut self, reason: &NoRoom) {
        match reason {
            NoRoom::Failed(failure) => self.fail(failure),
            NoRoom::Full => tracing::error!("disk full: a fence, a trim or a note cannot be written"),
        }
    }

    fn fail(&mut self, failure: &JournalFailure) {
        let mut reason = failure.to_string();
        let mut source = std::error::Error::source(failure);
        while let Some(error) = source {
            reason = format!("{reason}: {error}");
            source = error.source();
        }
        tracing::error!(reason, "the journal is dead: this node only reads from now on");
        self.failed.get_or_insert(reason);
        self.refuse_waiting();
    }

    fn refuse_waiting(&mut self) {
        for (peer, segment, number) in self.parts.replica.failed() {
            let refusal = Refusal::Failed;
            self.out.push((
                peer,
                FromNode::NotTaken {
                    segment,
                    number,
                    refusal,
                },
            ));
        }
    }
}
