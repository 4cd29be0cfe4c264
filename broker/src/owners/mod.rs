//! The task that owns every partition of this broker, and what it talks to.
//!
//! 1. [`message`]: what arrives in its mailbox: produces, fetches, what storage nodes said, grants.
//! 2. [`driver`]: takes all that arrived together, lets the partitions' state machines act, makes
//!    one frame per partition of it, and carries out their actions.
//! 3. [`replicas`]: the storage nodes, and whom what they say belongs to; [`calls`]: requests to storage nodes whose answers are awaited.
//! 4. [`fetches`]: fetches that wait for data; [`serve`]: their answers.
//! 5. [`offloads`]: copies of sealed segments on their way into the object store.
//! 6. [`repairs`]: copies of sealed segments from one storage node to another.
//! 7. [`topics`]: configurations that change while partitions are owned, and what is told of them.
//! 8. [`traces`]: spans of the produces that belong to a recorded trace.
//! 9. [`forces`]: takeovers that are not over, and those that an operator ends.
//! 10. [`silence`]: what is owned while the metadata store does not answer.
//! 11. [`census`]: what all of them have and how it is, for metrics.
//! 12. [`turns`]: who is told that time passes, and how often.
//!
//! One task owns it all, so nothing is locked; awaiting happens in its loop only.

mod calls;
mod census;
mod driver;
mod fetches;
mod flows;
mod forces;
mod message;
mod offloads;
mod positions;
mod refusals;
mod repairs;
mod replicas;
mod serve;
mod silence;
mod topics;
mod traces;
mod turns;

pub use driver::{Driver, Settings};
pub use message::{Command, Declared, Forced, Outbox, Summary, Taking};
