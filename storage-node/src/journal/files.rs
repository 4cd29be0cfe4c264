//! Files of the journal: their names, the table of those in use, and the pool of prepared ones.
//!
//! | name             | what                                                                |
//! |------------------|---------------------------------------------------------------------|
//! | `journal-<hex>`  | in use; the number is the file's, its header was durable first      |
//! | `spare-<hex>`    | full length, every byte written once                                |
//! | `zeroing-<hex>`  | becoming a spare; worthless after a crash                           |
//! | `reserve-<hex>`  | full length, not written: room for fences when the disk is full     |
//!
//! Files are zeroed or recycled before they are needed, by a thread of their own where there is
//! one. Where the journal outruns it, it goes on in a file that is only allocated: commits to that
//! are slower, but nobody waits for a whole file to be zeroed.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Bound::{Excluded, Unbounded};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};

use super::format::FileHeader;
use crate::buffer::Buffer;
use crate::disk::{BLOCK_LEN_U64, Disk, File};

/// Smallest file.
pub const FILE_LEN_MIN: u64 = 1 << 20;
/// Files kept back so that fences can always be written.
pub const RESERVED_FILES: usize = 2;

const JOURNAL: &str = "journal-";
const SPARE: &str = "spare-";
const ZEROING: &str = "zeroing-";
const RESERVE: &str = "reserve-";
const ZERO_STEP: usize = 1 << 20;
/// About so many bytes are kept prepared: what a burst may write before it meets unwritten files.
const SPARE_BYTES: u64 = 1 << 30;
/// At most so many files for that.
const SPARES_MAX: u64 = 4;
/// While a file is ready, the next is zeroed only when no commit came for so long: zeroing would
/// take the disk from them.
const QUIET: Duration = Duration::from_millis(100);

/// Name of a file in use.
#[must_use]
pub fn journal_name(number: u64) -> String {
    format!("{JOURNAL}{number:016x}")
}

/// The number in the name of a file in use.
#[must_use]
pub fn journal_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(JOURNAL).filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// Whether a name is one of the journal's, of any kind.
#[must_use]
pub fn is_ours(name: &str) -> bool {
    [JOURNAL, SPARE, ZEROING, RESERVE]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// A file in use.
#[derive(Debug)]
pub struct JournalFile {
    /// Its header.
    pub header: FileHeader,
    /// Its bytes.
    pub file: Arc<dyn File>,
}

impl JournalFile {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        journal_name(self.header.number)
    }
}

/// Files in use, by the position of their first byte.
#[derive(Debug, Default)]
pub struct FileTable(RwLock<BTreeMap<u64, Arc<JournalFile>>>);

impl FileTable {
    /// Adds a file.
    pub fn insert(&self, file: Arc<JournalFile>) {
        self.0.write().insert(file.header.start, file);
    }

    /// The file that holds a position, and where its part of the journal ends: where the next file
    /// begins.
    #[must_use]
    pub fn find(&self, position: u64) -> Option<(Arc<JournalFile>, u64)> {
        let table = self.0.read();
        let (_, file) = table.range(..=position).next_back()?;
        let next = table
            .range((Excluded(position), Unbounded))
            .next()
            .map(|(start, _)| *start);
        let end = next.unwrap_or(u64::MAX).min(file.header.start + file.header.len);
        (position < end).then(|| (Arc::clone(file), end))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.read().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.read().is_empty()
    }

    /// Takes out the files, except the newest, that `is_live` does not hold and nobody reads.
    pub fn take_dead(&self, is_live: impl Fn(&Range<u64>) -> bool) -> Vec<Arc<JournalFile>> {
        let mut table = self.0.write();
        // A file ends where the next begins.
        let ends: Vec<u64> = table.keys().skip(1).copied().collect();
        let dead: Vec<u64> = table
            .iter()
            .zip(ends)
            .filter(|((start, file), end)| {
                // A reader holds its own handle: its file must not be written under it.
                Arc::strong_count(file) == 1 && !is_live(&(**start..*end))
            })
            .map(|((start, _), _)| *start)
            .collect();
        dead.into_iter()
            .filter_map(|start| table.remove(&start))
            .collect()
    }
}

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

