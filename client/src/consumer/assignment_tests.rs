#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use forebay_proto::error::Failure;
use forebay_record::Epoch;
use forebay_record::batch::{Builder, Codec, stamp_in_place};
use proptest::prelude::*;

use super::*;

/// A batch of that many records at an offset.
fn batch(base: u64, records: usize) -> Vec<u8> {
    let mut builder = Builder::new(Codec::None, 0);
    for _ in 0..records {
        let none: [(&str, Option<&[u8]>); 0] = [];
        builder.append(0, None, Some(b"v"), &none).unwrap();
    }
    let mut bytes = builder.finish(None).unwrap().to_vec();
    stamp_in_place(&mut bytes, Offset(base), Epoch(1)).unwrap();
    bytes
}

type Asked = Vec<(u32, u64)>;

struct Bench {
    assignment: Assignment,
    config: ConsumerConfig,
    now: Instant,
}

impl Bench {
    fn new(partitions: &[(u32, u64)]) -> Self {
        let mut assignment = Assignment::default();
        for (partition, offset) in partitions {
            assignment.put("t", *partition, Offset(*offset));
        }
        Self {
            assignment,
            config: ConsumerConfig::default(),
            now: Instant::now(),
        }
    }

    /// Partitions and offsets asked for.
    fn request(&mut self) -> Option<(Asked, Vec<Ticket>)> {
        let (request, tickets) = self.assignment.next_request(&self.config, self.now)?;
        Some((
            request
                .partitions
                .iter()
                .map(|part| (part.partition, part.offset))
                .collect(),
            tickets,
        ))
    }

    fn fetched(&mut self, ticket: Ticket, answer: PartitionFetched) -> Vec<Item> {
        let mut items = Vec::new();
        self.assignment
            .on_fetched(ticket, answer, &self.config, self.now, 0, &mut items);
        items
    }
}

fn refused(code: ErrorCode) -> PartitionFetched {
    PartitionFetched {
        error: Some(Failure::new(code, "test").into()),
        log_start: 10,
        high_watermark: 20,
        ..Default::default()
    }
}

#[tokio::test(start_paused = true)]
async fn every_partition_comes_first_in_its_turn() {
    let mut bench = Bench::new(&[(0, 0), (1, 0), (2, 0)]);
    let mut firsts = Vec::new();
    for _ in 0..4 {
        let (asked, _) = bench.request().unwrap();
        assert_eq!(asked.len(), 3);
        firsts.push(asked[0].0);
    }
    assert_eq!(firsts, [0, 1, 2, 0]);
}

#[tokio::test(start_paused = true)]
async fn what_was_fetched_before_a_seek_is_dropped() {
    let mut bench = Bench::new(&[(0, 0)]);
    let (_, tickets) = bench.request().unwrap();
    bench.assignment.put("t", 0, Offset(50));
    let answer = PartitionFetched {
        batches: batch(0, 3).into(),
        ..Default::default()
    };
    assert!(bench.fetched(tickets[0], answer).is_empty());
    assert_eq!(bench.request().unwrap().0, [(0, 50)]);
}

