//! Where to begin reading, as it is written on the command line.

use std::time::SystemTime;

use forebay_client::{Offset, StartPosition};
use forebay_runtime::config::HumanDuration;

use forebay_runtime::time::{TimeError, parse_rfc3339};

/// Why a text names no place to begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PositionError {
    /// Digits only, too many of them.
    #[error("offset {0} is larger than any that exists")]
    Offset(String),
    /// `ms` after something that is no number.
    #[error("\"{0}\" before ms is no number of milliseconds since 1970")]
    Milliseconds(String),
    /// Neither of those, nor a time.
    #[error(
        "expected earliest, latest, an offset, a time such as 2026-11-20T09:30:00Z or 10min ago as 10min, \
         or milliseconds since 1970 such as 1795167000000ms: {0}"
    )]
    Time(#[from] TimeError),
    /// As [`PositionError::Time`], where an offset is not what is asked for.
    #[error(
        "expected earliest, latest, a time such as 2026-11-20T09:30:00Z or 10min ago as 10min, \
         or milliseconds since 1970 such as 1795167000000: {0}"
    )]
    Place(TimeError),
}

/// Reads `earliest`, `latest`, an offset (digits), milliseconds since 1970 (digits and `ms`), a
/// time as RFC 3339 writes it, or how long ago it was (`10min`, `2h`).
pub fn parse_position(text: &str) -> Result<StartPosition, PositionError> {
    if text == "earliest" {
        return Ok(StartPosition::Earliest);
    }
    if text == "latest" {
        return Ok(StartPosition::Latest);
    }
    if let Some(number) = text.strip_suffix("ms") {
        let parsed = number
            .parse()
            .map_err(|_malformed| PositionError::Milliseconds(number.to_owned()));
        return parsed.map(StartPosition::Timestamp);
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let parsed = text
            .parse()
            .map_err(|_too_large| PositionError::Offset(text.to_owned()));
        return parsed.map(|offset| StartPosition::At(Offset(offset)));
    }
    Ok(StartPosition::Timestamp(parse_time(text, now_ms())?))
}

/// As [`parse_position`], but digits alone are milliseconds since 1970 too: whoever asks where
/// something lies does not know its offset.
pub fn parse_place(text: &str) -> Result<StartPosition, PositionError> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let parsed = text.parse();
        return parsed
            .map(StartPosition::Timestamp)
            .map_err(|_too_large| PositionError::Milliseconds(text.to_owned()));
    }
    parse_position(text).map_err(|error| match error {
        PositionError::Time(error) => PositionError::Place(error),
        error => error,
    })
}

/// A time as RFC 3339 writes it, or so long before now; a bare `m` is a minute.
fn parse_time(text: &str, now_ms: i64) -> Result<i64, TimeError> {
    let minutes = text.strip_suffix('m').map(|number| format!("{number}min"));
    match minutes.as_deref().unwrap_or(text).parse::<HumanDuration>() {
        Ok(ago) => {
            let ago_ms = i64::try_from(ago.get().as_millis()).unwrap_or(i64::MAX);
            Ok(now_ms.saturating_sub(ago_ms))
        }
        Err(_no_duration) => parse_rfc3339(text),
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn each_form_names_its_place() {
        for (text, expected) in [
            ("earliest", StartPosition::Earliest),
            ("latest", StartPosition::Latest),
            ("0", StartPosition::At(Offset(0))),
            ("18446744073709551615", StartPosition::At(Offset(u64::MAX))),
            ("1700000000000ms", StartPosition::Timestamp(1_700_000_000_000)),
            ("-1ms", StartPosition::Timestamp(-1)),
            ("1970-01-01T00:00:01Z", StartPosition::Timestamp(1_000)),
        ] {
            assert_eq!(parse_position(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_span_is_a_time_so_long_ago() {
        let now = 1_700_000_000_000;
        for (text, ago_s) in [
            ("10m", 600),
            ("10min", 600),
            ("90s", 90),
            ("2h", 7_200),
            ("1d", 86_400),
        ] {
            assert_eq!(parse_time(text, now), Ok(now - ago_s * 1000), "{text}");
        }
        assert!(parse_time("m", now).is_err());
        let Ok(StartPosition::Timestamp(at)) = parse_position("1h") else {
            unreachable!("a span is a time")
        };
        assert!((now_ms() - 3_600_000 - at).abs() < 60_000);
    }

    #[test]
    fn digits_are_a_time_where_an_offset_is_asked_for() {
        assert_eq!(
            parse_place("1700000000000"),
            Ok(StartPosition::Timestamp(1_700_000_000_000))
        );
        assert_eq!(parse_place("17ms"), Ok(StartPosition::Timestamp(17)));
        assert_eq!(parse_place("latest"), Ok(StartPosition::Latest));
        assert_eq!(
            parse_place("1970-01-01T00:00:01Z"),
            Ok(StartPosition::Timestamp(1_000))
        );
        let error = parse_place("yesterday").unwrap_err().to_string();
        assert!(
            error.contains("milliseconds") && !error.contains("an offset"),
            "{error}"
        );
        assert!(parse_place("99999999999999999999").is_err());
    }

    #[test]
    fn the_error_says_what_is_wrong() {
        for (text, words) in [
            ("18446744073709551616", "larger"),
            ("soonms", "\"soon\""),
            ("ms", "milliseconds"),
            ("", "expected earliest"),
            ("Earliest", "expected earliest"),
            ("-1", "expected earliest"),
            ("2026-02-30T00:00:00Z", "day 30 does not exist"),
        ] {
            let error = parse_position(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
