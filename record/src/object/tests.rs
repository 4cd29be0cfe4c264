//! Objects and manifests survive the round trip, and no other bytes do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use proptest::prelude::*;

use super::*;
use crate::batch::{Builder, Codec, stamp_in_place};
use crate::state::{PartitionState, ProducerBatch, ProducerEntry};
use crate::{Epoch, Offset, PartitionId, ProducerId, SegmentId, SessionId, crc32c};

/// A batch of `records` records of `value_bytes` bytes at an offset; timestamps are the offsets.
fn batch(base: u64, records: u64, value_bytes: usize) -> Vec<u8> {
    let mut builder = Builder::new(Codec::None, 1 << 20);
    for offset in base..base + records {
        let timestamp_ms = i64::try_from(offset).unwrap();
        builder
            .append::<&str>(timestamp_ms, None, Some(&vec![b'v'; value_bytes]), &[])
            .unwrap();
    }
    let mut batch = builder.finish(None).unwrap().to_vec();
    stamp_in_place(&mut batch, Offset(base), Epoch(3)).unwrap();
    batch
}

fn segment(partition: u64) -> SegmentId {
    SegmentId {
        partition: PartitionId(partition),
        epoch: Epoch(3),
        seq: 2,
    }
}

fn state() -> PartitionState {
    PartitionState {
        epochs: vec![(Epoch(1), Offset(0)), (Epoch(3), Offset(10))],
        producers: vec![ProducerEntry {
            id: ProducerId(4242),
            epoch: 7,
            last_timestamp_ms: 1_700_000_000_000,
            batches: vec![ProducerBatch {
                first_sequence: 0,
                last_sequence: 9,
                base_offset: Offset(10),
                max_timestamp_ms: 19,
            }],
        }],
    }
}

/// A run of batches with a number of records each, and its bytes.
fn run(base: u64, batches: &[u64], value_bytes: usize) -> (BuiltRun, Vec<u8>) {
    let mut builder = RunBuilder::new(Offset(base));
    let (mut next, mut bytes) = (base, Vec::new());
    for &records in batches {
        let batch = batch(next, records, value_bytes);
        builder.push(&batch).unwrap();
        bytes.extend(batch);
        next += records;
    }
    (builder.finish(Offset(next)).unwrap(), bytes)
}

/// An object with several runs, of one partition each.
fn object(runs: &[(u64, &[u64])], value_bytes: usize) -> (Vec<u8>, ObjectTail) {
    let mut bytes = Vec::new();
    let mut places = Vec::new();
    for (number, (base, batches)) in runs.iter().enumerate() {
        let (run, batches) = run(*base, batches, value_bytes);
        places.push(RunPlace {
            position: bytes.len() as u64,
            segment: segment(number as u64 + 1),
            topic: 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef,
            run,
            state: state(),
        });
        bytes.extend(batches);
    }
    let tail = encode_tail(SessionId(77), &places).unwrap();
    bytes.extend(&tail.bytes);
    (bytes, tail)
}

/// Reads all of an object; its runs' batches in order.
fn read(object: &[u8]) -> Result<Vec<(RunInfo, RunIndex, PartitionState)>, ObjectError> {
    let trailer = Trailer::decode(object, object.len() as u64)?;
    let part = |position: u64, len: u64| {
        let start = usize::try_from(position).unwrap();
        &object[start..start + usize::try_from(len).unwrap()]
    };
    let footer = Footer::decode(part(trailer.footer_position, trailer.footer_len), &trailer)?;
    let mut runs = Vec::new();
    for info in footer.runs {
        let index = RunIndex::decode(part(info.index.position, info.index.len), &info)?;
        for chunk in index.chunks() {
            let bytes = part(info.position + chunk.position, u64::from(chunk.len));
            if crc32c(bytes) != chunk.crc32c {
                return Err(ObjectError::Checksum {
                    what: "chunk",
                    found: crc32c(bytes),
                    expected: chunk.crc32c,
                });
            }
        }
        let bytes = part(info.state.position, info.state.len);
        if crc32c(bytes) != info.state.crc32c {
            return Err(ObjectError::Checksum {
                what: "state",
                found: crc32c(bytes),
                expected: info.state.crc32c,
            });
        }
        runs.push((info, index, PartitionState::decode(bytes)?));
    }
    Ok(runs)
}

fn assert_golden(name: &str, bytes: &[u8]) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    let golden = std::fs::read(path).unwrap();
    assert!(
        golden == bytes,
        "the format of {name} changed: that needs a new version"
    );
}

