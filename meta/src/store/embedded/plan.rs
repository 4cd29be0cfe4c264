//! Evaluates transactions that will become durable together, one after the other.
//!
//! Pure: takes the state as it is and collects changes over it. A later transaction of the group
//! sees the earlier ones, so each has the outcome it would have had alone.

use std::collections::{BTreeMap, BTreeSet};

use super::state::{Change, State};
use crate::store::error::BadRequest;
use crate::store::types::{Compare, Entry, LeaseId, Op, Revision, Txn, TxnReply};

/// A group of transactions over a state.
pub(in crate::store) struct Plan<'a> {
    state: &'a State,
    /// Keys that the group has changed, as they are after it.
    latest: BTreeMap<String, Option<Entry>>,
    done: Done,
}

/// What a group has changed.
pub(in crate::store) struct Done {
    /// The store's revision after it.
    pub(in crate::store) revision: Revision,
    /// In the order they were made.
    pub(in crate::store) changes: Vec<Change>,
    /// Leases it has ended.
    pub(in crate::store) ended: BTreeSet<LeaseId>,
}

impl<'a> Plan<'a> {
    pub(in crate::store) fn new(state: &'a State) -> Self {
        let done = Done {
            revision: state.revision(),
            changes: Vec::new(),
            ended: BTreeSet::new(),
        };
        Self {
            state,
            latest: BTreeMap::new(),
            done,
        }
    }

    pub(in crate::store) fn finish(self) -> Done {
        self.done
    }

    /// How many changes there are so far.
    pub(in crate::store) fn changes(&self) -> usize {
        self.done.changes.len()
    }

    fn get(&self, key: &str) -> Option<&Entry> {
        match self.latest.get(key) {
            Some(latest) => latest.as_ref(),
            None => self.state.get(key),
        }
    }

    /// Applies one transaction that has passed the checks.
    pub(in crate::store) fn txn(&mut self, txn: &Txn) -> Result<TxnReply, BadRequest> {
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        let branch = if succeeded { &txn.then } else { &txn.otherwise };
        // All leases first: nothing of a refused transaction may be applied.
        for op in branch {
            if let Op::Put {
                lease: Some(lease), ..
            } = op
                && (self.state.ttl(*lease).is_none() || self.done.ended.contains(lease))
            {
                return Err(BadRequest::LeaseNotFound { lease: Some(*lease) });
            }
        }
        let revision = Revision(self.done.revision.0 + 1);
        let before = self.done.changes.len();
        let mut reads = Vec::new();
        for op in branch {
            match op {
                Op::Put { key, value, lease } => {
                    let old = self.get(key);
                    let entry = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: old.map_or(revision, |entry| entry.create_revision),
                        mod_revision: revision,
                        version: old.map_or(1, |entry| entry.version + 1),
                        lease: *lease,
                    };
                    self.change(revision, key, Some(entry));
                }
                Op::Delete { key } => self.change(revision, key, None),
                Op::Get { key } => reads.push(self.get(key).cloned()),
            }
        }
        if self.done.changes.len() > before {
            self.done.revision = revision;
        }
        Ok(TxnReply {
            succeeded,
            revision: self.done.revision,
            reads,
        })
    }

    /// Ends a lease and deletes its keys at one revision.
    pub(in crate::store) fn revoke(&mut self, lease: LeaseId) {
        let mut keys: BTreeSet<String> = self.state.leased(lease).map(str::to_owned).collect();
        for (key, latest) in &self.latest {
            match latest {
                Some(entry) if entry.lease == Some(lease) => keys.insert(key.clone()),
                _ => keys.remove(key),
            };
        }
        let revision = Revision(self.done.revision.0 + 1);
        for key in &keys {
            self.change(revision, key, None);
        }
        if !keys.is_empty() {
            self.done.revision = revision;
        }
        self.done.ended.insert(lease);
    }

    fn change(&mut self, revision: Revision, key: &str, after: Option<Entry>) {
        let before = self.get(key).cloned();
        if before.is_none() && after.is_none() {
            return;
        }
        self.latest.insert(key.to_owned(), after.clone());
        self.done.changes.push(Change {
            revision,
            key: key.to_owned(),
            before,
            after,
        });
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::ModRevision(key, at) => {
                self.get(key).map_or(Revision(0), |entry| entry.mod_revision) == *at
            }
            Compare::CreateRevision(key, at) => {
                self.get(key).map_or(Revision(0), |entry| entry.create_revision) == *at
            }
            Compare::Value(key, value) => self.get(key).is_some_and(|entry| entry.value == *value),
        }
    }
}
