//! Trims among everything else a node does, and a crash at every change of the disk.
//!
//! Files are put away right after each trim, so spares come back into use under the crashes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use forebay_record::frame::ChainHash;
use forebay_runtime::random::Random;

use super::*;
use crate::journal::pool::Purpose;

const FILES: u64 = 12;

fn terms() -> Terms {
    Terms {
        budget_bytes: FILES * FILE_LEN,
        ..super::terms()
    }
}

/// Takes files out of use as the node's task does.
fn reclaim(node: &Node) -> bool {
    let (table, index) = (&node.resumed.table, &node.resumed.index);
    let ranges = table.closed_ranges();
    let survey = index.survey(&ranges);
    let free: Vec<u64> = ranges
        .iter()
        .zip(&survey.used)
        .filter(|(_, used)| !**used)
        .map(|(range, _)| range.start)
        .collect();
    let taken = table.take_out(&free);
    taken.is_empty() || node.resumed.pool.recycle(taken).is_ok()
}

/// Bytes of all files on the disk that are the journal's.
fn disk_bytes(disk: &FaultDisk) -> u64 {
    let names = disk.list().unwrap().into_iter();
    names
        .filter(|name| crate::journal::files::is_ours(name))
        .map(|name| disk.open(&name).unwrap().length().unwrap())
        .sum()
}

/// Segments that come, grow, and are trimmed one after the other.
#[derive(Default)]
struct World {
    live: BTreeMap<SegmentId, Sent>,
    /// Asked to be trimmed; whether that is promised.
    trimmed: BTreeMap<SegmentId, (Sent, bool)>,
    next: u32,
    /// Every segment's newest frame that the node has acknowledged.
    acked: BTreeMap<SegmentId, u32>,
}

impl World {
    fn open_one(&mut self) {
        self.next += 1;
        let sent = Sent::new(self.next, u64::from(self.next) * 1000);
        self.live.insert(sent.writer.segment, sent);
    }

    /// Works for some rounds, until the disk crashes.
    fn work(&mut self, node: &mut Node, disk: &FaultDisk, seed: u64, rounds: u32) {
        let random = SeededRandom::new(seed);
        for _ in 0..rounds {
            if self.live.len() < 3 {
                self.open_one();
            }
            let ids: Vec<SegmentId> = self.live.keys().copied().collect();
            for id in &ids {
                if random.range(0, 3) > 0 {
                    let frame = self
                        .live
                        .get_mut(id)
                        .unwrap()
                        .next(random.range(200, 6000) as usize);
                    node.append(frame);
                }
            }
            // Mostly the oldest, sometimes one from the middle, so that files stay pinned.
            let short = node.resumed.table.len() as u64 > FILES - 6;
            let newest = random.range(0, 3) == 0 && !short;
            let id = ids[if newest { ids.len() - 1 } else { 0 }];
            let trim = (short || random.range(0, 4) == 0) && self.acked.contains_key(&id);
            if trim && let Some(sent) = self.live.remove(&id) {
                self.trimmed.insert(id, (sent, false));
                if node.resumed.core.trim(&[id]) == 0 {
                    // Only a disk that crashed gives no file.
                    assert!(disk.has_crashed());
                    return;
                }
            }
            node.flush();
            self.acked.append(&mut node.acked.clone());
            if node.resumed.core.failure().is_some() {
                return;
            }
            if trim {
                // Durable from here on: its bytes may go.
                self.trimmed.get_mut(&id).unwrap().1 = true;
                assert!(node.resumed.index.get(id).is_none());
                if !reclaim(node) {
                    return;
                }
            }
            if random.range(0, 5) == 0 {
                node.resumed.core.idle();
            }
            assert!(disk_bytes(disk) <= FILES * FILE_LEN, "{}", disk_bytes(disk));
            // Nothing goes on that was refused for want of room, or because the disk is gone.
            if !node.refused.is_empty() {
                return;
            }
        }
    }

