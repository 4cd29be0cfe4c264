//! Memory that starts on a block boundary, as direct I/O wants it.
//!
//! Allocated once and never grown, so the boundary found at the beginning stays where it is.

use std::fmt;

use bytes::Bytes;

use crate::disk::BLOCK_LEN;

/// An aligned buffer of a fixed length.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// A zeroed buffer of `len` bytes, rounded up to whole blocks.
    pub(crate) fn new(len: usize) -> Self {
        let len = len.div_ceil(BLOCK_LEN).max(1) * BLOCK_LEN;
        let bytes = vec![0; len + BLOCK_LEN];
        let start = bytes.as_ptr().align_offset(BLOCK_LEN).min(BLOCK_LEN);
        Self { bytes, start, len }
    }

    /// The buffer as shared bytes, without copying them.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from(self.bytes).slice(self.start..self.start + self.len)
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.bytes
            .get(self.start..self.start + self.len)
            .unwrap_or_default()
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.bytes
            .get_mut(self.start..self.start + self.len)
            .unwrap_or_default()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({})", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_starts_on_a_block_boundary_and_is_whole_blocks_long() {
        for len in [0, 1, BLOCK_LEN, BLOCK_LEN + 1, 1 << 20] {
            let buffer = Buffer::new(len);
            assert!(buffer.as_slice().as_ptr().addr().is_multiple_of(BLOCK_LEN));
            assert_eq!(buffer.as_slice().len(), buffer.len());
            assert!(buffer.len() >= len && buffer.len().is_multiple_of(BLOCK_LEN));
        }
    }
}
