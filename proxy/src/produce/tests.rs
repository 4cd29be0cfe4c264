//! The dispatch of batches as its driver sees it: events in, actions out, and a model of an owner.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_proto::data::front::{Acks, Produce};
use forebay_proto::error::Failure;
use forebay_proto::v1::{ErrorCode, RetryClass};
use forebay_record::state::PRODUCER_BATCHES_MAX;
use forebay_record::{BrokerId, Epoch, Offset, PartitionId, ProducerId};
use forebay_runtime::random::{Random, SeededRandom};
use proptest::prelude::*;

use super::dispatch::{Action, Destination, Dispatch};
use super::lane::{Entry, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX, QUEUE_MAX};
use crate::routes::{Owner, PartitionRoute, TopicRoute};

const PARTITION: PartitionId = PartitionId(7);
const FAR: Duration = Duration::from_secs(1000);

fn owner(broker: u32, epoch: u32) -> Owner {
    Owner {
        broker: BrokerId(broker),
        address: format!("mem://b{broker}").into(),
        epoch: Epoch(epoch),
    }
}

fn route(owner: Option<Owner>) -> Arc<TopicRoute> {
    let epoch = owner.as_ref().map(|owner| owner.epoch).unwrap_or_default();
    Arc::new(TopicRoute {
        name: "t".into(),
        id: Bytes::new(),
        batch_bytes_max: 1 << 20,
        partitions: vec![PartitionRoute {
            id: PARTITION,
            epoch,
            owner,
        }],
    })
}

fn failure(code: ErrorCode) -> Failure {
    Failure::new(code, "why")
}

/// The machine under test, and what it said.
struct Bench {
    dispatch: Dispatch<u32>,
    now: Duration,
    sent: Vec<Produce>,
    answers: BTreeMap<u32, Result<Offset, Failure>>,
    connects: Vec<BrokerId>,
    locates: usize,
    /// Sessions that were told goodbye.
    goodbyes: Vec<u64>,
}

impl Bench {
    fn new() -> Self {
        Self {
            dispatch: Dispatch::new(Arc::new(SeededRandom::new(1))),
            now: Duration::from_secs(1),
            sent: Vec::new(),
            answers: BTreeMap::new(),
            connects: Vec::new(),
            locates: 0,
            goodbyes: Vec::new(),
        }
    }

    /// With a session with broker 1 as generation 1.
    fn connected() -> Self {
        let mut bench = Self::new();
        bench.up(1, 1);
        bench
    }

    fn settle(&mut self) {
        let mut actions = Vec::new();
        self.dispatch.take_actions(&mut actions);
        for action in actions {
            match action {
                Action::Answer(reply, result) => {
                    assert!(
                        self.answers.insert(reply, result).is_none(),
                        "{reply} was answered twice"
                    );
                }
                Action::Send {
                    generation, produce, ..
                } => {
                    assert!(!self.goodbyes.contains(&generation), "sent after the goodbye");
                    self.sent.push(produce);
                }
                Action::Goodbye { generation, .. } => self.goodbyes.push(generation),
                Action::Connect(broker, _) => self.connects.push(broker),
                Action::Locate(_) => self.locates += 1,
            }
        }
    }

    fn up(&mut self, broker: u32, generation: u64) {
        self.dispatch.on_up(self.now, BrokerId(broker), generation);
        self.settle();
    }

    fn down(&mut self, broker: u32, generation: u64) {
        self.dispatch
            .on_down(self.now, BrokerId(broker), generation, "cut");
        self.settle();
    }

    fn leaving(&mut self, broker: u32, generation: u64) {
        self.dispatch.on_leaving(self.now, BrokerId(broker), generation);
        self.settle();
    }

    fn batch(&mut self, id: u32, source: u64, producer: Option<u64>) {
        self.batch_of(id, source, producer, vec![id as u8; 10], FAR);
    }

