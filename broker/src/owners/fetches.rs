//! Fetches that wait until enough is visible or their time is up.

use std::collections::{HashMap, HashSet};

use forebay_proto::data::front::Fetch;
use forebay_record::PartitionId;
use forebay_runtime::trace::Span;
use tokio::sync::OwnedSemaphorePermit;

use super::message::Outbox;

/// A fetch that waits.
#[derive(Debug)]
pub struct Waiting {
    pub fetch: Fetch,
    pub outbox: Outbox,
    pub deadline_ms: u64,
    /// Held until the fetch is answered or given up.
    pub _permit: OwnedSemaphorePermit,
    /// Ends with it.
    pub span: Span,
}

/// All fetches that wait; bounded by the requests that connections may have open.
#[derive(Debug, Default)]
pub struct Fetches {
    waiting: HashMap<u64, Waiting>,
    by_partition: HashMap<PartitionId, HashSet<u64>>,
    next: u64,
}

impl Fetches {
    /// Lets a fetch wait.
    pub fn add(&mut self, waiting: Waiting) {
        self.next += 1;
        for one in &waiting.fetch.partitions {
            self.by_partition
                .entry(one.partition)
                .or_default()
                .insert(self.next);
        }
        self.waiting.insert(self.next, waiting);
    }

    /// Takes a fetch out.
    pub fn take(&mut self, key: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&key)?;
        for one in &waiting.fetch.partitions {
            if let Some(keys) = self.by_partition.get_mut(&one.partition) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.by_partition.remove(&one.partition);
                }
            }
        }
        Some(waiting)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// A fetch that waits.
    pub fn get(&self, key: u64) -> Option<&Waiting> {
        self.waiting.get(&key)
    }

    /// Fetches that wait for any of these partitions, each once.
    pub fn on(&self, partitions: &HashSet<PartitionId>) -> Vec<u64> {
        let mut keys: Vec<_> = partitions
            .iter()
            .filter_map(|partition| self.by_partition.get(partition))
            .flatten()
            .copied()
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Fetches whose time is up.
    pub fn overdue(&self, now_ms: u64) -> Vec<u64> {
        self.waiting
            .iter()
            .filter(|(_, one)| one.deadline_ms <= now_ms)
            .map(|(key, _)| *key)
            .collect()
    }

    /// Forgets fetches of a connection: one, or all.
    pub fn forget(&mut self, connection: u64, request: Option<u64>) {
        let of = |one: &Waiting| {
            one.outbox.connection == connection && request.is_none_or(|request| one.fetch.request == request)
        };
        let keys: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, one)| of(one))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.take(key);
        }
    }
}