#[test]
fn an_object_of_two_runs_reads_back_as_it_was_written() {
    let (object, tail) = object(&[(10, &[3, 2]), (0, &[1, 1, 4])], 40);
    let runs = read(&object).unwrap();
    assert_eq!(runs.len(), 2);
    let (info, index, read_state) = &runs[1];
    assert_eq!((info.base, info.end), (Offset(0), Offset(6)));
    assert_eq!((info.batches, info.records), (3, 6));
    assert_eq!((info.first_timestamp_ms, info.max_timestamp_ms), (0, 5));
    assert_eq!(info.segment, segment(2));
    assert_eq!(index.chunks().len(), 1, "they are small");
    assert_eq!(*read_state, state());
    assert_eq!(tail.footer.run(PartitionId(2), Offset(0)), Some(info));
    assert_eq!(tail.footer.run(PartitionId(2), Offset(1)), None);
    let start = usize::try_from(info.position).unwrap();
    let bytes = &object[start..start + usize::try_from(info.len).unwrap()];
    assert_eq!(crc32c(bytes), info.crc32c);
}

#[test]
fn chunks_are_whole_batches_of_about_the_same_size() {
    let (run, _) = run(5, &[10; 40], 1000);
    let chunks = run.index.chunks();
    assert!(chunks.len() > 4, "{}", chunks.len());
    let (mut next, mut position) = (Offset(5), 0);
    for (number, chunk) in chunks.iter().enumerate() {
        assert_eq!((chunk.first, chunk.position), (next, position));
        assert_eq!(chunk.max_timestamp_ms, i64::try_from(chunk.end.0).unwrap() - 1);
        let last = number + 1 == chunks.len();
        assert!(last || chunk.len as usize >= CHUNK_BYTES, "{chunk:?}");
        assert!((chunk.len as usize) < CHUNK_BYTES + 11_000, "{chunk:?}");
        for offset in chunk.first.0..chunk.end.0 {
            assert_eq!(run.index.chunk_of(Offset(offset)), number);
        }
        (next, position) = (chunk.end, chunk.end_position());
    }
    assert_eq!((next, position), (run.end, run.len));
    assert_eq!(run.index.chunk_of(Offset(0)), 0);
    assert_eq!(run.index.chunk_of(Offset(u64::MAX)), chunks.len() - 1);
}

#[test]
fn what_does_not_continue_the_run_is_refused() {
    let mut builder = RunBuilder::new(Offset(5));
    assert!(matches!(
        builder.push(&batch(6, 1, 1)),
        Err(ObjectError::Gap {
            found: Offset(6),
            expected: Offset(5)
        })
    ));
    let mut builder = RunBuilder::new(Offset(5));
    builder.push(&batch(5, 2, 1)).unwrap();
    assert!(builder.clone().finish(Offset(8)).is_err(), "records are missing");
    assert!(builder.clone().finish(Offset(6)).is_err(), "records are too many");
    let batch = batch(7, 2, 1);
    assert!(matches!(
        builder.push(&batch[..batch.len() - 1]),
        Err(ObjectError::Batch { at: Offset(7), .. })
    ));
    assert_eq!(
        RunBuilder::new(Offset(5)).finish(Offset(5)),
        Err(ObjectError::Empty(Offset(5)))
    );
    assert!(encode_tail(SessionId(1), &[]).is_err());
}

#[test]
fn the_formats_are_what_they_were() {
    assert_golden("object-v1.bin", &object(&[(10, &[3, 2]), (0, &[1])], 8).0);
    assert_golden("manifest-page-v1.bin", &page(3).encode().unwrap());
    assert_golden("manifest-root-v1.bin", &root(2).encode().unwrap());
}

#[test]
fn every_flipped_byte_is_found_and_named() {
    let (object, tail) = object(&[(10, &[3, 2])], 30);
    let info = tail.footer.runs[0];
    for at in 0..object.len() {
        let mut damaged = object.clone();
        damaged[at] ^= 0x10;
        let message = read(&damaged).unwrap_err().to_string();
        let position = at as u64;
        let expected = match position {
            _ if position < info.state.position => "chunk",
            _ if position < info.index.position => "state",
            _ if position < info.index.position + info.index.len => "index",
            _ if object.len() - at > TRAILER_LEN => "footer",
            _ => "trailer",
        };
        assert!(
            message.contains(expected),
            "byte {at}: {message}, {expected} expected"
        );
    }
}

