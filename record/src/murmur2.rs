//! The hash by which Kafka's clients choose a partition for a key.
//!
//! Producers of every language must agree on it, or records of one key end up in two partitions.

use std::num::NonZeroU32;

const SEED: u32 = 0x9747_b28c;
const MULTIPLIER: u32 = 0x5bd1_e995;
const SHIFT: u32 = 24;

/// MurmurHash2 with the seed of Kafka's default partitioner.
#[must_use]
pub fn murmur2(bytes: &[u8]) -> i32 {
    // The format hashes lengths as 32 bits; a key is never longer.
    let mut hash = SEED ^ bytes.len() as u32;
    let (words, tail) = bytes.as_chunks::<4>();
    for word in words {
        let mixed = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        let mixed = (mixed ^ (mixed >> SHIFT)).wrapping_mul(MULTIPLIER);
        hash = hash.wrapping_mul(MULTIPLIER) ^ mixed;
    }
    if !tail.is_empty() {
        let last = tail
            .iter()
            .rev()
            .fold(0, |last, byte| last << 8 | u32::from(*byte));
        hash = (hash ^ last).wrapping_mul(MULTIPLIER);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(MULTIPLIER);
    (hash ^ (hash >> 15)).cast_signed()
}

/// The partition, from 0, that Kafka's default partitioner gives a key among `partitions`.
#[must_use]
pub fn partition_for_key(key: &[u8], partitions: NonZeroU32) -> u32 {
    (murmur2(key).cast_unsigned() & i32::MAX.cast_unsigned()) % partitions
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

    #[test]
    fn hashes_are_those_of_the_java_client() {
        // The first six are the values that Kafka's own unit test of its hash expects; the last
        // one was generated with the Java client for the tests of a client in another language.
        let cases: [(&[u8], i32); 7] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
            (&[12, 42, 56, 24, 109, 111], 274_204_207),
        ];
        for (key, hash) in cases {
            assert_eq!(murmur2(key), hash, "{key:?}");
        }
    }

    #[test]
    fn partitions_follow_the_positive_part_of_the_hash() {
        let partitions = NonZeroU32::new(1000).unwrap();
        assert_eq!(partition_for_key(b"21", partitions), 1_173_551_340 % 1000);
        assert_eq!(partition_for_key(b"foobar", partitions), 1_357_151_166 % 1000);
        assert_eq!(partition_for_key(b"abc", partitions), 479_470_107 % 1000);
        assert_eq!(partition_for_key(b"anything", NonZeroU32::MIN), 0);
    }
}
