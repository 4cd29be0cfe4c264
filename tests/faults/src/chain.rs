//! Follows the partitions' records in etcd: every version of each is noted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use forebay_history::{ChainRecord, ChainSegment, Event, Range};
use forebay_meta::keys;
use forebay_meta::model::Partition;
use forebay_meta::store::{self, EtcdOptions, EtcdStore, MetaStore, Revision, WatchEvent, WatchKind};
use forebay_runtime::tasks::Tasks;
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use crate::recorder::Recorder;

/// Follows records until it is dropped.
#[derive(Debug)]
pub struct Chains {
    store: EtcdStore,
    /// The newest revision noted of each key.
    noted: Arc<Mutex<BTreeMap<String, Revision>>>,
    _watch: AbortOnDropHandle<()>,
}

impl Chains {
    /// Begins with the oldest version that etcd has.
    ///
    /// # Errors
    /// Where etcd does not answer for a minute.
    pub async fn follow(
        endpoints: Vec<String>,
        tasks: &Tasks,
        recorder: Arc<Recorder>,
    ) -> anyhow::Result<Self> {
        let options = EtcdOptions::new(endpoints, "forebay");
        let store = EtcdStore::connect_within(options, tasks, Duration::from_secs(60)).await?;
        let noted = Arc::new(Mutex::new(BTreeMap::new()));
        let mut watch = store.watch(keys::PARTITIONS, Revision(0));
        let known = Arc::clone(&noted);
        let task = tokio::spawn(async move {
            while let Some(batch) = watch.next().await {
                match batch {
                    Ok(batch) => {
                        for event in batch.events {
                            note(&recorder, &event);
                            known.lock().insert(event.key().to_owned(), event.revision);
                        }
                    }
                    Err(error) => recorder.complain(format!("the watch of the records ended: {error}")),
                }
            }
        });
        Ok(Self {
            store,
            noted,
            _watch: AbortOnDropHandle::new(task),
        })
    }

    /// Waits until all that is in etcd now is noted.
    ///
    /// # Errors
    /// Where etcd does not answer, or what it has does not come.
    pub async fn catch_up(&self) -> anyhow::Result<()> {
        let page = self.store.range(store::Range::new(keys::PARTITIONS)).await?;
        let deadline = Instant::now() + Duration::from_secs(20);
        for entry in page.entries {
            while self.noted.lock().get(&entry.key).copied() < Some(entry.mod_revision) {
                anyhow::ensure!(
                    Instant::now() < deadline,
                    "the watch does not bring {} of revision {}",
                    entry.key,
                    entry.mod_revision.0
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }
}

fn note(recorder: &Recorder, event: &WatchEvent) {
    let WatchKind::Put(entry) = &event.kind else {
        recorder.complain(format!("{} was deleted", event.key()));
        return;
    };
    match Partition::decode(&entry.value).with_context(|| entry.key.clone()) {
        Ok(record) => recorder.note(Event::Chain(observed(&record, event.revision))),
        Err(error) => recorder.complain(format!("revision {}: {error:#}", event.revision.0)),
    }
}

fn observed(record: &Partition, revision: Revision) -> ChainRecord {
    let manifest = record.manifest.as_ref().map_or(0, |manifest| manifest.end.0);
    ChainRecord {
        partition: u64::from(record.number),
        revision: revision.0,
        epoch: u64::from(record.epoch.0),
        log_start: record.log_start.0,
        offloaded_end: record.recent.last().map_or(manifest, |run| run.end.0),
        segments: record
            .chain
            .iter()
            .map(|segment| ChainSegment {
                epoch: u64::from(segment.id.epoch.0),
                seq: u64::from(segment.id.seq),
                token: segment.token.0,
                base: segment.base.0,
                end: segment.end.map(|end| end.0),
            })
            .collect(),
        gaps: record
            .gaps
            .iter()
            .map(|gap| Range {
                from: gap.base.0,
                until: gap.end.0,
            })
            .collect(),
    }
}
