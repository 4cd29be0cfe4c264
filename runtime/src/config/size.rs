//! Sizes and durations as people write them: `"64MiB"`, `"200ms"`.
//!
//! Only binary units are taken for sizes, so that a size has one meaning; a duration always
//! carries its unit. Parsing is checked for overflow, and `Display` prints the largest unit that
//! divides the value exactly, so that what is printed parses back to the same value.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// A number of bytes. Written `"64MiB"`, `"1GiB"` or as a bare number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(u64);

/// A time span. Written with a unit: `"200ms"`, `"10s"`, `"10min"`, `"1h"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HumanDuration(Duration);

/// Why a text is no size or no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseUnitError {
    /// There is no whole number at the front.
    #[error("{text:?} does not start with a whole number")]
    Number {
        /// The text as given.
        text: String,
    },
    /// The unit is missing or unknown.
    #[error("{text:?} needs one of the units {known}")]
    Unit {
        /// The text as given.
        text: String,
        /// The units that are understood.
        known: &'static str,
    },
    /// The value does not fit.
    #[error("{text:?} is larger than {largest}")]
    TooLarge {
        /// The text as given.
        text: String,
        /// The largest value that fits.
        largest: &'static str,
    },
}

/// Largest first, as `Display` tries them.
const SIZE_UNITS: [(&str, u64); 6] = [
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Nanoseconds, largest first, as `Display` tries them.
const DURATION_UNITS: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("min", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

impl ByteSize {
    /// `bytes` bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// `kib` times 1024 bytes, at most `u64::MAX` bytes.
    pub const fn kib(kib: u64) -> Self {
        Self(kib.saturating_mul(1 << 10))
    }

    /// `mib` times 1024² bytes, at most `u64::MAX` bytes.
    pub const fn mib(mib: u64) -> Self {
        Self(mib.saturating_mul(1 << 20))
    }

    /// `gib` times 1024³ bytes, at most `u64::MAX` bytes.
    pub const fn gib(gib: u64) -> Self {
        Self(gib.saturating_mul(1 << 30))
    }

    /// The number of bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The number of bytes, `usize::MAX` if it does not fit.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl HumanDuration {
    /// `ms` milliseconds.
    pub const fn millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    /// `s` seconds.
    pub const fn secs(s: u64) -> Self {
        Self(Duration::from_secs(s))
    }

    /// The span as the standard library has it.
    pub const fn get(self) -> Duration {
        self.0
    }

    /// Whole milliseconds, `u64::MAX` if there are more.
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl From<ByteSize> for u64 {
    fn from(size: ByteSize) -> Self {
        size.0
    }
}

impl From<Duration> for HumanDuration {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.0
    }
}

impl FromStr for ByteSize {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, ParseUnitError> {
        let (number, unit) = split_unit(text)?;
        let unit = if unit.is_empty() { "B" } else { unit };
        let Some((_, factor)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) else {
            let known = "B, KiB, MiB, GiB, TiB, PiB";
            return Err(ParseUnitError::Unit {
                text: text.to_owned(),
                known,
            });
        };
        let bytes = number.and_then(|number| number.checked_mul(*factor));
        bytes.map(Self).ok_or_else(|| ParseUnitError::TooLarge {
            text: text.to_owned(),
            largest: "18446744073709551615B",
        })
    }
}

impl FromStr for HumanDuration {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, ParseUnitError> {
        let (number, unit) = split_unit(text)?;
        let Some((_, factor)) = DURATION_UNITS.iter().find(|(name, _)| *name == unit) else {
            let known = "ns, us, ms, s, min, h, d";
            return Err(ParseUnitError::Unit {
                text: text.to_owned(),
                known,
            });
        };
        let nanos = number.and_then(|number| number.checked_mul(*factor));
        nanos
            .map(|nanos| Self(Duration::from_nanos(nanos)))
            .ok_or_else(|| ParseUnitError::TooLarge {
                text: text.to_owned(),
                largest: "213503d",
            })
    }
}

/// The number (`None` when it does not fit 64 bits) and the unit behind it.
fn split_unit(text: &str) -> Result<(Option<u64>, &str), ParseUnitError> {
    let trimmed = text.trim();
    let digits_end = trimmed
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(trimmed.len());
    let (digits, unit) = trimmed.split_at(digits_end);
    if digits.is_empty() {
        return Err(ParseUnitError::Number {
            text: text.to_owned(),
        });
    }
    Ok((digits.parse().ok(), unit.trim_start()))
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_unit(f, self.0, &SIZE_UNITS, "B")
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Beyond 584 years nanoseconds no longer fit; no setting is that long, and a default of
        // Duration::MAX reads as the largest span that parses.
        let nanos = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        write_unit(f, nanos, &DURATION_UNITS, "s")
    }
}

fn write_unit(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)], zero_unit: &str) -> fmt::Result {
    let text = units
        .iter()
        .find(|(_, factor)| value != 0 && value.is_multiple_of(*factor))
        .map_or_else(
            || format!("0{zero_unit}"),
            |(name, factor)| format!("{}{name}", value / factor),
        );
    f.pad(&text)
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ByteSizeVisitor)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(HumanDurationVisitor)
    }
}

