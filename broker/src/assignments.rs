//! Follows the controller's wishes: takes what is wished here, gives up what no longer is.
//!
//! A wish is only a hint. What makes an owner is the grant in the partition's record, and what
//! keeps two from writing is the fence at the storage nodes.
//!
//! In a planned move the wish names the session that hands over. That broker seals the partition and
//! then takes its session out of the wish; the next owner waits for that before its grant, so that it
//! finds nothing to fence and nothing to carry. It does not wait longer than [`HANDOVER_MAX`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use forebay_meta::store::{Compare, Op, Revision, Txn, WatchKind, scan};
use forebay_meta::{keys, record};
use forebay_proto::stored::PlacementRecord;
use forebay_record::PartitionId;
use forebay_runtime::clock::Clock;
use forebay_runtime::random::Random;
use forebay_runtime::tasks::Tasks;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use crate::owners::Command;
use crate::store::{BATCH_MAX, Granted, Records};

/// Wishes that a cluster may have.
const WISHES_MAX: usize = 4_000_000;
/// Transactions under way at a time: grants, and as many that hand over.
const UNDER_WAY_MAX: usize = 4;
const RETRY: Duration = Duration::from_millis(200);
/// How long the next owner waits for the last one to hand over.
const HANDOVER_MAX: Duration = Duration::from_secs(5);

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
    /// To be handed over once they are not owned here any more.
    leaving: HashMap<PartitionId, Handover>,
    /// Of these, those that are free to go, and not before when.
    free: BTreeMap<PartitionId, Duration>,
    handing: HashSet<PartitionId>,
}

/// A wish that waits for this session.
#[derive(Debug, Clone, Copy)]
struct Handover {
    /// Who takes the partition.
    to: u32,
    /// When the wish was last put.
    revision: Revision,
}

