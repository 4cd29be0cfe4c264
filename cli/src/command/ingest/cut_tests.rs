#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use proptest::prelude::*;

use super::*;

const VALUE_MAX: usize = 8;

fn cutting(mode: Mode, long_lines: LongLines, strip_cr: bool) -> Cutting {
    let mut cutting = Cutting::new(mode, 5, 1 << 20, 8 << 20);
    cutting.long_lines = long_lines;
    cutting.strip_cr = strip_cr;
    cutting
}

/// What comes of bytes that arrive in parts of that size: records, the bytes they stand for, and
/// bytes left out.
fn walk(cutting: &Cutting, bytes: &[u8], part: usize) -> (Vec<Vec<u8>>, usize, usize) {
    let (mut records, mut skipped, mut at, mut skipping) = (Vec::new(), 0, 0, false);
    let mut there = 0;
    loop {
        there = (there + part.max(1)).min(bytes.len());
        let ended = there == bytes.len();
        loop {
            match cutting.next(&bytes[at..there], ended, skipping, VALUE_MAX) {
                Next::Record { value, taken, .. } => {
                    records.push(value.to_vec());
                    at += taken;
                }
                Next::Skip { taken, ends_line } => {
                    skipping = !ends_line;
                    skipped += taken;
                    at += taken;
                }
                Next::More => break,
                Next::TooLong { max } => {
                    assert_eq!((cutting.long_lines, max), (LongLines::Fail, VALUE_MAX));
                    return (records, at, skipped);
                }
            }
        }
        if ended {
            return (records, at, skipped);
        }
    }
}

fn records(cutting: &Cutting, bytes: &[u8]) -> Vec<Vec<u8>> {
    walk(cutting, bytes, usize::MAX / 2).0
}

#[test]
fn a_line_is_what_comes_before_its_line_feed() {
    let keep = cutting(Mode::Lines, LongLines::Fail, false);
    assert_eq!(
        records(&keep, b"a\r\n\n\rb\nlast\r"),
        [&b"a\r"[..], b"", b"\rb", b"last\r"]
    );
    let strip = cutting(Mode::Lines, LongLines::Fail, true);
    // Without a line feed after it, it is part of the line.
    assert_eq!(
        records(&strip, b"a\r\n\n\rb\nlast\r"),
        [&b"a"[..], b"", b"\rb", b"last\r"]
    );
    assert!(records(&keep, b"").is_empty());
}

#[test]
fn only_a_line_beyond_the_largest_value_is_long() {
    for strip_cr in [false, true] {
        let cut = |long_lines| cutting(Mode::Lines, long_lines, strip_cr);
        let text = b"12345678\n123456789\nend\n";
        assert_eq!(walk(&cut(LongLines::Fail), text, 3).0, [b"12345678"]);
        let (found, taken, skipped) = walk(&cut(LongLines::Skip), text, 3);
        assert_eq!(found, [&b"12345678"[..], b"end"]);
        assert_eq!((taken, skipped), (text.len(), 10));
        assert_eq!(
            walk(&cut(LongLines::Split), text, 3).0,
            [&b"12345678"[..], b"12345678", b"9", b"end"]
        );
    }
    let strip = cutting(Mode::Lines, LongLines::Fail, true);
    assert_eq!(records(&strip, b"12345678\r\n"), [b"12345678"]);
}

#[test]
fn a_batch_holds_what_fits_and_at_least_one_record() {
    let cutting = Cutting::new(Mode::Lines, 5, 1000, 5000);
    assert!(cutting.fits(500, 460, 0) && !cutting.fits(500, 461, 0));
    assert_eq!(cutting.room_for(10, 0), 1000);
    let largest = cutting.value_bytes_max(0);
    assert_eq!(cutting.room_for(largest, 0), 5000);
    let mut tagged = cutting.clone();
    tagged.file_name = FileName::Header;
    assert_eq!(tagged.value_bytes_max(100), largest - 100);
    assert_eq!(cutting.differences(&tagged), "--file-name was none and is header");
    assert_eq!(cutting.differences(&cutting), "");
}

proptest! {
    #[test]
    fn how_bytes_arrive_makes_no_difference_and_none_is_lost(
        bytes in prop::collection::vec(prop_oneof![2 => Just(b'\n'), 1 => Just(b'\r'), 6 => any::<u8>()], 0..300),
        part in 1_usize..40,
        strip_cr: bool,
        long_lines in prop_oneof![Just(LongLines::Skip), Just(LongLines::Split), Just(LongLines::Fail)],
        blocks: bool,
    ) {
        let mode = if blocks { Mode::Blocks } else { Mode::Lines };
        let cutting = cutting(mode, long_lines, strip_cr);
        let (found, taken, skipped) = walk(&cutting, &bytes, part);
        let whole = walk(&cutting, &bytes, bytes.len());
        prop_assert_eq!((&found, taken, skipped), (&whole.0, whole.1, whole.2));
        prop_assert!(found.iter().all(|value| value.len() <= VALUE_MAX));
        match (mode, long_lines) {
            (Mode::Blocks, _) => prop_assert_eq!(found.concat(), bytes),
            (Mode::Lines, LongLines::Split) if !strip_cr => {
                prop_assert_eq!(taken, bytes.len());
                let without: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != b'\n').collect();
                prop_assert_eq!(found.concat(), without);
            }
            (Mode::Lines, LongLines::Skip) => prop_assert_eq!(taken, bytes.len()),
            (Mode::Lines, _) => {}
        }
    }
}
