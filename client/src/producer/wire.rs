//! The produce stream: one per connection, pipelined, matched by request id.
//!
//! A request is a few bytes of our own and the sealed batch as it is. Encoding it by the generated
//! code would copy each batch into the codec's buffer, so the body of the call is ours: it hands
//! the pieces to HTTP/2 one by one. Headers, path and answers are the generated client's.
//!
//! The queue into the body is short: requests that cannot be written yet wait as records in their
//! partitions, where they still gather.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use forebay_proto::v1::ProduceResponse;
use forebay_proto::v1::data_client::DataClient;
use forebay_proto::v1::{Acks, ErrorCode, ProduceRequest};
use futures_util::future::BoxFuture;
use http_body::Frame;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::error::{Refusal, is_transport};
use crate::link::{ConnectError, Connected, Link, MESSAGE_BYTES_MAX};
use crate::trace::TraceContext;

/// Requests that wait for the connection.
const REQUESTS_QUEUED_MAX: usize = 4;
/// Batches smaller than this are copied next to their header rather than sent as their own piece.
const COPY_BYTES_MAX: usize = 4 << 10;
/// Compression flag and length of a gRPC message.
const MESSAGE_PREFIX: usize = 5;

/// Field numbers of `ProduceRequest` and `PartitionProduce`; a test compares them with the
/// generated code.
mod field {
    pub(super) const REQUEST_ID: u32 = 1;
    pub(super) const ACKS: u32 = 2;
    pub(super) const TIMEOUT_MS: u32 = 3;
    pub(super) const PARTITIONS: u32 = 4;
    pub(super) const TOPIC: u32 = 1;
    pub(super) const PARTITION: u32 = 2;
    pub(super) const BATCH: u32 = 3;
    pub(super) const TRACEPARENT: u32 = 5;
    pub(super) const TRACESTATE: u32 = 6;
}

/// One partition's part of a request.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub topic: Arc<str>,
    pub partition: u32,
    pub batch: Bytes,
    /// The span that sends it.
    pub trace: Option<Box<TraceContext>>,
}

/// A produce request as the pieces that go onto the wire, gRPC's own prefix included.
pub(crate) fn encode(request_id: u64, acks: Acks, timeout_ms: u32, parts: &[Part]) -> VecDeque<Bytes> {
    let mut head = BytesMut::with_capacity(64 + parts.len() * 96);
    head.put_bytes(0, MESSAGE_PREFIX);
    put_number(&mut head, field::REQUEST_ID, request_id);
    put_number(&mut head, field::ACKS, acks as u64);
    put_number(&mut head, field::TIMEOUT_MS, timeout_ms.into());

    let mut pieces = VecDeque::new();
    let mut whole = 0;
    for part in parts {
        let (topic, batch) = (part.topic.len(), part.batch.len());
        let partition = u64::from(part.partition);
        let traceparent = part.trace.as_ref().map(|trace| trace.traceparent());
        let tracestate = part.trace.as_ref().and_then(|trace| trace.tracestate());
        let texts = [
            (field::TRACEPARENT, traceparent.as_deref()),
            (field::TRACESTATE, tracestate),
        ];
        let texts = texts.iter().filter_map(|(field, text)| Some((*field, (*text)?)));
        // Every tag here is below 16 and so takes one byte.
        let text_len = |(_, text): (u32, &str)| 1 + encoded_len_varint(text.len() as u64) + text.len();
        let len = texts.clone().map(text_len).sum::<usize>()
            + 3
            + encoded_len_varint(topic as u64)
            + topic
            + encoded_len_varint(partition)
            + encoded_len_varint(batch as u64)
            + batch;
        put_len(&mut head, field::PARTITIONS, len);
        put_len(&mut head, field::TOPIC, topic);
        head.put_slice(part.topic.as_bytes());
        put_number(&mut head, field::PARTITION, partition);
        for (field, text) in texts {
            put_len(&mut head, field, text.len());
            head.put_slice(text.as_bytes());
        }
        put_len(&mut head, field::BATCH, batch);
        if batch < COPY_BYTES_MAX {
            head.put_slice(&part.batch);
        } else {
            whole += head.len() + batch;
            pieces.push_back(head.split().freeze());
            pieces.push_back(part.batch.clone());
        }
    }
    if !head.is_empty() {
        whole += head.len();
        pieces.push_back(head.freeze());
    }
    write_prefix(&mut pieces, whole - MESSAGE_PREFIX);
    pieces
}

