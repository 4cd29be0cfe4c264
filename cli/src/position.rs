//! Where to begin reading, as it is written on the command line.

use forebay_client::{Offset, StartPosition};

use crate::time::{TimeError, parse_rfc3339};

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
        "expected earliest, latest, an offset, a time such as 2026-11-20T09:30:00Z, \
         or milliseconds since 1970 such as 1795167000000ms: {0}"
    )]
    Time(#[from] TimeError),
}

/// Reads `earliest`, `latest`, an offset (digits), milliseconds since 1970 (digits and `ms`), or a
/// time as RFC 3339 writes it.
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
    Ok(StartPosition::Timestamp(parse_rfc3339(text)?))
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
