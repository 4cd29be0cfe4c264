//! The reader's end of a watch.
//!
//! Pulled, never pushed: what is not asked for stays in the store's history (embedded) or in the
//! connection's flow-control window (etcd), so a slow reader costs bounded memory here.

use std::fmt;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::error::WatchError;
use super::types::WatchBatch;

/// Changes in order of revision. Dropping it ends the watch.
pub struct WatchStream {
    batches: BoxStream<'static, Result<WatchBatch, WatchError>>,
}

impl WatchStream {
    pub(super) fn new(
        batches: impl futures_util::Stream<Item = Result<WatchBatch, WatchError>> + Send + 'static,
    ) -> Self {
        Self {
            batches: batches.boxed(),
        }
    }

    /// The next batch. After an error there is nothing more.
    ///
    /// Cancel safety: progress is kept in the stream, so a dropped call loses nothing.
    pub async fn next(&mut self) -> Option<Result<WatchBatch, WatchError>> {
        self.batches.next().await
    }
}

impl fmt::Debug for WatchStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchStream").finish_non_exhaustive()
    }
}
