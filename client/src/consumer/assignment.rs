//! Where a consumer is in each of its partitions: what to ask for next, and what an answer means.
//!
//! No I/O and no clock. Each partition has two positions: `position` is the next offset to hand
//! out, `fetch_at` the next to ask for; between them lies what was fetched and not handed out. A
//! seek raises `version`, so that whatever was fetched before it is recognised and dropped.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_proto::v1::{ErrorCode, FetchRequest, PartitionFetch, PartitionFetched};
use forebay_record::Offset;
use forebay_record::batch::{Batches, Header};
use tokio::time::Instant;
use tracing::warn;

use super::ConsumeError;
use super::config::{ConsumerConfig, OnOutOfRange};
use crate::backoff::Backoff;
use crate::error::Refusal;

/// Answers of damaged bytes in a row before a consumer is told.
const CORRUPT_TRIES: u32 = 3;

/// One partition.
#[derive(Debug)]
pub(super) struct Assigned {
    pub topic: Arc<str>,
    pub partition: u32,
    pub position: Offset,
    pub high_watermark: Option<Offset>,
    /// Nothing at or after this is wanted.
    pub stop_at: Option<Offset>,
    fetch_at: Offset,
    version: u64,
    failing: Option<Failing>,
}

#[derive(Debug, Clone, Copy)]
struct Failing {
    since: Instant,
    failures: u32,
    not_before: Instant,
}

impl Assigned {
    /// Whether all that is wanted was handed out.
    pub(super) fn is_done(&self) -> bool {
        self.stop_at.is_some_and(|stop| self.position >= stop)
    }

    fn wants_more(&self) -> bool {
        self.stop_at.is_none_or(|stop| self.fetch_at < stop)
    }

    /// Goes elsewhere; what was fetched is void.
    pub(super) fn seek(&mut self, offset: Offset) {
        self.position = offset;
        self.fetch_at = offset;
        self.version += 1;
        self.failing = None;
    }

    /// Fetches again what was not handed out.
    pub(super) fn rewind(&mut self) {
        self.fetch_at = self.position;
        self.version += 1;
    }
}

/// Which partition, and which of its versions, something was fetched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    pub id: u64,
    version: u64,
    offset: Offset,
}

/// Something fetched, in the order it is to be handed out.
#[derive(Debug)]
pub(super) enum Item {
    Batch {
        ticket: Ticket,
        header: Box<Header>,
        bytes: Bytes,
    },
    Failed {
        ticket: Ticket,
        error: ConsumeError,
    },
}

/// All partitions of a consumer.
#[derive(Debug, Default)]
pub(super) struct Assignment {
    by_id: BTreeMap<u64, Assigned>,
    ids: HashMap<(Arc<str>, u32), u64>,
    next_id: u64,
    /// Where the next request begins, so that no partition always comes last.
    turn: u64,
}

impl Assignment {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Adds a partition, or seeks in it where it is there already.
    pub(super) fn put(&mut self, topic: &str, partition: u32, offset: Offset) {
        if let Some(assigned) = self.get_mut(topic, partition) {
            assigned.seek(offset);
            return;
        }
        let topic: Arc<str> = topic.into();
        self.next_id += 1;
        self.ids.insert((topic.clone(), partition), self.next_id);
        let assigned = Assigned {
            topic,
            partition,
            position: offset,
            high_watermark: None,
            stop_at: None,
            fetch_at: offset,
            version: 0,
            failing: None,
        };
        self.by_id.insert(self.next_id, assigned);
    }

    pub(super) fn remove(&mut self, topic: &str, partition: u32) -> bool {
        let id = self.ids.remove(&(topic.into(), partition));
        id.is_some_and(|id| self.by_id.remove(&id).is_some())
    }

    pub(super) fn get(&self, topic: &str, partition: u32) -> Option<&Assigned> {
        self.by_id.get(self.ids.get(&(topic.into(), partition))?)
    }

