//! What can be noted of a run.
//!
//! Offsets of a range's end are exclusive. Numbers of producers, readers, partitions and nodes are
//! the caller's; a producer or reader that starts anew takes a new number.

use serde::{Deserialize, Serialize};

/// What identifies a record's bytes: a number of a simulator's choice, or the hash of key and value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Value(pub u64);

impl Value {
    /// The value of a record with these bytes. Two different records of a run share one with a
    /// likelihood of 1 in 10^7 among a million.
    #[must_use]
    pub fn of(key: Option<&[u8]>, value: &[u8]) -> Self {
        // FNV-1a over lengths and bytes, then the finalizer of SplitMix64 to spread it over all bits.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut take = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        };
        take(&key.map_or(u64::MAX, |key| key.len() as u64).to_le_bytes());
        take(key.unwrap_or_default());
        take(value);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self(hash ^ (hash >> 31))
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One record of one producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Produced {
    /// Who sent it: one producer from its start to its end.
    pub producer: u64,
    /// Where to.
    pub partition: u64,
    /// Its number among all that this producer sent to this partition; rises in the order of sending.
    pub sequence: u64,
}

impl std::fmt::Display for Produced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "producer {} record {}", self.producer, self.sequence)
    }
}

/// Offsets from `from` to before `until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Range {
    /// First offset.
    pub from: u64,
    /// End, exclusive.
    pub until: u64,
}

/// One segment of a chain record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainSegment {
    /// Epoch of the owner that made it.
    pub epoch: u64,
    /// Its number within the epoch.
    pub seq: u64,
    /// Orders it against floors.
    pub token: u64,
    /// First offset.
    pub base: u64,
    /// Sealed end, none while open.
    pub end: Option<u64>,
}

/// A partition's record at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainRecord {
    /// The partition.
    pub partition: u64,
    /// The metadata store's revision of this version.
    pub revision: u64,
    /// The partition's epoch.
    pub epoch: u64,
    /// First offset kept.
    pub log_start: u64,
    /// End of what lies in the object store; `log_start` or less where nothing does.
    pub offloaded_end: u64,
    /// Segments after that.
    pub segments: Vec<ChainSegment>,
    /// Ranges declared lost or skipped.
    pub gaps: Vec<Range>,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A record is about to be sent.
    Begun {
        /// The record.
        record: Produced,
        /// Unique in the whole history.
        value: Value,
    },
    /// A record was acknowledged.
    Acked {
        /// The record.
        record: Produced,
        /// Where it stands; none where the answer was that it stands already, at an offset forgotten.
        offset: Option<u64>,
    },
    /// A record was refused and will never be in the log.
    Failed {
        /// The record.
        record: Produced,
    },
    /// Nobody knows whether a record is in the log. A record that is never answered counts the same.
    Unknown {
        /// The record.
        record: Produced,
    },
    /// A reader starts to read, or starts anew at another place.
    ScanBegun {
        /// The reader.
        reader: u64,
        /// The partition.
        partition: u64,
        /// First offset that it will be given.
        from: u64,
    },
    /// A reader was given a record.
    Read {
        /// The reader.
        reader: u64,
        /// The partition.
        partition: u64,
        /// The record's offset.
        offset: u64,
        /// What it was.
        value: Value,
    },
    /// A reader stopped.
    ScanEnded {
        /// The reader.
        reader: u64,
        /// The partition.
        partition: u64,
        /// End of what it was given.
        until: u64,
        /// First offset kept, where it was told.
        log_start: Option<u64>,
        /// The log's confirmed end as it was told after it began. Says that the scan is complete:
        /// it should have read all from where it began up to here.
        high_watermark: Option<u64>,
    },
    /// Someone told a partition's first offset.
    LogStartSeen {
        /// The partition.
        partition: u64,
        /// First offset kept.
        offset: u64,
    },
    /// From now on retention may drop what lies below an offset.
    RetentionAllowed {
        /// The partition.
        partition: u64,
        /// End of what may go, exclusive.
        until: u64,
    },
    /// Offsets were declared lost or skipped: nothing is read there.
    GapDeclared {
        /// The partition.
        partition: u64,
        /// Which.
        range: Range,
    },
    /// A partition's record was observed; every version of it, in order of revisions.
    Chain(ChainRecord),
    /// From now on nothing is written, or nothing more after something was written again.
    Quiesced,
    /// What one storage node, object or cache holds of the committed log, after quiescence.
    Copy {
        /// Whose.
        source: String,
        /// The partition.
        partition: u64,
        /// Offset of the first value.
        from: u64,
        /// One after the other.
        values: Vec<Value>,
    },
    /// What a storage node has on its disk, after quiescence and once all that may go has gone.
    NodeHeld {
        /// The node.
        node: u64,
        /// Bytes of records that it holds.
        bytes: u64,
        /// The most that the chains let it hold.
        bytes_max: u64,
    },
    /// An object of the object store, after quiescence and garbage collection.
    Object {
        /// Its name.
        object: String,
        /// Some record or manifest names it.
        referenced: bool,
        /// It is there.
        present: bool,
    },
}

/// An event and when it was noted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// On whatever clock the caller has; only people go by it.
    pub at: u64,
    /// What happened.
    pub event: Event,
}
