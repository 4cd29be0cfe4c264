//! The objects that are needed, as hashes of their names: 8 bytes each, whatever the name.
//!
//! Two names with one hash cost at most that garbage is kept; nothing needed is ever missed.

use std::hash::{DefaultHasher, Hasher};

/// Hashes of the names of one part of all objects.
#[derive(Debug)]
pub(super) struct Marks {
    hashes: Vec<u64>,
    max: usize,
    full: bool,
    parts: u64,
    part: u64,
}

/// The same for the life of a process.
pub(super) fn hash(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name.as_bytes());
    hasher.finish()
}

impl Marks {
    /// Marks of part `part` of `parts`.
    pub fn new(max: usize, parts: u64, part: u64) -> Self {
        Self {
            hashes: Vec::new(),
            max,
            full: false,
            parts,
            part,
        }
    }

    /// No marks, of the same part.
    pub fn none(of: &Self) -> Self {
        Self::new(0, of.parts, of.part)
    }

    /// Marks a name, where it belongs to this part.
    pub fn add(&mut self, name: &str) {
        let hash = hash(name);
        if self.full || !self.covers(hash) {
            return;
        }
        self.hashes.push(hash);
        if self.hashes.len() > self.max {
            // A name in many runs is one mark. Where that does not make much room, there is none.
            self.hashes.sort_unstable();
            self.hashes.dedup();
            self.full = self.hashes.len() > self.max - self.max / 4;
        }
    }

    /// Whether there are more than may be held: then some are missing.
    pub const fn are_full(&self) -> bool {
        self.full
    }

    /// Ready to be asked.
    pub fn sorted(mut self) -> Self {
        self.hashes.sort_unstable();
        self.hashes.dedup();
        self
    }

    /// Whether a hash belongs to this part.
    pub fn covers(&self, hash: u64) -> bool {
        hash % self.parts == self.part
    }

    /// Whether a name with this hash is marked.
    pub fn contains(&self, hash: u64) -> bool {
        self.hashes.binary_search(&hash).is_ok()
    }

    pub fn len(&self) -> u64 {
        self.hashes.len() as u64
    }
}
