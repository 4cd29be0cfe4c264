//! A disk in memory that crashes, tears writes, fails and fills up where a test wants it to.
//!
//! Writes are pending until their file is synced and names until the folder is. A crash keeps an
//! arbitrary choice of the 512-byte sectors of each pending write, and the first of the pending
//! changes of names. Every change of the disk is counted, so a test can crash before each.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use forebay_runtime::random::{Random, SeededRandom};
use parking_lot::Mutex;

use super::{Disk, File, Space};

const SECTOR: usize = 512;

#[derive(Debug, Clone, Default)]
struct Content {
    durable: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
    unreadable: Vec<std::ops::Range<u64>>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Create(String, u64),
    Rename(String, String),
    Remove(String),
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, Content>,
    durable_names: BTreeMap<String, u64>,
    names: BTreeMap<String, u64>,
    pending_names: Vec<NameChange>,
    changes: u64,
    crash_at: Option<u64>,
    fail_sync: bool,
    free: Option<u64>,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct FaultDisk {
    state: Arc<Mutex<State>>,
}

impl State {
    /// Counts a change; from the chosen one on every one fails.
    fn change(&mut self) -> io::Result<()> {
        self.changes += 1;
        match self.crash_at {
            Some(at) if self.changes >= at => Err(io::Error::other("crashed")),
            _ => Ok(()),
        }
    }

    fn apply(names: &mut BTreeMap<String, u64>, change: &NameChange) {
        match change {
            NameChange::Create(name, id) => drop(names.insert(name.clone(), *id)),
            NameChange::Rename(from, to) => {
                if let Some(id) = names.remove(from) {
                    names.insert(to.clone(), id);
                }
            }
            NameChange::Remove(name) => drop(names.remove(name)),
        }
    }

    fn name_change(&mut self, change: NameChange) -> io::Result<()> {
        self.change()?;
        Self::apply(&mut self.names, &change);
        self.pending_names.push(change);
        Ok(())
    }
}

impl FaultDisk {
    /// Changes made so far.
    pub fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// Makes the given change, counted from now, and all later ones fail.
    pub fn crash_at(&self, change: u64) {
        let mut state = self.state.lock();
        state.crash_at = Some(state.changes + change);
    }

    /// Whether the chosen change has come.
    pub fn has_crashed(&self) -> bool {
        let state = self.state.lock();
        state.crash_at.is_some_and(|at| state.changes >= at)
    }

    /// Makes every sync fail from now on.
    pub fn fail_syncs(&self) {
        self.state.lock().fail_sync = true;
    }

    /// Room that is left for new files.
    pub fn set_free(&self, bytes: u64) {
        self.state.lock().free = Some(bytes);
    }

