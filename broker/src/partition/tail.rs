//! The newest batches of a partition, kept for consumers at the tail.
//!
//! Batches enter when they get their offset and may be served once they are visible. The oldest
//! leave first when the driver needs the memory; what has left is read from storage nodes.

use std::collections::VecDeque;

use bytes::Bytes;
use forebay_record::Offset;

#[derive(Debug)]
struct Cached {
    base: Offset,
    end: Offset,
    /// Header as stamped, and the rest as it came.
    chunks: [Bytes; 2],
}

impl Cached {
    fn len(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }
}

/// The cached end of one partition.
#[derive(Debug, Default)]
pub struct Tail {
    batches: VecDeque<Cached>,
    bytes: u64,
}

/// What the cache has for a reader.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Batches from the one that holds the offset on, as chunks in order, and their bytes.
    Batches(Vec<Bytes>, usize),
    /// The offset is older than what is kept.
    Older,
    /// Nothing visible at or after the offset.
    Nothing,
}

impl Tail {
    /// Adds a batch at the end.
    pub fn push(&mut self, base: Offset, end: Offset, chunks: [Bytes; 2]) {
        let cached = Cached { base, end, chunks };
        self.bytes += cached.len() as u64;
        self.batches.push_back(cached);
    }

    /// Bytes kept.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Forgets the oldest batches that are visible until at most `bytes_max` are left.
    pub fn shrink(&mut self, bytes_max: u64, visible: Offset) {
        while self.bytes > bytes_max
            && let Some(oldest) = self.batches.front()
            && oldest.end <= visible
        {
            self.bytes -= oldest.len() as u64;
            self.batches.pop_front();
        }
    }

    /// Visible batches from an offset on: about `max_bytes`, at least one.
    #[must_use]
    pub fn read(&self, from: Offset, visible: Offset, max_bytes: usize) -> Found {
        if from >= visible {
            return Found::Nothing;
        }
        match self.batches.front() {
            Some(oldest) if oldest.base <= from => {}
            _ => return Found::Older,
        }
        let start = self.batches.partition_point(|batch| batch.end <= from);
        let mut chunks = Vec::new();
        let mut bytes = 0;
        for batch in self.batches.iter().skip(start) {
            if batch.end > visible || (bytes > 0 && bytes + batch.len() > max_bytes) {
                break;
            }
            bytes += batch.len();
            chunks.extend(batch.chunks.iter().cloned());
        }
        if bytes == 0 {
            Found::Nothing
        } else {
            Found::Batches(chunks, bytes)
        }
    }

    /// Bytes that [`Tail::read`] would find, counted up to `enough`.
    #[must_use]
    pub fn available(&self, from: Offset, visible: Offset, enough: usize) -> usize {
        let start = self.batches.partition_point(|batch| batch.end <= from);
        let mut bytes = 0;
        for batch in self.batches.iter().skip(start) {
            if batch.end > visible || bytes >= enough {
                break;
            }
            bytes += batch.len();
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail() -> Tail {
        let mut tail = Tail::default();
        for base in [10_u64, 12, 14] {
            let chunks = [Bytes::from_static(b"head"), Bytes::from_static(b"body")];
            tail.push(Offset(base), Offset(base + 2), chunks);
        }
        tail
    }

    #[test]
    fn nothing_invisible_is_served() {
        let tail = tail();
        assert_eq!(tail.read(Offset(12), Offset(12), 100), Found::Nothing);
        let Found::Batches(chunks, bytes) = tail.read(Offset(11), Offset(14), 100) else {
            unreachable!()
        };
        assert_eq!((chunks.len(), bytes), (4, 16));
    }

    #[test]
    fn the_first_batch_is_whole_however_small_the_limit() {
        assert!(matches!(
            tail().read(Offset(13), Offset(16), 1),
            Found::Batches(_, 8)
        ));
    }

    #[test]
    fn what_was_forgotten_is_older_and_the_invisible_is_never_forgotten() {
        let mut tail = tail();
        tail.shrink(0, Offset(14));
        assert_eq!(tail.bytes(), 8);
        assert_eq!(tail.read(Offset(12), Offset(16), 100), Found::Older);
        assert_eq!(Tail::default().read(Offset(1), Offset(4), 100), Found::Older);
    }
}
