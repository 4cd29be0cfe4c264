//! All partitions' lanes and the sessions they use: a state machine without I/O.
//!
//! It takes events (a batch, an answer, a session's beginning or end, a route, time) and returns
//! actions. A lane exists while it has batches. The driver does what the actions say and reports
//! back; every question is answered in the end, so no lane waits for ever.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::data::front::{Acks, Produce};
use forebay_proto::error::Failure;
use forebay_proto::v1::{ErrorCode, RetryClass};
use forebay_record::{BrokerId, Offset, PartitionId};
use forebay_runtime::random::Random;
use forebay_runtime::trace::TraceContext;

use super::lane::{Entry, Gate, Lane, Step};
use crate::routes::{Owner, TopicRoute};

/// Batches in flight per session: below what a link's queue takes.
const SESSION_IN_FLIGHT_MAX: usize = 768;
/// Rest after the first failure, doubling.
const REST_BASE: Duration = Duration::from_millis(4);
const REST_CEILING: Duration = Duration::from_millis(500);
/// The same while a new owner is looked for: it is there within moments.
const REST_CEILING_STALE: Duration = Duration::from_millis(100);
/// Time between two questions about one topic, however many of its lanes look for an owner.
const LOCATE_EVERY: Duration = Duration::from_millis(40);
/// How much longer than its deadline an owner is waited for.
const GRACE: Duration = Duration::from_secs(2);
/// Marks the ids of produce requests, so that no other request of the session has the same.
const PRODUCE_IDS: u64 = 1 << 63;

/// A partition as a request names it, with the route known when it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    pub topic: Arc<str>,
    pub number: u32,
    pub id: PartitionId,
    pub owner: Option<Owner>,
}

/// What the driver must do.
#[derive(Debug)]
pub(crate) enum Action<R> {
    Answer(R, Result<Offset, Failure>),
    /// By the session of this generation.
    Send {
        broker: BrokerId,
        generation: u64,
        produce: Produce,
        trace: Option<Box<TraceContext>>,
    },
    /// Tell the broker that this session brings nothing more.
    Goodbye {
        broker: BrokerId,
        generation: u64,
    },
    /// Make a session; an event tells how it went.
    Connect(BrokerId, Arc<str>),
    /// Ask where a topic is; `on_located` takes the answer.
    Locate(Arc<str>),
}

#[derive(Default)]
struct SessionState {
    /// None while there is no session.
    generation: Option<u64>,
    connecting: bool,
    /// The broker will end: it answers what was sent, and gets nothing more.
    leaving: bool,
    in_flight: usize,
    /// Lanes that could send if the session took more.
    blocked: VecDeque<PartitionId>,
}

pub(crate) struct Dispatch<R> {
    lanes: HashMap<PartitionId, Lane<R>>,
    requests: HashMap<u64, PartitionId>,
    sessions: HashMap<BrokerId, SessionState>,
    /// Topics that are being located, with the lanes that wait.
    locating: HashMap<Arc<str>, Vec<PartitionId>>,
    /// When topics were asked for lately.
    located_at: HashMap<Arc<str>, Duration>,
    next: u64,
    random: Arc<dyn Random>,
    actions: Vec<Action<R>>,
    /// Reused between calls.
    steps: Vec<Step<R>>,
    retries: Retries,
}

/// Lanes that went back to sending.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Retries {
    /// Because the route was wrong, or the owner lost.
    pub elsewhere: u64,
    /// For any other reason.
    pub in_place: u64,
}

impl<R> Dispatch<R> {
    pub(crate) fn new(random: Arc<dyn Random>) -> Self {
        Self {
            lanes: HashMap::new(),
            requests: HashMap::new(),
            sessions: HashMap::new(),
            locating: HashMap::new(),
            located_at: HashMap::new(),
            next: PRODUCE_IDS,
            random,
            actions: Vec::new(),
            steps: Vec::new(),
            retries: Retries::default(),
        }
    }

    /// Moves what is to be done into `into`.
    pub(crate) fn take_actions(&mut self, into: &mut Vec<Action<R>>) {
        into.append(&mut self.actions);
    }

    /// True where nothing waits or is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Partitions with batches that wait or are in flight.
    pub(crate) fn busy(&self) -> usize {
        self.lanes.len()
    }

    /// Lanes that went back to sending since last asked.
    pub(crate) fn take_retries(&mut self) -> Retries {
        std::mem::take(&mut self.retries)
    }

