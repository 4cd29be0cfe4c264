//! Damage found while the node runs, and what heals it: crashes in the middle, starts afterwards.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use forebay_proto::data::replica::{CopyRequest, SealedRequest};

use super::*;

impl Node {
    /// One pass of the scrub over everything; how many frames it found to be damaged.
    fn scrub(&mut self) -> usize {
        let frames = self.resumed.index.within(&(0..u64::MAX));
        self.reader().verify(&frames);
        let found = self.damages.take();
        self.resumed.core.damage(&found);
        self.flush();
        found.len()
    }

    /// One message of a repair: these frames, by number.
    fn copy(&mut self, sent: &Sent, frames: std::ops::Range<usize>) -> Result<Copied, NodeFailure> {
        let copy = CopyRequest {
            segment: sent.writer.segment,
            generation: GENERATION,
            token: sent.writer.token,
            base: Offset(sent.base),
            until: sent.writer.next,
            by: Epoch(9),
            listed: true,
            frames: Vec::new(),
        };
        let frames: Vec<_> = sent.frames[frames].iter().cloned().map(checked).collect();
        self.resumed.core.copy(PEER, 7, &copy, &frames);
        self.flush();
        self.hear();
        self.copied.pop().unwrap_or(Err(NodeFailure::Failed))
    }

    /// What an owner does until the replica says that it is whole, a frame at a time; gives up where the
    /// disk fails.
    fn heal(&mut self, sent: &Sent) {
        let mut at = self.copy(sent, 0..0);
        while let Ok(copied) = at
            && copied.tail < sent.writer.next
        {
            let next = copied.frames as usize;
            at = self.copy(sent, next..next + 1);
        }
    }

    fn is_in_limbo(&self, sent: &Sent) -> bool {
        let id = sent.writer.segment;
        let limbo = self.resumed.core.segment(id).unwrap().limbo;
        assert_eq!(self.resumed.index.get(id).unwrap().is_limbo(), limbo, "{id}");
        limbo
    }

    /// A segment is whole, and reads as it was written; a survey and a peer that heals from it say so.
    fn assert_whole(&self, sent: &Sent, what: &str) {
        let id = sent.writer.segment;
        assert!(!self.is_in_limbo(sent), "{what}: {id} in limbo");
        let state = self.resumed.core.segment(id).unwrap();
        assert_eq!(
            (state.frames as usize, state.hash, state.tail),
            (sent.frames.len(), sent.writer.hash, sent.writer.next),
            "{what}"
        );
        assert_eq!(
            self.read(id, Offset(sent.base)).unwrap(),
            sent.data(state.frames),
            "{what}"
        );
        let sealed = self.reader().sealed(&SealedRequest {
            segment: id,
            generation: GENERATION,
            number: 0,
            until: sent.writer.next,
            max_bytes: 1 << 20,
        });
        assert_eq!(sealed.unwrap().len(), sent.frames.len(), "{what}");
        let held: u64 = sent
            .frames
            .iter()
            .map(|frame| frame.header.frame_len() as u64)
            .sum();
        assert_eq!(self.resumed.index.get(id).unwrap().bytes(), held, "{what}");
    }
}

/// Flips a bit in the newest place of a frame.
fn rot(disk: &FaultDisk, node: &Node, sent: &Sent, number: u32, byte: u64) {
    let index = node.resumed.index.get(sent.writer.segment).unwrap();
    let entry = index.entries_of(number, Offset(u64::MAX), |_| true)[0];
    assert_eq!(entry.number, number);
    let (file, _) = node.resumed.table.find(entry.position).unwrap();
    let at = entry.position - file.header.start + byte % entry.frame_len();
    disk.edit(&file.name(), |bytes| bytes[at as usize] ^= 1 << (byte % 8));
}

