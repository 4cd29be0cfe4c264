//! Times of day as RFC 3339 writes them, in milliseconds since 1970.
//!
//! Proleptic Gregorian calendar, years 0000 to 9999, as the standard has them. Parsing takes
//! exactly what the standard allows, and names the part that is wrong.

const DAY_S: i64 = 86_400;

/// Why a text is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// The text has another shape.
    #[error("not of the form 2026-11-20T09:30:00Z or 2026-11-20T09:30:00.250+01:00")]
    Shape,
    /// A part has a value that does not exist.
    #[error("{part} {value} does not exist")]
    Range {
        /// Which part.
        part: &'static str,
        /// What it says.
        value: i64,
    },
}

/// A date and a time of day in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Civil {
    /// As it is written; 0 is the year before 1.
    pub year: i64,
    /// From 1.
    pub month: i64,
    /// From 1.
    pub day: i64,
    /// From 0.
    pub hour: i64,
    /// From 0.
    pub minute: i64,
    /// From 0.
    pub second: i64,
}

/// Milliseconds since 1970 of an RFC 3339 time. A fraction finer than that is rounded up, so that
/// nothing before the time is at or after the answer.
///
/// # Errors
/// Where the text is not of the standard's form, or names a time that does not exist.
pub fn parse_rfc3339(text: &str) -> Result<i64, TimeError> {
    let mut rest = Scan(text.as_bytes());
    let year = rest.digits(4)?;
    rest.one_of(b"-")?;
    let month = rest.digits(2)?;
    rest.one_of(b"-")?;
    let day = rest.digits(2)?;
    rest.one_of(b"Tt ")?;
    let hour = rest.digits(2)?;
    rest.one_of(b":")?;
    let minute = rest.digits(2)?;
    rest.one_of(b":")?;
    let second = rest.digits(2)?;
    let fraction_ms = rest.fraction()?;
    let offset_s = rest.offset()?;
    if !rest.0.is_empty() {
        return Err(TimeError::Shape);
    }
    within("month", month, 1, 12)?;
    within("day", day, 1, days_in_month(year, month))?;
    within("hour", hour, 0, 23)?;
    within("minute", minute, 0, 59)?;
    within("second", second, 0, 60)?;
    let days = days_since_1970(year, month, day);
    let seconds = days * DAY_S + hour * 3600 + minute * 60 + second - offset_s;
    // A leap second is the last of a day in UTC; it is counted as the one after it.
    if second == 60 && seconds.rem_euclid(DAY_S) != 0 {
        return Err(TimeError::Range {
            part: "second",
            value: second,
        });
    }
    Ok(seconds * 1000 + fraction_ms)
}

/// The date and time of day at a second since 1970.
pub fn civil(seconds: i64) -> Civil {
    let (days, of_day) = (seconds.div_euclid(DAY_S), seconds.rem_euclid(DAY_S));
    // Years that begin in March: the leap day is then the last of its year. 719,468 days lie
    // between the first of March of the year 0 and 1970; 146,097 are in 400 years.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    Civil {
        year: era * 400 + year_of_era + i64::from(month <= 2),
        month,
        day: of_year - (153 * from_march + 2) / 5 + 1,
        hour: of_day / 3600,
        minute: of_day / 60 % 60,
        second: of_day % 60,
    }
}

/// Milliseconds since 1970 as RFC 3339 writes them, in UTC. A year that it cannot write is left as
/// the number.
pub fn rfc3339(ms: i64) -> String {
    let Civil {
        year,
        month,
        day,
        hour,
        minute,
        second,
    } = civil(ms.div_euclid(1000));
    if !(0..=9999).contains(&year) {
        return ms.to_string();
    }
    let fraction = ms.rem_euclid(1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:03}Z")
}

/// The inverse of the date in [`civil`].
pub fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let from_march = (month + 9) % 12;
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn days_in_month(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

const fn within(part: &'static str, value: i64, least: i64, most: i64) -> Result<(), TimeError> {
    if value < least || value > most {
        Err(TimeError::Range { part, value })
    } else {
        Ok(())
    }
}

/// What is left of the text.
struct Scan<'a>(&'a [u8]);

