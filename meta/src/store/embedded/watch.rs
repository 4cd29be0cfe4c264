//! Watches on a state that is at hand: a position that walks along its history.
//!
//! Nothing is queued per watch. A reader that is slower than the history is long finds its
//! position forgotten and is told so.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::state::Found;
use super::writer::Shared;
use crate::store::check;
use crate::store::error::{BadRequest, WatchError};
use crate::store::types::{Revision, WatchBatch};
use crate::store::watch::WatchStream;

/// Whose history it is.
#[async_trait]
pub(in crate::store) trait Source: Send + Sync + 'static {
    /// Lets the reader look, once it may; `now` is the newest revision and `after` the last one seen.
    async fn admit(&self, now: Revision, after: Revision) -> Result<(), WatchError>;

    /// What happened to a prefix after a revision.
    fn events(&self, prefix: &str, after: Revision) -> Found;

    /// Completes once nothing more will be told, where that does not end the changes anyway.
    async fn closed(&self);
}

#[async_trait]
impl Source for Arc<Shared> {
    async fn admit(&self, _now: Revision, _after: Revision) -> Result<(), WatchError> {
        match self.stopped() {
            Some(_) => Err(WatchError::Closed),
            None => Ok(()),
        }
    }

    fn events(&self, prefix: &str, after: Revision) -> Found {
        self.state.read().events(prefix, after)
    }

    async fn closed(&self) {
        std::future::pending().await
    }
}

struct Follower<S> {
    source: S,
    changes: watch::Receiver<Revision>,
    prefix: String,
    after: Revision,
    refused: Option<BadRequest>,
    ended: bool,
}

/// What happens to a prefix after a revision; `changes` has the newest one.
pub(in crate::store) fn start(
    source: impl Source,
    changes: watch::Receiver<Revision>,
    prefix: &str,
    after: Revision,
) -> WatchStream {
    let follower = Follower {
        source,
        changes,
        prefix: prefix.to_owned(),
        after,
        refused: check::key(prefix).err(),
        ended: false,
    };
    WatchStream::new(futures_util::stream::unfold(
        follower,
        |mut follower| async move {
            if follower.ended {
                return None;
            }
            let step = follower.step().await;
            follower.ended = step.is_err();
            Some((step, follower))
        },
    ))
}

impl<S: Source> Follower<S> {
    async fn step(&mut self) -> Result<WatchBatch, WatchError> {
        if let Some(error) = self.refused.take() {
            return Err(error.into());
        }
        loop {
            // Marked as seen before looking, so that a change in between wakes again.
            let now = *self.changes.borrow_and_update();
            self.source.admit(now, self.after).await?;
            match self.source.events(&self.prefix, self.after) {
                Found::Compacted(at) => return Err(WatchError::Compacted { at }),
                Found::Events(events, revision) => {
                    self.after = revision;
                    if !events.is_empty() {
                        return Ok(WatchBatch { revision, events });
                    }
                }
            }
            tokio::select! {
                biased;
                changed = self.changes.changed() => changed.map_err(|_| WatchError::Closed)?,
                () = self.source.closed() => return Err(WatchError::Closed),
            }
        }
    }
}