    fn batch_of(&mut self, id: u32, source: u64, producer: Option<u64>, bytes: Vec<u8>, deadline: Duration) {
        let to = Destination {
            topic: "t".into(),
            number: 0,
            id: PARTITION,
            owner: Some(owner(1, 1)),
        };
        let producer = producer.map(ProducerId);
        let entry = Entry {
            batch: bytes.into(),
            source,
            producer,
            acks: Acks::All,
            deadline,
            reply: id,
            trace: None,
            doubt: false,
            last: None,
        };
        self.dispatch.on_batch(self.now, to, entry);
        self.settle();
    }

    /// Answers the n-th batch that was ever sent.
    fn answer(&mut self, nth: usize, result: Result<u64, ErrorCode>) {
        let request = self.sent[nth].request;
        let result = result.map(Offset).map_err(failure);
        self.dispatch.on_answer(self.now, BrokerId(1), request, result);
        self.settle();
    }

    fn located(&mut self, owner: Option<Owner>) {
        self.dispatch.on_located(self.now, &"t".into(), Ok(route(owner)));
        self.settle();
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.dispatch.tick(self.now, true);
        self.settle();
    }

    /// The first byte of everything sent, from the n-th on.
    fn order(&self, from: usize) -> Vec<u8> {
        self.sent[from..].iter().map(|produce| produce.batch[0]).collect()
    }

    fn code(&self, id: u32) -> Option<ErrorCode> {
        self.answers
            .get(&id)
            .map(|answer| answer.as_ref().unwrap_err().code)
    }
}

#[test]
fn batches_are_sent_ahead_of_their_answers_in_order_once_there_is_a_session() {
    let mut bench = Bench::new();
    (1..=3).for_each(|id| bench.batch(id, 1, None));
    assert_eq!(
        (bench.connects.as_slice(), bench.sent.len()),
        ([BrokerId(1)].as_slice(), 0)
    );
    bench.up(1, 1);
    assert_eq!(bench.order(0), [1, 2, 3]);
    bench.answer(1, Ok(11));
    bench.answer(0, Ok(10));
    bench.answer(2, Ok(12));
    assert_eq!(
        bench.answers.values().flatten().copied().collect::<Vec<_>>(),
        [Offset(10), Offset(11), Offset(12)]
    );
    assert!(bench.dispatch.is_idle());
}

#[test]
fn batches_refused_by_a_former_owner_go_to_the_new_one_in_order_and_late_ones_wait() {
    let mut bench = Bench::connected();
    bench.up(2, 2);
    (1..=3).for_each(|id| bench.batch(id, 1, None));
    bench.answer(0, Err(ErrorCode::NotOwner));
    bench.batch(4, 1, None);
    assert_eq!(
        (bench.sent.len(), bench.locates),
        (3, 0),
        "nothing is sent while others are in flight"
    );
    bench.answer(2, Err(ErrorCode::NotOwner));
    bench.answer(1, Err(ErrorCode::StaleEpoch));
    assert_eq!(bench.locates, 1);
    bench.located(Some(owner(2, 2)));
    assert_eq!(bench.order(3), [1, 2, 3, 4]);
    assert!(bench.sent[3..].iter().all(|produce| produce.epoch == Epoch(2)));
    assert!(bench.answers.is_empty());
}

#[test]
fn a_route_of_a_lower_epoch_is_not_followed() {
    let mut bench = Bench::connected();
    bench.up(2, 2);
    bench.batch(1, 1, None);
    bench.answer(0, Err(ErrorCode::NotOwner));
    bench.located(Some(owner(2, 3)));
    assert_eq!(bench.sent[1].epoch, Epoch(3));
    let request = bench.sent[1].request;
    bench
        .dispatch
        .on_answer(bench.now, BrokerId(2), request, Err(failure(ErrorCode::NotOwner)));
    bench.settle();
    bench.pass(Duration::from_secs(1));
    bench.located(Some(owner(1, 2)));
    assert_eq!(bench.sent.len(), 2, "epoch 2 is older than epoch 3");
    bench.pass(Duration::from_secs(1));
    bench.located(Some(owner(1, 4)));
    assert_eq!((bench.sent.len(), bench.sent[2].epoch), (3, Epoch(4)));
}

