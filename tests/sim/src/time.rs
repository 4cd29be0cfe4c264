//! Simulated time: the runtime's paused clock, and a wall clock of each process that may be wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use forebay_runtime::clock::Clock;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

/// Wall clocks begin here: 2026-01-01T00:00:00Z.
const BEGIN_UNIX_MS: i64 = 1_767_225_600_000;

/// A process's clock. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct SimClock {
    origin: Instant,
    /// How far its wall clock is off.
    skew_ms: Arc<AtomicI64>,
}

impl SimClock {
    /// A clock that is right. Call within a paused runtime.
    #[must_use]
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
            skew_ms: Arc::default(),
        }
    }

    /// The same time with a wall clock of its own.
    #[must_use]
    pub fn of_process(&self) -> Self {
        Self {
            origin: self.origin,
            skew_ms: Arc::default(),
        }
    }

    /// Makes the wall clock jump.
    pub fn jump(&self, by_ms: i64) {
        self.skew_ms.fetch_add(by_ms, Ordering::Relaxed);
    }
}

impl Default for SimClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SimClock {
    fn now_unix_ms(&self) -> i64 {
        let elapsed = i64::try_from(self.origin.elapsed().as_millis()).unwrap_or(i64::MAX);
        BEGIN_UNIX_MS + elapsed + self.skew_ms.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}