type Grants = Vec<(PartitionId, Result<Option<Granted>, String>)>;
type Handed = (Vec<PartitionId>, bool);

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
            state.handing.clear();
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
                self.on_wish(id, Some((&entry.value, entry.mod_revision)), state)
                    .await;
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
        let mut handovers = FuturesUnordered::new();
        loop {
            while grants.len() < UNDER_WAY_MAX
                && let Some(grant) = self.next_grant(state)
            {
                grants.push(grant);
            }
            while handovers.len() < UNDER_WAY_MAX
                && let Some(handover) = self.next_handover(state)
            {
                handovers.push(handover);
            }
            let waits = state.wanted.len() > state.granting.len() || state.free.len() > state.handing.len();
            let pause = if waits { RETRY / 4 } else { RETRY * 50 };
            tokio::select! {
                batch = watch.next() => {
                    let Some(Ok(batch)) = batch else {
                        tracing::info!("watch of placement wishes begins anew");
                        return;
                    };
                    for event in batch.events {
                        let Some(id) = keys::partition_of(event.key()) else { continue };
                        match &event.kind {
                            WatchKind::Put(entry) => {
                                self.on_wish(id, Some((&entry.value, entry.mod_revision)), state).await;
                            }
                            WatchKind::Delete { .. } => self.on_wish(id, None, state).await,
                        }
                    }
                }
                Some(id) = self.released.recv() => {
                    self.on_released(id, state);
                    while let Ok(id) = self.released.try_recv() {
                        self.on_released(id, state);
                    }
                }
                Some(granted) = grants.next() => {
                    if !self.on_granted(granted, state).await {
                        return;
                    }
                }
                Some((ids, told)) = handovers.next() => self.on_handed_over(&ids, told, state),
                () = self.clock.sleep(pause) => {}
            }
        }
    }

    /// A batch of grants that are due, none where there are none.
    fn next_grant(&self, state: &mut State) -> Option<BoxFuture<'static, Grants>> {
        let now = self.clock.monotonic();
        let due: Vec<_> = state
            .wanted
            .iter()
            .filter(|(id, at)| **at <= now && !state.granting.contains(id))
            .map(|(id, _)| (*id, self.random.u64()))
            .take(BATCH_MAX)
            .collect();
        state.granting.extend(due.iter().map(|(id, _)| *id));
        let records = self.records.clone();
        (!due.is_empty()).then(|| -> BoxFuture<'static, Grants> {
            Box::pin(async move {
                let outcomes = records.grant(&due).await;
                due.into_iter().map(|(id, _)| id).zip(outcomes).collect()
            })
        })
    }

    /// False once nobody takes grants any more.
    async fn on_granted(&self, outcomes: Grants, state: &mut State) -> bool {
        let mut granted = Vec::with_capacity(outcomes.len());
        for (id, outcome) in outcomes {
            state.granting.remove(&id);
            match outcome {
                Ok(Some(one)) if state.wished.contains(&id) => {
                    state.wanted.remove(&id);
                    state.owned.insert(id);
                    granted.push(one);
                }
                Ok(_) => {
                    state.wanted.remove(&id);
                }
                Err(reason) => {
                    tracing::debug!(partition = %id, reason, "no grant yet");
                    if state.wished.contains(&id) {
                        state.wanted.insert(id, self.clock.monotonic() + RETRY);
                    }
                }
            }
            self.free_to_go(id, state);
        }
        granted.is_empty() || self.mailbox.send(Command::Granted(granted)).await.is_ok()
    }

    fn on_released(&self, id: PartitionId, state: &mut State) {
        state.owned.remove(&id);
        if state.wished.contains(&id) {
            state.wanted.insert(id, self.clock.monotonic() + RETRY);
        }
        self.free_to_go(id, state);
    }

    /// Lets a partition be handed over where nothing of it is left here.
    fn free_to_go(&self, id: PartitionId, state: &mut State) {
        if state.leaving.contains_key(&id) && !state.owned.contains(&id) && !state.granting.contains(&id) {
            state.free.insert(id, self.clock.monotonic());
        }
    }

    /// A batch of wishes from which this session is taken out, none where there are none.
    fn next_handover(&self, state: &mut State) -> Option<BoxFuture<'static, Handed>> {
        let now = self.clock.monotonic();
        let due: Vec<_> = state
            .free
            .iter()
            .filter(|(id, at)| **at <= now && !state.handing.contains(id))
            .filter_map(|(id, _)| Some((*id, *state.leaving.get(id)?)))
            .take(BATCH_MAX)
            .collect();
        state.handing.extend(due.iter().map(|(id, _)| *id));
        let store = Arc::clone(&self.records.store);
        (!due.is_empty()).then(|| -> BoxFuture<'static, Handed> {
            Box::pin(async move {
                let ids = due.iter().map(|(id, _)| *id).collect();
                let mut left = due;
                while !left.is_empty() {
                    let mut txn = Txn::new();
                    for (id, handover) in &left {
                        let value = record::encode(&PlacementRecord {
                            broker: handover.to,
                            from_session: 0,
                        });
                        txn = txn
                            .when(Compare::ModRevision(keys::wish(*id), handover.revision))
                            .then(Op::put(keys::wish(*id), value))
                            .otherwise(Op::get(keys::wish(*id)));
                    }
                    match store.txn(txn).await {
                        Ok(reply) if reply.succeeded => break,
                        // What the controller wishes by now comes by the watch.
                        Ok(reply) => {
                            let before = left.len();
                            let mut reads = reply.reads.into_iter();
                            left.retain(|(_, handover)| {
                                let found = reads.next().flatten();
                                found.is_some_and(|entry| entry.mod_revision == handover.revision)
                            });
                            if left.len() == before {
                                return (ids, false);
                            }
                        }
                        // One that landed after all is not as expected the next time, and left out.
                        Err(error) => {
                            tracing::warn!(partitions = left.len(), %error, "the next owners were not told");
                            return (ids, false);
                        }
                    }
                }
                (ids, true)
            })
        })
    }

    fn on_handed_over(&self, ids: &[PartitionId], told: bool, state: &mut State) {
        for id in ids {
            state.handing.remove(id);
            if told {
                state.free.remove(id);
                state.leaving.remove(id);
            } else if state.free.contains_key(id) {
                state.free.insert(*id, self.clock.monotonic() + RETRY);
            }
        }
    }

    async fn on_wish(&self, id: PartitionId, value: Option<(&[u8], Revision)>, state: &mut State) {
        let wish = match value {
            Some((value, revision)) => match record::decode::<PlacementRecord>(value) {
                Ok(wish) => Some((wish, revision)),
                Err(error) => {
                    tracing::error!(partition = %id, %error, "a placement wish is damaged");
                    return;
                }
            },
            None => None,
        };
        let mine = self.records.session.0;
        let here = wish.filter(|(wish, _)| wish.broker == self.records.me.0);
        let leaves = wish.filter(|(wish, _)| here.is_none() && wish.from_session == mine);
        state.free.remove(&id);
        state.leaving.remove(&id);
        if let Some((wish, revision)) = leaves {
            let to = wish.broker;
            state.leaving.insert(id, Handover { to, revision });
        }
        if let Some((wish, _)) = here {
            state.wished.insert(id);
            if !state.owned.contains(&id) {
                let wait = match wish.from_session {
                    0 => Duration::ZERO,
                    session if session == mine => Duration::ZERO,
                    _ => HANDOVER_MAX,
                };
                state.wanted.insert(id, self.clock.monotonic() + wait);
            }
        } else if state.wished.remove(&id) {
            state.wanted.remove(&id);
            // A closed mailbox owns nothing.
            let _ = self.mailbox.send(Command::Resign(id)).await;
        }
        self.free_to_go(id, state);
    }
}
