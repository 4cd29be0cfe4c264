//! A storage node and what is needed of it, as `--format json` shows it. A field is never renamed.

use forebay_proto::v1;
use serde::Serialize;

use crate::command::cluster::view::StorageNode;
use crate::output::{bytes, counted};

/// A storage node, and what partitions' records name it for.
#[derive(Debug, Serialize)]
pub struct Described {
    /// The node.
    pub node: StorageNode,
    /// Segments being written.
    pub segments_open: u64,
    /// Sealed segments that are not offloaded.
    pub segments_sealed: u64,
    /// Bytes of the sealed ones, as far as they are known.
    pub bytes: u64,
    /// Segments of which no other node that answers has a copy.
    pub segments_sole: u64,
}

impl From<v1::DescribeStorageNodeResponse> for Described {
    fn from(found: v1::DescribeStorageNodeResponse) -> Self {
        let holdings = found.holdings.unwrap_or_default();
        Self {
            node: StorageNode::from(found.node.unwrap_or_default()),
            segments_open: holdings.segments_open,
            segments_sealed: holdings.segments_sealed,
            bytes: holdings.bytes,
            segments_sole: holdings.segments_sole,
        }
    }
}

impl Described {
    /// True where no record needs the node and nothing is on it that goes by itself. What is on a node
    /// that does not answer is not known.
    pub fn is_empty(&self) -> bool {
        self.segments_open == 0 && self.segments_sealed == 0 && self.leftover_bytes() == 0
    }

    /// Bytes on the node that will be trimmed; what belongs to no known partition stays.
    pub fn leftover_bytes(&self) -> u64 {
        let status = self.node.status.as_ref();
        status.map_or(0, |status| {
            status.bytes_held.saturating_sub(status.bytes_unrecorded)
        })
    }

    /// Bytes on the node that belong to no known partition.
    pub fn unrecorded_bytes(&self) -> u64 {
        self.node
            .status
            .as_ref()
            .map_or(0, |status| status.bytes_unrecorded)
    }

    /// What is needed of it, in words.
    pub fn left(&self) -> String {
        let open = match self.segments_open {
            0 => String::new(),
            count => format!(" and {} being written", counted(count, "segment")),
        };
        let sealed = counted(self.segments_sealed, "sealed segment");
        let held = match self.leftover_bytes() {
            0 => String::new(),
            held => format!(", {} on its disk", bytes(held)),
        };
        format!("{sealed} of {}{open}{held}", bytes(self.bytes))
    }
}
