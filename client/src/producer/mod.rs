//! Producing: from a record to its place in a partition.
//!
//! 1. [`record`]: a borrowed record, and where it ended up.
//! 2. [`partition`]: which partition it goes to.
//! 3. [`accumulate`]: its bytes are copied into the partition's open batch, under that
//!    partition's lock and on the caller's thread, which also seals a full batch.
//! 4. [`sender`]: one task takes sealed and overdue batches into
//! 5. [`lane`]: the window of unanswered batches of each partition, which decides what is sent
//!    and sent again and under which numbers ([`renumber`]), and puts them on
//! 6. [`wire`]: one stream of pipelined requests.
//! 7. [`settlement`]: answers reach those who wait for a record or flush.
//!
//! Whoever builds batches and numbers them without a producer's help enters at 4, by [`writer`].
//!
//! [`shared`] is what callers and the sender have in common, [`handle`] what users hold.

mod accumulate;
mod config;
mod handle;
mod lane;
mod partition;
mod record;
mod renumber;
mod sender;
mod settlement;
mod shared;
mod wire;
mod writer;

use forebay_record::ProducerId;
use forebay_record::batch::ProducerStamp;

pub use config::{Acks, Partitioner, ProducerConfig};
pub use handle::{CloseError, Producer, ProducerError, SendError, TopicProducer};
pub use record::{ProducerRecord, RecordMetadata};
pub use settlement::{Delivery, DeliveryError, FlushError};
pub use shared::Retries;
pub use writer::{PartitionWriter, Space, WriteError};

/// Who an idempotent producer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub id: ProducerId,
    pub epoch: i16,
}

impl Identity {
    /// The numbers of a batch whose first record has this sequence.
    pub(crate) const fn stamp(self, sequence: i32) -> ProducerStamp {
        ProducerStamp {
            id: self.id,
            epoch: self.epoch,
            sequence,
        }
    }
}
