//! Watches on etcd that outlive connections, members and restarts.
//!
//! 1. Ask for the present once, so that a store that went back is noticed (I24).
//! 2. Create the watch at the first revision not delivered yet.
//! 3. Deliver; whatever breaks leads back to 1, on the next endpoint.
//!
//! A peer that says nothing for a while is asked for progress and left if it stays silent. Such
//! an answer proves life and nothing more: before 3.4.25 and 3.5.8 etcd may send it ahead of
//! events that precede it. Only the server's own periodic notice moves the position on.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{KeyValue, WatchOptions, WatchResponse, WatchStream as EtcdStream};
use tokio::time::Instant;

use super::convert::Keys;
use super::peers::{Failure, Peers, Resend};
use crate::store::check;
use crate::store::error::{BadRequest, WatchError};
use crate::store::types::{Revision, WatchBatch, WatchEvent, WatchKind};
use crate::store::watch::WatchStream;

/// Silence after which progress is asked for, and again after which the peer is left.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// First and longest wait before a watch is created again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Failures in a row after which a warning is logged.
const FAILURES_QUIET: u32 = 5;
/// The watch id of an answer to a progress request.
const NO_WATCH: i64 = -1;

pub(super) fn start(peers: Arc<Peers>, keys: Keys, prefix: &str, after: Revision) -> WatchStream {
    let refused = check::key(prefix).err();
    let (start, end) = keys.span(prefix, None);
    let follower = Follower {
        peers,
        keys,
        span: (start, end),
        after,
        open: None,
        failures: 0,
        refused,
        ended: false,
    };
    WatchStream::new(futures_util::stream::unfold(
        follower,
        |mut follower| async move {
            if follower.ended {
                return None;
            }
            let step = follower.step().await;
            follower.ended = step.is_err();
            Some((step, follower))
        },
    ))
}

/// A watch on one endpoint.
struct Open {
    at: usize,
    endpoint: String,
    stream: EtcdStream,
    silent_until: Instant,
    asked: bool,
}

struct Follower {
    peers: Arc<Peers>,
    keys: Keys,
    span: (Vec<u8>, Vec<u8>),
    /// Everything up to here is delivered.
    after: Revision,
    open: Option<Open>,
    failures: u32,
    refused: Option<BadRequest>,
    ended: bool,
}

/// What one wait on an open watch has brought.
enum Heard {
    Response(Box<WatchResponse>),
    Silence,
    Broken(String),
}

impl Follower {
    async fn step(&mut self) -> Result<WatchBatch, WatchError> {
        if let Some(error) = self.refused.take() {
            return Err(error.into());
        }
        let stopped = self.peers.stopped().clone();
        loop {
            let next = tokio::select! {
                biased;
                () = stopped.cancelled() => return Err(self.stopped()),
                next = self.advance() => next?,
            };
            if let Some(batch) = next {
                return Ok(batch);
            }
        }
    }

    fn stopped(&self) -> WatchError {
        self.peers
            .regressed()
            .map_or(WatchError::Closed, WatchError::from)
    }

    /// One step: creates the watch, or waits for one response.
    ///
    /// Cancel safety: only dropped when the watch ends.
    async fn advance(&mut self) -> Result<Option<WatchBatch>, WatchError> {
        let Some(mut open) = self.open.take() else {
            self.pause().await;
            match self.create().await {
                Ok(open) => self.open = Some(open),
                Err(Failure::Regressed(regressed)) => return Err(regressed.into()),
                Err(Failure::Refused(error)) => return Err(error.into()),
                Err(failure) => self.failed(&format!("{failure:?}")),
            }
            return Ok(None);
        };
        match open.hear().await {
            Heard::Response(response) => {
                open.heard();
                let batch = self.on_response(&open, &response)?;
                if response.canceled() {
                    self.peers.leave(open.at);
                    self.failed(&format!("{}: {}", open.endpoint, response.cancel_reason()));
                } else {
                    self.failures = 0;
                    self.open = Some(open);
                }
                Ok(batch)
            }
            Heard::Silence => {
                if open.asked || open.ask().await.is_err() {
                    self.peers.leave(open.at);
                    self.failed(&format!("{}: silent", open.endpoint));
                } else {
                    self.open = Some(open);
                }
                Ok(None)
            }
            Heard::Broken(what) => {
                self.peers.leave(open.at);
                self.failed(&format!("{}: {what}", open.endpoint));
                Ok(None)
            }
        }
    }

    async fn pause(&self) {
        if self.failures > 0 {
            let factor = 1_u32 << self.failures.min(16).saturating_sub(1);
            tokio::time::sleep(PAUSE.0.saturating_mul(factor).min(PAUSE.1)).await;
        }
    }

