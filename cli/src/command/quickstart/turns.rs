//! Whose turn it is: the order in which pieces of a file are dealt to partitions.
//!
//! A function of the pieces alone, so that the reader finds the order in which the writer dealt,
//! without a number in the records: they are plain log lines.

use forebay_client::{ConsumerRecord, ProducerRecord};

use crate::lines::{End, Piece};

/// A partition is dealt this much before the next one's turn.
const RUN_BYTES: usize = 128 << 10;

/// Longest piece of a line; a longer line becomes several records.
pub const PIECE_BYTES_MAX: usize = 256 << 10;

/// Header of a record that no line feed follows: the next record goes on with the line, or the
/// file ends without a line feed.
const NO_LINE_FEED: &str = "no-line-feed";

/// Deals pieces to partitions.
#[derive(Debug, Clone)]
pub struct Turns {
    partitions: u32,
    partition: u32,
    dealt: usize,
}

impl Turns {
    /// Begins with partition 0 of that many, at least one.
    pub const fn new(partitions: u32) -> Self {
        Self {
            partitions,
            partition: 0,
            dealt: 0,
        }
    }

    /// The partition whose turn it is.
    pub const fn partition(&self) -> u32 {
        self.partition
    }

    /// Counts a piece, by the bytes of the file that it stands for, that the partition got.
    pub const fn deal(&mut self, input_bytes: usize) {
        self.dealt += input_bytes;
        if self.dealt >= RUN_BYTES {
            self.dealt = 0;
            self.partition = (self.partition + 1) % if self.partitions == 0 { 1 } else { self.partitions };
        }
    }
}

/// The record of a piece.
pub fn record(piece: Piece<'_>) -> ProducerRecord<'_> {
    let headers: &[(&str, Option<&[u8]>)] = if piece.end == End::LineFeed {
        &[]
    } else {
        &[(NO_LINE_FEED, None)]
    };
    ProducerRecord {
        value: Some(piece.bytes),
        headers,
        ..ProducerRecord::default()
    }
}

/// Appends the bytes of the file that a record stands for; says how many.
pub fn restore(record: &ConsumerRecord, into: &mut Vec<u8>) -> usize {
    let value = record.value.as_deref().unwrap_or_default();
    into.extend_from_slice(value);
    if record
        .headers
        .iter()
        .any(|(key, _)| key == NO_LINE_FEED.as_bytes())
    {
        return value.len();
    }
    into.push(b'\n');
    value.len() + 1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use std::collections::VecDeque;

    use forebay_record::batch::{Builder, Codec, Limits, decode};
    use proptest::prelude::*;

    use super::*;
    use crate::lines::Lines;

    #[test]
    fn partitions_take_turns_of_about_a_run() {
        let mut turns = Turns::new(3);
        let mut dealt = Vec::new();
        for _ in 0..8 {
            dealt.push(turns.partition());
            turns.deal(RUN_BYTES / 2);
        }
        assert_eq!(dealt, [0, 0, 1, 1, 2, 2, 0, 0]);
        // A piece longer than a run is a run.
        turns.deal(PIECE_BYTES_MAX);
        assert_eq!(turns.partition(), 2);
    }

    #[test]
    fn one_partition_has_every_turn() {
        let mut turns = Turns::new(1);
        turns.deal(RUN_BYTES);
        assert_eq!(turns.partition(), 0);
    }

    /// A record as it comes back: through a batch.
    fn delivered(partition: u32, record: &ProducerRecord<'_>) -> ConsumerRecord {
        let mut builder = Builder::new(Codec::None, 0);
        builder
            .append(0, record.key, record.value, record.headers)
            .unwrap();
        let batch = decode(&builder.finish(None).unwrap(), &Limits::default()).unwrap();
        let found = batch.into_iter().next().unwrap().unwrap();
        ConsumerRecord {
            topic: "t".into(),
            partition,
            offset: found.offset,
            timestamp_ms: found.timestamp_ms,
            key: found.key,
            value: found.value,
            trace: None,
            headers: found.headers,
        }
    }

    async fn there_and_back(file: &[u8], partitions: u32) -> Vec<u8> {
        let mut dealt: Vec<VecDeque<ConsumerRecord>> = vec![VecDeque::new(); partitions as usize];
        let (mut lines, mut turns) = (Lines::new(file, PIECE_BYTES_MAX), Turns::new(partitions));
        while lines.fill().await.unwrap() {
            let mut pieces = lines.pieces();
            for piece in pieces.by_ref() {
                let at = turns.partition();
                dealt[at as usize].push_back(delivered(at, &record(piece)));
                turns.deal(piece.input_bytes());
            }
            let taken = pieces.taken();
            lines.consume(taken);
        }
        let (mut restored, mut turns) = (Vec::new(), Turns::new(partitions));
        while let Some(record) = dealt[turns.partition() as usize].pop_front() {
            turns.deal(restore(&record, &mut restored));
        }
        assert!(dealt.iter().all(VecDeque::is_empty), "records left over");
        restored
    }

    /// Texts that end with and without a line feed, and lines beyond a run and beyond a piece.
    fn file() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            6 => prop::collection::vec(any::<u8>(), 0..200),
            1 => (any::<u8>(), RUN_BYTES / 2..PIECE_BYTES_MAX * 2 + 2).prop_map(|(byte, length)| vec![byte; length]),
        ];
        (prop::collection::vec(line, 0..12), any::<bool>()).prop_map(|(lines, ended)| {
            let mut file = lines.join(&b'\n');
            file.extend(ended.then_some(b'\n'));
            file
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_is_dealt_and_put_together_is_the_file(file in file(), partitions in 1_u32..5) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            prop_assert!(runtime.block_on(there_and_back(&file, partitions)) == file);
        }
    }
}
