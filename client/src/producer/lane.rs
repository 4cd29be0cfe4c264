//! One partition's unanswered batches: what is sent next, what is sent again, what is over.
//!
//! No I/O and no clock: the sender hands in answers and times and takes out batches to send.
//! Promises: batches are sent in the order they came, each has at most one request under way, and
//! each is settled once. For an idempotent producer the sequence numbers of what is sent are
//! contiguous, a batch that may have been applied is only ever repeated under the numbers it had,
//! and one that is certain not to have been applied gives its numbers to its successors.
//!
//! After any failure the lane halts: nothing is sent until every request under way is answered.
//! What was not applied is then sent again from the front. Where the numbers no longer hold (the
//! service forgot or fenced the producer, or a batch of unknown outcome was given up), the lane
//! takes a new producer id; batches that may have been applied cannot be repeated under it and
//! are settled as unknown, the others are numbered afresh from 0.
//!
//! A lane of batches that were numbered by whoever built them never numbers anything itself. Once
//! one of them is not delivered, its successors would leave a gap: all of them are refused with it.

use std::collections::VecDeque;

use forebay_proto::v1::ErrorCode;
use forebay_record::batch::{ProducerStamp, sequence_after};
use tokio::time::Instant;

use super::Identity;
use crate::backoff::Backoff;
use crate::error::Refusal;

/// Times one batch may make the lane take a new producer id before it is given up.
const RENEWALS_MAX: u32 = 3;

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Applied; the offset is not known where the service only remembers that it was.
    Delivered { base_offset: Option<u64> },
    /// Certainly not applied.
    Refused(Refusal),
    /// May have been applied.
    Unknown(Refusal),
    /// Not applied, and not tried any longer; the last refusal, if there was one.
    TimedOut(Option<Refusal>),
}

/// A batch that has been settled.
#[derive(Debug)]
pub(crate) struct Settled<B> {
    pub batch: B,
    pub verdict: Verdict,
}

/// A batch to send now.
#[derive(Debug)]
pub(crate) struct Transmit<'a, B> {
    /// Names the batch in the answer.
    pub serial: u64,
    /// The numbers it must carry.
    pub stamp: Option<ProducerStamp>,
    pub batch: &'a mut B,
}

#[derive(Debug)]
struct Entry<B> {
    serial: u64,
    batch: B,
    records: i32,
    deadline: Instant,
    under_way: bool,
    /// The numbers it was sent under, none before it is sent.
    stamp: Option<ProducerStamp>,
    /// Whether some attempt may have been applied.
    tainted: bool,
    renewals: u32,
    last: Option<Refusal>,
}

/// Why sending stopped, until everything under way is answered.
#[derive(Debug, Default)]
struct Halt {
    /// The first batch that was sent, not applied, and given up: serial and sequence.
    hole: Option<(u64, i32)>,
    /// Whether the producer id is of no use any more.
    renew: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbering {
    Off,
    By(Identity),
    /// The identity is spent; waits for another.
    Spent(Identity),
    /// Batches come with their numbers.
    Given,
}

/// The unanswered batches of one partition.
#[derive(Debug)]
pub(crate) struct Lane<B> {
    window: usize,
    backoff: Backoff,
    numbering: Numbering,
    /// Sequence of the next batch that has none.
    next_sequence: i32,
    next_serial: u64,
    entries: VecDeque<Entry<B>>,
    under_way: usize,
    halt: Option<Halt>,
    not_before: Option<Instant>,
    failures: u32,
    renumbered: bool,
    /// Why nothing is sent any more; only of batches with given numbers.
    broken: Option<Refusal>,
}

impl<B> Lane<B> {
    pub(crate) const fn new(window: usize, backoff: Backoff, identity: Option<Identity>) -> Self {
        let numbering = match identity {
            Some(identity) => Numbering::By(identity),
            None => Numbering::Off,
        };
        Self {
            window,
            backoff,
            numbering,
            next_sequence: 0,
            next_serial: 0,
            entries: VecDeque::new(),
            under_way: 0,
            halt: None,
            not_before: None,
            failures: 0,
            renumbered: false,
            broken: None,
        }
    }

    /// A lane of batches that were numbered by whoever built them.
    pub(crate) const fn given(window: usize, backoff: Backoff) -> Self {
        let mut lane = Self::new(window, backoff, None);
        lane.numbering = Numbering::Given;
        lane
    }

    /// Why nothing is sent any more, where that is so.
    pub(crate) const fn broken(&self) -> Option<&Refusal> {
        self.broken.as_ref()
    }

    /// Whether another batch may be pushed.
    pub(crate) fn has_room(&self) -> bool {
        self.entries.len() < self.window
    }

