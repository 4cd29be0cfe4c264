//! Reads all live frames back from the disk, again and again, and passes on what is damaged.
//!
//! 1. A pass goes through the journal's positions from the oldest to what was durable when it began, in
//!    sealed and open segments alike. It takes about the configured interval: as fast as what is held
//!    asks for, and never faster than the configured rate.
//! 2. One read is in flight at a time, of at most a mebibyte or one frame, on the threads for work that
//!    blocks; after each it pauses as long as the rate wants.
//! 3. Frames found to be damaged, here or by any reader, go to the journal thread, which marks them and
//!    tells brokers. While anything is damaged, brokers are told again and again.
//!
//! Never writes, and decides nothing about segments.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use forebay_record::SegmentId;
use forebay_runtime::clock::Clock;
use tokio_util::sync::CancellationToken;

use super::queue::{Message, Queue};
use super::shared::Shared;
use crate::damage::Damages;
use crate::index::Entry;
use crate::metrics::ScrubMetrics;
use crate::read::Reader;

/// Bytes of frames that are read at once.
const STEP_BYTES: u64 = 1 << 20;
/// Positions whose frames are looked up at once.
const WINDOW: u64 = 64 << 20;
/// Bytes a second below which it is not worth going slower.
const RATE_MIN: u64 = 1 << 20;
/// Pause after positions in which no frame is left.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// Time between two messages to brokers about what is damaged.
const TELL_EVERY: Duration = Duration::from_secs(15);

/// One way through the journal.
#[derive(Debug)]
struct Pass {
    began: Duration,
    /// Everything below was read.
    at: u64,
    until: u64,
    bytes_per_second: u64,
    frames: VecDeque<(SegmentId, Entry)>,
}

/// See the module.
pub(super) struct Scrubber {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    clock: Arc<dyn Clock>,
    metrics: ScrubMetrics,
    reader: Reader,
    damages: Arc<Damages>,
    /// None where nothing is read back.
    interval: Option<Duration>,
    bytes_per_second_max: u64,
    pass: Option<Pass>,
    next_step: Duration,
    next_tell: Duration,
}

impl Scrubber {
    /// An `interval` of zero switches it off, but for what readers find.
    pub(super) fn new(
        shared: Arc<Shared>,
        queue: Arc<Queue>,
        clock: Arc<dyn Clock>,
        metrics: ScrubMetrics,
        (interval, bytes_per_second_max): (Duration, u64),
    ) -> Self {
        let now = clock.monotonic();
        let reader = shared.reader();
        Self {
            damages: Arc::clone(&reader.damages),
            reader,
            shared,
            queue,
            clock,
            metrics,
            interval: (!interval.is_zero()).then_some(interval),
            bytes_per_second_max: bytes_per_second_max.max(1),
            pass: None,
            next_step: now,
            next_tell: now + TELL_EVERY,
        }
    }

    /// Runs until the node stops.
    pub(super) async fn run(mut self, cancelled: CancellationToken) {
        let stopping = self.shared.stopping.clone();
        let damages = Arc::clone(&self.damages);
        loop {
            let now = self.clock.monotonic();
            let due = match self.interval {
                Some(_) => self.next_step.min(self.next_tell),
                None => self.next_tell,
            };
            // Cancel safety: each of them only waits.
            tokio::select! {
                biased;
                () = cancelled.cancelled() => return,
                () = stopping.cancelled() => return,
                () = damages.arrived() => self.next_tell = self.clock.monotonic(),
                () = self.clock.sleep(due.saturating_sub(now)) => {}
            }
            let now = self.clock.monotonic();
            if now >= self.next_tell && !self.tell(now) {
                return;
            }
            if self.interval.is_some() && now >= self.next_step {
                self.step().await;
            }
        }
    }

    /// Passes on what was found, and what is damaged still; false where the node stops.
    fn tell(&mut self, now: Duration) -> bool {
        self.next_tell = now + TELL_EVERY;
        let found = self.damages.take();
        if found.is_empty() && self.shared.index.damaged(1).is_empty() {
            return true;
        }
        self.queue.push_own(Message::Damaged(found)).is_ok()
    }

    /// Reads a little further.
    async fn step(&mut self) {
        let mut pass = match self.pass.take() {
            Some(pass) => pass,
            None => self.begin(),
        };
        if pass.frames.is_empty() && pass.at < pass.until {
            self.look_up(&mut pass).await;
            if pass.frames.is_empty() && pass.at < pass.until {
                self.next_step = self.clock.monotonic() + LOOK_PAUSE;
                self.pass = Some(pass);
                return;
            }
        }
        let (mut step, mut bytes) = (Vec::new(), 0);
        while let Some((_, entry)) = pass.frames.front()
            && (bytes == 0 || bytes + entry.frame_len() <= STEP_BYTES)
        {
            bytes += entry.frame_len();
            step.extend(pass.frames.pop_front());
        }
        let now = self.clock.monotonic();
        if step.is_empty() {
            self.end(&pass, now);
            return;
        }
        let reader = self.reader.clone();
        let read = self
            .shared
            .execution
            .run(&*self.clock, move || reader.verify(&step));
        let read = read.await.unwrap_or_default();
        self.metrics.bytes.inc_by(read);
        let pause_ms = read.saturating_mul(1_000) / pass.bytes_per_second.max(1);
        self.next_step = now + Duration::from_millis(pause_ms);
        self.pass = Some(pass);
    }

    fn begin(&self) -> Pass {
        let held: u64 = self.shared.index.held().iter().map(|one| one.bytes).sum();
        let wanted = match self.interval.unwrap_or_default().as_secs() {
            0 => u64::MAX,
            seconds => held / seconds,
        };
        Pass {
            began: self.clock.monotonic(),
            at: 0,
            until: self.shared.durable(),
            bytes_per_second: wanted.max(RATE_MIN).min(self.bytes_per_second_max),
            frames: VecDeque::new(),
        }
    }

    fn end(&mut self, pass: &Pass, now: Duration) {
        self.next_step = now.max(pass.began + self.interval.unwrap_or_default());
        self.metrics.passes.inc();
        let ended_ms = self.clock.now_unix_ms();
        self.metrics.last_pass.set(ended_ms / 1_000);
        self.shared
            .set_scrubbed(u64::try_from(ended_ms).unwrap_or_default());
    }

    /// Finds the next frames of a pass.
    async fn look_up(&self, pass: &mut Pass) {
        let Some(range) = self.shared.table.range_from(pass.at, pass.until) else {
            pass.at = pass.until;
            return;
        };
        let end = range.end.min(range.start.saturating_add(WINDOW));
        let window: Range<u64> = range.start..end;
        let (index, wanted) = (Arc::clone(&self.shared.index), window.clone());
        let found = self
            .shared
            .execution
            .run(&*self.clock, move || index.within(&wanted));
        pass.frames = found.await.unwrap_or_default().into();
        pass.at = window.end;
    }
}
