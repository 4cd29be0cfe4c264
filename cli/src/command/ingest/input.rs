//! One input, as the shipper keeps it: what is read, sent and acknowledged of it.
//!
//! Places only move forward within one file; where the file begins anew, so does the input, under
//! another producer id, after everything sent before was answered.

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use forebay_client::ProducerStamp;

use super::checkpoint::Entry;
use super::cut::Cutting;
use super::mark::Mark;
use super::pack::{Passed, Ready};
use super::source::{FileId, Fingerprint};

/// What is next for an input.
#[derive(Debug)]
pub enum Stage {
    /// Waits for the input before it, or for its turn to be named.
    Waiting,
    /// Its producer id is asked for.
    Naming,
    /// The checkpoint that first has it is to be durable, which this numbers, before anything is
    /// sent.
    Registering(u64),
    /// Waits for its turn to be read.
    Ready,
    /// Is being read.
    Reading,
    /// The checkpoint that has the end of this batch is to be durable before it is sent.
    Planning(u64, Ready),
    /// Everything that is there was read; more may come.
    Idle,
    /// Everything was read, and nothing more is to come: acknowledgements are waited for.
    Ending,
    /// The file began anew: acknowledgements are waited for.
    Replaced,
    /// Over.
    Done,
}

/// Where the bytes come from.
#[derive(Debug)]
pub enum Origin {
    /// A file.
    File(Watched),
    /// A stream, until its reading begins.
    Stream(Option<File>),
}

/// A file that may change.
#[derive(Debug)]
pub struct Watched {
    /// Where it was found.
    pub at: PathBuf,
    /// Which file.
    pub id: FileId,
    /// What it begins with.
    pub fingerprint: Fingerprint,
    /// Its size when it was first found.
    pub first_size: u64,
    /// Its size when it was last looked at.
    pub size: u64,
    /// Open while it is followed.
    pub file: Option<Arc<File>>,
    /// Size up to which all that is complete was read.
    pub caught_up: Option<u64>,
    /// When it last changed its size.
    pub changed: Instant,
    /// When bytes were seen that are not read yet.
    pub unread_since: Option<Instant>,
    /// Whether no path leads to it any more.
    pub gone: bool,
    /// Whether the turn that began last reads it to its end for good.
    pub ending: bool,
}

impl Watched {
    /// A file that was found just now, of this size.
    pub fn new(
        at: PathBuf,
        id: FileId,
        fingerprint: Fingerprint,
        size: u64,
        file: Option<Arc<File>>,
    ) -> Self {
        let now = Instant::now();
        Self {
            at,
            id,
            fingerprint,
            first_size: size,
            size,
            file,
            caught_up: None,
            changed: now,
            unread_since: Some(now),
            gone: false,
            ending: false,
        }
    }
}

/// A stretch that was sent.
#[derive(Debug)]
pub struct Sent {
    passed: Passed,
    answered: bool,
}

/// One input.
#[derive(Debug)]
pub struct Input {
    /// As messages name it.
    pub name: Arc<str>,
    /// The path that it stands for.
    pub path: PathBuf,
    /// Where the bytes come from.
    pub origin: Origin,
    /// Where its batches go, in turn.
    pub partitions: Vec<u32>,
    /// Who its batches are from.
    pub producer: Option<ProducerStamp>,
    /// Everything before this is acknowledged.
    pub acked: Mark,
    /// Where the next turn begins.
    pub read: Mark,
    /// Ends of batches, behind `acked`, that may have been sent and do not follow from the bytes.
    pub cuts: VecDeque<u64>,
    /// What is next.
    pub stage: Stage,
    /// The input that must be over before.
    pub after: Option<u64>,
    sent: VecDeque<Sent>,
    /// Number of the first of `sent`.
    first_sent: u64,
}

impl Input {
    /// An input that begins at a mark.
    pub fn new(name: &str, path: PathBuf, origin: Origin, partitions: Vec<u32>, mark: Mark) -> Self {
        Self {
            name: name.into(),
            path,
            origin,
            partitions,
            producer: None,
            acked: mark.clone(),
            read: mark,
            cuts: VecDeque::new(),
            stage: Stage::Waiting,
            after: None,
            sent: VecDeque::new(),
            first_sent: 0,
        }
    }

    /// Its file, where it is one.
    pub const fn watched(&self) -> Option<&Watched> {
        match &self.origin {
            Origin::File(watched) => Some(watched),
            Origin::Stream(_) => None,
        }
    }

    /// Its file, where it is one.
    pub const fn watched_mut(&mut self) -> Option<&mut Watched> {
        match &mut self.origin {
            Origin::File(watched) => Some(watched),
            Origin::Stream(_) => None,
        }
    }

    /// Whether everything that was sent is acknowledged.
    pub fn is_settled(&self) -> bool {
        self.sent.is_empty()
    }

