//! Time as a constructor argument: wall clock, monotonic clock and sleeping behind one
//! dyn-compatible trait.
//!
//! [`SystemClock`] follows the machine (and tokio's paused time in tests); [`ManualClock`] stands
//! still until it is advanced, and wakes sleepers in the order of their deadlines, ties in the
//! order of their creation, so that a run is repeatable. Wall-clock readings may jump in either
//! direction: nothing that decides safety may compare two of them. Monotonic readings are only
//! comparable within one clock.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::{BoxFuture, Either, select};
use parking_lot::Mutex;

/// A source of time.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock milliseconds since 1970-01-01T00:00:00Z; negative before it.
    fn now_unix_ms(&self) -> i64;

    /// Time since some fixed point chosen by the clock; never goes backwards.
    fn monotonic(&self) -> Duration;

    /// Completes once `duration` has passed on this clock, counted from this call and not from
    /// the first poll. Dropping the future cancels the sleep.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The time limit given to [`timeout`] ran out first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no result within {0:?}")]
pub struct Elapsed(pub Duration);

/// Runs `future` for at most `limit` of the clock's time.
///
/// Cancel safety: at the limit the future is dropped, so only pass futures that may be dropped
/// at any of their awaits. A future that is ready at the limit wins.
pub async fn timeout<F: Future>(clock: &dyn Clock, limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    let future = std::pin::pin!(future);
    match select(future, clock.sleep(limit)).await {
        Either::Left((output, _)) => Ok(output),
        Either::Right(((), _)) => Err(Elapsed(limit)),
    }
}

/// The machine's clocks.
#[derive(Debug, Clone)]
pub struct SystemClock {
    // tokio's Instant, not std's, so that paused time in tests moves it.
    origin: tokio::time::Instant,
}

