//! Every key of the metadata store, built and parsed here and nowhere else.
//!
//! | key                 | value             | owner            | lifetime                          |
//! |---------------------|-------------------|------------------|-----------------------------------|
//! | `/cluster`          | `ClusterRecord`   | first process    | the cluster's                     |
//! | `/t/<topic uuid>`   | `TopicRecord`     | admin            | until deleted and drained         |
//! | `/tn/<name>`        | topic uuid        | admin            | until deleted                     |
//! | `/p/<partition>`    | `PartitionRecord` | partition owner  | until deleted and drained         |
//! | `/w/<partition>`    | `PlacementRecord` | controller       | the partition's                   |
//! | `/n/<node>`         | `NodeRecord`      | that node        | until removed by an operator      |
//! | `/b/<broker>`       | `BrokerRecord`    | that broker      | its session's lease               |
//! | `/x/<proxy>`        | `ProxyRecord`     | that proxy       | its session's lease               |
//! | `/controller`       | `ControllerRecord`| elected process  | its session's lease               |
//! | `/moves`            | `MovesRecord`     | controller       | the cluster's                     |
//! | `/id/<kind>`        | `CounterRecord`   | whoever counts   | the cluster's                     |
//!
//! Numbers are fixed-width hexadecimal, so that keys sort as their numbers do. Partition keys
//! never hang on a lease: a record must outlive its owner.

use forebay_record::{BrokerId, NodeId, PartitionId};
use uuid::Uuid;

/// The cluster's own record.
pub const CLUSTER: &str = "/cluster";
/// The controller's election.
pub const CONTROLLER: &str = "/controller";
/// What the controller has moved lately.
pub const MOVES: &str = "/moves";
/// Prefix of topics by id.
pub const TOPICS: &str = "/t/";
/// Prefix of topics by name.
pub const TOPIC_NAMES: &str = "/tn/";
/// Prefix of partition records.
pub const PARTITIONS: &str = "/p/";
/// Prefix of placement wishes.
pub const WISHES: &str = "/w/";
/// Prefix of storage nodes.
pub const NODES: &str = "/n/";
/// Prefix of broker sessions.
pub const BROKERS: &str = "/b/";
/// Prefix of proxy sessions.
pub const PROXIES: &str = "/x/";
/// Counter of partition ids.
pub const PARTITION_IDS: &str = "/id/partition";
/// Counter of brokers that were given their id.
pub const BROKER_IDS: &str = "/id/broker";
/// Counter of producer ids.
pub const PRODUCER_IDS: &str = "/id/producer";

/// Key of a topic.
#[must_use]
pub fn topic(id: Uuid) -> String {
    format!("{TOPICS}{}", id.as_hyphenated())
}

/// Key that leads from a topic's name to its id.
#[must_use]
pub fn topic_name(name: &str) -> String {
    format!("{TOPIC_NAMES}{name}")
}

/// Key of a partition's record.
#[must_use]
pub fn partition(id: PartitionId) -> String {
    format!("{PARTITIONS}{:016x}", id.0)
}

/// Key of a partition's placement wish.
#[must_use]
pub fn wish(id: PartitionId) -> String {
    format!("{WISHES}{:016x}", id.0)
}

/// Key of a storage node.
#[must_use]
pub fn node(id: NodeId) -> String {
    format!("{NODES}{:08x}", id.0)
}

/// Key of a broker's session.
#[must_use]
pub fn broker(id: BrokerId) -> String {
    format!("{BROKERS}{:08x}", id.0)
}

/// Key of a proxy's session.
#[must_use]
pub fn proxy(id: &str) -> String {
    format!("{PROXIES}{id}")
}

/// The partition whose wish or record a key holds.
#[must_use]
pub fn partition_of(key: &str) -> Option<PartitionId> {
    let number = key
        .strip_prefix(PARTITIONS)
        .or_else(|| key.strip_prefix(WISHES))?;
    u64::from_str_radix(number, 16).ok().map(PartitionId)
}

/// The topic whose record a key holds.
#[must_use]
pub fn topic_of(key: &str) -> Option<Uuid> {
    Uuid::try_parse(key.strip_prefix(TOPICS)?).ok()
}

/// The broker whose session a key holds.
#[must_use]
pub fn broker_of(key: &str) -> Option<BrokerId> {
    u32::from_str_radix(key.strip_prefix(BROKERS)?, 16)
        .ok()
        .map(BrokerId)
}

/// The storage node that a key holds.
#[must_use]
pub fn node_of(key: &str) -> Option<NodeId> {
    u32::from_str_radix(key.strip_prefix(NODES)?, 16).ok().map(NodeId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_their_numbers_do_and_parse_back() {
        let (small, large) = (partition(PartitionId(9)), partition(PartitionId(0x10)));
        assert!(small < large);
        assert_eq!(partition_of(&large), Some(PartitionId(0x10)));
        assert_eq!(partition_of(&wish(PartitionId(3))), Some(PartitionId(3)));
        assert_eq!(broker_of(&broker(BrokerId(7))), Some(BrokerId(7)));
        assert_eq!(node_of(&node(NodeId(12))), Some(NodeId(12)));
        assert_eq!(partition_of("/p/zz"), None);
        assert_eq!(topic_of(&topic(Uuid::from_u128(5))), Some(Uuid::from_u128(5)));
    }
}
