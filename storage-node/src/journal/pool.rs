//! Files that are not in use: prepared ones, reserved ones, and those that were retired.
//!
//! 1. A thread of its own, where there is one, zeroes files before they are needed. Where the
//!    journal outruns it, it goes on in a file that is only allocated: commits to that are slower,
//!    but nobody waits for a whole file to be zeroed.
//! 2. A file in which no segment has a frame any more is renamed to a spare and written again. It is
//!    handed out only after its new name is durable: under its old one a later start would take
//!    what is written to it for damage.
//! 3. All files together, in use or not, never exceed the budget. The last [`RESERVED_FILES`] of it
//!    are for fences and trims.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::files::{JournalFile, RESERVE, RESERVED_FILES, SPARE, ZEROING, is_ours, journal_number};
use crate::buffer::Buffer;
use crate::disk::{Disk, File};

const ZERO_STEP: usize = 1 << 20;
/// About so many bytes are kept prepared: what a burst may write before it meets unwritten files.
const SPARE_BYTES: u64 = 1 << 30;
/// At most so many files for that.
const SPARES_MAX: u64 = 4;
/// While a file is ready, the next is zeroed only when no commit came for so long: zeroing would
/// take the disk from them.
const QUIET: Duration = Duration::from_millis(100);
/// After a failure the next try waits so long.
const RETRY: Duration = Duration::from_secs(1);

/// A file that can be begun.
#[derive(Debug)]
pub struct Spare {
    /// Its name until then.
    pub name: String,
    /// Its bytes.
    pub file: Arc<dyn File>,
    /// Its length.
    pub len: u64,
}

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Frames of segments: leaves the reserve alone.
    Data,
    /// Fences, floors and trims.
    Notes,
}

#[derive(Debug, Default)]
struct Stock {
    ready: VecDeque<Spare>,
    /// Names of reserved files.
    reserved: VecDeque<String>,
    /// Out of use, and still under their old names.
    retired: Vec<Arc<JournalFile>>,
    /// Bytes of all files of the folder, in use or not.
    bytes: u64,
    /// Somebody is making one.
    making: bool,
    /// The newest try to make one failed: until one succeeds, none is promised.
    starved: bool,
    stopped: bool,
    /// A thread makes files in advance.
    has_maker: bool,
    next_number: u64,
}

/// Prepares files.
#[derive(Debug)]
pub struct Pool {
    disk: Arc<dyn Disk>,
    file_len: u64,
    budget_bytes: u64,
    /// What the file system has left, as last asked.
    free_bytes: AtomicU64,
    /// Files to keep ready.
    spares: AtomicUsize,
    stock: Mutex<Stock>,
    changed: Condvar,
    zeroed_bytes: AtomicU64,
    /// Commits of the journal, to tell whether it is quiet.
    commits: AtomicU64,
}

impl Pool {
    /// The pool of a folder that may hold so many bytes of files: takes up spares and reserved files
    /// that are there, removes what never became one and what the budget has no room for.
    ///
    /// # Errors
    /// Of the disk.
    pub fn open(disk: Arc<dyn Disk>, file_len: u64, budget_bytes: u64) -> io::Result<Self> {
        let mut stock = Stock::default();
        let mut prepared = Vec::new();
        for name in disk.list()?.into_iter().filter(|name| is_ours(name)) {
            if journal_number(&name).is_some() {
                stock.bytes += disk.open(&name)?.length()?;
                continue;
            }
            let digits = name.rsplit('-').next();
            let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
            stock.next_number = stock.next_number.max(number.unwrap_or_default() + 1);
            prepared.push(name);
        }
        for name in prepared {
            let reserved = name.starts_with(RESERVE);
            let file = disk.open(&name)?;
            let wanted = reserved || name.starts_with(SPARE);
            let fits = stock.bytes.saturating_add(file_len) <= budget_bytes;
            if !wanted || file.length()? != file_len || !fits {
                drop(file);
                disk.remove(&name)?;
                continue;
            }
            stock.bytes += file_len;
            if reserved {
                stock.reserved.push_back(name);
            } else {
                let len = file_len;
                stock.ready.push_back(Spare { name, file, len });
            }
        }
        Ok(Self {
            disk,
            file_len,
            budget_bytes,
            free_bytes: AtomicU64::new(u64::MAX),
            spares: AtomicUsize::new(1),
            stock: Mutex::new(stock),
            changed: Condvar::new(),
            zeroed_bytes: AtomicU64::new(0),
            commits: AtomicU64::new(0),
        })
    }