#[test]
fn a_batch_that_a_later_one_overtook_is_answered_and_not_sent_again() {
    let mut bench = Bench::connected();
    bench.batch(1, 1, None);
    bench.batch(2, 2, None);
    bench.batch(3, 1, None);
    bench.answer(0, Err(ErrorCode::Overloaded));
    bench.answer(1, Err(ErrorCode::Overloaded));
    bench.answer(2, Ok(5));
    assert_eq!(bench.code(1), Some(ErrorCode::Overloaded));
    assert_eq!(
        bench.code(2),
        None,
        "another stream's batch was not overtaken by its own"
    );
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.order(3), [2]);
}

#[test]
fn an_idempotent_batch_behind_a_held_one_is_sent_after_it_though_its_sequence_was_refused() {
    let mut bench = Bench::connected();
    (1..=3).for_each(|id| bench.batch(id, 1, Some(9)));
    bench.answer(0, Err(ErrorCode::Overloaded));
    bench.answer(1, Err(ErrorCode::OutOfOrderSequence));
    bench.answer(2, Err(ErrorCode::OutOfOrderSequence));
    assert!(bench.answers.is_empty());
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.order(3), [1, 2, 3]);
}

#[test]
fn a_lost_connection_leaves_plain_batches_unknown_and_repeats_idempotent_ones_in_order() {
    let mut bench = Bench::connected();
    bench.batch(1, 1, Some(9));
    bench.batch(2, 2, None);
    bench.batch(3, 1, Some(9));
    bench.down(1, 1);
    assert_eq!(bench.code(2), Some(ErrorCode::OutcomeUnknown));
    assert_eq!((bench.answers.len(), bench.locates), (1, 1));
    bench.up(2, 2);
    bench.located(Some(owner(2, 2)));
    assert_eq!(bench.order(3), [1, 3]);
    assert!(!bench.dispatch.is_idle());
}

#[test]
fn a_broker_that_leaves_answers_what_was_sent_and_gets_nothing_more() {
    let mut bench = Bench::connected();
    bench.up(2, 2);
    (1..=2).for_each(|id| bench.batch(id, 1, None));
    bench.leaving(1, 1);
    bench.batch(3, 1, None);
    assert_eq!((bench.sent.len(), bench.goodbyes.as_slice()), (2, &[1][..]));
    bench.answer(0, Ok(10));
    assert_eq!(bench.locates, 0, "the next owner waits for the other answer");
    bench.answer(1, Err(ErrorCode::NotOwner));
    bench.pass(Duration::from_secs(1));
    bench.located(Some(owner(1, 1)));
    bench.pass(Duration::from_secs(1));
    bench.down(1, 1);
    bench.pass(Duration::from_secs(1));
    bench.located(Some(owner(2, 2)));
    assert_eq!(bench.order(2), [2, 3]);
    assert_eq!(bench.answers.len(), 1);
    assert_eq!(bench.answers[&1], Ok(Offset(10)));
}

#[test]
fn the_goodbye_of_an_earlier_session_changes_nothing() {
    let mut bench = Bench::connected();
    bench.down(1, 1);
    bench.up(1, 2);
    bench.leaving(1, 1);
    bench.batch(1, 1, None);
    assert_eq!((bench.sent.len(), bench.goodbyes.len()), (1, 0));
}

#[test]
fn an_answer_of_a_session_that_has_ended_changes_nothing() {
    let mut bench = Bench::connected();
    bench.batch(1, 1, Some(9));
    bench.down(1, 1);
    bench.answer(0, Ok(3));
    assert!(bench.answers.is_empty());
    bench.down(1, 0);
    bench.up(1, 5);
    bench.located(Some(owner(1, 1)));
    bench.pass(Duration::from_secs(1));
    bench.located(Some(owner(1, 1)));
    assert_eq!(bench.sent.len(), 2);
    bench.answer(1, Ok(3));
    assert_eq!(bench.answers[&1], Ok(Offset(3)));
}

