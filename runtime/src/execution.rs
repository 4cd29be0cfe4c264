//! Where work that blocks is done: on threads, or in place where a simulation has only one.
//!
//! A role that has loops or reads that block asks its [`Execution`] instead of starting threads
//! itself. With [`Execution::Simulated`] such work is done by tasks of the one runtime there is, and
//! takes as long as a [`Pace`] says, so that a run depends on nothing but its seed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;

/// How long pieces of simulated work take.
pub trait Pace: Send + Sync + 'static {
    /// Time until the next piece is done.
    fn next(&self) -> Duration;
}

/// Where work that blocks is done.
#[derive(Clone, Default)]
pub enum Execution {
    /// On threads of its own, or on those that the runtime keeps for it.
    #[default]
    Threads,
    /// In place, by tasks.
    Simulated(Arc<dyn Pace>),
}

/// The runtime ended, or the work panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work was interrupted")]
pub struct Interrupted;

impl Execution {
    /// Does a piece of work that blocks.
    ///
    /// Cancel safety: work that was begun on a thread goes on, its result is lost.
    ///
    /// # Errors
    /// Where it ended early.
    pub async fn run<T: Send + 'static>(
        &self,
        clock: &dyn Clock,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Interrupted> {
        match self {
            Self::Threads => tokio::task::spawn_blocking(work).await.map_err(|_| Interrupted),
            Self::Simulated(_) => {
                self.pause(clock).await;
                Ok(work())
            }
        }
    }

    /// In a simulation, waits as long as a piece of work takes; on threads work takes its own time.
    ///
    /// Cancel safety: only waits.
    pub async fn pause(&self, clock: &dyn Clock) {
        if let Self::Simulated(pace) = self {
            let took = pace.next();
            if !took.is_zero() {
                clock.sleep(took).await;
            }
        }
    }
}

impl fmt::Debug for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Threads => "Threads",
            Self::Simulated(_) => "Simulated",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    struct Fixed(u64);

    impl Pace for Fixed {
        fn next(&self) -> Duration {
            Duration::from_millis(self.0)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn simulated_work_is_done_in_place_and_takes_its_time() {
        let (clock, here) = (SystemClock::new(), std::thread::current().id());
        let execution = Execution::Simulated(Arc::new(Fixed(7)));
        let thread = execution.run(&clock, || std::thread::current().id()).await;
        assert_eq!(thread, Ok(here));
        assert_eq!(clock.monotonic(), Duration::from_millis(7));
    }

    #[tokio::test]
    async fn real_work_is_done_on_another_thread_and_its_panic_is_told() {
        let (clock, here) = (SystemClock::new(), std::thread::current().id());
        let thread = Execution::Threads
            .run(&clock, || std::thread::current().id())
            .await;
        assert_ne!(thread, Ok(here));
        let panicked = Execution::Threads.run(&clock, || {
            assert!(std::hint::black_box(false), "for this test");
        });
        assert_eq!(panicked.await, Err(Interrupted));
    }
}
