//! One partition at its owner, from a client's batch to a committed offset.
//!
//! A produce passes [`append`] (duplicates, offset, frame) and [`writer`] (replicas), and comes back as
//! acknowledgements that [`commit`] turns into a committed offset and answers. [`takeover`] is how an
//! ownership begins, [`force`] how one begins that would wait for ever, [`change`] how a segment ends, [`slow`] how one ends that waits for slow
//! nodes, [`past`] what becomes of it then, [`repair`] how it keeps its copies, [`loss`] what is told where it has none, [`leave`] how an ownership ends; [`owner`] is what
//! they all work on. All of it is a state machine: calls in, actions
//! out, no I/O, no clock.

mod action;
mod append;
#[cfg(test)]
mod append_tests;
#[cfg(test)]
mod case;
mod change;
mod commit;
mod force;
#[cfg(test)]
mod force_tests;
mod leave;
mod loss;
#[cfg(test)]
mod loss_tests;
mod owner;
mod past;
mod placement;
mod repair;
mod slow;
mod tail;
mod takeover;
#[cfg(test)]
mod takeover_tests;
#[cfg(test)]
mod tests;
mod writer;

pub use action::{
    Action, Context, Folded, NodeView, Nodes, Produce, Repair, Retention, Stored, Ticket, Urgency,
};
pub use force::{Awaited, Evidence, ForceRefused, ForcedEnd, Forcing, Recovering, Said};
pub use loss::{DeclareRefused, Declaring, Lost, LostSegment};
pub use owner::{Config, Health, Owner};
pub use placement::least_frame;
pub use repair::Endangered;
pub use tail::{Found, Tail};
