//! What is checked: scopes that must be right, and mutants that must be caught.
//!
//! A scope is a model with bounds; a mutant is the same with one rule of docs/protocol.md broken, in
//! the smallest scope that shows the harm. `docs/verification.md` has both tables with figures.

mod mutants;
mod scopes;

pub use mutants::mutants;
pub use scopes::scopes;

use crate::floor::Floor;
use crate::log::Log;
use crate::objects::Objects;
use crate::search::{Outcome, Search};

/// A model with its bounds.
#[derive(Debug, Clone, Copy)]
pub enum Subject {
    /// One partition.
    Log(Log),
    /// Two partitions that share floors.
    Floor(Floor),
    /// Objects and their collection.
    Objects(Objects),
}

impl Subject {
    /// Searches it.
    #[must_use]
    pub fn run(&self, search: Search) -> Outcome {
        match self {
            Self::Log(model) => search.run(model),
            Self::Floor(model) => search.run(model),
            Self::Objects(model) => search.run(model),
        }
    }

    /// The model's name.
    #[must_use]
    pub fn model(&self) -> &'static str {
        match self {
            Self::Log(_) => "log",
            Self::Floor(_) => "floor",
            Self::Objects(_) => "objects",
        }
    }
}

/// A scope that must be right.
#[derive(Debug, Clone, Copy)]
pub struct Checked {
    /// Its name.
    pub name: &'static str,
    /// What happens in it.
    pub what: &'static str,
    /// The model.
    pub subject: Subject,
    /// Whether liveness is checked as well; that keeps all edges in memory.
    pub owed: bool,
    /// Whether it is too large for every change; only by hand.
    pub large: bool,
}

/// A protocol with one rule broken.
#[derive(Debug, Clone, Copy)]
pub struct Broken {
    /// Its name; it begins with the rule.
    pub name: &'static str,
    /// What it does instead.
    pub what: &'static str,
    /// The model.
    pub subject: Subject,
    /// Whether it is caught by what can never happen any more.
    pub owed: bool,
}

impl Broken {
    /// The rule that it breaks: an invariant, or a decision for what no invariant says.
    #[must_use]
    pub fn rule(&self) -> String {
        let (kind, rest) = self.name.split_at(1);
        let number = rest.split('-').next().unwrap_or_default();
        match kind {
            "d" => format!("decision {number}"),
            _ => format!("{}{}", kind.to_uppercase(), number.trim_start_matches('0')),
        }
    }
}

/// What liveness is called where it fails.
pub const STUCK: &str = "a state from which no owner can come to commit what it accepts";

/// States after which a search gives up, unless told otherwise: about 3 GiB.
pub const STATES_MAX: usize = 40_000_000;

impl Checked {
    /// Searches it.
    #[must_use]
    pub fn run(&self, states_max: usize) -> Outcome {
        self.subject.run(Search {
            states_max,
            owed: self.owed.then_some(STUCK),
        })
    }
}

impl Broken {
    /// Searches it.
    #[must_use]
    pub fn run(&self, states_max: usize) -> Outcome {
        self.subject.run(Search {
            states_max,
            owed: self.owed.then_some(STUCK),
        })
    }
}
