//! Batches that are built and numbered by the caller, for one partition, in order.
//!
//! For programs that read a source which can be read again, such as files: one that keeps producer
//! id and numbers beside its place in the source, and cuts the same bytes into the same batches,
//! can be killed and go on, and the service recognises what it has already. The producer does not
//! number such batches anew, whatever happens, and tries them until they are delivered or refused
//! for good; what comes behind a refused one is refused with it.

use std::sync::Arc;

use bytes::Bytes;
use forebay_record::batch::{BatchError, HEADER_LEN, Header};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::accumulate::Sealed;
use super::handle::SendError;
use super::settlement::{Delivery, Settlement};
use super::shared::{Partition, Shared, Topic};

/// Why a ready batch was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// As with any record.
    #[error(transparent)]
    Send(#[from] SendError),
    /// Only a producer with acks=all and idempotence keeps to given numbers.
    #[error("ready batches need a producer with acks=all and idempotence")]
    NotIdempotent,
    /// The bytes are not one batch.
    #[error("not a batch: {0}")]
    Batch(#[from] BatchError),
    /// More or fewer bytes than the batch has.
    #[error("{given} bytes given, the batch has {batch}")]
    Length {
        /// Bytes given.
        given: usize,
        /// Bytes that the header tells.
        batch: usize,
    },
    /// Nothing to write, or numbers that repeat nothing.
    #[error("batch without {missing}")]
    Incomplete {
        /// What is missing.
        missing: &'static str,
    },
}

/// Memory of the producer, set apart for a batch that is being built. Given back when dropped.
#[derive(Debug)]
pub struct Space(OwnedSemaphorePermit);

impl Space {
    /// Bytes set apart.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.num_permits()
    }

    /// Gives back what is more than `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let surplus = self.bytes().saturating_sub(bytes);
        drop(self.0.split(surplus));
    }
}

/// Writes ready batches to one partition.
///
/// Batches are sent in the order they are given, at most as many unanswered as the producer's
/// `max_in_flight`. Each must carry a producer id, an epoch and a sequence that continues the batch
/// before it. The delivery timeout does not count. After a refusal the writer is closed.
#[derive(Debug)]
pub struct PartitionWriter {
    shared: Arc<Shared>,
    partition: Arc<Partition>,
}

impl PartitionWriter {
    pub(crate) fn new(shared: Arc<Shared>, topic: &Topic, partition: u32) -> Self {
        let partition = shared.lane(topic, partition);
        Self { shared, partition }
    }

    /// The partition written to.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.partition.number
    }

    /// Largest batch that the topic takes, in bytes.
    #[must_use]
    pub fn batch_bytes_max(&self) -> usize {
        self.partition.batch_bytes()
    }

    /// Waits, without end, for memory of the producer. At least [`HEADER_LEN`] bytes are set apart.
    ///
    /// Cancel safety: when this is dropped before it is ready, nothing is taken.
    ///
    /// # Errors
    /// More than the producer has in all, or the producer is closed.
    pub async fn reserve(&self, bytes: usize) -> Result<Space, WriteError> {
        let max = self.shared.config.buffer_bytes_max;
        if bytes > max {
            return Err(SendError::RecordTooLarge { bytes, max }.into());
        }
        // At most `buffer_bytes_max`, which is far below 4 GiB.
        let permits = bytes.max(HEADER_LEN) as u32;
        let acquired = self.shared.memory.clone().acquire_many_owned(permits).await;
        Ok(Space(acquired.map_err(|_| SendError::Closed)?))
    }

    /// Takes a batch, in memory that was set apart for it, and gives a future of its outcome; the
    /// offset is that of its first record.
    ///
    /// # Errors
    /// The batch was not taken.
    pub fn write(&self, batch: Bytes, mut space: Space) -> Result<Delivery, WriteError> {
        let header = Header::parse(&batch)?;
        if header.len_bytes() != batch.len() {
            let (given, batch) = (batch.len(), header.len_bytes());
            return Err(WriteError::Length { given, batch });
        }
        let missing = |missing| WriteError::Incomplete { missing };
        let stamp = header.producer().ok_or(missing("producer id"))?;
        let records = i32::try_from(header.record_count()).unwrap_or(i32::MAX);
        if records == 0 {
            return Err(missing("records"));
        }
        if batch.len() > self.batch_bytes_max() {
            let (bytes, max) = (batch.len(), self.batch_bytes_max());
            return Err(SendError::RecordTooLarge { bytes, max }.into());
        }
        space.shrink(batch.len());
        let mut state = self.partition.state.lock();
        // Looked at under the partition's lock, which closing takes afterwards.
        if state.closed || self.shared.is_closed() {
            return Err(SendError::Closed.into());
        }
        let topic = self.partition.topic.clone();
        let mut settlement = Settlement::new(topic, self.partition.number, self.shared.ledger.clone());
        let delivery = settlement.delivery(0, header.max_timestamp());
        state.push(Sealed {
            bytes: batch,
            records,
            stamp: Some(stamp),
            opened: Instant::now(),
            settlement,
            space: space.0,
        });
        self.shared.announce(&self.partition, &mut state);
        Ok(delivery)
    }
}
