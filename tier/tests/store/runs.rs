//! Cases of runs: written, verified, damaged, read.

use bytes::Bytes;
use forebay_meta::model::Run;
use forebay_record::batch::{Batches, Header};
use forebay_record::object::{Footer, RunBuilder, RunPlace, TRAILER_LEN, Trailer, encode_tail};
use forebay_record::{Offset, PartitionId, SegmentId, SessionId};
use forebay_runtime::random::{Random, SeededRandom};
use forebay_tier::{Bucket, RunWriter, StoreError, WriteError, Written, verify};

use crate::support::{
    PART_BYTES, PARTITION, TOPIC, assert_corrupt, assert_not_found, batch, batches, concat, list, name,
    names, reader, run, start, state, write,
};

async fn check(bucket: &Bucket, name: &str, written: &Written) -> Result<(), StoreError> {
    let random = SeededRandom::new(3);
    verify(bucket, name, PARTITION, written, &random)
        .await
        .map(|_| ())
}

pub async fn a_small_run_is_one_object_that_verifies(bucket: Bucket) {
    let name = name(&names());
    let batches = batches(100, 5, 3, 50);
    let written = write(&bucket, &name, 100, &batches, 115).await.unwrap();
    assert_eq!(written.len, concat(&batches).len() as u64);
    assert_eq!(written.crc32c, forebay_record::crc32c(&concat(&batches)));
    assert_eq!(written.max_timestamp_ms, 1140);
    assert_eq!(bucket.head(&name).await.unwrap(), written.object_len);
    assert_eq!(list(&bucket, "d").await, std::slice::from_ref(&name));
    let random = SeededRandom::new(1);
    let info = verify(&bucket, &name, PARTITION, &written, &random)
        .await
        .unwrap();
    assert_eq!((info.base, info.end), (Offset(100), Offset(115)));
    assert_eq!((info.batches, info.records), (5, 15));
    assert_eq!(info.topic, TOPIC.as_u128());
    let run = run(&name, 100, 115, &written);
    let reader = reader(&bucket).await;
    assert_eq!(reader.state(&run).await.unwrap(), state(115));
    let all = reader
        .read(&run, Offset(100), Offset(115), 1 << 20)
        .await
        .unwrap();
    assert_eq!(all, concat(&batches));
}

pub async fn a_large_run_goes_up_in_parts_and_verifies(bucket: Bucket) {
    // One run of exactly two parts before its tail, one of a little more.
    for (count, value_bytes) in [(10, (1 << 20) - 80), (13, 1 << 20)] {
        let name = name(&forebay_tier::Names::new(forebay_record::SessionId(count)));
        let batches = batches(0, count, 1, value_bytes);
        let written = write(&bucket, &name, 0, &batches, count).await.unwrap();
        assert!(written.object_len > 2 * PART_BYTES || count == 10, "{written:?}");
        check(&bucket, &name, &written).await.unwrap();
        let run = run(&name, 0, count, &written);
        let reader = reader(&bucket).await;
        let mut all = Vec::new();
        let mut next = 0;
        while next < count {
            let bytes = reader
                .read(&run, Offset(next), Offset(count), 3 << 20)
                .await
                .unwrap();
            assert!(!bytes.is_empty() && bytes.len() <= 3 << 20);
            next = Batches::new(bytes.clone())
                .last()
                .unwrap()
                .unwrap()
                .0
                .end_offset()
                .0;
            all.extend_from_slice(&bytes);
        }
        assert!(all == concat(&batches), "the bytes differ");
    }
}

