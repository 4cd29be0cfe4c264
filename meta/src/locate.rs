//! Where the partitions of a topic are, answered from the records.
//!
//! The answer may be stale by the time it arrives (I23): whoever follows it learns from the owner
//! itself, and the higher epoch wins.

use forebay_proto::error::Failure;
use forebay_record::{BrokerId, Epoch, PartitionId, SessionId};

use crate::store::{MetaStore, Revision};
use crate::topics::{self, Topic};

/// A topic and the grants of its partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The topic.
    pub topic: Topic,
    /// In the order of partition numbers.
    pub partitions: Vec<Grant>,
    /// Nothing here is older than this.
    pub revision: Revision,
}

/// The newest grant of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The partition.
    pub id: PartitionId,
    /// Its number within the topic.
    pub number: u32,
    /// The grant's epoch; 0 before the first.
    pub epoch: Epoch,
    /// The broker it went to; none before the first.
    pub owner: Option<BrokerId>,
    /// The broker's session; where that is over, nobody owns the partition.
    pub session: SessionId,
}

/// Reads a topic and where its partitions are.
///
/// # Errors
/// `UNKNOWN_TOPIC`, `INVALID_TOPIC_NAME`, and as the store fails.
pub async fn locate(store: &dyn MetaStore, topic_name: &str) -> Result<Located, Failure> {
    let topic = topics::get(store, topic_name).await?;
    let (records, revision) = topics::read_partitions(store, &topic).await?;
    let partitions = records
        .iter()
        .map(|record| Grant {
            id: record.id,
            number: record.number,
            epoch: record.epoch,
            owner: record.owner,
            session: record.session,
        })
        .collect();
    Ok(Located {
        topic,
        partitions,
        revision,
    })
}