#[test]
fn a_damaged_frame_of_any_kind_is_found_while_the_node_runs_and_heals_for_good() {
    let (image, sent, _) = small();
    for which in 0..sent.len() {
        for number in 0..sent[which].frames.len() as u32 {
            let disk = image.image();
            let mut node = open(&disk).unwrap();
            let (one, what) = (&sent[which], format!("segment {which}, frame {number}"));
            assert_eq!(node.scrub(), 0, "{what}");
            rot(&disk, &node, one, number, 100);
            assert_eq!(node.scrub(), 1, "{what}");
            assert!(node.is_in_limbo(one), "{what}");
            let index = node.resumed.index.get(one.writer.segment).unwrap();
            let header = one.frames[number as usize].header;
            assert_eq!(index.holes(9).is_empty(), number + 1 == one.frames.len() as u32);
            let failure = node.read(one.writer.segment, header.first);
            assert!(failure.is_err() || header.batches == 0, "{what}");
            assert_ne!(failure, Err(NodeFailure::NotFound), "{what}");
            for other in sent.iter().filter(|other| other.base != one.base) {
                node.assert_whole(other, &what);
            }
            // Marked is marked, and nothing else is suspected after a start.
            drop(node);
            let mut node = open(&disk).unwrap();
            assert!(node.is_in_limbo(one), "{what}");
            for other in sent.iter().filter(|other| other.base != one.base) {
                node.assert_whole(other, &what);
            }
            node.heal(one);
            node.assert_whole(one, &what);
            assert_eq!(node.scrub(), 0, "{what}");
            drop(node);
            let mut node = open(&disk).unwrap();
            node.assert_whole(one, &what);
            // And the same once more, in the place where it is now.
            rot(&disk, &node, one, number, 91);
            assert_eq!(node.scrub(), 1, "{what}");
            node.heal(one);
            node.assert_whole(one, &what);
            drop(node);
            for one in &sent {
                open(&disk).unwrap().assert_whole(one, &what);
            }
        }
    }
}

#[test]
fn a_reader_that_meets_damage_marks_it_as_the_scrub_does() {
    let (disk, sent, _) = small();
    let mut node = open(&disk).unwrap();
    rot(&disk, &node, &sent[0], 1, 95);
    let read = node.read(sent[0].writer.segment, Offset(sent[0].base));
    assert_eq!(read, Err(NodeFailure::Corrupt));
    let found = node.damages.take();
    assert_eq!(found.len(), 1);
    assert!(node.resumed.index.get(sent[0].writer.segment).unwrap().is_limbo());
    node.resumed.core.damage(&found);
    node.flush();
    assert!(node.is_in_limbo(&sent[0]));
    assert_eq!(node.scrub(), 0);
    let read = node.read(sent[0].writer.segment, Offset(sent[0].base));
    assert_eq!(read, Err(NodeFailure::Corrupt));
}

#[test]
fn what_cannot_be_read_is_damaged_and_heals_too() {
    let (disk, sent, _) = small();
    let mut node = open(&disk).unwrap();
    let index = node.resumed.index.get(sent[2].writer.segment).unwrap();
    let entry = index.entries_of(2, Offset(u64::MAX), |_| true)[0];
    let at = entry.position - node.resumed.table.find(entry.position).unwrap().0.header.start;
    disk.make_unreadable(&journal_name(1), at + 10..at + 11);
    assert!(node.scrub() >= 1);
    assert!(node.is_in_limbo(&sent[2]));
    for one in &sent {
        node.heal(one);
        node.assert_whole(one, "unreadable");
    }
    assert_eq!(node.scrub(), 0);
}

#[test]
fn an_open_segment_in_limbo_takes_nothing_acknowledges_nothing_and_is_no_witness() {
    let (disk, sent, _) = small();
    let mut node = open(&disk).unwrap();
    let mut one = sent[0].clone();
    rot(&disk, &node, &one, 1, 100);
    // A frame is on its way while the damage is found.
    node.append(one.next(200));
    let frames = node.resumed.index.within(&(0..u64::MAX));
    node.reader().verify(&frames);
    let found = node.damages.take();
    node.resumed.core.damage(&found);
    node.flush();
    assert!(node.is_in_limbo(&one) && node.acked.is_empty());
    node.append(one.next(200));
    node.flush();
    assert_eq!(node.refused, [Refusal::Diverged]);
    node.fence(&one.writer, one.base);
    node.flush();
    let state = node.fenced[&one.writer.segment];
    assert!(!state.authoritative);
    assert_eq!((state.frames, state.tail), (1, one.frames[0].header.end));
    node.heal(&one);
    node.assert_whole(&one, "healed");
    drop(node);
    open(&disk).unwrap().assert_whole(&one, "after a start");
}