struct ByteSizeVisitor;

impl Visitor<'_> for ByteSizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as \"64MiB\"")
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
        Ok(ByteSize(bytes))
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
        let unsigned = u64::try_from(bytes);
        unsigned
            .map(ByteSize)
            .map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
        text.parse().map_err(E::custom)
    }
}

struct HumanDurationVisitor;

impl Visitor<'_> for HumanDurationVisitor {
    type Value = HumanDuration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration such as \"200ms\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<HumanDuration, E> {
        text.parse().map_err(E::custom)
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

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_parse_and_print_in_the_largest_exact_unit() {
        for (text, bytes, printed) in [
            ("64MiB", 64 << 20, "64MiB"),
            ("1GiB", 1 << 30, "1GiB"),
            ("4096", 4096, "4KiB"),
            ("1000", 1000, "1000B"),
            (" 12 KiB ", 12 << 10, "12KiB"),
            ("1024MiB", 1 << 30, "1GiB"),
            ("0", 0, "0B"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(
                (size.as_u64(), size.to_string().as_str()),
                (bytes, printed),
                "{text}"
            );
        }
    }

    #[test]
    fn durations_parse_and_print_in_the_largest_exact_unit() {
        for (text, ms, printed) in [
            ("200ms", 200, "200ms"),
            ("10s", 10_000, "10s"),
            ("10min", 600_000, "10min"),
            ("1h", 3_600_000, "1h"),
            ("90min", 5_400_000, "90min"),
            ("7d", 604_800_000, "7d"),
            ("1500ms", 1_500, "1500ms"),
            ("0s", 0, "0s"),
        ] {
            let duration: HumanDuration = text.parse().unwrap();
            assert_eq!(
                (duration.as_millis(), duration.to_string().as_str()),
                (ms, printed)
            );
        }
    }

    #[test]
    fn a_size_that_overflows_is_refused() {
        assert_eq!("16383PiB".parse::<ByteSize>().unwrap().as_u64(), 16_383 << 50);
        for text in ["16384PiB", "18446744073709551616", "99999999999999999999999KiB"] {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert!(
                matches!(error, ParseUnitError::TooLarge { .. }),
                "{text}: {error}"
            );
        }
        let error = "213504d".parse::<HumanDuration>().unwrap_err();
        assert_eq!(error.to_string(), "\"213504d\" is larger than 213503d");
    }

    #[test]
    fn unknown_units_fractions_and_signs_are_refused() {
        for text in ["64MB", "64mib", "1.5GiB", "10 %"] {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert!(matches!(error, ParseUnitError::Unit { .. }), "{text}: {error}");
        }
        for text in ["", "MiB", "-1MiB", "+1"] {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert!(matches!(error, ParseUnitError::Number { .. }), "{text}: {error}");
        }
        let error = "10".parse::<HumanDuration>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"10\" needs one of the units ns, us, ms, s, min, h, d"
        );
        assert!("10m".parse::<HumanDuration>().is_err());
    }

    #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
    struct Both {
        size: ByteSize,
        wait: HumanDuration,
    }

    #[test]
    fn serde_takes_text_and_numbers_and_gives_text() {
        let both: Both = toml::from_str("size = 4096\nwait = '10min'").unwrap();
        assert_eq!(
            both,
            Both {
                size: ByteSize::kib(4),
                wait: HumanDuration::secs(600)
            }
        );
        assert_eq!(
            toml::to_string(&both).unwrap(),
            "size = \"4KiB\"\nwait = \"10min\"\n"
        );
        assert!(toml::from_str::<Both>("size = -1\nwait = '1s'").is_err());
        assert!(toml::from_str::<Both>("size = 1\nwait = 10").is_err());
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(value: u64) {
            let size = ByteSize::bytes(value);
            prop_assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
            let wait = HumanDuration(Duration::from_nanos(value));
            prop_assert_eq!(wait.to_string().parse::<HumanDuration>().unwrap(), wait);
        }
    }
}