    /// Takes over a batch of that many records. `stamp` is what it carries; it counts in a lane of
    /// given numbers only.
    pub(crate) fn push(&mut self, batch: B, records: i32, deadline: Instant, stamp: Option<ProducerStamp>) {
        let serial = self.next_serial;
        self.next_serial += 1;
        let given = self.numbering == Numbering::Given;
        self.entries.push_back(Entry {
            serial,
            batch,
            records,
            deadline,
            under_way: false,
            stamp: stamp.filter(|_| given),
            tainted: false,
            renewals: 0,
            last: None,
        });
    }

    /// The next batch to send, if one may be sent now. It counts as under way from here on.
    pub(crate) fn transmit(&mut self, now: Instant) -> Option<Transmit<'_, B>> {
        let identity = match self.numbering {
            Numbering::Off | Numbering::Given => None,
            Numbering::By(identity) => Some(identity),
            Numbering::Spent(_) => return None,
        };
        if self.broken.is_some() || self.halt.is_some() || self.not_before.is_some_and(|at| at > now) {
            return None;
        }
        let entry = self.entries.iter_mut().find(|entry| !entry.under_way)?;
        if let (None, Some(identity)) = (entry.stamp, identity) {
            entry.stamp = Some(identity.stamp(self.next_sequence));
            self.next_sequence = sequence_after(self.next_sequence, entry.records);
        }
        entry.under_way = true;
        self.under_way += 1;
        Some(Transmit {
            serial: entry.serial,
            stamp: entry.stamp,
            batch: &mut entry.batch,
        })
    }

    /// Takes in the answer to a batch under way. Answers to anything else change nothing.
    pub(crate) fn on_answer(
        &mut self,
        serial: u64,
        answer: Result<Option<u64>, Refusal>,
        now: Instant,
        random: u32,
        settled: &mut Vec<Settled<B>>,
    ) {
        let Some(place) = self
            .entries
            .iter()
            .position(|entry| entry.serial == serial && entry.under_way)
        else {
            return;
        };
        self.under_way -= 1;
        let verdict = match answer {
            Ok(base_offset) => {
                self.failures = 0;
                Some(Verdict::Delivered { base_offset })
            }
            Err(refusal) => self.judge(place, refusal, now, random),
        };
        match verdict {
            Some(verdict) => self.remove(place, verdict, settled),
            None => {
                if let Some(entry) = self.entries.get_mut(place) {
                    entry.under_way = false;
                }
                self.halt.get_or_insert_default();
            }
        }
        self.resume(settled);
    }

    /// Decides about a batch that was refused: its end, or none where it is to be sent again.
    fn judge(&mut self, place: usize, refusal: Refusal, now: Instant, random: u32) -> Option<Verdict> {
        let numbered = self.numbering != Numbering::Off;
        let entry = self.entries.get_mut(place)?;
        if numbered && refusal.code == ErrorCode::DuplicateSequence {
            return Some(Verdict::Delivered { base_offset: None });
        }
        entry.last = Some(refusal.clone());
        if refusal.is_unknown() {
            entry.tainted = true;
            if !numbered {
                return Some(Verdict::Unknown(refusal));
            }
        } else if !refusal.is_retriable() {
            let about_numbers = matches!(
                refusal.code,
                ErrorCode::OutOfOrderSequence | ErrorCode::UnknownProducer | ErrorCode::FencedProducer
            );
            if !(numbered && about_numbers) {
                return Some(if entry.tainted {
                    Verdict::Unknown(refusal)
                } else {
                    Verdict::Refused(refusal)
                });
            }
            // Behind a batch that is not settled, or was given up while this one was under way, it
            // only says that this one came too early.
            let hole = self.halt.as_ref().and_then(|halt| halt.hole);
            let early = place > 0 || hole.is_some_and(|(serial, _)| serial < entry.serial);
            if !early {
                if entry.tainted {
                    return Some(Verdict::Unknown(refusal));
                }
                if self.numbering == Numbering::Given {
                    return Some(Verdict::Refused(refusal));
                }
                if entry.renewals == RENEWALS_MAX {
                    self.halt.get_or_insert_default().renew = true;
                    return Some(Verdict::Refused(refusal));
                }
                entry.renewals += 1;
                self.halt.get_or_insert_default().renew = true;
            }
        }
        // One wait for all that fail together: those behind the first add nothing to it.
        if self.not_before.is_none_or(|at| at <= now) {
            self.failures = self.failures.saturating_add(1);
            self.not_before = Some(now + self.backoff.delay(self.failures, random));
        }
        None
    }

    /// Settles every batch that waits and whose time is over.
    pub(crate) fn expire(&mut self, now: Instant, settled: &mut Vec<Settled<B>>) {
        while let Some(place) = self
            .entries
            .iter()
            .position(|entry| !entry.under_way && entry.deadline <= now)
        {
            let Some(entry) = self.entries.get_mut(place) else {
                break;
            };
            let last = entry.last.take();
            let verdict = match last {
                Some(refusal) if entry.tainted => Verdict::Unknown(refusal),
                last => Verdict::TimedOut(last),
            };
            self.remove(place, verdict, settled);
        }
        self.resume(settled);
    }

