//! One input for each way a batch can be wrong.

use bytes::Bytes;
use forebay_record::ProducerId;
use forebay_record::batch::{
    BatchError, BuildError, Builder, Codec, Field, Header, Limits, ProducerStamp, RecordFault, decode,
    validate,
};

use crate::{LIMITS, area, edited, sample, with_area};

fn error(batch: &[u8]) -> BatchError {
    validate(batch, &LIMITS).unwrap_err()
}

/// The error of a batch with this one record.
fn fault(record: &[u8]) -> RecordFault {
    match error(&with_area(Codec::None, 1, record)) {
        BatchError::Record { index: 0, fault } => fault,
        other => panic!("{other}"),
    }
}

#[test]
fn fields_of_the_header_are_checked() {
    let batch = sample(Codec::None);
    let extra = [&batch[..], b"x"].concat();
    let long = batch.len() as i32;
    let negative = -1i32;
    let cases: Vec<(Vec<u8>, BatchError)> = vec![
        (vec![], BatchError::Truncated { have: 0, need: 61 }),
        (edited(&batch, 16, &[0]), BatchError::OldFormat { magic: 0 }),
        (edited(&batch, 16, &[1]), BatchError::OldFormat { magic: 1 }),
        (edited(&batch, 16, &[3]), BatchError::Magic { magic: 3 }),
        (edited(&batch, 16, &[0xff]), BatchError::Magic { magic: 255 }),
        (
            edited(&batch, 8, &0i32.to_be_bytes()),
            BatchError::Length { length: 0, least: 49 },
        ),
        (
            edited(&batch, 8, &48i32.to_be_bytes()),
            BatchError::Length {
                length: 48,
                least: 49,
            },
        ),
        (
            edited(&batch, 8, &i32::MIN.to_be_bytes()),
            BatchError::Length {
                length: i32::MIN,
                least: 49,
            },
        ),
        (
            edited(&batch, 8, &i32::MAX.to_be_bytes()),
            BatchError::Truncated {
                have: batch.len(),
                need: i32::MAX as usize + 12,
            },
        ),
        (
            edited(&batch, 8, &long.to_be_bytes()),
            BatchError::Truncated {
                have: batch.len(),
                need: batch.len() + 12,
            },
        ),
        (
            extra,
            BatchError::TrailingBytes {
                batch: batch.len(),
                extra: 1,
            },
        ),
        (
            edited(&batch, 0, &(-1i64).to_be_bytes()),
            BatchError::OffsetRange { base: -1, delta: 1 },
        ),
        (
            edited(&batch, 0, &i64::MAX.to_be_bytes()),
            BatchError::OffsetRange {
                base: i64::MAX.into(),
                delta: 1,
            },
        ),
        (
            edited(&batch, 0, &7i64.to_be_bytes()),
            BatchError::BaseOffset { base: 7 },
        ),
        (
            edited(&batch, 57, &negative.to_be_bytes()),
            BatchError::Count { count: -1, delta: 1 },
        ),
        (
            edited(&batch, 57, &i32::MAX.to_be_bytes()),
            BatchError::Count {
                count: i32::MAX,
                delta: 1,
            },
        ),
        (
            edited(&batch, 57, &3i32.to_be_bytes()),
            BatchError::Count { count: 3, delta: 1 },
        ),
        (
            edited(&batch, 57, &1i32.to_be_bytes()),
            BatchError::Count { count: 1, delta: 1 },
        ),
        (
            edited(&batch, 57, &0i32.to_be_bytes()),
            BatchError::Count { count: 0, delta: 1 },
        ),
        (
            edited(&batch, 23, &negative.to_be_bytes()),
            BatchError::Count { count: 2, delta: -1 },
        ),
    ];
    for (batch, expected) in cases {
        assert_eq!(error(&batch), expected);
    }
}

