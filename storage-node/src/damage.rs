//! Frames that were durable and are not what they were any more: whoever meets one brings it here.
//!
//! The frame's entry leaves the index at once, so that its segment is in limbo and nobody meets the
//! frame again; it is logged and counted that one time. What is found waits here until the journal
//! thread marks it durably. Bounded by the frames held, since each is found once.

use forebay_record::SegmentId;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Notify;

use crate::index::{Entry, Index};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Damages {
    found: Mutex<Vec<(SegmentId, Entry)>>,
    arrived: Notify,
    frames: Counter,
}

/// Where in the journal something is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Spot {
    pub file: String,
    pub at: u64,
}

impl Damages {
    /// Counts frames by this.
    pub(crate) fn new(frames: Counter) -> Self {
        Self {
            frames,
            ..Self::default()
        }
    }

    /// A frame is damaged; nothing where that is known, or the frame is not held any more.
    pub(crate) fn found(&self, index: &Index, segment: SegmentId, bad: &Entry, spot: &Spot) {
        if !index.damage(segment, bad) {
            return;
        }
        tracing::warn!(%segment, number = bad.number, first = %bad.first, end = %bad.end, file = spot.file,
            at = spot.at, bytes = bad.frame_len(),
            "a stored frame is damaged: its segment is in limbo here until a peer's copy heals it");
        self.frames.inc();
        self.found.lock().push((segment, *bad));
        self.arrived.notify_one();
    }

    /// Waits until something was found.
    ///
    /// Cancel safety: only waits; a call that is missed wakes the next.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// What was found since the last time.
    pub(crate) fn take(&self) -> Vec<(SegmentId, Entry)> {
        std::mem::take(&mut *self.found.lock())
    }
}
