//! A request body that holds a message back until its bytes are granted.
//!
//! gRPC puts five bytes before each message: a flag and the length. They are read here, the
//! length is acquired, and only then do they go on to the decoder, which reserves memory by them.
//! Nothing else of the bytes is looked at or copied. While a message waits its client's window
//! fills and the client stops sending: that is the back-pressure on streams. A message that was
//! granted and does not arrive in time ends the call, so that a stalled client frees its bytes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use forebay_proto::error::Failure;
use forebay_proto::v1::ErrorCode;
use forebay_runtime::clock::{self, Clock};
use forebay_runtime::permits::{AcquireError, BytePermit, BytePermits, TryAcquireError};
use futures_util::future::BoxFuture;
use http_body::{Body as HttpBody, Frame};
use prometheus_client::metrics::gauge::Gauge;
use tonic::Status;
use tonic::body::Body;

use super::{Admitted, Intake};

const HEADER_LEN: usize = 5;
/// A granted message must have arrived after this long.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(30);

/// How a call's messages are admitted.
#[derive(Clone)]
pub(crate) struct Metering {
    pub permits: BytePermits,
    pub held: Gauge,
    pub clock: Arc<dyn Clock>,
    /// Longest message.
    pub message_bytes_max: usize,
    /// Bytes acquired per byte of a message: what decoding makes of it at worst.
    pub factor: u64,
    /// Longest wait for bytes, none on streams.
    pub wait_max: Option<Duration>,
    /// One message, where the call is not a stream.
    pub single: bool,
}

pub(crate) struct Metered {
    inner: Body,
    metering: Metering,
    intake: Intake,
    header: [u8; HEADER_LEN],
    header_len: usize,
    /// Bytes of the current message that have not gone on.
    left: usize,
    /// Received, not gone on.
    rest: Bytes,
    waiting: Option<BoxFuture<'static, Result<BytePermit, Failure>>>,
    arrival: Option<BoxFuture<'static, ()>>,
    messages: usize,
    ended: bool,
}

impl Metered {
    pub(crate) fn new(inner: Body, metering: Metering, intake: Intake) -> Self {
        Self {
            inner,
            metering,
            intake,
            header: [0; HEADER_LEN],
            header_len: 0,
            left: 0,
            rest: Bytes::new(),
            waiting: None,
            arrival: None,
            messages: 0,
            ended: false,
        }
    }

    /// Moves bytes into the header. True once it is whole.
    fn fill_header(&mut self) -> bool {
        while self.header_len < HEADER_LEN && self.rest.has_remaining() {
            if let Some(slot) = self.header.get_mut(self.header_len) {
                *slot = self.rest.get_u8();
            }
            self.header_len += 1;
        }
        self.header_len == HEADER_LEN
    }

    /// Asks for the bytes of the message whose header is whole.
    fn admit(&mut self) -> Result<Option<BytePermit>, Failure> {
        let [_, length @ ..] = self.header;
        let len = u32::from_be_bytes(length) as usize;
        let max = self.metering.message_bytes_max;
        if len > max {
            let what = format!("message of {len} bytes exceeds the limit of {max}");
            return Err(Failure::new(ErrorCode::InvalidRequest, what));
        }
        if self.metering.single && self.messages > 0 {
            return Err(Failure::new(
                ErrorCode::InvalidRequest,
                "more than one message in a unary call",
            ));
        }
        self.messages += 1;
        self.left = len;
        let pool = &self.metering.permits;
        let bytes = (len as u64)
            .saturating_mul(self.metering.factor)
            .min(pool.request_bytes_max());
        match pool.try_acquire(bytes) {
            Ok(permit) => return Ok(Some(permit)),
            Err(TryAcquireError::Full { .. }) => {}
            Err(TryAcquireError::TooLarge(_) | TryAcquireError::Closed) => return Err(stopping()),
        }
        let (pool, clock, wait_max) = (
            pool.clone(),
            Arc::clone(&self.metering.clock),
            self.metering.wait_max,
        );
        self.waiting = Some(Box::pin(async move {
            let granted = match wait_max {
                None => pool.acquire(bytes).await,
                Some(limit) => match clock::timeout(&*clock, limit, pool.acquire(bytes)).await {
                    Ok(granted) => granted,
                    Err(_elapsed) => return Err(overloaded(&pool, bytes, limit)),
                },
            };
            granted.map_err(|error| match error {
                AcquireError::TooLarge(too_large) => {
                    Failure::new(ErrorCode::InvalidRequest, too_large.to_string())
                }
                AcquireError::Closed => stopping(),
            })
        }));
        Ok(None)
    }

