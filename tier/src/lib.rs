//! Sealed segments in the object store: written, verified, read, listed and one day deleted.
//!
//! 1. [`RunWriter`] copies a sealed segment into an object with a fresh [`ObjectName`].
//! 2. [`verify`] proves that it is there before the partition's record names it.
//!
//! [`Bucket`] is the one way to the store. The formats are `forebay_record::object`; who owns a
//! partition, when to offload and when to trim are decided elsewhere.

mod bucket;
mod cache;
mod config;
mod error;
mod gc;
mod manifest;
mod names;
mod reader;
mod run_writer;
mod tail;
mod unnamed;
mod verify;

pub use bucket::{Bucket, DELETE_NAMES_MAX, Listed};
pub use config::{CacheConfig, Location, ObjectStoreConfig};
pub use error::{OpenError, StoreError, StoreError as ReadError, WriteError};
pub use gc::{Collector, GcError, GcOptions, Round};
pub use manifest::{Log, Manifests, Retention, RunSpan, plan_retention};
pub use names::{Names, ObjectKind, ObjectName};
pub use reader::{AHEAD_MAX, READ_BYTES_MAX, Reader};
pub use run_writer::{RunStart, RunWriter, Written};
pub use unnamed::{Unnamed, find_unnamed};
pub use verify::verify;
