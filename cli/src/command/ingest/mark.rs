//! A place in an input, with all that is needed to go on from there.

use forebay_record::batch::{ProducerStamp, sequence_after};

/// How far an input was cut into batches, or how far those are acknowledged. It lies between two
/// batches, or at an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Bytes of the input before it.
    pub position: u64,
    /// Lines that end before it.
    pub line: u64,
    /// Whether it lies inside a line that is left out.
    pub skipping: bool,
    /// Batches before it: they take turns in the input's partitions.
    pub batches: u64,
    /// The next sequence number in each of the input's partitions.
    pub sequences: Vec<i32>,
}

impl Mark {
    /// The beginning of an input that is written to that many partitions, at least one.
    pub fn start(partitions: usize) -> Self {
        Self {
            position: 0,
            line: 0,
            skipping: false,
            batches: 0,
            sequences: vec![0; partitions.max(1)],
        }
    }

    /// The same place, for a new producer id.
    pub fn renumbered(&self, partitions: usize) -> Self {
        Self {
            batches: 0,
            sequences: vec![0; partitions.max(1)],
            ..self.clone()
        }
    }

    /// Which of the input's partitions gets the next batch.
    pub fn slot(&self) -> usize {
        let slots = self.sequences.len().max(1) as u64;
        usize::try_from(self.batches % slots).unwrap_or_default()
    }

    /// The numbers of the next batch.
    pub fn stamp(&self, producer: ProducerStamp) -> ProducerStamp {
        let sequence = self.sequences.get(self.slot()).copied().unwrap_or_default();
        ProducerStamp { sequence, ..producer }
    }

    /// Goes past a batch of that many records.
    pub fn count_batch(&mut self, records: i32) {
        let slot = self.slot();
        if let Some(sequence) = self.sequences.get_mut(slot) {
            *sequence = sequence_after(*sequence, records);
        }
        self.batches += 1;
    }
}

#[cfg(test)]
mod tests {
    use forebay_record::ProducerId;

    use super::*;

    #[test]
    fn batches_take_turns_and_each_partition_counts_its_own_records() {
        let producer = ProducerStamp {
            id: ProducerId(4),
            epoch: 1,
            sequence: 0,
        };
        let mut mark = Mark::start(2);
        let mut seen = Vec::new();
        for records in [3, 5, 7, 1] {
            seen.push((mark.slot(), mark.stamp(producer).sequence));
            mark.count_batch(records);
        }
        assert_eq!(seen, [(0, 0), (1, 0), (0, 3), (1, 5)]);
        assert_eq!((mark.sequences.clone(), mark.batches), (vec![10, 6], 4));
        assert_eq!(mark.renumbered(3).sequences, [0; 3]);
    }
}