#[test]
fn every_truncated_object_is_refused() {
    let (object, _) = object(&[(10, &[3, 2])], 30);
    for len in 0..object.len() {
        assert!(read(&object[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn aborted_transactions_and_flags_of_a_later_version_are_refused() {
    let (object, tail) = object(&[(0, &[1])], 8);
    let trailer = Trailer::decode(&object, object.len() as u64).unwrap();
    let footer = tail.footer.encode();
    for (at, what) in [(6, "flags"), (footer.len() - 4, "aborted")] {
        let mut later = footer.clone();
        later[at] = 1;
        let trailer = Trailer {
            footer_crc32c: crc32c(&later),
            ..trailer
        };
        let message = Footer::decode(&later, &trailer).unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
    }
}

#[test]
fn lengths_that_reach_beyond_the_object_are_refused() {
    let (_, tail) = object(&[(0, &[1])], 8);
    let good = tail.footer.runs[0];
    let bad: [fn(&mut RunInfo); 6] = [
        |run| run.position = u64::MAX,
        |run| run.len = u64::MAX,
        |run| run.len = 0,
        |run| run.index.len = u64::MAX,
        |run| run.state.position = u64::MAX,
        |run| run.end = run.base,
    ];
    for change in bad {
        let mut run = good;
        change(&mut run);
        let footer = Footer {
            session: SessionId(1),
            runs: vec![run],
        };
        let bytes = footer.encode();
        let trailer = Trailer {
            footer_position: 1000,
            footer_len: bytes.len() as u64,
            footer_crc32c: crc32c(&bytes),
        };
        assert!(Footer::decode(&bytes, &trailer).is_err(), "{run:?}");
    }
    let far = Trailer {
        footer_position: u64::MAX - 3,
        footer_len: 100,
        footer_crc32c: 0,
    };
    assert!(Trailer::decode(&far.encode(), 200).is_err());
}

fn manifest_run(base: u64) -> ManifestRun {
    ManifestRun {
        base: Offset(base),
        end: Offset(base + 10),
        object: format!("d/00/{base}"),
        position: base * 3,
        len: 1000 + base,
        max_timestamp_ms: i64::try_from(base).unwrap() - 5,
        crc32c: 0xdead_beef,
    }
}

fn page(runs: u64) -> ManifestPage {
    ManifestPage {
        partition: PartitionId(9),
        runs: (0..runs).map(|run| manifest_run(run * 10)).collect(),
    }
}

fn root(pages: u64) -> ManifestRoot {
    ManifestRoot {
        partition: PartitionId(9),
        generation: 4,
        pages: (0..pages)
            .map(|page| PageRef {
                base: Offset(page * 100),
                end: Offset(page * 100 + 100),
                runs: 10,
                bytes: 12_345,
                max_timestamp_ms: -1,
                object: format!("m/{page}"),
                len: 999,
                crc32c: 5,
            })
            .collect(),
    }
}

#[test]
fn a_manifest_must_rise_and_be_named_to_be_written_or_read() {
    let bad: [fn(&mut ManifestPage); 5] = [
        |page| page.runs.clear(),
        |page| page.runs[1].base = Offset(9),
        |page| page.runs[1].end = Offset(10),
        |page| page.runs[1].object.clear(),
        |page| page.runs[1].object = "x".repeat(256),
    ];
    for change in bad {
        let mut page = page(3);
        change(&mut page);
        assert!(page.encode().is_err(), "{page:?}");
    }
    assert!(page(PAGE_RUNS_MAX as u64).encode().unwrap().len() <= PAGE_BYTES_MAX);
    assert!(page(PAGE_RUNS_MAX as u64 + 1).encode().is_err());
    assert!(root(0).encode().is_err());
    let mut gap = root(3);
    gap.pages[1].end = Offset(250);
    assert!(gap.encode().is_err(), "two pages overlap");
    // A range that was declared lost is in no run and no page.
    let mut lost = page(3);
    lost.runs.remove(1);
    assert_eq!(ManifestPage::decode(&lost.encode().unwrap()).unwrap(), lost);
    let page = page(3);
    let encoded = page.encode().unwrap();
    let says = page.page_ref("m/1".to_owned(), &encoded);
    assert_eq!((says.base, says.end, says.runs), (Offset(0), Offset(30), 3));
    assert_eq!((says.bytes, says.max_timestamp_ms), (3030, 15));
    assert_eq!((says.len, says.crc32c), (encoded.len() as u64, crc32c(&encoded)));
}

proptest! {
    #[test]
    fn manifests_survive_the_round_trip(runs in 1_u64..50, pages in 1_u64..20, generation: u64) {
        let page = page(runs);
        prop_assert_eq!(ManifestPage::decode(&page.encode().unwrap()).unwrap(), page);
        let root = ManifestRoot { generation, ..root(pages) };
        prop_assert_eq!(ManifestRoot::decode(&root.encode().unwrap()).unwrap(), root);
    }

    #[test]
    fn a_damaged_manifest_is_refused(at in any::<prop::sample::Index>(), flip in 1_u8.., cut in any::<prop::sample::Index>()) {
        for encoded in [page(7).encode().unwrap(), root(3).encode().unwrap()] {
            let mut damaged = encoded.clone();
            damaged[at.index(encoded.len())] ^= flip;
            let cut = &encoded[..cut.index(encoded.len())];
            for bytes in [&damaged[..], cut] {
                prop_assert!(ManifestPage::decode(bytes).is_err() && ManifestRoot::decode(bytes).is_err());
            }
        }
    }

    #[test]
    fn objects_survive_the_round_trip(
        base in 0_u64..1 << 40,
        batches in prop::collection::vec(1_u64..5, 1..12),
        value_bytes in 0_usize..20_000,
    ) {
        let (object, tail) = object(&[(base, &batches)], value_bytes);
        let runs = read(&object).unwrap();
        prop_assert_eq!(runs[0].0, tail.footer.runs[0]);
        let end = base + batches.iter().sum::<u64>();
        prop_assert_eq!((runs[0].0.base, runs[0].0.end), (Offset(base), Offset(end)));
    }

    /// Checksums made right over random bytes: nothing behind them may panic or trust a length.
    #[test]
    fn random_parts_with_right_checksums_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        magic in 0_usize..4,
        object_len: u64,
    ) {
        let mut part = bytes;
        for (to, from) in part.iter_mut().zip([*b"FBOF\x01\0\0\0", *b"FBMR\x01\0\0\0", *b"FBMP\x01\0\0\0", [0; 8]][magic]) {
            *to = from;
        }
        let trailer = Trailer { footer_position: object_len / 2, footer_len: part.len() as u64, footer_crc32c: crc32c(&part) };
        let _ = Footer::decode(&part, &trailer);
        let (_, tail) = object(&[(0, &[1])], 8);
        let mut info = tail.footer.runs[0];
        info.index.crc32c = crc32c(&part);
        let _ = RunIndex::decode(&part, &info);
        let _ = Trailer::decode(&part, object_len);
        let _ = RunBuilder::new(Offset(0)).push(&part);
        part.extend(crc32c(&part).to_le_bytes());
        let _ = ManifestPage::decode(&part);
        let _ = ManifestRoot::decode(&part);
    }

    /// Valid parts with a few changed bytes and checksums made right again: the same.
    #[test]
    fn changed_parts_with_right_checksums_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let change = |part: Vec<u8>| changes.iter().fold(part, |mut part, (at, to)| {
            let at = at.index(part.len());
            part[at] = *to;
            part
        });
        let (_, tail) = object(&[(0, &[1, 2]), (7, &[3])], 8);
        let part = change(tail.footer.encode());
        let trailer = Trailer { footer_position: 5000, footer_len: part.len() as u64, footer_crc32c: crc32c(&part) };
        if let Ok(footer) = Footer::decode(&part, &trailer) {
            for run in footer.runs {
                prop_assert!(run.position + run.len <= 5000 && run.index.position + run.index.len <= 5000);
            }
        }
        let (run, _) = run(5, &[10; 20], 1000);
        let part = change(run.index.encode());
        let mut info = tail.footer.runs[0];
        (info.base, info.end, info.len) = (run.base, run.end, run.len);
        info.index.crc32c = crc32c(&part);
        if let Ok(index) = RunIndex::decode(&part, &info) {
            prop_assert_eq!(index.chunks().last().unwrap().end_position(), run.len);
        }
        for encoded in [page(7).encode().unwrap(), root(3).encode().unwrap()] {
            let mut part = change(encoded[..encoded.len() - 4].to_vec());
            part.extend(crc32c(&part).to_le_bytes());
            let _ = ManifestPage::decode(&part);
            let _ = ManifestRoot::decode(&part);
        }
    }
}
