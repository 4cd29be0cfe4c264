//! Topics: made, found, listed, changed and deleted.
//!
//! Making one takes three steps, so that a topic is visible whole or not at all:
//! 1. allocate its partition ids (never reused, so a failed attempt costs only numbers);
//! 2. write the partition records, in transactions of [`CHUNK`];
//! 3. in one transaction write `/tn/<name>` and `/t/<uuid>`, provided that both are absent and that
//!    the first partition record is still the one of step 2.
//!
//! An attempt that ends between 2 and 3 leaves partition records without a topic, which the
//! controller removes. It first claims the uuid by a deleted `/t/<uuid>`, which fails step 3, and
//! forgets that claim only after the records are gone, which fails step 3 as well: however late
//! step 3 comes, it never makes a topic whose partitions were removed.

mod alter;
mod follow;

use std::collections::BTreeMap;

use forebay_proto::error::Failure;
use forebay_proto::stored::TopicRecord;
use forebay_proto::v1::ErrorCode;
use forebay_record::PartitionId;
use forebay_runtime::random::Random;
use uuid::Uuid;

use crate::counter::{self, random_uuid};
use crate::failure::{MetaFailure, TRIES_MAX, decode};
use crate::keys;
use crate::model::{BATCH_BYTES, Partition, TopicConfig, TopicConfigError};
use crate::record::encode;
use crate::storage;
use crate::store::{Compare, Entry, MetaStore, Op, READ_KEYS_MAX, Range, Revision, Txn, TxnError, TxnReply};

pub use alter::{add_partitions, alter_config};
pub use follow::{TopicChange, follow};

/// Most partitions of a topic.
pub const PARTITIONS_MAX: u32 = 10_000;
/// Longest name of a topic.
pub const NAME_CHARS_MAX: usize = 249;
/// Most topics of one page of [`list`].
pub const PAGE_TOPICS_MAX: usize = 256;

/// Records written by one transaction.
pub(crate) const CHUNK: usize = 60;
/// Tries of one transaction whose outcome stays unknown.
const UNKNOWN_TRIES_MAX: u32 = 8;
/// Most configuration entries, and bytes of each, before they are even looked at.
const CONFIG_ENTRIES_MAX: usize = 64;
const CONFIG_BYTES_MAX: usize = 1024;

/// A topic as its record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Never reused, other than the name.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// In the order of partition numbers.
    pub partition_ids: Vec<PartitionId>,
    /// Its configuration, defaults filled in.
    pub config: TopicConfig,
    /// Its configuration as given.
    pub raw_config: BTreeMap<String, String>,
}

/// One page of topics, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPage {
    /// The topics.
    pub topics: Vec<Topic>,
    /// Pass it as `after` for the next page; none where this is the last.
    pub next: Option<String>,
}

/// Makes a topic.
///
/// # Errors
/// `INVALID_TOPIC_NAME`, `INVALID_PARTITION_COUNT`, `INVALID_REQUEST` (configuration),
/// `TOPIC_EXISTS`; `UNAVAILABLE` where nothing was made, `OUTCOME_UNKNOWN` where it may have been.
///
/// Cancel safety: a dropped call has made the topic or has not; what it leaves, the controller removes.
pub async fn create(
    store: &dyn MetaStore,
    random: &dyn Random,
    name: &str,
    partitions: u32,
    config: BTreeMap<String, String>,
) -> Result<Topic, Failure> {
    check_name(name)?;
    if partitions == 0 || partitions > PARTITIONS_MAX {
        let message = format!("topic \"{name}\": {partitions} partitions, 1 to {PARTITIONS_MAX} allowed");
        return Err(Failure::new(ErrorCode::InvalidPartitionCount, message));
    }
    let parsed = check_config(name, &config)?;
    check_batch_bytes(store, name, &config).await?;
    // Only saves the work: the transaction at the end decides.
    if store.get(&keys::topic_name(name)).await?.0.is_some() {
        return Err(exists(name));
    }
    let ids = counter::allocate(store, keys::PARTITION_IDS, u64::from(partitions)).await?;
    let topic = Topic {
        id: random_uuid(random),
        name: name.to_owned(),
        partition_ids: ids.map(PartitionId).collect(),
        config: parsed,
        raw_config: config,
    };
    let records: Vec<Partition> = topic
        .partition_ids
        .iter()
        .zip(0_u32..)
        .map(|(id, number)| Partition::new(*id, topic.id, number))
        .collect();
    let mut first = None;
    for chunk in records.chunks(CHUNK) {
        let revision = create_partitions(store, chunk).await?;
        first.get_or_insert(revision);
    }
    let (Some(record), Some(revision)) = (records.first(), first) else {
        return Err(Failure::new(
            ErrorCode::Internal,
            format!("topic \"{name}\" came out without partitions"),
        ));
    };
    let intact = Compare::CreateRevision(keys::partition(record.id), revision);
    publish(store, &topic, intact).await?;
    Ok(topic)
}

