//! From the client library's errors to what the caller can do about them.
//!
//! The library keeps a response's status in a private type, but prints it; so the text decides
//! where the variant does not.

use std::error::Error as _;

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};

use crate::error::StoreError;

/// Longest reason passed on.
const REASON_BYTES_MAX: usize = 400;

/// S3's error codes that mean: someone must change something.
const REFUSALS: [(&str, &str); 12] = [
    (
        "NoSuchBucket",
        "the bucket does not exist: create it, or correct object_store.url",
    ),
    ("InvalidBucketName", "correct the bucket in object_store.url"),
    (
        "InvalidAccessKeyId",
        "the store does not know object_store.access_key_id",
    ),
    (
        "SignatureDoesNotMatch",
        "object_store.secret_access_key is not the access key's secret",
    ),
    ("InvalidToken", "object_store.session_token is not valid"),
    ("ExpiredToken", "object_store.session_token has expired"),
    (
        "RequestTimeTooSkewed",
        "this machine's clock differs from the store's",
    ),
    ("AuthorizationHeaderMalformed", "check object_store.region"),
    (
        "PermanentRedirect",
        "the bucket is in another region: set object_store.region or endpoint",
    ),
    (
        "IllegalLocationConstraint",
        "the bucket is in another region: set object_store.region",
    ),
    (
        "AccessDenied",
        "the credentials may not do this in this bucket: check its policy",
    ),
    ("AccountProblem", "check the account"),
];

/// S3's error codes that come with a status of refusal and mean: not this time.
const TRANSIENT: [&str; 7] = [
    "RequestTimeout",
    "SlowDown",
    "BadDigest",
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "InternalError",
    "OperationAborted",
];

const REDIRECT_HINT: &str = "check object_store.region and object_store.endpoint";
const FORBIDDEN_HINT: &str = "check object_store.access_key_id, its secret and its rights in this bucket";
const REQUEST_HINT: &str = "check object_store.url, endpoint and region";

/// What was asked, of which object, where.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub place: &'a str,
    pub op: &'static str,
    pub name: &'a str,
}

impl Asked<'_> {
    pub fn not_found(self) -> StoreError {
        StoreError::NotFound {
            place: self.place.to_owned(),
            name: self.name.to_owned(),
        }
    }

    pub fn refused(self, reason: impl Into<String>, hint: &'static str) -> StoreError {
        StoreError::Refused {
            place: self.place.to_owned(),
            op: self.op,
            name: self.name.to_owned(),
            reason: reason.into(),
            hint,
        }
    }

    pub fn unavailable(self, reason: impl Into<String>) -> StoreError {
        StoreError::Unavailable {
            place: self.place.to_owned(),
            op: self.op,
            name: self.name.to_owned(),
            reason: reason.into(),
        }
    }

    pub fn corrupt(self, reason: impl Into<String>) -> StoreError {
        StoreError::Corrupt {
            place: self.place.to_owned(),
            name: self.name.to_owned(),
            reason: reason.into(),
        }
    }

    /// The class of a library's error.
    pub fn classify(self, error: &Error) -> StoreError {
        let text = full_text(error);
        let has = |code: &str| {
            text.contains(&format!("<Code>{code}</Code>")) || text.contains(&format!("code: {code}"))
        };
        if TRANSIENT.into_iter().any(has) {
            return self.unavailable(reason(&text));
        }
        if let Some((_, hint)) = REFUSALS.into_iter().find(|(code, _)| has(code)) {
            return self.refused(reason(&text), hint);
        }
        match error {
            Error::NotFound { .. } => self.not_found(),
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                self.refused(reason(&text), FORBIDDEN_HINT)
            }
            Error::InvalidPath { .. }
            | Error::NotSupported { .. }
            | Error::NotImplemented { .. }
            | Error::UnknownConfigurationKey { .. } => self.refused(reason(&text), REQUEST_HINT),
            _ => self.classify_text(error, &text),
        }
    }

    fn classify_text(self, error: &Error, text: &str) -> StoreError {
        match status(text) {
            Some(401 | 403) => self.refused(reason(text), FORBIDDEN_HINT),
            Some(404) => self.not_found(),
            Some(400 | 405 | 411 | 501) => self.refused(reason(text), REQUEST_HINT),
            Some(416) => self.corrupt("it ends before the range that was asked for"),
            Some(_) => self.unavailable(reason(text)),
            None if text.contains("redirect without LOCATION") => {
                self.refused("redirected without a place to go", REDIRECT_HINT)
            }
            None if text.contains("Wanted range starting at") => {
                self.corrupt("it ends before the range that was asked for")
            }
            None => match io_kind(error) {
                Some(std::io::ErrorKind::PermissionDenied) => {
                    self.refused(reason(text), "check who may write in this folder")
                }
                _ => self.unavailable(reason(text)),
            },
        }
    }
}

