//! What operators decide: takeovers that are not over, what is told of them and how they are ended by
//! force, and losses of sealed segments.
//!
//! Who forces one is answered when the partition is served again, or is gone from this broker. One
//! waits for each partition at most: a second one is refused by the state machine, which no longer
//! waits for what the first one has given up.

use std::collections::HashMap;

use forebay_proto::data::replica::{MissingRequest, ToNode};
use forebay_proto::error::Failure;
use forebay_proto::v1::ErrorCode;
use forebay_record::{NodeId, PartitionId};
use tokio::sync::oneshot;

use super::calls::Call;
use super::driver::Driver;
use super::message::{Declared, Forced, Taking};
use super::serve::not_owner;
use crate::partition::{Declaring, ForceRefused, ForcedEnd, Forcing, Lost, Owner};

/// Takeovers that are named.
const NAMED_MAX: usize = 32;
/// Takeovers that are younger are not named.
const NAMED_FROM_MS: u64 = 1_000;
/// A storage node that has not read a whole segment after this long counts as silent.
const MISSING_TIMEOUT_MS: u64 = 120_000;

/// Who waits for a partition whose segment was ended by force.
#[derive(Debug, Default)]
pub struct Forces {
    waiting: HashMap<PartitionId, (ForcedEnd, oneshot::Sender<Result<Forced, Failure>>)>,
    /// Who waits for a loss that is being declared.
    declaring: HashMap<PartitionId, (Lost, oneshot::Sender<Result<Declared, Failure>>)>,
}

impl Forces {
    /// The partition is served.
    pub fn served(&mut self, partition: PartitionId) {
        if let Some((end, reply)) = self.waiting.remove(&partition) {
            // Who asked may have given up.
            let _ = reply.send(Ok(Forced { end, done: true }));
        }
    }

    /// The partition is not owned here any more.
    pub fn released(&mut self, partition: PartitionId) {
        if let Some((_, reply)) = self.declaring.remove(&partition) {
            let what = format!("{partition} went to another broker while a loss was declared: look again");
            // As below.
            let _ = reply.send(Err(Failure::new(ErrorCode::OutcomeUnknown, what)));
        }
        if let Some((_, reply)) = self.waiting.remove(&partition) {
            let what = format!(
                "{partition} went to another broker while its segment was ended by force: look again"
            );
            // As above.
            let _ = reply.send(Err(Failure::new(ErrorCode::OutcomeUnknown, what)));
        }
    }
}

impl Driver {
    pub(super) fn on_force_seal(
        &mut self,
        partition: PartitionId,
        forcing: &Forcing,
        reply: oneshot::Sender<Result<Forced, Failure>>,
    ) {
        let mut forced = None;
        self.with_owner(partition, |owner, ctx| {
            forced = Some(owner.on_force_seal(forcing, ctx))
        });
        let answer = match forced {
            None => Err(not_owner(partition, self.settings.records.me)),
            Some(Err(refused)) => Err(failure_of(&refused)),
            Some(Ok(end)) if forcing.expected.is_none() => Ok(Forced { end, done: false }),
            Some(Ok(end)) => {
                self.forces.waiting.insert(partition, (end, reply));
                // It is served already where nothing had to be stored.
                let serves = |owner: &Owner| owner.is_serving();
                if self.owners.get(&partition).is_some_and(serves) {
                    self.forces.served(partition);
                }
                return;
            }
        };
        // Who asked may have given up.
        let _ = reply.send(answer);
    }

    /// What a replica cannot read of a segment is wanted.
    pub(super) fn on_find_missing(&mut self, partition: PartitionId, node: NodeId, missing: MissingRequest) {
        let deadline_ms = self.now_ms + MISSING_TIMEOUT_MS;
        let call = Call::Missing(partition, missing.segment);
        let request = self.calls.begin_until(node, call, deadline_ms);
        self.request(node, ToNode::Missing { request, missing });
    }

    pub(super) fn on_declare_lost(
        &mut self,
        partition: PartitionId,
        declaring: &Declaring,
        reply: oneshot::Sender<Result<Declared, Failure>>,
    ) {
        let mut declared = None;
        self.with_owner(partition, |owner, ctx| {
            declared = Some(owner.on_declare_lost(declaring, ctx))
        });
        let answer = match declared {
            None => Err(not_owner(partition, self.settings.records.me)),
            Some(Err(refused)) => Err(Failure::new(ErrorCode::InvalidRequest, refused.to_string())),
            Some(Ok(lost)) if declaring.expected.is_none() => Ok(Declared { lost, done: false }),
            Some(Ok(lost)) => {
                self.forces.declaring.insert(partition, (lost, reply));
                return self.tell_declared(partition);
            }
        };
        // Who asked may have given up.
        let _ = reply.send(answer);
    }

    /// Tells who waits that a loss is declared, once it is.
    pub(super) fn tell_declared(&mut self, partition: PartitionId) {
        let waits = |owner: &Owner| owner.is_declaring();
        if self.owners.get(&partition).is_some_and(waits) {
            return;
        }
        if let Some((lost, reply)) = self.forces.declaring.remove(&partition) {
            // As above.
            let _ = reply.send(Ok(Declared { lost, done: true }));
        }
    }

    /// Where the takeover of an owned partition is, none once it is over.
    pub(super) fn taking_of(&self, partition: PartitionId, owner: &Owner) -> Option<Taking> {
        let recovering = owner.recovering(&self.views)?;
        let now = self.settings.clock.monotonic();
        let since = self.taking.get(&partition).copied().unwrap_or(now);
        Some(Taking {
            partition,
            topic: owner.record().topic,
            number: owner.record().number,
            recovering,
            for_ms: u64::try_from(now.saturating_sub(since).as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Whether a partition has been taken over for so long that it is told.
    pub(super) fn takes_long(&self, partition: PartitionId) -> bool {
        let now = self.settings.clock.monotonic();
        let since = self.taking.get(&partition).copied().unwrap_or(now);
        now.saturating_sub(since).as_millis() >= u128::from(NAMED_FROM_MS)
    }

    /// The longest takeovers that are not over, the longest first.
    pub(super) fn longest_takeovers(&self) -> Vec<Taking> {
        let mut oldest: Vec<_> = self.taking.iter().map(|(id, since)| (*since, *id)).collect();
        oldest.sort_unstable();
        oldest
            .into_iter()
            .take(NAMED_MAX)
            .filter_map(|(_, id)| self.taking_of(id, self.owners.get(&id)?))
            .filter(|one| one.for_ms >= NAMED_FROM_MS)
            .collect()
    }
}

fn failure_of(refused: &ForceRefused) -> Failure {
    Failure::new(ErrorCode::InvalidRequest, refused.to_string())
}