    /// Keeps as many files ready as a burst may need and the budget can spare, instead of one.
    pub fn keep_for_bursts(&self) {
        let len = self.file_len.max(1);
        let spares = (SPARE_BYTES / len)
            .min(self.budget_bytes / len / 8)
            .clamp(1, SPARES_MAX);
        self.spares
            .store(usize::try_from(spares).unwrap_or(1), Ordering::Relaxed);
        self.changed.notify_all();
    }

    fn spares(&self) -> usize {
        self.spares.load(Ordering::Relaxed)
    }

    /// Length of its files.
    #[must_use]
    pub const fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Most bytes of all files together.
    #[must_use]
    pub const fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// Bytes of all files together, in use or not.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.stock.lock().bytes
    }

    /// Files that are ready to be written.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.stock.lock().ready.len()
    }

    /// Notes what the file system has left: where others fill it, the budget cannot be used up.
    pub fn note_free(&self, bytes: u64) {
        let before = self.free_bytes.swap(bytes, Ordering::Relaxed);
        if bytes < self.file_len {
            return;
        }
        let mut stock = self.stock.lock();
        if !stock.has_maker {
            // Nobody else tries again.
            stock.starved = false;
        }
        if before < self.file_len {
            self.changed.notify_all();
        }
    }

    /// Bytes that files with data may take in all: the budget or what the file system allows, less
    /// the reserve.
    #[must_use]
    pub fn data_bytes_max(&self) -> u64 {
        let free = self.free_bytes.load(Ordering::Relaxed);
        let limit = self.budget_bytes.min(self.bytes().saturating_add(free));
        limit.saturating_sub(RESERVED_FILES as u64 * self.file_len)
    }

    /// Bytes written to prepare files, ever.
    #[must_use]
    pub fn zeroed_bytes(&self) -> u64 {
        self.zeroed_bytes.load(Ordering::Relaxed)
    }

    /// Whether a prepared file is there, or may be made by [`Pool::take`] where nobody makes them in
    /// advance.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let stock = self.stock.lock();
        let makes = !stock.has_maker && !stock.starved && self.has_budget(&stock, Purpose::Data);
        !stock.ready.is_empty() || makes
    }

    /// Whether [`Pool::take`] could give a file, as far as the budget is concerned.
    #[must_use]
    pub fn can_give(&self, purpose: Purpose) -> bool {
        let stock = self.stock.lock();
        let reserved = purpose == Purpose::Notes && !stock.reserved.is_empty();
        let made = !stock.starved && self.has_budget(&stock, purpose);
        reserved || !stock.ready.is_empty() || made
    }

    /// Whether one more file may be made, by the budget and by what the file system has left.
    fn has_budget(&self, stock: &Stock, purpose: Purpose) -> bool {
        if self.free_bytes.load(Ordering::Relaxed) < self.file_len {
            return false;
        }
        let kept_back = match purpose {
            Purpose::Data => RESERVED_FILES.saturating_sub(stock.reserved.len()),
            Purpose::Notes => 0,
        };
        let more = self.file_len.saturating_mul(1 + kept_back as u64);
        stock.bytes.saturating_add(more) <= self.budget_bytes
    }

    /// The journal has committed.
    pub fn note_commit(&self) {
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a prepared file. Where none is ready, takes one that is only allocated; where nobody
    /// makes files in advance, makes one here. For notes the reserve is the last resort.
    ///
    /// # Errors
    /// Of the disk, first of all that it is full; so is a budget that is used up.
    pub fn take(&self, purpose: Purpose) -> io::Result<Spare> {
        let has_maker = {
            let mut stock = self.stock.lock();
            if let Some(spare) = stock.ready.pop_front() {
                self.changed.notify_all();
                return Ok(spare);
            }
            stock.has_maker
        };
        let made = self.count_in(purpose).and_then(|()| {
            let made = if has_maker { self.allocate() } else { self.make() };
            self.settle(&made);
            made
        });
        match made {
            Err(error) if purpose == Purpose::Notes => self.take_reserved()?.ok_or(error),
            made => made,
        }
    }

    /// Accounts for a file that is about to be made.
    fn count_in(&self, purpose: Purpose) -> io::Result<()> {
        let mut stock = self.stock.lock();
        if !self.has_budget(&stock, purpose) {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("{} of {} bytes are in use", stock.bytes, self.budget_bytes),
            ));
        }
        stock.bytes += self.file_len;
        Ok(())
    }

    /// Takes back what was accounted for a file that was not made.
    fn settle<T>(&self, made: &io::Result<T>) {
        let mut stock = self.stock.lock();
        stock.starved = made.is_err();
        if made.is_err() {
            stock.bytes = stock.bytes.saturating_sub(self.file_len);
        }
    }

    fn take_reserved(&self) -> io::Result<Option<Spare>> {
        let Some(name) = self.stock.lock().reserved.pop_front() else {
            return Ok(None);
        };
        let (file, len) = (self.disk.open(&name)?, self.file_len);
        Ok(Some(Spare { name, file, len }))
    }

    fn allocate(&self) -> io::Result<Spare> {
        self.allocate_as(SPARE)
    }

    fn allocate_as(&self, prefix: &str) -> io::Result<Spare> {
        let name = format!("{prefix}{:016x}", self.fresh_number());
        let file = self.disk.create(&name)?;
        let allocated = file.allocate(self.file_len).and_then(|()| file.sync());
        if let Err(error) = allocated {
            drop(file);
            self.disk.remove(&name)?;
            return Err(error);
        }
        let len = self.file_len;
        Ok(Spare { name, file, len })
    }

    /// Makes one spare ahead, if there are too few and the budget has room.
    ///
    /// # Errors
    /// Of the disk.
    pub fn make_ahead(&self) -> io::Result<()> {
        {
            let mut stock = self.stock.lock();
            if !self.is_wanted(&stock) {
                return Ok(());
            }
            stock.making = true;
            stock.bytes += self.file_len;
        }
        let made = self.make();
        self.settle(&made);
        let mut stock = self.stock.lock();
        stock.making = false;
        self.changed.notify_all();
        stock.ready.push_back(made?);
        Ok(())
    }

    /// Whether a spare should be made and may be.
    fn is_wanted(&self, stock: &Stock) -> bool {
        let idle = !stock.stopped && !stock.making;
        idle && stock.ready.len() < self.spares() && self.has_budget(stock, Purpose::Data)
    }

    /// Runs until [`Pool::stop`]: keeps the reserve and spares. A failure is tried again after a
    /// second.
    pub fn run(&self) {
        self.stock.lock().has_maker = true;
        let mut complained = false;
        while self.wait_for_need() {
            let kept = self.reserve().and_then(|()| self.make_ahead());
            match kept {
                Ok(()) => complained = false,
                Err(error) => {
                    let mut stock = self.stock.lock();
                    if !stock.stopped {
                        if !std::mem::replace(&mut complained, true) {
                            tracing::warn!(%error, "cannot prepare a journal file");
                        }
                        self.changed.wait_for(&mut stock, RETRY);
                    }
                }
            }
        }
    }

    /// Waits until a file should be made; false once stopped.
    fn wait_for_need(&self) -> bool {
        let mut stock = self.stock.lock();
        loop {
            if stock.stopped {
                return false;
            }
            if stock.reserved.len() < RESERVED_FILES && self.has_budget(&stock, Purpose::Notes) {
                return true;
            }
            if !self.is_wanted(&stock) {
                self.changed.wait(&mut stock);
                continue;
            }
            if stock.ready.is_empty() {
                return true;
            }
            let before = self.commits.load(Ordering::Relaxed);
            let quiet = self.changed.wait_for(&mut stock, QUIET).timed_out();
            if quiet && self.commits.load(Ordering::Relaxed) == before && !stock.stopped {
                return true;
            }
        }
    }

    /// Ends [`Pool::run`].
    pub fn stop(&self) {
        self.stock.lock().stopped = true;
        self.changed.notify_all();
    }

    fn fresh_number(&self) -> u64 {
        let mut stock = self.stock.lock();
        stock.next_number += 1;
        stock.next_number
    }

    fn make(&self) -> io::Result<Spare> {
        let number = self.fresh_number();
        let unfinished = format!("{ZEROING}{number:016x}");
        let made = self.zero(&unfinished).and_then(|file| {
            let name = format!("{SPARE}{number:016x}");
            self.disk.rename(&unfinished, &name)?;
            let len = self.file_len;
            Ok(Spare { name, file, len })
        });
        if made.is_err()
            && let Err(error) = self.disk.remove(&unfinished)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(%error, name = unfinished, "cannot remove an unfinished journal file");
        }
        made
    }

    /// Takes the room first, so that a full disk is found before a gigabyte is written.
    fn zero(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = self.disk.create(name)?;
        file.allocate(self.file_len)?;
        let zeros = Buffer::new(ZERO_STEP);
        let mut at = 0;
        while at < self.file_len {
            if self.stock.lock().stopped {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "the node is stopping"));
            }
            let step = (self.file_len - at).min(zeros.len() as u64);
            let step_len = usize::try_from(step).unwrap_or(ZERO_STEP);
            file.write_at(zeros.as_slice().get(..step_len).unwrap_or_default(), at)?;
            self.zeroed_bytes.fetch_add(step, Ordering::Relaxed);
            at += step;
        }
        file.sync()?;
        Ok(file)
    }

    /// Sees to it that the reserved files are there, as far as the budget has room.
    ///
    /// # Errors
    /// Of the disk.
    pub fn reserve(&self) -> io::Result<()> {
        while self.stock.lock().reserved.len() < RESERVED_FILES && self.count_in(Purpose::Notes).is_ok() {
            let made = self.allocate_as(RESERVE).and_then(|spare| {
                self.disk.sync_names()?;
                Ok(spare.name)
            });
            self.settle(&made);
            self.stock.lock().reserved.push_back(made?);
        }
        Ok(())
    }

    /// Takes files out of use; each caller's handle must be the only one. They become reserved files
    /// or spares where those are wanted, and are removed where not. What they held stays in them
    /// until they are written again, and is recognised then by number, position and salt.
    ///
    /// # Errors
    /// Of the disk; what could not be renamed is tried again with the next call.
    pub fn recycle(&self, files: Vec<Arc<JournalFile>>) -> io::Result<()> {
        let mut retired = {
            let mut stock = self.stock.lock();
            stock.retired.extend(files);
            std::mem::take(&mut stock.retired)
        };
        let (mut spares, mut reserved, mut removed_bytes) = (Vec::new(), Vec::new(), 0);
        let mut result = Ok(());
        while let Some(file) = retired.pop() {
            let moved = self.put_away(&file, spares.len(), reserved.len());
            match moved {
                Ok(Away::Spare(spare)) => spares.push(spare),
                Ok(Away::Reserved(name)) => reserved.push(name),
                Ok(Away::Removed) => removed_bytes += file.header.len,
                Err(error) => {
                    retired.push(file);
                    result = Err(error);
                    break;
                }
            }
        }
        // Before this, nobody may write to a file that still has its old name on the disk.
        let synced = self.disk.sync_names();
        let mut stock = self.stock.lock();
        stock.retired.append(&mut retired);
        stock.bytes = stock.bytes.saturating_sub(removed_bytes);
        stock.starved &= removed_bytes == 0;
        if synced.is_ok() {
            stock.ready.extend(spares);
            stock.reserved.extend(reserved);
        }
        self.changed.notify_all();
        result.and(synced)
    }

    fn put_away(&self, file: &JournalFile, new_spares: usize, new_reserved: usize) -> io::Result<Away> {
        let name = file.name();
        let (needs_reserve, wants_spare) = {
            let stock = self.stock.lock();
            let usable = file.header.len == self.file_len && stock.bytes <= self.budget_bytes;
            (
                usable && stock.reserved.len() + new_reserved < RESERVED_FILES,
                usable && stock.ready.len() + new_spares < self.spares(),
            )
        };
        if needs_reserve {
            let reserved = format!("{RESERVE}{:016x}", self.fresh_number());
            self.disk.rename(&name, &reserved)?;
            return Ok(Away::Reserved(reserved));
        }
        if wants_spare {
            let spare = format!("{SPARE}{:016x}", self.fresh_number());
            self.disk.rename(&name, &spare)?;
            let (file, len) = (Arc::clone(&file.file), self.file_len);
            return Ok(Away::Spare(Spare {
                name: spare,
                file,
                len,
            }));
        }
        self.disk.remove(&name)?;
        Ok(Away::Removed)
    }
}

