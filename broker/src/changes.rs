//! Changes of records on their way to the metadata store.
//!
//! Nothing waits for a timer: while few transactions are under way a change leaves at once, and those
//! that come meanwhile leave together with the next one. A partition has at most one change on its
//! way, so there are never more of them than partitions owned.

use std::collections::VecDeque;
use std::sync::Arc;

use forebay_record::PartitionId;
use forebay_runtime::clock::Clock;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::owners::Command;
use crate::store::{BATCH_MAX, Change, Records};

/// Transactions under way. More than one, so that a change whose outcome takes long to be known does
/// not hold up those of other partitions.
const UNDER_WAY_MAX: usize = 4;

/// Sends changes and tells the owners' task their outcomes.
pub struct Changes {
    /// Stores them.
    pub records: Records,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Changes that were asked for.
    pub waiting: mpsc::UnboundedReceiver<(PartitionId, Change)>,
    /// The owners' mailbox.
    pub mailbox: mpsc::Sender<Command>,
}

impl Changes {
    /// Runs until stopped, or until nobody asks for changes any more and all outcomes are told.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut queue = VecDeque::new();
        let mut under_way = FuturesUnordered::new();
        let mut open = true;
        while open || !queue.is_empty() || !under_way.is_empty() {
            // Cancel safety: a receive and a poll of a set that keeps what is not done.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(outcomes) = under_way.next() => {
                    for (partition, stored) in outcomes {
                        // A closed mailbox means that nobody owns anything here any more.
                        let _ = self.mailbox.send(Command::Stored(partition, stored)).await;
                    }
                }
                change = self.waiting.recv(), if open => match change {
                    Some(change) => queue.push_back(change),
                    None => open = false,
                },
            }
            while let Ok(change) = self.waiting.try_recv() {
                queue.push_back(change);
            }
            while under_way.len() < UNDER_WAY_MAX && !queue.is_empty() {
                let together: (Vec<_>, Vec<_>) = queue.drain(..queue.len().min(BATCH_MAX)).unzip();
                let (records, clock) = (self.records.clone(), Arc::clone(&self.clock));
                under_way.push(async move {
                    let (partitions, changes) = together;
                    let outcomes = records.change(&changes, clock.as_ref()).await;
                    partitions.into_iter().zip(outcomes).collect::<Vec<_>>()
                });
            }
        }
    }
}