    /// What a crash now leaves behind; `seed` chooses among what is pending.
    pub fn crashed(&self, seed: u64) -> Self {
        let random = SeededRandom::new(seed);
        let state = self.state.lock();
        let mut names = state.durable_names.clone();
        let kept = random.range(0, state.pending_names.len() as u64 + 1) as usize;
        for change in &state.pending_names[..kept] {
            State::apply(&mut names, change);
        }
        let mut files = BTreeMap::new();
        for id in names.values() {
            let content = &state.files[id];
            let mut bytes = content.durable.clone();
            // Often all or nothing of a write survives, sometimes a choice of its sectors.
            for (at, write) in &content.pending {
                let mode = random.range(0, 4);
                for (index, sector) in write.chunks(SECTOR).enumerate() {
                    if mode == 0 || (mode > 1 && random.range(0, 2) == 0) {
                        let at = at + index * SECTOR;
                        bytes[at..at + sector.len()].copy_from_slice(sector);
                    }
                }
            }
            let content = Content {
                durable: bytes.clone(),
                current: bytes,
                ..Content::default()
            };
            files.insert(*id, content);
        }
        let state = State {
            files,
            durable_names: names.clone(),
            names,
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// A copy of what is there, all of it durable.
    pub fn image(&self) -> Self {
        let state = self.state.lock();
        let files = state
            .files
            .iter()
            .map(|(id, content)| {
                let bytes = content.current.clone();
                (
                    *id,
                    Content {
                        durable: bytes.clone(),
                        current: bytes,
                        ..Content::default()
                    },
                )
            })
            .collect();
        let (durable_names, names) = (state.names.clone(), state.names.clone());
        Self {
            state: Arc::new(Mutex::new(State {
                files,
                durable_names,
                names,
                ..State::default()
            })),
        }
    }

    /// Changes a file's bytes behind everybody's back.
    pub fn edit(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        let id = state.names[name];
        let content = state.files.get_mut(&id).unwrap();
        edit(&mut content.current);
        content.durable = content.current.clone();
    }

    /// Makes reads of a range fail.
    pub fn make_unreadable(&self, name: &str, range: std::ops::Range<u64>) {
        let mut state = self.state.lock();
        let id = state.names[name];
        state.files.get_mut(&id).unwrap().unreadable.push(range);
    }

    fn file(&self, id: u64) -> Arc<dyn File> {
        Arc::new(FaultFile {
            state: Arc::clone(&self.state),
            id,
        })
    }
}

impl Disk for FaultDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut state = self.state.lock();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = state.files.keys().next_back().map_or(1, |last| last + 1);
        state.name_change(NameChange::Create(name.to_owned(), id))?;
        state.files.insert(id, Content::default());
        drop(state);
        Ok(self.file(id))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let id = self.state.lock().names.get(name).copied();
        id.map(|id| self.file(id))
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state.lock().names.keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.state
            .lock()
            .name_change(NameChange::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        if !state.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.name_change(NameChange::Remove(name.to_owned()))
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.change()?;
        state.durable_names = state.names.clone();
        state.pending_names.clear();
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space {
            total: 1 << 40,
            free: self.state.lock().free.unwrap_or(1 << 40),
        })
    }

    fn is_direct(&self) -> bool {
        false
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/fault").join(name)
    }
}

#[derive(Debug)]
struct FaultFile {
    state: Arc<Mutex<State>>,
    id: u64,
}

impl File for FaultFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.state.lock().files[&self.id].current.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        let state = self.state.lock();
        let content = &state.files[&self.id];
        let end = position + buf.len() as u64;
        if content
            .unreadable
            .iter()
            .any(|bad| bad.start < end && position < bad.end)
        {
            return Err(io::Error::other("medium error"));
        }
        let rest = content.current.get(position as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, buf: &[u8], position: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let result = state.change();
        let at = position as usize;
        let grown = (at + buf.len()).saturating_sub(state.files[&self.id].current.len());
        if let Some(free) = &mut state.free {
            *free = free.checked_sub(grown as u64).ok_or(io::ErrorKind::StorageFull)?;
        }
        let content = state.files.get_mut(&self.id).unwrap();
        if content.current.len() < at + buf.len() {
            content.current.resize(at + buf.len(), 0);
            content.durable.resize(at + buf.len(), 0);
        }
        // The write during which the machine crashes may have reached the disk too.
        content.current[at..at + buf.len()].copy_from_slice(buf);
        content.pending.push((at, buf.to_vec()));
        result
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.change()?;
        if state.fail_sync {
            return Err(io::Error::other("medium error"));
        }
        let content = state.files.get_mut(&self.id).unwrap();
        for (at, write) in content.pending.drain(..) {
            content.durable[at..at + write.len()].copy_from_slice(&write);
        }
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.change()?;
        if let Some(free) = &mut state.free {
            *free = free.checked_sub(len).ok_or(io::ErrorKind::StorageFull)?;
        }
        let content = state.files.get_mut(&self.id).unwrap();
        content.current.resize(len as usize, 0);
        content.durable.resize(len as usize, 0);
        Ok(())
    }
}
