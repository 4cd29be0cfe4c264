//! Crashes at every change of the disk, and damage at every byte of a journal.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use forebay_proto::data::replica::{
    Copied, FenceItem, FencedState, FromNode, NodeFailure, ReadRequest, Refusal,
};
use forebay_record::frame::Frame;
use forebay_record::{Epoch, Generation, Offset, SegmentId};
use forebay_runtime::random::SeededRandom;
use uuid::Uuid;

mod damage;
mod heal;
mod trim;

use damage::small;

use super::*;
use crate::damage::Damages;
use crate::disk::fault::FaultDisk;
use crate::disk::{BLOCK_LEN, BLOCK_LEN_U64};
use crate::journal::files::journal_name;
use crate::read::Reader;
use crate::replica::Peer;
use crate::testing::{GENERATION, NODE, Writer, checked};

const PEER: Peer = Peer(1);
const FILE_LEN: u64 = 64 << 10;

fn terms() -> Terms {
    Terms {
        file_len: FILE_LEN,
        commit_bytes_max: 16 << 10,
        budget_bytes: 1 << 30,
        checkpoint: 0,
        revision: Revision(5000),
    }
}

fn open_with(disk: &FaultDisk, terms: &Terms) -> Result<Node, ResumeError> {
    let known = Superblock::read(disk)?;
    let boot = known.as_ref().map_or(1, |known| known.boot + 1);
    let superblock = known.unwrap_or_else(|| Superblock {
        record_revision: 0,
        starts: [0; crate::superblock::STARTS],
        disk: Uuid::from_u128(1),
        node: NODE,
        generation: GENERATION,
        boot,
        newest_file: 0,
        incarnation: 1,
        revision: 1,
        cluster: "c".to_owned(),
    });
    let superblock = Superblock { boot, ..superblock };
    let random = Arc::new(SeededRandom::new(boot));
    let resumed = resume(Arc::new(disk.clone()), superblock, terms, random)?;
    Ok(Node {
        resumed,
        acked: BTreeMap::new(),
        fenced: BTreeMap::new(),
        refused: Vec::new(),
        damages: Arc::default(),
        copied: Vec::new(),
    })
}

fn open(disk: &FaultDisk) -> Result<Node, ResumeError> {
    open_with(disk, &terms())
}

/// A journal without threads, and what it promised.
#[derive(Debug)]
struct Node {
    resumed: Resumed,
    acked: BTreeMap<SegmentId, u32>,
    fenced: BTreeMap<SegmentId, FencedState>,
    refused: Vec<Refusal>,
    damages: Arc<Damages>,
    copied: Vec<Result<Copied, NodeFailure>>,
}

impl Node {
    fn hear(&mut self) {
        for (_, message) in self.resumed.core.take_out() {
            match message {
                FromNode::Acks { acks, .. } => {
                    for ack in acks {
                        let held = self.acked.entry(ack.segment).or_default();
                        assert!(ack.frames >= *held, "an acknowledgement was taken back");
                        *held = ack.frames;
                    }
                }
                FromNode::Fenced { states, .. } => {
                    self.fenced
                        .extend(states.into_iter().map(|state| (state.segment, state)));
                }
                FromNode::NotTaken { refusal, .. } => self.refused.push(refusal),
                FromNode::Copied { result, .. } => self.copied.push(result),
                other => panic!("{other:?}"),
            }
        }
    }

    fn append(&mut self, frame: Frame) {
        self.resumed.core.append(PEER, GENERATION, &checked(frame));
        self.hear();
    }

    fn fence(&mut self, writer: &Writer, base: u64) {
        let item = FenceItem {
            segment: writer.segment,
            generation: GENERATION,
            token: writer.token,
            base: Offset(base),
            by: Epoch(9),
        };
        self.resumed.core.fence(PEER, 1, &[item]);
        self.hear();
    }

    fn flush(&mut self) {
        self.resumed.core.flush();
        self.hear();
    }

    fn reader(&self) -> Reader {
        Reader {
            generation: GENERATION,
            index: Arc::clone(&self.resumed.index),
            table: Arc::clone(&self.resumed.table),
            damages: Arc::clone(&self.damages),
        }
    }

