//! What holds for all records and for all bytes.

use bytes::Bytes;
use forebay_record::ProducerId;
use forebay_record::batch::{
    Batches, Builder, Codec, HEADER_LEN, Header, ProducerStamp, Scratch, decode, sequence_after,
    stamped_prefix, validate, validate_with,
};
use forebay_record::{Epoch, Offset};
use proptest::prelude::*;

use crate::{LIMITS, Plain, area, build, edited, sample, with_area};

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        // Long and repetitive, so that codecs have something to do.
        (any::<u8>(), 0usize..5000).prop_map(|(byte, len)| vec![byte; len]),
    ]
}

fn record() -> impl Strategy<Value = Plain> {
    let header = (
        prop::collection::vec(any::<u8>(), 0..8),
        prop::option::of(bytes()),
    );
    (
        -1i64..1 << 45,
        prop::option::of(bytes()),
        prop::option::of(bytes()),
        prop::collection::vec(header, 0..5),
    )
        .prop_map(|(timestamp_ms, key, value, headers)| Plain {
            timestamp_ms,
            key,
            value,
            headers,
        })
}

fn records() -> impl Strategy<Value = Vec<Plain>> {
    prop::collection::vec(record(), 1..20)
}

fn codec() -> impl Strategy<Value = Codec> {
    prop::sample::select(Codec::ALL.to_vec())
}

/// Everything that reads bytes, on bytes that mean nothing.
fn read_all(bytes: &Bytes, scratch: &mut Scratch) {
    let _ = Header::parse(bytes);
    let _ = validate_with(bytes, &LIMITS, scratch);
    let _ = stamped_prefix(bytes, Offset(5), Epoch(5));
    for item in Batches::new(bytes.clone()) {
        let Ok((header, batch)) = item else { continue };
        assert_eq!(header.len_bytes(), batch.len());
    }
    if let Ok(decoded) = decode(bytes, &LIMITS) {
        for record in decoded.records().flatten() {
            assert_eq!(record.headers.iter().count(), record.headers.len());
        }
        for record in decoded.into_iter().flatten() {
            assert_eq!(record.headers.iter().count(), record.headers.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn records_round_trip(
        records in records(),
        codec in codec(),
        stamp in prop::option::of((0u64..1 << 62, 0i16.., 0i32..)),
        base in 0u64..1 << 40,
    ) {
        let stamp = stamp.map(|(id, epoch, sequence)| ProducerStamp { id: ProducerId(id), epoch, sequence });
        let mut builder = Builder::new(codec, 100);
        // The second round shows that a builder can be used again.
        for _ in 0..2 {
            for record in &records {
                record.append_to(&mut builder);
            }
            prop_assert_eq!(builder.count(), records.len());
            let estimate = builder.len_estimate();
            let batch = builder.finish(stamp).unwrap();
            prop_assert!(codec != Codec::None || estimate == batch.len());

            let header = validate(&batch, &LIMITS).unwrap();
            prop_assert_eq!(header.record_count() as usize, records.len());
            prop_assert_eq!(header.producer(), stamp);
            let last = stamp.map(|stamp| sequence_after(stamp.sequence, header.last_offset_delta()));
            prop_assert_eq!(header.last_sequence(), last);
            prop_assert_eq!(header.base_timestamp(), records[0].timestamp_ms);
            prop_assert_eq!(Some(header.max_timestamp()), records.iter().map(|record| record.timestamp_ms).max());

            let prefix = stamped_prefix(&batch, Offset(base), Epoch(3)).unwrap();
            let stored: Bytes = [&prefix[..], &batch[HEADER_LEN..]].concat().into();
            let decoded = decode(&stored, &LIMITS).unwrap();
            let borrowed: Vec<Plain> = decoded
                .records()
                .map(|record| Plain::of(&record.unwrap(), header.base_timestamp()))
                .collect();
            prop_assert_eq!(&borrowed, &records);
            for (index, (owned, expected)) in decoded.into_iter().zip(&records).enumerate() {
                let owned = owned.unwrap();
                prop_assert_eq!(owned.offset, Offset(base + index as u64));
                prop_assert_eq!(owned.timestamp_ms, expected.timestamp_ms);
                prop_assert_eq!(owned.key.as_deref(), expected.key.as_deref());
                prop_assert_eq!(owned.value.as_deref(), expected.value.as_deref());
                let headers: Vec<_> = owned
                    .headers
                    .iter()
                    .map(|(key, value)| (key.to_vec(), value.map(|value| value.to_vec())))
                    .collect();
                prop_assert_eq!(&headers, &expected.headers);
            }
        }
    }

    #[test]
    fn a_changed_byte_is_always_noticed(
        records in records(),
        codec in codec(),
        at in any::<prop::sample::Index>(),
        change in 1u8..,
    ) {
        let mut batch = build(codec, &records).to_vec();
        let at = 16 + at.index(batch.len() - 16);
        batch[at] ^= change;
        prop_assert!(validate(&batch, &LIMITS).is_err());
    }

    #[test]
    fn a_cut_batch_is_refused(records in records(), codec in codec(), at in any::<prop::sample::Index>()) {
        let batch = build(codec, &records);
        let cut = batch.slice(..at.index(batch.len()));
        prop_assert!(validate(&cut, &LIMITS).is_err());
        read_all(&cut, &mut Scratch::new());
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read_all(&bytes.into(), &mut Scratch::new());
    }

    #[test]
    fn any_records_area_is_read_without_a_panic(
        area in prop::collection::vec(prop_oneof![any::<u8>(), 0u8..16], 0..200),
        codec in codec(),
        count in 1i32..50,
    ) {
        read_all(&with_area(codec, count, &area).into(), &mut Scratch::new());
    }

    /// Behind a right checksum, so that every line of the decoders is in reach.
    #[test]
    fn a_changed_stream_is_read_without_a_panic(
        records in records(),
        codec in codec(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let batch = build(codec, &records);
        let mut area = area(&batch);
        for (at, byte) in changes {
            let at = at.index(area.len());
            area[at] = byte;
        }
        if let Some(cut) = cut {
            area.truncate(cut.index(area.len()));
        }
        read_all(&with_area(codec, records.len() as i32, &area).into(), &mut Scratch::new());
    }

    /// The same for the header.
    #[test]
    fn a_changed_header_is_read_without_a_panic(
        codec in codec(),
        at in 0usize..HEADER_LEN - 8,
        field in prop_oneof![Just([0xff; 8]), Just([0x7f; 8]), Just([0x80, 0, 0, 0, 0, 0, 0, 0]), any::<[u8; 8]>()],
        width in 1usize..=8,
    ) {
        let batch = edited(&sample(codec), at, &field[..width]);
        read_all(&batch.into(), &mut Scratch::new());
    }
}
