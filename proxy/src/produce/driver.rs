//! Drives the lanes: the one task that owns [`Dispatch`] and does what its actions say.
//!
//! It never waits for one broker while another has work: a message that a link does not take at
//! once is sent by a future of its own, and what follows for that broker queues behind it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::data::endpoint::FrontProtocol;
use forebay_proto::data::front::{FromBroker, ToBroker};
use forebay_proto::data::link::{LinkSender, TrySendError};
use forebay_proto::error::Failure;
use forebay_record::BrokerId;
use forebay_runtime::clock::Clock;
use forebay_runtime::random::Random;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::dispatch::{Action, Destination, Dispatch};
use super::lane::Entry;
use super::reply::Reply;
use crate::metrics::ProxyMetrics;
use crate::peer::{PeerEvent, PeerEventKind, Pool, Standing};
use crate::routes::{Routes, TopicRoute};

/// Batches that wait for the driver.
pub(crate) const INTAKE_MAX: usize = 1024;
/// Session events that wait for the driver.
pub(crate) const EVENTS_MAX: usize = 4096;
/// Taken from a mailbox at once.
const TAKEN_MAX: usize = 128;
const TICK: Duration = Duration::from_millis(5);
/// Every this many ticks deadlines are looked at.
const TICKS_PER_DEADLINES: u32 = 10;

/// A batch for the driver.
pub(crate) type Submitted = (Destination, Entry<Reply>);
pub(crate) type BrokerEvent = PeerEvent<FrontProtocol>;

/// What waits for a broker whose link is full.
struct Outbox {
    generation: u64,
    tx: LinkSender<ToBroker>,
    queue: VecDeque<ToBroker>,
    sending: bool,
}

pub(crate) struct Driver {
    pub intake: mpsc::Receiver<Submitted>,
    pub events: mpsc::Receiver<BrokerEvent>,
    pub pool: Pool<FrontProtocol>,
    pub routes: Routes,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub metrics: ProxyMetrics,
    pub token: CancellationToken,
}

type Located = (Arc<str>, Result<Arc<TopicRoute>, Failure>);

struct Work {
    dispatch: Dispatch<Reply>,
    outboxes: HashMap<BrokerId, Outbox>,
    locating: FuturesUnordered<BoxFuture<'static, Located>>,
    sending: FuturesUnordered<BoxFuture<'static, (BrokerId, u64)>>,
    actions: Vec<Action<Reply>>,
}

impl Driver {
    /// Runs until cancelled; then everything that waits is answered.
    pub(crate) async fn run(mut self) {
        let mut work = Work {
            dispatch: Dispatch::new(Arc::clone(&self.random)),
            outboxes: HashMap::new(),
            locating: FuturesUnordered::new(),
            sending: FuturesUnordered::new(),
            actions: Vec::new(),
        };
        let (mut batches, mut events) = (Vec::new(), Vec::new());
        let mut tick = self.clock.sleep(TICK);
        let mut ticks = 0_u32;
        // Cancel safety: every branch is a receive or a poll of a set that keeps what is not done.
        loop {
            tokio::select! {
                biased;
                () = self.token.cancelled() => break,
                received = self.events.recv_many(&mut events, TAKEN_MAX) => {
                    if received == 0 {
                        break;
                    }
                    let now = self.clock.monotonic();
                    for event in events.drain(..) {
                        work.on_event(now, event);
                    }
                }
                Some((topic, located)) = work.locating.next() => {
                    work.dispatch.on_located(self.clock.monotonic(), &topic, located);
                }
                Some((broker, generation)) = work.sending.next() => work.on_sent(broker, generation),
                received = self.intake.recv_many(&mut batches, TAKEN_MAX) => {
                    if received == 0 {
                        break;
                    }
                    let now = self.clock.monotonic();
                    for (to, entry) in batches.drain(..) {
                        work.dispatch.on_batch(now, to, entry);
                    }
                }
                () = &mut tick, if !work.dispatch.is_idle() => {
                    tick = self.clock.sleep(TICK);
                    ticks = ticks.wrapping_add(1);
                    work.dispatch.tick(self.clock.monotonic(), ticks.is_multiple_of(TICKS_PER_DEADLINES));
                }
            }
            self.act(&mut work);
        }
        work.dispatch.stop();
        self.act(&mut work);
    }

