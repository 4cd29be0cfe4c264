//! Answers to fetches from what owners keep in memory.

use bytes::Bytes;
use forebay_proto::data::front::{Fetch, Fetched, FromBroker};
use forebay_proto::error::Failure;
use forebay_proto::v1::ErrorCode;
use forebay_record::{BrokerId, Epoch, Offset, PartitionId};
use forebay_runtime::trace::Span;
use tokio::sync::OwnedSemaphorePermit;

use super::driver::Driver;
use super::fetches::Waiting;
use super::message::Outbox;
use crate::metrics::Request;
use crate::partition::{Found, Owner};

impl Driver {
    pub(super) fn on_fetch(
        &mut self,
        fetch: Fetch,
        outbox: Outbox,
        permit: OwnedSemaphorePermit,
        span: Span,
    ) {
        let deadline_ms = self.now_ms + u64::from(fetch.max_wait_ms);
        self.settings.metrics.request(Request::Fetch);
        if fetch.max_wait_ms == 0 || self.is_enough(&fetch) {
            return self.serve(&fetch, &outbox, span);
        }
        self.fetches.add(Waiting {
            fetch,
            outbox,
            deadline_ms,
            _permit: permit,
            span,
        });
    }

    pub(super) fn try_fetch(&mut self, key: u64, overdue: bool) {
        let ready = overdue
            || self
                .fetches
                .get(key)
                .is_some_and(|waiting| self.is_enough(&waiting.fetch));
        if ready && let Some(waiting) = self.fetches.take(key) {
            self.serve(&waiting.fetch, &waiting.outbox, waiting.span);
        }
    }

    /// True where a fetch has its minimum, or something to say that waiting does not change.
    fn is_enough(&self, fetch: &Fetch) -> bool {
        let min = fetch.min_bytes as usize;
        let mut bytes = 0;
        for one in &fetch.partitions {
            let Some(owner) = self.owners.get(&one.partition) else {
                return true;
            };
            let Some(visible) = owner.high_watermark() else {
                if self.readable(one.partition, one.epoch, one.offset).is_ok() {
                    return true;
                }
                continue;
            };
            let (start, end) = (owner.record().log_start, owner.tail());
            if one.offset < start
                || one.offset > end
                || (one.epoch != Epoch(0) && one.epoch != owner.record().epoch)
            {
                return true;
            }
            if one.offset < visible && matches!(owner.cache().read(one.offset, visible, 1), Found::Older) {
                return true;
            }
            bytes += owner
                .cache()
                .available(one.offset, visible, min.saturating_sub(bytes));
            if bytes >= min {
                return true;
            }
        }
        min == 0
    }

    fn serve(&mut self, fetch: &Fetch, outbox: &Outbox, mut span: Span) {
        let mut left = fetch.max_bytes as usize;
        let mut first = true;
        let mut partitions = Vec::with_capacity(fetch.partitions.len());
        for one in &fetch.partitions {
            let allowed = if first { left.max(1) } else { left }.min(match one.max_bytes {
                0 => usize::MAX,
                max => max as usize,
            });
            let fetched = self.fetch_one(one.partition, one.epoch, one.offset, allowed);
            if let Ok(fetched) = &fetched {
                let bytes = fetched.batches.iter().map(Bytes::len).sum::<usize>();
                first &= bytes == 0;
                left = left.saturating_sub(bytes);
                self.settings.metrics.fetched_bytes.inc_by(bytes as u64);
                self.flows.add(one.partition, bytes);
            }
            if let Err(failure) = &fetched {
                self.settings.metrics.failure(Request::Fetch, failure.code);
            }
            partitions.push(fetched);
        }
        if span.is_some() {
            let served = (fetch.max_bytes as usize).saturating_sub(left);
            span.set_number("forebay.broker", self.settings.records.me.0.into());
            span.set_number("messaging.message.body.size", served as u64);
        }
        outbox.send(FromBroker::Fetched {
            request: fetch.request,
            partitions,
        });
    }

    fn fetch_one(
        &self,
        id: PartitionId,
        epoch: Epoch,
        offset: Offset,
        max: usize,
    ) -> Result<Fetched, Failure> {
        let (owner, high_watermark) = self.readable(id, epoch, offset)?;
        let log_start = owner.record().log_start;
        if offset < log_start || offset > owner.tail() {
            let message = format!(
                "offset {offset} of {id} is out of range: it holds {log_start} up to {high_watermark}"
            );
            return Err(Failure::new(ErrorCode::OffsetOutOfRange, message));
        }
        let mut fetched = Fetched {
            high_watermark,
            log_start,
            batches: Vec::new(),
            behind: false,
        };
        if owner.high_watermark().is_none() {
            fetched.behind = max > 0;
        } else if max > 0 {
            match owner.cache().read(offset, high_watermark, max) {
                Found::Batches(chunks, _) => fetched.batches = chunks,
                Found::Older => fetched.behind = true,
                Found::Nothing => {}
            }
        }
        Ok(fetched)
    }

    /// The owner of a partition from which an offset may be read, and the end of what may. Where a takeover
    /// waits for long, what was sealed before it is read meanwhile: that is committed, whatever becomes of
    /// the open segment.
    pub(super) fn readable(
        &self,
        id: PartitionId,
        epoch: Epoch,
        offset: Offset,
    ) -> Result<(&Owner, Offset), Failure> {
        let failure = match self.serving(id, epoch) {
            Ok(owner) => return Ok((owner, owner.high_watermark().unwrap_or_default())),
            Err(failure) => failure,
        };
        let waits = self
            .owners
            .get(&id)
            .filter(|owner| offset < owner.settled() && self.takes_long(id));
        match waits {
            Some(owner) if failure.code == ErrorCode::Unavailable => Ok((owner, owner.settled())),
            _ => Err(failure),
        }
    }

    /// The owner of a partition that serves reads, under the epoch that a request names.
    pub(super) fn serving(&self, id: PartitionId, epoch: Epoch) -> Result<&Owner, Failure> {
        let me = self.settings.records.me;
        let owner = self.owners.get(&id).ok_or_else(|| not_owner(id, me))?;
        let current = owner.record().epoch;
        if epoch != Epoch(0) && epoch != current {
            let code = if epoch < current {
                ErrorCode::StaleEpoch
            } else {
                ErrorCode::UnknownEpoch
            };
            return Err(Failure::new(
                code,
                format!("{id} is at {current}, the request names {epoch}"),
            ));
        }
        if owner.high_watermark().is_none() {
            let recovering = owner.recovering(&self.views);
            let waits = recovering.map_or_else(String::new, |one| format!(", waits for {}", one.waits_for));
            return Err(Failure::new(
                ErrorCode::Unavailable,
                format!("{id} is being taken over by {me}{waits}"),
            ));
        }
        Ok(owner)
    }
}

pub(super) fn not_owner(partition: PartitionId, me: BrokerId) -> Failure {
    Failure::new(ErrorCode::NotOwner, format!("{me} does not own {partition}"))
}