    pub(crate) fn on_batch(&mut self, now: Duration, to: Destination, entry: Entry<R>) {
        let id = to.id;
        let lane = self
            .lanes
            .entry(id)
            .or_insert_with(|| Lane::new(to.topic, to.number, id, None));
        if lane.is_empty() {
            // A new lane, or one that has just emptied: what the request's route says holds.
            lane.owner = to.owner;
            lane.gate = if lane.owner.is_some() {
                Gate::Open
            } else {
                Gate::Route
            };
        }
        lane.push(entry, &mut self.steps);
        self.advance(now, id);
    }

    pub(crate) fn on_answer(
        &mut self,
        now: Duration,
        broker: BrokerId,
        request: u64,
        result: Result<Offset, Failure>,
    ) {
        // An unknown request was answered before, or belonged to a session that has ended.
        let Some(id) = self.requests.remove(&request) else {
            return;
        };
        if let Some(session) = self.sessions.get_mut(&broker) {
            session.in_flight = session.in_flight.saturating_sub(1);
        }
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.on_answer(request, result, &mut self.steps);
        }
        self.advance(now, id);
        self.unblock(now, broker);
    }

    /// Lets a lane go on that was held up by its session's bound.
    fn unblock(&mut self, now: Duration, broker: BrokerId) {
        while let Some(session) = self.sessions.get_mut(&broker) {
            if session.in_flight >= SESSION_IN_FLIGHT_MAX {
                return;
            }
            let Some(id) = session.blocked.pop_front() else {
                return;
            };
            self.advance(now, id);
        }
    }

    pub(crate) fn on_up(&mut self, now: Duration, broker: BrokerId, generation: u64) {
        let session = self.sessions.entry(broker).or_default();
        session.generation = Some(generation);
        session.connecting = false;
        session.leaving = false;
        session.in_flight = 0;
        session.blocked.clear();
        for id in self.lanes_of(broker) {
            self.advance(now, id);
        }
    }

    /// The broker says that it will end: what was sent is answered, what comes next looks for a new owner.
    pub(crate) fn on_leaving(&mut self, now: Duration, broker: BrokerId, generation: u64) {
        let Some(session) = self
            .sessions
            .get_mut(&broker)
            .filter(|session| session.generation == Some(generation))
        else {
            return;
        };
        session.leaving = true;
        session.blocked.clear();
        self.actions.push(Action::Goodbye { broker, generation });
        for id in self.lanes_of(broker) {
            self.advance(now, id);
        }
    }

    /// A session ended, or could not be made (`generation` 0 where it was not even tried).
    pub(crate) fn on_down(&mut self, now: Duration, broker: BrokerId, generation: u64, reason: &str) {
        let later = |session: &SessionState| session.generation.is_some_and(|current| current != generation);
        if self.sessions.get(&broker).is_some_and(later) {
            return;
        }
        // A broker that still has lanes is entered again below; one that left is forgotten.
        self.sessions.remove(&broker);
        for id in self.lanes_of(broker) {
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.on_lost(reason, &mut self.steps);
            }
            self.advance(now, id);
        }
        self.requests
            .retain(|_, id| self.lanes.get(id).is_some_and(|lane| lane.in_flight() > 0));
    }

    fn lanes_of(&self, broker: BrokerId) -> Vec<PartitionId> {
        let is_its = |lane: &Lane<R>| lane.owner.as_ref().is_some_and(|owner| owner.broker == broker);
        let mut ids: Vec<_> = self
            .lanes
            .values()
            .filter(|lane| is_its(lane))
            .map(|lane| lane.id)
            .collect();
        ids.sort_unstable();
        ids
    }

    pub(crate) fn on_located(
        &mut self,
        now: Duration,
        topic: &Arc<str>,
        located: Result<Arc<TopicRoute>, Failure>,
    ) {
        let mut moved: Vec<(Destination, Vec<Entry<R>>)> = Vec::new();
        for id in self.locating.remove(topic).unwrap_or_default() {
            let Some(lane) = self.lanes.get_mut(&id) else {
                continue;
            };
            if lane.gate != Gate::Route {
                continue;
            }
            match located
                .as_ref()
                .map(|route| route.partitions.get(lane.number as usize))
            {
                Ok(Some(found)) if found.id == lane.id => {
                    let known = lane.owner.as_ref().map(|owner| owner.epoch).unwrap_or_default();
                    match &found.owner {
                        Some(owner) if owner.epoch >= known => {
                            lane.owner = Some(owner.clone());
                            lane.gate = Gate::Open;
                        }
                        // Ownership is moving: nobody has it yet, or a broker knows less than we.
                        Some(_) | None => Self::rest(lane, now, true, &*self.random),
                    }
                }
                Ok(found) => {
                    // The topic was deleted, and perhaps made again under its name.
                    let what = format!(
                        "topic {topic} has no partition {} of this id any more",
                        lane.number
                    );
                    let gone = Failure::new(ErrorCode::UnknownPartition, what);
                    match found {
                        Some(found) => {
                            let (number, owner) = (lane.number, found.owner.clone());
                            let to = Destination {
                                topic: Arc::clone(topic),
                                number,
                                id: found.id,
                                owner,
                            };
                            moved.push((to, lane.take_untouched(&gone, &mut self.steps)));
                        }
                        None => lane.fail_queued(&gone, &mut self.steps),
                    }
                }
                Err(failure) if failure.retry() == RetryClass::Reject => {
                    lane.fail_queued(failure, &mut self.steps);
                }
                Err(_) => Self::rest(lane, now, true, &*self.random),
            }
            self.advance(now, id);
        }
        for (to, entries) in moved {
            for entry in entries {
                self.on_batch(now, to.clone(), entry);
            }
        }
        if let Ok(route) = &located {
            self.wake(now, topic, route);
        }
    }

    /// Lets lanes go on that rest because their owner was lost or refused, where an answer that others
    /// asked for names a newer one.
    fn wake(&mut self, now: Duration, topic: &Arc<str>, route: &TopicRoute) {
        let mut found = Vec::new();
        let rests = |lane: &&mut Lane<R>| {
            lane.topic == *topic && matches!(lane.gate, Gate::Resting { stale: true, .. })
        };
        for lane in self.lanes.values_mut().filter(rests) {
            let known = lane.owner.as_ref().map(|owner| owner.epoch).unwrap_or_default();
            if let Some(partition) = route.partitions.get(lane.number as usize)
                && partition.id == lane.id
                && let Some(owner) = partition.owner.as_ref().filter(|owner| owner.epoch > known)
            {
                lane.owner = Some(owner.clone());
                lane.gate = Gate::Open;
                found.push(lane.id);
            }
        }
        found.sort_unstable();
        for id in found {
            self.advance(now, id);
        }
    }

    /// Time passes. Idempotent; call it every few milliseconds while not idle, with `deadlines`
    /// several times a second.
    pub(crate) fn tick(&mut self, now: Duration, deadlines: bool) {
        let rests = |lane: &Lane<R>| matches!(lane.gate, Gate::Resting { until, .. } if until <= now);
        let due = |lane: &Lane<R>| deadlines || rests(lane);
        let mut ids: Vec<_> = self
            .lanes
            .values()
            .filter(|lane| due(lane))
            .map(|lane| lane.id)
            .collect();
        ids.sort_unstable();
        if deadlines {
            self.located_at
                .retain(|_, at| now.saturating_sub(*at) < LOCATE_EVERY);
        }
        for id in ids {
            if deadlines && let Some(lane) = self.lanes.get_mut(&id) {
                lane.expire(now, GRACE, &mut self.steps);
            }
            self.advance(now, id);
        }
    }

    /// Answers everything; the proxy stops.
    pub(crate) fn stop(&mut self) {
        for (_, mut lane) in self.lanes.drain() {
            lane.stop(&mut self.steps);
        }
        self.requests.clear();
        for step in self.steps.drain(..) {
            if let Step::Answer(reply, result) = step {
                self.actions.push(Action::Answer(reply, result));
            }
        }
    }

    fn rest(lane: &mut Lane<R>, now: Duration, stale: bool, random: &dyn Random) {
        let doubled = REST_BASE.saturating_mul(2_u32.saturating_pow(lane.tries.min(16)));
        let ceiling = if stale { REST_CEILING_STALE } else { REST_CEILING };
        let ceiling = u64::try_from(doubled.min(ceiling).as_nanos()).unwrap_or(u64::MAX);
        let wait = Duration::from_nanos(random.range(ceiling / 4, ceiling));
        lane.tries = lane.tries.saturating_add(1);
        lane.gate = Gate::Resting {
            until: now.saturating_add(wait),
            stale,
        };
    }

    /// Does whatever a lane can do now.
    fn advance(&mut self, now: Duration, id: PartitionId) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        if lane.settle() {
            let stale = matches!(lane.gate, Gate::Resting { stale: true, .. });
            Self::rest(lane, now, stale, &*self.random);
            // The first question about a stale route is asked at once.
            if stale && lane.tries <= 2 {
                lane.gate = Gate::Route;
            }
            let retries = &mut self.retries;
            let count = if stale {
                &mut retries.elsewhere
            } else {
                &mut retries.in_place
            };
            *count += 1;
        }
        if let Gate::Resting { until, stale } = lane.gate
            && until <= now
        {
            lane.gate = if stale { Gate::Route } else { Gate::Open };
        }
        match lane.gate {
            Gate::Open if lane.has_queued() => self.send(now, id),
            Gate::Route if lane.has_queued() => {
                let topic = Arc::clone(&lane.topic);
                let again = self
                    .located_at
                    .get(&topic)
                    .map(|at| at.saturating_add(LOCATE_EVERY));
                if let Some(until) = again.filter(|until| *until > now)
                    && !self.locating.contains_key(&topic)
                {
                    lane.gate = Gate::Resting { until, stale: true };
                    return self.flush(id);
                }
                let located_at = &mut self.located_at;
                let waiting = self.locating.entry(Arc::clone(&topic)).or_insert_with(|| {
                    located_at.insert(Arc::clone(&topic), now);
                    self.actions.push(Action::Locate(topic));
                    Vec::new()
                });
                if !waiting.contains(&id) {
                    waiting.push(id);
                }
            }
            Gate::Open | Gate::Route | Gate::Draining | Gate::Resting { .. } => {}
        }
        self.flush(id);
    }

    fn send(&mut self, now: Duration, id: PartitionId) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        let Some(Owner {
            broker,
            address,
            epoch,
        }) = lane.owner.clone()
        else {
            lane.gate = Gate::Route;
            return;
        };
        let session = self.sessions.entry(broker).or_default();
        let Some(generation) = session.generation else {
            if !session.connecting {
                session.connecting = true;
                self.actions.push(Action::Connect(broker, address));
            }
            return;
        };
        if session.leaving {
            // No batch goes elsewhere before the answers to those that went here.
            if lane.in_flight() == 0 {
                Self::rest(lane, now, true, &*self.random);
                self.retries.elsewhere += 1;
            }
            return;
        }
        let budget = SESSION_IN_FLIGHT_MAX.saturating_sub(session.in_flight);
        let sent = lane.pump(now, budget, &mut self.next, &mut self.steps);
        session.in_flight += sent;
        if sent == budget && lane.has_queued() && !session.blocked.contains(&id) {
            session.blocked.push_back(id);
        }
        for step in self.steps.drain(..) {
            self.actions.push(match step {
                Step::Answer(reply, result) => Action::Answer(reply, result),
                Step::Send {
                    request,
                    acks,
                    deadline,
                    batch,
                    trace,
                } => {
                    self.requests.insert(request, id);
                    let left = deadline.saturating_sub(now).as_millis();
                    let deadline_ms = u32::try_from(left).unwrap_or(u32::MAX).max(1);
                    let produce = Produce {
                        request,
                        partition: id,
                        epoch,
                        acks,
                        deadline_ms,
                        batch,
                    };
                    Action::Send {
                        broker,
                        generation,
                        produce,
                        trace,
                    }
                }
            });
        }
    }

    /// Hands out answers, and forgets the lane where it is empty.
    fn flush(&mut self, id: PartitionId) {
        for step in self.steps.drain(..) {
            match step {
                Step::Answer(reply, result) => self.actions.push(Action::Answer(reply, result)),
                Step::Send { .. } => debug_assert!(false, "a batch was sent outside of send"),
            }
        }
        if self.lanes.get(&id).is_some_and(Lane::is_empty) {
            self.lanes.remove(&id);
        }
    }
}

/// The acknowledgement level of a request.
pub(crate) const fn acks_of(acks: forebay_proto::v1::Acks) -> Acks {
    match acks {
        forebay_proto::v1::Acks::Unspecified | forebay_proto::v1::Acks::All => Acks::All,
        forebay_proto::v1::Acks::One => Acks::One,
        forebay_proto::v1::Acks::None => Acks::None,
    }
}
