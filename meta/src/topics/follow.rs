//! Tells of every change of a topic, to whoever keeps something that it makes stale.
//!
//! The prefix of topics is small: a record changes when a topic is made, altered, grown or deleted.
//! Changes of one topic are told in order. Where history was lost, every topic there is is told
//! again; one that was deleted and removed in between is then not told at all, so what is kept must
//! be allowed to outlive its topic.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::stored::TopicRecord;
use forebay_runtime::clock::Clock;
use uuid::Uuid;

use super::topic_of;
use crate::failure::decode;
use crate::keys;
use crate::model::TopicConfig;
use crate::store::{Entry, MetaStore, Range, ReadError, Revision, WatchError, WatchKind};

const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A topic was made, altered, grown or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicChange {
    /// The topic.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// When.
    pub revision: Revision,
    /// It was made, and has not changed since.
    pub is_new: bool,
    /// Its configuration from then on; none where it is deleted.
    pub config: Option<TopicConfig>,
}

/// Follows topics from a revision on and hands on each change. Ends only where the store went back
/// in time (I24), or is closed.
///
/// # Errors
/// [`WatchError::Regressed`] and [`WatchError::Closed`].
pub async fn follow<F>(
    store: Arc<dyn MetaStore>,
    clock: Arc<dyn Clock>,
    mut after: Revision,
    mut on_change: impl FnMut(TopicChange) -> F,
) -> Result<Infallible, WatchError>
where
    F: Future<Output = ()>,
{
    let mut pause = PAUSE_MIN;
    loop {
        let mut changes = store.watch(keys::TOPICS, after);
        loop {
            match changes.next().await {
                Some(Ok(batch)) => {
                    pause = PAUSE_MIN;
                    for event in batch.events {
                        if let WatchKind::Put(entry) = &event.kind
                            && let Some(change) = change_of(entry)
                        {
                            on_change(change).await;
                        }
                    }
                }
                Some(Err(error @ (WatchError::Regressed(_) | WatchError::Closed))) => return Err(error),
                None => return Err(WatchError::Closed),
                Some(Err(error)) => {
                    tracing::info!(%error, "watch of topics ended, reading them all");
                    break;
                }
            }
        }
        loop {
            clock.sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            match tell_all(&*store, &mut on_change).await {
                Ok(revision) => {
                    after = revision;
                    break;
                }
                Err(ReadError::Regressed(regressed)) => return Err(WatchError::Regressed(regressed)),
                Err(error) => tracing::warn!(%error, "topics cannot be read"),
            }
        }
    }
}

/// Tells every topic, page by page, all as of one revision.
async fn tell_all<F>(
    store: &dyn MetaStore,
    on_change: &mut impl FnMut(TopicChange) -> F,
) -> Result<Revision, ReadError>
where
    F: Future<Output = ()>,
{
    let mut range = Range::new(keys::TOPICS);
    loop {
        let page = store.range(range.clone()).await?;
        for change in page.entries.iter().filter_map(change_of) {
            on_change(change).await;
        }
        match page.entries.last() {
            Some(last) if page.more => range = range.start_after(last.key.clone()).at(page.revision),
            _ => return Ok(page.revision),
        }
    }
}

/// What an entry says; none where it cannot be read, which is logged, so that one damaged record
/// does not hide the changes of all others.
fn change_of(entry: &Entry) -> Option<TopicChange> {
    let id = keys::topic_of(&entry.key)?;
    let told = |name, config| TopicChange {
        id,
        name,
        revision: entry.mod_revision,
        is_new: entry.version == 1,
        config,
    };
    let read = decode::<TopicRecord>(entry).and_then(|record| {
        if record.deleted {
            return Ok(told(record.name, None));
        }
        let topic = topic_of(&entry.key, record)?;
        Ok(told(topic.name, Some(topic.config)))
    });
    read.inspect_err(|failure| tracing::error!(key = entry.key, %failure, "a topic's record cannot be read"))
        .ok()
}
