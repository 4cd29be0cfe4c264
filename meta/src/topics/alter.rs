//! Changes a topic that exists: its configuration, and the number of its partitions.
//!
//! Both end in one compare-and-swap on the topic's own key, so a change lands on what its author
//! has seen or not at all. Growing writes the new partition records first, as making a topic does,
//! and then adds them to the topic's list. An attempt that ends between leaves records that no
//! topic lists, which the controller removes: it puts the topic's record again in the very
//! transaction that removes them, so that a list that comes later fails on its comparison, reads
//! the records again, and finds that they are gone.

use std::collections::BTreeMap;

use forebay_proto::error::Failure;
use forebay_proto::stored::TopicRecord;
use forebay_proto::v1::ErrorCode;
use forebay_record::PartitionId;

use super::{
    CHUNK, Found, PARTITIONS_MAX, Topic, check_batch_bytes, check_config, create_partitions, find, topic_of,
    unknown_topic,
};
use crate::counter;
use crate::failure::{MetaFailure, TRIES_MAX};
use crate::keys;
use crate::model::{Partition, TopicConfig};
use crate::record::encode;
use crate::store::{Compare, MetaStore, Op, READ_KEYS_MAX, Txn, TxnError};

/// Sets and unsets keys of a topic's configuration; all others stay. Returns the topic as it is
/// then. Asking for what is there already changes nothing.
///
/// # Errors
/// `UNKNOWN_TOPIC`, `INVALID_TOPIC_NAME`, `INVALID_REQUEST` (an unknown key, a value that cannot
/// be, a key both set and unset, nothing to change), and as the store fails.
pub async fn alter_config(
    store: &dyn MetaStore,
    name: &str,
    set: &BTreeMap<String, String>,
    unset: &[String],
) -> Result<Topic, Failure> {
    check_delta(name, set, unset)?;
    check_batch_bytes(store, name, set).await?;
    let mut sent = None;
    for _ in 0..TRIES_MAX {
        let found = match find(store, name).await {
            Ok(found) => found,
            Err(failure) => return Err(unless_sent(failure, sent)),
        };
        let mut config = found.record.config.clone();
        config.retain(|key, _| !unset.contains(key));
        config.extend(set.clone());
        check_config(name, &config)?;
        let record = TopicRecord {
            config,
            ..found.record.clone()
        };
        if record == found.record {
            // As asked for, be it by an earlier send of this very change.
            return Ok(found.topic);
        }
        match put(store, &found, record, None).await {
            Ok(Some(topic)) => return Ok(topic),
            Ok(None) => {}
            Err(error @ TxnError::Unknown(_)) => sent = Some(error),
            Err(error) => return Err(unless_sent(error.into(), sent)),
        }
    }
    Err(contended(name, sent))
}

/// Gives a topic more partitions: `count` in all. Returns the topic as it is then.
///
/// # Errors
/// `UNKNOWN_TOPIC`, `INVALID_TOPIC_NAME`, `INVALID_PARTITION_COUNT` where it has so many or more,
/// or more than [`PARTITIONS_MAX`] are asked for, and as the store fails.
///
/// Cancel safety: a dropped call has grown the topic or has not; what it leaves, the controller removes.
pub async fn add_partitions(store: &dyn MetaStore, name: &str, count: u32) -> Result<Topic, Failure> {
    if count > PARTITIONS_MAX {
        let message = format!("topic \"{name}\": {count} partitions, 1 to {PARTITIONS_MAX} allowed");
        return Err(Failure::new(ErrorCode::InvalidPartitionCount, message));
    }
    let mut found = find(store, name).await?;
    let before = found.topic.partition_ids.len();
    let more = (count as usize).checked_sub(before).filter(|more| *more > 0);
    let more = more.ok_or_else(|| too_few(name, before, count))?;
    let ids = counter::allocate(store, keys::PARTITION_IDS, more as u64).await?;
    let added: Vec<Partition> = ids
        .zip((0_u32..).skip(before))
        .map(|(id, number)| Partition::new(PartitionId(id), found.topic.id, number))
        .collect();
    for chunk in added.chunks(CHUNK) {
        create_partitions(store, chunk).await?;
    }
    let mut sent = None;
    for _ in 0..TRIES_MAX {
        let mut record = found.record.clone();
        record.partition_ids.extend(added.iter().map(|one| one.id.0));
        let first = added
            .first()
            .map(|one| Compare::Value(keys::partition(one.id), one.encode()));
        match put(store, &found, record, first).await {
            Ok(Some(topic)) => return Ok(topic),
            Ok(None) => {}
            Err(error @ TxnError::Unknown(_)) => sent = Some(error),
            Err(error) => return Err(unless_sent(error.into(), sent)),
        }
        let id = found.topic.id;
        found = match find(store, name).await {
            Ok(found) => found,
            Err(failure) => return Err(unless_sent(failure, sent)),
        };
        if found.topic.id != id {
            return Err(unless_sent(unknown_topic(name), sent));
        }
        let listed = added
            .iter()
            .all(|one| found.topic.partition_ids.get(one.number as usize) == Some(&one.id));
        if listed {
            // An earlier send landed.
            return Ok(found.topic);
        }
        if found.topic.partition_ids.len() != before {
            // Somebody else has grown it: that list is what this change was not meant for.
            return Err(too_few(name, found.topic.partition_ids.len(), count));
        }
        if !are_untouched(store, &added).await? {
            let message = format!("adding partitions to topic \"{name}\" took too long, they were removed");
            return Err(Failure::new(ErrorCode::Unavailable, message));
        }
    }
    Err(contended(name, sent))
}

