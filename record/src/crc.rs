//! CRC-32C (Castagnoli), the one checksum of record batches, frames and journal blocks.
//!
//! The whole-slice function and the incremental one agree for every way of cutting the bytes
//! into chunks, so a sender may checksum pieces it never joins. Detects accidents, not forgers.

use crc_fast::{CrcAlgorithm, Digest};

/// The CRC-32C of `bytes`.
#[must_use]
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// A CRC-32C over bytes that arrive in chunks.
#[derive(Clone, Copy)]
pub struct Crc32c {
    digest: Digest,
}

impl Crc32c {
    /// A checksum of no bytes so far.
    #[must_use]
    pub fn new() -> Self {
        Self {
            digest: Digest::new(CrcAlgorithm::Crc32Iscsi),
        }
    }

    /// Takes the next chunk in.
    pub fn update(&mut self, chunk: &[u8]) {
        self.digest.update(chunk);
    }

    /// The checksum of all chunks so far, in their order.
    #[must_use]
    pub fn finish(&self) -> u32 {
        let [_, _, _, _, low @ ..] = self.digest.finalize().to_be_bytes();
        u32::from_be_bytes(low)
    }
}

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Crc32c {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crc32c({:#010x})", self.finish())
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
    use proptest::prelude::*;

    #[test]
    fn known_values_match_the_iscsi_standard() {
        // The check value of the algorithm, and the vectors of RFC 3720, appendix B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0x00; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b""), 0);
        assert_eq!(Crc32c::new().finish(), 0);
    }

    proptest! {
        #[test]
        fn chunks_give_the_checksum_of_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..2000),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let mut running = Crc32c::new();
            for pair in at.windows(2) {
                running.update(&bytes[pair[0]..pair[1]]);
            }
            prop_assert_eq!(running.finish(), crc32c(&bytes));
        }
    }
}