#[test]
fn a_batch_that_cannot_be_placed_times_out_and_a_doubtful_one_is_unknown() {
    let mut bench = Bench::connected();
    let deadline = bench.now + Duration::from_secs(5);
    bench.batch_of(1, 1, None, vec![1], deadline);
    bench.batch_of(2, 2, Some(9), vec![2], deadline);
    bench.answer(0, Err(ErrorCode::NotOwner));
    bench.answer(1, Err(ErrorCode::OutcomeUnknown));
    for _ in 0..60 {
        bench.located(None);
        bench.pass(Duration::from_millis(100));
    }
    assert_eq!(bench.code(1), Some(ErrorCode::Timeout));
    assert_eq!(bench.code(2), Some(ErrorCode::OutcomeUnknown));
    assert!(bench.dispatch.is_idle());
    assert!((5..=70).contains(&bench.locates), "{} questions", bench.locates);
}

#[test]
fn an_owner_that_never_answers_leaves_the_outcome_unknown() {
    let mut bench = Bench::connected();
    let deadline = bench.now + Duration::from_secs(5);
    bench.batch_of(1, 1, None, vec![1], deadline);
    bench.pass(Duration::from_secs(6));
    assert!(bench.answers.is_empty(), "the owner has a little longer");
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.code(1), Some(ErrorCode::OutcomeUnknown));
    bench.answer(0, Ok(3));
    assert!(bench.dispatch.is_idle());
}

#[test]
fn a_topic_that_is_gone_fails_what_waits_and_a_recreated_one_takes_what_was_never_applied() {
    let mut bench = Bench::connected();
    bench.batch(1, 1, None);
    bench.answer(0, Err(ErrorCode::UnknownPartition));
    bench
        .dispatch
        .on_located(bench.now, &"t".into(), Err(failure(ErrorCode::UnknownTopic)));
    bench.settle();
    assert_eq!(bench.code(1), Some(ErrorCode::UnknownTopic));
    bench.batch(2, 1, None);
    bench.batch(3, 1, Some(9));
    bench.answer(1, Err(ErrorCode::UnknownPartition));
    bench.answer(2, Err(ErrorCode::OutcomeUnknown));
    // A topic is not asked for twice in a moment.
    bench.pass(Duration::from_millis(50));
    let mut other = TopicRoute::clone(&route(Some(owner(1, 1))));
    other.partitions[0].id = PartitionId(99);
    bench
        .dispatch
        .on_located(bench.now, &"t".into(), Ok(Arc::new(other)));
    bench.settle();
    assert_eq!(bench.code(3), Some(ErrorCode::OutcomeUnknown));
    assert_eq!(
        (bench.order(3), bench.sent[3].partition),
        (vec![2], PartitionId(99))
    );
}

#[test]
fn the_window_bounds_batches_bytes_and_what_one_producer_has_in_flight() {
    let mut bench = Bench::connected();
    (0..400).for_each(|id| bench.batch(id, 1, None));
    assert_eq!(bench.sent.len(), IN_FLIGHT_MAX);
    bench.answer(0, Ok(0));
    assert_eq!(bench.sent.len(), IN_FLIGHT_MAX + 1);

    let mut bench = Bench::connected();
    (0..4).for_each(|id| bench.batch_of(id, 1, None, vec![0; IN_FLIGHT_BYTES_MAX / 2 - 1], FAR));
    assert_eq!(bench.sent.len(), 2);
    let mut bench = Bench::connected();
    (0..2).for_each(|id| bench.batch_of(id, 1, None, vec![0; IN_FLIGHT_BYTES_MAX * 2], FAR));
    assert_eq!(bench.sent.len(), 1, "one batch passes however large it is");

    let mut bench = Bench::connected();
    (0..10).for_each(|id| bench.batch(id, 1, Some(9)));
    assert_eq!(bench.sent.len(), PRODUCER_BATCHES_MAX);
}

#[test]
fn a_full_queue_refuses_what_comes_on_top() {
    let mut bench = Bench::new();
    (0..=QUEUE_MAX as u32).for_each(|id| bench.batch_of(id, 1, None, vec![1], FAR));
    assert_eq!(bench.code(QUEUE_MAX as u32), Some(ErrorCode::Overloaded));
    assert_eq!(bench.answers.len(), 1);
}

#[test]
fn stopping_answers_everything_and_never_calls_a_sent_batch_failed() {
    let mut bench = Bench::connected();
    (0..300).for_each(|id| bench.batch(id, 1, None));
    bench.dispatch.stop();
    bench.settle();
    assert_eq!(bench.answers.len(), 300);
    assert_eq!(bench.code(0), Some(ErrorCode::OutcomeUnknown));
    assert_eq!(bench.code(299), Some(ErrorCode::ShuttingDown));
}

