//! Which partition a record goes to.
//!
//! Pure but for one counter per topic. Keys are hashed as Kafka's clients do, so that producers in
//! different languages agree.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use forebay_record::partition_for_key;

use super::config::Partitioner;

/// The partition that keyless records of a topic stick to.
#[derive(Debug, Default)]
pub(crate) struct Cursor(AtomicU32);

impl Cursor {
    /// A cursor that begins anywhere, so that many producers do not all begin at partition 0.
    pub(crate) const fn starting(at: u32) -> Self {
        Self(AtomicU32::new(at))
    }

    pub(crate) fn partition(&self, partitions: NonZeroU32) -> u32 {
        self.0.load(Ordering::Relaxed) % partitions
    }

    /// Moves on from a partition whose batch is sealed; from another one it has moved already.
    pub(crate) fn leave(&self, partition: u32, partitions: NonZeroU32) {
        let at = self.0.load(Ordering::Relaxed);
        if at % partitions == partition {
            let next = (partition + 1) % partitions;
            // Losing the race means that someone else moved on from the same batch.
            let _moved = self
                .0
                .compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// Where a record goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// There and nowhere else.
    Fixed(u32),
    /// There, as long as its batch is open.
    Sticky(u32),
    /// It names a partition that the topic does not have.
    Missing(u32),
}

/// Chooses the partition of a record.
pub(crate) fn choose(
    partitioner: Partitioner,
    explicit: Option<u32>,
    key: Option<&[u8]>,
    partitions: NonZeroU32,
    cursor: &Cursor,
) -> Choice {
    match (explicit, key, partitioner) {
        (Some(partition), _, _) if partition < partitions.get() => Choice::Fixed(partition),
        (Some(partition), _, _) => Choice::Missing(partition),
        (None, Some(key), Partitioner::ByKey) => Choice::Fixed(partition_for_key(key, partitions)),
        (None, _, _) => Choice::Sticky(cursor.partition(partitions)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use super::*;

    const FOUR: NonZeroU32 = NonZeroU32::new(4).unwrap();

    #[test]
    fn an_explicit_partition_wins_over_a_key_and_must_exist() {
        let cursor = Cursor::default();
        for partitioner in [Partitioner::ByKey, Partitioner::Sticky] {
            assert_eq!(
                choose(partitioner, Some(3), Some(b"k"), FOUR, &cursor),
                Choice::Fixed(3)
            );
            assert_eq!(
                choose(partitioner, Some(4), Some(b"k"), FOUR, &cursor),
                Choice::Missing(4)
            );
        }
    }

    #[test]
    fn a_key_always_gives_the_partition_of_kafkas_hash() {
        let cursor = Cursor::default();
        // murmur2("foobar") is -790332482, and its lower 31 bits are 1357151166.
        let expected = Choice::Fixed(1_357_151_166 % 4);
        assert_eq!(
            choose(Partitioner::ByKey, None, Some(b"foobar"), FOUR, &cursor),
            expected
        );
        cursor.leave(0, FOUR);
        assert_eq!(
            choose(Partitioner::ByKey, None, Some(b"foobar"), FOUR, &cursor),
            expected
        );
        assert_eq!(
            choose(Partitioner::Sticky, None, Some(b"foobar"), FOUR, &cursor),
            Choice::Sticky(1)
        );
    }

    #[test]
    fn keyless_records_stick_until_the_batch_is_sealed_and_then_visit_every_partition() {
        let cursor = Cursor::starting(6);
        let mut seen = Vec::new();
        for _ in 0..4 {
            let Choice::Sticky(partition) = choose(Partitioner::ByKey, None, None, FOUR, &cursor) else {
                panic!()
            };
            assert_eq!(
                choose(Partitioner::ByKey, None, None, FOUR, &cursor),
                Choice::Sticky(partition)
            );
            cursor.leave(partition, FOUR);
            cursor.leave(partition, FOUR); // a second report of the same batch changes nothing
            seen.push(partition);
        }
        assert_eq!(seen, [2, 3, 0, 1]);
    }
}
