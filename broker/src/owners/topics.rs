//! Configurations of topics that change while their partitions are owned here, and what the task
//! tells about its partitions.
//!
//! A grant comes with the configuration that was read for it, and changes come from a watch; either
//! may be the newer one. What was changed is remembered with its revision, for as many topics as
//! were altered since the broker began and are not deleted, so that the newest always wins.

use std::collections::HashMap;

use forebay_meta::model::TopicConfig;
use forebay_meta::store::Revision;
use forebay_meta::topics::TopicChange;
use forebay_record::PartitionId;
use uuid::Uuid;

use super::driver::Driver;
use super::message::{Owned, Summary};
use crate::partition::{Config, Nodes, Owner};

/// Configurations that were changed since the broker began.
#[derive(Debug, Default)]
pub struct Topics {
    changed: HashMap<Uuid, (Revision, TopicConfig)>,
}

impl Topics {
    /// The newer one of a configuration that was read and what is known of changes.
    pub fn newest(&self, topic: Uuid, read: TopicConfig, at: Revision) -> TopicConfig {
        match self.changed.get(&topic) {
            Some((revision, config)) if *revision > at => config.clone(),
            Some(_) | None => read,
        }
    }

    /// Takes a change; the configuration that partitions have from now on, where there is one.
    fn take(&mut self, change: TopicChange) -> Option<TopicConfig> {
        let Some(config) = change.config else {
            self.changed.remove(&change.id);
            return None;
        };
        // Told again, or as whoever takes a partition of it reads it anyway.
        let known = self.changed.get(&change.id);
        if change.is_new || known.is_some_and(|(revision, _)| *revision >= change.revision) {
            return None;
        }
        self.changed.insert(change.id, (change.revision, config.clone()));
        Some(config)
    }
}

impl Driver {
    /// How partitions of a topic are written here.
    pub(super) fn config_of(&self, topic: &TopicConfig) -> Config {
        let config = self.settings.partition.of_topic(topic);
        Config {
            offload: config.offload && self.offloads.are_possible(),
            ..config
        }
    }

    pub(super) fn on_topic_changed(&mut self, change: TopicChange) {
        let (topic, name) = (change.id, change.name.clone());
        let Some(topic_config) = self.topics.take(change) else {
            return;
        };
        let config = self.config_of(&topic_config);
        let owned = self.owners.values_mut();
        let partitions = owned
            .filter(|owner| owner.record().topic == topic)
            .map(|owner| usize::from(owner.configure(&config)))
            .sum::<usize>();
        if partitions > 0 {
            tracing::info!(name, partitions, ?topic_config, "topic configuration in force");
        }
    }

    pub(super) fn describe(&self, partitions: &[PartitionId]) -> Vec<Owned> {
        let owned = |(id, owner): (&PartitionId, &Owner)| Owned {
            partition: *id,
            epoch: owner.record().epoch,
            log_start: owner.record().log_start,
            high_watermark: owner.high_watermark(),
            undecided_bytes: owner.undecided_bytes(),
            bytes_per_s: self.flows.rate(*id),
            taking: self.taking_of(*id, owner),
        };
        if partitions.is_empty() {
            return self.owners.iter().map(owned).collect();
        }
        partitions
            .iter()
            .filter_map(|id| self.owners.get_key_value(id))
            .map(owned)
            .collect()
    }

    pub(super) fn summarize(&self) -> Summary {
        let mut summary = Summary::default();
        for owner in self.owners.values() {
            count(owner, &self.views, &mut summary);
        }
        summary.taking = self.longest_takeovers();
        summary
    }
}

fn count(owner: &Owner, nodes: &Nodes, summary: &mut Summary) {
    summary.partitions += 1;
    summary.recovering += usize::from(!owner.is_serving());
    summary.undecided_bytes += owner.undecided_bytes();
    let endangered = owner.endangered();
    summary.lost += endangered.lost;
    summary.last_copy += endangered.last_copy;
    for segment in &owner.record().chain {
        let here = |(node, generation): &(_, _)| {
            nodes
                .get(node)
                .is_some_and(|view| view.connected && view.generation == *generation)
        };
        summary.segments += 1;
        summary.under_replicated += usize::from(!segment.replicas.iter().all(here));
        if segment.end.is_some() {
            summary.unoffloaded_bytes += segment.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: Uuid = Uuid::from_u128(7);

    fn config(segment_ms: u64) -> TopicConfig {
        TopicConfig {
            segment_ms,
            ..TopicConfig::default()
        }
    }

    fn change(revision: u64, config: Option<TopicConfig>) -> TopicChange {
        TopicChange {
            id: TOPIC,
            name: "t".to_owned(),
            revision: Revision(revision),
            is_new: false,
            config,
        }
    }

    #[test]
    fn the_newest_configuration_wins_whichever_came_first() {
        let mut topics = Topics::default();
        assert_eq!(topics.take(change(10, Some(config(2)))), Some(config(2)));
        assert_eq!(topics.newest(TOPIC, config(1), Revision(9)), config(2));
        assert_eq!(topics.newest(TOPIC, config(2), Revision(10)), config(2));
        assert_eq!(topics.newest(TOPIC, config(3), Revision(11)), config(3));
        assert_eq!(
            topics.newest(Uuid::from_u128(8), config(4), Revision(1)),
            config(4)
        );
        assert_eq!(topics.take(change(10, Some(config(2)))), None, "told again");
        assert_eq!(topics.take(change(9, Some(config(1)))), None, "older");
    }

    #[test]
    fn what_was_never_altered_or_is_deleted_is_not_remembered() {
        let mut topics = Topics::default();
        let new = TopicChange {
            is_new: true,
            ..change(5, Some(config(1)))
        };
        assert_eq!(topics.take(new), None);
        assert!(topics.changed.is_empty());
        topics.take(change(6, Some(config(2))));
        assert_eq!(topics.take(change(7, None)), None);
        assert!(topics.changed.is_empty());
    }
}
