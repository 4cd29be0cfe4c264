//! How full a node is, in steps: what each step asks for is what keeps the disk bounded.
//!
//! | level   | from | what happens                                                             |
//! |---------|------|--------------------------------------------------------------------------|
//! | calm    |  0 % | what may be deleted stays a while, for readers that catch up             |
//! | early   | 60 % | it stays only as long as configured                                      |
//! | urged   | 75 % | it goes at once; owners of the oldest segments are asked to offload them |
//! | closing | 85 % | no new segments                                                          |
//! | full    | 95 % | no data; fences, trims and reads go on                                   |
//!
//! Each step is taken back by itself once there is room again.

use crate::replica::Admission;

/// Owners are asked to free so much that this part of the room is left in use, in percent.
pub(crate) const URGE_DOWN_TO: u64 = 65;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Level {
    #[default]
    Calm,
    Early,
    Urged,
    Closing,
    Full,
}

impl Level {
    /// The level at which so much of the room is used.
    pub(crate) fn of(used: u64, room: u64) -> Self {
        let reached = |percent: u128| u128::from(used) * 100 >= u128::from(room) * percent;
        match () {
            () if reached(95) => Self::Full,
            () if reached(85) => Self::Closing,
            () if reached(75) => Self::Urged,
            () if reached(60) => Self::Early,
            () => Self::Calm,
        }
    }

    /// What is taken at this level.
    pub(crate) const fn admission(self) -> Admission {
        match self {
            Self::Calm | Self::Early | Self::Urged => Admission::All,
            Self::Closing => Admission::NoNewSegments,
            Self::Full => Admission::NoData,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_begins_exactly_at_its_percentage() {
        let at = |used| Level::of(used, 1000);
        for (from, below, level) in [
            (600, Level::Calm, Level::Early),
            (750, Level::Early, Level::Urged),
            (850, Level::Urged, Level::Closing),
            (950, Level::Closing, Level::Full),
        ] {
            assert_eq!((at(from - 1), at(from)), (below, level));
        }
        assert_eq!(Level::of(0, 0), Level::Full);
        assert_eq!(Level::of(u64::MAX, u64::MAX), Level::Full);
        assert_eq!(at(849).admission(), Admission::All);
        assert_eq!(at(850).admission(), Admission::NoNewSegments);
        assert_eq!(at(950).admission(), Admission::NoData);
    }
}
