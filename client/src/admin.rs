//! Topics, offsets and the state of the cluster.
//!
//! Questions are repeated until the retry timeout; making and deleting a topic only as long as it
//! is certain that nothing was done.

use std::collections::BTreeMap;
use std::sync::Arc;

use forebay_proto::v1;
use forebay_proto::v1::admin_client::AdminClient;
use forebay_proto::v1::data_client::DataClient;

use crate::error::Refusal;
use crate::link::{Link, MESSAGE_BYTES_MAX, Repeat};
use crate::offsets::{self, FoundOffset, OffsetsError, StartPosition};

/// Pages of a listing; far more topics than a cluster is built for.
const PAGES_MAX: usize = 10_000;

/// Why an administrative request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// It was refused; nothing was changed.
    #[error(transparent)]
    Refused(Refusal),
    /// Nobody knows whether it was applied: look before trying again.
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(Refusal),
    /// The answer lacks something that it must have.
    #[error("answer without {missing}")]
    Incomplete {
        /// What is missing.
        missing: &'static str,
    },
}

impl AdminError {
    fn of_change(refusal: Refusal) -> Self {
        if refusal.is_unknown() {
            Self::OutcomeUnknown(refusal)
        } else {
            Self::Refused(refusal)
        }
    }
}

/// Administers topics and looks at the cluster.
#[derive(Debug, Clone)]
pub struct Admin {
    link: Arc<Link>,
}

impl Admin {
    pub(crate) const fn new(link: Arc<Link>) -> Self {
        Self { link }
    }

