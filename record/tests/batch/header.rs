//! Parsing, cutting and stamping: what a broker does without looking at records.

use bytes::{Bytes, BytesMut};
use forebay_record::batch::{
    BatchError, Batches, Codec, HEADER_LEN, Header, TimestampType, sequence_after, split_first,
    stamp_in_place, stamped_prefix, validate,
};
use forebay_record::{Epoch, Offset};

use crate::{LIMITS, edited, sample};

#[test]
fn a_fresh_batch_has_no_leader_and_no_producer() {
    let header = Header::parse(&sample(Codec::Zstd)).unwrap();
    assert_eq!(header.base_offset(), Offset(0));
    assert_eq!(header.last_offset(), Offset(1));
    assert_eq!(header.end_offset(), Offset(2));
    assert_eq!(header.leader_epoch(), None);
    assert_eq!(header.producer_id(), None);
    assert_eq!(header.producer(), None);
    assert_eq!(header.last_sequence(), None);
    assert_eq!(header.codec(), Codec::Zstd);
    assert_eq!(header.record_count(), 2);
    assert_eq!(header.base_timestamp(), 1000);
    assert_eq!(header.max_timestamp(), 1005);
    assert_eq!(header.timestamp_type(), TimestampType::CreateTime);
    assert!(!header.is_transactional() && !header.is_control() && !header.has_delete_horizon());
}

#[test]
fn stamping_changes_offset_and_epoch_and_keeps_the_checksum() {
    let batch = sample(Codec::Lz4);
    let prefix = stamped_prefix(&batch, Offset(1 << 40), Epoch(77)).unwrap();
    let stamped: Bytes = [&prefix[..], &batch[HEADER_LEN..]].concat().into();
    let header = Header::parse(&stamped).unwrap();
    assert_eq!(header.base_offset(), Offset(1 << 40));
    assert_eq!(header.last_offset(), Offset((1 << 40) + 1));
    assert_eq!(header.leader_epoch(), Some(Epoch(77)));
    let records: Vec<_> = forebay_record::batch::decode(&stamped, &LIMITS)
        .unwrap()
        .into_iter()
        .map(|record| record.unwrap().offset)
        .collect();
    assert_eq!(records, [Offset(1 << 40), Offset((1 << 40) + 1)]);

    let mut in_place = batch.to_vec();
    stamp_in_place(&mut in_place, Offset(1 << 40), Epoch(77)).unwrap();
    assert_eq!(in_place, stamped);
    assert_eq!(in_place[16..], batch[16..]);
}

#[test]
fn stamping_out_of_range_is_refused_and_changes_nothing() {
    let mut batch = sample(Codec::None).to_vec();
    let before = batch.clone();
    assert_eq!(
        stamp_in_place(&mut batch, Offset(i64::MAX as u64 - 1), Epoch(0)),
        Err(BatchError::OffsetRange {
            base: i128::from(i64::MAX) - 1,
            delta: 1
        })
    );
    assert_eq!(
        stamp_in_place(&mut batch, Offset(u64::MAX), Epoch(0)),
        Err(BatchError::OffsetRange {
            base: u64::MAX.into(),
            delta: 1
        })
    );
    assert_eq!(
        stamp_in_place(&mut batch, Offset(0), Epoch(1 << 31)),
        Err(BatchError::LeaderEpochRange { epoch: 1 << 31 })
    );
    assert_eq!(
        stamped_prefix(&batch[..60], Offset(0), Epoch(0)),
        Err(BatchError::Truncated { have: 60, need: 61 })
    );
    assert_eq!(batch, before);
    stamp_in_place(&mut batch, Offset(i64::MAX as u64 - 2), Epoch(i32::MAX as u32)).unwrap();
    assert_eq!(
        Header::parse(&batch).unwrap().end_offset(),
        Offset(i64::MAX as u64)
    );
}

#[test]
fn batches_are_cut_without_copying_until_the_truncated_one() {
    let batches = [sample(Codec::None), sample(Codec::Gzip), sample(Codec::Snappy)];
    let mut joined = BytesMut::new();
    for batch in &batches {
        joined.extend_from_slice(batch);
    }
    let joined = joined.freeze();
    let found: Vec<Bytes> = Batches::new(joined.clone()).map(|item| item.unwrap().1).collect();
    assert_eq!(found, batches);
    assert_eq!(found[0].as_ptr(), joined.as_ptr());

    let cut = joined.slice(..joined.len() - 1);
    let mut items = Batches::new(cut);
    assert!(items.next().unwrap().is_ok());
    assert!(items.next().unwrap().is_ok());
    let (have, need) = (batches[2].len() - 1, batches[2].len());
    assert_eq!(items.next(), Some(Err(BatchError::Truncated { have, need })));
    assert_eq!(items.next(), None);

    let (header, first, rest) = split_first(&joined).unwrap();
    assert_eq!((header.codec(), &first), (Codec::None, &batches[0]));
    assert_eq!(rest, joined.slice(batches[0].len()..));
}

#[test]
fn every_truncation_says_so() {
    for codec in Codec::ALL {
        let batch = sample(codec);
        for have in 0..batch.len() {
            let error = Header::parse(&batch[..have]).unwrap_err();
            assert!(matches!(error, BatchError::Truncated { have: at, need } if at == have && need > have));
            assert_eq!(validate(&batch[..have], &LIMITS), Err(error));
        }
    }
}

#[test]
fn a_compacted_batch_keeps_its_last_offset() {
    // Two records, the last of which had offset delta 9 before compaction.
    let batch = edited(&sample(Codec::None), 23, &9i32.to_be_bytes());
    let header = Header::parse(&batch).unwrap();
    assert_eq!((header.record_count(), header.last_offset()), (2, Offset(9)));
    let decoded = forebay_record::batch::decode(&batch.into(), &LIMITS).unwrap();
    assert_eq!(decoded.records().filter(Result::is_ok).count(), 2);
}

#[test]
fn sequences_wrap_to_zero() {
    assert_eq!(sequence_after(0, 0), 0);
    assert_eq!(sequence_after(5, 10), 15);
    assert_eq!(sequence_after(i32::MAX - 1, 1), i32::MAX);
    assert_eq!(sequence_after(i32::MAX, 1), 0);
    assert_eq!(sequence_after(i32::MAX, i32::MAX), i32::MAX - 1);
}
