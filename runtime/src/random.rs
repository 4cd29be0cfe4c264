//! Randomness as a constructor argument.
//!
//! [`OsRandom`] asks the operating system every time, so ids made from it are unpredictable and
//! differ between processes that were started at once. [`SeededRandom`] gives the same values for
//! the same seed on every machine and in every version of this crate: a simulation prints its
//! seed and can be run again. It must never be used for ids, nonces or secrets outside of tests
//! and simulation.

use parking_lot::Mutex;

/// A source of random values.
pub trait Random: Send + Sync + 'static {
    /// Fills the whole slice.
    fn fill(&self, bytes: &mut [u8]);

    /// A uniform 64-bit value.
    fn u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A uniform value in `start..end`; `start` when the range is empty.
    fn range(&self, start: u64, end: u64) -> u64 {
        let span = end.saturating_sub(start);
        if span == 0 {
            return start;
        }
        // Widening multiply maps 2^64 values onto the span; the low half tells which draws would
        // make some results likelier than others, and those are drawn again. Each draw is kept
        // with a probability above one half.
        let biased_below = span.wrapping_neg() % span;
        loop {
            let wide = u128::from(self.u64()) * u128::from(span);
            let (high, low) = ((wide >> 64) as u64, wide as u64);
            if low >= biased_below {
                return start + high;
            }
        }
    }
}

/// The operating system's generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsRandom;

impl Random for OsRandom {
    fn fill(&self, bytes: &mut [u8]) {
        // A process that cannot get random bytes cannot name an incarnation or a write without
        // risking that another has the same name: stopping is the only safe answer, and no caller
        // could do better with an error.
        #[allow(clippy::expect_used)]
        getrandom::fill(bytes).expect("the operating system gives no random bytes");
    }
}

/// A repeatable generator: xoshiro256++ (Blackman and Vigna, 2019), seeded through SplitMix64
/// as its authors advise.
#[derive(Debug)]
pub struct SeededRandom {
    state: Mutex<[u64; 4]>,
}

impl SeededRandom {
    /// A generator whose whole output is a function of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut mix = SplitMix64(seed);
        Self {
            state: Mutex::new([mix.next(), mix.next(), mix.next(), mix.next()]),
        }
    }

    /// A generator of its own for each `stream` of one seed, so that what one node draws does not
    /// depend on how many draws another node made before it.
    pub fn stream(seed: u64, stream: u64) -> Self {
        let mut mix = SplitMix64(stream);
        Self::new(seed ^ mix.next())
    }
}

impl Random for SeededRandom {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.u64().to_le_bytes();
            chunk.iter_mut().zip(word).for_each(|(to, from)| *to = from);
        }
    }

    fn u64(&self) -> u64 {
        let mut state = self.state.lock();
        let [mut s0, mut s1, mut s2, mut s3] = *state;
        let result = s0.wrapping_add(s3).rotate_left(23).wrapping_add(s0);
        let t = s1 << 17;
        s2 ^= s0;
        s3 ^= s1;
        s1 ^= s2;
        s0 ^= s3;
        s2 ^= t;
        s3 = s3.rotate_left(45);
        *state = [s0, s1, s2, s3];
        result
    }
}

struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
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

    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn splitmix_matches_its_published_sequence() {
        let mut mix = SplitMix64(1_234_567);
        let first = [mix.next(), mix.next(), mix.next()];
        assert_eq!(
            first,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn xoshiro_matches_its_published_sequence() {
        let random = SeededRandom {
            state: Mutex::new([1, 2, 3, 4]),
        };
        let first: Vec<u64> = (0..5).map(|_| random.u64()).collect();
        assert_eq!(
            first,
            [
                41_943_041,
                58_720_359,
                3_588_806_011_781_223,
                3_591_011_842_654_386,
                9_228_616_714_210_784_205
            ]
        );
    }

    #[test]
    fn the_same_seed_gives_the_same_values_and_another_stream_gives_others() {
        let draw = |random: &SeededRandom| (0..16).map(|_| random.u64()).collect::<Vec<_>>();
        assert_eq!(draw(&SeededRandom::new(7)), draw(&SeededRandom::new(7)));
        assert_ne!(draw(&SeededRandom::new(7)), draw(&SeededRandom::new(8)));
        assert_ne!(
            draw(&SeededRandom::stream(7, 0)),
            draw(&SeededRandom::stream(7, 1))
        );
    }

    #[test]
    fn fill_covers_lengths_that_are_no_multiple_of_a_word() {
        let sources: [Arc<dyn Random>; 2] = [Arc::new(OsRandom), Arc::new(SeededRandom::new(1))];
        for random in sources {
            let mut seen = [0_u8; 13];
            for _ in 0..64 {
                let mut bytes = [0_u8; 13];
                random.fill(&mut bytes);
                seen.iter_mut().zip(bytes).for_each(|(all, byte)| *all |= byte);
            }
            assert_eq!(seen, [0xff; 13]);
        }
    }

    #[test]
    fn an_empty_range_gives_its_start() {
        let random = SeededRandom::new(3);
        assert_eq!(random.range(5, 5), 5);
        assert_eq!(random.range(5, 4), 5);
    }

    #[test]
    fn range_reaches_every_value_about_equally_often() {
        let random = SeededRandom::new(11);
        let mut counts = [0_u32; 6];
        for _ in 0..6_000 {
            counts[random.range(0, 6) as usize] += 1;
        }
        assert!(
            counts.iter().all(|count| (850..1_150).contains(count)),
            "{counts:?}"
        );
    }

    proptest! {
        #[test]
        fn range_stays_inside(seed: u64, start: u64, span in 1_u64..) {
            let end = start.saturating_add(span);
            prop_assume!(start < end);
            let value = SeededRandom::new(seed).range(start, end);
            prop_assert!((start..end).contains(&value));
        }
    }
}
