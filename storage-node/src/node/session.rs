//! One connection of a broker or proxy, from its greeting to its end.
//!
//! Reads and answers at the same time, so a peer that is slow to read its answers is still heard
//! until too many of them wait. Frames are checked here, before they are queued: the journal
//! thread never computes a checksum. A frame whose bytes are not those its writer summed ends the
//! connection, since no later byte of it can be trusted.

use std::sync::Arc;
use std::time::Duration;

use forebay_proto::data::link::{Link, LinkError, LinkReceiver, LinkSender};
use forebay_proto::data::replica::{CopyRequest, FromNode, Hello, NodeFailure, Refusal, Surveyed, ToNode};
use forebay_record::{Generation, SegmentId};
use forebay_runtime::clock::{Clock, timeout};
use forebay_runtime::trace::{Span, SpanKind, Tracer};
use tokio_util::sync::CancellationToken;

use super::outbox::Outbox;
use super::queue::{Message, Queue};
use super::readers::{Job, Readers};
use super::shared::Shared;
use super::traces::FrameTrace;
use super::uploads::Uploads;
use crate::content::{CheckedFrame, ContentError};
use crate::metrics::NodeMetrics;
use crate::replica::Peer;

const GREETING: Duration = Duration::from_secs(5);

/// Why a session ended before its peer closed it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("no greeting in time")]
    NoGreeting,
    #[error("refused: {0}")]
    Refused(String),
    #[error("unexpected message: {0}")]
    Unexpected(&'static str),
    #[error("connection lost")]
    Link(#[from] LinkError),
    #[error("a frame came damaged")]
    Damaged(#[from] ContentError),
    #[error("the peer is gone, or the node is stopping")]
    Closed,
}

/// What a session works with.
pub(crate) struct Session {
    pub peer: Peer,
    pub shared: Arc<Shared>,
    pub queue: Arc<Queue>,
    pub readers: Arc<Readers>,
    pub uploads: Arc<Uploads>,
    pub clock: Arc<dyn Clock>,
    pub tracer: Tracer,
    pub metrics: NodeMetrics,
}

impl Session {
    /// Serves a connection until it ends.
    pub(crate) async fn run(self, link: Link<FromNode, ToNode>) -> Result<(), SessionError> {
        let Link { tx, mut rx } = link;
        let hello = self.greet(&tx, &mut rx).await?;
        tracing::debug!(peer = hello.peer, "session begins");
        let outbox = Arc::new(Outbox::default());
        let connected = Message::Connected(self.peer, Arc::clone(&outbox));
        self.queue.push_own(connected).map_err(|_| SessionError::Closed)?;
        // Cancel safety: whichever ends first ends the session, and with it what is not sent or
        // not queued. A peer learns nothing from an answer it did not get, and asks again.
        let result = tokio::select! {
            result = self.receive(&mut rx, &outbox) => result,
            result = send(&tx, &outbox) => result,
            () = self.shared.stopping.cancelled() => Err(SessionError::Closed),
        };
        // Where the queue is closed nobody is kept.
        if self.queue.push_own(Message::Gone(self.peer)).is_err() {
            tracing::debug!(peer = hello.peer, "session ends with the node");
        }
        result
    }

    async fn greet(
        &self,
        tx: &LinkSender<FromNode>,
        rx: &mut LinkReceiver<ToNode>,
    ) -> Result<Hello, SessionError> {
        let first = timeout(&*self.clock, GREETING, rx.recv()).await;
        let hello = match first.map_err(|_| SessionError::NoGreeting)?? {
            Some(ToNode::Hello(hello)) => hello,
            Some(_) => return Err(SessionError::Unexpected("not a greeting")),
            None => return Err(SessionError::Closed),
        };
        let here = &self.shared;
        let refused = if hello.cluster != here.cluster {
            Some(format!(
                "this is cluster {:?}, not {:?}",
                here.cluster, hello.cluster
            ))
        } else if hello.incarnation != here.incarnation {
            Some(format!(
                "this is incarnation {}, not {}",
                here.incarnation, hello.incarnation
            ))
        } else if hello.node != here.node {
            Some(format!("this is storage node {}, not {}", here.node, hello.node))
        } else {
            None
        };
        if let Some(reason) = refused {
            tx.send(FromNode::Refused(reason.clone()))
                .await
                .map_err(|_| SessionError::Closed)?;
            return Err(SessionError::Refused(reason));
        }
        let welcome = FromNode::Welcome {
            node: here.node,
            generation: here.generation,
            boot: here.boot,
        };
        tx.send(welcome).await.map_err(|_| SessionError::Closed)?;
        Ok(hello)
    }

    async fn receive(&self, rx: &mut LinkReceiver<ToNode>, outbox: &Arc<Outbox>) -> Result<(), SessionError> {
        let peer = self.peer;
        // Cancelled with the session, which gives up copies that its peer will not hear of.
        let gone = CancellationToken::new();
        let _guard = gone.clone().drop_guard();
        while let Some(message) = rx.recv().await? {
            self.metrics.requests.count(&message);
            let (message, mut span) = self.untraced(message);
            let message = match message {
                ToNode::Traced(_) => return Err(SessionError::Unexpected("two trace contexts")),
                ToNode::Hello(_) => return Err(SessionError::Unexpected("a second greeting")),
                ToNode::Append { generation, frame } => {
                    let (segment, number) = (frame.header.segment, frame.header.number);
                    self.metrics.frames.inc();
                    match CheckedFrame::new(frame) {
                        Ok(frame) => {
                            if span.is_some() {
                                self.follow(&frame, std::mem::take(&mut span)).await?;
                            }
                            Message::Append {
                                peer,
                                generation,
                                frame,
                            }
                        }
                        Err(error @ ContentError::Damaged(_)) => return Err(error.into()),
                        Err(error) => {
                            tracing::error!(%segment, %error, "malformed frame");
                            let refusal = Refusal::Malformed;
                            self.metrics.refused(refusal);
                            outbox.push(
                                FromNode::NotTaken {
                                    segment,
                                    number,
                                    refusal,
                                },
                                None,
                            );
                            outbox.has_room().await;
                            continue;
                        }
                    }
                }
                ToNode::Commit(items) => Message::Commit(items),
                ToNode::Fence { request, items } => Message::Fence { peer, request, items },
                ToNode::Confirm { request, items } => Message::Confirm { peer, request, items },
                ToNode::Survey { request, items } => {
                    let found = self.survey(&items);
                    outbox.push(FromNode::Surveyed { request, found }, None);
                    outbox.has_room().await;
                    continue;
                }
                ToNode::Copy { request, copy } => match checked(*copy)? {
                    Ok((copy, frames)) => Message::Copy {
                        peer,
                        request,
                        copy,
                        frames,
                    },
                    Err(failure) => {
                        let result = Err(failure);
                        outbox.push(FromNode::Copied { request, result }, None);
                        outbox.has_room().await;
                        continue;
                    }
                },
                ToNode::ForgetCopy { segment, by } => Message::ForgetCopy(segment, by),
                ToNode::Missing { request, missing } => {
                    self.submit(Job::Missing(missing), request, outbox, span).await;
                    continue;
                }
                ToNode::Sealed { request, sealed } => {
                    self.submit(Job::Sealed(sealed), request, outbox, span).await;
                    continue;
                }
                ToNode::Read { request, read } => {
                    self.submit(Job::Read(read), request, outbox, span).await;
                    continue;
                }
                ToNode::Lookup {
                    request,
                    read,
                    timestamp_ms,
                } => {
                    self.submit(Job::Lookup(read, timestamp_ms), request, outbox, span)
                        .await;
                    continue;
                }
                ToNode::Upload { request, upload } => {
                    self.uploads.begin(request, upload, outbox, &gone);
                    outbox.has_room().await;
                    continue;
                }
                ToNode::Frames { request, frames } => {
                    self.submit(Job::Frames(frames), request, outbox, span).await;
                    continue;
                }
                ToNode::Headers { request, headers } => {
                    self.submit(Job::Headers(headers), request, outbox, span).await;
                    continue;
                }
            };
            let now = self.clock.monotonic();
            self.queue
                .push(message, now)
                .await
                .map_err(|_| SessionError::Closed)?;
            outbox.has_room().await;
        }
        Ok(())
    }

    /// What is durable here of segments.
    fn survey(&self, items: &[(SegmentId, Generation)]) -> Vec<Option<Surveyed>> {
        let here = |(segment, generation): &(SegmentId, Generation)| {
            let held = self.shared.index.get(*segment)?;
            (*generation == self.shared.generation).then(|| Surveyed {
                sound: !held.is_limbo(),
                tail: held.tail(),
            })
        };
        items.iter().map(here).collect()
    }

    /// A message, and the span of what is done about it.
    fn untraced(&self, message: ToNode) -> (ToNode, Span) {
        let ToNode::Traced(traced) = message else {
            return (message, Span::none());
        };
        let (context, message) = *traced;
        let name = match &message {
            ToNode::Append { .. } => "storage.append",
            ToNode::Read { .. } => "storage.read",
            _ => return (message, Span::none()),
        };
        let mut span = self.tracer.child(Some(&context), SpanKind::Server, || name);
        span.set_number("forebay.node", self.shared.node.0.into());
        (message, span)
    }

    /// Sends a frame's span ahead of it.
    async fn follow(&self, frame: &CheckedFrame, mut append: Span) -> Result<(), SessionError> {
        let header = frame.header();
        append.set_display("forebay.segment", &header.segment);
        append.set_number("forebay.frame", header.number.into());
        append.set_number("forebay.frame.batches", header.batches.into());
        append.set_number("messaging.message.body.size", header.frame_len() as u64);
        let came = self.clock.monotonic();
        let trace = FrameTrace {
            append,
            segment: header.segment,
            number: header.number,
            came,
            taken: came,
        };
        let message = Message::Trace(Box::new(trace));
        self.queue
            .push(message, came)
            .await
            .map_err(|_| SessionError::Closed)
    }

    async fn submit(&self, job: Job, request: u64, outbox: &Arc<Outbox>, span: Span) {
        self.readers.submit(job, request, outbox, span);
        outbox.has_room().await;
    }
}

/// A copy's frames, checked; a failure where they are malformed.
#[expect(clippy::type_complexity, reason = "used once")]
fn checked(
    mut copy: CopyRequest,
) -> Result<Result<(Box<CopyRequest>, Vec<CheckedFrame>), NodeFailure>, ContentError> {
    let mut frames = Vec::with_capacity(copy.frames.len());
    for frame in std::mem::take(&mut copy.frames) {
        match CheckedFrame::new(frame) {
            Ok(frame) => frames.push(frame),
            Err(error @ ContentError::Damaged(_)) => return Err(error),
            Err(error) => {
                tracing::error!(segment = %copy.segment, %error, "malformed frame in a copy");
                return Ok(Err(NodeFailure::Corrupt));
            }
        }
    }
    Ok(Ok((Box::new(copy), frames)))
}

async fn send(tx: &LinkSender<FromNode>, outbox: &Outbox) -> Result<(), SessionError> {
    loop {
        for answer in outbox.take().await {
            tx.send(answer.message).await.map_err(|_| SessionError::Closed)?;
            drop(answer.permit);
        }
    }
}
