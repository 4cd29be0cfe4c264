//! The load every subject gets: record batches of 1 KiB records, spread over partitions in turn.
//!
//! Values are slices of one pool of random bytes, each from another place, so that neither a
//! file system nor a link can win by compressing or sharing them; filling a batch still costs
//! what a client pays: framing each record, copying it once, one checksum.

use bytes::Bytes;
use clap::Args;
use forebay_record::batch::{BuildError, Builder, Codec};
use serde::{Deserialize, Serialize};

/// Bytes of a record's value.
pub const VALUE_BYTES: usize = 1024;
const POOL_BYTES: usize = 1 << 20;
/// Odd, so that it visits every place of the pool.
const POOL_STEP: usize = 7_919;
/// What a record of this size costs beside its value, at most.
const RECORD_OVERHEAD_MAX: usize = 16;
const IN_FLIGHT_BYTES_MAX: usize = 16 << 20;
const IN_FLIGHT_MAX: usize = 64;

/// What to send, the same for every subject of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args, Serialize, Deserialize)]
pub struct Load {
    /// Bytes of a batch, header included, that a client fills as far as whole records go.
    #[arg(long, default_value_t = 256 << 10)]
    pub batch_bytes: usize,
    /// Partitions that batches go to in turn.
    #[arg(long, default_value_t = 64)]
    pub partitions: u32,
    /// Bytes of batches to send, rounded up to whole batches.
    #[arg(long, default_value_t = 512 << 20)]
    pub bytes: u64,
    /// Bytes of batches to send before the clock starts.
    #[arg(long, default_value_t = 64 << 20)]
    pub warm_up_bytes: u64,
}

impl Load {
    /// Batches sent and not yet acknowledged, at most: 16 MiB of them, and no more than 64.
    #[must_use]
    pub fn window(&self) -> usize {
        (IN_FLIGHT_BYTES_MAX / self.batch_bytes.max(1)).clamp(1, IN_FLIGHT_MAX)
    }
}

/// Fills batches.
#[derive(Debug)]
pub struct Packer {
    builder: Builder,
    batch_bytes: usize,
    pool: Values,
}

impl Packer {
    /// Makes batches of `load`'s size.
    #[must_use]
    pub fn new(load: &Load) -> Self {
        let builder = Builder::new(Codec::None, load.batch_bytes);
        Self {
            builder,
            batch_bytes: load.batch_bytes,
            pool: Values::new(),
        }
    }

    /// The next batch: as many records as fit, at least one.
    ///
    /// # Errors
    /// Where a batch of this size cannot be built.
    pub fn batch(&mut self, timestamp_ms: i64) -> Result<Bytes, BuildError> {
        loop {
            self.builder
                .append::<&[u8]>(timestamp_ms, None, Some(self.pool.take()), &[])?;
            if self.builder.len_estimate() + VALUE_BYTES + RECORD_OVERHEAD_MAX > self.batch_bytes {
                return self.builder.finish(None);
            }
        }
    }
}

/// An endless supply of different values.
#[derive(Debug)]
pub struct Values {
    pool: Bytes,
    at: usize,
}

impl Values {
    /// The same values in every process.
    #[must_use]
    pub fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut words = || {
            // xorshift64: fast, and random enough that nothing compresses it.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        let pool = std::iter::repeat_with(&mut words)
            .take(POOL_BYTES / 8)
            .flatten()
            .collect::<Vec<u8>>();
        Self {
            pool: pool.into(),
            at: 0,
        }
    }

    /// The next value, by reference.
    pub fn take(&mut self) -> &[u8] {
        let at = self.step();
        self.pool.get(at..at + VALUE_BYTES).unwrap_or_default()
    }

    /// The next value, shared.
    pub fn take_shared(&mut self) -> Bytes {
        let at = self.step();
        self.pool.slice(at..at + VALUE_BYTES)
    }

    fn step(&mut self) -> usize {
        let at = self.at;
        self.at = (self.at + POOL_STEP) % (POOL_BYTES - VALUE_BYTES);
        at
    }
}

impl Default for Values {
    fn default() -> Self {
        Self::new()
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
    use forebay_record::batch::{HEADER_LEN, Limits, validate};

    fn load(batch_bytes: usize) -> Load {
        Load {
            batch_bytes,
            partitions: 1,
            bytes: 1,
            warm_up_bytes: 0,
        }
    }

    #[test]
    fn a_batch_is_valid_and_as_full_as_whole_records_allow() {
        for batch_bytes in [16 << 10, 256 << 10, 960 << 10] {
            let mut packer = Packer::new(&load(batch_bytes));
            for _ in 0..3 {
                let batch = packer.batch(1_700_000_000_000).unwrap();
                assert!(batch.len() <= batch_bytes);
                assert!(batch.len() + VALUE_BYTES + 2 * RECORD_OVERHEAD_MAX > batch_bytes);
                let header = validate(&batch, &Limits::default()).unwrap();
                assert_eq!(
                    header.record_count() as usize,
                    (batch.len() - HEADER_LEN) / (VALUE_BYTES + 9)
                );
            }
        }
    }

    #[test]
    fn values_differ_from_one_to_the_next() {
        let mut values = Values::new();
        let first = values.take_shared();
        assert_eq!(first.len(), VALUE_BYTES);
        assert_ne!(first, values.take());
        assert_ne!(first[..512], first[512..]);
    }

    #[test]
    fn the_window_is_bounded_in_batches_and_in_bytes() {
        assert_eq!(load(16 << 10).window(), 64);
        assert_eq!(load(256 << 10).window(), 64);
        assert_eq!(load(960 << 10).window(), 17);
        assert_eq!(load(1 << 30).window(), 1);
    }
}