/// Writes one chunk of partition records; returns the revision at which they came to be.
async fn create_partitions(store: &dyn MetaStore, chunk: &[Partition]) -> Result<Revision, Failure> {
    let mut txn = Txn::new();
    for record in chunk {
        let key = keys::partition(record.id);
        txn = txn
            .when(Compare::absent(key.clone()))
            .then(Op::put(key.clone(), record.encode()));
        txn = txn.otherwise(Op::get(key));
    }
    let reply = send(store, &txn).await?;
    if reply.succeeded {
        return Ok(reply.revision);
    }
    // An earlier send of this very transaction landed, or ids were handed out twice.
    for (record, entry) in chunk.iter().zip(&reply.reads) {
        if entry.as_ref().is_none_or(|entry| entry.value != record.encode()) {
            let message = format!("partition id {} of topic {} is taken", record.id, record.topic);
            return Err(Failure::new(ErrorCode::Internal, message));
        }
    }
    match reply.reads.first() {
        Some(Some(entry)) => Ok(entry.create_revision),
        _ => Err(Failure::new(
            ErrorCode::Internal,
            "transaction failed without a reason",
        )),
    }
}

/// Makes the topic visible.
async fn publish(store: &dyn MetaStore, topic: &Topic, intact: Compare) -> Result<(), Failure> {
    let (name_key, key) = (keys::topic_name(&topic.name), keys::topic(topic.id));
    let record = TopicRecord {
        id: topic.id.as_bytes().to_vec().into(),
        namespace: String::new(),
        name: topic.name.clone(),
        partition_ids: topic.partition_ids.iter().map(|id| id.0).collect(),
        config: topic.raw_config.clone(),
        deleted: false,
    };
    let txn = Txn::new()
        .when(Compare::absent(name_key.clone()))
        .when(Compare::absent(key.clone()))
        .when(intact)
        .then(Op::put(name_key.clone(), topic.id.to_string()))
        .then(Op::put(key.clone(), encode(&record)))
        .otherwise(Op::get(key))
        .otherwise(Op::get(name_key));
    let reply = send(store, &txn).await?;
    if reply.succeeded {
        return Ok(());
    }
    let [own, named] = reply.reads.as_slice() else {
        return Err(Failure::new(
            ErrorCode::Internal,
            "transaction failed without a reason",
        ));
    };
    if let Some(entry) = own
        && decode::<TopicRecord>(entry)?.name == topic.name
    {
        // An earlier send landed; the topic may even be deleted again. A claim has no name.
        return Ok(());
    }
    if named.is_some() {
        return Err(exists(&topic.name));
    }
    let message = format!(
        "making topic \"{}\" took too long, its partitions were removed",
        topic.name
    );
    Err(Failure::new(ErrorCode::Unavailable, message))
}