    fn read(&self, segment: SegmentId, from: Offset) -> Result<Bytes, NodeFailure> {
        let until = Offset(u64::MAX);
        self.reader().read(&ReadRequest {
            segment,
            generation: GENERATION,
            from,
            until,
            max_bytes: 1 << 20,
        })
    }
}

/// What one segment's writer sent, frame by frame.
#[derive(Clone)]
struct Sent {
    writer: Writer,
    frames: Vec<Frame>,
    base: u64,
}

impl Sent {
    fn new(seq: u32, base: u64) -> Self {
        Self {
            writer: Writer::new(seq, base),
            frames: Vec::new(),
            base,
        }
    }

    fn next(&mut self, body: usize) -> Frame {
        let frame = match self.writer.number {
            0 => self.writer.open(),
            number if number % 7 == 6 => self.writer.state(),
            _ => self.writer.data_of_len(3, body),
        };
        self.frames.push(frame.clone());
        frame
    }

    fn data(&self, frames: u32) -> Vec<u8> {
        let frames = self.frames[..frames as usize].iter();
        frames
            .filter(|frame| frame.header.batches > 0)
            .flat_map(|frame| frame.payload_bytes())
            .collect()
    }
}

/// Writes to three segments, fences one and an unknown one, over several files; stops where the
/// journal fails.
fn work(node: &mut Node, sent: &mut [Sent; 3], seed: u64) {
    let random = SeededRandom::new(seed);
    use forebay_runtime::random::Random;
    for round in 0..40 {
        for _ in 0..random.range(1, 5) {
            let which = random.range(0, 3) as usize;
            if node.fenced.contains_key(&sent[which].writer.segment) {
                continue;
            }
            let frame = sent[which].next(random.range(100, 4000) as usize);
            node.append(frame);
        }
        if round == 25 {
            let (writer, base) = (sent[1].writer.clone(), sent[1].base);
            node.fence(&writer, base);
            node.fence(&Writer::new(50, 10), 10);
        }
        node.flush();
        if random.range(0, 4) == 0 {
            node.resumed
                .core
                .commit(&[(sent[0].writer.segment, sent[0].writer.next)]);
            node.resumed.core.idle();
        }
        if node.resumed.core.failure().is_some() {
            return;
        }
    }
}

/// All that was promised is there, and nothing that was never sent.
fn check_promises(
    node: &Node,
    acked: &BTreeMap<SegmentId, u32>,
    fenced: &BTreeMap<SegmentId, FencedState>,
    sent: &[Sent; 3],
) {
    for one in sent {
        let id = one.writer.segment;
        let promised = acked.get(&id).copied().unwrap_or_default();
        let Some(state) = node.resumed.core.segment(id) else {
            assert_eq!(promised, 0, "{id} is gone");
            continue;
        };
        assert!(!state.limbo, "{id} in limbo after a crash");
        assert!(
            state.frames >= promised,
            "{id} holds {} of {promised} frames",
            state.frames
        );
        assert!(state.frames as usize <= one.frames.len());
        let last = state
            .frames
            .checked_sub(1)
            .map(|last| one.frames[last as usize].header);
        if let Some(last) = last {
            assert_eq!((state.hash, state.tail), (last.hash(), last.end));
        }
        let expected = one.data(state.frames);
        let mut from = Offset(one.base);
        let mut found = Vec::new();
        while from < state.tail {
            let bytes = node.read(id, from).unwrap();
            for (facts, _) in crate::content::batches(&bytes).flatten() {
                from = facts.end;
            }
            found.extend_from_slice(&bytes);
        }
        assert!(found == expected, "{id} reads otherwise than written");
    }
    for (id, promised) in fenced {
        let state = node
            .resumed
            .core
            .segment(*id)
            .unwrap_or_else(|| panic!("fence of {id} is gone"));
        assert_eq!(state.fenced, Some(Epoch(9)));
        assert_eq!(
            (state.tail, state.frames, state.hash),
            (promised.tail, promised.frames, promised.hash)
        );
    }
}

fn fresh() -> [Sent; 3] {
    [Sent::new(1, 10), Sent::new(2, 1000), Sent::new(3, 5)]
}

