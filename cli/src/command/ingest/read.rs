//! One turn at reading a file, on a thread that may block.
//!
//! A turn reads from where the last one ended to the end of what is there, or until it sent its
//! share. Ends of batches that an earlier run may have sent come first: up to each of them the file
//! is cut as if it ended there. What is left when a turn is over stays in the file and is read
//! again: between turns an input holds no memory but its place.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::cut::Mode;
use super::error::InputError;
use super::mark::Mark;
use super::pack::{Event, Outlet, Packed, Packer, Ready};
use super::source::{FileId, Fingerprint};

/// Read at a time.
const READ_BYTES: usize = 1 << 20;
/// One turn sends about this much where others wait.
const TURN_BYTES: u64 = 64 << 20;

/// How far a turn is to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// To this size, where the file ends: a last line without line feed counts.
    End(u64),
    /// As far as there are whole lines now: more may come.
    Now,
}

/// How a turn ended.
#[derive(Debug)]
pub enum TurnEnd {
    /// There is more to read.
    More,
    /// At the end of what is there. The batch, if there is one, ends where it does only because of
    /// the time: that must be noted before it is sent.
    CaughtUp {
        /// What was gathered last.
        last: Option<Ready>,
        /// Size of the file that was read to.
        size: u64,
    },
    /// It is another file now, or begins anew: shorter than what was read, or with other bytes.
    Replaced {
        /// Its size.
        size: u64,
    },
    /// There is to be no more reading.
    Stopped,
}

/// A turn that is over.
#[derive(Debug)]
pub struct TurnDone {
    /// Where the next one begins.
    pub mark: Mark,
    /// What the file begins with, as far as is known now.
    pub fingerprint: Fingerprint,
    /// How it ended.
    pub end: TurnEnd,
}

/// A turn at one file.
#[derive(Debug)]
pub struct Turn {
    /// Where the input comes from.
    pub source: Source,
    /// Where to begin.
    pub mark: Mark,
    /// Ends of batches that may have been sent, from there on.
    pub cuts: VecDeque<u64>,
    /// How far to read.
    pub goal: Goal,
    /// What the file began with; checked where the file may be replaced.
    pub fingerprint: Fingerprint,
    /// Where batches go.
    pub outlet: Outlet,
}

/// A file to be read.
#[derive(Debug, Clone)]
pub enum Source {
    /// Open already.
    Open(Arc<File>),
    /// To be opened; it must still be this file.
    Path(PathBuf, FileId),
}

impl Turn {
    /// Reads, and tells what came of it.
    pub fn run(self) {
        let (events, input) = (self.outlet.events.clone(), self.outlet.input);
        let ended = self.read();
        // Who listens for events outlives the readers; at the end of the process nobody does.
        let _ended = events.send(Event::TurnEnded { input, ended });
    }

    fn read(mut self) -> Result<TurnDone, InputError> {
        let file = match &self.source {
            Source::Open(file) => file.clone(),
            Source::Path(path, id) => {
                let file = File::open(path)?;
                let found = FileId::of(&file.metadata()?);
                if found != *id {
                    return Err(InputError::Replaced {
                        expected: id.inode,
                        found: found.inode,
                    });
                }
                Arc::new(file)
            }
        };
        let size = file.metadata()?.len();
        let from = self.mark.position;
        if self.goal == Goal::Now && (size < from || !self.fingerprint.matches(&file)?) {
            return Ok(TurnDone {
                mark: self.mark,
                fingerprint: self.fingerprint,
                end: TurnEnd::Replaced { size },
            });
        }
        let fingerprint = self.fingerprint;
        let done = |mark, end| TurnDone {
            mark,
            fingerprint,
            end,
        };
        let (whole, end) = match self.goal {
            Goal::End(end) => (true, end),
            // Blocks have no end of their own: what is there is taken.
            Goal::Now => (self.outlet.cutting.mode == Mode::Blocks, size),
        };
        let mut packer = Packer::new(self.outlet, self.mark, end.saturating_sub(from));
        let mut window = Window::new(file, from);
        loop {
            let planned = self.cuts.front().copied();
            let stretch = Stretch {
                end: planned.unwrap_or(end),
                ended: planned.is_some() || whole,
            };
            if let Some(packed) = stretch.read(&mut window, &mut packer)? {
                let ended = match packed {
                    Packed::Enough => TurnEnd::More,
                    Packed::Stopped | Packed::All => TurnEnd::Stopped,
                };
                return Ok(done(packer.into_start(), ended));
            }
            if window.short {
                let size = window.file.metadata()?.len();
                return match self.goal {
                    Goal::End(expected) => Err(InputError::Shrunk {
                        position: packer.position(),
                        expected,
                        size,
                    }),
                    Goal::Now => Ok(done(packer.into_start(), TurnEnd::Replaced { size })),
                };
            }
            let Some(planned) = planned else { break };
            packer.send()?;
            self.cuts.retain(|cut| *cut > planned);
        }
        let last = packer.close()?;
        Ok(done(packer.into_start(), TurnEnd::CaughtUp { last, size: end }))
    }
}

/// A part of a file that is cut by itself.
struct Stretch {
    end: u64,
    /// Whether what is not a whole record at its end is one all the same.
    ended: bool,
}

impl Stretch {
    /// Reads to its end, or until the packer wants no more.
    fn read(&self, window: &mut Window, packer: &mut Packer) -> Result<Option<Packed>, InputError> {
        loop {
            let at_end = window.next_read >= self.end;
            let (taken, packed) = packer.take(window.bytes(), at_end && self.ended, TURN_BYTES)?;
            window.consume(taken);
            if packed != Packed::All {
                return Ok(Some(packed));
            }
            if at_end {
                return Ok(None);
            }
            if packer.is_stopped() {
                return Ok(Some(Packed::Stopped));
            }
            if !window.fill(self.end)? {
                return Ok(None);
            }
        }
    }
}

/// The part of a file that is in memory: at most one record that is not complete, and one read.
struct Window {
    file: Arc<File>,
    buffer: Vec<u8>,
    /// What of the buffer is still to be taken.
    start: usize,
    filled: usize,
    /// Place in the file after the buffer.
    next_read: u64,
    /// Whether the file ended before it should.
    short: bool,
}

impl Window {
    const fn new(file: Arc<File>, position: u64) -> Self {
        Self {
            file,
            buffer: Vec::new(),
            start: 0,
            filled: 0,
            next_read: position,
            short: false,
        }
    }

    /// What is to be taken.
    fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.filled).unwrap_or_default()
    }

    const fn consume(&mut self, bytes: usize) {
        self.start += bytes;
    }

    /// Reads on, but not beyond `end`; false where the file ends before that.
    fn fill(&mut self, end: u64) -> Result<bool, InputError> {
        self.buffer.copy_within(self.start..self.filled, 0);
        self.filled -= self.start;
        self.start = 0;
        let wanted = usize::try_from(end.saturating_sub(self.next_read)).unwrap_or(usize::MAX);
        let size = self.filled + wanted.min(READ_BYTES);
        if self.buffer.len() < size {
            self.buffer.resize(size, 0);
        }
        let room = self.buffer.get_mut(self.filled..size).unwrap_or_default();
        let read = loop {
            match self.file.read_at(room, self.next_read) {
                Ok(read) => break read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        };
        self.short = read == 0;
        self.filled += read;
        self.next_read += read as u64;
        Ok(read > 0)
    }
}
