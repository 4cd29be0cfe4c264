//! Compressed streams that lie: bombs, cut ones, corrupt ones, and variants that others write.

use std::io::Write;

use bytes::Bytes;
use forebay_record::batch::{BatchError, Codec, Limits, Scratch, decode, validate, validate_with};
use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

use crate::{LIMITS, Plain, area, build, sample, with_area};

const COMPRESSED: [Codec; 4] = [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

/// A batch of one record with `len` equal bytes: it shrinks to almost nothing.
fn bomb(codec: Codec, len: usize) -> Bytes {
    build(codec, &[Plain::new(0, None, Some(&vec![0; len]))])
}

fn snappy_block(plain: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(plain).unwrap()
}

fn lz4_frame(plain: &[u8], info: FrameInfo) -> Vec<u8> {
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    // Small writes with a flush in between give several blocks.
    for chunk in plain.chunks(100) {
        encoder.write_all(chunk).unwrap();
        encoder.flush().unwrap();
    }
    encoder.finish().unwrap()
}

fn zstd_frame_of_unknown_length(plain: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(plain, 3).unwrap()
}

/// Checks that a stream of the sample's records is read as they are.
fn assert_reads(codec: Codec, stream: &[u8]) {
    let batch = with_area(codec, 2, stream);
    validate(&batch, &LIMITS).unwrap_or_else(|error| panic!("{error}"));
    let decoded = decode(&batch.into(), &LIMITS).unwrap();
    assert_eq!(decoded.records_bytes()[..], area(&sample(Codec::None)));
}

fn assert_corrupt(codec: Codec, stream: &[u8]) {
    match validate(&with_area(codec, 2, stream), &LIMITS) {
        Err(BatchError::Corrupt { codec: found, .. }) => assert_eq!(found, codec),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bomb_is_refused_at_the_limit() {
    for codec in COMPRESSED {
        let batch = bomb(codec, 8 << 20);
        assert!(batch.len() < 1 << 20, "{codec}: {} bytes", batch.len());
        let max = 1 << 20;
        let refused = BatchError::DecompressedTooLarge { codec, max };
        let limits = Limits {
            decompressed_bytes_max: max,
            ..LIMITS
        };
        assert_eq!(validate(&batch, &limits), Err(refused.clone()));
        assert_eq!(decode(&batch, &limits).unwrap_err(), refused);
    }
}

#[test]
fn the_limit_itself_is_allowed() {
    for codec in COMPRESSED {
        let batch = bomb(codec, 200_000);
        let max = decode(&batch, &LIMITS).unwrap().records_bytes().len();
        for (allowed, max) in [(true, max), (false, max - 1)] {
            let limits = Limits {
                decompressed_bytes_max: max,
                ..LIMITS
            };
            assert_eq!(validate(&batch, &limits).is_ok(), allowed, "{codec} {max}");
        }
    }
}

#[test]
fn a_zstd_bomb_without_a_length_is_refused_at_the_limit() {
    let stream = zstd_frame_of_unknown_length(&vec![0; 8 << 20]);
    let max = LIMITS.decompressed_bytes_max;
    assert_eq!(
        validate(&with_area(Codec::Zstd, 1, &stream), &LIMITS),
        Err(BatchError::DecompressedTooLarge {
            codec: Codec::Zstd,
            max
        })
    );
    let exact = zstd_frame_of_unknown_length(&area(&bomb(Codec::None, max - 20)));
    assert!(validate(&with_area(Codec::Zstd, 1, &exact), &LIMITS).is_ok());
}

#[test]
fn a_declared_length_beyond_the_limit_is_refused() {
    let max = LIMITS.decompressed_bytes_max;
    // A snappy block that says it holds 4 GiB − 1.
    let snappy = [0xff, 0xff, 0xff, 0xff, 0x0f, 0];
    // An LZ4 frame that says it holds 2⁴⁰ bytes, with the checksum of that header.
    let mut unfinished =
        FrameEncoder::with_frame_info(FrameInfo::new().content_size(Some(1 << 40)), Vec::new());
    unfinished.write_all(&[0; 10]).unwrap();
    unfinished.flush().unwrap();
    let lz4 = unfinished.get_ref();
    // A zstd frame whose header has an eight byte content size of 2⁴⁰.
    let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0];
    for (codec, stream) in [
        (Codec::Snappy, &snappy[..]),
        (Codec::Lz4, lz4),
        (Codec::Zstd, &zstd),
    ] {
        assert_eq!(
            validate(&with_area(codec, 1, stream), &LIMITS),
            Err(BatchError::DecompressedTooLarge { codec, max })
        );
    }
}

#[test]
fn a_snappy_block_cannot_claim_more_than_it_can_hold() {
    // 1 MiB claimed by a block of four bytes.
    assert_corrupt(Codec::Snappy, &[0x80, 0x80, 0x40, 0]);
}

#[test]
fn a_cut_stream_is_refused_at_every_length() {
    for codec in COMPRESSED {
        let stream = area(&sample(codec));
        let mut scratch = Scratch::new();
        for length in 0..stream.len() {
            let batch = with_area(codec, 2, &stream[..length]);
            assert!(
                validate_with(&batch, &LIMITS, &mut scratch).is_err(),
                "{codec} {length}"
            );
        }
    }
}

#[test]
fn bytes_after_the_stream_are_refused() {
    for codec in COMPRESSED {
        let stream = [area(&sample(codec)), vec![1, 2, 3]].concat();
        assert_corrupt(codec, &stream);
    }
}

#[test]
fn a_stream_of_another_codec_is_refused() {
    for stored in COMPRESSED {
        let stream = area(&sample(stored));
        for claimed in COMPRESSED.into_iter().filter(|codec| *codec != stored) {
            assert_corrupt(claimed, &stream);
        }
    }
}

#[test]
fn a_bare_snappy_block_is_read() {
    assert_reads(Codec::Snappy, &snappy_block(&area(&sample(Codec::None))));
}

#[test]
fn snappy_versions_in_little_endian_are_read() {
    let mut stream = area(&sample(Codec::Snappy));
    stream[8..16].copy_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0]);
    assert_reads(Codec::Snappy, &stream);
}

