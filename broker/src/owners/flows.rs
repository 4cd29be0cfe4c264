//! How many bytes a second come and go in each partition: what load is balanced by.
//!
//! A rate is that of the last whole [`WINDOW_MS`]; a partition that was owned for less has none yet,
//! and keeps what was known of it elsewhere.

use std::collections::HashMap;

use forebay_record::PartitionId;

/// Length of one measurement.
const WINDOW_MS: u64 = 10_000;

#[derive(Debug)]
struct Flow {
    since_ms: u64,
    bytes: u64,
    rate: Option<u64>,
}

/// Of the partitions owned.
#[derive(Debug, Default)]
pub struct Flows {
    flows: HashMap<PartitionId, Flow>,
}

impl Flows {
    /// A partition is owned from now on.
    pub fn begin(&mut self, partition: PartitionId, now_ms: u64) {
        let flow = Flow {
            since_ms: now_ms,
            bytes: 0,
            rate: None,
        };
        self.flows.insert(partition, flow);
    }

    /// A partition is owned no longer.
    pub fn end(&mut self, partition: PartitionId) {
        self.flows.remove(&partition);
    }

    /// Bytes came or went.
    pub fn add(&mut self, partition: PartitionId, bytes: usize) {
        if let Some(flow) = self.flows.get_mut(&partition) {
            flow.bytes += bytes as u64;
        }
    }

    /// Time passes: windows that are over become rates.
    pub fn tick(&mut self, now_ms: u64) {
        for flow in self.flows.values_mut() {
            let elapsed = now_ms.saturating_sub(flow.since_ms);
            if elapsed >= WINDOW_MS {
                flow.rate = Some(flow.bytes.saturating_mul(1_000) / elapsed);
                (flow.bytes, flow.since_ms) = (0, now_ms);
            }
        }
    }

    /// Bytes a second of a partition.
    pub fn rate(&self, partition: PartitionId) -> Option<u64> {
        self.flows.get(&partition)?.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_known_after_a_whole_window_and_falls_to_nothing_after_a_silent_one() {
        const ONE: PartitionId = PartitionId(1);
        let mut flows = Flows::default();
        flows.add(ONE, 5_000);
        flows.begin(ONE, 1_000);
        flows.add(ONE, 50_000);
        flows.tick(10_999);
        assert_eq!(flows.rate(ONE), None);
        flows.tick(11_000);
        assert_eq!(flows.rate(ONE), Some(5_000));
        flows.tick(21_000);
        assert_eq!(flows.rate(ONE), Some(0));
        flows.end(ONE);
        assert_eq!(flows.rate(ONE), None);
    }
}