#[test]
fn attributes_are_checked() {
    let batch = sample(Codec::None);
    for codec in 5..8u8 {
        let batch = edited(&batch, 22, &[codec]);
        assert_eq!(error(&batch), BatchError::UnknownCodec { codec });
        assert_eq!(Header::parse(&batch), Err(BatchError::UnknownCodec { codec }));
    }
    assert_eq!(
        error(&edited(&batch, 22, &[0x80])),
        BatchError::UnknownAttributes { attributes: 0x80 }
    );
    assert_eq!(
        error(&edited(&batch, 21, &[0x40])),
        BatchError::UnknownAttributes { attributes: 0x4000 }
    );
    assert_eq!(error(&edited(&batch, 22, &[1 << 3])), BatchError::LogAppendTime);
    assert_eq!(
        error(&edited(&batch, 22, &[1 << 4])),
        BatchError::TransactionWithoutProducer
    );
    assert_eq!(error(&edited(&batch, 22, &[1 << 5])), BatchError::Control);
    assert_eq!(error(&edited(&batch, 22, &[1 << 6])), BatchError::DeleteHorizon);
}

#[test]
fn control_batches_pass_only_where_allowed() {
    let batch = edited(&sample(Codec::None), 22, &[1 << 5]);
    let limits = Limits {
        allow_control: true,
        ..LIMITS
    };
    assert!(validate(&batch, &limits).unwrap().is_control());
    // The end marker of a transaction: a producer without a sequence.
    let marker = edited(&batch, 43, &9i64.to_be_bytes());
    let marker = edited(&marker, 51, &0i16.to_be_bytes());
    assert_eq!(
        validate(&marker, &limits).unwrap().producer_id(),
        Some(ProducerId(9))
    );
    assert_eq!(validate(&marker, &LIMITS), Err(BatchError::Control));
}

#[test]
fn producer_fields_must_go_together() {
    let producer = |id: i64, epoch: i16, sequence: i32| {
        let batch = edited(&sample(Codec::None), 43, &id.to_be_bytes());
        let batch = edited(&batch, 51, &epoch.to_be_bytes());
        edited(&batch, 53, &sequence.to_be_bytes())
    };
    for (id, epoch, sequence) in [
        (0, -1, 0),
        (0, 0, -1),
        (5, i16::MIN, 3),
        (-2, 0, 0),
        (i64::MIN, -1, -1),
    ] {
        assert_eq!(
            error(&producer(id, epoch, sequence)),
            BatchError::Producer { id, epoch, sequence }
        );
    }
    // Some clients number their records from 0 though they have no id.
    for (id, epoch, sequence) in [(-1, -1, -1), (-1, -1, 0), (0, 0, 0), (7, i16::MAX, i32::MAX)] {
        assert!(validate(&producer(id, epoch, sequence), &LIMITS).is_ok());
    }
}

#[test]
fn a_batch_at_the_limit_passes_and_one_byte_more_does_not() {
    let batch = sample(Codec::Gzip);
    let bytes = batch.len();
    assert!(
        validate(
            &batch,
            &Limits {
                batch_bytes_max: bytes,
                ..LIMITS
            }
        )
        .is_ok()
    );
    assert_eq!(
        validate(
            &batch,
            &Limits {
                batch_bytes_max: bytes - 1,
                ..LIMITS
            }
        ),
        Err(BatchError::TooLarge {
            bytes,
            max: bytes - 1
        })
    );
}

#[test]
fn a_wrong_checksum_is_refused() {
    let mut batch = sample(Codec::None).to_vec();
    let stored = Header::parse(&batch).unwrap().crc();
    let last = batch.len() - 1;
    batch[last] ^= 1;
    let computed = forebay_record::crc32c(&batch[21..]);
    assert_eq!(error(&batch), BatchError::Checksum { stored, computed });
    assert_eq!(
        decode(&batch.into(), &LIMITS).unwrap_err(),
        BatchError::Checksum { stored, computed }
    );
}

#[test]
fn the_count_must_be_that_of_the_records() {
    let records = area(&sample(Codec::None));
    assert_eq!(
        error(&with_area(Codec::None, 3, &records)),
        BatchError::RecordsMissing {
            declared: 3,
            found: 2
        }
    );
    assert!(matches!(
        error(&with_area(Codec::None, 1, &records)),
        BatchError::RecordsLeft {
            declared: 1,
            left: 300..
        }
    ));
    assert_eq!(
        error(&with_area(Codec::None, i32::MAX, &[])),
        BatchError::RecordsMissing {
            declared: i32::MAX as u32,
            found: 0
        }
    );
    assert_eq!(
        error(&with_area(Codec::None, 0, &[])),
        BatchError::Count { count: 0, delta: -1 }
    );
    let extra = [records, vec![0]].concat();
    assert_eq!(
        error(&with_area(Codec::None, 2, &extra)),
        BatchError::RecordsLeft { declared: 2, left: 1 }
    );
}