    /// Lets the header of an admitted message go on.
    fn admitted(&mut self, permit: BytePermit) -> Frame<Bytes> {
        self.intake.push(Admitted::new(permit, &self.metering.held));
        self.header_len = 0;
        Frame::data(Bytes::copy_from_slice(&self.header))
    }

    fn fail(&mut self, failure: Failure) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.ended = true;
        self.rest = Bytes::new();
        Poll::Ready(Some(Err(failure.into())))
    }
}

fn stopping() -> Failure {
    Failure::new(ErrorCode::ShuttingDown, "the proxy is stopping")
}

fn overloaded(pool: &BytePermits, bytes: u64, limit: Duration) -> Failure {
    let (free, max) = (pool.available(), pool.bytes_max());
    let what = format!("no room for a request of {bytes} bytes within {limit:?}: {free} of {max} are free");
    Failure::new(ErrorCode::Overloaded, what)
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if this.ended {
                return Poll::Ready(None);
            }
            if let Some(waiting) = &mut this.waiting {
                let granted = ready!(waiting.as_mut().poll(cx));
                this.waiting = None;
                return match granted {
                    Ok(permit) => Poll::Ready(Some(Ok(this.admitted(permit)))),
                    Err(failure) => this.fail(failure),
                };
            }
            if this.rest.has_remaining() {
                if this.left > 0 {
                    let part = this.rest.split_to(this.left.min(this.rest.len()));
                    this.left -= part.len();
                    if this.left == 0 {
                        this.arrival = None;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(part))));
                }
                if !this.fill_header() {
                    continue;
                }
                match this.admit() {
                    Ok(Some(permit)) => return Poll::Ready(Some(Ok(this.admitted(permit)))),
                    Ok(None) => continue,
                    Err(failure) => return this.fail(failure),
                }
            }
            match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                Poll::Ready(Some(Err(status))) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(status)));
                }
                Poll::Ready(None) => {
                    this.ended = true;
                    if this.header_len > 0 {
                        let cut =
                            Failure::new(ErrorCode::InvalidRequest, "request ends inside a message header");
                        return Poll::Ready(Some(Err(cut.into())));
                    }
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    if this.left == 0 {
                        return Poll::Pending;
                    }
                    let clock = &this.metering.clock;
                    let arrival = this.arrival.get_or_insert_with(|| clock.sleep(ARRIVAL_TIMEOUT));
                    ready!(arrival.as_mut().poll(cx));
                    let left = this.left;
                    let what = format!("{left} bytes of a message were missing after {ARRIVAL_TIMEOUT:?}");
                    return this.fail(Failure::new(ErrorCode::InvalidRequest, what));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use std::future::poll_fn;

    use forebay_runtime::clock::{ManualClock, SystemClock};
    use futures_util::FutureExt;
    use tokio::sync::mpsc;

    use super::*;

    /// A body whose frames a test sends.
    struct Fed(mpsc::UnboundedReceiver<Bytes>);

    impl HttpBody for Fed {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0
                .poll_recv(cx)
                .map(|data| data.map(|data| Ok(Frame::data(data))))
        }
    }

    fn metering(bytes: u64, clock: Arc<dyn Clock>) -> Metering {
        Metering {
            permits: BytePermits::new(bytes),
            held: Gauge::default(),
            clock,
            message_bytes_max: 1000,
            factor: 1,
            wait_max: None,
            single: false,
        }
    }

    fn message(len: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((len as u32).to_be_bytes());
        bytes.extend((0..len).map(|at| at as u8));
        bytes
    }

    async fn next(body: &mut Metered) -> Option<Result<Bytes, Status>> {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        Some(frame.map(|frame| frame.into_data().unwrap()))
    }

    #[tokio::test]
    async fn bytes_pass_unchanged_however_they_are_cut_and_each_message_is_granted() {
        let whole: Vec<u8> = [message(3), message(0), message(400), message(1)].concat();
        for cut in [1, 2, 5, 7, 100, 1000] {
            let (tx, rx) = mpsc::unbounded_channel();
            let intake = Intake::default();
            let mut body = Metered::new(
                Body::new(Fed(rx)),
                metering(1000, Arc::new(SystemClock::new())),
                intake.clone(),
            );
            whole
                .chunks(cut)
                .for_each(|chunk| tx.send(Bytes::copy_from_slice(chunk)).unwrap());
            drop(tx);
            let mut passed = Vec::new();
            while let Some(data) = next(&mut body).await {
                passed.extend_from_slice(&data.unwrap());
            }
            assert_eq!(passed, whole, "cut {cut}");
            let granted: Vec<_> = std::iter::from_fn(|| intake.pop())
                .map(|one| one.bytes())
                .collect();
            assert_eq!(granted, [3, 0, 400, 1]);
        }
    }

    #[tokio::test]
    async fn a_message_waits_for_its_bytes_and_not_even_its_header_passes_before() {
        let (tx, rx) = mpsc::unbounded_channel();
        let (metering, intake) = (metering(500, Arc::new(SystemClock::new())), Intake::default());
        let pool = metering.permits.clone();
        let held = pool.try_acquire(200).unwrap();
        let mut body = Metered::new(Body::new(Fed(rx)), metering, intake.clone());
        tx.send(message(400).into()).unwrap();
        assert!(next(&mut body).now_or_never().is_none());
        drop(held);
        assert_eq!(next(&mut body).await.unwrap().unwrap().len(), HEADER_LEN);
        assert_eq!(pool.available(), 100);
        drop(intake.pop().unwrap());
        assert_eq!(pool.available(), 500);
    }

    #[tokio::test]
    async fn a_unary_call_that_waits_too_long_is_told_that_the_proxy_is_overloaded() {
        let clock = ManualClock::new(0);
        let (tx, rx) = mpsc::unbounded_channel();
        let mut metering = metering(500, Arc::new(clock.clone()));
        metering.wait_max = Some(Duration::from_secs(1));
        let _held = metering.permits.try_acquire(200).unwrap();
        let mut body = Metered::new(Body::new(Fed(rx)), metering, Intake::default());
        tx.send(message(400).into()).unwrap();
        assert!(next(&mut body).now_or_never().is_none());
        clock.advance(Duration::from_secs(1));
        let failure = Failure::from(next(&mut body).await.unwrap().unwrap_err());
        assert_eq!(failure.code, ErrorCode::Overloaded);
        assert!(next(&mut body).await.is_none());
    }

    #[tokio::test]
    async fn a_granted_message_that_never_arrives_ends_the_call() {
        let clock = ManualClock::new(0);
        let (tx, rx) = mpsc::unbounded_channel();
        let mut body = Metered::new(
            Body::new(Fed(rx)),
            metering(500, Arc::new(clock.clone())),
            Intake::default(),
        );
        tx.send(message(400)[..9].to_vec().into()).unwrap();
        assert_eq!(next(&mut body).await.unwrap().unwrap().len(), HEADER_LEN);
        assert_eq!(next(&mut body).await.unwrap().unwrap().len(), 4);
        assert!(next(&mut body).now_or_never().is_none());
        clock.advance(ARRIVAL_TIMEOUT);
        let failure = Failure::from(next(&mut body).await.unwrap().unwrap_err());
        assert!(failure.message.contains("396 bytes"), "{failure}");
    }

    #[tokio::test]
    async fn too_long_a_message_and_a_cut_header_are_refused() {
        for (bytes, words) in [
            (message(1001), "1001 bytes exceeds the limit of 1000"),
            (vec![0, 0], "inside a message header"),
        ] {
            let (tx, rx) = mpsc::unbounded_channel();
            let mut body = Metered::new(
                Body::new(Fed(rx)),
                metering(5000, Arc::new(SystemClock::new())),
                Intake::default(),
            );
            tx.send(bytes.into()).unwrap();
            drop(tx);
            let failure = Failure::from(next(&mut body).await.unwrap().unwrap_err());
            assert!(failure.message.contains(words), "{failure}");
        }
    }
}