impl SystemClock {
    /// A clock whose monotonic reading starts at zero now.
    pub fn new() -> Self {
        Self {
            origin: tokio::time::Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now_unix_ms(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
        }
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// A clock that moves only when told to. Cloning gives another handle to the same clock.
#[derive(Debug, Clone)]
pub struct ManualClock {
    state: Arc<Mutex<ManualState>>,
}

#[derive(Debug)]
struct ManualState {
    unix_ms_origin: i64,
    elapsed: Duration,
    next_id: u64,
    /// Keyed by (deadline, creation order): iteration order is wake order.
    sleepers: BTreeMap<(Duration, u64), Option<Waker>>,
}

impl ManualClock {
    /// A clock that stands at `unix_ms` on the wall and at zero on the monotonic side.
    pub fn new(unix_ms: i64) -> Self {
        Self {
            state: Arc::new(Mutex::new(ManualState {
                unix_ms_origin: unix_ms,
                elapsed: Duration::ZERO,
                next_id: 0,
                sleepers: BTreeMap::new(),
            })),
        }
    }

    /// Moves both clocks forward and wakes every sleeper whose deadline has come.
    pub fn advance(&self, by: Duration) {
        let to = self.state.lock().elapsed.saturating_add(by);
        self.advance_to(to);
    }

    /// Moves to the earliest deadline anyone sleeps for and wakes who sleeps until then.
    /// Returns how far time moved, or `None` when nobody sleeps.
    pub fn advance_to_next(&self) -> Option<Duration> {
        let (from, to) = {
            let state = self.state.lock();
            let to = state.sleepers.keys().next().map(|(deadline, _)| *deadline)?;
            (state.elapsed, to)
        };
        self.advance_to(to);
        Some(to.saturating_sub(from))
    }

    /// Makes the wall clock jump, in either direction, without moving the monotonic clock.
    pub fn jump_unix_ms(&self, by_ms: i64) {
        let mut state = self.state.lock();
        state.unix_ms_origin = state.unix_ms_origin.saturating_add(by_ms);
    }

    /// How many sleeps are pending.
    pub fn sleepers(&self) -> usize {
        self.state.lock().sleepers.len()
    }

    fn advance_to(&self, to: Duration) {
        let mut due = Vec::new();
        {
            let mut state = self.state.lock();
            let now = state.elapsed.max(to);
            state.elapsed = now;
            let later = state.sleepers.split_off(&(now, u64::MAX));
            let now_due = std::mem::replace(&mut state.sleepers, later);
            due.extend(now_due.into_values().flatten());
        }
        // Woken outside the lock: a waker may run code that reads this clock.
        due.into_iter().for_each(Waker::wake);
    }
}

impl Clock for ManualClock {
    fn now_unix_ms(&self) -> i64 {
        let state = self.state.lock();
        let elapsed_ms = i64::try_from(state.elapsed.as_millis()).unwrap_or(i64::MAX);
        state.unix_ms_origin.saturating_add(elapsed_ms)
    }

    fn monotonic(&self) -> Duration {
        self.state.lock().elapsed
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let mut state = self.state.lock();
        let key = (state.elapsed.saturating_add(duration), state.next_id);
        state.next_id += 1;
        if !duration.is_zero() {
            state.sleepers.insert(key, None);
        }
        Box::pin(ManualSleep {
            state: Arc::clone(&self.state),
            key,
        })
    }
}

struct ManualSleep {
    state: Arc<Mutex<ManualState>>,
    key: (Duration, u64),
}

impl Future for ManualSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.elapsed >= self.key.0 {
            return Poll::Ready(());
        }
        state.sleepers.insert(self.key, Some(cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for ManualSleep {
    fn drop(&mut self) {
        self.state.lock().sleepers.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn advance_wakes_only_sleepers_whose_deadline_has_come() {
        let clock = ManualClock::new(1_000);
        let mut short = clock.sleep(Duration::from_secs(1));
        let mut long = clock.sleep(Duration::from_secs(2));
        assert!(short.as_mut().now_or_never().is_none());
        assert!(long.as_mut().now_or_never().is_none());
        clock.advance(Duration::from_millis(1_999));
        assert!(short.now_or_never().is_some());
        assert!(long.as_mut().now_or_never().is_none());
        clock.advance(Duration::from_millis(1));
        assert!(long.now_or_never().is_some());
        assert_eq!(clock.now_unix_ms(), 3_000);
        assert_eq!(clock.monotonic(), Duration::from_secs(2));
    }

    #[tokio::test]
    async fn advance_wakes_a_parked_task() {
        let clock = ManualClock::new(0);
        let sleep = clock.sleep(Duration::from_secs(5));
        let task = tokio::spawn(sleep);
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(5));
        task.await.unwrap();
    }

    #[test]
    fn a_sleep_counts_from_its_creation_and_not_from_its_first_poll() {
        let clock = ManualClock::new(0);
        let sleep = clock.sleep(Duration::from_secs(1));
        clock.advance(Duration::from_secs(1));
        assert!(sleep.now_or_never().is_some());
    }

    #[test]
    fn a_dropped_sleep_is_forgotten() {
        let clock = ManualClock::new(0);
        let sleep = clock.sleep(Duration::from_secs(1));
        assert_eq!(clock.sleepers(), 1);
        drop(sleep);
        assert_eq!(clock.sleepers(), 0);
        assert_eq!(clock.advance_to_next(), None);
    }

    #[tokio::test]
    async fn advance_to_next_visits_deadlines_in_order() {
        let clock = ManualClock::new(0);
        let order = Arc::new(Mutex::new(Vec::new()));
        for ms in [30_u64, 10, 20] {
            let (sleep, order) = (clock.sleep(Duration::from_millis(ms)), Arc::clone(&order));
            tokio::spawn(async move {
                sleep.await;
                order.lock().push(ms);
            });
        }
        tokio::task::yield_now().await;
        let mut steps = Vec::new();
        while let Some(step) = clock.advance_to_next() {
            steps.push(step.as_millis());
            tokio::task::yield_now().await;
        }
        assert_eq!(*order.lock(), [10, 20, 30]);
        assert_eq!(steps, [10, 10, 10]);
    }

    #[test]
    fn a_wall_clock_jump_leaves_the_monotonic_clock_alone() {
        let clock = ManualClock::new(10_000);
        clock.advance(Duration::from_secs(1));
        clock.jump_unix_ms(-5_000);
        assert_eq!(clock.now_unix_ms(), 6_000);
        assert_eq!(clock.monotonic(), Duration::from_secs(1));
    }

    #[tokio::test]
    async fn timeout_returns_elapsed_when_the_clock_gets_there_first() {
        let clock = ManualClock::new(0);
        let handle = clock.clone();
        let waiting = tokio::spawn(async move {
            timeout(&handle, Duration::from_secs(3), std::future::pending::<()>()).await
        });
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(3));
        assert_eq!(waiting.await.unwrap(), Err(Elapsed(Duration::from_secs(3))));
        assert_eq!(timeout(&clock, Duration::from_secs(3), async { 7 }).await, Ok(7));
    }

    #[tokio::test(start_paused = true)]
    async fn the_system_clock_follows_paused_time_and_is_usable_as_a_trait_object() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        clock.sleep(Duration::from_secs(60)).await;
        assert!(clock.monotonic() >= Duration::from_secs(60));
        assert!(clock.now_unix_ms() > 1_600_000_000_000);
    }
}
