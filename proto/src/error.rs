//! One table for every refusal: gRPC status, Kafka error code, and what the caller does next.

use bytes::Bytes;
use prost::Message as _;
use tonic::{Code, Status};

use crate::v1::{self, ErrorCode, RetryClass};

/// How one [`ErrorCode`] looks to each kind of caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorRow {
    /// gRPC status of a call that fails as a whole.
    pub grpc: Code,
    /// Error code of the Kafka protocol.
    pub kafka: i16,
    /// What the caller should do.
    pub retry: RetryClass,
}

/// The row of a code.
#[must_use]
pub const fn row(code: ErrorCode) -> ErrorRow {
    use ErrorCode as E;
    use RetryClass as R;
    let (grpc, kafka, retry) = match code {
        E::Unspecified | E::Internal => (Code::Internal, -1, R::Unknown),
        E::InvalidRequest => (Code::InvalidArgument, 42, R::Reject),
        E::UnknownTopic | E::UnknownPartition => (Code::NotFound, 3, R::Reject),
        E::TopicExists => (Code::AlreadyExists, 36, R::Reject),
        E::InvalidTopicName => (Code::InvalidArgument, 17, R::Reject),
        E::InvalidPartitionCount => (Code::InvalidArgument, 37, R::Reject),
        E::CorruptBatch => (Code::InvalidArgument, 2, R::Reject),
        E::InvalidBatch => (Code::InvalidArgument, 87, R::Reject),
        E::BatchTooLarge => (Code::InvalidArgument, 10, R::Reject),
        E::UnsupportedCompression => (Code::InvalidArgument, 76, R::Reject),
        E::UnsupportedFormat => (Code::InvalidArgument, 43, R::Reject),
        E::NotOwner => (Code::Unavailable, 6, R::Elsewhere),
        E::StaleEpoch => (Code::FailedPrecondition, 74, R::Elsewhere),
        E::UnknownEpoch => (Code::FailedPrecondition, 75, R::Here),
        E::NotEnoughReplicas => (Code::Unavailable, 19, R::Here),
        E::OutcomeUnknown => (Code::Unknown, 7, R::Unknown),
        E::Timeout => (Code::DeadlineExceeded, 7, R::Here),
        E::Overloaded => (Code::ResourceExhausted, 89, R::Here),
        E::Unavailable | E::ShuttingDown => (Code::Unavailable, 8, R::Here),
        E::DiskFull => (Code::ResourceExhausted, 56, R::Here),
        E::OffsetOutOfRange => (Code::OutOfRange, 1, R::Reject),
        E::CorruptLog => (Code::DataLoss, 56, R::Here),
        E::OutOfOrderSequence => (Code::FailedPrecondition, 45, R::Reject),
        E::DuplicateSequence => (Code::AlreadyExists, 46, R::Reject),
        E::FencedProducer => (Code::FailedPrecondition, 90, R::Reject),
        E::UnknownProducer => (Code::FailedPrecondition, 59, R::Reject),
        E::Unsupported => (Code::Unimplemented, 35, R::Reject),
    };
    ErrorRow { grpc, kafka, retry }
}

/// A refusal on its way to a caller: a code of the table and a sentence that names the values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Decides what the caller does.
    pub code: ErrorCode,
    /// Names what was wrong.
    pub message: String,
}

impl Failure {
    /// A refusal.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// What the caller should do.
    #[must_use]
    pub const fn retry(&self) -> RetryClass {
        row(self.code).retry
    }
}

impl From<Failure> for v1::Error {
    fn from(failure: Failure) -> Self {
        Self {
            code: failure.code as i32,
            retry: failure.retry() as i32,
            message: failure.message,
        }
    }
}

impl From<v1::Error> for Failure {
    fn from(error: v1::Error) -> Self {
        Self {
            code: error.code(),
            message: error.message,
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let code = row(failure.code).grpc;
        let message = failure.message.clone();
        let details = v1::Error::from(failure).encode_to_vec();
        Self::with_details(code, message, Bytes::from(details))
    }
}

impl From<Status> for Failure {
    /// Recovers the failure that a Forebay server put into a status. A status of the transport
    /// itself says nothing about what the server did, so its outcome is unknown unless its code
    /// says that the call was refused.
    fn from(status: Status) -> Self {
        if !status.details().is_empty()
            && let Ok(error) = v1::Error::decode(status.details())
            && error.code() != ErrorCode::Unspecified
        {
            return error.into();
        }
        let code = match status.code() {
            Code::InvalidArgument => ErrorCode::InvalidRequest,
            Code::Unimplemented => ErrorCode::Unsupported,
            Code::ResourceExhausted => ErrorCode::Overloaded,
            Code::DeadlineExceeded | Code::Unavailable | Code::Cancelled | Code::Unknown => {
                ErrorCode::OutcomeUnknown
            }
            _ => ErrorCode::Internal,
        };
        Self::new(code, format!("{}: {}", status.code(), status.message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_way_through_a_status() {
        for number in 0..=50 {
            let Ok(code) = ErrorCode::try_from(number) else {
                continue;
            };
            if code == ErrorCode::Unspecified {
                continue;
            }
            let failure = Failure::new(code, "topic t, partition 3");
            assert_eq!(Failure::from(Status::from(failure.clone())), failure);
        }
    }

    #[test]
    fn a_lost_connection_leaves_the_outcome_unknown() {
        assert_eq!(
            Failure::from(Status::unavailable("gone")).retry(),
            RetryClass::Unknown
        );
    }
}