    /// Makes a topic. Configuration keys are as Kafka names them.
    ///
    /// # Errors
    /// Refused (it exists, a name or a key is wrong), or the outcome is unknown.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: u32,
        config: BTreeMap<String, String>,
    ) -> Result<v1::TopicDescription, AdminError> {
        let request = v1::CreateTopicRequest {
            name: name.to_owned(),
            partitions,
            config,
        };
        self.link
            .call(Repeat::WhenRefused, |channel| {
                let request = request.clone();
                async move { AdminClient::new(channel).create_topic(request).await }
            })
            .await
            .map_err(AdminError::of_change)?
            .topic
            .ok_or(AdminError::Incomplete { missing: "topic" })
    }

    /// All topics, in the order of their names.
    ///
    /// # Errors
    /// Refused.
    pub async fn list_topics(&self) -> Result<Vec<v1::TopicSummary>, AdminError> {
        let mut topics: Vec<v1::TopicSummary> = Vec::new();
        for _ in 0..PAGES_MAX {
            let after = topics.last().map(|topic| topic.name.clone()).unwrap_or_default();
            let request = v1::ListTopicsRequest { after, limit: 0 };
            let page = self
                .link
                .call(Repeat::Always, |channel| {
                    let request = request.clone();
                    async move {
                        let client = AdminClient::new(channel);
                        client
                            .max_decoding_message_size(MESSAGE_BYTES_MAX)
                            .list_topics(request)
                            .await
                    }
                })
                .await
                .map_err(AdminError::Refused)?;
            let more = page.more && !page.topics.is_empty();
            topics.extend(page.topics);
            if !more {
                break;
            }
        }
        Ok(topics)
    }

    /// A topic's configuration, partitions and segments.
    ///
    /// # Errors
    /// Refused.
    pub async fn describe_topic(&self, name: &str) -> Result<v1::TopicDescription, AdminError> {
        let request = v1::DescribeTopicRequest {
            name: name.to_owned(),
        };
        self.link
            .call(Repeat::Always, |channel| {
                let request = request.clone();
                async move {
                    let client = AdminClient::new(channel);
                    client
                        .max_decoding_message_size(MESSAGE_BYTES_MAX)
                        .describe_topic(request)
                        .await
                }
            })
            .await
            .map_err(AdminError::Refused)?
            .topic
            .ok_or(AdminError::Incomplete { missing: "topic" })
    }

    /// Sets and unsets keys of a topic's configuration; all others stay. Returns every key with
    /// the value in force. Repeating it changes nothing more.
    ///
    /// # Errors
    /// Refused (a key is unknown, a value cannot be), or the outcome is unknown.
    pub async fn alter_topic_config(
        &self,
        name: &str,
        set: BTreeMap<String, String>,
        unset: Vec<String>,
    ) -> Result<Vec<v1::TopicSetting>, AdminError> {
        let request = v1::AlterTopicConfigRequest {
            name: name.to_owned(),
            set,
            unset,
        };
        let answer = self.link.call(Repeat::WhenRefused, |channel| {
            let request = request.clone();
            async move { AdminClient::new(channel).alter_topic_config(request).await }
        });
        Ok(answer.await.map_err(AdminError::of_change)?.settings)
    }

    /// Gives a topic more partitions, `partitions` in all. Returns how many there are.
    ///
    /// # Errors
    /// Refused (it has so many or more already), or the outcome is unknown.
    pub async fn add_partitions(&self, name: &str, partitions: u32) -> Result<u32, AdminError> {
        let request = v1::AddPartitionsRequest {
            name: name.to_owned(),
            partitions,
        };
        let answer = self.link.call(Repeat::WhenRefused, |channel| {
            let request = request.clone();
            async move { AdminClient::new(channel).add_partitions(request).await }
        });
        Ok(answer.await.map_err(AdminError::of_change)?.partitions)
    }

    /// Deletes a topic and what is in it.
    ///
    /// # Errors
    /// Refused, or the outcome is unknown.
    pub async fn delete_topic(&self, name: &str) -> Result<(), AdminError> {
        let request = v1::DeleteTopicRequest {
            name: name.to_owned(),
        };
        self.link
            .call(Repeat::WhenRefused, |channel| {
                let request = request.clone();
                async move { AdminClient::new(channel).delete_topic(request).await }
            })
            .await
            .map_err(AdminError::of_change)?;
        Ok(())
    }

    /// Begins to empty a broker, or lets it have partitions again. Returns at once: the cluster's
    /// description says what the broker still has. A broker that is started again is not drained.
    ///
    /// # Errors
    /// Refused (there is no such broker), or the outcome is unknown.
    pub async fn drain_broker(&self, broker: u32, draining: bool) -> Result<(), AdminError> {
        let request = v1::DrainBrokerRequest {
            broker,
            undo: !draining,
        };
        self.link
            .call(Repeat::Always, |channel| async move {
                AdminClient::new(channel).drain_broker(request).await
            })
            .await
            .map_err(AdminError::of_change)?;
        Ok(())
    }

    /// What ending a partition's open segment by force would do, where its takeover waits for storage
    /// nodes that are lost, or for somebody to choose between replicas that contradict each other. `next`
    /// is where the log is to go on, far above all that is known where none; `trust` is the storage node
    /// whose history is the right one.
    ///
    /// # Errors
    /// Refused: it waits for nothing, or `next` is too low.
    pub async fn plan_force_seal(
        &self,
        topic: &str,
        partition: u32,
        next: Option<u64>,
        trust: Option<u32>,
    ) -> Result<v1::ForcedEnd, AdminError> {
        let request = v1::ForceSealRequest {
            topic: topic.to_owned(),
            partition,
            next,
            force: false,
            expected: None,
            trust,
        };
        self.link
            .call(Repeat::Always, |channel| {
                let request = request.clone();
                async move { AdminClient::new(channel).force_seal(request).await }
            })
            .await
            .map_err(AdminError::Refused)?
            .end
            .ok_or(AdminError::Incomplete { missing: "end" })
    }

    /// Ends a partition's open segment as it was planned, and returns when the partition is served
    /// again. What is declared lost does not come back. `force` also where its takeover might still end
    /// by itself.
    ///
    /// # Errors
    /// Refused (something has changed since, or it might still end by itself), or the outcome is unknown.
    pub async fn force_seal(
        &self,
        topic: &str,
        partition: u32,
        planned: v1::ForcedEnd,
        force: bool,
    ) -> Result<v1::ForcedEnd, AdminError> {
        let request = v1::ForceSealRequest {
            topic: topic.to_owned(),
            partition,
            next: Some(planned.next),
            force,
            trust: planned.trusted,
            expected: Some(planned),
        };
        self.link
            .call(Repeat::WhenRefused, |channel| {
                let request = request.clone();
                async move { AdminClient::new(channel).force_seal(request).await }
            })
            .await
            .map_err(AdminError::of_change)?
            .end
            .ok_or(AdminError::Incomplete { missing: "end" })
    }

    /// What no replica of a partition's sealed segments can read any more.
    ///
    /// # Errors
    /// Refused: nothing is lost, or the partition is being taken over.
    pub async fn plan_declare_lost(
        &self,
        topic: &str,
        partition: u32,
    ) -> Result<v1::DeclareLostResponse, AdminError> {
        self.declare(topic, partition, Vec::new(), false).await
    }

    /// Declares lost what was planned: readers are led over it, and what follows is offloaded. `force`
    /// also where somebody who is away may come back with it.
    ///
    /// # Errors
    /// Refused (something has changed since, or some of it may still be found), or the outcome is unknown.
    pub async fn declare_lost(
        &self,
        topic: &str,
        partition: u32,
        planned: Vec<v1::LostSegment>,
        force: bool,
    ) -> Result<v1::DeclareLostResponse, AdminError> {
        self.declare(topic, partition, planned, force).await
    }

    async fn declare(
        &self,
        topic: &str,
        partition: u32,
        expected: Vec<v1::LostSegment>,
        force: bool,
    ) -> Result<v1::DeclareLostResponse, AdminError> {
        let does = !expected.is_empty();
        let request = v1::DeclareLostRequest {
            topic: topic.to_owned(),
            partition,
            force,
            expected,
        };
        let repeat = if does { Repeat::WhenRefused } else { Repeat::Always };
        let answer = self.link.call(repeat, |channel| {
            let request = request.clone();
            async move { AdminClient::new(channel).declare_lost(request).await }
        });
        let of = if does {
            AdminError::of_change
        } else {
            AdminError::Refused
        };
        answer.await.map_err(of)
    }

    /// Brokers, storage nodes and proxies.
    ///
    /// # Errors
    /// Refused.
    pub async fn describe_cluster(&self) -> Result<v1::DescribeClusterResponse, AdminError> {
        self.link
            .call(Repeat::Always, |channel| async move {
                let client = AdminClient::new(channel);
                let request = v1::DescribeClusterRequest {};
                client
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .describe_cluster(request)
                    .await
            })
            .await
            .map_err(AdminError::Refused)
    }

    /// A storage node, and what partitions still need of it. Reads every partition's record.
    ///
    /// # Errors
    /// Refused: there is no such node.
    pub async fn describe_storage_node(
        &self,
        id: u32,
    ) -> Result<v1::DescribeStorageNodeResponse, AdminError> {
        self.link
            .call(Repeat::Always, |channel| async move {
                let request = v1::DescribeStorageNodeRequest { id };
                AdminClient::new(channel).describe_storage_node(request).await
            })
            .await
            .map_err(AdminError::Refused)
    }

    /// Says what is wanted of a storage node: that it takes segments, is emptied, or is out of the
    /// cluster, for which `accept_loss` covers a node with the last copy of something. Repeating it
    /// changes nothing more.
    ///
    /// # Errors
    /// Refused (it would lose something, or what it holds has nowhere to go), or as the store fails.
    pub async fn set_storage_node_state(
        &self,
        id: u32,
        state: v1::StorageNodeState,
        accept_loss: bool,
    ) -> Result<v1::DescribeStorageNodeResponse, AdminError> {
        self.link
            .call(Repeat::Always, |channel| async move {
                let request = v1::SetStorageNodeStateRequest {
                    id,
                    state: state as i32,
                    accept_loss,
                };
                AdminClient::new(channel).set_storage_node_state(request).await
            })
            .await
            .map_err(AdminError::of_change)
    }

    /// What a client must know of some topics, or of all where none is named. A topic that does
    /// not exist has its error in its entry.
    ///
    /// # Errors
    /// Refused.
    pub async fn metadata(&self, topics: &[&str]) -> Result<v1::MetadataResponse, AdminError> {
        let topics: Vec<String> = topics.iter().map(|&topic| topic.to_owned()).collect();
        metadata(&self.link, topics).await.map_err(AdminError::Refused)
    }

    /// Offsets at some positions, in the order they were asked for.
    ///
    /// # Errors
    /// Refused, as a whole or for one of the partitions.
    pub async fn list_offsets(
        &self,
        positions: Vec<(String, u32, StartPosition)>,
    ) -> Result<Vec<FoundOffset>, OffsetsError> {
        offsets::list(&self.link, positions).await
    }
}

/// What a client must know of topics.
pub(crate) async fn metadata(link: &Link, topics: Vec<String>) -> Result<v1::MetadataResponse, Refusal> {
    let request = v1::MetadataRequest { topics };
    link.call(Repeat::Always, |channel| {
        let request = request.clone();
        async move {
            DataClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .metadata(request)
                .await
        }
    })
    .await
}