#[tokio::test(start_paused = true)]
async fn a_declared_gap_is_skipped_and_reading_goes_on_behind_it() {
    let mut bench = Bench::new(&[(0, 7)]);
    let (_, tickets) = bench.request().unwrap();
    let answer = PartitionFetched {
        high_watermark: 90,
        skip_to: Some(50),
        ..Default::default()
    };
    assert!(bench.fetched(tickets[0], answer).is_empty());
    assert_eq!(bench.request().unwrap().0, [(0, 50)]);
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_fails_is_left_alone_for_a_while_and_reported_in_the_end() {
    let mut bench = Bench::new(&[(0, 0), (1, 0)]);
    let (asked, tickets) = bench.request().unwrap();
    assert_eq!(asked, [(0, 0), (1, 0)]);
    assert!(bench.fetched(tickets[0], refused(ErrorCode::NotOwner)).is_empty());
    assert_eq!(bench.request().unwrap().0, [(1, 0)]);
    assert!(bench.assignment.next_retry().unwrap() > bench.now);
    bench.now += bench.config.retry_timeout;
    let (asked, tickets) = bench.request().unwrap();
    let place = asked.iter().position(|(partition, _)| *partition == 0).unwrap();
    let items = bench.fetched(tickets[place], refused(ErrorCode::NotOwner));
    assert!(matches!(
        &items[..],
        [Item::Failed {
            error: ConsumeError::Refused { partition: 0, .. },
            ..
        }]
    ));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_good_is_reported_at_once() {
    let mut bench = Bench::new(&[(0, 0)]);
    let (_, tickets) = bench.request().unwrap();
    let items = bench.fetched(tickets[0], refused(ErrorCode::UnknownTopic));
    assert!(matches!(
        &items[..],
        [Item::Failed {
            error: ConsumeError::Refused { .. },
            ..
        }]
    ));
}

#[tokio::test(start_paused = true)]
async fn an_offset_out_of_range_is_replaced_as_configured() {
    for (policy, expected) in [(OnOutOfRange::Earliest, 10), (OnOutOfRange::Latest, 20)] {
        let mut bench = Bench::new(&[(0, 99)]);
        bench.config.on_out_of_range = policy;
        let (_, tickets) = bench.request().unwrap();
        assert!(
            bench
                .fetched(tickets[0], refused(ErrorCode::OffsetOutOfRange))
                .is_empty()
        );
        assert_eq!(bench.request().unwrap().0, [(0, expected)]);
        assert_eq!(bench.assignment.get("t", 0).unwrap().position, Offset(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_start_that_is_out_of_range_itself_is_not_asked_for_in_a_loop() {
    let mut bench = Bench::new(&[(0, 10)]);
    bench.config.on_out_of_range = OnOutOfRange::Earliest;
    let (_, tickets) = bench.request().unwrap();
    assert!(
        bench
            .fetched(tickets[0], refused(ErrorCode::OffsetOutOfRange))
            .is_empty()
    );
    assert!(bench.request().is_none(), "it waits");
}

#[tokio::test(start_paused = true)]
async fn batches_that_go_back_are_reported() {
    let mut bench = Bench::new(&[(0, 0)]);
    let (_, tickets) = bench.request().unwrap();
    let batches = [batch(0, 5), batch(3, 5)].concat();
    let items = bench.fetched(
        tickets[0],
        PartitionFetched {
            batches: batches.into(),
            ..Default::default()
        },
    );
    let [Item::Batch { .. }, Item::Failed { error, .. }] = &items[..] else {
        panic!("{items:?}")
    };
    assert!(matches!(
        error,
        ConsumeError::OutOfOrder {
            offset: Offset(5),
            found: Offset(3),
            ..
        }
    ));
}

proptest! {
    #[test]
    fn a_fetch_ends_where_its_whole_batches_end_and_says_where_it_was_cut(
        counts in prop::collection::vec(1usize..5, 1..8),
        from in 0u64..10,
        cut in 0usize..60,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let mut bench = Bench::new(&[(0, from)]);
        let (_, tickets) = bench.request().unwrap();
        let (mut bytes, mut ends, mut end) = (Vec::new(), Vec::new(), 0);
        for count in counts {
            bytes.extend(batch(end, count));
            end += count as u64;
            ends.push(end);
        }
        bytes.truncate(bytes.len() - cut);
        if cut > 0 {
            ends.pop();
        }
        ends.retain(|end| *end > from);
        let answer = PartitionFetched { batches: bytes.into(), high_watermark: end, ..Default::default() };
        let items = bench.fetched(tickets[0], answer);
        let found: Vec<_> = items
            .iter()
            .filter_map(|item| match item {
                Item::Batch { header, .. } => Some(header.end_offset().0),
                Item::Failed { .. } => None,
            })
            .collect();
        prop_assert_eq!(&found, &ends);
        prop_assert_eq!(items.len() - found.len(), usize::from(cut > 0));
        prop_assert_eq!(bench.request().unwrap().0, [(0, ends.last().copied().unwrap_or(from))]);
    }
}
