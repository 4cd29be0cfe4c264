//! Ids that are handed out once: a counter in the metadata store, moved by compare-and-swap.
//!
//! 1. Read the counter; an absent one stands at 1.
//! 2. Store it `count` further, provided that nobody touched it since the read.
//! 3. Won: the ids between are the caller's. Lost, or unknown: start over from the read.
//!
//! Promises: no id is handed out twice. An attempt of unknown outcome hands out nothing: if it
//! did land, its ids are skipped, and if it is still on its way, it and the next attempt compare
//! the same revision, so at most one of them lands.

use std::ops::Range;

use forebay_proto::stored::CounterRecord;
use forebay_runtime::random::Random;
use uuid::Uuid;

use crate::failure::{MetaFailure, TRIES_MAX, decode};
use crate::record::encode;
use crate::store::{Compare, MetaStore, Op, Txn, TxnError};

/// The next `count` ids of the counter at `key`, which begins at 1.
///
/// # Errors
/// Where the store does not answer, the counter is damaged, contended or at its end. Ids may
/// then be lost, never doubled.
pub async fn allocate(store: &dyn MetaStore, key: &str, count: u64) -> Result<Range<u64>, MetaFailure> {
    let mut unknown: Option<TxnError> = None;
    for _ in 0..TRIES_MAX {
        let (entry, _) = store.get(key).await?;
        let (seen, next) = match &entry {
            Some(entry) => (Compare::unchanged(entry), decode::<CounterRecord>(entry)?.next),
            None => (Compare::absent(key), 1),
        };
        let end = next.checked_add(count).ok_or_else(|| MetaFailure::Exhausted {
            key: key.to_owned(),
            next,
            count,
        })?;
        let put = Op::put(key, encode(&CounterRecord { next: end }));
        match store.txn(Txn::new().when(seen).then(put)).await {
            Ok(reply) if reply.succeeded => return Ok(next..end),
            Ok(_) => {}
            Err(error @ TxnError::Unknown(_)) => unknown = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(match unknown {
        Some(error) => error.into(),
        None => MetaFailure::Contended {
            key: key.to_owned(),
            tries: TRIES_MAX,
        },
    })
}

/// An id that needs no counter.
pub(crate) fn random_uuid(random: &dyn Random) -> Uuid {
    let mut bytes = [0; 16];
    random.fill(&mut bytes);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::failure::MetaFailure;
    use crate::faults::{Fault, UNKNOWNS, World};
    use crate::keys::PRODUCER_IDS;
    use crate::store::Unavailable;

    #[tokio::test]
    async fn ids_begin_at_one_and_follow_each_other() {
        let world = World::new().await;
        assert_eq!(
            allocate(&*world.store, PRODUCER_IDS, 1000).await.unwrap(),
            1..1001
        );
        assert_eq!(
            allocate(&*world.store, PRODUCER_IDS, 1).await.unwrap(),
            1001..1002
        );
        assert_eq!(allocate(&*world.store, "/id/other", 2).await.unwrap(), 1..3);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn ids_asked_for_at_once_are_never_the_same() {
        let world = World::new().await;
        let asked = (1..=16).map(|count| {
            let store = Arc::clone(&world.store);
            tokio::spawn(async move { allocate(&*store, PRODUCER_IDS, count).await.unwrap() })
        });
        let mut seen = BTreeSet::new();
        for range in futures_util::future::join_all(asked).await {
            for id in range.unwrap() {
                assert!(seen.insert(id), "{id} twice");
            }
        }
        assert_eq!(seen.len(), (1..=16).sum::<usize>());
    }

    #[tokio::test]
    async fn an_unknown_outcome_may_skip_ids_and_doubles_none() {
        for first in UNKNOWNS {
            for second in UNKNOWNS {
                let world = World::new().await;
                let faulty = world.faulty([first, second]);
                let got = allocate(&*faulty, PRODUCER_IDS, 10).await.unwrap();
                let next = allocate(&*faulty, PRODUCER_IDS, 10).await.unwrap();
                let last = allocate(&*world.store, PRODUCER_IDS, 10).await.unwrap();
                assert!(
                    got.end <= next.start && next.end <= last.start,
                    "{first:?} {second:?}: {got:?} {next:?} {last:?}"
                );
            }
        }
    }

    #[tokio::test]
    async fn a_store_that_stays_unclear_or_away_is_reported_as_such() {
        let world = World::new().await;
        let away = allocate(&*world.faulty([Fault::NotSent]), PRODUCER_IDS, 1)
            .await
            .unwrap_err();
        assert_eq!(
            away,
            MetaFailure::Txn(Unavailable("no connection".to_owned()).into())
        );
        let lossy = world.faulty(std::iter::repeat_n(Fault::RequestLost, 1000));
        let unclear = allocate(&*lossy, PRODUCER_IDS, 1).await.unwrap_err();
        assert!(
            matches!(unclear, MetaFailure::Txn(TxnError::Unknown(_))),
            "{unclear}"
        );
    }

    #[tokio::test]
    async fn a_counter_ends_instead_of_wrapping() {
        let world = World::new().await;
        allocate(&*world.store, PRODUCER_IDS, u64::MAX - 5).await.unwrap();
        let error = allocate(&*world.store, PRODUCER_IDS, 10).await.unwrap_err();
        assert!(matches!(error, MetaFailure::Exhausted { .. }), "{error}");
    }
}