/// Fields of the record used below: length 6, attributes, timestamp, offset, no key, no value, no
/// headers.
const EMPTY: [u8; 7] = [12, 0, 0, 0, 1, 1, 0];

#[test]
fn the_smallest_record_passes() {
    assert!(validate(&with_area(Codec::None, 1, &EMPTY), &LIMITS).is_ok());
}

#[test]
fn lengths_within_a_record_are_checked() {
    use Field as F;
    use RecordFault::{BytesLeft, Ended, Length, Varint};
    let cases: Vec<(&[u8], RecordFault)> = vec![
        (
            &[1],
            Length {
                field: F::Length,
                length: -1,
                left: 0,
            },
        ),
        (
            &[14, 0, 0, 0, 1, 1, 0],
            Length {
                field: F::Length,
                length: 7,
                left: 6,
            },
        ),
        (
            &[0xfe, 0xff, 0xff, 0xff, 0x0f],
            Length {
                field: F::Length,
                length: i32::MAX,
                left: 0,
            },
        ),
        (
            &[0xff, 0xff, 0xff, 0xff, 0x0f],
            Length {
                field: F::Length,
                length: i32::MIN,
                left: 0,
            },
        ),
        (&[0xff, 0xff, 0xff, 0xff, 0x7f], Varint { field: F::Length }),
        (&[0x80], Ended { field: F::Length }),
        (&[0], Ended { field: F::Attributes }),
        (
            &[2, 0],
            Ended {
                field: F::TimestampDelta,
            },
        ),
        (
            &[4, 0, 0],
            Ended {
                field: F::OffsetDelta,
            },
        ),
        (&[6, 0, 0, 0], Ended { field: F::Key }),
        (&[8, 0, 0, 0, 1], Ended { field: F::Value }),
        (
            &[10, 0, 0, 0, 1, 1],
            Ended {
                field: F::HeaderCount,
            },
        ),
        (
            &[12, 0, 0, 0, 3, 1, 0],
            Length {
                field: F::Key,
                length: -2,
                left: 2,
            },
        ),
        (
            &[12, 0, 0, 0, 6, 1, 0],
            Length {
                field: F::Key,
                length: 3,
                left: 2,
            },
        ),
        (
            &[12, 0, 0, 0, 1, 3, 0],
            Length {
                field: F::Value,
                length: -2,
                left: 1,
            },
        ),
        (
            &[12, 0, 0, 0, 1, 4, 0],
            Length {
                field: F::Value,
                length: 2,
                left: 1,
            },
        ),
        (
            &[12, 0, 0, 0, 1, 1, 1],
            Length {
                field: F::HeaderCount,
                length: -1,
                left: 1,
            },
        ),
        (
            &[12, 0, 0, 0, 1, 1, 2],
            Length {
                field: F::HeaderCount,
                length: 1,
                left: 1,
            },
        ),
        (
            &[20, 0, 0, 0, 1, 1, 0xfe, 0xff, 0xff, 0xff, 0x0f],
            Length {
                field: F::HeaderCount,
                length: i32::MAX,
                left: 5,
            },
        ),
        (
            &[16, 0, 0, 0, 1, 1, 2, 1, 1],
            Length {
                field: F::HeaderKey,
                length: -1,
                left: 1,
            },
        ),
        (
            &[16, 0, 0, 0, 1, 1, 2, 4, 1],
            Length {
                field: F::HeaderKey,
                length: 2,
                left: 1,
            },
        ),
        (
            &[16, 0, 0, 0, 1, 1, 2, 0, 3],
            Length {
                field: F::HeaderValue,
                length: -2,
                left: 0,
            },
        ),
        (
            &[16, 0, 0, 0, 1, 1, 2, 2, 1],
            Ended {
                field: F::HeaderValue,
            },
        ),
        (&[14, 0, 0, 0, 1, 1, 0, 0], BytesLeft { left: 1 }),
    ];
    for (record, expected) in cases {
        assert_eq!(fault(record), expected, "{record:?}");
        let batch: Bytes = with_area(Codec::None, 1, record).into();
        let decoded: Vec<_> = decode(&batch, &LIMITS)
            .unwrap()
            .records()
            .map(|item| item.is_ok())
            .collect();
        assert_eq!(decoded, [false]);
    }
}

