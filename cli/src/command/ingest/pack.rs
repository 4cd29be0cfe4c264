//! From records to ready batches, on the thread that reads.
//!
//! A record's bytes are copied once, from the read buffer into the batch; checksum and compression
//! are done here too. Memory is set apart before a batch is begun: where it is used up, reading
//! waits. A stop ends that wait.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay_client::{Compression, Delivery, PartitionWriter, ProducerStamp, Space};
use forebay_record::batch::Builder;
use forebay_runtime::clock::{Clock as _, SystemClock};
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;

use super::cut::{Cutting, FileName, Next};
use super::error::InputError;
use super::mark::Mark;
use super::read::TurnDone;

/// Name of the header that carries the path.
const FILE_HEADER: &str = "file";

/// What the reading of one input needs of the rest.
#[derive(Debug, Clone)]
pub struct Outlet {
    /// Number of the input.
    pub input: u64,
    /// The path as records carry it.
    pub tag: Arc<[u8]>,
    /// How to cut.
    pub cutting: Arc<Cutting>,
    /// How to compress.
    pub codec: Compression,
    /// Whether text must be UTF-8.
    pub utf8_only: bool,
    /// Writers of the input's partitions.
    pub writers: Vec<Arc<PartitionWriter>>,
    /// Who the batches are from.
    pub producer: ProducerStamp,
    /// Where what happens is told. Batches in it hold memory that was set apart, which bounds it.
    pub events: UnboundedSender<Event>,
    /// Ends all reading.
    pub stop: CancellationToken,
    /// For waiting on a thread that is not the runtime's.
    pub runtime: Handle,
}

/// What the reading threads tell.
#[derive(Debug)]
pub enum Event {
    /// A batch was handed to the producer, or bytes without a record were passed.
    Sent {
        /// Number of the input.
        input: u64,
        /// What was passed.
        passed: Passed,
        /// None where there was no record.
        delivery: Option<Delivery>,
    },
    /// A turn is over.
    TurnEnded {
        /// Number of the input.
        input: u64,
        /// How.
        ended: Result<TurnDone, InputError>,
    },
}

/// A stretch of an input that became one batch.
#[derive(Debug, Clone)]
pub struct Passed {
    /// Where it ends.
    pub end: Mark,
    /// Bytes of input.
    pub bytes: u64,
    /// Records of the batch.
    pub records: u64,
    /// Lines that were left out, because they fit no batch.
    pub skipped: u64,
}

/// A batch that is to be handed to the producer later.
#[derive(Debug)]
pub struct Ready {
    /// What it is made of.
    pub passed: Passed,
    batch: Option<(Bytes, Space, Arc<PartitionWriter>)>,
}

impl Ready {
    /// Hands the batch over.
    pub fn write(self) -> Result<(Passed, Option<Delivery>), InputError> {
        let delivery = match self.batch {
            Some((bytes, space, writer)) => Some(writer.write(bytes, space)?),
            None => None,
        };
        Ok((self.passed, delivery))
    }
}

/// What a look at the buffer came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packed {
    /// All that is complete was taken.
    All,
    /// Enough for one turn was sent; more is there.
    Enough,
    /// There is to be no more reading.
    Stopped,
}

/// Gathers records of one input into its open batch.
#[derive(Debug)]
pub struct Packer {
    outlet: Outlet,
    builder: Builder,
    value_max: usize,
    /// Memory of the open batch.
    space: Option<Space>,
    opened: Option<Instant>,
    timestamp_ms: i64,
    clock: SystemClock,
    /// Where the open batch begins.
    start: Mark,
    /// What was taken into it.
    at: Mark,
    skipped: u64,
    sent_bytes: u64,
}

impl Packer {
    /// Begins at a mark; about `expected` bytes of input will come.
    pub fn new(outlet: Outlet, mark: Mark, expected: u64) -> Self {
        let value_max = outlet.cutting.value_bytes_max(outlet.tag.len());
        // A turn that finds little takes little; a builder grows where this is too small.
        let expected = usize::try_from(expected).unwrap_or(usize::MAX);
        let capacity = outlet.cutting.batch_bytes.min(expected.saturating_mul(2));
        Self {
            builder: Builder::new(outlet.codec, capacity),
            outlet,
            value_max,
            space: None,
            opened: None,
            timestamp_ms: 0,
            clock: SystemClock::new(),
            at: mark.clone(),
            start: mark,
            skipped: 0,
            sent_bytes: 0,
        }
    }

    /// Whether there is to be no more reading.
    pub fn is_stopped(&self) -> bool {
        self.outlet.stop.is_cancelled()
    }

    /// Bytes of the input that were taken, sent or not.
    pub const fn position(&self) -> u64 {
        self.at.position
    }

    /// Where the next batch begins: what was taken into the open one does not count.
    pub fn into_start(self) -> Mark {
        self.start
    }

    /// How long the open batch has been waiting.
    pub fn waiting(&self) -> Option<Duration> {
        self.opened.map(|opened| opened.elapsed())
    }

