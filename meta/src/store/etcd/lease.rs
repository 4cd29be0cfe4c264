//! Leases in etcd: granted, renewed three times per time to live, proven by answers.
//!
//! A renewal proves the lease alive until its time to live after it was *sent*. Once that moment
//! passes without another proof the lease counts as lost, whatever etcd may think: a holder who goes
//! by that stops no later than etcd lets others in, give or take the clocks' rates. Nothing that must
//! be safe may rest on that. Renewals go on until etcd says that the lease has ended: an etcd without
//! a quorum ends none, and one that has a leader again gives each its time to live anew.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::Error as EtcdError;
use forebay_runtime::tasks::Tasks;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::convert;
use super::peers::{Failure, Peers, Resend};
use crate::store::check;
use crate::store::error::{LeaseError, Unavailable};
use crate::store::lease::{LeaseKeeper, LeaseOwner};
use crate::store::types::LeaseId;

/// Wait after a renewal that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// The same once the lease counts as lost.
const LOST_PAUSE: Duration = Duration::from_secs(1);

struct Owner {
    peers: Arc<Peers>,
    /// Ends the renewals.
    stop: CancellationToken,
}

#[async_trait]
impl LeaseOwner for Owner {
    async fn revoke(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.stop.cancel();
        revoke(&self.peers, lease).await
    }

    fn released(&self, _lease: LeaseId) {
        self.stop.cancel();
    }
}

pub(super) async fn grant(
    peers: &Arc<Peers>,
    tasks: &Tasks,
    ttl: Duration,
) -> Result<LeaseKeeper, LeaseError> {
    check::ttl(ttl)?;
    let whole_seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    let seconds = i64::try_from(whole_seconds).unwrap_or(i64::MAX);
    let ticket = peers.ticket()?;
    let sent_at = Instant::now();
    // A grant whose answer was lost leaves a lease that nobody renews: not worth a second one.
    let response = peers
        .call(Resend::IfUnsent, |mut peer| async move {
            peer.lease.grant(seconds, None).await
        })
        .await
        .map_err(Failure::of_lease)?;
    peers
        .admit(ticket, response.header())
        .map_err(Failure::of_lease)?;
    let granted = u64::try_from(response.ttl()).ok().filter(|seconds| *seconds > 0);
    let (Some(id), Some(granted)) = (convert::lease(response.id()), granted) else {
        let (id, ttl) = (response.id(), response.ttl());
        return Err(Unavailable(format!("etcd granted lease {id:x} for {ttl} s")).into());
    };
    let ttl = Duration::from_secs(granted);
    let (lost, ended, stop) = (
        CancellationToken::new(),
        CancellationToken::new(),
        CancellationToken::new(),
    );
    let renewal = Renewal {
        peers: Arc::clone(peers),
        id,
        ttl,
        proven_until: sent_at + ttl,
        lost: lost.clone(),
        ended: ended.clone(),
        stop: stop.clone(),
        tasks: tasks.token(),
    };
    tasks.spawn(format!("lease-{id}"), renewal.run());
    Ok(LeaseKeeper::new(
        id,
        ttl,
        lost,
        ended,
        Arc::new(Owner {
            peers: Arc::clone(peers),
            stop,
        }),
    ))
}

pub(super) async fn revoke(peers: &Peers, lease: LeaseId) -> Result<(), LeaseError> {
    let ticket = peers.ticket()?;
    let id = convert::signed_lease(lease);
    let revoked = peers
        .call(
            Resend::Always,
            |mut peer| async move { peer.lease.revoke(id).await },
        )
        .await;
    match revoked {
        Ok(response) => {
            peers
                .admit(ticket, response.header())
                .map_err(Failure::of_lease)?;
            Ok(())
        }
        Err(Failure::LeaseNotFound) => Ok(()),
        Err(failure) => Err(failure.of_lease()),
    }
}

struct Renewal {
    peers: Arc<Peers>,
    id: LeaseId,
    ttl: Duration,
    proven_until: Instant,
    lost: CancellationToken,
    ended: CancellationToken,
    /// The keeper is gone.
    stop: CancellationToken,
    /// The store is closed.
    tasks: CancellationToken,
}

impl Renewal {
    async fn run(mut self) {
        let mut pause = self.ttl / 3;
        loop {
            let mut wake = Instant::now() + pause;
            if !self.lost.is_cancelled() {
                wake = wake.min(self.proven_until);
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = self.tasks.cancelled() => break,
                () = self.peers.stopped().cancelled() => break,
                () = tokio::time::sleep_until(wake) => {}
            }
            if Instant::now() >= self.proven_until && !self.lost.is_cancelled() {
                tracing::warn!(lease = %self.id, ttl = ?self.ttl, "lease not renewed in time");
                self.lost.cancel();
            }
            let renewed = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                renewed = self.renew() => renewed,
            };
            match renewed {
                Ok(Some(proven_until)) => {
                    if Instant::now() >= self.proven_until {
                        tracing::info!(lease = %self.id, "lease is renewed again");
                    }
                    self.proven_until = proven_until;
                    pause = self.ttl / 3;
                }
                Ok(None) => {
                    tracing::warn!(lease = %self.id, "lease has ended in etcd");
                    break;
                }
                Err(error) => {
                    tracing::debug!(lease = %self.id, error, "lease renewal failed");
                    pause = self.retry_pause();
                }
            }
        }
        self.lost.cancel();
        self.ended.cancel();
    }

    fn retry_pause(&self) -> Duration {
        if self.lost.is_cancelled() {
            LOST_PAUSE
        } else {
            RETRY_PAUSE
        }
    }

    /// Until when the lease is proven alive; none where it has ended.
    async fn renew(&self) -> Result<Option<Instant>, String> {
        let sent_at = Instant::now();
        let (at, endpoint, mut peer) = self.peers.current();
        let mut limit = sent_at + self.peers.call_timeout();
        if !self.lost.is_cancelled() {
            limit = limit.min(self.proven_until);
        }
        let renewal = peer.lease.keep_alive(convert::signed_lease(self.id));
        match tokio::time::timeout_at(limit, renewal).await {
            Ok(Ok(_)) => Ok(Some(sent_at + self.ttl)),
            // The library's word for an answer with a time to live of zero.
            Ok(Err(EtcdError::LeaseKeepAliveError(what))) if what == "lease not found" => Ok(None),
            Ok(Err(error)) => {
                self.peers.leave(at);
                Err(format!("{endpoint}: {error}"))
            }
            Err(_) => {
                self.peers.leave(at);
                Err(format!("{endpoint}: no answer"))
            }
        }
    }
}