/// What became of a retired file.
enum Away {
    Spare(Spare),
    Reserved(String),
    Removed,
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use super::*;
    use crate::disk::fault::FaultDisk;

    const LEN: u64 = 256 << 10;

    fn pool(disk: &FaultDisk) -> Pool {
        Pool::open(Arc::new(disk.clone()), LEN, u64::MAX).unwrap()
    }

    #[test]
    fn a_spare_is_found_again_and_an_unfinished_one_is_removed() {
        let disk = FaultDisk::default();
        let pool = pool(&disk);
        pool.make_ahead().unwrap();
        pool.make_ahead().unwrap();
        assert_eq!(pool.zeroed_bytes(), LEN);
        disk.create("zeroing-0000000000000009").unwrap();
        let other_len = disk.create("spare-0000000000000004").unwrap();
        other_len.allocate(LEN / 2).unwrap();
        let pool = Pool::open(Arc::new(disk.clone()), LEN, u64::MAX).unwrap();
        assert_eq!(disk.list().unwrap(), ["spare-0000000000000001"]);
        assert!(pool.is_ready());
        assert_eq!(pool.take(Purpose::Data).unwrap().name, "spare-0000000000000001");
        assert_eq!(pool.take(Purpose::Data).unwrap().name, "spare-000000000000000b");
    }