/// Sets the length of the message, known only once all of it is there. The first piece is ours
/// alone, so this copies nothing.
fn write_prefix(pieces: &mut VecDeque<Bytes>, message: usize) {
    let Some(first) = pieces.pop_front() else { return };
    let mut first = first
        .try_into_mut()
        .unwrap_or_else(|shared| BytesMut::from(shared.as_ref()));
    if let Some([_, len @ ..]) = first.first_chunk_mut::<MESSAGE_PREFIX>() {
        // A request is bounded by the memory of the producer, which is below 4 GiB.
        *len = (message as u32).to_be_bytes();
    }
    pieces.push_front(first.freeze());
}

fn put_number(out: &mut BytesMut, field: u32, value: u64) {
    encode_key(field, WireType::Varint, out);
    encode_varint(value, out);
}

fn put_len(out: &mut BytesMut, field: u32, len: usize) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(len as u64, out);
}

/// The body of the call: the pieces of each request in turn.
struct RequestBody {
    requests: mpsc::Receiver<VecDeque<Bytes>>,
    pieces: VecDeque<Bytes>,
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            match std::task::ready!(self.requests.poll_recv(cx)) {
                Some(pieces) => self.pieces = pieces,
                None => return Poll::Ready(None),
            }
        }
    }
}

/// A channel that sends our body in place of the generated client's.
struct WithBody {
    channel: Channel,
    body: Option<Body>,
}

impl Service<http::Request<Body>> for WithBody {
    type Response = http::Response<Body>;
    type Error = <Channel as Service<http::Request<Body>>>::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (parts, empty) = request.into_parts();
        self.channel.call(http::Request::from_parts(
            parts,
            self.body.take().unwrap_or(empty),
        ))
    }
}

/// What happened to the stream.
#[derive(Debug)]
pub(crate) enum Event {
    /// There is a stream now.
    Opened,
    /// There is none, because no endpoint accepts a connection.
    Unreachable(ConnectError),
    Answer(ProduceResponse),
    /// Another request can be written.
    Room,
    /// The stream is over; nothing that was not answered will be.
    Ended(Refusal),
}

enum Answers {
    /// The server may send its headers only with the first answer.
    Awaited(BoxFuture<'static, Result<Streaming<ProduceResponse>, Status>>),
    Flowing(Box<Streaming<ProduceResponse>>),
}

struct Open {
    requests: mpsc::Sender<VecDeque<Bytes>>,
    answers: Answers,
    generation: u64,
    /// Whether someone waits for room.
    blocked: bool,
}

enum State {
    Idle,
    Connecting(BoxFuture<'static, Result<Connected, ConnectError>>),
    Open(Box<Open>),
}

/// The produce stream of a producer, opened on demand.
pub(crate) struct Stream {
    link: Arc<Link>,
    state: State,
}

impl Stream {
    pub(crate) const fn new(link: Arc<Link>) -> Self {
        Self {
            link,
            state: State::Idle,
        }
    }

    pub(crate) const fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    pub(crate) const fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Begins to open a stream.
    pub(crate) fn open(&mut self) {
        let link = self.link.clone();
        self.state = State::Connecting(Box::pin(async move { link.connected().await }));
    }

    /// Drops the stream and its connection.
    pub(crate) fn abandon(&mut self) {
        if let State::Open(open) = std::mem::replace(&mut self.state, State::Idle) {
            self.link.lost(open.generation);
        }
    }

    /// Leave to write one request, if there is room; where there is none, [`Event::Room`] follows.
    pub(crate) fn permit(&mut self) -> Option<mpsc::Permit<'_, VecDeque<Bytes>>> {
        let State::Open(open) = &mut self.state else {
            return None;
        };
        let permit = open.requests.try_reserve().ok();
        open.blocked = permit.is_none();
        permit
    }