#[derive(Debug, Default)]
struct Stock {
    ready: VecDeque<Spare>,
    /// Somebody is making one.
    making: bool,
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
    /// Files to keep ready.
    spares: AtomicUsize,
    stock: Mutex<Stock>,
    changed: Condvar,
    zeroed_bytes: AtomicU64,
    /// Commits of the journal, to tell whether it is quiet.
    commits: AtomicU64,
}

impl Pool {
    /// The pool of a folder: takes up spares that are there, removes what never became one.
    ///
    /// # Errors
    /// Of the disk.
    pub fn open(disk: Arc<dyn Disk>, file_len: u64) -> io::Result<Self> {
        let mut stock = Stock::default();
        for name in disk.list()? {
            let number = name
                .rsplit('-')
                .next()
                .and_then(|digits| u64::from_str_radix(digits, 16).ok());
            if is_ours(&name) && journal_number(&name).is_none() {
                stock.next_number = stock.next_number.max(number.unwrap_or_default() + 1);
            }
            if name.starts_with(ZEROING) {
                disk.remove(&name)?;
            }
            if name.starts_with(SPARE) {
                let file = disk.open(&name)?;
                if file.length()? == file_len {
                    stock.ready.push_back(Spare {
                        name,
                        file,
                        len: file_len,
                    });
                } else {
                    disk.remove(&name)?;
                }
            }
        }
        let (stock, changed, zeroed_bytes) = (Mutex::new(stock), Condvar::new(), AtomicU64::new(0));
        Ok(Self {
            disk,
            file_len,
            spares: AtomicUsize::new(1),
            stock,
            changed,
            zeroed_bytes,
            commits: AtomicU64::new(0),
        })
    }

    /// Keeps as many files ready as a burst may need and a budget of bytes can spare, instead of one.
    pub fn keep_for_bursts(&self, budget_bytes: u64) {
        let len = self.file_len.max(1);
        let spares = (SPARE_BYTES / len)
            .min(budget_bytes / len / 8)
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

    /// Bytes written to prepare files, ever.
    #[must_use]
    pub fn zeroed_bytes(&self) -> u64 {
        self.zeroed_bytes.load(Ordering::Relaxed)
    }

    /// Whether a prepared file is there.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.stock.lock().ready.is_empty()
    }

