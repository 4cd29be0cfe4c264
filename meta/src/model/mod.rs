//! The partition record as a value, and every change it can go through.
//!
//! A change is a pure function from one record to the next, refused where it would break the
//! chain (I11); its author then stores it by one compare-and-swap. Nothing here does I/O.

mod partition;
mod stored;
mod topic;

pub use partition::{CHAIN_MAX, Gap, ManifestRef, Partition, RECENT_MAX, Refused, Run, Sealed, Segment};
pub(crate) use topic::BATCH_BYTES;
pub use topic::{TOPIC_KEYS, TopicConfig, TopicConfigError, TopicKey};