    fn failed(&mut self, what: &str) {
        self.failures = self.failures.saturating_add(1);
        let (after, failures) = (self.after, self.failures);
        if failures == FAILURES_QUIET {
            tracing::warn!(%after, failures, what, "watch on etcd keeps failing");
        } else {
            tracing::debug!(%after, failures, what, "watch on etcd is created again");
        }
    }

    async fn create(&self) -> Result<Open, Failure> {
        let ticket = self.peers.ticket()?;
        let present = self.span.0.clone();
        let response = self
            .peers
            .call(Resend::Always, |mut peer| {
                let present = present.clone();
                async move { peer.kv.get(present, None).await }
            })
            .await?;
        self.peers.admit(ticket, response.header())?;
        let (at, endpoint, mut peer) = self.peers.current();
        let oldest = self.keys.revisions.revision(1);
        let first = Revision(self.after.0.saturating_add(1)).max(oldest);
        let options = WatchOptions::new()
            .with_range(self.span.1.clone())
            .with_start_revision(self.keys.revisions.signed(first))
            .with_progress_notify();
        let limit = self.peers.call_timeout();
        let created = tokio::time::timeout(limit, peer.watch.watch(self.span.0.clone(), Some(options))).await;
        match created {
            Ok(Ok(stream)) => {
                let silent_until = Instant::now() + SILENCE_MAX;
                Ok(Open {
                    at,
                    endpoint,
                    stream,
                    silent_until,
                    asked: false,
                })
            }
            Ok(Err(error)) => {
                self.peers.leave(at);
                Err(Failure::Broken(format!("{endpoint}: {error}")))
            }
            Err(_) => {
                self.peers.leave(at);
                Err(Failure::Broken(format!("{endpoint}: no watch within {limit:?}")))
            }
        }
    }

    fn on_response(
        &mut self,
        open: &Open,
        response: &WatchResponse,
    ) -> Result<Option<WatchBatch>, WatchError> {
        if response.canceled() && response.compact_revision() > 0 {
            return Err(WatchError::Compacted {
                at: self.keys.revisions.revision(response.compact_revision()),
            });
        }
        if response.events().is_empty() {
            let notice = !response.created() && !response.canceled() && response.watch_id() != NO_WATCH;
            let revision = response
                .header()
                .map(|header| self.keys.revisions.revision(header.revision()));
            return Ok(match revision {
                Some(revision) if notice && revision > self.after => {
                    self.after = revision;
                    Some(WatchBatch {
                        revision,
                        events: Vec::new(),
                    })
                }
                _ => None,
            });
        }
        let mut events = Vec::with_capacity(response.events().len());
        for event in response.events() {
            let Some(kv) = event.kv() else {
                return Err(
                    BadRequest::Rejected(format!("{} sent an event without a key", open.endpoint)).into(),
                );
            };
            let event = self.event(kv)?;
            // etcd starts where it is told to; this only guards against delivering twice.
            if event.revision > self.after {
                events.push(event);
            }
        }
        let Some(revision) = events.last().map(|event| event.revision) else {
            return Ok(None);
        };
        self.after = revision;
        Ok(Some(WatchBatch { revision, events }))
    }

    /// A deletion is known by its version of zero.
    fn event(&self, kv: &KeyValue) -> Result<WatchEvent, BadRequest> {
        let revision = self.keys.revisions.revision(kv.mod_revision());
        let kind = if kv.version() == 0 {
            WatchKind::Delete {
                key: self.keys.relative(kv.key())?,
            }
        } else {
            WatchKind::Put(self.keys.entry(kv.clone())?)
        };
        Ok(WatchEvent { revision, kind })
    }
}

impl Open {
    async fn hear(&mut self) -> Heard {
        match tokio::time::timeout_at(self.silent_until, self.stream.message()).await {
            Ok(Ok(Some(response))) => Heard::Response(Box::new(response)),
            Ok(Ok(None)) => Heard::Broken("the stream has ended".to_owned()),
            Ok(Err(error)) => Heard::Broken(error.to_string()),
            Err(_) => Heard::Silence,
        }
    }

    fn heard(&mut self) {
        self.silent_until = Instant::now() + SILENCE_MAX;
        self.asked = false;
    }

    async fn ask(&mut self) -> Result<(), etcd_client::Error> {
        self.asked = true;
        self.silent_until = Instant::now() + SILENCE_MAX;
        match tokio::time::timeout_at(self.silent_until, self.stream.request_progress()).await {
            Ok(sent) => sent,
            Err(_) => Err(etcd_client::Error::WatchError(
                "progress request is stuck".to_owned(),
            )),
        }
    }
}
