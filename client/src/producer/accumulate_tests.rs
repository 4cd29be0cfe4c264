#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::sync::Arc;
use std::time::Duration;

use forebay_record::ProducerId;
use forebay_record::batch::{Codec, Limits, validate};
use proptest::prelude::*;
use tokio::sync::Semaphore;

use super::*;
use crate::producer::settlement::Ledger;

const BATCH_BYTES: usize = 1024;
const LINGER: Duration = Duration::from_millis(5);

fn stamp(sequence: i32) -> ProducerStamp {
    ProducerStamp {
        id: ProducerId(9),
        epoch: 0,
        sequence,
    }
}

struct Bench {
    memory: Arc<Semaphore>,
    ledger: Arc<Ledger>,
    accumulator: Accumulator,
}

impl Bench {
    fn new() -> Self {
        Self {
            memory: Arc::new(Semaphore::new(1 << 20)),
            ledger: Arc::new(Ledger::default()),
            accumulator: Accumulator::new(BATCH_BYTES, Some(stamp(0))),
        }
    }

    /// Puts a record as a producer does.
    fn put(&mut self, record: &ProducerRecord<'_>, codec: Codec, now: Instant) {
        let most = record_bytes_most(record);
        if !self.accumulator.fits(most) {
            assert!(
                self.accumulator
                    .seal()
                    .is_none_or(|emptied| emptied.failure.is_none())
            );
            let bytes = BATCH_BYTES.max(most + HEADER_LEN);
            let material = Material {
                builder: Builder::new(codec, BATCH_BYTES),
                settlement: Settlement::new("t".into(), 0, self.ledger.clone()),
                space: self.memory.clone().try_acquire_many_owned(bytes as u32).unwrap(),
            };
            self.accumulator.begin(material, now, now + LINGER);
        }
        let (_, settlement) = self.accumulator.append(record, 1).unwrap().unwrap();
        settlement.count();
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_batch_is_due_one_linger_after_its_first_record() {
    let (mut bench, now) = (Bench::new(), Instant::now());
    assert_eq!(bench.accumulator.due(), None);
    bench.put(&ProducerRecord::new("t", b"a"), Codec::None, now);
    bench.put(&ProducerRecord::new("t", b"b"), Codec::None, now + LINGER / 2);
    assert_eq!(bench.accumulator.due(), Some(now + LINGER));
    bench.accumulator.hurry(now + LINGER / 2);
    assert_eq!(bench.accumulator.due(), Some(now + LINGER / 2));
    bench.accumulator.hurry(now + LINGER);
    assert_eq!(
        bench.accumulator.due(),
        Some(now + LINGER / 2),
        "hurrying never delays"
    );
}

#[tokio::test(start_paused = true)]
async fn a_batch_sealed_early_gives_most_of_its_memory_back() {
    let (mut bench, now) = (Bench::new(), Instant::now());
    bench.put(&ProducerRecord::new("t", &[0; 5000]), Codec::Zstd, now);
    assert_eq!(
        (1 << 20) - bench.memory.available_permits(),
        5000 + RECORD_OVERHEAD + HEADER_LEN
    );
    bench.accumulator.seal();
    assert_eq!((1 << 20) - bench.memory.available_permits(), CHARGE_LEAST);
    drop(bench.accumulator.pop());
    assert_eq!(bench.memory.available_permits(), 1 << 20);
}

#[tokio::test(start_paused = true)]
async fn changed_numbers_are_those_of_the_batch_behind_the_sealed_ones() {
    let (mut bench, now) = (Bench::new(), Instant::now());
    for _ in 0..3 {
        bench.put(&ProducerRecord::new("t", b"a"), Codec::None, now);
        bench.put(&ProducerRecord::new("t", b"b"), Codec::None, now);
        bench.accumulator.seal();
    }
    bench.accumulator.renumber(stamp(100));
    bench.put(&ProducerRecord::new("t", b"c"), Codec::None, now);
    bench.accumulator.seal();
    let stamps: Vec<_> = std::iter::from_fn(|| bench.accumulator.pop())
        .map(|batch| batch.stamp.unwrap())
        .collect();
    assert_eq!(stamps, [stamp(0), stamp(2), stamp(4), stamp(106)]);
}

#[tokio::test(start_paused = true)]
async fn a_closed_partition_keeps_nothing() {
    let (mut bench, now) = (Bench::new(), Instant::now());
    bench.put(&ProducerRecord::new("t", b"a"), Codec::None, now);
    bench.accumulator.seal();
    bench.put(&ProducerRecord::new("t", b"b"), Codec::None, now);
    drop(bench.accumulator.close());
    assert!(bench.ledger.is_settled());
    let error = bench.ledger.take_failures().unwrap_err();
    assert_eq!((error.failed, error.unknown), (2, 0));
    assert_eq!(bench.memory.available_permits(), 1 << 20);
}

proptest! {
    #[test]
    fn batches_are_valid_within_their_size_and_numbered_without_a_gap(
        lens in prop::collection::vec((0usize..3000, 0usize..50, 0usize..3), 1..60),
        codec in prop::sample::select(Codec::ALL.to_vec()),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let (mut bench, now) = (Bench::new(), Instant::now());
        for (value, key, headers) in &lens {
            let (value, key) = (vec![1; *value], vec![2; *key]);
            let headers = vec![("name", Some(&b"value"[..])); *headers];
            bench.put(&ProducerRecord::new("t", &value).key(&key).headers(&headers), codec, now);
        }
        bench.accumulator.seal();
        let (mut records, mut next) = (0, 0);
        while let Some(batch) = bench.accumulator.pop() {
            let header = validate(&batch.bytes, &Limits::default()).unwrap();
            prop_assert_eq!(header.producer(), Some(stamp(next)));
            prop_assert_eq!(header.record_count() as i32, batch.records);
            prop_assert!(codec != Codec::None || batch.bytes.len() <= BATCH_BYTES || batch.records == 1);
            prop_assert!(codec != Codec::None || batch.bytes.len() <= batch.space.num_permits());
            next += batch.records;
            records += batch.records;
        }
        prop_assert_eq!(records as usize, lens.len());
    }
}