pub async fn what_is_aborted_or_refused_leaves_no_object(bucket: Bucket) {
    let names = names();
    for parts in [0, 12] {
        let mut writer = RunWriter::start(&bucket, &name(&names), start(0)).await;
        for n in 0..parts {
            writer.write(batch(n, 1, 1 << 20)).await.unwrap();
        }
        writer.abort().await;

        let hole = [batch(0, 2, 9), batch(3, 1, 9)];
        let error = write(&bucket, &name(&names), 0, &hole, 4).await.unwrap_err();
        assert!(matches!(error, WriteError::Run { .. }), "{error}");
        assert!(error.to_string().contains("@3, @2 expected"), "{error}");

        let short = batches(0, parts + 1, 1, 1 << 20);
        let error = write(&bucket, &name(&names), 0, &short, parts + 2)
            .await
            .unwrap_err();
        assert!(matches!(error, WriteError::Run { .. }), "{error}");
        let error = write(&bucket, &name(&names), 5, &[], 5).await.unwrap_err();
        assert!(error.to_string().contains("no batches"), "{error}");
    }
    assert!(list(&bucket, "d").await.is_empty());
}

pub async fn verification_finds_every_difference(bucket: Bucket) {
    let name = name(&names());
    let written = write(&bucket, &name, 0, &batches(0, 8, 2, 20_000), 16)
        .await
        .unwrap();
    check(&bucket, &name, &written).await.unwrap();
    type Change = fn(&mut Written);
    let changes: [(Change, &str); 6] = [
        (|w| w.object_len += 1, "length"),
        (|w| w.position += 1, "position"),
        (|w| w.len -= 1, "run's length"),
        (|w| w.crc32c ^= 1, "run's checksum"),
        (|w| w.max_timestamp_ms += 1, "timestamp"),
        (|w| w.footer_crc32c ^= 1, "footer"),
    ];
    for (change, what) in changes {
        let mut other = written;
        change(&mut other);
        assert_corrupt(check(&bucket, &name, &other).await, &name, &[what]);
    }
    let random = SeededRandom::new(1);
    let other = verify(&bucket, &name, PartitionId(8), &written, &random).await;
    assert_corrupt(other, &name, &["p8"]);

    // Damage to any chunk is found by some choice of the chunk that is read back.
    let object = bucket.get(&name, 1 << 20).await.unwrap();
    let mut damaged = object.to_vec();
    damaged[100] ^= 1;
    bucket.put(&name, damaged.into()).await.unwrap();
    let mut found = 0;
    for seed in 0..20 {
        let random = SeededRandom::new(seed);
        found += u32::from(
            verify(&bucket, &name, PARTITION, &written, &random)
                .await
                .is_err(),
        );
    }
    assert!((1..20).contains(&found), "{found} of 20");
    bucket.put(&name, object.slice(..object.len() - 1)).await.unwrap();
    assert_corrupt(check(&bucket, &name, &written).await, &name, &["length"]);
    bucket.delete(std::slice::from_ref(&name)).await.unwrap();
    assert_not_found(check(&bucket, &name, &written).await, &name);
}

pub async fn what_is_good_before_damage_is_read(bucket: Bucket) {
    let name = name(&names());
    let all = batches(0, 200, 2, 20_000);
    let written = write(&bucket, &name, 0, &all, 400).await.unwrap();
    let run = run(&name, 0, 400, &written);
    let mut damaged = bucket.get(&name, 64 << 20).await.unwrap().to_vec();
    // In its third block of about a MiB.
    damaged[5 << 19] ^= 1;
    bucket.put(&name, damaged.into()).await.unwrap();
    let reader = reader(&bucket).await;
    let good = reader.read(&run, Offset(0), Offset(400), 64 << 20).await.unwrap();
    assert!(good.len() >= 1 << 20, "{} bytes", good.len());
    assert_eq!(good, concat(&all)[..good.len()]);
    let mut next = Offset(0);
    let mut rest = &good[..];
    while !rest.is_empty() {
        let header = forebay_record::batch::Header::parse(rest).unwrap();
        next = header.end_offset();
        rest = &rest[header.len_bytes()..];
    }
    let read = reader.read(&run, next, Offset(400), 64 << 20).await;
    assert_corrupt(read, &name, &["chunk", "expected"]);
}