/// The texts of an error and all it comes from, without repetitions.
pub(super) fn full_text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        if let Some(http) = cause.downcast_ref::<HttpError>() {
            text.push_str(match http.kind() {
                HttpErrorKind::Connect => " (no connection)",
                HttpErrorKind::Timeout => " (timeout)",
                _ => "",
            });
        }
        source = cause.source();
    }
    text
}

fn io_kind(error: &Error) -> Option<std::io::ErrorKind> {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        source = cause.source();
    }
    None
}

/// The HTTP status that the library prints.
fn status(text: &str) -> Option<u16> {
    let (_, after) = text.split_once("status code: ")?;
    after.get(..3)?.parse().ok()
}

/// What an operator should read of a library's text: S3's code and message, else the beginning.
fn reason(text: &str) -> String {
    let tag = |name: &str| {
        let (_, after) = text.split_once(&format!("<{name}>"))?;
        let (inside, _) = after.split_once(&format!("</{name}>"))?;
        Some(inside.trim().to_owned())
    };
    let mut reason = match (tag("Code"), tag("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code,
        _ => text.split_whitespace().collect::<Vec<_>>().join(" "),
    };
    if reason.len() > REASON_BYTES_MAX {
        let mut end = REASON_BYTES_MAX;
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
        reason.push('…');
    }
    reason
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ASKED: Asked<'static> = Asked {
        place: "s3://tier",
        op: "put",
        name: "d/1",
    };

    fn generic(text: &str) -> Error {
        Error::Generic {
            store: "S3",
            source: text.to_owned().into(),
        }
    }

    fn outcome(text: &str) -> &'static str {
        ASKED.classify(&generic(text)).outcome()
    }

    #[test]
    fn codes_and_statuses_have_their_class() {
        assert_eq!(
            outcome("status code: 404 Not Found: <Code>NoSuchBucket</Code>"),
            "refused"
        );
        assert_eq!(outcome("status code: 403 Forbidden: "), "refused");
        assert_eq!(
            outcome("status code: 503 Service Unavailable: SlowDown"),
            "unavailable"
        );
        assert_eq!(outcome("status code: 416 Range Not Satisfiable: "), "corrupt");
        assert_eq!(outcome("status code: 409 Conflict: "), "unavailable");
        assert_eq!(outcome("connection reset"), "unavailable");
        let timeout = "status code: 400 Bad Request: <Code>RequestTimeout</Code>";
        assert_eq!(outcome(timeout), "unavailable");
        assert_eq!(outcome("status code: 400 Bad Request: "), "refused");
        let missing = Error::NotFound {
            path: "d/1".to_owned(),
            source: "status code: 404 Not Found: <Code>NoSuchKey</Code>".into(),
        };
        assert_eq!(ASKED.classify(&missing).outcome(), "not_found");
    }

    #[test]
    fn the_reason_is_the_stores_own_and_bounded() {
        let text = "x <Code>NoSuchBucket</Code><Message>The bucket is gone</Message> y";
        assert_eq!(reason(text), "NoSuchBucket: The bucket is gone");
        assert!(reason(&"ä".repeat(1000)).len() <= REASON_BYTES_MAX + 3);
    }
}
