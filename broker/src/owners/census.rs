//! Counts what the owners have and how it is, once a second.

use std::time::Duration;

use forebay_record::PartitionId;

use super::driver::Driver;
use crate::partition::Health;

/// How often.
const EVERY_MS: u64 = 1_000;

impl Driver {
    /// Looks at every partition, unless that was done just now.
    pub(super) fn census(&mut self) {
        if self.now_ms < self.census_at_ms {
            return;
        }
        self.census_at_ms = self.now_ms + EVERY_MS;
        self.flows.tick(self.now_ms);
        let (mut recovering, mut thin, mut stuck) = (0_u64, 0_u64, 0_u64);
        let (mut undecided, mut waiting) = (0, 0);
        for owner in self.owners.values() {
            recovering += u64::from(!owner.is_serving());
            match owner.health(&self.views) {
                Health::Whole => {}
                Health::UnderReplicated => thin += 1,
                Health::WithoutQuorum => {
                    thin += 1;
                    stuck += 1;
                }
            }
            undecided += owner.undecided_bytes();
            waiting += owner.waiting_bytes();
        }
        let connected = self.views.values().filter(|node| node.connected).count();
        let endangered = self.endangered();
        let metrics = &self.settings.metrics;
        for (gauge, value) in [
            (&metrics.partitions, self.owners.len() as u64),
            (&metrics.partitions_recovering, recovering),
            (&metrics.partitions_under_replicated, thin),
            (&metrics.partitions_without_quorum, stuck),
            (&metrics.undecided_bytes, undecided),
            (&metrics.waiting_bytes, waiting),
            (&metrics.tail_cache_bytes, self.cached_bytes),
            (&metrics.fetches_waiting, self.fetches.len() as u64),
            (
                &metrics.mailbox,
                (self.settings.mailbox.max_capacity() - self.settings.mailbox.capacity()) as u64,
            ),
            (&metrics.nodes, self.views.len() as u64),
            (&metrics.nodes_connected, connected as u64),
            (&metrics.repairs, self.repairs.len() as u64),
            (
                &metrics.segments_under_replicated,
                endangered.under_replicated as u64,
            ),
            (&metrics.segments_on_last_copy, endangered.last_copy as u64),
            (&metrics.segments_lost, endangered.lost as u64),
        ] {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }

    /// A partition was granted.
    pub(super) fn takes_over(&mut self, partition: PartitionId) {
        self.taking.insert(partition, self.settings.clock.monotonic());
    }

    /// A partition acted: notes when it begins to serve.
    pub(super) fn took_over(&mut self, partition: PartitionId) {
        let serves = |owner: &crate::partition::Owner| owner.is_serving();
        if self.owners.get(&partition).is_some_and(serves)
            && let Some(since) = self.taking.remove(&partition)
        {
            let took: Duration = self.settings.clock.monotonic().saturating_sub(since);
            self.settings.metrics.takeover_seconds.observe(took.as_secs_f64());
            tracing::info!(%partition, ?took, "serves partition");
            self.forces.served(partition);
        }
    }
}