pub async fn every_damaged_section_is_named_by_the_reader(bucket: Bucket) {
    let name = name(&names());
    let written = write(&bucket, &name, 0, &batches(0, 8, 2, 20_000), 16)
        .await
        .unwrap();
    let run = run(&name, 0, 16, &written);
    let object = bucket.get(&name, 1 << 20).await.unwrap();
    let trailer = Trailer::decode(&object, object.len() as u64).unwrap();
    let footer = object.slice(trailer.footer_position as usize..object.len() - TRAILER_LEN);
    let info = Footer::decode(&footer, &trailer).unwrap().runs[0];
    let last_chunk = info.len as usize - 10;
    for (at, says) in [
        (10, "chunk 0"),
        (last_chunk, "chunk 3"),
        (info.state.position as usize + 3, "state"),
        (info.index.position as usize + 9, "index"),
        (trailer.footer_position as usize + 50, "footer"),
        (object.len() - 30, "trailer"),
        (object.len() - 1, "magic"),
    ] {
        let mut damaged = object.to_vec();
        damaged[at] ^= 1;
        bucket.put(&name, damaged.into()).await.unwrap();
        let reader = reader(&bucket).await;
        let read = async {
            reader.read(&run, Offset(0), Offset(16), 1 << 20).await?;
            reader.state(&run).await
        };
        assert_corrupt(read.await, &name, &[says, "expected"]);
    }
    for len in [0, 20, 1000, object.len() - 1] {
        bucket.put(&name, object.slice(..len)).await.unwrap();
        let read = reader(&bucket)
            .await
            .read(&run, Offset(0), Offset(16), 1 << 20)
            .await;
        assert_corrupt(read, &name, &[]);
    }
    bucket.delete(std::slice::from_ref(&name)).await.unwrap();
    let reader = reader(&bucket).await;
    assert_not_found(reader.read(&run, Offset(0), Offset(16), 1).await, &name);
    assert_not_found(reader.lookup(&run, Offset(0), 1).await, &name);
    assert_not_found(reader.state(&run).await, &name);
}

/// What a read must give: whole batches from the one with `from`, none ending after `until`.
fn expected(batches: &[Bytes], from: u64, until: u64, max_bytes: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for batch in batches {
        let header = forebay_record::batch::Header::parse(batch).unwrap();
        if header.end_offset().0 <= from {
            continue;
        }
        let full = !out.is_empty() && out.len() + batch.len() > max_bytes;
        if header.end_offset().0 > until || full {
            break;
        }
        out.extend_from_slice(batch);
    }
    out
}

pub async fn reads_give_whole_batches_within_their_bounds(bucket: Bucket) {
    let name = name(&names());
    let base = 1000;
    let sizes = [10, 30_000, 200, 70_000, 400_000, 50, 9000];
    let mut all = Vec::new();
    let mut next = base;
    for n in 0..60 {
        let records = 1 + n % 4;
        all.push(batch(
            next,
            records,
            sizes[n as usize % sizes.len()] / records as usize,
        ));
        next += records;
    }
    let written = write(&bucket, &name, base, &all, next).await.unwrap();
    let run = run(&name, base, next, &written);
    let reader = reader(&bucket).await;
    let random = SeededRandom::new(9);
    for _ in 0..150 {
        let from = base + random.range(0, next - base + 2);
        let until = from + random.range(0, 40);
        let max_bytes = [1, 500, 80_000, 1_500_000, 100 << 20][random.range(0, 5) as usize];
        let found = reader
            .read(&run, Offset(from), Offset(until), max_bytes)
            .await
            .unwrap();
        let max_bytes = max_bytes.min(forebay_tier::READ_BYTES_MAX) as usize;
        let expected = expected(&all, from, until.min(next), max_bytes);
        assert!(
            found == expected,
            "{from}..{until}, {max_bytes}: {} and {}",
            found.len(),
            expected.len()
        );
    }
}

