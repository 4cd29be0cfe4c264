//! The way to etcd: connections, deadlines, permits, and what a failure means.
//!
//! One endpoint is current and serves all calls; whoever finds it failing makes the next one
//! current. A failure counts as "not sent" only where no connection came about. Also here: the
//! memory of the highest revision and of the cluster's id, which turns the first answer from an
//! older or another store into a permanent refusal (I24).

use std::error::Error as _;
use std::future::Future;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{
    Client, ConnectOptions, Error as EtcdError, KvClient, LeaseClient, ResponseHeader, WatchClient,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::convert::Revisions;
use super::{ConnectError, EtcdOptions};
use crate::store::error::{BadRequest, LeaseError, ReadError, Regressed, TxnError, Unavailable, Unknown};
use crate::store::types::{LeaseId, Revision};

/// Largest answer taken from etcd. A watch that catches up gets up to 1,000 transactions at once.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// A silent connection is asked after the first and given up after the second.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3));

/// The clients of one endpoint. Cheap to clone, and the library wants them mutable.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) kv: KvClient,
    pub(super) watch: WatchClient,
    pub(super) lease: LeaseClient,
}

/// Whether a failed request may go to another endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resend {
    /// Reads, and what is the same when done twice.
    Always,
    /// Only where nothing was sent.
    IfUnsent,
}

/// Why a call has no answer, by what follows from it.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection: certainly not applied.
    NotSent(String),
    /// The connection or the server failed after sending, or time ran out.
    Broken(String),
    /// etcd refused it: not applied.
    Refused(BadRequest),
    /// A put names a lease that is gone: not applied.
    LeaseNotFound,
    /// The revision asked for is compacted away.
    Compacted,
    /// The revision asked for is not reached.
    Future,
    /// The answer is larger than what we take.
    AnswerTooLarge(String),
    /// See [`Regressed`].
    Regressed(Regressed),
}

impl From<Regressed> for Failure {
    fn from(regressed: Regressed) -> Self {
        Self::Regressed(regressed)
    }
}

impl Failure {
    fn of(error: &EtcdError) -> Self {
        match error {
            EtcdError::GRpcStatus(status) => Self::of_status(status),
            EtcdError::InvalidArgs(_) | EtcdError::InvalidUri(_) | EtcdError::InvalidMetadataValue(_) => {
                Self::Refused(BadRequest::Rejected(error.to_string()))
            }
            _ => Self::Broken(error.to_string()),
        }
    }

    fn of_status(status: &Status) -> Self {
        let message = status.message();
        if never_connected(status) {
            return Self::NotSent(chain(status));
        }
        match status.code() {
            Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::Unimplemented => Self::Refused(BadRequest::Rejected(message.to_owned())),
            Code::NotFound if message.contains("lease not found") => Self::LeaseNotFound,
            Code::OutOfRange if message.contains("compacted") => Self::Compacted,
            Code::OutOfRange if message.contains("future revision") => Self::Future,
            Code::OutOfRange if message.contains("message length too large") => {
                Self::AnswerTooLarge(message.to_owned())
            }
            _ => Self::Broken(chain(status)),
        }
    }

    /// What it means for a read.
    pub(super) fn of_read(self, seen: Revision) -> ReadError {
        match self {
            Self::NotSent(what) | Self::Broken(what) | Self::AnswerTooLarge(what) => Unavailable(what).into(),
            Self::Refused(error) => error.into(),
            Self::LeaseNotFound => BadRequest::LeaseNotFound { lease: None }.into(),
            Self::Compacted => ReadError::Compacted { at: seen },
            Self::Future => BadRequest::FutureRevision { current: seen }.into(),
            Self::Regressed(regressed) => regressed.into(),
        }
    }

    /// What it means for a transaction whose puts name `lease`.
    pub(super) fn of_txn(self, lease: Option<LeaseId>) -> TxnError {
        match self {
            Self::NotSent(what) => Unavailable(what).into(),
            Self::Broken(what) | Self::AnswerTooLarge(what) => Unknown(what).into(),
            Self::Compacted | Self::Future => {
                Unknown("a transaction was answered with a revision error".to_owned()).into()
            }
            Self::Refused(error) => error.into(),
            Self::LeaseNotFound => BadRequest::LeaseNotFound { lease }.into(),
            Self::Regressed(regressed) => regressed.into(),
        }
    }

