//! Where each file begins: at its start, or where the checkpoint says.
//!
//! Pure: what files and checkpoint say goes in, a plan or a refusal comes out. A file is known by
//! its identity and its first bytes, not by its name. What may have been sent beyond the
//! acknowledged place can only be recognised by the service if it is cut again as it was, so
//! another cutting is refused unless nothing was.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forebay_client::ProducerStamp;
use forebay_record::partition_for_key;

use super::checkpoint::{Checkpoint, Entry};
use super::cut::Cutting;
use super::mark::Mark;
use super::source::{FileId, Fingerprint};

/// What was learnt about the topic, and what was chosen.
#[derive(Debug, Clone)]
pub struct Target {
    /// The cluster, as it names itself.
    pub cluster: String,
    /// Name of the topic.
    pub topic: String,
    /// Its id, in hex.
    pub topic_id: String,
    /// Its partitions, at least one.
    pub partitions: u32,
    /// The only partition to write to.
    pub partition: Option<u32>,
    /// Whether batches take turns in all partitions.
    pub spread_batches: bool,
    /// How to cut.
    pub cutting: Arc<Cutting>,
    /// Whether batches get new numbers, though the last run may have sent some of them.
    pub renumber: bool,
}

impl Target {
    /// Where the batches of a file go, in turn.
    pub fn partitions_of(&self, path: &Path) -> Vec<u32> {
        use std::os::unix::ffi::OsStrExt as _;
        if let Some(partition) = self.partition {
            return vec![partition];
        }
        if self.spread_batches {
            return (0..self.partitions).collect();
        }
        let count = std::num::NonZeroU32::new(self.partitions).unwrap_or(std::num::NonZeroU32::MIN);
        vec![partition_for_key(path.as_os_str().as_bytes(), count)]
    }

    /// The place of the checkpoint that this is not the topic of, if it is not.
    fn refuse(&self, checkpoint: &Checkpoint) -> Result<(), String> {
        let was = |what: &str, then: &str, now: &str| {
            Err(format!(
                "it is of {what} {then:?}, this run writes to {now:?}; use another checkpoint for that"
            ))
        };
        if checkpoint.topic != self.topic {
            return was("topic", &checkpoint.topic, &self.topic);
        }
        if checkpoint.cluster != self.cluster {
            return was("cluster", &checkpoint.cluster, &self.cluster);
        }
        if checkpoint.topic_id != self.topic_id {
            return Err(format!(
                "topic {:?} was deleted and made again since: its id was {} and is {}; \
                 remove the checkpoint to write everything to the new topic",
                self.topic, checkpoint.topic_id, self.topic_id
            ));
        }
        Ok(())
    }
}

/// A file that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// Where.
    pub path: PathBuf,
    /// Which file.
    pub id: FileId,
    /// Its size.
    pub size: u64,
    /// What it begins with now.
    pub fingerprint: Fingerprint,
    /// What it begins with, over as many bytes as the checkpoint's fingerprint of it covers.
    pub covered: Option<Fingerprint>,
}

/// Where a file begins.
#[derive(Debug, Clone)]
pub struct Start {
    /// Where it is.
    pub at: PathBuf,
    /// The path that it stands for: where it was first found.
    pub path: PathBuf,
    /// Which file.
    pub id: FileId,
    /// What it begins with.
    pub fingerprint: Fingerprint,
    /// Its size when it was first found.
    pub first_size: u64,
    /// Where to begin.
    pub mark: Mark,
    /// Places beyond it where a batch ends.
    pub cuts: Vec<u64>,
    /// Who its batches are from; none where that is to be asked for.
    pub producer: Option<ProducerStamp>,
    /// Where its batches go, in turn.
    pub partitions: Vec<u32>,
}

impl Start {
    /// From the first byte on.
    pub fn fresh(present: &Present, target: &Target) -> Self {
        let partitions = target.partitions_of(&present.path);
        Self {
            at: present.path.clone(),
            path: present.path.clone(),
            id: present.id,
            fingerprint: present.fingerprint,
            first_size: present.size,
            mark: Mark::start(partitions.len()),
            cuts: Vec::new(),
            producer: None,
            partitions,
        }
    }

    /// From where an entry says on, if it is cut as it was.
    fn resumed(present: &Present, entry: &Entry, target: &Target) -> Result<Self, String> {
        let partitions = target.partitions_of(&entry.path);
        let mut differences = entry.cutting.differences(&target.cutting);
        if partitions != entry.partitions {
            let more = format!(
                "the partitions were {:?} and are {partitions:?}",
                entry.partitions
            );
            differences = [differences, more]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join(", ");
        }
        let same = differences.is_empty();
        if !same && !entry.settled && !target.renumber {
            return Err(format!(
                "{} was cut into batches in another way by the last run, which did not end in order: {differences}; \
                 use the same options once more, until a run ends in order",
                entry.path.display()
            ));
        }
        let same = same && !target.renumber;
        let mark = entry.mark();
        Ok(Self {
            at: present.path.clone(),
            path: entry.path.clone(),
            id: present.id,
            fingerprint: entry.fingerprint,
            first_size: entry.first_size,
            mark: if same {
                mark
            } else {
                mark.renumbered(partitions.len())
            },
            cuts: if same { entry.cuts.clone() } else { Vec::new() },
            producer: same.then(|| entry.producer()),
            partitions,
        })
    }
}