    /// Without a thread that tries again, a node whose disk had been full took no new segment ever after.
    #[test]
    fn where_nobody_makes_files_ahead_a_disk_that_was_full_is_tried_again_once_it_has_room() {
        let disk = FaultDisk::default();
        let pool = pool(&disk);
        pool.note_free(10 * LEN);
        assert!(pool.is_ready());
        disk.set_free(LEN / 2);
        assert_eq!(
            pool.take(Purpose::Data).unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
        assert!(!pool.is_ready() && !pool.can_give(Purpose::Data));
        pool.note_free(LEN / 2);
        assert!(!pool.is_ready());
        disk.set_free(10 * LEN);
        pool.note_free(10 * LEN);
        assert!(pool.is_ready());
        pool.take(Purpose::Data).unwrap();
    }

    #[test]
    fn the_thread_keeps_one_spare_ready_and_ends_when_told() {
        let pool = Arc::new(pool(&FaultDisk::default()));
        let thread = {
            let pool = Arc::clone(&pool);
            std::thread::spawn(move || pool.run())
        };
        for _ in 0..5 {
            pool.take(Purpose::Data).unwrap();
        }
        pool.stop();
        thread.join().unwrap();
    }

    #[test]
    fn the_budget_bounds_all_files_together_and_keeps_the_reserve_for_notes() {
        let disk = FaultDisk::default();
        let pool = Pool::open(Arc::new(disk.clone()), LEN, 5 * LEN + 4096).unwrap();
        assert_eq!(pool.data_bytes_max(), 3 * LEN + 4096);
        pool.make_ahead().unwrap();
        pool.reserve().unwrap();
        assert_eq!((pool.bytes(), disk.list().unwrap().len()), (3 * LEN, 3));
        for _ in 0..3 {
            assert!(pool.can_give(Purpose::Data));
            pool.take(Purpose::Data).unwrap();
        }
        assert_eq!(pool.bytes(), 5 * LEN);
        assert!(!pool.can_give(Purpose::Data));
        let error = pool.take(Purpose::Data).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        pool.make_ahead().unwrap();
        assert!(!pool.is_ready(), "a spare was made beyond the budget");
        for _ in 0..2 {
            let name = pool.take(Purpose::Notes).unwrap().name;
            assert!(name.starts_with(RESERVE), "{name}");
        }
        assert!(pool.take(Purpose::Notes).is_err() && !pool.can_give(Purpose::Notes));
        assert_eq!((pool.bytes(), disk.list().unwrap().len()), (5 * LEN, 5));
    }

    #[test]
    fn a_smaller_budget_removes_spares_at_the_next_start() {
        let disk = FaultDisk::default();
        let first = pool(&disk);
        first.make_ahead().unwrap();
        first.reserve().unwrap();
        let second = Pool::open(Arc::new(disk.clone()), LEN, 2 * LEN).unwrap();
        assert_eq!((second.bytes(), disk.list().unwrap().len()), (2 * LEN, 2));
    }
}
