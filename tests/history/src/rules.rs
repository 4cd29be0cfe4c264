//! What a run's clients were promised, where runs differ.

use std::collections::BTreeMap;

/// What one producer was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise {
    /// An acknowledgement says that a quorum has the record. Without it acknowledged records may be
    /// lost (acks=1): they count as records of unknown outcome.
    pub quorum: bool,
    /// It sends again without being idempotent, so a record may stand more than once.
    pub repeats: bool,
}

impl Default for Promise {
    /// An idempotent producer with acks=all.
    fn default() -> Self {
        Self {
            quorum: true,
            repeats: false,
        }
    }
}

/// How far a log's beginning may move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Retention {
    /// Never, unless the history has `RetentionAllowed` for the partition.
    #[default]
    AsNoted,
    /// As far as it likes: nothing is said about it.
    Free,
}

/// What holds for one run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// For every producer that is not in `producers`.
    pub promise: Promise,
    /// For the others.
    pub producers: BTreeMap<u64, Promise>,
    /// How far the log's beginning may move.
    pub retention: Retention,
    /// A declared gap may cover acknowledged records: more disks were lost than any rule survives.
    pub losses_allowed: bool,
    /// Objects that nothing names may be there: garbage was not collected.
    pub garbage_allowed: bool,
    /// Complete scans of a partition that must have begun after its last acknowledgement.
    pub final_scans_min: u64,
}

impl Rules {
    /// What a producer was promised.
    #[must_use]
    pub fn promise_to(&self, producer: u64) -> Promise {
        self.producers.get(&producer).copied().unwrap_or(self.promise)
    }
}