#[test]
fn everything_acknowledged_is_there_after_a_crash_at_any_change_of_the_disk() {
    let disk = FaultDisk::default();
    let mut node = open(&disk).unwrap();
    work(&mut node, &mut fresh(), 1);
    assert!(
        node.resumed.table.len() > 3,
        "the work fits {} files",
        node.resumed.table.len()
    );
    assert_eq!(node.fenced.len(), 2);
    let changes = disk.changes();
    assert!(changes > 150, "{changes}");
    for crash_at in 1..=changes {
        let disk = FaultDisk::default();
        disk.crash_at(crash_at);
        let mut sent = fresh();
        let (mut acked, mut fenced) = (BTreeMap::new(), BTreeMap::new());
        if let Ok(mut node) = open(&disk) {
            work(&mut node, &mut sent, 1);
            (acked, fenced) = (node.acked, node.fenced);
        }
        let disk = disk.crashed(crash_at);
        let mut node = open(&disk).unwrap_or_else(|error| panic!("crash at {crash_at}: {error}"));
        check_promises(&node, &acked, &fenced, &sent);

        // The node goes on where it is, and crashes again in the middle of that.
        for one in &mut sent {
            let held = node
                .resumed
                .core
                .segment(one.writer.segment)
                .map_or(0, |state| state.frames);
            one.frames.truncate(held as usize);
            let mut writer = Sent::new(one.writer.segment.seq, one.base).writer;
            if let Some(last) = one.frames.last() {
                writer.number = held;
                writer.next = last.header.end;
                writer.hash = last.header.hash();
            }
            one.writer = writer;
        }
        node.acked = acked;
        node.fenced = fenced;
        disk.crash_at(20 + crash_at % 17);
        work(&mut node, &mut sent, crash_at);
        let (acked, fenced) = (node.acked, node.fenced);
        let disk = disk.crashed(crash_at + 1000);
        let node = open(&disk).unwrap_or_else(|error| panic!("second crash after {crash_at}: {error}"));
        check_promises(&node, &acked, &fenced, &sent);
    }
}

#[test]
fn a_journal_shorter_than_its_checkpoint_is_an_older_image() {
    let (disk, _, end) = small();
    open_with(
        &disk.image(),
        &Terms {
            checkpoint: end,
            ..terms()
        },
    )
    .unwrap();
    let error = open_with(
        &disk.image(),
        &Terms {
            checkpoint: end + 1,
            ..terms()
        },
    )
    .unwrap_err();
    assert!(error.to_string().contains("older image"), "{error}");
}

#[test]
fn a_failed_sync_ends_writing_for_good_and_reading_goes_on() {
    let disk = FaultDisk::default();
    let mut node = open(&disk).unwrap();
    let mut sent = Sent::new(1, 10);
    for _ in 0..3 {
        node.append(sent.next(200));
    }
    node.flush();
    assert_eq!(node.acked[&sent.writer.segment], 3);
    disk.fail_syncs();
    node.append(sent.next(200));
    node.flush();
    assert_eq!(
        (node.refused.as_slice(), node.acked[&sent.writer.segment]),
        ([Refusal::Failed].as_slice(), 3)
    );
    assert!(node.resumed.core.failure().unwrap().contains("medium error"));
    node.append(sent.next(200));
    node.fence(&sent.writer, 10);
    node.flush();
    node.resumed.core.idle();
    assert_eq!(node.refused, [Refusal::Failed; 2]);
    assert!(node.fenced.is_empty(), "a fence was promised by a dead journal");
    assert_eq!(node.read(sent.writer.segment, Offset(10)).unwrap(), sent.data(3));
}

#[test]
fn a_full_disk_refuses_first_new_segments_then_data_and_still_fences() {
    let disk = FaultDisk::default();
    let terms = Terms {
        budget_bytes: 8 * FILE_LEN,
        ..terms()
    };
    let mut node = open_with(&disk, &terms).unwrap();
    node.resumed.pool.reserve().unwrap();
    let mut sent = Sent::new(1, 10);
    while node.refused.is_empty() {
        node.append(sent.next(8000));
        node.flush();
    }
    assert_eq!(node.refused, [Refusal::DiskFull]);
    let used = node.resumed.table.len() as u64;
    assert_eq!(used, 6, "two files are kept back");
    node.append(Writer::new(2, 10).open());
    assert_eq!(node.refused[1], Refusal::NoNewSegments);
    for seq in 0..500 {
        node.fence(&Writer::new(100 + seq, 10), 10);
    }
    node.flush();
    assert_eq!(node.fenced.len(), 500);
    assert!(
        node.resumed.table.len() as u64 > used,
        "the fences fit the last file"
    );
    // More than the table of segments holds: the rest is closed by the floor.
    assert!(node.resumed.core.floor().0 > 0);
    for seq in [100, 599] {
        node.refused.clear();
        node.append(Writer::new(seq, 10).open());
        assert!(
            matches!(node.refused[..], [Refusal::Fenced(_) | Refusal::Closed]),
            "{:?}",
            node.refused
        );
    }
    assert_eq!(node.resumed.core.failure(), None);
}

