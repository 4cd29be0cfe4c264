//! Places of partitions that could not be read lately: each waits before the owner is asked for another
//! plan, however many readers stand there and however often they come.

use std::collections::HashMap;
use std::time::Duration;

use forebay_proto::error::Failure;
use forebay_record::{Offset, PartitionId};

/// The first rest, doubling with every failure in a row.
const REST_BASE: Duration = Duration::from_millis(50);
const REST_CEILING: Duration = Duration::from_secs(1);
/// A place that nobody asked for in so long is forgotten when room is needed.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);
const PLACES_MAX: usize = 1024;

#[derive(Debug)]
struct Trouble {
    failure: Failure,
    until: Duration,
    times: u32,
}

/// Those places. Times are on one monotonic clock.
#[derive(Debug, Default)]
pub(crate) struct Troubles {
    places: HashMap<(PartitionId, Offset), Trouble>,
}

impl Troubles {
    /// Why a place is not to be read now, if it rests.
    pub(crate) fn rests(&self, place: (PartitionId, Offset), now: Duration) -> Option<Failure> {
        let trouble = self.places.get(&place)?;
        (now < trouble.until).then(|| trouble.failure.clone())
    }

    /// Whether reading a place failed the last time.
    pub(crate) fn knows(&self, place: (PartitionId, Offset)) -> bool {
        self.places.contains_key(&place)
    }

    /// A place could not be read, with none of the plans tried.
    pub(crate) fn failed(&mut self, place: (PartitionId, Offset), failure: Failure, now: Duration) {
        if self.places.len() >= PLACES_MAX && !self.places.contains_key(&place) {
            self.places
                .retain(|_, trouble| now.saturating_sub(trouble.until) < FORGOTTEN_AFTER);
            if self.places.len() >= PLACES_MAX {
                self.places.clear();
            }
        }
        let times = self.places.get(&place).map_or(0, |trouble| trouble.times);
        let rest = REST_BASE
            .saturating_mul(2_u32.saturating_pow(times.min(16)))
            .min(REST_CEILING);
        let trouble = Trouble {
            failure,
            until: now.saturating_add(rest),
            times: times.saturating_add(1),
        };
        self.places.insert(place, trouble);
    }

    /// A place was read, or will be led over.
    pub(crate) fn over(&mut self, place: (PartitionId, Offset)) {
        if !self.places.is_empty() {
            self.places.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use forebay_proto::v1::ErrorCode;

    use super::*;

    const HERE: (PartitionId, Offset) = (PartitionId(1), Offset(7));

    fn why() -> Failure {
        Failure::new(ErrorCode::Unavailable, "no replica has it")
    }

    #[test]
    fn a_place_rests_twice_as_long_with_every_failure_up_to_a_second_and_others_are_read() {
        let (mut troubles, mut now) = (Troubles::default(), Duration::from_secs(5));
        for ms in [50, 100, 200, 400, 800, 1000, 1000] {
            troubles.failed(HERE, why(), now);
            now += Duration::from_millis(ms - 1);
            assert_eq!(troubles.rests(HERE, now), Some(why()));
            now += Duration::from_millis(1);
            assert_eq!(troubles.rests(HERE, now), None);
            assert!(troubles.knows(HERE));
        }
        assert_eq!(troubles.rests((PartitionId(1), Offset(8)), now), None);
        troubles.over(HERE);
        assert!(!troubles.knows(HERE));
    }

    #[test]
    fn places_are_bounded_and_those_nobody_asks_for_go_first() {
        let (mut troubles, now) = (Troubles::default(), Duration::from_secs(5));
        for offset in 0..PLACES_MAX as u64 {
            troubles.failed((PartitionId(2), Offset(offset)), why(), now);
        }
        troubles.failed(HERE, why(), now + Duration::from_secs(60));
        assert_eq!(troubles.places.len(), 1);
    }
}
