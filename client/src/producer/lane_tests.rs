#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use forebay_record::ProducerId;
use proptest::prelude::*;

use super::*;

const BACKOFF: Backoff = Backoff {
    least: Duration::from_millis(10),
    most: Duration::from_millis(40),
};
const FAR: Duration = Duration::from_secs(1000);

fn identity(id: u64) -> Identity {
    Identity {
        id: ProducerId(id),
        epoch: 0,
    }
}

fn refusal(code: ErrorCode) -> Refusal {
    Refusal::new(code, "test")
}

/// A lane with that many batches of two records, all sent.
fn sent(lane: &mut Lane<u32>, batches: u32, now: Instant) -> Vec<(u64, Option<i32>)> {
    for batch in 0..batches {
        lane.push(batch, 2, now + FAR, None);
    }
    std::iter::from_fn(|| {
        lane.transmit(now)
            .map(|sent| (sent.serial, sent.stamp.map(|stamp| stamp.sequence)))
    })
    .collect()
}

fn answer(
    lane: &mut Lane<u32>,
    serial: u64,
    answer: Result<Option<u64>, Refusal>,
    now: Instant,
) -> Vec<(u32, Verdict)> {
    let mut settled = Vec::new();
    lane.on_answer(serial, answer, now, 0, &mut settled);
    settled
        .into_iter()
        .map(|settled| (settled.batch, settled.verdict))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn later_batches_wait_for_a_retried_one_and_keep_their_numbers() {
    let now = Instant::now();
    let mut lane = Lane::new(5, BACKOFF, Some(identity(1)));
    assert_eq!(
        sent(&mut lane, 3, now),
        [(0, Some(0)), (1, Some(2)), (2, Some(4))]
    );
    assert!(answer(&mut lane, 0, Err(refusal(ErrorCode::NotOwner)), now).is_empty());
    lane.push(3, 2, now + FAR, None);
    assert!(
        lane.transmit(now + FAR).is_none(),
        "two requests are still under way"
    );
    assert!(answer(&mut lane, 1, Err(refusal(ErrorCode::OutOfOrderSequence)), now).is_empty());
    assert!(answer(&mut lane, 2, Err(refusal(ErrorCode::OutOfOrderSequence)), now).is_empty());
    assert!(lane.transmit(now).is_none(), "the wait is not over");
    let later = lane.timer(now).unwrap();
    assert_eq!(
        sent(&mut lane, 0, later),
        [(0, Some(0)), (1, Some(2)), (2, Some(4)), (3, Some(6))]
    );
    assert!(lane.spent().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_refused_batch_gives_its_numbers_to_its_successors() {
    let now = Instant::now();
    let mut lane = Lane::new(5, BACKOFF, Some(identity(1)));
    sent(&mut lane, 3, now);
    let settled = answer(&mut lane, 1, Err(refusal(ErrorCode::InvalidBatch)), now);
    assert_eq!(settled, [(1, Verdict::Refused(refusal(ErrorCode::InvalidBatch)))]);
    assert_eq!(
        answer(&mut lane, 0, Ok(Some(7)), now),
        [(0, Verdict::Delivered { base_offset: Some(7) })]
    );
    assert!(answer(&mut lane, 2, Err(refusal(ErrorCode::OutOfOrderSequence)), now).is_empty());
    // What is sealed next is numbered behind the batch that moved up.
    assert_eq!(lane.take_renumbered().unwrap().sequence, 4);
    let later = lane.timer(now).unwrap();
    assert_eq!(sent(&mut lane, 0, later), [(2, Some(2))]);
}

#[tokio::test(start_paused = true)]
async fn forgotten_numbers_need_a_new_identity_and_spare_what_was_certainly_not_applied() {
    let now = Instant::now();
    let mut lane = Lane::new(5, BACKOFF, Some(identity(1)));
    sent(&mut lane, 2, now);
    assert!(answer(&mut lane, 0, Err(refusal(ErrorCode::UnknownProducer)), now).is_empty());
    assert!(answer(&mut lane, 1, Err(refusal(ErrorCode::UnknownProducer)), now).is_empty());
    assert_eq!(lane.spent(), Some(identity(1)));
    let later = now + BACKOFF.most;
    assert!(lane.transmit(later).is_none());
    lane.adopt(identity(2));
    let resent = lane.transmit(later).unwrap();
    assert_eq!((resent.serial, resent.stamp), (0, Some(identity(2).stamp(0))));
    assert_eq!(lane.transmit(later).unwrap().stamp, Some(identity(2).stamp(2)));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_may_have_been_applied_is_never_sent_under_a_new_identity() {
    let now = Instant::now();
    let mut lane = Lane::new(5, BACKOFF, Some(identity(1)));
    sent(&mut lane, 2, now);
    assert!(answer(&mut lane, 1, Err(refusal(ErrorCode::OutcomeUnknown)), now).is_empty());
    let settled = answer(&mut lane, 0, Err(refusal(ErrorCode::FencedProducer)), now);
    assert_eq!(
        settled,
        [(1, Verdict::Unknown(refusal(ErrorCode::OutcomeUnknown)))]
    );
    assert_eq!(lane.spent(), Some(identity(1)));
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_unknown_outcome_behind_a_refused_one_does_not_move_up() {
    let now = Instant::now();
    let mut lane = Lane::new(5, BACKOFF, Some(identity(1)));
    sent(&mut lane, 3, now);
    answer(&mut lane, 0, Err(refusal(ErrorCode::InvalidBatch)), now);
    assert!(answer(&mut lane, 1, Err(refusal(ErrorCode::OutcomeUnknown)), now).is_empty());
    let settled = answer(&mut lane, 2, Err(refusal(ErrorCode::OutOfOrderSequence)), now);
    assert_eq!(
        settled,
        [(1, Verdict::Unknown(refusal(ErrorCode::OutcomeUnknown)))]
    );
    lane.adopt(identity(2));
    let resent = lane.transmit(now + BACKOFF.most).unwrap();
    assert_eq!((resent.serial, resent.stamp), (2, Some(identity(2).stamp(0))));
}

#[tokio::test(start_paused = true)]
async fn a_producer_that_is_always_refused_gives_up() {
    let mut now = Instant::now();
    let mut lane = Lane::new(5, BACKOFF, Some(identity(0)));
    lane.push(0, 1, now + FAR, None);
    for id in 1..=u64::from(RENEWALS_MAX) {
        let serial = lane.transmit(now).unwrap().serial;
        assert!(answer(&mut lane, serial, Err(refusal(ErrorCode::FencedProducer)), now).is_empty());
        lane.adopt(identity(id));
        now += BACKOFF.most;
    }
    lane.transmit(now).unwrap();
    let settled = answer(&mut lane, 0, Err(refusal(ErrorCode::FencedProducer)), now);
    assert_eq!(
        settled,
        [(0, Verdict::Refused(refusal(ErrorCode::FencedProducer)))]
    );
}

#[tokio::test(start_paused = true)]
async fn without_numbers_an_unknown_outcome_is_final_and_a_refusal_is_retried() {
    let now = Instant::now();
    let mut lane = Lane::new(5, BACKOFF, None);
    assert_eq!(sent(&mut lane, 2, now), [(0, None), (1, None)]);
    let settled = answer(&mut lane, 0, Err(refusal(ErrorCode::OutcomeUnknown)), now);
    assert_eq!(
        settled,
        [(0, Verdict::Unknown(refusal(ErrorCode::OutcomeUnknown)))]
    );
    assert!(answer(&mut lane, 1, Err(refusal(ErrorCode::Overloaded)), now).is_empty());
    assert_eq!(sent(&mut lane, 0, now + BACKOFF.most), [(1, None)]);
}

#[tokio::test(start_paused = true)]
async fn time_runs_out_as_not_written_only_where_that_is_certain() {
    let now = Instant::now();
    let mut lane = Lane::new(5, BACKOFF, Some(identity(1)));
    sent(&mut lane, 2, now);
    answer(&mut lane, 0, Err(refusal(ErrorCode::Overloaded)), now);
    answer(&mut lane, 1, Err(refusal(ErrorCode::OutcomeUnknown)), now);
    let mut settled = Vec::new();
    lane.expire(now + FAR, &mut settled);
    let verdicts: Vec<_> = settled.into_iter().map(|settled| settled.verdict).collect();
    let expected = [
        Verdict::TimedOut(Some(refusal(ErrorCode::Overloaded))),
        Verdict::Unknown(refusal(ErrorCode::OutcomeUnknown)),
    ];
    assert_eq!(verdicts, expected);
}

/// A partition's owner, as far as numbers go.
#[derive(Default)]
struct Server {
    log: Vec<u32>,
    /// Next sequence, and where each sequence is.
    producers: HashMap<u64, (i32, HashMap<i32, u64>)>,
    forgotten: Vec<u64>,
}

impl Server {
    fn apply(&mut self, request: &Request) -> Result<Option<u64>, Refusal> {
        let Some(stamp) = request.stamp else {
            self.log.push(request.batch);
            return Ok(Some(self.log.len() as u64 - 1));
        };
        if self.forgotten.contains(&stamp.id.0) {
            return Err(refusal(ErrorCode::UnknownProducer));
        }
        let (next, known) = self.producers.entry(stamp.id.0).or_default();
        if let Some(offset) = known.get(&stamp.sequence) {
            let first = self.log[*offset as usize];
            assert_eq!(first, request.batch, "two batches under the numbers {stamp:?}");
            return Ok(Some(*offset));
        }
        if stamp.sequence != *next {
            return Err(refusal(ErrorCode::OutOfOrderSequence));
        }
        *next += request.records;
        known.insert(stamp.sequence, self.log.len() as u64);
        self.log.push(request.batch);
        Ok(Some(self.log.len() as u64 - 1))
    }
}

#[derive(Clone)]
struct Request {
    serial: u64,
    batch: u32,
    records: i32,
    stamp: Option<ProducerStamp>,
}

struct Sim {
    lane: Lane<u32>,
    server: Server,
    now: Instant,
    records: Vec<i32>,
    /// Sent and not looked at by the server, in order.
    network: VecDeque<Request>,
    answers: Vec<(u64, Result<Option<u64>, Refusal>)>,
    verdicts: HashMap<u32, Verdict>,
    identities: u64,
}

impl Sim {
    fn new(window: usize, idempotent: bool) -> Self {
        Self {
            lane: Lane::new(window, BACKOFF, idempotent.then(|| identity(0))),
            server: Server::default(),
            now: Instant::now(),
            records: Vec::new(),
            network: VecDeque::new(),
            answers: Vec::new(),
            verdicts: HashMap::new(),
            identities: 0,
        }
    }

    fn step(&mut self, choice: u8, pick: u8) {
        match choice {
            0..60 if self.lane.has_room() => {
                let records = i32::from(pick % 3) + 1;
                self.lane.push(
                    self.records.len() as u32,
                    records,
                    self.now + Duration::from_millis(300),
                    None,
                );
                self.records.push(records);
            }
            0..110 => self.send(),
            110..150 => self.serve(None),
            150..160 => self.serve(Some(refusal(ErrorCode::NotOwner))),
            160..164 => self.serve(Some(refusal(ErrorCode::InvalidBatch))),
            164..170 => {
                // Applied, but the answer is lost.
                if let Some(request) = self.network.pop_front() {
                    let _lost = self.server.apply(&request);
                    self.answers
                        .push((request.serial, Err(refusal(ErrorCode::OutcomeUnknown))));
                }
            }
            170..173 => self.server.forgotten.push(self.identities),
            173..176 => self.disconnect(pick),
            176..200 => self.now += Duration::from_millis(pick.into()),
            200..205 => self.with(|lane, now, settled| lane.expire(now, settled)),
            205..215 => self.renew(),
            _ => self.answer(pick),
        }
    }

    fn with(&mut self, act: impl FnOnce(&mut Lane<u32>, Instant, &mut Vec<Settled<u32>>)) {
        let mut settled = Vec::new();
        act(&mut self.lane, self.now, &mut settled);
        for Settled { batch, verdict } in settled {
            assert!(
                self.verdicts.insert(batch, verdict).is_none(),
                "batch {batch} was settled twice"
            );
        }
    }

    fn send(&mut self) {
        if let Some(Transmit { serial, stamp, batch }) = self.lane.transmit(self.now) {
            let (batch, records) = (*batch, self.records[*batch as usize]);
            self.network.push_back(Request {
                serial,
                batch,
                records,
                stamp,
            });
        }
    }

    fn serve(&mut self, fault: Option<Refusal>) {
        if let Some(request) = self.network.pop_front() {
            let answer = fault.map_or_else(|| self.server.apply(&request), Err);
            self.answers.push((request.serial, answer));
        }
    }

    fn answer(&mut self, pick: u8) {
        if !self.answers.is_empty() {
            let (serial, answer) = self.answers.remove(usize::from(pick) % self.answers.len());
            self.with(|lane, now, settled| lane.on_answer(serial, answer, now, 0, settled));
        }
    }

    /// The server sees some of what was sent, and nobody sees an answer.
    fn disconnect(&mut self, seen: u8) {
        let seen = usize::from(seen) % (self.network.len() + 1);
        let requests: Vec<_> = self.network.drain(..).collect();
        let mut serials: Vec<_> = self.answers.drain(..).map(|(serial, _)| serial).collect();
        for (place, request) in requests.into_iter().enumerate() {
            if place < seen {
                let _lost = self.server.apply(&request);
            }
            serials.push(request.serial);
        }
        for serial in serials {
            let answer = Err(refusal(ErrorCode::OutcomeUnknown));
            self.with(|lane, now, settled| lane.on_answer(serial, answer, now, 0, settled));
        }
    }

    fn renew(&mut self) {
        if self.lane.spent().is_some() {
            self.identities += 1;
            self.lane.adopt(identity(self.identities));
        }
    }

    /// Lets everything be settled by a healthy server, then compares what was said with the log.
    fn finish(mut self, idempotent: bool) {
        for _ in 0..1000 {
            self.renew();
            self.send();
            self.serve(None);
            self.answer(0);
            self.now += Duration::from_millis(1);
        }
        assert_eq!(
            self.verdicts.len(),
            self.records.len(),
            "some batch was never settled"
        );
        let log = &self.server.log;
        if idempotent {
            assert!(
                log.is_sorted_by(|a, b| a < b),
                "written twice or out of order: {log:?}"
            );
        }
        for (batch, verdict) in &self.verdicts {
            let written = log.iter().filter(|written| *written == batch).count();
            match verdict {
                Verdict::Delivered { base_offset } => {
                    assert_eq!(log[base_offset.unwrap() as usize], *batch);
                    assert_eq!(written, 1, "batch {batch} was delivered");
                }
                Verdict::Refused(_) | Verdict::TimedOut(_) => {
                    assert_eq!(written, 0, "batch {batch}: {verdict:?}")
                }
                Verdict::Unknown(_) => {
                    assert!(written <= 1, "batch {batch} of unknown outcome is there twice")
                }
            }
        }
    }
}

/// A lane of batches that bring their numbers, all sent.
fn given(batches: i32, now: Instant) -> (Lane<u32>, Vec<(u64, Option<i32>)>) {
    let mut lane = Lane::given(5, BACKOFF);
    for batch in 0..batches {
        let stamp = identity(7).stamp(100 + 2 * batch);
        lane.push(batch.unsigned_abs(), 2, now + FAR, Some(stamp));
    }
    let sent = sent(&mut lane, 0, now);
    (lane, sent)
}

#[tokio::test(start_paused = true)]
async fn given_numbers_are_kept_through_retries_and_repetitions_count_as_delivered() {
    let now = Instant::now();
    let (mut lane, first) = given(3, now);
    assert_eq!(first, [(0, Some(100)), (1, Some(102)), (2, Some(104))]);
    for (serial, code) in [
        (0, ErrorCode::OutcomeUnknown),
        (1, ErrorCode::OutOfOrderSequence),
        (2, ErrorCode::OutOfOrderSequence),
    ] {
        assert!(answer(&mut lane, serial, Err(refusal(code)), now).is_empty());
    }
    let later = lane.timer(now).unwrap();
    assert_eq!(sent(&mut lane, 0, later), first);
    let delivered = |base_offset| Verdict::Delivered { base_offset };
    let repeated = Err(refusal(ErrorCode::DuplicateSequence));
    assert_eq!(answer(&mut lane, 0, repeated, later), [(0, delivered(None))]);
    assert_eq!(
        answer(&mut lane, 1, Ok(Some(8)), later),
        [(1, delivered(Some(8)))]
    );
    assert!(lane.broken().is_none() && lane.spent().is_none());
}

#[tokio::test(start_paused = true)]
async fn nothing_follows_a_given_batch_that_was_refused() {
    let now = Instant::now();
    for code in [
        ErrorCode::UnknownTopic,
        ErrorCode::OutOfOrderSequence,
        ErrorCode::UnknownProducer,
    ] {
        let (mut lane, _) = given(3, now);
        lane.push(3, 2, now + FAR, Some(identity(7).stamp(106)));
        let first = answer(&mut lane, 0, Err(refusal(code)), now);
        assert_eq!(first, [(0, Verdict::Refused(refusal(code)))]);
        assert!(lane.transmit(now + FAR).is_none());
        let lost = Err(refusal(ErrorCode::OutcomeUnknown));
        assert!(answer(&mut lane, 1, lost, now).is_empty());
        let rest = answer(&mut lane, 2, Err(refusal(ErrorCode::NotOwner)), now);
        assert_eq!(
            rest,
            [
                (1, Verdict::Unknown(refusal(ErrorCode::OutcomeUnknown))),
                (2, Verdict::Refused(refusal(code))),
                (3, Verdict::Refused(refusal(code))),
            ]
        );
        assert_eq!(lane.broken(), Some(&refusal(code)));
        assert!(lane.transmit(now + FAR).is_none() && lane.take_renumbered().is_none());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_fails_batches_are_written_once_and_in_order_and_told_the_truth(
        window in 1usize..=5,
        steps in prop::collection::vec((any::<u8>(), any::<u8>()), 0..400),
    ) {
        let mut sim = Sim::new(window, true);
        for (choice, pick) in steps {
            sim.step(choice, pick);
        }
        sim.finish(true);
    }

    #[test]
    fn without_numbers_nothing_is_written_twice_and_the_truth_is_told(
        window in 1usize..=8,
        steps in prop::collection::vec((any::<u8>(), any::<u8>()), 0..400),
    ) {
        let mut sim = Sim::new(window, false);
        for (choice, pick) in steps {
            sim.step(choice, pick);
        }
        sim.finish(false);
    }
}
