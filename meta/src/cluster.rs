//! What a cluster is as a whole, agreed upon by the first process that starts.
//!
//! The first start writes `/cluster`; every later one compares its own settings with what is
//! there and refuses to run where they differ: two clusters on one metadata store, or a replica
//! count changed by editing a file, must never go unnoticed.

use forebay_proto::stored::ClusterRecord;
use forebay_runtime::random::Random;

use crate::counter::random_uuid;
use crate::failure::{MetaFailure, TRIES_MAX, decode};
use crate::keys;
use crate::record::encode;
use crate::store::{Compare, Entry, MetaStore, Op, Txn, TxnError};

/// Most replicas of a segment.
const REPLICAS_MAX: u8 = 7;
/// Longest cluster id, in bytes.
const ID_BYTES_MAX: usize = 128;

/// What a process believes about its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSettings {
    /// The cluster's id; none takes what is there, or a random one on the first start.
    pub cluster_id: Option<String>,
    /// Replicas of each segment.
    pub replicas: u8,
    /// Replicas that must have synced an entry before it is committed.
    pub ack_quorum: u8,
}

/// What the cluster is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Its id.
    pub id: String,
    /// Raised by the operator after a restore of the metadata store, from 1.
    pub incarnation: u32,
    /// Replicas of each segment.
    pub replicas: u8,
    /// Replicas that must have synced an entry before it is committed.
    pub ack_quorum: u8,
    /// The metadata store was restored from a backup, and the operator's command has not finished:
    /// until then nothing but storage nodes may run.
    pub restoring: bool,
}

/// Why a process is no part of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The settings cannot be, whatever the cluster says.
    #[error("cluster setting {key} = {value:?}: {why}")]
    Setting {
        /// Which.
        key: &'static str,
        /// As given.
        value: String,
        /// What it should be.
        why: String,
    },
    /// The cluster says otherwise.
    #[error("cluster setting {key} is {configured:?} here, the cluster's metadata says {stored:?}")]
    Mismatch {
        /// Which.
        key: &'static str,
        /// In this process.
        configured: String,
        /// In the metadata store.
        stored: String,
    },
    /// The store could not be asked, or its answer not be used.
    #[error(transparent)]
    Meta(#[from] MetaFailure),
}

/// Joins the cluster of a metadata store, or founds it.
///
/// # Errors
/// Where the settings are impossible or differ from the cluster's, or the store fails. Safe to
/// repeat.
pub async fn join(
    store: &dyn MetaStore,
    desired: &ClusterSettings,
    random: &dyn Random,
) -> Result<Cluster, JoinError> {
    check(desired)?;
    let fresh = ClusterRecord {
        id: desired
            .cluster_id
            .clone()
            .unwrap_or_else(|| random_uuid(random).to_string()),
        incarnation: 1,
        replicas: u32::from(desired.replicas),
        ack_quorum: u32::from(desired.ack_quorum),
        restoring: false,
    };
    let mut unknown: Option<TxnError> = None;
    for _ in 0..TRIES_MAX {
        let (entry, _) = store.get(keys::CLUSTER).await.map_err(MetaFailure::from)?;
        if let Some(entry) = entry {
            return compare(desired, decode(&entry)?);
        }
        let found = Txn::new()
            .when(Compare::absent(keys::CLUSTER))
            .then(Op::put(keys::CLUSTER, encode(&fresh)));
        // Whoever wrote it, and whether or not this attempt landed: the next read decides.
        match store.txn(found).await {
            Ok(_) => {}
            Err(error @ TxnError::Unknown(_)) => unknown = Some(error),
            Err(error) => return Err(MetaFailure::from(error).into()),
        }
    }
    Err(JoinError::Meta(match unknown {
        Some(error) => error.into(),
        None => MetaFailure::Contended {
            key: keys::CLUSTER.to_owned(),
            tries: TRIES_MAX,
        },
    }))
}

fn check(desired: &ClusterSettings) -> Result<(), JoinError> {
    let bad = |key, value: String, why: String| Err(JoinError::Setting { key, value, why });
    if desired.replicas == 0 || desired.replicas > REPLICAS_MAX {
        return bad(
            "replicas",
            desired.replicas.to_string(),
            format!("must lie between 1 and {REPLICAS_MAX}"),
        );
    }
    if desired.ack_quorum == 0 || desired.ack_quorum > desired.replicas {
        let why = format!(
            "must lie between 1 and the number of replicas, {}",
            desired.replicas
        );
        return bad("ack_quorum", desired.ack_quorum.to_string(), why);
    }
    match &desired.cluster_id {
        Some(id) if id.is_empty() || id.len() > ID_BYTES_MAX => bad(
            "cluster_id",
            id.clone(),
            format!("must have 1 to {ID_BYTES_MAX} bytes"),
        ),
        _ => Ok(()),
    }
}

