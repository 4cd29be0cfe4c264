//! What every Forebay process needs in order to be a process: configuration, telemetry,
//! metrics, health, tracked tasks with an ordered shutdown, and the seams (clock, randomness,
//! network) that let a whole cluster run inside one test.
//!
//! This crate knows nothing of records, topics or any other Forebay crate, and it keeps no
//! process globals but one: [`telemetry::init`] sets the global `tracing` subscriber, which is
//! why only a `main` may call it.

pub mod admin_http;
pub mod backoff;
pub mod clock;
pub mod config;
pub mod execution;
pub mod grpc;
pub mod metrics;
pub mod mutant;
pub mod net;
pub mod permits;
pub mod process;
pub mod random;
pub mod tasks;
pub mod telemetry;
pub mod time;
pub mod trace;