    /// Bytes sent and not acknowledged.
    pub fn bytes_in_flight(&self) -> u64 {
        self.sent.iter().map(|sent| sent.passed.bytes).sum()
    }

    /// Bytes of the file, as last seen, that are not acknowledged.
    pub fn lag_bytes(&self) -> u64 {
        let size = self.watched().map_or(self.read.position, |watched| watched.size);
        size.saturating_sub(self.acked.position)
    }

    /// Notes that a stretch was sent; gives its number.
    pub fn on_sent(&mut self, passed: Passed) -> u64 {
        self.sent.push_back(Sent {
            passed,
            answered: false,
        });
        self.first_sent + self.sent.len() as u64 - 1
    }

    /// Notes that a stretch is written; gives the stretches that are now acknowledged without a
    /// gap before them.
    pub fn on_written(&mut self, number: u64) -> Vec<Passed> {
        let place = usize::try_from(number.saturating_sub(self.first_sent)).unwrap_or(usize::MAX);
        if let Some(sent) = self.sent.get_mut(place) {
            sent.answered = true;
        }
        let mut passed = Vec::new();
        while self.sent.front().is_some_and(|sent| sent.answered)
            && let Some(sent) = self.sent.pop_front()
        {
            self.first_sent += 1;
            self.acked = sent.passed.end.clone();
            passed.push(sent.passed);
        }
        let position = self.acked.position;
        self.cuts.retain(|cut| *cut > position);
        passed
    }

    /// Records in the stretch of this number, if it is not acknowledged.
    pub fn records(&self, number: u64) -> u64 {
        let place = usize::try_from(number.saturating_sub(self.first_sent)).unwrap_or(usize::MAX);
        self.sent.get(place).map_or(0, |sent| sent.passed.records)
    }

    /// The stretch of this number, if it is not acknowledged: where it begins and ends.
    pub fn stretch(&self, number: u64) -> (u64, u64) {
        let place = usize::try_from(number.saturating_sub(self.first_sent)).unwrap_or(usize::MAX);
        self.sent.get(place).map_or((0, 0), |sent| {
            let end = sent.passed.end.position;
            (end.saturating_sub(sent.passed.bytes), end)
        })
    }

    /// Begins anew in what is another file or another content now. Everything was answered.
    pub fn begin_anew(&mut self, fingerprint: Fingerprint, size: u64, now: Instant) {
        self.acked = Mark::start(self.partitions.len());
        self.read = self.acked.clone();
        self.cuts.clear();
        self.producer = None;
        self.stage = Stage::Waiting;
        if let Some(watched) = self.watched_mut() {
            watched.fingerprint = fingerprint;
            watched.first_size = size;
            watched.size = size;
            watched.caught_up = None;
            watched.changed = now;
            watched.unread_since = None;
        }
    }

    /// What the checkpoint says of it; nothing before its batches have a name to be sent under.
    pub fn entry(&self, cutting: &Cutting) -> Option<Entry> {
        let (watched, producer) = (self.watched()?, self.producer?);
        Some(Entry {
            path: self.path.clone(),
            file: watched.id,
            fingerprint: watched.fingerprint,
            first_size: watched.first_size,
            position: self.acked.position,
            line: self.acked.line,
            skipping: self.acked.skipping,
            settled: false,
            cuts: self.cuts.iter().copied().collect(),
            producer_id: producer.id.0,
            producer_epoch: producer.epoch,
            partitions: self.partitions.clone(),
            batches: self.acked.batches,
            sequences: self.acked.sequences.clone(),
            cutting: cutting.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    fn passed(end: u64) -> Passed {
        let mut mark = Mark::start(1);
        mark.position = end;
        Passed {
            end: mark,
            bytes: 10,
            records: 1,
            skipped: 0,
        }
    }

    #[test]
    fn what_is_acknowledged_has_no_gap_and_passed_cuts_are_forgotten() {
        let mut input = Input::new("f", "/f".into(), Origin::Stream(None), vec![0], Mark::start(1));
        input.cuts = [10, 30].into();
        let numbers: Vec<_> = [10, 20, 30].map(|end| input.on_sent(passed(end))).into();
        assert_eq!(numbers, [0, 1, 2]);
        assert!(input.on_written(1).is_empty());
        assert_eq!((input.acked.position, input.bytes_in_flight()), (0, 30));
        assert_eq!(input.on_written(0).len(), 2);
        assert_eq!(
            (input.acked.position, input.cuts.clone()),
            (20, VecDeque::from([30]))
        );
        assert_eq!(input.stretch(2), (20, 30));
        assert_eq!(input.on_sent(passed(40)), 3);
        input.on_written(2);
        input.on_written(3);
        assert!(input.is_settled() && input.cuts.is_empty());
        assert_eq!(input.acked.position, 40);
    }
}
