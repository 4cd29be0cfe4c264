//! How long to wait before trying again.
//!
//! Doubles from a least to a most, and spreads callers who failed together over the upper half of
//! the interval. Pure: randomness is passed in.

use std::time::Duration;

/// Waits of a retry loop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    pub least: Duration,
    pub most: Duration,
}

impl Backoff {
    /// From a short hiccup to about one try a second.
    pub(crate) const DEFAULT: Self = Self {
        least: Duration::from_millis(20),
        most: Duration::from_secs(1),
    };

    /// The wait after that many failures in a row, the first being 1.
    pub(crate) fn delay(&self, failures: u32, random: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let full = self.least.saturating_mul(1 << doublings).min(self.most);
        let half = full / 2;
        half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

/// A cheap generator for spreading waits; never for anything secret.
#[derive(Debug)]
pub(crate) struct Spread(u64);

impl Spread {
    /// Seeded by the system; where it gives no randomness, waits are merely not spread apart.
    pub(crate) fn seeded() -> Self {
        Self(getrandom::u64().unwrap_or(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub(crate) const fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_most_and_stay_in_the_upper_half() {
        let backoff = Backoff {
            least: Duration::from_millis(10),
            most: Duration::from_millis(100),
        };
        for (failures, full) in [(1, 10), (2, 20), (3, 40), (4, 80), (5, 100), (1000, 100)] {
            let full = Duration::from_millis(full);
            assert_eq!(backoff.delay(failures, 0), full / 2, "after {failures}");
            assert_eq!(backoff.delay(failures, u32::MAX), full, "after {failures}");
        }
    }
}
