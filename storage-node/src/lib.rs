//! A storage node: keeps replicas of segments in a journal and answers for what is durable.
//!
//! One thread owns the replica's state machine and the journal; sessions bring it frames and
//! carry its answers away, readers serve what is durable beside it.

mod buffer;
mod config;
mod content;
mod control;
mod core;
mod damage;
pub mod disk;
mod index;
pub mod journal;
mod metrics;
mod missing;
mod node;
mod pressure;
mod read;
mod register;
pub mod replica;
mod resume;
mod scrub;
mod superblock;
#[cfg(test)]
mod testing;
mod trim;

pub use config::Config;
pub use content::{CheckedFrame, ContentError};
pub use control::Control;
pub use disk::DirectIo;
pub use index::{Entry, Index, SegmentIndex};
pub use node::{Environment, Reformat, StartError, StorageNode};
pub use register::{Refused, RegisterError};
pub use resume::ResumeError;
pub use superblock::{Superblock, SuperblockError};
