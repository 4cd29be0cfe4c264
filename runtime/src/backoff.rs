//! How long to wait between two tries: exponential growth with full jitter, bounded by a number
//! of tries and by a deadline.
//!
//! Full jitter (uniform between zero and the current ceiling) spreads a crowd that failed at the
//! same moment; the expected wait is half of the ceiling. Every retry loop ends: when either bound
//! is reached the answer is [`Exhausted`], which says how much was tried.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::random::Random;

/// The bounds of one kind of retry loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Ceiling of the first wait.
    pub base: Duration,
    /// Ceiling that doubling stops at.
    pub ceiling: Duration,
    /// How many waits at most; `u32::MAX` leaves only the deadline.
    pub retries_max: u32,
    /// Time from creation (or reset) after which there is no further wait.
    pub deadline: Duration,
}

impl Default for Policy {
    /// 10 ms doubling up to 1 s, for at most 30 s.
    fn default() -> Self {
        Self {
            base: Duration::from_millis(10),
            ceiling: Duration::from_secs(1),
            retries_max: u32::MAX,
            deadline: Duration::from_secs(30),
        }
    }
}

/// No further try is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("gave up after {retries} retries in {elapsed:?}")]
pub struct Exhausted {
    /// Waits that were made.
    pub retries: u32,
    /// Time since creation or reset.
    pub elapsed: Duration,
}

/// The state of one retry loop.
pub struct Backoff {
    policy: Policy,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    started: Duration,
    retries: u32,
}

impl Backoff {
    /// A loop whose deadline counts from now.
    pub fn new(policy: Policy, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Self {
        let started = clock.monotonic();
        Self {
            policy,
            clock,
            random,
            started,
            retries: 0,
        }
    }

    /// Waits made so far.
    pub fn retries(&self) -> u32 {
        self.retries
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.started = self.clock.monotonic();
        self.retries = 0;
    }

    /// The next wait, counted as made. It never reaches beyond the deadline: the last wait is
    /// cut short so that one more try happens at the deadline itself.
    pub fn next_delay(&mut self) -> Result<Duration, Exhausted> {
        let elapsed = self.clock.monotonic().saturating_sub(self.started);
        let remaining = self.policy.deadline.saturating_sub(elapsed);
        if self.retries >= self.policy.retries_max || remaining.is_zero() {
            return Err(Exhausted {
                retries: self.retries,
                elapsed,
            });
        }
        let doubled = 2_u32
            .checked_pow(self.retries)
            .and_then(|by| self.policy.base.checked_mul(by));
        let ceiling = doubled.unwrap_or(Duration::MAX).min(self.policy.ceiling);
        let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
        let delay = Duration::from_nanos(self.random.range(0, nanos.saturating_add(1)));
        self.retries = self.retries.saturating_add(1);
        Ok(delay.min(remaining))
    }

    /// Sleeps for [`Backoff::next_delay`].
    ///
    /// Cancel safety: a dropped wait counts as made.
    pub async fn wait(&mut self) -> Result<(), Exhausted> {
        let delay = self.next_delay()?;
        self.clock.sleep(delay).await;
        Ok(())
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

    use super::*;
    use crate::clock::ManualClock;
    use crate::random::SeededRandom;

    fn backoff(policy: Policy, clock: &ManualClock, seed: u64) -> Backoff {
        Backoff::new(policy, Arc::new(clock.clone()), Arc::new(SeededRandom::new(seed)))
    }

    const POLICY: Policy = Policy {
        base: Duration::from_millis(10),
        ceiling: Duration::from_millis(80),
        retries_max: 6,
        deadline: Duration::from_secs(10),
    };

    #[test]
    fn waits_stay_under_a_ceiling_that_doubles_and_then_stops() {
        let clock = ManualClock::new(0);
        let mut longest = [Duration::ZERO; 6];
        for seed in 0..2_000 {
            let mut backoff = backoff(POLICY, &clock, seed);
            for longest in &mut longest {
                *longest = (*longest).max(backoff.next_delay().unwrap());
            }
        }
        for (longest, ceiling_ms) in longest.iter().zip([10_u64, 20, 40, 80, 80, 80]) {
            let ceiling = Duration::from_millis(ceiling_ms);
            assert!(
                *longest <= ceiling && *longest > ceiling * 9 / 10,
                "{longest:?} {ceiling:?}"
            );
        }
    }

    #[test]
    fn the_number_of_retries_is_bounded() {
        let clock = ManualClock::new(0);
        let mut backoff = backoff(POLICY, &clock, 1);
        for _ in 0..6 {
            backoff.next_delay().unwrap();
        }
        let exhausted = backoff.next_delay().unwrap_err();
        assert_eq!(
            exhausted,
            Exhausted {
                retries: 6,
                elapsed: Duration::ZERO
            }
        );
        backoff.reset();
        assert!(backoff.next_delay().is_ok());
    }

    #[test]
    fn no_wait_reaches_beyond_the_deadline() {
        let clock = ManualClock::new(0);
        let policy = Policy {
            base: Duration::from_secs(60),
            ceiling: Duration::from_secs(60),
            ..POLICY
        };
        let mut backoff = backoff(policy, &clock, 1);
        clock.advance(Duration::from_millis(9_990));
        assert!(backoff.next_delay().unwrap() <= Duration::from_millis(10));
        clock.advance(Duration::from_millis(10));
        assert_eq!(
            backoff.next_delay(),
            Err(Exhausted {
                retries: 1,
                elapsed: Duration::from_secs(10)
            })
        );
    }

    #[test]
    fn a_very_long_loop_does_not_overflow() {
        let clock = ManualClock::new(0);
        let policy = Policy {
            retries_max: u32::MAX,
            ..POLICY
        };
        let mut backoff = backoff(policy, &clock, 1);
        for _ in 0..200 {
            assert!(backoff.next_delay().unwrap() <= policy.ceiling);
        }
    }

    #[tokio::test]
    async fn wait_sleeps_on_the_given_clock() {
        let clock = ManualClock::new(0);
        let mut backoff = backoff(POLICY, &clock, 5);
        let waiting = tokio::spawn(async move {
            backoff.wait().await.unwrap();
            backoff.retries()
        });
        while clock.advance_to_next().is_none() && !waiting.is_finished() {
            tokio::task::yield_now().await;
        }
        assert_eq!(waiting.await.unwrap(), 1);
    }
}