    /// What it means for a lease.
    pub(super) fn of_lease(self) -> LeaseError {
        match self.of_read(Revision(0)) {
            ReadError::Refused(error) => error.into(),
            ReadError::Unavailable(error) => error.into(),
            ReadError::Regressed(error) => error.into(),
            error @ ReadError::Compacted { .. } => Unavailable(error.to_string()).into(),
        }
    }
}

/// Whether a status was made on this side because no connection came about.
fn never_connected(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// Message and sources in one line; a source often says what the status does not.
fn chain(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = error.source();
    }
    text
}

/// What a call's answer is compared with: taken before the call, since answers of concurrent
/// calls may overtake each other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    seen: Revision,
}

/// All endpoints of one etcd cluster.
pub(super) struct Peers {
    endpoints: Vec<(String, Peer)>,
    current: AtomicUsize,
    permits: Semaphore,
    call_timeout: Duration,
    seen: AtomicU64,
    revisions: OnceLock<Revisions>,
    cluster: OnceLock<u64>,
    regressed: OnceLock<Regressed>,
    /// Cancelled on regression and on close, to end watches and renewals.
    stopped: CancellationToken,
}

impl Peers {
    /// Does not wait for a connection.
    pub(super) async fn open(options: &EtcdOptions) -> Result<Self, ConnectError> {
        let wrong = |option, value: &str, why: String| ConnectError::Option {
            option,
            value: value.to_owned(),
            why,
        };
        if options.endpoints.is_empty() {
            return Err(wrong("endpoints", "", "none given".to_owned()));
        }
        if options.calls_max == 0 {
            return Err(wrong("calls_max", "0", "must be at least 1".to_owned()));
        }
        let connect = ConnectOptions::new()
            .with_connect_timeout(options.connect_timeout)
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        let mut endpoints = Vec::with_capacity(options.endpoints.len());
        for endpoint in &options.endpoints {
            let client = Client::connect([endpoint], Some(connect.clone()))
                .await
                .map_err(|error| wrong("endpoint", endpoint, error.to_string()))?;
            let peer = Peer {
                kv: client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX),
                watch: client.watch_client().max_decoding_message_size(ANSWER_BYTES_MAX),
                lease: client.lease_client(),
            };
            endpoints.push((endpoint.clone(), peer));
        }
        Ok(Self {
            endpoints,
            current: AtomicUsize::new(0),
            permits: Semaphore::new(options.calls_max),
            call_timeout: options.call_timeout,
            seen: AtomicU64::new(options.seen.0),
            revisions: OnceLock::new(),
            cluster: OnceLock::new(),
            regressed: OnceLock::new(),
            stopped: CancellationToken::new(),
        })
    }

    pub(super) fn endpoints(&self) -> Vec<String> {
        self.endpoints
            .iter()
            .map(|(endpoint, _)| endpoint.clone())
            .collect()
    }

    pub(super) fn call_timeout(&self) -> Duration {
        self.call_timeout
    }

    pub(super) fn seen(&self) -> Revision {
        Revision(self.seen.load(Ordering::Acquire))
    }

    fn revisions(&self) -> Revisions {
        self.revisions.get().copied().unwrap_or_default()
    }

    /// Takes the incarnation's revisions from here on; false where that was done before.
    pub(super) fn take_revisions(&self, revisions: Revisions) -> bool {
        let taken = self.revisions.set(revisions).is_ok();
        if taken {
            let own = i64::try_from(self.seen.load(Ordering::Acquire)).unwrap_or(i64::MAX);
            self.seen.store(revisions.revision(own).0, Ordering::Release);
        }
        taken
    }

    pub(super) fn regressed(&self) -> Option<Regressed> {
        self.regressed.get().copied()
    }

    /// Cancelled once no call can succeed any more.
    pub(super) fn stopped(&self) -> &CancellationToken {
        &self.stopped
    }

    pub(super) fn close(&self) {
        self.stopped.cancel();
        self.permits.close();
    }

    /// Before a call whose answer goes through [`Peers::admit`].
    pub(super) fn ticket(&self) -> Result<Ticket, Regressed> {
        match self.regressed() {
            Some(regressed) => Err(regressed),
            None => Ok(Ticket { seen: self.seen() }),
        }
    }

    /// Checks the header of a linearizable answer and returns its revision.
    pub(super) fn admit(&self, ticket: Ticket, header: Option<&ResponseHeader>) -> Result<Revision, Failure> {
        let header = header.ok_or_else(|| Failure::Broken("answer without a header".to_owned()))?;
        let expected = *self.cluster.get_or_init(|| header.cluster_id());
        if expected != header.cluster_id() {
            let got = header.cluster_id();
            return Err(self.regress(Regressed::Cluster { expected, got }).into());
        }
        let got = self.revisions().revision(header.revision());
        if got < ticket.seen {
            return Err(self
                .regress(Regressed::Revision {
                    seen: ticket.seen,
                    got,
                })
                .into());
        }
        self.seen.fetch_max(got.0, Ordering::AcqRel);
        Ok(got)
    }

    fn regress(&self, regressed: Regressed) -> Regressed {
        let first = *self.regressed.get_or_init(|| {
            tracing::error!(error = %regressed, "metadata store refused from now on");
            regressed
        });
        self.stopped.cancel();
        first
    }

    /// Sends to the current endpoint, and to the others where `resend` allows, all in one
    /// deadline.
    ///
    /// Cancel safety: dropping it at the deadline loses the answer, not the request, which is why
    /// that counts as broken.
    pub(super) async fn call<T, F>(
        &self,
        resend: Resend,
        mut send: impl FnMut(Peer) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, EtcdError>>,
    {
        let deadline = tokio::time::Instant::now() + self.call_timeout;
        let _permit = match tokio::time::timeout_at(deadline, self.permits.acquire()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(Failure::NotSent("the store is closed".to_owned())),
            Err(_) => {
                let waited = self.call_timeout;
                return Err(Failure::NotSent(format!(
                    "no permit for a call within {waited:?}"
                )));
            }
        };
        // A read gets a second try even on one endpoint: the first may have met a connection that
        // died unnoticed.
        let tries = match resend {
            Resend::Always => self.endpoints.len().max(2),
            Resend::IfUnsent => self.endpoints.len(),
        };
        let mut failure = Failure::NotSent("no endpoint".to_owned());
        for _ in 0..tries {
            let (at, endpoint, peer) = self.current();
            let sent = tokio::time::timeout_at(deadline, send(peer)).await;
            failure = match sent {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => Failure::of(&error).at(&endpoint),
                Err(_) => {
                    self.leave(at);
                    let waited = self.call_timeout;
                    return Err(Failure::Broken(format!(
                        "{endpoint}: no answer within {waited:?}"
                    )));
                }
            };
            let again = match &failure {
                Failure::NotSent(_) => true,
                Failure::Broken(_) => resend == Resend::Always,
                _ => return Err(failure),
            };
            self.leave(at);
            if !again {
                break;
            }
        }
        Err(failure)
    }

    /// The endpoint to use now.
    #[expect(clippy::indexing_slicing, reason = "never empty, and taken modulo the length")]
    pub(super) fn current(&self) -> (usize, String, Peer) {
        let at = self.current.load(Ordering::Acquire);
        let (endpoint, peer) = &self.endpoints[at % self.endpoints.len()];
        (at, endpoint.clone(), peer.clone())
    }

    /// Makes the next endpoint current, unless somebody else has since.
    pub(super) fn leave(&self, at: usize) {
        let next = at.wrapping_add(1);
        // Losing the race is as good: the current endpoint is no longer the failed one.
        let _ = self
            .current
            .compare_exchange(at, next, Ordering::AcqRel, Ordering::Acquire);
    }
}

impl Failure {
    /// Names the endpoint in what will be read by a human.
    fn at(self, endpoint: &str) -> Self {
        match self {
            Self::NotSent(what) => Self::NotSent(format!("{endpoint}: {what}")),
            Self::Broken(what) => Self::Broken(format!("{endpoint}: {what}")),
            other => other,
        }
    }
}
