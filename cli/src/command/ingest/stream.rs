//! Standard input, pipes and the like: bytes that come once, at their own pace.
//!
//! Read on a thread of its own until they end. What has waited for its linger is sent as it is.
//! There is no place to go back to, so such inputs are in no checkpoint. At a stop what was read is
//! sent.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::error::InputError;
use super::mark::Mark;
use super::pack::{Event, Outlet, Packed, Packer};
use super::read::{TurnDone, TurnEnd};
use super::source::Fingerprint;

/// Read at a time.
const READ_BYTES: usize = 256 << 10;
/// A stop is noticed this late at most.
const LOOK: Duration = Duration::from_millis(100);

/// An input that cannot be read again.
#[derive(Debug)]
pub struct Stream {
    /// Where the bytes come from.
    pub file: File,
    /// How long lines wait for a batch to fill.
    pub linger: Duration,
    /// Where batches go.
    pub outlet: Outlet,
}

impl Stream {
    /// Reads to the end, and tells what came of it.
    pub fn run(self) {
        let (events, input) = (self.outlet.events.clone(), self.outlet.input);
        let ended = self.read();
        // Who listens for events outlives the readers; at the end of the process nobody does.
        let _ended = events.send(Event::TurnEnded { input, ended });
    }

    fn read(mut self) -> Result<TurnDone, InputError> {
        let start = Mark::start(self.outlet.writers.len());
        let mut packer = Packer::new(self.outlet, start, u64::MAX);
        let mut buffer = Vec::new();
        let mut filled = 0;
        loop {
            let ended =
                packer.is_stopped() || !fill(&mut self.file, &mut buffer, &mut filled, self.linger, &packer)?;
            let (taken, packed) = packer.take(buffer.get(..filled).unwrap_or_default(), ended, u64::MAX)?;
            buffer.copy_within(taken..filled, 0);
            filled -= taken;
            let waited = packer.waiting().is_some_and(|waited| waited >= self.linger);
            if ended || waited {
                packer.send()?;
            }
            if ended || packed == Packed::Stopped {
                let size = packer.position();
                let end = match packed {
                    Packed::Stopped => TurnEnd::Stopped,
                    Packed::All | Packed::Enough => TurnEnd::CaughtUp { last: None, size },
                };
                return Ok(TurnDone {
                    mark: packer.into_start(),
                    fingerprint: Fingerprint { bytes: 0, crc32c: 0 },
                    end,
                });
            }
        }
    }
}

/// Reads once, or not where nothing comes before it is time to look around; false at the end.
fn fill(
    file: &mut File,
    buffer: &mut Vec<u8>,
    filled: &mut usize,
    linger: Duration,
    packer: &Packer,
) -> io::Result<bool> {
    let left = packer
        .waiting()
        .map_or(LOOK, |waited| linger.saturating_sub(waited).min(LOOK));
    let wait = Timespec::try_from(left).map_err(io::Error::other)?;
    let mut wanted = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN)];
    match poll(&mut wanted, Some(&wait)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(true),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    if buffer.len() < *filled + READ_BYTES {
        buffer.resize(*filled + READ_BYTES, 0);
    }
    match file.read(buffer.get_mut(*filled..).unwrap_or_default()) {
        Ok(read) => {
            *filled += read;
            Ok(read > 0)
        }
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
            ) =>
        {
            Ok(true)
        }
        Err(error) => Err(error),
    }
}
