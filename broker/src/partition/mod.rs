//! One partition at its owner, from a client's batch to a committed offset.
//!
//! A produce passes [`owner`] (offset, duplicates), [`writer`] (frame, replicas), and comes back as
//! acknowledgements that [`owner`] turns into a committed offset and answers. [`takeover`] is how an
//! ownership begins, [`change`] how a segment ends. All of it is a state machine: calls in, actions
//! out, no I/O, no clock.

mod action;
mod change;
mod owner;
mod placement;
mod producers;
mod tail;
mod takeover;
#[cfg(test)]
mod tests;
mod writer;

pub use action::{Action, Context, NodeView, Nodes, Produce, Stored, Ticket};
pub use owner::{Config, Owner};
pub use tail::{Found, Tail};
