//! What Forebay's processes must agree on: gRPC services, stored messages, errors, data protocol.

pub mod data;
pub mod error;

/// Messages and services of `forebay.v1`, as generated.
#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::large_futures
)]
pub mod v1 {
    tonic::include_proto!("forebay.v1");

    /// The services' descriptors, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/forebay.v1.bin"));
}

/// What the metadata store keeps, as generated.
#[allow(missing_docs, clippy::all)]
pub mod stored {
    tonic::include_proto!("forebay.meta.v1");
}
