//! The task that owns what is under way: it takes sealed batches, sends them, and settles them.
//!
//! Why one task and a lock per partition: a record costs its caller one uncontended lock and one
//! copy, and no message, task or allocation; checksum and compression run on the callers' threads.
//! This task sees batches only. It owns the lanes, the stream and the timers without a lock, so
//! answers and retries of a partition have one order. It ends when the producer is dropped; every
//! batch that it then holds settles itself.
//!
//! Bounds: memory of batches by the producer's permits, batches under way by each lane's window,
//! requests waiting for the connection by the stream's queue.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::v1::data_client::DataClient;
use forebay_proto::v1::{ErrorCode, InitProducerRequest, ProduceResponse};
use forebay_record::Offset;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::Identity;
use super::accumulate::Sealed;
use super::config::Acks;
use super::lane::{Lane, Settled, Verdict};
use super::renumber::renumber;
use super::shared::{Inbox, Numbers, Partition, Shared};
use super::wire::{Event, Part, Stream, encode};
use crate::backoff::Spread;
use crate::error::Refusal;
use crate::link::{Link, Repeat};

/// A request is full with this much: small batches of several partitions share one.
const REQUEST_BYTES_FULL: usize = 256 << 10;
const REQUEST_PARTS_MAX: usize = 256;
/// Events handled before the timers and the inbox are looked at again.
const EVENTS_AT_ONCE_MAX: usize = 64;
/// Batches that are numbered by others are tried as long as there is a producer.
const WITHOUT_END: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// What a server may be late with an answer before its connection is given up.
const ANSWER_GRACE: Duration = Duration::from_secs(5);

struct Slot {
    partition: Arc<Partition>,
    lane: Lane<Sealed>,
    /// Whether it is in `ready`.
    ready: bool,
    timer: Option<Instant>,
}

struct UnderWay {
    /// Lane and serial, in the order of the request's partitions.
    parts: Vec<(usize, u64)>,
    give_up: Instant,
}

pub(crate) struct Sender {
    shared: Arc<Shared>,
    link: Arc<Link>,
    stream: Stream,
    slots: Vec<Slot>,
    /// Lanes that may have something to send.
    ready: VecDeque<usize>,
    /// Open batches that become due.
    due: BTreeSet<(Instant, usize)>,
    /// Lanes that have something to retry or to give up.
    timers: BTreeSet<(Instant, usize)>,
    /// By request id, and so by age.
    under_way: BTreeMap<u64, UnderWay>,
    next_request: u64,
    inbox: Inbox,
    settled: Vec<Settled<Sealed>>,
    /// Lanes that wait for a new identity, and the request for one.
    spent: BTreeSet<usize>,
    renewal: Option<BoxFuture<'static, Result<Identity, Refusal>>>,
    renew_at: Option<Instant>,
    reconnect_at: Option<Instant>,
    failures: u32,
    spread: Spread,
}

/// What woke the task.
enum Woken {
    Stream(Event),
    Renewed(Result<Identity, Refusal>),
    Look,
}

impl Sender {
    pub(crate) fn new(shared: Arc<Shared>, link: Arc<Link>) -> Self {
        Self {
            stream: Stream::new(link.clone()),
            shared,
            link,
            slots: Vec::new(),
            ready: VecDeque::new(),
            due: BTreeSet::new(),
            timers: BTreeSet::new(),
            under_way: BTreeMap::new(),
            next_request: 1,
            inbox: Inbox::default(),
            settled: Vec::new(),
            spent: BTreeSet::new(),
            renewal: None,
            renew_at: None,
            reconnect_at: None,
            failures: 0,
            spread: Spread::seeded(),
        }
    }

