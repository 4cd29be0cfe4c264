//! What a consumer hands out: whole batches as they are, or the records in them.
//!
//! Keys, values and headers are slices of the fetched bytes, or of the decompressed batch.

use std::sync::Arc;

use bytes::Bytes;
use forebay_record::Offset;
use forebay_record::batch::{DecodedBatch, Header, OwnedHeaders, OwnedRecordsIter};

use super::ConsumeError;
use crate::trace::{Receive, TraceContext};

/// A batch as the service stores it. Its checksum has not been looked at.
#[derive(Debug, Clone)]
pub struct RawBatch {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// What its header says.
    pub header: Header,
    /// All of it, header included.
    pub bytes: Bytes,
    /// The first offset wanted: the batch may begin below it.
    pub from: Offset,
    /// First offset of the partition that was not committed when it was fetched.
    pub high_watermark: Offset,
}

/// A batch whose checksum was checked, and whose records can be read.
#[derive(Debug, Clone)]
pub struct ConsumedBatch {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// First offset of the partition that was not committed when it was fetched.
    pub high_watermark: Offset,
    pub(super) from: Offset,
    /// Exclusive.
    pub(super) until: Offset,
    pub(super) decoded: DecodedBatch,
    pub(super) receive: Receive,
}

impl ConsumedBatch {
    /// What its header says, of records that were not asked for too.
    #[must_use]
    pub const fn header(&self) -> &Header {
        self.decoded.header()
    }

    /// The first offset after the batch.
    #[must_use]
    pub const fn end_offset(&self) -> Offset {
        self.decoded.header().end_offset()
    }
}

impl IntoIterator for ConsumedBatch {
    type Item = Result<ConsumerRecord, ConsumeError>;
    type IntoIter = ConsumedRecords;

    fn into_iter(self) -> ConsumedRecords {
        ConsumedRecords {
            topic: self.topic,
            partition: self.partition,
            from: self.from,
            until: self.until,
            at: self.decoded.header().base_offset(),
            records: self.decoded.into_iter(),
            receive: self.receive,
        }
    }
}

/// The records of a batch that were asked for, in order. Ends after an error.
#[derive(Debug, Clone)]
pub struct ConsumedRecords {
    topic: Arc<str>,
    partition: u32,
    from: Offset,
    until: Offset,
    at: Offset,
    records: OwnedRecordsIter,
    receive: Receive,
}

impl Iterator for ConsumedRecords {
    type Item = Result<ConsumerRecord, ConsumeError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let record = match self.records.next()? {
                Ok(record) => record,
                Err(source) => {
                    let (topic, partition, offset) = (self.topic.clone(), self.partition, self.at);
                    return Some(Err(ConsumeError::Corrupt {
                        topic,
                        partition,
                        offset,
                        source,
                    }));
                }
            };
            self.at = Offset(record.offset.0.saturating_add(1));
            if record.offset < self.from {
                continue;
            }
            if record.offset >= self.until {
                return None;
            }
            let trace = self
                .receive
                .record(&self.topic, self.partition, record.offset, &record.headers);
            return Some(Ok(ConsumerRecord {
                trace,
                topic: self.topic.clone(),
                partition: self.partition,
                offset: record.offset,
                timestamp_ms: record.timestamp_ms,
                key: record.key,
                value: record.value,
                headers: record.headers,
            }));
        }
    }
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerRecord {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// Its place in the partition.
    pub offset: Offset,
    /// Milliseconds since 1970.
    pub timestamp_ms: i64,
    /// The key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Option<Bytes>,
    /// Headers, in order; names may repeat.
    pub headers: OwnedHeaders,
    /// Names the span of its reception to the spans of what is done about it; none where its trace
    /// is not recorded, or the client has no tracer.
    pub trace: Option<Box<TraceContext>>,
}