    /// Whether as many files are ready as are kept.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.stock.lock().ready.len() >= self.spares()
    }

    /// The journal has committed.
    pub fn note_commit(&self) {
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a prepared file. Where none is ready, takes one that is only allocated; where nobody
    /// makes files in advance, makes one here.
    ///
    /// # Errors
    /// Of the disk, first of all that it is full.
    pub fn take(&self) -> io::Result<Spare> {
        let has_maker = {
            let mut stock = self.stock.lock();
            if let Some(spare) = stock.ready.pop_front() {
                self.changed.notify_all();
                return Ok(spare);
            }
            stock.has_maker
        };
        if has_maker { self.allocate() } else { self.make() }
    }

    fn allocate(&self) -> io::Result<Spare> {
        let name = format!("{SPARE}{:016x}", self.fresh_number());
        let file = self.disk.create(&name)?;
        let allocated = file.allocate(self.file_len).and_then(|()| file.sync());
        if let Err(error) = allocated {
            self.disk.remove(&name)?;
            return Err(error);
        }
        Ok(Spare {
            name,
            file,
            len: self.file_len,
        })
    }

    /// Makes one spare ahead, if there are too few.
    ///
    /// # Errors
    /// Of the disk.
    pub fn make_ahead(&self) -> io::Result<()> {
        {
            let mut stock = self.stock.lock();
            if stock.stopped || stock.making || stock.ready.len() >= self.spares() {
                return Ok(());
            }
            stock.making = true;
        }
        let made = self.make();
        let mut stock = self.stock.lock();
        stock.making = false;
        self.changed.notify_all();
        stock.ready.push_back(made?);
        Ok(())
    }

    /// Runs until [`Pool::stop`]: keeps spares ready. A failure is tried again after a second.
    pub fn run(&self) {
        const RETRY: Duration = Duration::from_secs(1);
        self.stock.lock().has_maker = true;
        while self.wait_for_need() {
            if let Err(error) = self.make_ahead() {
                let mut stock = self.stock.lock();
                if !stock.stopped {
                    tracing::warn!(%error, "cannot prepare a journal file");
                    self.changed.wait_for(&mut stock, RETRY);
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
            if stock.ready.is_empty() {
                return true;
            }
            if stock.ready.len() >= self.spares() {
                self.changed.wait(&mut stock);
                continue;
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
            Ok(Spare {
                name,
                file,
                len: self.file_len,
            })
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

    /// Sees to it that the reserved files are there.
    ///
    /// # Errors
    /// Of the disk.
    pub fn reserve(&self) -> io::Result<()> {
        let held = self
            .disk
            .list()?
            .iter()
            .filter(|name| name.starts_with(RESERVE))
            .count();
        for _ in held..RESERVED_FILES {
            let name = format!("{RESERVE}{:016x}", self.fresh_number());
            let file = self.disk.create(&name)?;
            if let Err(error) = file.allocate(self.file_len) {
                self.disk.remove(&name)?;
                return Err(error);
            }
        }
        self.disk.sync_names()
    }

    /// Takes a reserved file, where there is one.
    ///
    /// # Errors
    /// Of the disk.
    pub fn take_reserved(&self) -> io::Result<Option<Spare>> {
        let Some(name) = self
            .disk
            .list()?
            .into_iter()
            .find(|name| name.starts_with(RESERVE))
        else {
            return Ok(None);
        };
        let file = self.disk.open(&name)?;
        Ok((file.length()? == self.file_len).then_some(Spare {
            name,
            file,
            len: self.file_len,
        }))
    }

    /// Takes a file out of use. The caller's handle must be the only one. What it held stays in
    /// it until it is written again, and is recognised then by number, position and salt.
    ///
    /// # Errors
    /// Of the disk.
    pub fn recycle(&self, file: &JournalFile) -> io::Result<()> {
        let name = file.name();
        if file.header.len != self.file_len || self.is_full() {
            return self.disk.remove(&name);
        }
        let spare = format!("{SPARE}{:016x}", self.fresh_number());
        self.disk.rename(&name, &spare)?;
        let mut stock = self.stock.lock();
        stock.ready.push_back(Spare {
            name: spare,
            file: Arc::clone(&file.file),
            len: self.file_len,
        });
        self.changed.notify_all();
        Ok(())
    }
}

/// The length of files for a configured size: whole blocks, not less than the least.
#[must_use]
pub const fn file_len(configured: u64) -> u64 {
    let len = configured / BLOCK_LEN_U64 * BLOCK_LEN_U64;
    if len < FILE_LEN_MIN { FILE_LEN_MIN } else { len }
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

    #[test]
    fn a_spare_is_found_again_and_an_unfinished_one_is_removed() {
        let disk = FaultDisk::default();
        let pool = Pool::open(Arc::new(disk.clone()), LEN).unwrap();
        pool.make_ahead().unwrap();
        pool.make_ahead().unwrap();
        assert_eq!(pool.zeroed_bytes(), LEN);
        disk.create("zeroing-0000000000000009").unwrap();
        let other_len = disk.create("spare-0000000000000004").unwrap();
        other_len.allocate(LEN / 2).unwrap();
        let pool = Pool::open(Arc::new(disk.clone()), LEN).unwrap();
        assert_eq!(disk.list().unwrap(), ["spare-0000000000000001"]);
        assert!(pool.is_ready());
        assert_eq!(pool.take().unwrap().name, "spare-0000000000000001");
        assert_eq!(pool.take().unwrap().name, "spare-000000000000000b");
    }

    #[test]
    fn the_thread_keeps_one_spare_ready_and_ends_when_told() {
        let pool = Arc::new(Pool::open(Arc::new(FaultDisk::default()), LEN).unwrap());
        let thread = {
            let pool = Arc::clone(&pool);
            std::thread::spawn(move || pool.run())
        };
        for _ in 0..5 {
            pool.take().unwrap();
        }
        pool.stop();
        thread.join().unwrap();
    }

    #[test]
    fn names_are_parsed_as_they_are_made() {
        assert_eq!(journal_number(&journal_name(0x1f)), Some(0x1f));
        for name in [
            "journal-1f",
            "spare-000000000000001f",
            "journal-00000000000000zz",
            "superblock",
        ] {
            assert_eq!(journal_number(name), None);
        }
    }
}
