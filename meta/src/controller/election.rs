//! Who leads: whoever holds the leased key `/controller`.
//!
//! 1. If the key is there, watch it until it vanishes, and ping who holds it. An address that answered and
//!    then refuses connections has lost its process: the key is removed, without waiting for the lease, by
//!    a transaction that compares the leadership. Silence, or an address that never answered, proves
//!    nothing: candidates that cannot reach each other must not depose each other in turn.
//! 2. Take a lease and create the key under it, provided that it is absent.
//! 3. The revision at which it came to be names the leadership. Every transaction of a leader
//!    compares it, so whatever a deposed one still has on its way cannot land.
//!
//! A lease that ends says that a leader should be replaced, never that it has stopped.

use std::pin::pin;
use std::time::Duration;

use forebay_proto::stored::ControllerRecord;
use forebay_runtime::clock::timeout;
use futures_util::future::{Either, select};

use super::health::{PING_EVERY, PING_TIMEOUT, ProbeError};
use super::{Candidate, Stop};
use crate::failure::{MetaFailure, decode};
use crate::keys;
use crate::record::encode;
use crate::store::{Compare, Entry, LeaseKeeper, Op, Revision, Txn, TxnError, WatchError, WatchKind};

/// How long the key outlives a leader that is gone.
const TTL: Duration = Duration::from_secs(5);
/// Tries to create the key while the outcome stays unknown.
const TRIES_MAX: u32 = 8;
/// Pause after a failure: random between these, so that candidates spread.
const PAUSE_MS: (u64, u64) = (100, 1_000);
/// Failures in a row after which they are logged as warnings.
const FAILURES_QUIET: u32 = 3;

enum Outcome {
    Won(LeaseKeeper, Revision),
    /// Somebody leads, as of this revision.
    Taken(Entry, Revision),
    /// Nobody does any more.
    Vacant,
}

impl Candidate {
    /// Waits until this process leads.
    ///
    /// # Errors
    /// Only where waiting is of no use: the store went back, or was closed.
    pub(super) async fn campaign(&self) -> Result<(LeaseKeeper, Revision), Stop> {
        let mut failures = 0_u32;
        loop {
            let waited = match self.stand().await {
                Ok(Outcome::Won(keeper, election)) => return Ok((keeper, election)),
                Ok(Outcome::Taken(leader, revision)) => self.vacant(&leader, revision).await,
                Ok(Outcome::Vacant) => Ok(()),
                Err(failure) => Err(Stop::from(failure)),
            };
            match waited {
                Ok(()) => failures = 0,
                Err(stop) if stop.is_final() => return Err(stop),
                Err(stop) => {
                    failures = failures.saturating_add(1);
                    if failures > FAILURES_QUIET {
                        tracing::warn!(id = self.id, failures, %stop, "controller election failed");
                    } else {
                        tracing::debug!(id = self.id, failures, %stop, "controller election failed");
                    }
                    self.pause().await?;
                }
            }
        }
    }

    /// Waits before the next try. A closed store answers every call as unavailable; only a watch
    /// tells that it is over.
    async fn pause(&self) -> Result<(), Stop> {
        let (least, most) = PAUSE_MS;
        let pause = self
            .clock
            .sleep(Duration::from_millis(self.random.range(least, most)));
        let mut watch = self.store.watch(keys::CONTROLLER, Revision(0));
        let over = async {
            match watch.next().await {
                Some(Err(error)) => Stop::from(error),
                Some(Ok(_)) => std::future::pending().await,
                None => Stop::Closed,
            }
        };
        match select(pause, pin!(over)).await {
            Either::Right((stop, _)) if stop.is_final() => Err(stop),
            // What the watch has missed matters to nobody.
            Either::Right((_, pause)) => {
                pause.await;
                Ok(())
            }
            Either::Left(((), _)) => Ok(()),
        }
    }

    async fn stand(&self) -> Result<Outcome, MetaFailure> {
        let (entry, revision) = self.store.get(keys::CONTROLLER).await?;
        if let Some(leader) = entry {
            return Ok(Outcome::Taken(leader, revision));
        }
        let keeper = self.store.lease_grant(TTL).await?;
        let value = encode(&ControllerRecord { id: self.id.clone() });
        let txn = Txn::new()
            .when(Compare::absent(keys::CONTROLLER))
            .then(Op::put_leased(keys::CONTROLLER, value, keeper.id()))
            .otherwise(Op::get(keys::CONTROLLER));
        let mut tries = 1;
        loop {
            match self.store.txn(txn.clone()).await {
                Ok(reply) if reply.succeeded => return Ok(Outcome::Won(keeper, reply.revision)),
                Ok(reply) => {
                    let holder = reply.reads.into_iter().next().flatten();
                    return match holder {
                        // An earlier send landed.
                        Some(entry) if entry.lease == Some(keeper.id()) => {
                            Ok(Outcome::Won(keeper, entry.create_revision))
                        }
                        holder => {
                            keeper.revoke().await?;
                            Ok(holder
                                .map_or(Outcome::Vacant, |leader| Outcome::Taken(leader, reply.revision)))
                        }
                    };
                }
                Err(TxnError::Unknown(_)) if tries < TRIES_MAX => tries += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until the key vanishes, and sees to it where its holder's process is gone.
    async fn vacant(&self, leader: &Entry, since: Revision) -> Result<(), Stop> {
        let gone = pin!(self.lose(leader));
        match select(pin!(self.vanished(since)), gone).await {
            Either::Left((vanished, _)) => vanished,
            Either::Right((lost, _)) => {
                lost?;
                self.depose(leader).await
            }
        }
    }

    /// Waits until the key vanishes.
    async fn vanished(&self, since: Revision) -> Result<(), Stop> {
        let mut watch = self.store.watch(keys::CONTROLLER, since);
        loop {
            match watch.next().await {
                Some(Ok(batch)) => {
                    let gone = batch.events.iter().any(|event| {
                        event.key() == keys::CONTROLLER && matches!(event.kind, WatchKind::Delete { .. })
                    });
                    if gone {
                        return Ok(());
                    }
                }
                // Looks again.
                Some(Err(WatchError::Compacted { .. })) => return Ok(()),
                Some(Err(error)) => return Err(error.into()),
                None => return Err(Stop::Closed),
            }
        }
    }

    /// Waits until a leader that answered refuses connections.
    async fn lose(&self, leader: &Entry) -> Result<(), MetaFailure> {
        let record: ControllerRecord = decode(leader)?;
        let mut answered = false;
        loop {
            let ping = (self.probes.leader)(record.id.clone());
            match timeout(&*self.clock, PING_TIMEOUT, ping).await {
                Ok(Ok(())) => answered = true,
                Ok(Err(ProbeError::Refused)) if answered => {
                    tracing::info!(id = self.id, leader = record.id, "the leading controller is gone");
                    return Ok(());
                }
                Ok(Err(_)) | Err(_) => {}
            }
            self.clock.sleep(PING_EVERY).await;
        }
    }

    /// Ends a leadership, if it is still this one.
    async fn depose(&self, leader: &Entry) -> Result<(), Stop> {
        let still = Compare::CreateRevision(keys::CONTROLLER.to_owned(), leader.create_revision);
        let txn = Txn::new().when(still).then(Op::delete(keys::CONTROLLER));
        // Whether it is, or is not, or that is unknown: the key is looked at next.
        self.store.txn(txn).await.map_err(MetaFailure::from)?;
        Ok(())
    }
}