    /// Takes a batch out, and notes what its numbers mean to those behind it.
    fn remove(&mut self, place: usize, verdict: Verdict, settled: &mut Vec<Settled<B>>) {
        let Some(entry) = self.entries.remove(place) else {
            return;
        };
        if self.numbering == Numbering::Given
            && let Verdict::Refused(refusal) | Verdict::Unknown(refusal) = &verdict
        {
            self.halt.get_or_insert_default();
            self.broken.get_or_insert_with(|| refusal.clone());
        } else if let Some(stamp) = entry.stamp
            && !matches!(verdict, Verdict::Delivered { .. })
        {
            let halt = self.halt.get_or_insert_default();
            if matches!(verdict, Verdict::Unknown(_)) {
                halt.renew = true;
            } else if halt.hole.is_none_or(|(serial, _)| entry.serial < serial) {
                halt.hole = Some((entry.serial, stamp.sequence));
            }
        }
        settled.push(Settled {
            batch: entry.batch,
            verdict,
        });
    }

    /// Ends a halt once nothing is under way, and puts the numbers in order.
    fn resume(&mut self, settled: &mut Vec<Settled<B>>) {
        if self.under_way > 0 {
            return;
        }
        let Some(halt) = self.halt.take() else { return };
        if let Some(refusal) = &self.broken {
            for entry in std::mem::take(&mut self.entries) {
                let verdict = match entry.last {
                    Some(last) if entry.tainted => Verdict::Unknown(last),
                    _ => Verdict::Refused(refusal.clone()),
                };
                settled.push(Settled {
                    batch: entry.batch,
                    verdict,
                });
            }
            return;
        }
        let Numbering::By(identity) = self.numbering else {
            return;
        };
        let (hole_serial, hole_sequence) = halt.hole.unwrap_or((u64::MAX, 0));
        let stranded = self
            .entries
            .iter()
            .any(|entry| entry.tainted && entry.serial > hole_serial);
        if halt.renew || stranded {
            self.numbering = Numbering::Spent(identity);
            self.next_sequence = 0;
            self.renumbered = true;
            for entry in std::mem::take(&mut self.entries) {
                match &entry.last {
                    Some(refusal) if entry.tainted => {
                        let verdict = Verdict::Unknown(refusal.clone());
                        settled.push(Settled {
                            batch: entry.batch,
                            verdict,
                        });
                    }
                    _ => self.entries.push_back(Entry { stamp: None, ..entry }),
                }
            }
        } else if halt.hole.is_some() {
            self.next_sequence = hole_sequence;
            self.renumbered = true;
            for entry in self.entries.iter_mut().filter(|entry| entry.serial > hole_serial) {
                entry.stamp = None;
            }
        }
    }

    /// The identity that is spent, where the lane waits for another.
    pub(crate) const fn spent(&self) -> Option<Identity> {
        match self.numbering {
            Numbering::Spent(identity) => Some(identity),
            Numbering::Off | Numbering::By(_) | Numbering::Given => None,
        }
    }

    /// Goes on under a new identity. Nothing is under way while the lane waits for one.
    pub(crate) const fn adopt(&mut self, identity: Identity) {
        if let Numbering::Spent(_) = self.numbering {
            self.numbering = Numbering::By(identity);
            self.renumbered = true;
        }
    }

    /// Where the numbers have changed since the last call: those that the batch to be pushed next
    /// will be sent under, as far as can be told.
    pub(crate) fn take_renumbered(&mut self) -> Option<ProducerStamp> {
        let Numbering::By(identity) = self.numbering else {
            return None;
        };
        if !std::mem::take(&mut self.renumbered) {
            return None;
        }
        let unnumbered = self.entries.iter().filter(|entry| entry.stamp.is_none());
        let sequence = unnumbered.fold(self.next_sequence, |sequence, entry| {
            sequence_after(sequence, entry.records)
        });
        Some(identity.stamp(sequence))
    }

    /// When `expire` or `transmit` have something to do that they have not now.
    pub(crate) fn timer(&self, now: Instant) -> Option<Instant> {
        let mut waiting = self
            .entries
            .iter()
            .filter(|entry| !entry.under_way)
            .map(|entry| entry.deadline);
        let expiry = waiting.next().map(|first| waiting.fold(first, Instant::min))?;
        let sendable = self.halt.is_none() && self.spent().is_none();
        Some(
            self.not_before
                .filter(|at| sendable && *at > now)
                .map_or(expiry, |at| at.min(expiry)),
        )
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