    fn act(&self, work: &mut Work) {
        loop {
            let mut actions = std::mem::take(&mut work.actions);
            work.dispatch.take_actions(&mut actions);
            if actions.is_empty() {
                work.actions = actions;
                break;
            }
            for action in actions.drain(..) {
                match action {
                    Action::Answer(reply, result) => reply.answer(result),
                    Action::Send {
                        broker,
                        generation,
                        produce,
                        trace,
                    } => {
                        let produce = ToBroker::Produce(produce);
                        let message = match trace {
                            Some(context) => ToBroker::Traced(Box::new((*context, produce))),
                            None => produce,
                        };
                        work.send(broker, generation, message);
                    }
                    Action::Goodbye { broker, generation } => {
                        work.send(broker, generation, ToBroker::Goodbye);
                    }
                    Action::Connect(broker, address) => {
                        if let Standing::Resting(reason) = self.pool.ensure(broker, &address) {
                            work.dispatch.on_down(self.clock.monotonic(), broker, 0, &reason);
                        } else if let Some(outbox) = work.outboxes.get(&broker) {
                            // The session came up before anyone had a batch for it.
                            let generation = outbox.generation;
                            work.dispatch.on_up(self.clock.monotonic(), broker, generation);
                        }
                    }
                    Action::Locate(topic) => {
                        let routes = self.routes.clone();
                        work.locating.push(Box::pin(async move {
                            let located = routes.refresh(&topic).await;
                            (topic, located)
                        }));
                    }
                }
            }
            work.actions = actions;
        }
        let retries = work.dispatch.take_retries();
        self.metrics.retried(retries.elsewhere, retries.in_place);
        let busy = work.dispatch.busy();
        self.metrics
            .lanes_busy
            .set(i64::try_from(busy).unwrap_or(i64::MAX));
    }
}

impl Work {
    fn on_event(&mut self, now: Duration, event: BrokerEvent) {
        let PeerEvent {
            peer: broker,
            generation,
            kind,
        } = event;
        match kind {
            PeerEventKind::Up(tx) => {
                let outbox = Outbox {
                    generation,
                    tx,
                    queue: VecDeque::new(),
                    sending: false,
                };
                self.outboxes.insert(broker, outbox);
                self.dispatch.on_up(now, broker, generation);
            }
            PeerEventKind::Message(FromBroker::Produced { request, result }) => {
                self.dispatch.on_answer(now, broker, request, result);
            }
            PeerEventKind::Message(FromBroker::Leaving) => {
                self.dispatch.on_leaving(now, broker, generation);
            }
            PeerEventKind::Message(other) => {
                tracing::warn!(%broker, message = ?other, "broker sent what was not asked for");
            }
            PeerEventKind::Down(reason) => {
                if self
                    .outboxes
                    .get(&broker)
                    .is_some_and(|outbox| outbox.generation == generation)
                {
                    self.outboxes.remove(&broker);
                }
                self.dispatch.on_down(now, broker, generation, &reason);
            }
        }
    }

    fn send(&mut self, broker: BrokerId, generation: u64, message: ToBroker) {
        // Without its session the message is dropped: the session's end is on its way here, and
        // counts the batch among those of unknown outcome.
        let Some(outbox) = self
            .outboxes
            .get_mut(&broker)
            .filter(|outbox| outbox.generation == generation)
        else {
            return;
        };
        if outbox.sending {
            outbox.queue.push_back(message);
            return;
        }
        match outbox.tx.try_send(message) {
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(message)) => {
                outbox.sending = true;
                let tx = outbox.tx.clone();
                self.sending.push(Box::pin(async move {
                    if let Err(closed) = tx.send(message).await {
                        tracing::debug!(%broker, %closed, "batch was not sent");
                    }
                    (broker, generation)
                }));
            }
        }
    }

    fn on_sent(&mut self, broker: BrokerId, generation: u64) {
        let Some(outbox) = self
            .outboxes
            .get_mut(&broker)
            .filter(|outbox| outbox.generation == generation)
        else {
            return;
        };
        outbox.sending = false;
        let waiting = std::mem::take(&mut outbox.queue);
        for message in waiting {
            self.send(broker, generation, message);
        }
    }
}
