//! The object store's contract, run over memory, a folder and a real S3 server; and what an S3 server's
//! failures do to it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod bucket;
mod contract;
mod faults;
mod folder;
mod gc;
mod manifests;
mod proxy;
mod runs;
mod support;
mod weed;
