//! Sealed segments in the object store: written, verified, read, listed and one day deleted.
//!
//! 1. [`RunWriter`] copies a sealed segment into an object with a fresh [`ObjectName`].
//! 2. [`verify`] proves that it is there before the partition's record names it.
//!
//! [`Bucket`] is the one way to the store. The formats are `forebay_record::object`; who owns a
//! partition, when to offload and when to trim are decided elsewhere.

mod bucket;
mod config;
mod error;
mod names;
mod run_writer;
mod tail;
mod verify;

pub use bucket::{Bucket, DELETE_NAMES_MAX, Listed};
pub use config::{CacheConfig, Location, ObjectStoreConfig};
pub use error::{OpenError, StoreError, WriteError};
pub use names::{Names, ObjectKind, ObjectName};
pub use run_writer::{RunStart, RunWriter, Written};
pub use verify::verify;
