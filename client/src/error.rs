//! What a server says when it refuses, as every operation's error carries it.

use forebay_proto::error::{Failure, row};
use forebay_proto::v1::{self, ErrorCode, RetryClass};
use tonic::{Code, Status};

/// A refusal: its code, what may be done next, and a sentence that names what was wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What was wrong.
    pub code: ErrorCode,
    /// Whether repeating the request can help, and whether it may have been applied.
    pub retry: RetryClass,
    /// Names the ids involved and the values compared.
    pub message: String,
}

impl Refusal {
    /// A refusal made on this side.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            retry: row(code).retry,
            message: message.into(),
        }
    }

    /// Whether nothing was applied and the same request may succeed later.
    #[must_use]
    pub const fn is_retriable(&self) -> bool {
        matches!(self.retry, RetryClass::Here | RetryClass::Elsewhere)
    }

    /// Whether the request may have been applied.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        matches!(self.retry, RetryClass::Unknown | RetryClass::Unspecified)
    }
}

impl From<v1::Error> for Refusal {
    fn from(error: v1::Error) -> Self {
        let code = error.code();
        let retry = match error.retry() {
            RetryClass::Unspecified => row(code).retry,
            stated => stated,
        };
        Self {
            code,
            retry,
            message: error.message,
        }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Failure::from(status).into()
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self {
            retry: failure.retry(),
            code: failure.code,
            message: failure.message,
        }
    }
}

/// Whether a status came from the transport and not from a Forebay server: the connection it
/// came over is then not to be trusted with the next request.
pub(crate) fn is_transport(status: &Status) -> bool {
    status.details().is_empty()
        && matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
        )
}
