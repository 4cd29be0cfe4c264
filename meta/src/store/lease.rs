//! The holder's end of a lease.
//!
//! The keeper is the proof of life: while it exists the lease is renewed, once it is dropped the
//! lease runs out after its time to live. There are two ways to lose it. It counts as *lost* once it
//! was not proven alive for its time to live: it may have ended by now, and it may be alive where the
//! store is away, which ends no leases then. It has *ended* once the store said so. Either is final for
//! this keeper.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::error::LeaseError;
use super::types::LeaseId;

/// What a store does for its keepers.
#[async_trait]
pub(super) trait LeaseOwner: Send + Sync {
    async fn revoke(&self, lease: LeaseId) -> Result<(), LeaseError>;

    /// The keeper is gone without a revoke.
    fn released(&self, lease: LeaseId);
}

/// Keeps one lease alive for as long as it lives.
pub struct LeaseKeeper {
    id: LeaseId,
    ttl: Duration,
    lost: CancellationToken,
    ended: CancellationToken,
    owner: Arc<dyn LeaseOwner>,
    revoked: AtomicBool,
}

impl LeaseKeeper {
    pub(super) fn new(
        id: LeaseId,
        ttl: Duration,
        lost: CancellationToken,
        ended: CancellationToken,
        owner: Arc<dyn LeaseOwner>,
    ) -> Self {
        Self {
            id,
            ttl,
            lost,
            ended,
            owner,
            revoked: AtomicBool::new(false),
        }
    }

    /// The lease, for [`Op::put_leased`](super::Op::put_leased).
    #[must_use]
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// Time to live as the store granted it.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Completes once the lease has ended or could not be proven alive for its time to live.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Whether [`LeaseKeeper::lost`] is complete.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// A token that is cancelled when the lease has ended, for whoever cannot hold the keeper: the store
    /// said so, or is closed for good. A store that does not answer ends nothing.
    #[must_use]
    pub fn ended_token(&self) -> CancellationToken {
        // A child, so that cancelling it does not end the lease.
        self.ended.child_token()
    }

    /// Ends the lease now: its keys are gone when this returns.
    ///
    /// # Errors
    /// Where the store could not be asked; the lease then runs out by itself.
    pub async fn revoke(&self) -> Result<(), LeaseError> {
        let outcome = self.owner.revoke(self.id).await;
        if outcome.is_ok() {
            self.revoked.store(true, Ordering::Relaxed);
            self.lost.cancel();
            self.ended.cancel();
        }
        outcome
    }
}

impl Drop for LeaseKeeper {
    fn drop(&mut self) {
        if !self.revoked.load(Ordering::Relaxed) {
            self.owner.released(self.id);
        }
    }
}

impl fmt::Debug for LeaseKeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseKeeper")
            .field("id", &self.id)
            .field("ttl", &self.ttl)
            .field("lost", &self.is_lost())
            .finish_non_exhaustive()
    }
}