    /// Takes records from the front of `bytes`, sending what is full. Says how many bytes were
    /// taken. `ended` where the input ends after `bytes`; `sent_max` bounds what is sent in all.
    pub fn take(&mut self, bytes: &[u8], ended: bool, sent_max: u64) -> Result<(usize, Packed), InputError> {
        let mut taken_in_all = 0;
        let cutting = self.outlet.cutting.clone();
        loop {
            let rest = bytes.get(taken_in_all..).unwrap_or_default();
            let (taken, ends_line) = match cutting.next(rest, ended, self.at.skipping, self.value_max) {
                Next::Record {
                    value,
                    taken,
                    ends_line,
                } => {
                    if self.outlet.utf8_only {
                        self.check_utf8(value)?;
                    }
                    if !self.builder.is_empty()
                        && !cutting.fits(self.builder.len_estimate(), value.len(), self.outlet.tag.len())
                    {
                        self.send()?;
                        if self.sent_bytes >= sent_max {
                            return Ok((taken_in_all, Packed::Enough));
                        }
                    }
                    if self.space.is_none() && !self.open(value.len())? {
                        return Ok((taken_in_all, Packed::Stopped));
                    }
                    self.append(value)?;
                    (taken, ends_line)
                }
                Next::Skip { taken, ends_line } => {
                    self.skipped += u64::from(!self.at.skipping);
                    self.at.skipping = !ends_line;
                    (taken, ends_line)
                }
                Next::More => return Ok((taken_in_all, Packed::All)),
                Next::TooLong { max } => {
                    return Err(InputError::LongLine {
                        line: self.at.line + 1,
                        position: self.at.position,
                        max,
                    });
                }
            };
            taken_in_all += taken;
            self.at.position += taken as u64;
            self.at.line += u64::from(ends_line);
        }
    }

    fn check_utf8(&self, value: &[u8]) -> Result<(), InputError> {
        let valid = std::str::from_utf8(value);
        valid.map(drop).map_err(|error| InputError::NotUtf8 {
            line: self.at.line + 1,
            position: self.at.position + error.valid_up_to() as u64,
        })
    }

    /// Sets memory apart for a batch; false where there is to be no more reading.
    fn open(&mut self, value_bytes: usize) -> Result<bool, InputError> {
        let room = self.outlet.cutting.room_for(value_bytes, self.outlet.tag.len());
        let writer = self.writer()?;
        let reserved = self.outlet.runtime.block_on(async {
            tokio::select! {
                biased;
                space = writer.reserve(room) => Some(space),
                () = self.outlet.stop.cancelled() => None,
            }
        });
        let Some(space) = reserved else { return Ok(false) };
        self.space = Some(space?);
        self.opened = Some(Instant::now());
        self.timestamp_ms = self.clock.now_unix_ms();
        Ok(true)
    }

    fn writer(&self) -> Result<Arc<PartitionWriter>, InputError> {
        let found = self.outlet.writers.get(self.at.slot());
        found
            .cloned()
            .ok_or_else(|| InputError::Io(io::Error::other("no partition to write to")))
    }

    fn append(&mut self, value: &[u8]) -> Result<(), InputError> {
        let tag = self.outlet.tag.as_ref();
        let header = [(FILE_HEADER, Some(tag))];
        let (key, headers) = match self.outlet.cutting.file_name {
            FileName::None => (None, &header[..0]),
            FileName::Key => (Some(tag), &header[..0]),
            FileName::Header => (None, &header[..]),
        };
        // One time for the whole batch: reading it for each line would cost more than the line.
        self.builder
            .append(self.timestamp_ms, key, Some(value), headers)?;
        Ok(())
    }

    /// Ends the open batch, if anything was taken since the last one, without sending it.
    pub fn close(&mut self) -> Result<Option<Ready>, InputError> {
        if self.at.position == self.start.position {
            return Ok(None);
        }
        let slot = self.at.slot();
        let records = self.builder.count();
        let batch = match self.space.take() {
            Some(mut space) if records > 0 => {
                let stamp = self.at.stamp(self.outlet.producer);
                let bytes = self.builder.finish(Some(stamp))?;
                space.shrink(bytes.len());
                self.at.count_batch(i32::try_from(records).unwrap_or(i32::MAX));
                Some((bytes, space, self.outlet.writers.get(slot).cloned()))
            }
            _ => None,
        };
        self.opened = None;
        let start = std::mem::replace(&mut self.start, self.at.clone());
        let passed = Passed {
            bytes: self.at.position - start.position,
            records: records as u64,
            skipped: std::mem::take(&mut self.skipped),
            end: self.at.clone(),
        };
        let batch = batch.and_then(|(bytes, space, writer)| Some((bytes, space, writer?)));
        Ok(Some(Ready { passed, batch }))
    }

    /// Ends the open batch and hands it to the producer.
    pub fn send(&mut self) -> Result<(), InputError> {
        let Some(ready) = self.close()? else { return Ok(()) };
        let (passed, delivery) = ready.write()?;
        self.sent_bytes += passed.bytes;
        let input = self.outlet.input;
        // Who listens for events outlives the readers; at the end of the process nobody does.
        let _ended = self.outlet.events.send(Event::Sent {
            input,
            passed,
            delivery,
        });
        Ok(())
    }
}
