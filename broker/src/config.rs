//! How a broker runs.

use std::time::Duration;

use forebay_record::BrokerId;

use crate::partition;

/// A broker's settings.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// This broker.
    pub id: BrokerId,
    /// Where it is; may be empty.
    pub zone: String,
    /// Where proxies connect.
    pub data_address: String,
    /// Where its gRPC services are.
    pub control_address: String,
    /// Life of its session without a sign of life.
    pub session_ttl: Duration,
    /// Bytes of recent batches kept for readers.
    pub tail_cache_bytes: u64,
    /// Bytes a second that copies of sealed segments from one storage node to another may send; 0 for no
    /// bound.
    pub repair_bytes_per_second: u64,
    /// How partitions are written.
    pub partition: partition::Config,
}
