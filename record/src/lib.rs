//! The bytes of the log: ids, record batches, and the frame shared by wire and disk.
//!
//! Pure: no I/O, no clock, no runtime. What two processes or a process and a disk must agree on
//! to the byte is defined here and nowhere else. Nothing in here trusts its input.

pub mod batch;
mod crc;
pub mod frame;
mod ids;
mod murmur2;
pub mod object;
pub mod producers;
pub mod state;

pub use crc::{Crc32c, crc32c};
pub use ids::{
    BrokerId, Epoch, Generation, NodeId, Offset, PartitionId, ProducerId, SegmentId, SessionId, Token,
};
pub use murmur2::{murmur2, partition_for_key};