#[test]
fn a_disk_that_others_filled_leaves_the_reserve_to_fences() {
    let disk = FaultDisk::default();
    let mut node = open(&disk).unwrap();
    node.resumed.pool.reserve().unwrap();
    disk.set_free(0);
    let mut sent = Sent::new(1, 10);
    while node.refused.is_empty() {
        node.append(sent.next(8000));
        node.flush();
    }
    assert_eq!(
        (node.refused.as_slice(), node.resumed.table.len()),
        ([Refusal::DiskFull].as_slice(), 1)
    );
    let mut seq = 100;
    while node.resumed.table.len() == 1 {
        node.fence(&Writer::new(seq, 10), 10);
        node.flush();
        seq += 1;
    }
    assert_eq!(
        (node.fenced.len() as u32, node.resumed.core.failure()),
        (seq - 100, None)
    );
    // Room comes back.
    disk.set_free(1 << 20);
    node.resumed.pool.make_ahead().unwrap();
    sent.writer.number -= 1;
    let last = sent.frames[sent.writer.number as usize - 1].header;
    (sent.writer.next, sent.writer.hash) = (last.end, last.hash());
    sent.frames.pop();
    let frames = sent.writer.number + 5;
    for _ in 0..5 {
        node.append(sent.next(8000));
        node.flush();
    }
    assert_eq!(node.acked[&sent.writer.segment], frames);
}

#[test]
fn a_recycled_file_does_not_bring_back_what_it_held() {
    let disk = FaultDisk::default();
    let mut node = open(&disk).unwrap();
    let mut sent = Sent::new(1, 10);
    while node.resumed.table.len() < 4 {
        node.append(sent.next(8000));
        node.flush();
    }
    // Only the newest file is needed.
    drop(node);
    let disk = disk.image();
    let pool = Pool::open(Arc::new(disk.clone()), FILE_LEN, u64::MAX).unwrap();
    // A reserve is there already, so a file becomes a spare.
    pool.reserve().unwrap();
    let owner = Owner {
        cluster: crc32c(b"c"),
        node: NODE,
        generation: GENERATION,
    };
    let found = scan::scan(&disk, owner).unwrap();
    let starts: Vec<u64> = found
        .table
        .closed_ranges()
        .iter()
        .map(|range| range.start)
        .collect();
    let found = scan::Found { place: None, ..found };
    let dead = found.table.take_out(&starts);
    assert_eq!(dead.len(), 3);
    pool.recycle(dead).unwrap();
    drop((pool, found));
    let names = disk.list().unwrap();
    assert_eq!(
        names.iter().filter(|name| name.starts_with("journal-")).count(),
        1
    );
    assert_eq!(names.iter().filter(|name| name.starts_with("spare-")).count(), 1);

    // The segment lost its files, so it is in limbo; another one fills the recycled file in part.
    let mut node = open(&disk).unwrap();
    assert!(node.resumed.core.segment(sent.writer.segment).unwrap().limbo);
    let mut other = Sent::new(2, 10);
    while node.resumed.table.len() < 2 {
        node.append(other.next(8000));
        node.flush();
    }
    node.append(other.next(100));
    node.flush();
    let frames = node.acked[&other.writer.segment];
    let node = open(&disk.image()).unwrap();
    let state = node.resumed.core.segment(other.writer.segment).unwrap();
    assert_eq!((state.frames, state.limbo), (frames, false));
    assert_eq!(node.resumed.core.counts().open, 1);
}

#[test]
fn a_journal_of_another_node_or_generation_is_refused() {
    let (disk, _, _) = small();
    let mut superblock = Superblock::read(&disk).unwrap().unwrap();
    superblock.generation = Generation(2);
    superblock.write(&disk).unwrap();
    let error = open(&disk).unwrap_err();
    assert!(error.to_string().contains("belongs to"), "{error}");
}
