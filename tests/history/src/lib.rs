//! What clients saw, and whether a log may show it to them.
//!
//! Whoever drives a cluster, simulated or real, notes every produce, answer, read and observed
//! record in a [`History`]. [`check`] then looks for what breaks the promises H1 to H10, each told
//! by [`Rule`]. It knows offsets and values and nothing of how the product works: no I/O besides
//! the lines of a file, no clock, no randomness, no crate of a role.
//!
//! The order of a history is the order in which things were noted: note a produce before it is
//! sent and an answer after it came. Time and memory of a check grow with the events only.

mod check;
mod event;
mod history;
mod report;
mod rules;

pub use check::check;
pub use event::{ChainRecord, ChainSegment, Entry, Event, Produced, Range, Value};
pub use history::{History, HistoryError};
pub use report::{Counts, Report, Rule, Violation};
pub use rules::{Promise, Retention, Rules};