#[test]
fn offsets_count_up_from_zero() {
    assert_eq!(
        fault(&[12, 0, 0, 2, 1, 1, 0]),
        RecordFault::OffsetDelta {
            expected: 0,
            found: 1
        }
    );
    assert_eq!(
        fault(&[12, 0, 0, 1, 1, 1, 0]),
        RecordFault::OffsetDelta {
            expected: 0,
            found: -1
        }
    );
    let repeated = with_area(Codec::None, 2, &EMPTY.repeat(2));
    assert_eq!(
        error(&repeated),
        BatchError::Record {
            index: 1,
            fault: RecordFault::OffsetDelta {
                expected: 1,
                found: 0
            }
        }
    );
    // A reader allows gaps, but no step back and nothing past the end.
    let read: Vec<_> = decode(&repeated.into(), &LIMITS).unwrap().into_iter().collect();
    let fault = RecordFault::OffsetOrder {
        previous: 0,
        found: 0,
        last: 1,
    };
    assert_eq!(read[1], Err(BatchError::Record { index: 1, fault }));
    assert_eq!(read.len(), 2);
    let beyond: Bytes = with_area(Codec::None, 1, &[12, 0, 0, 2, 1, 1, 0]).into();
    let read: Vec<_> = decode(&beyond, &LIMITS).unwrap().into_iter().collect();
    let fault = RecordFault::OffsetOrder {
        previous: -1,
        found: 1,
        last: 0,
    };
    assert_eq!(read, [Err(BatchError::Record { index: 0, fault })]);
}

#[test]
fn timestamps_stay_within_the_header() {
    let late = edited(
        &with_area(Codec::None, 1, &[12, 0, 12, 0, 1, 1, 0]),
        35,
        &1005i64.to_be_bytes(),
    );
    assert_eq!(
        error(&late),
        BatchError::Record {
            index: 0,
            fault: RecordFault::TimestampAboveMax {
                timestamp: 1006,
                max: 1005
            }
        }
    );
    let overflowing = edited(
        &with_area(Codec::None, 1, &[12, 0, 2, 0, 1, 1, 0]),
        27,
        &i64::MAX.to_be_bytes(),
    );
    let fault = RecordFault::TimestampOverflow {
        base: i64::MAX,
        delta: 1,
    };
    assert_eq!(error(&overflowing), BatchError::Record { index: 0, fault });
    let read: Vec<_> = decode(&overflowing.into(), &LIMITS)
        .unwrap()
        .into_iter()
        .collect();
    assert_eq!(read, [Err(BatchError::Record { index: 0, fault })]);
}

#[test]
fn the_builder_refuses_what_the_format_cannot_hold() {
    let mut builder = Builder::new(Codec::None, 0);
    assert_eq!(builder.finish(None), Err(BuildError::Empty));
    let none: &[(&str, Option<&[u8]>)] = &[];
    builder.append(i64::MIN, None, None, none).unwrap();
    let len = builder.len_estimate();
    assert_eq!(
        builder.append(1, None, None, none),
        Err(BuildError::TimestampRange {
            timestamp: 1,
            base: i64::MIN
        })
    );
    assert_eq!((builder.count(), builder.len_estimate()), (1, len));
    let stamp = ProducerStamp {
        id: ProducerId(u64::MAX),
        epoch: 0,
        sequence: 0,
    };
    let refused = BuildError::Producer {
        id: stamp.id,
        epoch: 0,
        sequence: 0,
    };
    assert_eq!(builder.finish(Some(stamp)), Err(refused));
    let batch = builder.finish(None).unwrap();
    assert_eq!(batch.len(), len);
    assert!(builder.is_empty());
    assert_eq!(builder.finish(None), Err(BuildError::Empty));
}