/// A partition that owners take turns in: it keeps what it took, and recognises repetitions.
#[derive(Default)]
struct Log {
    records: Vec<(u64, u32)>,
    known: HashMap<(u64, u32), u64>,
    next_sequence: HashMap<u64, u32>,
}

impl Log {
    /// The batch is (source, number within the source); idempotent sources have sequences.
    fn take(&mut self, source: u64, number: u32, idempotent: bool) -> Result<Offset, Failure> {
        if idempotent {
            if let Some(offset) = self.known.get(&(source, number)) {
                return Ok(Offset(*offset));
            }
            if number != *self.next_sequence.entry(source).or_insert(0) {
                return Err(failure(ErrorCode::OutOfOrderSequence));
            }
            self.next_sequence.insert(source, number + 1);
        }
        let offset = self.records.len() as u64;
        self.records.push((source, number));
        self.known.insert((source, number), offset);
        Ok(Offset(offset))
    }
}

/// How many outcomes were answered as unknown.
fn unknown_of(bench: &Bench) -> usize {
    let answers = bench.answers.values();
    let failures = answers.filter_map(|answer| answer.as_ref().err());
    failures
        .filter(|failure| failure.retry() == RetryClass::Unknown)
        .count()
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Batch(u8),
    /// The owner takes the oldest it has received.
    Take,
    /// It refuses it instead, with one of the codes.
    Refuse(u8),
    /// It takes it and says that it does not know.
    Lose,
    Reconnect,
    /// It leaves: it takes what it has received or no longer owns it, and comes back as another.
    Leave,
    Locate,
    NoOwner,
    Pass(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u8..4).prop_map(Step::Batch),
        6 => Just(Step::Take),
        2 => (0_u8..4).prop_map(Step::Refuse),
        1 => Just(Step::Lose),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Leave),
        3 => Just(Step::Locate),
        1 => Just(Step::NoOwner),
        2 => (1_u8..200).prop_map(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Sources 0 and 1 are idempotent, 2 and 3 are not. Whatever happens: each batch is answered
    /// once; what succeeded is in the log at its offset; what failed for sure is not in the log;
    /// nothing is twice in the log; and each source's batches are in the order they were sent.
    #[test]
    fn no_schedule_breaks_order_or_lies_about_an_outcome(steps in prop::collection::vec(step(), 1..200), seed: u64) {
        let mut bench = Bench::connected();
        bench.dispatch = Dispatch::new(Arc::new(SeededRandom::new(seed)));
        bench.up(1, 1);
        let random = SeededRandom::new(seed ^ 1);
        let (mut log, mut generation, mut epoch) = (Log::default(), 1, 1);
        let mut batches: Vec<(u64, u32)> = Vec::new();
        let mut arrived = 0;
        let codes = [ErrorCode::NotOwner, ErrorCode::Overloaded, ErrorCode::StaleEpoch, ErrorCode::NotEnoughReplicas];
        // In the end the owner takes everything that reaches it.
        let ending = [Step::Locate, Step::Take, Step::Pass(100)].repeat(batches.len() + 400);
        for step in steps.into_iter().chain(ending) {
            let next = bench.sent.get(arrived).cloned();
            let named = next.as_ref().map(|produce| batches[u32::from_le_bytes(produce.batch[..4].try_into().unwrap()) as usize]);
            match (step, next) {
                (Step::Batch(source), _) => {
                    let source = u64::from(source);
                    let id = batches.len() as u32;
                    let number = batches.iter().filter(|(one, _)| *one == source).count() as u32;
                    batches.push((source, number));
                    bench.batch_of(id, source, (source < 2).then_some(source), id.to_le_bytes().to_vec(), FAR);
                }
                (Step::Take, Some(produce)) => {
                    let (source, number) = named.unwrap();
                    // As an owner does: a request of another epoch is refused before staging.
                    let result = if produce.epoch == Epoch(epoch) {
                        log.take(source, number, source < 2)
                    } else {
                        Err(failure(ErrorCode::StaleEpoch))
                    };
                    arrived += 1;
                    bench.dispatch.on_answer(bench.now, BrokerId(1), produce.request, result);
                    bench.settle();
                }
                (Step::Refuse(code), Some(produce)) => {
                    arrived += 1;
                    let code = codes[usize::from(code)];
                    // An owner that stops being one does so for everything it gets afterwards.
                    epoch += u32::from(matches!(code, ErrorCode::NotOwner | ErrorCode::StaleEpoch));
                    bench.dispatch.on_answer(bench.now, BrokerId(1), produce.request, Err(failure(code)));
                    bench.settle();
                }
                (Step::Lose, Some(produce)) => {
                    arrived += 1;
                    let (source, number) = named.unwrap();
                    if produce.epoch == Epoch(epoch) {
                        let _staged = log.take(source, number, source < 2);
                    }
                    epoch += 1;
                    bench.dispatch.on_answer(bench.now, BrokerId(1), produce.request, Err(failure(ErrorCode::OutcomeUnknown)));
                    bench.settle();
                }
                (Step::Reconnect, _) => {
                    // Some of what was on the way arrives, the rest is lost.
                    while let Some(produce) = bench.sent.get(arrived) {
                        if random.range(0, 2) == 0 && produce.epoch == Epoch(epoch) {
                            let (source, number) = batches[u32::from_le_bytes(produce.batch[..4].try_into().unwrap()) as usize];
                            let _staged = log.take(source, number, source < 2);
                            arrived += 1;
                        } else {
                            break;
                        }
                    }
                    arrived = bench.sent.len();
                    bench.down(1, generation);
                    generation += 1;
                    epoch += 1;
                    bench.up(1, generation);
                }
                (Step::Leave, _) => {
                    bench.leaving(1, generation);
                    bench.pass(Duration::from_millis(random.range(0, 20)));
                    bench.located(Some(owner(1, epoch)));
                    let takes = random.range(0, 4);
                    for nth in 0_u64.. {
                        let Some(produce) = bench.sent.get(arrived).cloned() else { break };
                        let (source, number) = batches[u32::from_le_bytes(produce.batch[..4].try_into().unwrap()) as usize];
                        let result = if nth < takes && produce.epoch == Epoch(epoch) {
                            log.take(source, number, source < 2)
                        } else {
                            Err(failure(ErrorCode::NotOwner))
                        };
                        arrived += 1;
                        bench.dispatch.on_answer(bench.now, BrokerId(1), produce.request, result);
                        bench.settle();
                    }
                    let unknown = unknown_of(&bench);
                    bench.down(1, generation);
                    prop_assert_eq!(unknown_of(&bench), unknown, "a broker that leaves puts nothing in doubt");
                    generation += 1;
                    epoch += 1;
                    bench.up(1, generation);
                }
                (Step::Locate, _) => bench.located(Some(owner(1, epoch))),
                (Step::NoOwner, _) => bench.located(None),
                (Step::Pass(ms), _) => bench.pass(Duration::from_millis(ms.into())),
                (Step::Take | Step::Refuse(_) | Step::Lose, None) => {}
            }
        }
        prop_assert!(bench.dispatch.is_idle());
        prop_assert_eq!(bench.answers.len(), batches.len());
        let unique: HashSet<_> = log.records.iter().collect();
        prop_assert_eq!(unique.len(), log.records.len(), "a batch is in the log twice");
        for source in 0..4 {
            let numbers: Vec<_> = log.records.iter().filter(|(one, _)| *one == source).map(|(_, number)| *number).collect();
            prop_assert!(numbers.is_sorted(), "source {source}: {numbers:?}");
        }
        for (id, answer) in &bench.answers {
            let batch = batches[*id as usize];
            match answer {
                Ok(offset) => prop_assert_eq!(log.records[offset.0 as usize], batch),
                Err(failure) if failure.retry() != RetryClass::Unknown => {
                    prop_assert!(!unique.contains(&batch), "{failure:?} but {batch:?} is in the log");
                }
                Err(_) => {}
            }
        }
    }
}