pub async fn lookups_find_the_first_batch_that_reaches_a_time(bucket: Bucket) {
    let name = name(&names());
    let all = batches(0, 60, 2, 8_000);
    let written = write(&bucket, &name, 0, &all, 120).await.unwrap();
    let run = run(&name, 0, 120, &written);
    let reader = reader(&bucket).await;
    for (from, timestamp_ms) in [
        (0, -1),
        (0, 0),
        (0, 11),
        (0, 500),
        (33, 0),
        (33, 700),
        (0, 1190),
        (119, 0),
        (119, 1190),
    ] {
        let found = reader.lookup(&run, Offset(from), timestamp_ms).await.unwrap();
        let reaches = |base: &u64| base + 2 > from && (base + 1) as i64 * 10 >= timestamp_ms;
        let expected = (0..120).step_by(2).find(reaches).map(Offset);
        assert_eq!(found, expected, "{from} {timestamp_ms}");
    }
    assert_eq!(reader.lookup(&run, Offset(0), 1191).await.unwrap(), None);
    assert_eq!(reader.lookup(&run, Offset(120), 0).await.unwrap(), None);
}

pub async fn a_run_that_is_not_the_records_is_corrupt(bucket: Bucket) {
    let name = name(&names());
    let written = write(&bucket, &name, 0, &batches(0, 3, 2, 90), 6).await.unwrap();
    let good = run(&name, 0, 6, &written);
    let reader = reader(&bucket).await;
    let changes: [fn(&mut forebay_meta::model::Run); 4] = [
        |run| run.crc32c ^= 1,
        |run| run.len += 1,
        |run| run.end = Offset(7),
        |run| run.position = 1,
    ];
    for change in changes {
        let mut run = good.clone();
        change(&mut run);
        assert_corrupt(
            reader.read(&run, Offset(0), Offset(6), 9).await,
            &name,
            &["run at byte"],
        );
        // Also with the right one in the cache.
        reader.read(&good, Offset(0), Offset(6), 9).await.unwrap();
    }
}

/// Small segments of many partitions may share an object.
pub async fn the_runs_of_a_combined_object_are_read_one_by_one(bucket: Bucket) {
    let name = name(&names());
    let all = [
        batches(0, 3, 2, 700),
        batches(500, 40, 1, 9_000),
        batches(7, 1, 1, 10),
    ];
    let (mut object, mut places) = (Vec::new(), Vec::new());
    for (number, batches) in all.iter().enumerate() {
        let segment = start(0).segment;
        let base = Header::parse(&batches[0]).unwrap().base_offset();
        let mut builder = RunBuilder::new(base);
        builder.push(&concat(batches)).unwrap();
        let end = builder.next_offset();
        places.push(RunPlace {
            position: object.len() as u64,
            segment: SegmentId {
                partition: PartitionId(number as u64),
                ..segment
            },
            topic: TOPIC.as_u128(),
            run: builder.finish(end).unwrap(),
            state: state(number as u64),
        });
        object.extend(concat(batches));
    }
    object.extend(encode_tail(SessionId(1), &places).unwrap().bytes);
    bucket.put(&name, object.into()).await.unwrap();
    let reader = reader(&bucket).await;
    for (number, (place, batches)) in places.iter().zip(&all).enumerate() {
        let run = Run {
            base: place.run.base,
            end: place.run.end,
            object: name.clone(),
            position: place.position,
            len: place.run.len,
            crc32c: place.run.crc32c,
            max_timestamp_ms: place.run.max_timestamp_ms,
        };
        let found = reader.read(&run, run.base, run.end, 8 << 20).await.unwrap();
        assert!(found == concat(batches), "run {number}");
        assert_eq!(reader.state(&run).await.unwrap(), state(number as u64));
        let last = reader.lookup(&run, run.base, run.max_timestamp_ms).await.unwrap();
        let expected = Header::parse(batches.last().unwrap()).unwrap().base_offset();
        assert_eq!(last, Some(expected));
    }
}
