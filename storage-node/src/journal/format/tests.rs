//! Golden bytes, round trips, and bytes that are not right.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use proptest::prelude::*;

use super::*;

fn owner() -> Owner {
    Owner {
        cluster: 0xc1,
        node: NodeId(3),
        generation: Generation(2),
    }
}

fn file_header() -> FileHeader {
    FileHeader {
        number: 7,
        start: 5 << 20,
        salt: 0x1122_3344_5566_7788,
        len: 1 << 20,
        owner: owner(),
        boot: 9,
        prev_block: 0xdead_beef,
        floor: Token(77),
        snapshot_len: 2 * SEGMENT_STATE_LEN as u64,
        snapshot_checksum: 0x0bad_cafe,
    }
}

fn block_header() -> BlockHeader {
    BlockHeader {
        number: 7,
        position: (5 << 20) + 8192,
        synced: (5 << 20) + 8192,
        salt: 0x1122_3344_5566_7788,
        body_len: 1000,
        frames: 3,
        prev: 0xdead_beef,
    }
}

fn snapshot() -> Snapshot {
    let segment = |seq| SegmentId {
        partition: PartitionId(11),
        epoch: Epoch(4),
        seq,
    };
    let state = |seq, fenced, limbo| SegmentState {
        segment: segment(seq),
        token: Token(70),
        base: Offset(100),
        tail: Offset(140),
        committed: Offset(130),
        hash: ChainHash(0xabcd),
        frames: 6,
        fenced,
        limbo,
        copied: false,
    };
    Snapshot {
        floor: Token(77),
        segments: vec![state(1, Some(Epoch(5)), false), state(2, None, true)],
    }
}

#[test]
fn the_bytes_of_a_journal_are_pinned() {
    let mut bytes = file_header().encode().to_vec();
    bytes.extend_from_slice(&snapshot().encode_segments());
    bytes.resize(8192, 0);
    bytes.extend_from_slice(&block_header().encode());
    let golden = include_bytes!("../../../tests/golden/journal-v1.bin");
    assert!(
        bytes == golden,
        "the journal format changed: that needs a new version"
    );
}

#[test]
fn headers_and_snapshots_survive_the_round_trip() {
    let file = file_header();
    assert_eq!(FileHeader::decode(&file.encode()).unwrap(), file);
    let block = block_header();
    assert_eq!(BlockHeader::decode(&block.encode(), &file, 8192).unwrap(), block);
    let snapshot = snapshot();
    assert_eq!(
        Snapshot::decode(Token(77), &snapshot.encode_segments()).unwrap(),
        snapshot
    );
}

#[test]
fn a_block_of_another_file_place_or_use_is_foreign() {
    let bytes = block_header().encode();
    let file = file_header();
    let foreign = |file: FileHeader, place| {
        assert!(matches!(
            BlockHeader::decode(&bytes, &file, place),
            Err(FormatError::Foreign { .. })
        ));
    };
    foreign(FileHeader { number: 8, ..file }, 8192);
    foreign(FileHeader { salt: 1, ..file }, 8192);
    foreign(file, 4096);
}

#[test]
fn a_block_that_would_reach_past_its_file_is_refused() {
    let file = file_header();
    let block = BlockHeader {
        body_len: u32::MAX,
        ..block_header()
    };
    assert!(matches!(
        BlockHeader::decode(&block.encode(), &file, 8192),
        Err(FormatError::Value {
            field: "block length",
            ..
        })
    ));
}

#[test]
fn every_flipped_byte_of_a_header_is_found() {
    let file = file_header();
    for at in 0..BLOCK_LEN {
        let mut bytes = file.encode();
        bytes[at] ^= 0x10;
        assert!(FileHeader::decode(&bytes).is_err(), "byte {at}");
    }
    for at in 0..BLOCK_HEADER_LEN {
        let mut bytes = block_header().encode();
        bytes[at] ^= 0x10;
        assert!(BlockHeader::decode(&bytes, &file, 8192).is_err(), "byte {at}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        let _ = FileHeader::decode(&bytes);
        let _ = BlockHeader::decode(&bytes, &file_header(), 8192);
        let _ = Snapshot::decode(Token(0), &bytes);
    }

    #[test]
    fn block_headers_survive_the_round_trip(body_len in 0_u32..100_000, frames: u32, prev: u32, back in 0_u64..(5 << 20)) {
        let block = BlockHeader { body_len, frames, prev, synced: (5 << 20) - back, ..block_header() };
        prop_assert_eq!(BlockHeader::decode(&block.encode(), &file_header(), 8192).unwrap(), block);
    }
}
