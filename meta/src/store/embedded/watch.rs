//! Watches on the embedded store: a position that walks along the state's history.
//!
//! Nothing is queued per watch. A reader that is slower than the history is long finds its
//! position forgotten and is told so.

use std::sync::Arc;

use tokio::sync::watch;

use super::state::Found;
use super::writer::Shared;
use crate::store::check;
use crate::store::error::{BadRequest, WatchError};
use crate::store::types::{Revision, WatchBatch};
use crate::store::watch::WatchStream;

struct Follower {
    shared: Arc<Shared>,
    changes: watch::Receiver<Revision>,
    prefix: String,
    after: Revision,
    refused: Option<BadRequest>,
    ended: bool,
}

pub(super) fn start(shared: Arc<Shared>, prefix: &str, after: Revision) -> WatchStream {
    let changes = shared.changes();
    let refused = check::key(prefix).err();
    let prefix = prefix.to_owned();
    let follower = Follower {
        shared,
        changes,
        prefix,
        after,
        refused,
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

impl Follower {
    async fn step(&mut self) -> Result<WatchBatch, WatchError> {
        if let Some(error) = self.refused.take() {
            return Err(error.into());
        }
        loop {
            // Marked as seen before looking, so that a change in between wakes again.
            self.changes.borrow_and_update();
            if self.shared.stopped().is_some() {
                return Err(WatchError::Closed);
            }
            match self.shared.state.read().events(&self.prefix, self.after) {
                Found::Compacted(at) => return Err(WatchError::Compacted { at }),
                Found::Events(events, revision) => {
                    self.after = revision;
                    if !events.is_empty() {
                        return Ok(WatchBatch { revision, events });
                    }
                }
            }
            if self.changes.changed().await.is_err() {
                return Err(WatchError::Closed);
            }
        }
    }
}
