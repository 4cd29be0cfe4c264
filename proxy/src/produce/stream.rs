//! A produce stream: requests are taken in by a task of their own, answers go out as they come.
//!
//! The task takes the next request only while it has a place for one more unanswered: that, and
//! the bytes that each message waits for, hold a client back. Answers that are ready at the same
//! time leave in one write, since the encoder drains this stream before it sends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use forebay_proto::error::Failure;
use forebay_proto::v1::{Acks, ErrorCode, ProduceRequest, ProduceResponse};
use futures_util::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::{Request, Response, Status, Streaming};

use super::reply::{Done, Outlet};
use super::submit::Arrival;
use crate::core::{Call, Core, stopping};
use crate::front::{Intake, trace_parent};
use crate::metrics::ProxyMetrics;

/// The answers of a stream.
pub struct AnswerStream {
    done: mpsc::UnboundedReceiver<Done>,
    /// Why the intake ended, where it did not end well; said after all answers.
    fault: mpsc::UnboundedReceiver<Status>,
    metrics: ProxyMetrics,
    clock: Arc<dyn forebay_runtime::clock::Clock>,
    _call: Call,
    _stream: OwnedSemaphorePermit,
}

impl std::fmt::Debug for AnswerStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnswerStream").finish_non_exhaustive()
    }
}

impl Stream for AnswerStream {
    type Item = Result<ProduceResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Ends when the intake has ended and every request it took is answered.
        match ready!(self.done.poll_recv(cx)) {
            Some(Done {
                response,
                place,
                started,
            }) => {
                drop(place);
                let took = self.clock.monotonic().saturating_sub(started);
                self.metrics
                    .answered("produce_stream_request", took.as_secs_f64());
                Poll::Ready(Some(Ok(response)))
            }
            None => self.fault.poll_recv(cx).map(|fault| fault.map(Err)),
        }
    }
}

impl Drop for AnswerStream {
    fn drop(&mut self) {
        self.metrics.streams_open.dec();
    }
}

impl Core {
    pub(crate) fn produce_stream(
        self: &Arc<Self>,
        request: Request<Streaming<ProduceRequest>>,
    ) -> Result<Response<AnswerStream>, Status> {
        let call = self.begin("produce_stream")?;
        let Ok(stream) = Arc::clone(&self.streams).try_acquire_owned() else {
            let what = format!("{} produce streams are open", self.config.streams_max);
            return Err(call.failed(Failure::new(ErrorCode::Overloaded, what)));
        };
        let intake = request.extensions().get::<Intake>().cloned().unwrap_or_default();
        let (outlet, done) = mpsc::unbounded_channel();
        let (report, fault) = mpsc::unbounded_channel();
        let core = Arc::clone(self);
        let requests = request.into_inner();
        self.tasks.spawn("produce stream", async move {
            if let Err(status) = core.take_in(requests, intake, outlet).await
                && report.send(status).is_err()
            {
                tracing::trace!("client went away before it was told why its stream ended");
            }
        });
        self.metrics.streams_open.inc();
        Ok(Response::new(AnswerStream {
            done,
            fault,
            metrics: self.metrics.clone(),
            clock: Arc::clone(&self.clock),
            _call: call,
            _stream: stream,
        }))
    }

    /// Takes in requests until the client ends the stream or goes away, or the proxy stops.
    async fn take_in(
        &self,
        mut requests: Streaming<ProduceRequest>,
        intake: Intake,
        outlet: Outlet,
    ) -> Result<(), Status> {
        let places = Arc::new(Semaphore::new(self.config.stream_requests_max));
        let source = self.source();
        loop {
            // Cancel safety: neither a place nor a message is lost, since the loop ends with them.
            let place = tokio::select! {
                biased;
                () = self.closing.cancelled() => return Ok(()),
                () = outlet.closed() => return Ok(()),
                place = Arc::clone(&places).acquire_owned() => place.map_err(|_| Status::from(stopping()))?,
            };
            let request = tokio::select! {
                biased;
                () = self.closing.cancelled() => return Ok(()),
                () = outlet.closed() => return Ok(()),
                request = requests.message() => request?,
            };
            let Some(request) = request else { return Ok(()) };
            self.metrics.request("produce_stream_request");
            let (outlet, place, admitted) = (outlet.clone(), Some(place), intake.pop());
            self.submit(Arrival {
                request,
                source,
                outlet,
                place,
                admitted,
                // A stream outlives any one span: its batches name theirs.
                parent: None,
            })
            .await;
        }
    }

    /// One request by itself.
    pub(crate) async fn produce(
        self: &Arc<Self>,
        request: Request<ProduceRequest>,
    ) -> Result<Response<ProduceResponse>, Status> {
        let call = self.begin("produce")?;
        let intake = request.extensions().get::<Intake>().cloned().unwrap_or_default();
        let parent = trace_parent(request.metadata().as_ref());
        let request = request.into_inner();
        if Acks::try_from(request.acks) == Ok(Acks::None) {
            let what = "a unary produce is answered, so it cannot ask for no acknowledgement";
            return Err(call.failed(Failure::new(ErrorCode::InvalidRequest, what)));
        }
        let (outlet, mut done) = mpsc::unbounded_channel();
        let (source, admitted) = (self.source(), intake.pop());
        self.submit(Arrival {
            request,
            source,
            outlet,
            place: None,
            admitted,
            parent,
        })
        .await;
        match done.recv().await {
            Some(done) => Ok(Response::new(done.response)),
            None => Err(call.failed(stopping())),
        }
    }
}