impl Scan<'_> {
    fn digit(&mut self) -> Option<i64> {
        let (first, rest) = self.0.split_first()?;
        if !first.is_ascii_digit() {
            return None;
        }
        self.0 = rest;
        Some(i64::from(first - b'0'))
    }

    fn digits(&mut self, count: usize) -> Result<i64, TimeError> {
        (0..count).try_fold(0, |number, _| {
            Ok(number * 10 + self.digit().ok_or(TimeError::Shape)?)
        })
    }

    fn one_of(&mut self, allowed: &[u8]) -> Result<u8, TimeError> {
        match self.0.split_first() {
            Some((first, rest)) if allowed.contains(first) => {
                self.0 = rest;
                Ok(*first)
            }
            _ => Err(TimeError::Shape),
        }
    }

    /// Milliseconds of `.` and at least one digit, rounded up; 0 where there is none.
    fn fraction(&mut self) -> Result<i64, TimeError> {
        if self.one_of(b".").is_err() {
            return Ok(0);
        }
        let mut milliseconds = self.digits(1)? * 100;
        let mut weight = 10;
        let mut finer = 0;
        while let Some(digit) = self.digit() {
            milliseconds += digit * weight;
            finer |= if weight == 0 { digit } else { 0 };
            weight /= 10;
        }
        Ok(milliseconds + i64::from(finer != 0))
    }

    /// Seconds that the written time is ahead of UTC.
    fn offset(&mut self) -> Result<i64, TimeError> {
        let sign = match self.one_of(b"Zz+-")? {
            b'+' => 1,
            b'-' => -1,
            _ => return Ok(0),
        };
        let hours = self.digits(2)?;
        self.one_of(b":")?;
        let minutes = self.digits(2)?;
        within("offset hour", hours, 0, 23)?;
        within("offset minute", minutes, 0, 59)?;
        Ok(sign * (hours * 3600 + minutes * 60))
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
    fn known_times_are_known_numbers() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01t00:00:00.001z", 1),
            ("1969-12-31T23:59:59.999Z", -1),
            ("2000-02-29 12:00:00Z", 951_825_600_000),
            ("2001-09-09T01:46:40Z", 1_000_000_000_000),
            ("2001-09-09T03:46:40+02:00", 1_000_000_000_000),
            ("2001-09-08T20:16:40-05:30", 1_000_000_000_000),
            ("2001-09-09T01:46:40-00:00", 1_000_000_000_000),
            ("2016-12-31T23:59:60Z", 1_483_228_800_000),
            ("2017-01-01T00:59:60+01:00", 1_483_228_800_000),
            ("0000-01-01T00:00:00Z", -62_167_219_200_000),
            ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
        ] {
            assert_eq!(parse_rfc3339(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_fraction_is_rounded_up_to_milliseconds() {
        for (fraction, expected) in [
            (".5", 500),
            (".25", 250),
            (".123", 123),
            (".1230000", 123),
            (".1230001", 124),
            (".9999", 1000),
        ] {
            assert_eq!(
                parse_rfc3339(&format!("1970-01-01T00:00:00{fraction}Z")),
                Ok(expected),
                "{fraction}"
            );
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "now",
            "2026-11-20",
            "2026-11-20T09:30Z",
            "2026-11-20T09:30:00",
            "2026-11-20T09:30:00.Z",
            "2026-11-20T09:30:00+0100",
            "2026-11-20T09:30:00Z ",
            "26-11-20T09:30:00Z",
            "2026-1-20T09:30:00Z",
            "2026-11-20X09:30:00Z",
            "+026-11-20T09:30:00Z",
            "2026-11-20T09:30:00,5Z",
        ] {
            assert_eq!(parse_rfc3339(text), Err(TimeError::Shape), "{text}");
        }
        for (text, part) in [
            ("2026-13-01T00:00:00Z", "month"),
            ("2026-00-01T00:00:00Z", "month"),
            ("2026-02-29T00:00:00Z", "day"),
            ("1900-02-29T00:00:00Z", "day"),
            ("2026-04-31T00:00:00Z", "day"),
            ("2026-04-00T00:00:00Z", "day"),
            ("2026-04-01T24:00:00Z", "hour"),
            ("2026-04-01T23:60:00Z", "minute"),
            ("2026-04-01T23:59:61Z", "second"),
            ("2026-04-01T12:00:60Z", "second"),
            ("2026-04-01T12:00:00+24:00", "offset hour"),
            ("2026-04-01T12:00:00+00:60", "offset minute"),
        ] {
            match parse_rfc3339(text) {
                Err(TimeError::Range { part: named, .. }) => assert_eq!(named, part, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn a_printed_second_parses_to_itself(seconds in -62_167_219_200_i64..253_402_300_800) {
            let Civil { year, month, day, hour, minute, second } = civil(seconds);
            let text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z");
            prop_assert_eq!(parse_rfc3339(&text), Ok(seconds * 1000));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            parse_rfc3339(&text).ok();
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut before = civil(days_since_1970(1599, 12, 31) * DAY_S);
        for day in days_since_1970(1600, 1, 1)..=days_since_1970(2001, 1, 1) {
            let today = civil(day * DAY_S);
            let same_month =
                (today.year, today.month, today.day) == (before.year, before.month, before.day + 1);
            let new_month = today.day == 1 && before.day == days_in_month(before.year, before.month);
            assert!(same_month || new_month, "{before:?} then {today:?}");
            before = today;
        }
    }

    #[test]
    fn a_time_is_written_as_it_is_read() {
        for ms in [
            0,
            1,
            -1,
            1_700_000_000_123,
            253_402_300_799_999,
            -62_167_219_200_000,
        ] {
            assert_eq!(parse_rfc3339(&rfc3339(ms)), Ok(ms), "{ms}");
        }
        assert_eq!(rfc3339(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(rfc3339(i64::MAX), i64::MAX.to_string());
        assert_eq!(rfc3339(i64::MIN), i64::MIN.to_string());
    }
}