    pub(super) fn get_mut(&mut self, topic: &str, partition: u32) -> Option<&mut Assigned> {
        self.by_id.get_mut(self.ids.get(&(topic.into(), partition))?)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Assigned> {
        self.by_id.values()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Assigned> {
        self.by_id.values_mut()
    }

    /// The partition that something was fetched for, unless it was left or sought elsewhere since.
    pub(super) fn current(&mut self, ticket: Ticket) -> Option<&mut Assigned> {
        self.by_id
            .get_mut(&ticket.id)
            .filter(|assigned| assigned.version == ticket.version)
    }

    /// The next request, if there is something to ask for now.
    pub(super) fn next_request(
        &mut self,
        config: &ConsumerConfig,
        now: Instant,
    ) -> Option<(FetchRequest, Vec<Ticket>)> {
        let turn = self.turn;
        let in_turn = self.by_id.range(turn..).chain(self.by_id.range(..turn));
        let (mut partitions, mut tickets) = (Vec::new(), Vec::new());
        for (&id, assigned) in in_turn {
            let backing_off = assigned.failing.is_some_and(|failing| failing.not_before > now);
            if !assigned.wants_more() || backing_off {
                continue;
            }
            partitions.push(PartitionFetch {
                topic: assigned.topic.to_string(),
                partition: assigned.partition,
                offset: assigned.fetch_at.0,
                max_bytes: 0,
            });
            tickets.push(Ticket {
                id,
                version: assigned.version,
                offset: assigned.fetch_at,
            });
        }
        self.turn = tickets.first()?.id + 1;
        // Validated to be at most 64 MiB and an hour.
        let request = FetchRequest {
            partitions,
            min_bytes: config.min_bytes as u32,
            max_bytes: config.max_bytes as u32,
            max_wait_ms: config.max_wait.as_millis() as u32,
        };
        Some((request, tickets))
    }

    /// When a partition that failed may be asked again.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        let failing = self.by_id.values().filter(|assigned| assigned.wants_more());
        failing
            .filter_map(|assigned| assigned.failing.map(|failing| failing.not_before))
            .min()
    }

    /// Takes in one partition's answer.
    pub(super) fn on_fetched(
        &mut self,
        ticket: Ticket,
        fetched: PartitionFetched,
        config: &ConsumerConfig,
        now: Instant,
        random: u32,
        items: &mut impl Extend<Item>,
    ) {
        let Some(assigned) = self.current(ticket) else {
            return;
        };
        if let Some(error) = fetched.error {
            let there = (Offset(fetched.log_start), Offset(fetched.high_watermark));
            let failed = assigned.on_refused(error.into(), there, config, now, random);
            let version = assigned.version;
            items.extend(failed.map(|error| Item::Failed {
                ticket: Ticket { version, ..ticket },
                error,
            }));
            return;
        }
        assigned.failing = None;
        assigned.high_watermark = Some(Offset(fetched.high_watermark));
        if let Some(end) = fetched.skip_to.map(Offset).filter(|end| *end > assigned.fetch_at) {
            warn!(topic = %assigned.topic, partition = assigned.partition, from = %assigned.fetch_at, to = %end,
                "records are lost: an operator declared these offsets a gap, reading goes on behind it");
            // Answers are taken in only when all before them was handed out, so this voids nothing.
            return assigned.seek(end);
        }
        let asked = assigned.fetch_at;
        for cut in Batches::new(fetched.batches) {
            let (topic, partition, offset) = (assigned.topic.clone(), assigned.partition, assigned.fetch_at);
            match cut {
                Ok((header, _)) if header.end_offset() <= asked => {}
                // A batch below the one before it would be handed out twice.
                Ok((header, _)) if header.base_offset() < offset && offset > asked => {
                    let found = header.base_offset();
                    let error = ConsumeError::OutOfOrder {
                        topic,
                        partition,
                        offset,
                        found,
                    };
                    items.extend([Item::Failed { ticket, error }]);
                    return;
                }
                Ok((header, bytes)) => {
                    assigned.fetch_at = header.end_offset();
                    items.extend([Item::Batch {
                        ticket,
                        header: Box::new(header),
                        bytes,
                    }]);
                }
                Err(source) => {
                    let error = ConsumeError::Corrupt {
                        topic,
                        partition,
                        offset,
                        source,
                    };
                    items.extend([Item::Failed { ticket, error }]);
                    return;
                }
            }
        }
    }
}

impl Assigned {
    /// What a refusal means: an error to report, or none where it is tried again.
    fn on_refused(
        &mut self,
        refusal: Refusal,
        (log_start, high_watermark): (Offset, Offset),
        config: &ConsumerConfig,
        now: Instant,
        random: u32,
    ) -> Option<ConsumeError> {
        let (topic, partition) = (self.topic.clone(), self.partition);
        if refusal.code == ErrorCode::OffsetOutOfRange {
            let offset = self.fetch_at;
            let instead = match config.on_out_of_range {
                OnOutOfRange::Earliest => log_start,
                OnOutOfRange::Latest => high_watermark,
                OnOutOfRange::Fail => {
                    self.wait(now, random);
                    return Some(ConsumeError::OffsetOutOfRange {
                        topic,
                        partition,
                        offset,
                        log_start,
                        high_watermark,
                    });
                }
            };
            // Answers are taken in only when all before them was handed out, so this voids nothing.
            let failing = self.failing;
            self.seek(instead);
            if instead == offset {
                self.failing = failing;
                self.wait(now, random);
            }
            return None;
        }
        let since = self.wait(now, random);
        // Whoever answered has tried every copy: damage that is still there after a few times stays.
        let lasting = refusal.code == ErrorCode::CorruptLog
            && self
                .failing
                .is_some_and(|failing| failing.failures >= CORRUPT_TRIES);
        let repeatable = !lasting && (refusal.is_retriable() || refusal.is_unknown());
        if repeatable && now.duration_since(since) < config.retry_timeout {
            return None;
        }
        // Reported once; asking again begins anew.
        if let Some(failing) = &mut self.failing {
            failing.since = now;
        }
        Some(ConsumeError::Refused {
            topic,
            partition,
            refusal,
        })
    }

    /// Puts the next attempt off, and says since when they have failed.
    fn wait(&mut self, now: Instant, random: u32) -> Instant {
        let (since, failures) = match self.failing {
            Some(failing) => (failing.since, failing.failures.saturating_add(1)),
            None => (now, 1),
        };
        let delay: Duration = Backoff::DEFAULT.delay(failures, random);
        self.failing = Some(Failing {
            since,
            failures,
            not_before: now + delay,
        });
        since
    }
}

#[cfg(test)]
#[path = "assignment_tests.rs"]
mod tests;
