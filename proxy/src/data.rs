//! The `Data` service: each call's bounds and its answer.

use std::sync::Arc;

use bytes::BytesMut;
use forebay_meta::topics;
use forebay_proto::error::Failure;
use forebay_proto::v1::data_server::Data;
use forebay_proto::v1::{
    Error, ErrorCode, FetchRequest, FetchResponse, InitProducerRequest, InitProducerResponse,
    ListOffsetsRequest, ListOffsetsResponse, MetadataRequest, MetadataResponse, PartitionFetched,
    ProduceRequest, ProduceResponse, TopicMetadata,
};
use forebay_runtime::trace::{self, SpanKind, TraceContext};
use futures_util::StreamExt;
use futures_util::stream;
use tonic::{Request, Response, Status, Streaming};

use crate::core::Core;
use crate::fetch::FetchAnswer;
use crate::front::trace_parent;
use crate::produce::stream::AnswerStream;

/// Topics in one metadata request, and in the answer to one that asks for all.
const TOPICS_MAX: usize = 50_000;
/// Topics looked up at once.
const AT_ONCE: usize = 32;

/// Serves the `Data` service.
#[derive(Clone)]
pub(crate) struct DataHandler {
    pub core: Arc<Core>,
}

impl DataHandler {
    pub(crate) async fn fetch_answer(
        &self,
        request: FetchRequest,
        parent: Option<&TraceContext>,
    ) -> Result<FetchAnswer, Status> {
        let call = self.core.begin("fetch")?;
        let mut span = self.core.tracer.begin(parent, SpanKind::Server, || "proxy.fetch");
        if span.is_some() {
            span.set("messaging.system", "forebay");
            span.set_number("forebay.partitions", request.partitions.len() as u64);
        }
        let fetching = trace::scope(span.context(), call.core().fetcher.fetch(request));
        let answer = call.core().until_closing(fetching).await;
        let answer = answer.map_err(|failure| {
            span.fail(&failure);
            call.failed(failure)
        })?;
        if span.is_some() {
            let batches = answer.partitions.iter().flat_map(|one| &one.batches);
            let bytes: usize = batches.map(bytes::Bytes::len).sum();
            span.set_number("messaging.message.body.size", bytes as u64);
        }
        for one in answer.partitions.iter().filter(|one| !one.batches.is_empty()) {
            let bytes: usize = one.batches.iter().map(bytes::Bytes::len).sum();
            let topic = self.core.metrics.topics.of(&one.topic);
            topic.bytes_out.inc_by(bytes as u64);
        }
        for failure in answer.partitions.iter().filter_map(|one| one.failure.as_ref()) {
            self.core.metrics.failure(failure.code);
        }
        Ok(answer)
    }
}

#[tonic::async_trait]
impl Data for DataHandler {
    type ProduceStreamStream = AnswerStream;

    async fn produce(&self, request: Request<ProduceRequest>) -> Result<Response<ProduceResponse>, Status> {
        self.core.produce(request).await
    }

    async fn produce_stream(
        &self,
        request: Request<Streaming<ProduceRequest>>,
    ) -> Result<Response<AnswerStream>, Status> {
        self.core.produce_stream(request)
    }

    /// The service itself answers without the copies that this makes.
    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<FetchResponse>, Status> {
        let parent = trace_parent(request.metadata().as_ref());
        let answer = self.fetch_answer(request.into_inner(), parent.as_ref()).await?;
        let partitions = answer.partitions.into_iter().map(|one| {
            let mut batches = BytesMut::new();
            one.batches
                .iter()
                .for_each(|batch| batches.extend_from_slice(batch));
            PartitionFetched {
                topic: one.topic,
                partition: one.partition,
                high_watermark: one.high_watermark.0,
                log_start: one.log_start.0,
                batches: batches.freeze(),
                error: one.failure.map(Error::from),
                skip_to: one.skip_to.map(forebay_record::Offset::get),
            }
        });
        Ok(Response::new(FetchResponse {
            partitions: partitions.collect(),
        }))
    }

    async fn list_offsets(
        &self,
        request: Request<ListOffsetsRequest>,
    ) -> Result<Response<ListOffsetsResponse>, Status> {
        let call = self.core.begin("list_offsets")?;
        let partitions = request.into_inner().partitions;
        let resolved = call
            .core()
            .until_closing(call.core().list_offsets(partitions))
            .await;
        let partitions = resolved.map_err(|failure| call.failed(failure))?;
        Ok(Response::new(ListOffsetsResponse { partitions }))
    }

    async fn metadata(
        &self,
        request: Request<MetadataRequest>,
    ) -> Result<Response<MetadataResponse>, Status> {
        let call = self.core.begin("metadata")?;
        let names = request.into_inner().topics;
        let topics = call
            .core()
            .until_closing(self.topics(names))
            .await
            .map_err(|failure| call.failed(failure))?;
        Ok(Response::new(MetadataResponse {
            cluster: self.core.cluster.clone(),
            topics,
        }))
    }

    async fn init_producer(
        &self,
        request: Request<InitProducerRequest>,
    ) -> Result<Response<InitProducerResponse>, Status> {
        let call = self.core.begin("init_producer")?;
        let request = request.into_inner();
        // An id that was allocated and never heard of is lost, and nothing else.
        let asked = call
            .core()
            .routes
            .ask_any(|broker| async move { broker.init_producer(Request::new(request)).await });
        call.core()
            .until_closing(asked)
            .await
            .map_err(|failure| call.failed(failure))
    }
}

impl DataHandler {
    async fn topics(&self, names: Vec<String>) -> Result<Vec<TopicMetadata>, Failure> {
        if names.len() > TOPICS_MAX {
            let what = format!("{} topics in one request, {TOPICS_MAX} are allowed", names.len());
            return Err(Failure::new(ErrorCode::InvalidRequest, what));
        }
        if names.is_empty() {
            return self.all_topics().await;
        }
        let described = stream::iter(names).map(|name| self.topic(name)).buffered(AT_ONCE);
        Ok(described.collect().await)
    }

    async fn topic(&self, name: String) -> TopicMetadata {
        match self.core.routes.get(&name).await {
            Ok(route) => TopicMetadata {
                name,
                id: route.id.clone(),
                partitions: u32::try_from(route.partitions.len()).unwrap_or(u32::MAX),
                batch_bytes_max: u32::try_from(route.batch_bytes_max).unwrap_or(u32::MAX),
                error: None,
            },
            Err(failure) => TopicMetadata {
                name,
                error: Some(Error::from(failure)),
                ..TopicMetadata::default()
            },
        }
    }

    async fn all_topics(&self) -> Result<Vec<TopicMetadata>, Failure> {
        let mut all = Vec::new();
        let mut after = String::new();
        while all.len() < TOPICS_MAX {
            let page = topics::list(&*self.core.meta, &after, 0).await?;
            all.extend(page.topics.into_iter().map(|topic| TopicMetadata {
                name: topic.name,
                id: topic.id.as_bytes().to_vec().into(),
                partitions: u32::try_from(topic.partition_ids.len()).unwrap_or(u32::MAX),
                batch_bytes_max: topic.config.batch_bytes_max,
                error: None,
            }));
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        Ok(all)
    }
}