fn compare(desired: &ClusterSettings, stored: ClusterRecord) -> Result<Cluster, JoinError> {
    let differs = |key, configured: String, stored: String| {
        if configured == stored {
            Ok(())
        } else {
            Err(JoinError::Mismatch {
                key,
                configured,
                stored,
            })
        }
    };
    if let Some(id) = &desired.cluster_id {
        differs("cluster_id", id.clone(), stored.id.clone())?;
    }
    differs(
        "replicas",
        desired.replicas.to_string(),
        stored.replicas.to_string(),
    )?;
    differs(
        "ack_quorum",
        desired.ack_quorum.to_string(),
        stored.ack_quorum.to_string(),
    )?;
    Ok(Cluster {
        id: stored.id,
        incarnation: stored.incarnation,
        replicas: desired.replicas,
        ack_quorum: desired.ack_quorum,
        restoring: stored.restoring,
    })
}

/// The cluster's record and its entry, none where no process has ever started.
///
/// # Errors
/// Where the store does not answer or the record is damaged.
pub async fn stored(store: &dyn MetaStore) -> Result<Option<(Entry, ClusterRecord)>, MetaFailure> {
    let (entry, _) = store.get(keys::CLUSTER).await?;
    match entry {
        Some(entry) => {
            let record = decode(&entry)?;
            Ok(Some((entry, record)))
        }
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use forebay_runtime::random::SeededRandom;

    use super::*;
    use crate::faults::{UNKNOWNS, World};

    fn settings(id: Option<&str>, replicas: u8, ack_quorum: u8) -> ClusterSettings {
        ClusterSettings {
            cluster_id: id.map(str::to_owned),
            replicas,
            ack_quorum,
        }
    }

    #[tokio::test]
    async fn the_first_start_founds_the_cluster_and_later_ones_join_it() {
        let world = World::new().await;
        let random = SeededRandom::new(1);
        let founded = join(&*world.store, &settings(None, 3, 2), &random).await.unwrap();
        assert_eq!(
            (founded.incarnation, founded.replicas, founded.ack_quorum),
            (1, 3, 2)
        );
        assert_eq!(
            join(&*world.store, &settings(None, 3, 2), &random).await.unwrap(),
            founded
        );
        let named = settings(Some(&founded.id), 3, 2);
        assert_eq!(join(&*world.store, &named, &random).await.unwrap(), founded);
    }

    #[tokio::test]
    async fn a_mismatch_names_both_values() {
        let world = World::new().await;
        let random = SeededRandom::new(1);
        join(&*world.store, &settings(Some("lake"), 3, 2), &random)
            .await
            .unwrap();
        for (desired, configured, stored) in [
            (settings(Some("pond"), 3, 2), "pond", "lake"),
            (settings(None, 1, 1), "\"1\"", "\"3\""),
            (settings(None, 3, 3), "\"3\"", "\"2\""),
        ] {
            let error = join(&*world.store, &desired, &random)
                .await
                .unwrap_err()
                .to_string();
            assert!(error.contains(configured) && error.contains(stored), "{error}");
        }
    }

    #[tokio::test]
    async fn impossible_settings_are_refused_before_anything_is_written() {
        let world = World::new().await;
        let random = SeededRandom::new(1);
        for desired in [
            settings(None, 0, 0),
            settings(None, 1, 2),
            settings(None, 3, 0),
            settings(Some(""), 1, 1),
        ] {
            let error = join(&*world.store, &desired, &random).await.unwrap_err();
            assert!(matches!(error, JoinError::Setting { .. }), "{error}");
        }
        assert_eq!(world.store.get(keys::CLUSTER).await.unwrap().0, None);
    }

    #[tokio::test]
    async fn an_unknown_outcome_still_founds_one_cluster() {
        for fault in UNKNOWNS {
            let world = World::new().await;
            let random = SeededRandom::new(1);
            let founded = join(&*world.faulty([fault]), &settings(None, 1, 1), &random)
                .await
                .unwrap();
            assert_eq!(
                join(&*world.store, &settings(None, 1, 1), &random).await.unwrap(),
                founded
            );
        }
    }
}
