//! The numbers that name things, as types.
//!
//! Bare integers stop at the wire: inside the system an offset cannot be passed for an epoch.
//! They live beside the record format because the frame of the data protocol carries them, and
//! everything that talks about a log depends on this crate.

use std::fmt;

/// Declares an integer newtype that prints as a short prefix and the number.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl $name {
            /// The bare number, for the wire.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

id! {
    /// A record's place in its partition, counted from zero. As an end or a tail it is exclusive.
    Offset(u64), "@"
}
id! {
    /// Counts the grants of a partition: each owner's incarnation has one of its own.
    Epoch(u32), "e"
}
id! {
    /// A partition's cluster-wide number, allocated once and never reused.
    PartitionId(u64), "p"
}
id! {
    /// A storage node's number, allocated once and never reused.
    NodeId(u32), "n"
}
id! {
    /// Changes whenever a storage node may have lost bytes (I5, I18).
    Generation(u32), "g"
}
id! {
    /// A broker's number.
    BrokerId(u32), "b"
}
id! {
    /// The create revision of a broker's session key; a new one for each session.
    SessionId(u64), "s"
}
id! {
    /// A metadata revision known to a segment's creator; rises strictly along a chain.
    Token(u64), "t"
}
id! {
    /// Identifies an idempotent producer.
    ProducerId(u64), "pid"
}

impl Offset {
    /// The offset `count` records later, or none where it would overflow.
    #[must_use]
    pub const fn checked_add(self, count: u64) -> Option<Self> {
        match self.0.checked_add(count) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Records from `start` up to here, zero where `start` is later.
    #[must_use]
    pub const fn since(self, start: Self) -> u64 {
        self.0.saturating_sub(start.0)
    }
}

/// Names a segment: written by one broker incarnation under one epoch, never reused (I1).
///
/// Orders by partition, then by age within it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SegmentId {
    /// The partition whose chain it may join.
    pub partition: PartitionId,
    /// The epoch of the grant under which it was created.
    pub epoch: Epoch,
    /// Counted by the owner within the epoch, from 1.
    pub seq: u32,
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}.{}", self.partition, self.epoch, self.seq)
    }
}

impl fmt::Debug for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
