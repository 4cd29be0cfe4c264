//! `forebay ingest` as a user runs it: real processes, real files, killed and refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod follow;
mod once;
mod refused;
mod resume;
mod support;
