//! The segment protocol as models whose every reachable state is checked.
//!
//! - `search`: breadth first, with shortest traces and a form of liveness.
//! - `log`: one partition, from append to repair.
//! - `floor`: two partitions whose segments share the floors of nodes.
//! - `objects`: objects, manifests, sessions and garbage collection.
//! - `report`: what is printed.
//! - `tables`: the scopes that must be right and the mutants that must be caught.
//!
//! Models hold the rules of docs/protocol.md, not the code; what they leave out is in
//! docs/verification.md. They depend on nothing of the product on purpose: a rule that the code gets
//! wrong must not become right here by being shared.
#![allow(
    clippy::indexing_slicing,
    reason = "states are small arrays indexed by the model's own constants; a wrong index must stop the check"
)]

pub mod floor;
pub mod log;
pub mod objects;
pub mod report;
pub mod search;
pub mod tables;