    /// After a crash: what is not trimmed is there, what is trimmed stays closed.
    fn check(&mut self, node: &mut Node, what: &str) {
        for (id, (sent, promised)) in &self.trimmed {
            let state = node.resumed.core.segment(*id);
            assert!(!promised || state.is_none(), "{what}: {id} came back");
            // Also where the crash came before its trim: it may be back, and then it is whole.
            if state.is_none() {
                node.refused.clear();
                let mut again = Writer::new(id.seq, sent.base);
                node.append(again.open());
                let hash = ChainHash::seed(*id);
                assert_ne!(again.hash, hash);
                assert_eq!(node.refused, [Refusal::Closed], "{what}: {id} was opened again");
                node.refused.clear();
            }
        }
        for (id, sent) in &mut self.live {
            let promised = self.acked.get(id).copied().unwrap_or_default();
            let state = node.resumed.core.segment(*id);
            let held = state.map_or(0, |state| state.frames);
            assert!(held >= promised, "{what}: {id} lost frames");
            assert!(state.is_none_or(|state| !state.limbo), "{what}: {id} in limbo");
            let mut found = Vec::new();
            let mut from = Offset(sent.base);
            while state.is_some_and(|state| from < state.tail) {
                let bytes = node.read(*id, from).unwrap();
                for (facts, _) in crate::content::batches(&bytes).flatten() {
                    from = facts.end;
                }
                found.extend_from_slice(&bytes);
            }
            assert!(
                found == sent.data(held),
                "{what}: {id} reads otherwise than written"
            );
            // Its writer goes on from what is held.
            sent.frames.truncate(held as usize);
            let mut writer = Writer::new(id.seq, sent.base);
            if let Some(last) = sent.frames.last() {
                (writer.number, writer.next, writer.hash) = (held, last.header.end, last.header.hash());
            }
            sent.writer = writer;
        }
        // Of a trim that the crash undid nobody was told; the next round asks again.
        for (id, (_, promised)) in &mut self.trimmed {
            if !*promised {
                node.resumed.core.trim(&[*id]);
                *promised = true;
            }
        }
        node.flush();
    }
}

fn run(disk: &FaultDisk, world: &mut World, seed: u64) -> bool {
    let Ok(mut node) = open_with(disk, &terms()) else {
        return false;
    };
    if node.resumed.pool.reserve().is_err() {
        return false;
    }
    world.work(&mut node, disk, seed, 60);
    node.resumed.core.failure().is_none() && node.refused.is_empty()
}

#[test]
fn what_is_trimmed_stays_closed_and_nothing_else_is_lost_after_a_crash_at_any_change_of_the_disk() {
    let disk = FaultDisk::default();
    let mut world = World::default();
    assert!(run(&disk, &mut world, 1));
    assert!(world.trimmed.len() > 8, "{} trims", world.trimmed.len());
    let changes = disk.changes();
    let renamed = disk.list().unwrap();
    assert!(
        renamed.iter().filter(|name| name.starts_with("journal-")).count() < 10,
        "{renamed:?}"
    );
    for crash_at in 1..=changes {
        let what = format!("crash at {crash_at}");
        let disk = FaultDisk::default();
        disk.crash_at(crash_at);
        let mut world = World::default();
        run(&disk, &mut world, 1);
        let disk = disk.crashed(crash_at);
        let mut node = open_with(&disk, &terms()).unwrap_or_else(|error| panic!("{what}: {error}"));
        world.check(&mut node, &what);
        assert!(reclaim(&node));
        node.refused.clear();

        // It goes on, and crashes again.
        disk.crash_at(15 + crash_at % 23);
        world.work(&mut node, &disk, crash_at, 20);
        let disk = disk.crashed(crash_at + 5000);
        let mut node = open_with(&disk, &terms())
            .unwrap_or_else(|error| panic!("second crash after {crash_at}: {error}"));
        world.check(&mut node, &format!("second {what}"));
    }
}