/// Sends a transaction that fails once it was applied until its outcome is known.
async fn send(store: &dyn MetaStore, txn: &Txn) -> Result<TxnReply, MetaFailure> {
    let mut tries = 1;
    loop {
        match store.txn(txn.clone()).await {
            Ok(reply) => return Ok(reply),
            Err(TxnError::Unknown(_)) if tries < UNKNOWN_TRIES_MAX => tries += 1,
            // Not sent this time, but an earlier send may be on its way.
            Err(TxnError::Unavailable(away)) if tries > 1 => {
                return Err(TxnError::Unknown(crate::store::Unknown(away.0)).into());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The topic of a name.
///
/// # Errors
/// `UNKNOWN_TOPIC`, `INVALID_TOPIC_NAME`, and as the store fails.
pub async fn get(store: &dyn MetaStore, name: &str) -> Result<Topic, Failure> {
    Ok(find(store, name).await?.topic)
}

/// A topic and the entries it was read from.
struct Found {
    topic: Topic,
    record: TopicRecord,
    name: Entry,
    entry: Entry,
}

async fn find(store: &dyn MetaStore, name: &str) -> Result<Found, Failure> {
    check_name(name)?;
    for _ in 0..TRIES_MAX {
        let (named, _) = store.get(&keys::topic_name(name)).await?;
        let Some(named) = named else {
            return Err(unknown_topic(name));
        };
        let id = topic_id(&named)?;
        let (entry, _) = store.get(&keys::topic(id)).await?;
        if let Some(entry) = entry {
            let record = decode::<TopicRecord>(&entry)?;
            if !record.deleted {
                let topic = topic_of(&entry.key, record.clone())?;
                return Ok(Found {
                    topic,
                    record,
                    name: named,
                    entry,
                });
            }
        }
        // Deleted between the reads: the name leads elsewhere by now, or nowhere.
    }
    Err(MetaFailure::Contended {
        key: keys::topic_name(name),
        tries: TRIES_MAX,
    }
    .into())
}

/// A page of topics whose names come after `after`; an empty `after` begins at the front, a limit
/// of 0 means [`PAGE_TOPICS_MAX`].
///
/// # Errors
/// As the store fails.
pub async fn list(store: &dyn MetaStore, after: &str, limit: usize) -> Result<TopicPage, Failure> {
    let limit = if limit == 0 {
        PAGE_TOPICS_MAX
    } else {
        limit.min(PAGE_TOPICS_MAX)
    };
    let mut range = Range::new(keys::TOPIC_NAMES).limit(limit);
    if !after.is_empty() {
        check_name(after)?;
        range = range.start_after(keys::topic_name(after));
    }
    let page = store.range(range).await?;
    let mut topic_keys = Vec::with_capacity(page.entries.len());
    for named in &page.entries {
        topic_keys.push(keys::topic(topic_id(named)?));
    }
    let mut topics = Vec::with_capacity(topic_keys.len());
    for chunk in topic_keys.chunks(READ_KEYS_MAX) {
        // Absent and deleted ones went away between the reads.
        for entry in store.get_many(chunk).await?.0.into_iter().flatten() {
            let record = decode::<TopicRecord>(&entry)?;
            if !record.deleted {
                topics.push(topic_of(&entry.key, record)?);
            }
        }
    }
    let last = page
        .entries
        .last()
        .and_then(|named| named.key.strip_prefix(keys::TOPIC_NAMES));
    Ok(TopicPage {
        topics,
        next: last.filter(|_| page.more).map(str::to_owned),
    })
}

/// Deletes a topic: its name is free and its partitions are closed for good. Their records and
/// bytes go later.
///
/// # Errors
/// `UNKNOWN_TOPIC`, `INVALID_TOPIC_NAME`, and as the store fails.
pub async fn delete(store: &dyn MetaStore, name: &str) -> Result<(), Failure> {
    let mut sent: Option<(Uuid, TxnError)> = None;
    for _ in 0..TRIES_MAX {
        let found = match find(store, name).await {
            Ok(found) => found,
            Err(failure) => return settled(failure, sent),
        };
        if let Some((id, _)) = &sent
            && *id != found.topic.id
        {
            // The one that was to be deleted is gone, and the name is in use again.
            return Ok(());
        }
        let record = TopicRecord {
            deleted: true,
            ..found.record
        };
        let txn = Txn::new()
            .when(Compare::unchanged(&found.name))
            .when(Compare::unchanged(&found.entry))
            .then(Op::delete(found.name.key))
            .then(Op::put(found.entry.key, encode(&record)));
        match store.txn(txn).await {
            Ok(reply) if reply.succeeded => return Ok(()),
            Ok(_) => {}
            Err(error @ TxnError::Unknown(_)) => sent = Some((found.topic.id, error)),
            Err(error) => return settled(error.into(), sent),
        }
    }
    Err(match sent {
        Some((_, error)) => error.into(),
        None => MetaFailure::Contended {
            key: keys::topic_name(name),
            tries: TRIES_MAX,
        }
        .into(),
    })
}

/// What a failure means where a deletion may have landed before.
fn settled(failure: Failure, sent: Option<(Uuid, TxnError)>) -> Result<(), Failure> {
    match sent {
        Some(_) if failure.code == ErrorCode::UnknownTopic => Ok(()),
        Some((_, error)) => Err(error.into()),
        None => Err(failure),
    }
}

/// The partition records of a topic, in the order of their numbers.
///
/// # Errors
/// `UNKNOWN_TOPIC` where the topic was deleted meanwhile, and as the store fails.
pub async fn partitions(store: &dyn MetaStore, topic: &Topic) -> Result<Vec<Partition>, Failure> {
    Ok(read_partitions(store, topic).await?.0)
}

/// The partition records of a topic, and a revision that none of them is older than.
pub(crate) async fn read_partitions(
    store: &dyn MetaStore,
    topic: &Topic,
) -> Result<(Vec<Partition>, Revision), Failure> {
    let mut partitions = Vec::with_capacity(topic.partition_ids.len());
    let mut oldest: Option<Revision> = None;
    for chunk in topic.partition_ids.chunks(READ_KEYS_MAX) {
        let chunk_keys: Vec<String> = chunk.iter().map(|id| keys::partition(*id)).collect();
        let (entries, revision) = store.get_many(&chunk_keys).await?;
        oldest = Some(oldest.map_or(revision, |oldest| oldest.min(revision)));
        for (key, entry) in chunk_keys.into_iter().zip(entries) {
            let Some(entry) = entry else {
                return Err(gone(store, topic, &key).await);
            };
            let partition =
                Partition::decode(&entry.value).map_err(|source| MetaFailure::Record { key, source })?;
            if partition.deleted {
                return Err(unknown_topic(&topic.name));
            }
            partitions.push(partition);
        }
    }
    Ok((partitions, oldest.unwrap_or_default()))
}

/// A partition's record is not there: the topic was deleted, or the metadata is broken.
async fn gone(store: &dyn MetaStore, topic: &Topic, key: &str) -> Failure {
    let live = match store.get(&keys::topic(topic.id)).await {
        Ok((entry, _)) => {
            entry.is_some_and(|entry| decode::<TopicRecord>(&entry).is_ok_and(|record| !record.deleted))
        }
        Err(error) => return error.into(),
    };
    if live {
        Failure::new(
            ErrorCode::Internal,
            format!("topic \"{}\" has no record at {key}", topic.name),
        )
    } else {
        unknown_topic(&topic.name)
    }
}

/// Checks a topic's name.
///
/// # Errors
/// `INVALID_TOPIC_NAME` with the rule.
pub fn check_name(name: &str) -> Result<(), Failure> {
    let bad = |rule: &str| {
        Err(Failure::new(
            ErrorCode::InvalidTopicName,
            format!("topic name {rule}"),
        ))
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() {
        return bad("is empty");
    }
    let chars = name.chars().count();
    if chars > NAME_CHARS_MAX {
        return bad(&format!("has {chars} characters, {NAME_CHARS_MAX} allowed"));
    }
    if let Some(found) = name.chars().find(|c| !allowed(*c)) {
        return bad(&format!(
            "{name:?} contains {found:?}, allowed are a-z A-Z 0-9 . _ -"
        ));
    }
    if name == "." || name == ".." {
        return bad(&format!("cannot be {name:?}"));
    }
    Ok(())
}

fn check_config(name: &str, config: &BTreeMap<String, String>) -> Result<TopicConfig, Failure> {
    let bad = |what: String| Failure::new(ErrorCode::InvalidRequest, format!("topic \"{name}\": {what}"));
    if config.len() > CONFIG_ENTRIES_MAX {
        return Err(bad(format!(
            "{} configuration entries, {CONFIG_ENTRIES_MAX} allowed",
            config.len()
        )));
    }
    if config
        .iter()
        .any(|(key, value)| key.len() + value.len() > CONFIG_BYTES_MAX)
    {
        return Err(bad(format!(
            "a configuration entry has more than {CONFIG_BYTES_MAX} bytes"
        )));
    }
    TopicConfig::parse(config).map_err(|error| bad(error.to_string()))
}

/// Refuses to set a largest batch that some storage node has no room for. Nodes may come and go later:
/// owners refuse what does not fit then, and a topic with the default goes by that alone.
async fn check_batch_bytes(
    store: &dyn MetaStore,
    name: &str,
    set: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    if !set.contains_key(BATCH_BYTES) {
        return Ok(());
    }
    let asked = u64::from(check_config(name, set)?.batch_bytes_max);
    match storage::least_frame(store).await? {
        Some((max, node)) if asked > max => Err(Failure::new(
            ErrorCode::InvalidRequest,
            format!(
                "topic \"{name}\": {BATCH_BYTES} = {asked}, at most {max}: the journal files of storage \
                 node {} take no more (its storage.journal_file_bytes)",
                node.0
            ),
        )),
        _ => Ok(()),
    }
}

fn exists(name: &str) -> Failure {
    Failure::new(ErrorCode::TopicExists, format!("topic \"{name}\" exists"))
}

fn unknown_topic(name: &str) -> Failure {
    Failure::new(
        ErrorCode::UnknownTopic,
        format!("topic \"{name}\" does not exist"),
    )
}

/// The uuid that a name leads to: its text, as the key of the topic has it.
fn topic_id(named: &Entry) -> Result<Uuid, MetaFailure> {
    let text = std::str::from_utf8(&named.value).ok();
    text.and_then(|text| Uuid::try_parse(text).ok())
        .ok_or_else(|| MetaFailure::Inconsistent(format!("{} leads to no uuid", named.key)))
}

fn topic_of(key: &str, record: TopicRecord) -> Result<Topic, MetaFailure> {
    let broken = |what: String| MetaFailure::Inconsistent(format!("{key}: {what}"));
    let id = Uuid::from_slice(&record.id).map_err(|_| broken("no topic id".to_owned()))?;
    if key != keys::topic(id) {
        return Err(broken(format!("holds topic {id}")));
    }
    let config =
        TopicConfig::parse(&record.config).map_err(|error: TopicConfigError| broken(error.to_string()))?;
    Ok(Topic {
        id,
        name: record.name,
        partition_ids: record.partition_ids.into_iter().map(PartitionId).collect(),
        config,
        raw_config: record.config,
    })
}

#[cfg(test)]
mod tests;
