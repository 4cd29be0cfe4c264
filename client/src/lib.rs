//! Rust client of Forebay: produce, consume by partition, administer.
//!
//! [`Client`] knows the endpoints. [`Producer`] gathers records into batches and sends them over
//! one pipelined stream; [`Consumer`] fetches partitions from where it is told; [`Admin`] makes,
//! lists and describes topics. Batches are Kafka's RecordBatch v2 from here to the disk.
//!
//! Everything queued is bounded, tasks end when their handle is dropped, and a request whose
//! outcome nobody knows is reported as unknown, never as failed.
//!
//! ```no_run
//! use forebay_client::{Client, ClientConfig, ConsumerConfig, ProducerConfig, ProducerRecord, StartPosition};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(ClientConfig::new(["127.0.0.1:7450"])).await?;
//!
//! let producer = client.producer(ProducerConfig::default()).await?;
//! let delivery = producer.send(ProducerRecord::new("events", b"hello").key(b"k")).await?;
//! let written = delivery.await?;
//! producer.close().await?;
//!
//! let mut consumer = client.consumer(ConsumerConfig::default())?;
//! consumer.assign("events", written.partition, StartPosition::Earliest).await?;
//! let mut batches = consumer.until_end().await?;
//! while let Some(batch) = batches.next_batch().await? {
//!     for record in batch {
//!         println!("{:?}", record?.value);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod admin;
mod backoff;
mod client;
mod config;
mod consumer;
mod error;
mod link;
mod offsets;
mod producer;
pub mod trace;

pub use admin::{Admin, AdminError};
pub use client::Client;
pub use config::{ClientConfig, ConfigError};
pub use consumer::{
    ConsumeError, ConsumedBatch, ConsumedRecords, Consumer, ConsumerConfig, ConsumerRecord, OnOutOfRange,
    RawBatch, UntilEnd,
};
pub use error::Refusal;
pub use forebay_proto::v1::{
    DescribeClusterResponse, ErrorCode, PartitionDescription, RetryClass, TopicDescription, TopicMetadata,
    TopicSetting, TopicSummary,
};
pub use forebay_record::Offset;
pub use forebay_record::ProducerId;
pub use forebay_record::batch::{BatchError, BuildError, Codec as Compression, OwnedHeaders, ProducerStamp};
pub use link::{ConnectError, Tried};
pub use offsets::{FoundOffset, OffsetsError, StartPosition};
pub use producer::{
    Acks, CloseError, Delivery, DeliveryError, FlushError, PartitionWriter, Partitioner, Producer,
    ProducerConfig, ProducerError, ProducerRecord, RecordMetadata, Retries, SendError, Space, TopicProducer,
    WriteError,
};
