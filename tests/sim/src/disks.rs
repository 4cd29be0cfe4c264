//! Disks of the hosts: each a folder in memory that outlives its process, and whose machine may lose
//! power, rot, fill up or be swapped.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forebay_runtime::random::{Random, SeededRandom};
use forebay_storage_node::DirectIo;
use forebay_storage_node::disk::fault::FaultDisk;
use forebay_storage_node::disk::{Disk, FolderError, Folders, HeldFolder};
use parking_lot::Mutex;

/// All disks of the simulation, by folder.
#[derive(Debug, Clone, Default)]
pub struct Disks {
    folders: Arc<Mutex<BTreeMap<PathBuf, Slot>>>,
}

#[derive(Debug, Default)]
struct Slot {
    disk: Option<FaultDisk>,
    /// What its journal held at some time: see [`Disks::mark`].
    mark: BTreeMap<String, Vec<u8>>,
    /// Who has it now; a process that lost its disk by a crash has it no more.
    holder: u64,
    held: bool,
}

/// Gives the folder back.
struct Held {
    disks: Disks,
    folder: PathBuf,
    holder: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut folders = self.disks.folders.lock();
        if let Some(slot) = folders.get_mut(&self.folder)
            && slot.holder == self.holder
        {
            slot.held = false;
        }
    }
}

impl Disks {
    /// No disks yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The disk in a folder, where there is one.
    #[must_use]
    pub fn get(&self, folder: &Path) -> Option<FaultDisk> {
        self.folders.lock().get(folder)?.disk.clone()
    }

    /// Puts a disk into a folder, or takes it out. Whoever had the old one writes to it on, unseen.
    pub fn put(&self, folder: &Path, disk: Option<FaultDisk>) {
        let mut folders = self.folders.lock();
        let slot = folders.entry(folder.to_owned()).or_default();
        slot.disk = disk;
        slot.holder += 1;
        slot.held = false;
    }

    /// The process on it ended at once; the machine goes on, so that all writes are there.
    pub fn process_died(&self, folder: &Path) {
        if let Some(disk) = self.get(folder) {
            self.put(folder, Some(disk.image()));
        }
    }

    /// Remembers what the journal holds: until it is damaged next, what was written since is hit.
    pub fn mark(&self, folder: &Path) {
        let held = self.get(folder).map(|disk| journal(&disk)).unwrap_or_default();
        if let Some(slot) = self.folders.lock().get_mut(folder) {
            slot.mark = held;
        }
    }

    /// Flips one bit of what was written to the journal since the mark, not in its last third, so that
    /// something valid follows; of anything where there is no mark or too little was written.
    #[must_use]
    pub fn flip_new_bit(&self, folder: &Path, random: &SeededRandom) -> Option<String> {
        let disk = self.get(folder)?;
        let before = {
            let mut folders = self.folders.lock();
            std::mem::take(&mut folders.get_mut(folder)?.mark)
        };
        let mut new: Vec<(String, usize)> = Vec::new();
        if !before.is_empty() {
            for (name, bytes) in journal(&disk) {
                let old = before.get(&name).map(Vec::as_slice).unwrap_or_default();
                let differs = |at: &usize| bytes.get(*at) != old.get(*at) && bytes.get(*at) != Some(&0);
                new.extend((0..bytes.len()).filter(differs).map(|at| (name.clone(), at)));
            }
        }
        if new.len() < 10_000 {
            return self.flip_bit(folder, random);
        }
        let at = usize::try_from(random.range(0, new.len() as u64 / 3 * 2)).ok()?;
        let (name, at) = new.get(at)?;
        disk.edit(name, |bytes| {
            if let Some(byte) = bytes.get_mut(*at) {
                *byte ^= 1 << random.range(0, 8);
            }
        });
        Some(format!("{name} at {at}, new"))
    }

    /// Flips one bit of a journal file, where something is written; says in which file and where.
    #[must_use]
    pub fn flip_bit(&self, folder: &Path, random: &SeededRandom) -> Option<String> {
        let disk = self.get(folder)?;
        let names = disk.list().ok()?;
        let journals: Vec<_> = names.iter().filter(|name| name.starts_with("journal-")).collect();
        let at = usize::try_from(random.range(0, journals.len() as u64)).ok()?;
        let name = journals.get(at)?;
        let mut flipped = None;
        disk.edit(name, |bytes| {
            for _ in 0..200 {
                let at = usize::try_from(random.range(0, bytes.len() as u64)).unwrap_or_default();
                if let Some(byte) = bytes.get_mut(at).filter(|byte| **byte != 0) {
                    *byte ^= 1 << random.range(0, 8);
                    flipped = Some(at);
                    return;
                }
            }
        });
        flipped.map(|at| format!("{name} at {at}"))
    }

    /// The machine lost power: what was not synced is there in part.
    pub fn power_lost(&self, folder: &Path, seed: u64) {
        if let Some(disk) = self.get(folder) {
            self.put(folder, Some(disk.crashed(seed)));
        }
    }
}

/// The bytes of all journal files.
fn journal(disk: &FaultDisk) -> BTreeMap<String, Vec<u8>> {
    // A copy: looking at the bytes by `edit` syncs them.
    let image = disk.image();
    let names = image.list().unwrap_or_default();
    let journals = names.into_iter().filter(|name| name.starts_with("journal-"));
    let mut held = BTreeMap::new();
    for name in journals {
        image.edit(&name, |bytes| {
            held.insert(name.clone(), bytes.clone());
        });
    }
    held
}

impl Folders for Disks {
    fn open(&self, folder: &Path, _: DirectIo) -> Result<Option<HeldFolder>, FolderError> {
        let mut folders = self.folders.lock();
        let Some(slot) = folders.get_mut(folder) else {
            return Ok(None);
        };
        let Some(disk) = slot.disk.clone() else {
            return Ok(None);
        };
        if slot.held {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "another node holds the folder").into());
        }
        slot.held = true;
        slot.holder += 1;
        let lock: Box<dyn Any + Send> = Box::new(Held {
            disks: self.clone(),
            folder: folder.to_owned(),
            holder: slot.holder,
        });
        let disk: Arc<dyn Disk> = Arc::new(disk);
        Ok(Some(HeldFolder { lock, disk }))
    }

    fn create(&self, folder: &Path) -> io::Result<()> {
        let mut folders = self.folders.lock();
        let slot = folders.entry(folder.to_owned()).or_default();
        slot.disk.get_or_insert_with(FaultDisk::default);
        Ok(())
    }
}
