//! The metadata store's contract, run against etcd and against the embedded store, and what each
//! of the two has to survive on its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod contract;
mod embedded;
mod etcd;
mod etcd_process;
mod simulated;
mod support;
