//! A topic as it is: its settings and its partitions from the metadata store, the ends of the
//! partitions from their owners.

use std::collections::BTreeMap;

use forebay_meta::model::{Gap, ManifestRef, Partition, Run};
use forebay_meta::topics::{self, Topic};
use forebay_proto::error::Failure;
use forebay_proto::v1::{
    DescribePartitionsRequest, GapDescription, ManifestDescription, OffloadedDescription, OwnedPartition,
    PartitionDescription, ReplicaDescription, SegmentDescription, TopicDescription, TopicSetting,
};
use forebay_record::{BrokerId, Offset, PartitionId};
use forebay_runtime::clock;
use futures_util::StreamExt;
use futures_util::stream;
use tonic::Request;

use super::{AT_ONCE, AdminHandler, BROKER_TIMEOUT};
use crate::membership::View;

/// Partitions in one question to a broker.
const PARTITIONS_ASKED_MAX: usize = 1000;

impl AdminHandler {
    pub(super) async fn describe_one(&self, name: &str) -> Result<TopicDescription, Failure> {
        let topic = topics::get(&*self.core.meta, name).await?;
        let partitions = topics::partitions(&*self.core.meta, &topic).await?;
        let view = self.core.membership.now();
        let mut owned = self.owned(&view, &partitions).await;
        let described = partitions
            .iter()
            .map(|one| {
                let live = live_owner(&view, one);
                describe_partition(one, live, owned.remove(&one.id))
            })
            .collect();
        Ok(description(topic, described))
    }

    /// Partitions as the live owners tell them.
    async fn owned(&self, view: &View, partitions: &[Partition]) -> BTreeMap<PartitionId, OwnedPartition> {
        let mut owned: BTreeMap<BrokerId, Vec<u64>> = BTreeMap::new();
        for one in partitions {
            if let Some(owner) = live_owner(view, one) {
                owned.entry(owner).or_default().push(one.id.0);
            }
        }
        let questions = owned.into_iter().flat_map(|(broker, ids)| {
            let address = view
                .brokers
                .get(&broker)
                .map(|live| live.record.control_address.clone())
                .unwrap_or_default();
            let chunks: Vec<_> = ids.chunks(PARTITIONS_ASKED_MAX).map(<[u64]>::to_vec).collect();
            chunks.into_iter().map(move |ids| (broker, address.clone(), ids))
        });
        let questions: Vec<_> = questions.collect();
        let mut answers = stream::iter(questions)
            .map(|(broker, address, ids)| async move { (broker, self.ask_owner(&address, ids).await) })
            .buffer_unordered(AT_ONCE);
        let mut told = BTreeMap::new();
        while let Some((broker, answer)) = answers.next().await {
            match answer {
                Ok(owned) => told.extend(owned),
                Err(failure) => tracing::debug!(%broker, %failure, "broker does not describe its partitions"),
            }
        }
        told
    }

    async fn ask_owner(
        &self,
        address: &str,
        ids: Vec<u64>,
    ) -> Result<Vec<(PartitionId, OwnedPartition)>, Failure> {
        let away = |error: &dyn std::fmt::Display| {
            Failure::new(forebay_proto::v1::ErrorCode::Unavailable, error.to_string())
        };
        let broker = self.core.control.broker(address).map_err(|error| away(&error))?;
        let asking =
            broker.describe_partitions(Request::new(DescribePartitionsRequest { partition_ids: ids }));
        let answer = clock::timeout(&*self.core.clock, BROKER_TIMEOUT, asking)
            .await
            .map_err(|error| away(&error))??;
        let owned = answer.into_inner().partitions.into_iter();
        Ok(owned.map(|one| (PartitionId(one.partition_id), one)).collect())
    }
}

/// The broker of a partition's newest grant, if the session that it was for still lives.
pub(super) fn live_owner(view: &View, partition: &Partition) -> Option<BrokerId> {
    let live = |owner: &BrokerId| {
        let broker = view.brokers.get(owner);
        broker.is_some_and(|broker| broker.session == partition.session)
    };
    partition.owner.filter(live)
}

pub(super) fn id_of(topic: &Topic) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(topic.id.as_bytes())
}

/// Every key with the value in force.
pub(super) fn settings_of(topic: &Topic) -> Vec<TopicSetting> {
    let setting = |(key, value): (&str, String)| TopicSetting {
        is_default: !topic.raw_config.contains_key(key),
        key: key.to_owned(),
        value,
    };
    topic.config.entries().into_iter().map(setting).collect()
}

pub(super) fn description(topic: Topic, partitions: Vec<PartitionDescription>) -> TopicDescription {
    TopicDescription {
        id: id_of(&topic),
        settings: settings_of(&topic),
        name: topic.name,
        config: topic.raw_config,
        partitions,
    }
}

fn describe_partition(
    partition: &Partition,
    owner: Option<BrokerId>,
    told: Option<OwnedPartition>,
) -> PartitionDescription {
    let (high_watermark, recovery) = told.map_or((None, None), |told| (told.high_watermark, told.recovery));
    let gap = |gap: &Gap| GapDescription {
        base: gap.base.0,
        end: gap.end.0,
        reason: gap.reason.clone(),
    };
    let run = |run: &Run| OffloadedDescription {
        base: run.base.0,
        end: run.end.0,
        object: run.object.clone(),
        bytes: run.len,
    };
    let manifest = |manifest: &ManifestRef| ManifestDescription {
        generation: manifest.generation,
        end: manifest.end.0,
        object: manifest.object.clone(),
    };
    let segments = partition.chain.iter().map(|segment| SegmentDescription {
        epoch: segment.id.epoch.0,
        seq: segment.id.seq,
        base: segment.base.0,
        end: segment.end.map(Offset::get),
        replicas: segment
            .replicas
            .iter()
            .map(|(node, generation)| ReplicaDescription {
                node: node.0,
                generation: generation.0,
            })
            .collect(),
        bytes: segment.bytes,
    });
    PartitionDescription {
        partition: partition.number,
        partition_id: partition.id.0,
        epoch: partition.epoch.0,
        owner: owner.map_or(0, |owner| owner.0),
        log_start: partition.log_start.0,
        high_watermark,
        recovery,
        gaps: partition.gaps.iter().map(gap).collect(),
        segments: segments.collect(),
        offloaded: partition.recent.iter().map(run).collect(),
        manifest: partition.manifest.as_ref().map(manifest),
    }
}