#[test]
fn a_replica_heals_only_by_the_bytes_it_had_and_only_from_a_hole_on() {
    let (disk, sent, _) = small();
    let mut node = open(&disk).unwrap();
    let one = &sent[1];
    rot(&disk, &node, one, 1, 100);
    assert_eq!(node.scrub(), 1);
    assert_eq!(
        node.copy(one, 0..0),
        Ok(Copied {
            frames: 1,
            tail: one.frames[0].header.end
        })
    );
    assert_eq!(
        node.copy(one, 2..3),
        Err(NodeFailure::Behind(one.frames[0].header.end))
    );
    let mut other = sent[1].writer.clone();
    (other.number, other.next, other.hash) = (1, one.frames[0].header.end, sent[0].writer.hash);
    let wrong = Sent {
        frames: vec![other.data(3)],
        ..one.clone()
    };
    assert_eq!(node.copy(&wrong, 0..1), Err(NodeFailure::Corrupt));
    assert!(node.is_in_limbo(one));
    let before = node.resumed.core.durable();
    let all = one.frames.len();
    assert_eq!(node.copy(one, 1..2).unwrap().frames, 2);
    let last = node.copy(one, 2..all).unwrap();
    assert_eq!(last.tail, one.writer.next);
    // What was here is not written again.
    let written: usize = one.frames.iter().map(|frame| frame.header.frame_len()).sum();
    assert!(node.resumed.core.durable() - before < (written + 4 * BLOCK_LEN) as u64);
    node.assert_whole(one, "joined");
}

#[test]
fn a_crash_anywhere_in_a_heal_leaves_it_whole_or_in_limbo_and_it_heals_after_all() {
    let (image, sent, _) = small();
    let (mut whole, mut limbo) = (0, 0);
    for crash in 1..60 {
        let disk = image.image();
        let mut node = open(&disk).unwrap();
        rot(&disk, &node, &sent[0], 1, 100);
        rot(&disk, &node, &sent[0], 2, 120);
        disk.crash_at(crash);
        node.scrub();
        node.heal(&sent[0]);
        let crashed = disk.has_crashed();
        drop(node);
        let disk = disk.crashed(crash);
        let mut node = open(&disk).unwrap();
        node.scrub();
        if node.is_in_limbo(&sent[0]) {
            limbo += 1;
        } else {
            whole += 1;
            node.assert_whole(&sent[0], &format!("crash at {crash}"));
        }
        for one in &sent {
            node.heal(one);
            node.assert_whole(one, &format!("healed after a crash at {crash}"));
        }
        if !crashed {
            break;
        }
    }
    assert!(whole > 0 && limbo > 2, "{whole} whole, {limbo} in limbo");
}

#[test]
fn damage_found_by_a_start_heals_in_the_same_way() {
    let (image, sent, end) = small();
    let mut healed = 0;
    for at in (0..end as usize).step_by(97) {
        let disk = image.image();
        disk.edit(&journal_name(1), |bytes| bytes[at] ^= 1 << (at % 8));
        let Ok(mut node) = open(&disk) else { continue };
        for one in &sent {
            if node
                .resumed
                .core
                .segment(one.writer.segment)
                .is_some_and(|state| state.limbo)
            {
                healed += 1;
            }
            node.heal(one);
            node.assert_whole(one, &format!("byte {at}"));
        }
        assert_eq!(node.scrub(), 0);
        drop(node);
        let node = open(&disk).unwrap();
        for one in &sent {
            node.assert_whole(one, &format!("byte {at}, after a start"));
        }
    }
    assert!(healed > 20, "{healed}");
}
