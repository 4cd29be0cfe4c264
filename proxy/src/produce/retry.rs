//! What to do with a batch that a broker did not take: a pure decision.
//!
//! A batch may be sent again only where it was refused before anything was staged, or where it is
//! idempotent, so that the owner recognises a repetition. Everything else that may have been
//! applied is answered as *outcome unknown*, and never as failed.

use forebay_proto::error::Failure;
use forebay_proto::v1::{ErrorCode, RetryClass};

/// What is known about a batch when its try fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tried {
    /// It carries a producer's sequence numbers.
    pub idempotent: bool,
    /// An earlier try may have been applied.
    pub doubt: bool,
    /// An earlier batch of the same producer waits to be sent again, so that this one had to be
    /// out of order.
    pub gap_before: bool,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Answer this.
    Answer(Failure),
    /// Send it again, in its order.
    Again {
        /// The route led to the wrong place: ask for it anew.
        stale: bool,
        /// The try may have been applied.
        doubt: bool,
    },
}

/// Decides after a broker answered with a failure, or was lost (an unknown outcome).
pub(crate) fn after_failure(failure: Failure, tried: Tried) -> Verdict {
    use ErrorCode as E;
    let again = |stale, doubt| Verdict::Again { stale, doubt };
    match failure.code {
        // A partition that its supposed owner does not know: the topic may be new to that broker or
        // be recreated; the next answer about its route tells.
        E::NotOwner
        | E::StaleEpoch
        | E::Unavailable
        | E::ShuttingDown
        | E::UnknownTopic
        | E::UnknownPartition => again(true, false),
        E::UnknownEpoch | E::NotEnoughReplicas | E::Overloaded => again(false, false),
        E::OutOfOrderSequence if tried.gap_before => again(false, false),
        _ if failure.retry() == RetryClass::Unknown && tried.idempotent => again(true, true),
        _ => Verdict::Answer(final_answer(failure, tried.doubt)),
    }
}

/// What a client is told when a batch is given up. `last` is why the last try failed.
pub(crate) fn given_up(last: Option<Failure>, doubt: bool) -> Failure {
    let because = last
        .as_ref()
        .map_or_else(String::new, |last| format!("; last: {}", last.message));
    if doubt {
        return Failure::new(
            ErrorCode::OutcomeUnknown,
            format!("deadline passed after a try that may have been applied{because}"),
        );
    }
    match last {
        // Says more than a timeout, and means as well that nothing was staged.
        Some(last) if last.code == ErrorCode::NotEnoughReplicas => last,
        _ => Failure::new(
            ErrorCode::Timeout,
            format!("deadline passed before anything was staged{because}"),
        ),
    }
}

/// A failure of a batch that may have been applied by an earlier try is no failure. That the
/// sequence was seen before says that it was applied.
pub(crate) fn final_answer(failure: Failure, doubt: bool) -> Failure {
    if !doubt
        || matches!(
            failure.code,
            ErrorCode::OutcomeUnknown | ErrorCode::DuplicateSequence
        )
    {
        return failure;
    }
    let message = format!(
        "an earlier try may have been applied, a later one was refused: {}",
        failure.message
    );
    Failure::new(ErrorCode::OutcomeUnknown, message)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use super::*;

    const PLAIN: Tried = Tried {
        idempotent: false,
        doubt: false,
        gap_before: false,
    };
    const IDEMPOTENT: Tried = Tried {
        idempotent: true,
        doubt: false,
        gap_before: false,
    };

    fn decide(code: ErrorCode, tried: Tried) -> Verdict {
        after_failure(Failure::new(code, "why"), tried)
    }

    fn answered(verdict: Verdict) -> ErrorCode {
        match verdict {
            Verdict::Answer(failure) => failure.code,
            Verdict::Again { .. } => panic!("sent again"),
        }
    }

    #[test]
    fn what_was_refused_before_staging_is_sent_again_without_doubt() {
        for code in [
            ErrorCode::NotOwner,
            ErrorCode::StaleEpoch,
            ErrorCode::Unavailable,
            ErrorCode::ShuttingDown,
        ] {
            assert_eq!(
                decide(code, PLAIN),
                Verdict::Again {
                    stale: true,
                    doubt: false
                }
            );
        }
        for code in [
            ErrorCode::UnknownEpoch,
            ErrorCode::NotEnoughReplicas,
            ErrorCode::Overloaded,
        ] {
            assert_eq!(
                decide(code, PLAIN),
                Verdict::Again {
                    stale: false,
                    doubt: false
                }
            );
        }
    }

    #[test]
    fn an_unknown_outcome_is_repeated_only_for_idempotent_batches() {
        for code in [ErrorCode::OutcomeUnknown, ErrorCode::Internal] {
            assert_eq!(answered(decide(code, PLAIN)), code);
            assert_eq!(
                decide(code, IDEMPOTENT),
                Verdict::Again {
                    stale: true,
                    doubt: true
                }
            );
        }
    }

    #[test]
    fn every_code_that_may_have_been_applied_is_answered_as_such_or_repeated_idempotently() {
        for number in 1..=50 {
            let Ok(code) = ErrorCode::try_from(number) else {
                continue;
            };
            let failure = Failure::new(code, "why");
            if failure.retry() == RetryClass::Unknown {
                assert!(
                    matches!(decide(code, PLAIN), Verdict::Answer(answer) if answer.retry() == RetryClass::Unknown)
                );
            }
            let of_the_route = matches!(code, ErrorCode::UnknownTopic | ErrorCode::UnknownPartition);
            if failure.retry() == RetryClass::Reject && !of_the_route {
                assert_eq!(answered(decide(code, IDEMPOTENT)), code);
            }
        }
    }

    #[test]
    fn a_sequence_gap_made_by_a_held_batch_is_not_the_producers_fault() {
        let behind = Tried {
            gap_before: true,
            ..IDEMPOTENT
        };
        assert_eq!(
            decide(ErrorCode::OutOfOrderSequence, behind),
            Verdict::Again {
                stale: false,
                doubt: false
            }
        );
        assert_eq!(
            answered(decide(ErrorCode::OutOfOrderSequence, IDEMPOTENT)),
            ErrorCode::OutOfOrderSequence
        );
    }

    #[test]
    fn a_refusal_after_a_doubtful_try_is_an_unknown_outcome() {
        let doubtful = Tried {
            doubt: true,
            ..IDEMPOTENT
        };
        assert_eq!(
            answered(decide(ErrorCode::FencedProducer, doubtful)),
            ErrorCode::OutcomeUnknown
        );
        assert_eq!(
            answered(decide(ErrorCode::DuplicateSequence, doubtful)),
            ErrorCode::DuplicateSequence
        );
    }

    #[test]
    fn the_deadline_is_a_timeout_only_without_doubt() {
        assert_eq!(given_up(None, false).code, ErrorCode::Timeout);
        assert_eq!(
            given_up(Some(Failure::new(ErrorCode::NotOwner, "x")), false).code,
            ErrorCode::Timeout
        );
        assert_eq!(
            given_up(Some(Failure::new(ErrorCode::NotOwner, "x")), true).code,
            ErrorCode::OutcomeUnknown
        );
        let scarce = Failure::new(ErrorCode::NotEnoughReplicas, "1 of 3");
        assert_eq!(given_up(Some(scarce.clone()), false), scarce);
    }
}
