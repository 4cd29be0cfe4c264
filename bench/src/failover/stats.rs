//! Medians and extremes of a few measurements.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// A duration in milliseconds.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A quantile of sorted values, the nearest one; zero where there are none.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = (part * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}

/// Where some measurements lie.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    /// Of any number of measurements.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self {
            min: quantile(&values, 0.0),
            median: quantile(&values, 0.5),
            max: quantile(&values, 1.0),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "median {:.0}, {:.0} to {:.0}", self.median, self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_middle_and_both_ends() {
        let spread = Spread::of(vec![5.0, 1.0, 9.0]);
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 5.0, 9.0));
        let nothing = Spread::of(Vec::new());
        assert_eq!(nothing.max, 0.0);
    }
}