#[test]
fn several_snappy_blocks_are_read() {
    let mut stream = area(&sample(Codec::Snappy))[..16].to_vec();
    for chunk in area(&sample(Codec::None)).chunks(50) {
        let block = snappy_block(chunk);
        stream.extend_from_slice(&(block.len() as i32).to_be_bytes());
        stream.extend_from_slice(&block);
    }
    assert_reads(Codec::Snappy, &stream);
}

#[test]
fn a_snappy_block_length_that_does_not_fit_is_refused() {
    let header = area(&sample(Codec::Snappy))[..16].to_vec();
    for length in [-1, i32::MIN, 5, i32::MAX] {
        assert_corrupt(
            Codec::Snappy,
            &[&header[..], &length.to_be_bytes(), b"1234"].concat(),
        );
    }
    assert_corrupt(Codec::Snappy, &header[..12]);
}

#[test]
fn every_kind_of_lz4_frame_is_read() {
    let plain = area(&sample(Codec::None));
    for mode in [BlockMode::Independent, BlockMode::Linked] {
        for size in [
            BlockSize::Max64KB,
            BlockSize::Max256KB,
            BlockSize::Max1MB,
            BlockSize::Max4MB,
        ] {
            for checked in [false, true] {
                for content_size in [None, Some(plain.len() as u64)] {
                    let info = FrameInfo::new()
                        .block_mode(mode)
                        .block_size(size)
                        .block_checksums(checked)
                        .content_checksum(checked)
                        .content_size(content_size);
                    assert_reads(Codec::Lz4, &lz4_frame(&plain, info));
                }
            }
        }
    }
}

#[test]
fn lz4_checksums_are_checked() {
    let plain = area(&sample(Codec::None));
    let info = FrameInfo::new().block_checksums(true).content_checksum(true);
    let frame = lz4_frame(&plain, info);
    for at in [6, frame.len() - 1, frame.len() - 9] {
        let mut frame = frame.clone();
        frame[at] ^= 1;
        assert_corrupt(Codec::Lz4, &frame);
    }
}

#[test]
fn a_zstd_frame_without_a_length_is_read() {
    assert_reads(
        Codec::Zstd,
        &zstd_frame_of_unknown_length(&area(&sample(Codec::None))),
    );
}

#[test]
fn a_zstd_frame_with_a_window_larger_than_the_limit_is_read() {
    let plain = area(&sample(Codec::None));
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(&plain).unwrap();
    assert_reads(Codec::Zstd, &encoder.finish().unwrap());
}

#[test]
fn gzip_headers_with_all_fields_are_read() {
    let plain = area(&sample(Codec::None));
    let mut encoder = flate2::GzBuilder::new()
        .extra(vec![7; 300])
        .filename("records")
        .comment("from a test")
        .mtime(1)
        .write(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&plain).unwrap();
    assert_reads(Codec::Gzip, &encoder.finish().unwrap());
}

#[test]
fn gzip_checksum_and_length_are_checked() {
    let stream = area(&sample(Codec::Gzip));
    for from_end in [1, 5] {
        let mut stream = stream.clone();
        let at = stream.len() - from_end;
        stream[at] ^= 1;
        assert_corrupt(Codec::Gzip, &stream);
    }
}

#[test]
fn a_scratch_serves_all_codecs_and_survives_refusals() {
    let mut scratch = Scratch::new();
    for round in 0..3 {
        for codec in Codec::ALL {
            let records: Vec<Plain> = (0..50 * (round + 1))
                .map(|index| Plain::new(index, Some(b"k"), Some(&vec![index as u8; 1000])))
                .collect();
            let batch = build(codec, &records);
            assert!(validate_with(&batch, &LIMITS, &mut scratch).is_ok());
            let mut broken = area(&batch);
            let middle = broken.len() / 2;
            broken.truncate(middle);
            assert!(
                validate_with(
                    &with_area(codec, records.len() as i32, &broken),
                    &LIMITS,
                    &mut scratch
                )
                .is_err()
            );
            let small = Limits {
                decompressed_bytes_max: 1000,
                ..LIMITS
            };
            assert_eq!(
                validate_with(&batch, &small, &mut scratch).is_ok(),
                codec == Codec::None
            );
        }
    }
}