#[test]
fn bytes_of_trimmed_segments_come_back_as_spares_and_reserve_and_are_written_again() {
    let disk = FaultDisk::default();
    let mut node = open_with(&disk, &terms()).unwrap();
    let mut sent = Sent::new(1, 10);
    while node.resumed.table.len() < 6 {
        node.append(sent.next(8000));
        node.flush();
    }
    let written = node.resumed.pool.zeroed_bytes();
    node.resumed.core.trim(&[sent.writer.segment]);
    // Not durable yet: nothing is given up.
    assert!(reclaim(&node));
    assert_eq!(node.resumed.table.len(), 6);
    node.flush();
    assert!(reclaim(&node));
    assert_eq!((node.resumed.table.len(), node.resumed.pool.ready()), (1, 1));
    assert_eq!(
        node.resumed.pool.bytes(),
        4 * FILE_LEN,
        "two of the reserve, one spare, one in use"
    );
    assert_eq!(disk_bytes(&disk), 4 * FILE_LEN);
    let mut other = Sent::new(2, 10);
    while node.resumed.table.len() < 2 {
        node.append(other.next(8000));
        node.flush();
    }
    assert_eq!(node.resumed.pool.zeroed_bytes(), written, "a file was made anew");
}

#[test]
fn a_reader_keeps_its_file_from_being_written_and_learns_that_the_segment_is_gone() {
    let disk = FaultDisk::default();
    let mut node = open_with(&disk, &terms()).unwrap();
    let mut sent = Sent::new(1, 10);
    while node.resumed.table.len() < 4 {
        node.append(sent.next(8000));
        node.flush();
    }
    let id = sent.writer.segment;
    let reader = node.reader();
    let held = node
        .resumed
        .table
        .find(node.resumed.table.closed_ranges()[0].start);
    let (index, entries) = {
        let segment = node.resumed.index.get(id).unwrap();
        let entries = segment.entries_from(Offset(10), Offset(u64::MAX), |_| true);
        (segment, entries)
    };
    let newest = node.resumed.table.closed_ranges().last().unwrap().end;
    node.resumed.core.trim(&[id]);
    node.flush();
    assert!(reclaim(&node));
    assert_eq!(node.resumed.table.len(), 2, "the file that is read was put away");
    // Other bytes come into the recycled files, at the positions of none of the old frames.
    let mut other = Sent::new(2, 10);
    for _ in 0..16 {
        node.append(other.next(8000));
        node.flush();
    }
    assert_eq!(node.refused, []);
    for entry in &entries {
        let read = reader.frames(id, std::slice::from_ref(entry), |_, _| true);
        let here = held.as_ref().unwrap();
        let kept = (here.0.header.start..here.1).contains(&entry.position) || entry.position >= newest;
        let expected = if kept { Ok(()) } else { Err(NodeFailure::NotFound) };
        assert_eq!(read, expected, "{entry:?}");
    }
    assert_eq!(index.base(), Offset(10));
    drop(held);
    assert!(reclaim(&node));
    assert!(
        node.resumed
            .table
            .closed_ranges()
            .iter()
            .all(|range| range.start > 0)
    );
}

#[test]
fn on_a_full_disk_trims_still_go_and_bring_data_back() {
    let disk = FaultDisk::default();
    let mut node = open_with(&disk, &terms()).unwrap();
    node.resumed.pool.reserve().unwrap();
    let mut first = Sent::new(1, 10);
    while node.resumed.table.len() < 5 {
        node.append(first.next(8000));
        node.flush();
    }
    // Others fill the file system; then even fences find no room.
    disk.set_free(0);
    node.resumed.pool.note_free(0);
    let mut second = Sent::new(2, 10);
    let opened = second.next(100);
    node.append(opened);
    while node.refused.is_empty() {
        let before = second.clone();
        node.append(second.next(8000));
        node.flush();
        if !node.refused.is_empty() {
            second = before;
        }
    }
    assert_eq!(node.refused, [Refusal::DiskFull]);
    let mut seq = 100;
    while node.fenced.contains_key(&Writer::new(seq - 1, 10).segment) || seq == 100 {
        node.fence(&Writer::new(seq, 10), 10);
        node.flush();
        seq += 1;
        assert!(seq < 400, "fences never found the disk full");
    }
    assert!(!node.resumed.pool.can_give(Purpose::Notes));
    assert_eq!(
        node.resumed.core.trim(&[first.writer.segment]),
        1,
        "no room for a trim"
    );
    node.flush();
    assert!(reclaim(&node));
    assert_eq!(node.resumed.core.failure(), None);
    node.refused.clear();
    let frames = second.writer.number;
    for _ in 0..3 {
        node.append(second.next(8000));
        node.flush();
    }
    assert_eq!(node.refused, []);
    assert_eq!(node.acked[&second.writer.segment], frames + 3);
}
