//! When the checkpoint is written: at an interval, and at once where something waits for it.
//!
//! One write at a time, on a thread that may block. Each has a number; what is to be durable before
//! a batch is sent waits for the number of the next write to begin, so any number of inputs share
//! one.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::checkpoint::{Checkpoint, CheckpointFile, Entry};

/// Writes the checkpoint of a run.
#[derive(Debug)]
pub struct Keeper {
    file: Arc<CheckpointFile>,
    head: Checkpoint,
    interval: Duration,
    /// Number of the next write.
    next: u64,
    /// Whether something waits for it.
    wanted: bool,
    /// Whether there is anything new.
    changed: bool,
    /// Writes up to this number are durable.
    durable: u64,
    began: Option<Instant>,
    written: Option<Instant>,
    writing: Option<JoinHandle<io::Result<()>>>,
}

impl Keeper {
    /// Keeps what `head` says beside the inputs; its own entries are of files not read now.
    pub fn new(file: CheckpointFile, head: Checkpoint, interval: Duration) -> Self {
        Self {
            file: Arc::new(file),
            head,
            interval,
            next: 1,
            wanted: false,
            changed: true,
            durable: 0,
            began: None,
            written: None,
            writing: None,
        }
    }

    /// The path, for messages.
    pub fn path(&self) -> String {
        self.file.path().display().to_string()
    }

    /// Wants a write soon that has what is so now; gives its number.
    pub const fn request(&mut self) -> u64 {
        self.wanted = true;
        self.next
    }

    /// Notes that there is something new.
    pub const fn touch(&mut self) {
        self.changed = true;
    }

    /// Whether a write is durable.
    pub const fn is_durable(&self, number: u64) -> bool {
        number <= self.durable
    }

    /// When the last write ended.
    pub const fn written(&self) -> Option<Instant> {
        self.written
    }

    /// Whether a write should begin now.
    pub fn is_due(&self, now: Instant) -> bool {
        self.writing.is_none()
            && (self.wanted
                || self.changed
                    && self
                        .began
                        .is_none_or(|began| now.duration_since(began) >= self.interval))
    }

    /// Begins a write of these entries.
    pub fn begin(&mut self, entries: Vec<Entry>, now: Instant) {
        let mut checkpoint = self.head.clone();
        checkpoint.inputs.extend(entries);
        let file = self.file.clone();
        (self.wanted, self.changed, self.began) = (false, false, Some(now));
        self.next += 1;
        self.writing = Some(tokio::task::spawn_blocking(move || file.write(&checkpoint)));
    }

    /// Waits for the write under way; for ever where there is none.
    ///
    /// Cancel safety: the write goes on, and is waited for by the next call.
    pub async fn finished(&mut self) -> io::Result<()> {
        let Some(writing) = &mut self.writing else {
            return std::future::pending().await;
        };
        let written = writing.await;
        self.writing = None;
        written.map_err(io::Error::other)??;
        self.durable = self.next - 1;
        self.written = Some(Instant::now());
        Ok(())
    }

    /// Writes the last checkpoint, after the one under way.
    pub async fn finish(mut self, entries: Vec<Entry>) -> io::Result<()> {
        if self.writing.is_some() {
            self.finished().await?;
        }
        self.begin(entries, Instant::now());
        self.finished().await
    }
}
