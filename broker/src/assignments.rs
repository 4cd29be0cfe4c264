//! Follows the controller's wishes: takes what is wished here, gives up what no longer is.
//!
//! A wish is only a hint. What makes an owner is the grant in the partition's record, and what
//! keeps two from writing is the fence at the storage nodes.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use forebay_meta::store::{WatchKind, scan};
use forebay_meta::{keys, record};
use forebay_proto::stored::PlacementRecord;
use forebay_record::PartitionId;
use forebay_runtime::clock::Clock;
use forebay_runtime::random::Random;
use forebay_runtime::tasks::Tasks;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use crate::owners::Command;
use crate::store::Records;

/// Wishes that a cluster may have.
const WISHES_MAX: usize = 4_000_000;
/// Grants on their way at a time.
const GRANTS_MAX: usize = 64;
const RETRY: Duration = Duration::from_millis(200);

/// Follows wishes.
pub struct Assignments {
    /// Reads wishes, takes grants.
    pub records: Records,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Nonces.
    pub random: Arc<dyn Random>,
    /// Where it runs.
    pub tasks: Tasks,
    /// The owners' mailbox.
    pub mailbox: mpsc::Sender<Command>,
    /// Partitions that the owners' task has let go.
    pub released: mpsc::UnboundedReceiver<PartitionId>,
}

/// What is wished for here, and what is being done about it.
#[derive(Default)]
struct State {
    wished: HashSet<PartitionId>,
    owned: HashSet<PartitionId>,
    /// To be granted, and not before when (monotonic).
    wanted: BTreeMap<PartitionId, Duration>,
    granting: HashSet<PartitionId>,
}

impl Assignments {
    /// Runs until its group is cancelled.
    pub async fn run(mut self) {
        let token = self.tasks.token();
        let mut state = State::default();
        while !token.is_cancelled() {
            tokio::select! {
                biased;
                () = token.cancelled() => return,
                () = self.follow(&mut state) => {}
            }
            // A grant whose future was dropped above may still land: it is simply asked for again.
            state.granting.clear();
            state.wanted = state
                .wished
                .difference(&state.owned)
                .map(|id| (*id, Duration::ZERO))
                .collect();
            tokio::select! {
                () = token.cancelled() => return,
                () = self.clock.sleep(RETRY) => {}
            }
        }
    }

    /// One scan of the wishes and the watch after it; returns when either fails.
    async fn follow(&mut self, state: &mut State) {
        let (entries, revision) = match scan(self.records.store.as_ref(), keys::WISHES, WISHES_MAX).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "placement wishes cannot be listed");
                return;
            }
        };
        let mut listed = HashSet::new();
        for entry in &entries {
            if let Some(id) = keys::partition_of(&entry.key) {
                listed.insert(id);
                self.on_wish(id, Some(&entry.value), state).await;
            }
        }
        let gone: Vec<_> = state
            .wished
            .iter()
            .filter(|id| !listed.contains(id))
            .copied()
            .collect();
        for id in gone {
            self.on_wish(id, None, state).await;
        }
        let mut watch = self.records.store.watch(keys::WISHES, revision);
        let mut grants = FuturesUnordered::new();
        loop {
            let now = self.clock.monotonic();
            let due: Vec<_> = state
                .wanted
                .iter()
                .filter(|(id, at)| **at <= now && !state.granting.contains(id))
                .map(|(id, _)| *id)
                .take(GRANTS_MAX.saturating_sub(state.granting.len()))
                .collect();
            for id in due {
                state.granting.insert(id);
                let (records, nonce) = (self.records.clone(), self.random.u64());
                grants.push(async move { (id, records.grant(id, nonce).await) });
            }
            let pause = if state.wanted.len() > state.granting.len() {
                RETRY / 4
            } else {
                RETRY * 50
            };
            tokio::select! {
                batch = watch.next() => {
                    let Some(Ok(batch)) = batch else {
                        tracing::info!("watch of placement wishes begins anew");
                        return;
                    };
                    for event in batch.events {
                        let Some(id) = keys::partition_of(event.key()) else { continue };
                        match &event.kind {
                            WatchKind::Put(entry) => self.on_wish(id, Some(&entry.value), state).await,
                            WatchKind::Delete { .. } => self.on_wish(id, None, state).await,
                        }
                    }
                }
                Some(id) = self.released.recv() => {
                    state.owned.remove(&id);
                    if state.wished.contains(&id) {
                        state.wanted.insert(id, self.clock.monotonic() + RETRY);
                    }
                }
                Some((id, granted)) = grants.next() => {
                    state.granting.remove(&id);
                    match granted {
                        Ok(Some(granted)) if state.wished.contains(&id) => {
                            state.wanted.remove(&id);
                            state.owned.insert(id);
                            if self.mailbox.send(Command::Granted(Box::new(granted))).await.is_err() {
                                return;
                            }
                        }
                        Ok(_) => {
                            state.wanted.remove(&id);
                        }
                        Err(reason) => {
                            tracing::debug!(partition = %id, reason, "no grant yet");
                            state.wanted.insert(id, self.clock.monotonic() + RETRY);
                        }
                    }
                }
                () = self.clock.sleep(pause) => {}
            }
        }
    }

    async fn on_wish(&self, id: PartitionId, value: Option<&[u8]>, state: &mut State) {
        let here = match value.map(record::decode::<PlacementRecord>) {
            Some(Ok(wish)) => wish.broker == self.records.me.0,
            Some(Err(error)) => {
                tracing::error!(partition = %id, %error, "a placement wish is damaged");
                return;
            }
            None => false,
        };
        if here {
            state.wished.insert(id);
            if !state.owned.contains(&id) {
                state.wanted.entry(id).or_default();
            }
        } else if state.wished.remove(&id) {
            state.wanted.remove(&id);
            // A closed mailbox owns nothing.
            let _ = self.mailbox.send(Command::Resign(id)).await;
        }
    }
}
