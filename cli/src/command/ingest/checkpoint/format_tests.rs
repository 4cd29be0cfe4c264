#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use proptest::prelude::*;

use super::*;
use crate::command::ingest::cut::Mode;

fn entry() -> Entry {
    Entry {
        path: PathBuf::from("/var/log/app.log"),
        file: FileId {
            device: 2049,
            inode: 131_077,
        },
        fingerprint: Fingerprint {
            bytes: 4096,
            crc32c: 0x1234_5678,
        },
        first_size: 10_000,
        position: 5_000,
        line: 50,
        skipping: false,
        settled: false,
        cuts: vec![6_000, 7_500],
        producer_id: 42,
        producer_epoch: 0,
        partitions: vec![3],
        batches: 5,
        sequences: vec![50],
        cutting: Cutting::new(Mode::Lines, 65_536, 1 << 20, 8 << 20),
    }
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        cluster: "forebay".to_owned(),
        topic: "logs".to_owned(),
        topic_id: "00112233445566778899aabbccddeeff".to_owned(),
        inputs: vec![entry()],
    }
}

fn bytes_of(checkpoint: &Checkpoint) -> Vec<u8> {
    let (head, body) = checkpoint.encode().unwrap();
    [head.into_bytes(), body].concat()
}

/// The bytes of version 1, which later programs must read.
#[test]
fn the_golden_file_is_what_is_written_and_read() {
    let golden = include_str!("golden-1.txt");
    let written = String::from_utf8(bytes_of(&checkpoint())).unwrap();
    assert_eq!(written, golden);
    assert_eq!(Checkpoint::decode(golden.as_bytes()).unwrap(), checkpoint());
}

#[test]
fn each_kind_of_damage_is_refused_by_name() {
    let good = bytes_of(&checkpoint());
    let text = String::from_utf8(good.clone()).unwrap();
    let resealed = |from: &str, to: &str| {
        let (_, body) = text.split_once('\n').unwrap();
        let body = body.replacen(from, to, 1);
        format!("{MAGIC} 1 {:08x} {}\n{body}", crc32c(body.as_bytes()), body.len())
    };
    let cases = [
        ("".to_owned(), "does not begin with"),
        ("something else\n".to_owned(), "does not begin with"),
        (text.replacen(" 1 ", " 2 ", 1), "version 2"),
        (text[..text.len() - 1].to_owned(), "bytes follow"),
        (text.replacen("5000", "5001", 1), "checksum"),
        (resealed("\"position\"", "\"positron\""), "positron"),
        (
            resealed("\"partitions\":[3]", "\"partitions\":[]"),
            "do not go together",
        ),
        (resealed("6000", "4000"), "not in order"),
        (
            resealed("\"producer_epoch\":0", "\"producer_epoch\":-1"),
            "negative",
        ),
    ];
    for (bytes, wanted) in cases {
        let error = Checkpoint::decode(bytes.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
}

#[test]
fn a_path_that_is_no_text_comes_back() {
    let mut odd = checkpoint();
    odd.inputs[0].path = PathBuf::from(OsString::from_vec(b"/log/\xff\xfe".to_vec()));
    assert_eq!(Checkpoint::decode(&bytes_of(&odd)).unwrap(), odd);
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        path in "[ -~]{1,40}",
        position: u64,
        ahead in prop::collection::btree_set(1..1_000_000_u64, 0..5),
        sequences in prop::collection::vec(0..i32::MAX, 1..9),
        settled: bool,
        skipping: bool,
    ) {
        let position = position / 2;
        let mut one = entry();
        one.path = PathBuf::from(path);
        one.position = position;
        one.cuts = ahead.into_iter().map(|by| position + by).collect();
        one.partitions = (0..sequences.len() as u32).collect();
        one.sequences = sequences;
        one.settled = settled;
        one.skipping = skipping;
        let written = Checkpoint { inputs: vec![one, entry()], ..checkpoint() };
        prop_assert_eq!(Checkpoint::decode(&bytes_of(&written)).unwrap(), written);
    }

    #[test]
    fn one_changed_byte_is_noticed(at: prop::sample::Index, bit in 0..8_u32) {
        let mut bytes = bytes_of(&checkpoint());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        // The case of a hex digit means nothing.
        if let Ok(read) = Checkpoint::decode(&bytes) {
            prop_assert_eq!(read, checkpoint());
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Checkpoint::decode(&bytes).is_err());
    }
}