    /// Runs until it is dropped. All waiting is here.
    pub(crate) async fn run(mut self) {
        loop {
            let now = Instant::now();
            self.on_inbox(now);
            self.on_timers(now);
            self.pump(now);
            let wake_at = self.wake_at();
            let woken = tokio::select! {
                biased;
                event = self.stream.event() => Woken::Stream(event),
                identity = async { match &mut self.renewal {
                    Some(renewal) => renewal.await,
                    None => std::future::pending().await,
                } } => Woken::Renewed(identity),
                () = self.shared.wake.notified() => Woken::Look,
                () = async { match wake_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                } } => Woken::Look,
            };
            let now = Instant::now();
            match woken {
                Woken::Stream(event) => {
                    self.on_event(event, now);
                    for _ in 1..EVENTS_AT_ONCE_MAX {
                        let Some(event) = self.stream.event().now_or_never() else {
                            break;
                        };
                        self.on_event(event, now);
                    }
                }
                Woken::Renewed(renewed) => self.on_renewed(renewed, now),
                Woken::Look => {}
            }
        }
    }

    /// Takes in new partitions, batches that were sealed, and batches that were opened.
    fn on_inbox(&mut self, now: Instant) {
        let mut inbox = std::mem::take(&mut self.inbox);
        self.shared.take_inbox(&mut inbox);
        let config = &self.shared.config;
        for partition in inbox.partitions.drain(..) {
            let lane = match partition.numbers {
                Numbers::Own(identity) => Lane::new(config.max_in_flight, config.backoff(), identity),
                Numbers::Given => Lane::given(config.max_in_flight, config.backoff()),
            };
            self.slots.push(Slot {
                partition,
                lane,
                ready: false,
                timer: None,
            });
        }
        self.due.extend(inbox.timers.drain(..));
        for lane in inbox.ready.drain(..) {
            self.enlist(lane, now);
        }
        self.inbox = inbox;
    }

    fn on_timers(&mut self, now: Instant) {
        while let Some((at, lane)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, lane));
            let Some(slot) = self.slots.get(lane) else {
                continue;
            };
            let mut state = slot.partition.state.lock();
            match state.due() {
                Some(later) if later > now => {
                    self.due.insert((later, lane));
                    continue;
                }
                _ => state.timed = false,
            }
            drop(state);
            self.enlist(lane, now);
        }
        while let Some((at, lane)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, lane));
            let Some(slot) = self.slots.get_mut(lane) else {
                continue;
            };
            slot.timer = None;
            slot.lane.expire(now, &mut self.settled);
            self.after_change(lane, now);
        }
        if self.renew_at.is_some_and(|at| at <= now) {
            self.renew_at = None;
            self.renew();
        }
        if self
            .under_way
            .first_key_value()
            .is_some_and(|(_, request)| request.give_up <= now)
        {
            warn!(
                requests = self.under_way.len(),
                "server does not answer, connection given up"
            );
            self.stream.abandon();
            let limit = self.shared.config.request_timeout + ANSWER_GRACE;
            let message = format!("no answer within {limit:?}");
            self.on_ended(&Refusal::new(ErrorCode::OutcomeUnknown, message), now);
        }
        if self.reconnect_at.is_some_and(|at| at <= now) {
            self.reconnect_at = None;
        }
    }

    /// Sends what can be sent.
    fn pump(&mut self, now: Instant) {
        if self.ready.is_empty() {
            return;
        }
        if self.stream.is_idle() && self.reconnect_at.is_none() {
            self.stream.open();
        }
        while !self.ready.is_empty() && self.stream.permit().is_some() {
            let (parts, batches) = self.gather(now);
            if parts.is_empty() {
                continue;
            }
            let request_id = self.next_request;
            self.next_request += 1;
            let config = &self.shared.config;
            // Validated to be at most an hour.
            let timeout_ms = config.request_timeout.as_millis() as u32;
            let request = encode(request_id, config.acks.wire(), timeout_ms, &batches);
            let Some(permit) = self.stream.permit() else { break };
            permit.send(request);
            if config.acks == Acks::None {
                for (lane, serial) in parts {
                    self.on_answer(lane, serial, Ok(None), now);
                }
            } else {
                let give_up = now + config.request_timeout + ANSWER_GRACE;
                self.under_way.insert(request_id, UnderWay { parts, give_up });
            }
        }
    }

    /// Takes batches for one request, at most one of each partition.
    fn gather(&mut self, now: Instant) -> (Vec<(usize, u64)>, Vec<Part>) {
        let (mut parts, mut batches) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        // Each lane is looked at once; those that have more come again in the next request.
        for _ in 0..self.ready.len() {
            if bytes >= REQUEST_BYTES_FULL || parts.len() == REQUEST_PARTS_MAX {
                break;
            }
            let Some(lane) = self.ready.pop_front() else { break };
            if let Some(slot) = self.slots.get_mut(lane) {
                slot.ready = false;
            }
            self.pull(lane, now);
            if let Some((serial, part)) = self.transmit(lane, now) {
                bytes += part.batch.len();
                parts.push((lane, serial));
                batches.push(part);
                self.enlist(lane, now);
            }
            self.retime(lane, now);
        }
        (parts, batches)
    }

    /// Moves batches from a partition into its lane, as far as its window goes.
    fn pull(&mut self, lane: usize, now: Instant) {
        let Some(slot) = self.slots.get_mut(lane) else {
            return;
        };
        if !slot.lane.has_room() {
            return;
        }
        let mut state = slot.partition.state.lock();
        while slot.lane.has_room() {
            if !state.has_sealed() && state.due().is_some_and(|due| due <= now) {
                self.shared.seal(&slot.partition, &mut state);
            }
            let Some(batch) = state.pop() else {
                state.announced = false;
                break;
            };
            let patience = match slot.partition.numbers {
                Numbers::Own(_) => self.shared.config.delivery_timeout,
                Numbers::Given => WITHOUT_END,
            };
            let (records, deadline, stamp) = (batch.records, batch.opened + patience, batch.stamp);
            slot.lane.push(batch, records, deadline, stamp);
        }
        drop(state);
        self.retime(lane, now);
    }

    /// Takes the next batch of a lane, under the numbers that it must carry.
    fn transmit(&mut self, lane: usize, now: Instant) -> Option<(u64, Part)> {
        loop {
            let slot = self.slots.get_mut(lane)?;
            let sent = slot.lane.transmit(now)?;
            let (serial, stamp, batch) = (sent.serial, sent.stamp, sent.batch);
            if stamp != batch.stamp {
                match renumber(&batch.bytes, stamp) {
                    Ok(bytes) => (batch.bytes, batch.stamp) = (bytes, stamp),
                    Err(error) => {
                        let message = format!("batch cannot be numbered again: {error}");
                        self.on_answer(
                            lane,
                            serial,
                            Err(Refusal::new(ErrorCode::InvalidBatch, message)),
                            now,
                        );
                        continue;
                    }
                }
            }
            batch.settlement.sent = true;
            let (topic, partition) = (slot.partition.topic.clone(), slot.partition.number);
            return Some((
                serial,
                Part {
                    topic,
                    partition,
                    batch: batch.bytes.clone(),
                    trace: batch.settlement.context().cloned().map(Box::new),
                },
            ));
        }
    }

    fn on_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Opened => {
                debug!("produce stream opened");
                // Whatever waited for a connection goes now.
                self.reconnect_at = None;
            }
            Event::Unreachable(error) => {
                debug!(%error, "no connection");
                self.shared.on_setback(&error);
                self.back_off(now);
            }
            Event::Answer(answer) => {
                self.failures = 0;
                self.on_produced(answer, now);
            }
            Event::Room => {}
            Event::Ended(refusal) => self.on_ended(&refusal, now),
        }
    }

    fn on_produced(&mut self, answer: ProduceResponse, now: Instant) {
        let Some(UnderWay { parts, .. }) = self.under_way.remove(&answer.request_id) else {
            debug!(request = answer.request_id, "answer to no request");
            return;
        };
        let (asked, answered) = (parts.len(), answer.partitions.len());
        let mut partitions = answer.partitions.into_iter();
        for (lane, serial) in parts {
            let outcome = match partitions.next() {
                Some(part) if asked == answered => match part.error {
                    None => Ok(Some(part.base_offset)),
                    Some(error) => Err(error.into()),
                },
                _ => {
                    let message = format!("{answered} partitions answered, {asked} sent");
                    Err(Refusal::new(ErrorCode::OutcomeUnknown, message))
                }
            };
            self.on_answer(lane, serial, outcome, now);
        }
    }

    /// The stream is gone: what was not answered may or may not have been applied.
    fn on_ended(&mut self, refusal: &Refusal, now: Instant) {
        debug!(%refusal, requests = self.under_way.len(), "produce stream ended");
        self.back_off(now);
        for (_, request) in std::mem::take(&mut self.under_way) {
            for (lane, serial) in request.parts {
                self.on_answer(lane, serial, Err(refusal.clone()), now);
            }
        }
    }

    fn back_off(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        let delay = self
            .shared
            .config
            .backoff()
            .delay(self.failures, self.spread.next());
        self.reconnect_at = Some(now + delay);
    }

    fn on_answer(&mut self, lane: usize, serial: u64, answer: Result<Option<u64>, Refusal>, now: Instant) {
        let Some(slot) = self.slots.get_mut(lane) else {
            return;
        };
        if let Err(refusal) = &answer {
            let (topic, partition) = (&slot.partition.topic, slot.partition.number);
            debug!(%topic, partition, serial, code = refusal.code.as_str_name(), %refusal, "batch not delivered");
            // A repetition that was recognised is a success.
            if refusal.code != ErrorCode::DuplicateSequence {
                self.shared.on_setback(refusal);
            }
        }
        slot.lane
            .on_answer(serial, answer, now, self.spread.next(), &mut self.settled);
        self.after_change(lane, now);
    }

    /// Settles what is settled, and sees to what the lane now needs.
    fn after_change(&mut self, lane: usize, now: Instant) {
        let Some(slot) = self.slots.get_mut(lane) else {
            return;
        };
        for Settled { batch, verdict } in self.settled.drain(..) {
            settle(&self.shared, &slot.partition, batch, verdict);
        }
        if slot.lane.broken().is_some() {
            // What is not in the lane yet settles itself when it is dropped.
            let dropped = slot.partition.state.lock().close();
            drop(dropped);
        }
        if let Some(spent) = slot.lane.spent() {
            match self.shared.identity() {
                Some(current) if current != spent => slot.lane.adopt(current),
                _ => {
                    self.spent.insert(lane);
                    self.renew();
                }
            }
        }
        self.renumbered(lane);
        self.enlist(lane, now);
        self.retime(lane, now);
    }

    /// Hands changed numbers on to the batches that are still to be sealed.
    fn renumbered(&mut self, lane: usize) {
        let Some(slot) = self.slots.get_mut(lane) else {
            return;
        };
        if let Some(stamp) = slot.lane.take_renumbered() {
            slot.partition.state.lock().renumber(stamp);
        }
    }

    /// Asks for a new identity, unless that is under way.
    fn renew(&mut self) {
        if self.renewal.is_none() && self.renew_at.is_none() {
            let link = self.link.clone();
            self.renewal = Some(Box::pin(async move { init_producer(&link).await }));
        }
    }

    fn on_renewed(&mut self, renewed: Result<Identity, Refusal>, now: Instant) {
        self.renewal = None;
        match renewed {
            Ok(identity) => {
                warn!(producer = %identity.id, lanes = self.spent.len(), "producer id renewed after its numbers were lost");
                self.shared.set_identity(identity);
                for lane in std::mem::take(&mut self.spent) {
                    if let Some(slot) = self.slots.get_mut(lane) {
                        slot.lane.adopt(identity);
                    }
                    self.renumbered(lane);
                    self.enlist(lane, now);
                    self.retime(lane, now);
                }
            }
            Err(refusal) => {
                warn!(%refusal, "no new producer id, asking again");
                self.renew_at = Some(now + self.shared.config.retry_backoff_max);
            }
        }
    }

    /// Notes that a lane may have something to send.
    fn enlist(&mut self, lane: usize, now: Instant) {
        if let Some(slot) = self.slots.get_mut(lane)
            && !std::mem::replace(&mut slot.ready, true)
        {
            self.ready.push_back(lane);
        }
        // While nothing can be sent, batches must still reach the lane, which gives them up.
        if !self.stream.is_open() {
            self.pull(lane, now);
        }
    }

    fn retime(&mut self, lane: usize, now: Instant) {
        let Some(slot) = self.slots.get_mut(lane) else {
            return;
        };
        let timer = slot.lane.timer(now);
        if timer != slot.timer {
            if let Some(old) = std::mem::replace(&mut slot.timer, timer) {
                self.timers.remove(&(old, lane));
            }
            self.timers.extend(timer.map(|at| (at, lane)));
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        let due = self.due.first().map(|(at, _)| *at);
        let timer = self.timers.first().map(|(at, _)| *at);
        let answer = self
            .under_way
            .first_key_value()
            .map(|(_, request)| request.give_up);
        let reconnect = self.reconnect_at.filter(|_| !self.ready.is_empty());
        [due, timer, answer, reconnect, self.renew_at]
            .into_iter()
            .flatten()
            .min()
    }
}