    /// The next thing that happens; never while there is no stream.
    ///
    /// Cancel safety: all that is waited for lives in `self` or, like an answer in a stream and
    /// room in a queue, is not lost when the wait is.
    pub(crate) async fn event(&mut self) -> Event {
        match &mut self.state {
            State::Idle => std::future::pending().await,
            State::Connecting(connecting) => match connecting.await {
                Ok(connected) => {
                    self.state = State::Open(Box::new(Open::start(connected)));
                    Event::Opened
                }
                Err(error) => {
                    self.state = State::Idle;
                    Event::Unreachable(error)
                }
            },
            State::Open(open) => {
                let event = open.event().await;
                if let Event::Ended(_) = event {
                    self.abandon();
                }
                event
            }
        }
    }
}

impl Open {
    fn start(connected: Connected) -> Self {
        let (requests, receiver) = mpsc::channel(REQUESTS_QUEUED_MAX);
        let body = RequestBody {
            requests: receiver,
            pieces: VecDeque::new(),
        };
        let service = WithBody {
            channel: connected.channel,
            body: Some(Body::new(body)),
        };
        let mut client = DataClient::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let call = async move {
            let none = tokio_stream::empty::<ProduceRequest>();
            client.produce_stream(none).await.map(tonic::Response::into_inner)
        };
        Self {
            requests,
            answers: Answers::Awaited(Box::pin(call)),
            generation: connected.generation,
            blocked: false,
        }
    }

    async fn event(&mut self) -> Event {
        let Self {
            requests,
            answers,
            blocked,
            ..
        } = self;
        tokio::select! {
            biased;
            answer = answers.next() => match answer {
                Ok(Some(answer)) => Event::Answer(answer),
                Ok(None) => Event::Ended(Refusal::new(ErrorCode::OutcomeUnknown, "the server ended the stream")),
                Err(status) => {
                    let from = if is_transport(&status) { "connection lost" } else { "stream refused" };
                    let message = format!("{from}: {}", Refusal::from(status).message);
                    Event::Ended(Refusal::new(ErrorCode::OutcomeUnknown, message))
                }
            },
            room = requests.reserve(), if *blocked => {
                *blocked = false;
                match room {
                    Ok(_) => Event::Room,
                    Err(_) => Event::Ended(Refusal::new(ErrorCode::OutcomeUnknown, "connection closed")),
                }
            }
        }
    }
}

impl Answers {
    async fn next(&mut self) -> Result<Option<ProduceResponse>, Status> {
        loop {
            match self {
                Self::Awaited(call) => *self = Self::Flowing(Box::new(call.await?)),
                Self::Flowing(answers) => return answers.message().await,
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

    use forebay_proto::v1::{PartitionProduce, partition_produce::Data};
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    proptest! {
        #[test]
        fn the_pieces_are_the_message_that_the_generated_code_would_send(
            request_id: u64,
            timeout_ms: u32,
            parts in prop::collection::vec(("[a-z]{1,300}", any::<u32>(), 0usize..10_000, any::<bool>(), "[a-z=]{0,9}"), 0..6),
        ) {
            let parts: Vec<Part> = parts
                .into_iter()
                .map(|(topic, partition, len, traced, state)| Part {
                    topic: topic.into(),
                    partition,
                    batch: vec![partition as u8; len].into(),
                    trace: TraceContext::new([5; 16], [6; 8], 1, &state).filter(|_| traced).map(Box::new),
                })
                .collect();
            let pieces = encode(request_id, Acks::One, timeout_ms, &parts);
            let sent: Vec<u8> = pieces.iter().flatten().copied().collect();
            prop_assert_eq!(sent[0], 0);
            let len = u32::from_be_bytes(sent[1..5].try_into().unwrap()) as usize;
            prop_assert_eq!(len, sent.len() - MESSAGE_PREFIX);
            let request = ProduceRequest {
                request_id,
                acks: Acks::One as i32,
                timeout_ms,
                partitions: parts
                    .iter()
                    .map(|part| PartitionProduce {
                        topic: part.topic.to_string(),
                        partition: part.partition,
                        data: Some(Data::Batch(part.batch.clone())),
                        traceparent: part.trace.as_ref().map(|trace| trace.traceparent()).unwrap_or_default(),
                        tracestate: part
                            .trace
                            .as_ref()
                            .and_then(|trace| trace.tracestate())
                            .unwrap_or_default()
                            .to_owned(),
                    })
                    .collect(),
            };
            prop_assert_eq!(ProduceRequest::decode(&sent[MESSAGE_PREFIX..]).unwrap(), request);
        }
    }

    #[test]
    fn a_large_batch_is_sent_as_it_is() {
        let batch = Bytes::from(vec![7; COPY_BYTES_MAX]);
        let part = Part {
            topic: "t".into(),
            partition: 0,
            batch: batch.clone(),
            trace: None,
        };
        let pieces = encode(1, Acks::All, 0, &[part]);
        assert!(
            pieces
                .iter()
                .any(|piece| std::ptr::eq(piece.as_ptr(), batch.as_ptr()))
        );
    }
}