/// What a run begins with.
#[derive(Debug, Default)]
pub struct Plan {
    /// Files to read. One that was renamed comes before the one that has its name now.
    pub starts: Vec<Start>,
    /// Entries of files that this run does not read; they stay in the checkpoint.
    pub kept: Vec<Entry>,
    /// What to tell.
    pub warnings: Vec<String>,
}

/// Decides where each file begins. `elsewhere` are files of the checkpoint that were found beside
/// the path where they used to be; `following` is whether files may come, go and be replaced.
pub fn plan(
    present: &[Present],
    elsewhere: &[Present],
    checkpoint: Option<&Checkpoint>,
    target: &Target,
    following: bool,
) -> Result<Plan, String> {
    let mut plan = Plan::default();
    let entries: &[Entry] = match checkpoint {
        Some(checkpoint) => {
            target.refuse(checkpoint)?;
            &checkpoint.inputs
        }
        None => &[],
    };
    let pairs = pair(present, entries);
    let paired: BTreeSet<FileId> = pairs.values().map(|entry| entry.file).collect();
    for entry in entries.iter().filter(|entry| !paired.contains(&entry.file)) {
        let successor = present
            .iter()
            .find(|one| one.path == entry.path && !pairs.contains_key(&one.id));
        plan.on_absent(entry, successor, elsewhere, target, following)?;
    }
    let mut resumed = 0;
    for one in present {
        let Some(entry) = pairs.get(&one.id) else {
            plan.starts.push(Start::fresh(one, target));
            continue;
        };
        match mismatch(one, entry) {
            None => {
                plan.starts.push(Start::resumed(one, entry, target)?);
                resumed += 1;
            }
            Some(what) if following => {
                plan.warnings.push(format!(
                    "{}: {what}; it is read from its start",
                    one.path.display()
                ));
                plan.starts.push(Start::fresh(one, target));
            }
            Some(what) => {
                return Err(format!(
                    "{}: {what}; remove the checkpoint to write all of it",
                    one.path.display()
                ));
            }
        }
    }
    if !following && resumed == 0 && !entries.is_empty() {
        let first = entries.first().map(|entry| entry.path.display().to_string());
        return Err(format!(
            "none of the inputs is in it, but {} other, first {}; use another checkpoint for other files",
            entries.len(),
            first.unwrap_or_default()
        ));
    }
    Ok(plan)
}

/// Whether an entry is about a file that is there, as far as identities tell. The number of a
/// device may be another one after a restart of the machine; path and inode then have to do.
pub fn is_of(entry: &Entry, id: FileId, path: &Path) -> bool {
    entry.file == id || (entry.file.inode == id.inode && entry.path == path)
}

/// The entry of each file that has one.
fn pair<'a>(present: &[Present], entries: &'a [Entry]) -> BTreeMap<FileId, &'a Entry> {
    let by_inode = entries.iter().map(|entry| (entry.file.inode, entry));
    let mut candidates: BTreeMap<u64, Vec<&Entry>> = BTreeMap::new();
    for (inode, entry) in by_inode {
        candidates.entry(inode).or_default().push(entry);
    }
    let of = |one: &Present| {
        let same = candidates.get(&one.id.inode)?;
        let exact = same.iter().find(|entry| entry.file == one.id);
        let found = exact.or_else(|| same.iter().find(|entry| is_of(entry, one.id, &one.path)))?;
        Some((one.id, *found))
    };
    present.iter().filter_map(of).collect()
}

impl Plan {
    /// A file of the checkpoint is not where it was.
    fn on_absent(
        &mut self,
        entry: &Entry,
        successor: Option<&Present>,
        elsewhere: &[Present],
        target: &Target,
        following: bool,
    ) -> Result<(), String> {
        let path = entry.path.display();
        let moved = elsewhere
            .iter()
            .find(|one| one.id == entry.file && mismatch(one, entry).is_none());
        if following {
            match moved {
                Some(moved) => self.starts.push(Start::resumed(moved, entry, target)?),
                None => self.warnings.push(format!(
                    "{path}: the file that was read to byte {} is gone; what it had beyond that is not written",
                    entry.position
                )),
            }
            return Ok(());
        }
        let Some(successor) = successor else {
            self.kept.push(entry.clone());
            return Ok(());
        };
        let way_out = match moved {
            Some(moved) => format!("the other one is {} now: name it too", moved.path.display()),
            None => "remove the checkpoint to write all of it".to_owned(),
        };
        // Named as well, the renamed file is found by its identity, and this is a new one.
        Err(format!(
            "{path} is another file than the one that was read to byte {}: device {} inode {}, it was device {} inode {}; {way_out}",
            entry.position, successor.id.device, successor.id.inode, entry.file.device, entry.file.inode
        ))
    }
}

/// Why a file is not what the checkpoint's entry is about, though it has its identity.
fn mismatch(present: &Present, entry: &Entry) -> Option<String> {
    if present.size < entry.position {
        return Some(format!(
            "it has {} bytes and was read to byte {}: it was truncated since",
            present.size, entry.position
        ));
    }
    let covered = present.covered.unwrap_or(present.fingerprint);
    (covered != entry.fingerprint).then(|| {
        format!(
            "its first {} bytes have checksum {:08x}, they had {:08x}: it is not the file that was read before",
            entry.fingerprint.bytes, covered.crc32c, entry.fingerprint.crc32c
        )
    })
}

#[cfg(test)]
#[path = "resume_tests.rs"]
mod tests;
