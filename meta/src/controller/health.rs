//! Whether a broker that has a session is worth its partitions: a pure judgement of its pings.
//!
//! | seen                                                     | from then on |
//! |----------------------------------------------------------|--------------|
//! | a refused connection                                     | dead         |
//! | three misses within 2 s                                  | dead         |
//! | dead, and every ping of 3 s answered                     | well         |
//! | another session                                          | well         |
//!
//! A mistake costs a takeover and nothing else: fencing keeps the old owner from committing, so
//! this may be quick to judge. It must not flap, hence the 3 s.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use forebay_record::SessionId;

/// Time between two pings of a broker.
pub(super) const PING_EVERY: Duration = Duration::from_millis(500);
/// Time a ping has. Shorter than the time between two, so that each miss is counted by then.
pub(super) const PING_TIMEOUT: Duration = Duration::from_millis(400);
const MISSES_MAX: usize = 3;
const MISSES_WITHIN: Duration = Duration::from_secs(2);
const WELL_AFTER: Duration = Duration::from_secs(3);

/// Why a ping has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Nobody listens at the address, so the process is gone.
    #[error("connection refused")]
    Refused,
    /// No answer in time, or none that could be understood.
    #[error("no answer")]
    Timeout,
}

/// Why a broker counts as dead although it has a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Illness {
    /// Its address refused the connection.
    Refused,
    /// It missed three pings within 2 s.
    Silent,
}

impl fmt::Display for Illness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "connection refused",
            Self::Silent => "three pings missed within 2 s",
        })
    }
}

/// The judgement of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) session: SessionId,
    /// When the newest misses were, at most [`MISSES_MAX`].
    misses: VecDeque<Duration>,
    illness: Option<Illness>,
    /// Since when a dead broker has answered every ping.
    answers_since: Option<Duration>,
}

impl Health {
    pub(super) fn new(session: SessionId) -> Self {
        Self {
            session,
            misses: VecDeque::new(),
            illness: None,
            answers_since: None,
        }
    }

    pub(super) fn illness(&self) -> Option<Illness> {
        self.illness
    }

    /// Takes the outcome of a ping; returns whether the judgement has changed.
    pub(super) fn on_ping(&mut self, now: Duration, outcome: Result<(), ProbeError>) -> bool {
        let before = self.illness;
        match outcome {
            Ok(()) => {
                let since = *self.answers_since.get_or_insert(now);
                if self.illness.is_some() && now.saturating_sub(since) >= WELL_AFTER {
                    self.illness = None;
                    self.misses.clear();
                }
            }
            Err(error) => {
                self.answers_since = None;
                self.on_miss(now, error);
            }
        }
        before.is_some() != self.illness.is_some()
    }

    fn on_miss(&mut self, now: Duration, error: ProbeError) {
        self.misses.push_back(now);
        while self
            .misses
            .front()
            .is_some_and(|miss| now.saturating_sub(*miss) > MISSES_WITHIN)
        {
            self.misses.pop_front();
        }
        let silent = self.misses.len() >= MISSES_MAX;
        if silent {
            self.misses.pop_front();
        }
        match error {
            ProbeError::Refused => self.illness = Some(Illness::Refused),
            ProbeError::Timeout if silent => self.illness = self.illness.or(Some(Illness::Silent)),
            ProbeError::Timeout => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MISS: Result<(), ProbeError> = Err(ProbeError::Timeout);

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_refused_connection_is_death_at_once() {
        let mut health = Health::new(SessionId(1));
        assert!(!health.on_ping(at(0), Ok(())));
        assert!(health.on_ping(at(500), Err(ProbeError::Refused)));
        assert_eq!(health.illness(), Some(Illness::Refused));
    }

    #[test]
    fn three_misses_in_two_seconds_are_death_and_two_are_not() {
        let mut health = Health::new(SessionId(1));
        assert!(!health.on_ping(at(0), MISS));
        assert!(!health.on_ping(at(500), MISS));
        assert!(!health.on_ping(at(1_000), Ok(())));
        assert!(health.on_ping(at(1_500), MISS));
        assert_eq!(health.illness(), Some(Illness::Silent));
    }

    #[test]
    fn misses_that_lie_far_apart_do_not_add_up() {
        let mut health = Health::new(SessionId(1));
        for second in 0..20 {
            assert!(!health.on_ping(at(second * 1_500), MISS), "second {second}");
            assert!(!health.on_ping(at(second * 1_500 + 500), Ok(())));
        }
    }

    #[test]
    fn a_dead_broker_is_well_after_three_seconds_of_answers_only() {
        let mut health = Health::new(SessionId(1));
        health.on_ping(at(0), Err(ProbeError::Refused));
        for ms in [500, 1_000, 2_000] {
            assert!(!health.on_ping(at(ms), Ok(())));
        }
        assert!(!health.on_ping(at(2_500), MISS), "starts over");
        for ms in [3_000, 4_000, 5_999] {
            assert!(!health.on_ping(at(ms), Ok(())));
        }
        assert!(health.on_ping(at(6_000), Ok(())));
        assert_eq!(health.illness(), None);
    }
}