impl Drop for Sender {
    /// Nobody would take batches any more, so nobody may wait for room either.
    fn drop(&mut self) {
        self.shared
            .closed
            .store(true, std::sync::atomic::Ordering::SeqCst);
        self.shared.memory.close();
        self.on_inbox(Instant::now());
        for slot in &self.slots {
            let dropped = slot.partition.state.lock().close();
            drop(dropped);
        }
    }
}

fn settle(shared: &Shared, partition: &Partition, batch: Sealed, verdict: Verdict) {
    let Sealed {
        settlement, space, ..
    } = batch;
    match verdict {
        Verdict::Delivered { base_offset } => {
            shared.retries.lock().last = None;
            settlement.delivered(base_offset.map(Offset));
        }
        Verdict::Refused(refusal) => {
            if matches!(
                refusal.code,
                ErrorCode::UnknownTopic | ErrorCode::UnknownPartition
            ) {
                shared.doubt(&partition.topic);
            }
            settlement.refused(refusal);
        }
        Verdict::Unknown(refusal) => settlement.unknown(refusal),
        Verdict::TimedOut(last) => settlement.timed_out(shared.config.delivery_timeout, last),
    }
    drop(space);
}

/// Asks for an id. Asking twice only leaves an id unused.
pub(crate) async fn init_producer(link: &Link) -> Result<Identity, Refusal> {
    let answer = link
        .call(Repeat::Always, |channel| async move {
            let answer = DataClient::new(channel)
                .init_producer(InitProducerRequest {})
                .await?;
            match answer.get_ref().error.clone() {
                Some(error) => Err(forebay_proto::error::Failure::from(error).into()),
                None => Ok(answer),
            }
        })
        .await?;
    let epoch = i16::try_from(answer.producer_epoch).map_err(|_| {
        Refusal::new(
            ErrorCode::Internal,
            format!("producer epoch {} is out of range", answer.producer_epoch),
        )
    })?;
    Ok(Identity {
        id: answer.producer_id.into(),
        epoch,
    })
}
