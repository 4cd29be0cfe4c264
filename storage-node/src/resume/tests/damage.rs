//! Damage at every byte of a small journal.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use super::*;

/// A journal of a few blocks that ends with a mark: two segments, a fence, a tombstone.
pub(super) fn small() -> (FaultDisk, [Sent; 3], u64) {
    let disk = FaultDisk::default();
    let mut node = open(&disk).unwrap();
    let mut sent = fresh();
    for round in 0..3 {
        for one in &mut sent {
            let frame = one.next(300 + round * 50);
            node.append(frame);
        }
        node.flush();
    }
    node.fence(&sent[1].writer.clone(), sent[1].base);
    node.fence(&Writer::new(50, 10), 10);
    node.flush();
    node.resumed.core.idle();
    let end = node.resumed.core.durable();
    assert!(node.refused.is_empty());
    (disk.image(), sent, end)
}

/// Whatever was done to the journal: what is not in limbo is complete, what is fenced or closed
/// stays so, and whatever is read is what was written.
fn check_damaged(disk: &FaultDisk, sent: &[Sent; 3], what: &str) -> Outcome {
    let node = match open(disk) {
        Ok(node) => node,
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("/fault/journal-0000000000000001"), "{what}: {text}");
            return Outcome::Refused;
        }
    };
    let mut limbo = false;
    for one in sent {
        let id = one.writer.segment;
        let state = node.resumed.core.segment(id);
        let lost = state.is_none_or(|state| state.limbo);
        limbo |= lost;
        if let Some(state) = state.filter(|state| !state.limbo) {
            assert_eq!(
                state.frames as usize,
                one.frames.len(),
                "{what}: {id} lost frames silently"
            );
            assert_eq!(
                (state.hash, state.tail),
                (one.writer.hash, one.writer.next),
                "{what}"
            );
        }
        for frame in one.frames.iter().filter(|frame| frame.header.batches > 0) {
            match node.read(id, frame.header.first) {
                Ok(bytes) => assert!(bytes.starts_with(&frame.payload_bytes()), "{what}: wrong bytes"),
                Err(failure) => assert!(lost, "{what}: {id} {failure:?}"),
            }
        }
    }
    // A segment that was closed takes nothing, whether its fence is still there or not.
    let mut closed = node;
    let mut late = sent[1].writer.clone();
    closed.append(late.data(1));
    closed.append(Writer::new(50, 10).open());
    closed.flush();
    assert_eq!(closed.refused.len(), 2, "{what}: a closed segment was opened");
    if limbo { Outcome::Limbo } else { Outcome::Complete }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Complete,
    Limbo,
    Refused,
}

#[test]
fn a_flipped_byte_anywhere_never_gives_wrong_bytes_or_silent_loss() {
    let (disk, sent, end) = small();
    let name = journal_name(1);
    let mut outcomes = BTreeSet::new();
    for at in 0..end as usize + BLOCK_LEN {
        let disk = disk.image();
        disk.edit(&name, |bytes| bytes[at] ^= 1 << (at % 8));
        outcomes.insert(check_damaged(&disk, &sent, &format!("byte {at} flipped")));
    }
    assert_eq!(outcomes.len(), 3, "{outcomes:?}");
}

#[test]
fn a_journal_cut_at_any_length_never_gives_wrong_bytes_or_silent_loss() {
    let (disk, sent, end) = small();
    let name = journal_name(1);
    for len in (0..end as usize + 2 * BLOCK_LEN).step_by(7) {
        let disk = disk.image();
        disk.edit(&name, |bytes| bytes.truncate(len));
        let outcome = check_damaged(&disk, &sent, &format!("cut to {len}"));
        assert!(len >= end as usize || outcome != Outcome::Complete || len as u64 > end - BLOCK_LEN_U64);
    }
}

#[test]
fn an_unreadable_block_is_limbo_and_never_a_torn_tail() {
    let (disk, sent, end) = small();
    let name = journal_name(1);
    for block in 0..end / BLOCK_LEN_U64 {
        let disk = disk.image();
        let at = block * BLOCK_LEN_U64;
        disk.make_unreadable(&name, at..at + 1);
        let what = format!("block {block} unreadable");
        let node = match open(&disk) {
            Ok(node) => node,
            Err(error) => {
                assert!(error.to_string().contains(&name), "{what}: {error}");
                continue;
            }
        };
        let limbo = sent.iter().any(|one| {
            node.resumed
                .core
                .segment(one.writer.segment)
                .is_none_or(|state| state.limbo)
        });
        assert!(limbo, "{what}: nothing in limbo");
    }
}

#[test]
fn limbo_and_the_raised_floor_are_remembered_by_later_starts() {
    let (disk, sent, _) = small();
    disk.edit(&journal_name(1), |bytes| bytes[2 * BLOCK_LEN + 100] ^= 1);
    for _ in 0..2 {
        let node = open(&disk).unwrap();
        assert_eq!(node.resumed.core.floor().0, 5000);
        assert!(node.resumed.core.segment(sent[0].writer.segment).unwrap().limbo);
    }
}
