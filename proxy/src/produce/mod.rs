//! Produce: from a client's batches to their owners and back.
//!
//! 1. [`stream`] takes requests in; [`submit`] routes their batches and has [`batch`] check each once.
//! 2. [`driver`] owns all [`lane`]s through [`dispatch`]: one ordered queue per partition, one
//!    ordered session per broker.
//! 3. [`retry`] decides what a failure means.
//! 4. [`reply`] gathers the answers of a request.

pub(crate) mod batch;
pub(crate) mod dispatch;
pub(crate) mod driver;
mod lane;
pub(crate) mod reply;
mod retry;
pub(crate) mod stream;
mod submit;
#[cfg(test)]
mod tests;

pub(crate) use lane::Entry;
