//! The calls of the `Data` service, each with its own way in and out.
//!
//! Produce calls are decoded by [`ProduceCodec`], fetches are answered without copies, the rest
//! goes through the generated server. All requests are metered.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use forebay_proto::v1::data_server::{Data, DataServer};
use forebay_proto::v1::{FetchRequest, ProduceRequest, ProduceResponse};
use prost::Message as _;
use tonic::body::Body;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder, Streaming};
use tonic::codegen::http;
use tonic::codegen::{BoxFuture, Service};
use tonic::server::{Grpc, NamedService, StreamingService, UnaryService};
use tonic::{Request, Response, Status};

use super::answer;
use super::codec::ProduceCodec;
use super::metered::{Metered, Metering};
use super::{Intake, MESSAGE_BYTES_MAX, trace_parent};
use crate::data::DataHandler;
use crate::produce::stream::AnswerStream;

const PRODUCE: &str = "/forebay.v1.Data/Produce";
const PRODUCE_STREAM: &str = "/forebay.v1.Data/ProduceStream";
const FETCH: &str = "/forebay.v1.Data/Fetch";
/// Longest request that is not a produce.
const QUESTION_BYTES_MAX: usize = 4 << 20;
/// Memory that a question's decoded form may take per byte: its smallest element has two bytes.
const QUESTION_FACTOR: u64 = 40;

/// The `Data` service, to be added to a server's routes.
#[derive(Clone)]
pub struct DataService {
    handler: DataHandler,
    generated: DataServer<DataHandler>,
    produce: Metering,
    stream: Metering,
    question: Metering,
}

impl std::fmt::Debug for DataService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataService").finish_non_exhaustive()
    }
}

impl NamedService for DataService {
    const NAME: &'static str = "forebay.v1.Data";
}

impl DataService {
    pub(crate) fn new(handler: DataHandler) -> Self {
        let core = &handler.core;
        // A message that is longer than the pool could never be admitted as a whole.
        let pool_bytes = usize::try_from(core.requests.request_bytes_max()).unwrap_or(usize::MAX);
        let produce = Metering {
            permits: core.requests.clone(),
            held: core.metrics.request_bytes_held.clone(),
            clock: Arc::clone(&core.clock),
            message_bytes_max: MESSAGE_BYTES_MAX.min(pool_bytes),
            factor: 1,
            wait_max: Some(core.config.admission_timeout),
            single: true,
        };
        let stream = Metering {
            wait_max: None,
            single: false,
            ..produce.clone()
        };
        let question = Metering {
            factor: QUESTION_FACTOR,
            message_bytes_max: QUESTION_BYTES_MAX.min(pool_bytes),
            ..produce.clone()
        };
        let generated = DataServer::new(handler.clone())
            .max_decoding_message_size(QUESTION_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self {
            handler,
            generated,
            produce,
            stream,
            question,
        }
    }
}

impl Service<http::Request<Body>> for DataService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let handler = self.handler.clone();
        match request.uri().path() {
            PRODUCE => {
                let (request, _) = metered(request, &self.produce);
                Box::pin(async move { Ok(grpc().unary(ProduceCall(handler), request).await) })
            }
            PRODUCE_STREAM => {
                let (request, _) = metered(request, &self.stream);
                Box::pin(async move { Ok(grpc().streaming(StreamCall(handler), request).await) })
            }
            FETCH => {
                let (request, intake) = metered(request, &self.question);
                Box::pin(async move { Ok(fetch(handler, request, intake).await) })
            }
            _ => {
                let (request, intake) = metered(request, &self.question);
                let call = self.generated.call(request);
                Box::pin(async move {
                    let response = call.await;
                    drop(intake);
                    response
                })
            }
        }
    }
}

/// The same request behind a body that admits each message.
fn metered(request: http::Request<Body>, metering: &Metering) -> (http::Request<Body>, Intake) {
    let intake = Intake::default();
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(intake.clone());
    let body = Body::new(Metered::new(body, metering.clone(), intake.clone()));
    (http::Request::from_parts(parts, body), intake)
}

fn grpc() -> Grpc<ProduceCodec> {
    Grpc::new(ProduceCodec)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

async fn fetch(handler: DataHandler, request: http::Request<Body>, intake: Intake) -> http::Response<Body> {
    let parent = trace_parent(request.headers());
    let mut requests =
        Streaming::new_request(FetchDecoder, request.into_body(), None, Some(QUESTION_BYTES_MAX));
    let answered = match requests.message().await {
        Ok(Some(request)) => handler.fetch_answer(request, parent.as_ref()).await,
        Ok(None) => Err(Status::internal("fetch without a request")),
        Err(status) => Err(status),
    };
    drop(intake);
    match answered {
        Ok(answer) => answer::response(answer),
        Err(status) => status.into_http(),
    }
}

struct FetchDecoder;

impl Decoder for FetchDecoder {
    type Item = FetchRequest;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<FetchRequest>, Status> {
        FetchRequest::decode(src)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(1 << 10, 1 << 10)
    }
}

struct ProduceCall(DataHandler);

impl UnaryService<ProduceRequest> for ProduceCall {
    type Response = ProduceResponse;
    type Future = BoxFuture<Response<ProduceResponse>, Status>;

    fn call(&mut self, request: Request<ProduceRequest>) -> Self::Future {
        let handler = self.0.clone();
        Box::pin(async move { handler.produce(request).await })
    }
}

struct StreamCall(DataHandler);

impl StreamingService<ProduceRequest> for StreamCall {
    type Response = ProduceResponse;
    type ResponseStream = AnswerStream;
    type Future = BoxFuture<Response<AnswerStream>, Status>;

    fn call(&mut self, request: Request<Streaming<ProduceRequest>>) -> Self::Future {
        let handler = self.0.clone();
        Box::pin(async move { handler.produce_stream(request).await })
    }
}