/// Puts a topic's record over the one that was found; none where that has changed.
async fn put(
    store: &dyn MetaStore,
    found: &Found,
    record: TopicRecord,
    also: Option<Compare>,
) -> Result<Option<Topic>, TxnError> {
    let key = found.entry.key.clone();
    let mut txn = Txn::new()
        .when(Compare::unchanged(&found.entry))
        .then(Op::put(key.clone(), encode(&record)));
    if let Some(also) = also {
        txn = txn.when(also);
    }
    let reply = store.txn(txn).await?;
    if !reply.succeeded {
        return Ok(None);
    }
    // It was made of one that reads, and checked: what cannot be read is left to the next try.
    Ok(topic_of(&key, record).ok())
}

/// Whether new partition records are all as they were written.
async fn are_untouched(store: &dyn MetaStore, added: &[Partition]) -> Result<bool, Failure> {
    for chunk in added.chunks(READ_KEYS_MAX) {
        let chunk_keys: Vec<String> = chunk.iter().map(|one| keys::partition(one.id)).collect();
        let (entries, _) = store.get_many(&chunk_keys).await?;
        let untouched = chunk
            .iter()
            .zip(entries)
            .all(|(one, entry)| entry.is_some_and(|entry| entry.value == one.encode()));
        if !untouched {
            return Ok(false);
        }
    }
    Ok(true)
}

fn check_delta(name: &str, set: &BTreeMap<String, String>, unset: &[String]) -> Result<(), Failure> {
    let bad = |what: String| {
        Err(Failure::new(
            ErrorCode::InvalidRequest,
            format!("topic \"{name}\": {what}"),
        ))
    };
    if set.is_empty() && unset.is_empty() {
        return bad("no configuration key is set or unset".to_owned());
    }
    if let Some(key) = unset.iter().find(|key| set.contains_key(*key)) {
        return bad(format!("configuration key \"{key}\" is both set and unset"));
    }
    if let Some(unknown) = unset.iter().find_map(|key| TopicConfig::check_key(key).err()) {
        return bad(unknown.to_string());
    }
    check_config(name, set).map(|_| ())
}

fn too_few(name: &str, has: usize, asked: u32) -> Failure {
    let message = format!(
        "topic \"{name}\" has {has} partitions, {asked} were asked for: a topic can only be given more"
    );
    Failure::new(ErrorCode::InvalidPartitionCount, message)
}

/// What a failure means where a change may have landed before.
fn unless_sent(failure: Failure, sent: Option<TxnError>) -> Failure {
    sent.map_or(failure, Failure::from)
}

fn contended(name: &str, sent: Option<TxnError>) -> Failure {
    let contended = MetaFailure::Contended {
        key: keys::topic_name(name),
        tries: TRIES_MAX,
    };
    unless_sent(contended.into(), sent)
}

#[cfg(test)]
mod tests;
