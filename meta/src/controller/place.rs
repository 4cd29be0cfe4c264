//! Which broker each partition should be at: a pure plan.
//!
//! Promises: a partition whose broker lives is never moved; every other one goes to the live broker
//! with the fewest partitions, the lowest id where several have as few. So a plan from nothing is
//! balanced within one, and no plan moves more than it must. The same input gives the same plan.

use std::collections::{BTreeMap, BTreeSet};

use forebay_record::{BrokerId, PartitionId};

/// A change of one wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The partition.
    pub partition: PartitionId,
    /// Where it was wished to be.
    pub from: Option<BrokerId>,
    /// Where it is to be.
    pub to: BrokerId,
}

/// Plans wishes for partitions that have none or whose broker is gone.
///
/// `partitions` are those of all topics that are not deleted, with the broker that is wished for
/// them. `live` are brokers that partitions may go to. A wish for a broker that is not live stays
/// unless `gone` says that its broker is worth replacing.
pub fn plan_placement(
    partitions: impl Iterator<Item = (PartitionId, Option<BrokerId>)>,
    live: &BTreeSet<BrokerId>,
    gone: impl Fn(BrokerId) -> bool,
) -> Vec<Placement> {
    let mut load: BTreeMap<BrokerId, usize> = live.iter().map(|broker| (*broker, 0)).collect();
    let mut homeless = Vec::new();
    for (partition, wished) in partitions {
        match wished {
            Some(broker) => match load.get_mut(&broker) {
                Some(count) => *count += 1,
                None if gone(broker) => homeless.push((partition, wished)),
                None => {}
            },
            None => homeless.push((partition, None)),
        }
    }
    let mut idle: BTreeSet<(usize, BrokerId)> =
        load.into_iter().map(|(broker, count)| (count, broker)).collect();
    let mut plan = Vec::with_capacity(if idle.is_empty() { 0 } else { homeless.len() });
    for (partition, from) in homeless {
        let Some((count, to)) = idle.pop_first() else {
            break;
        };
        idle.insert((count + 1, to));
        plan.push(Placement { partition, from, to });
    }
    plan
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    type Wishes = BTreeMap<PartitionId, Option<BrokerId>>;

    fn plan(wishes: &Wishes, live: &BTreeSet<BrokerId>) -> Vec<Placement> {
        plan_placement(wishes.iter().map(|(id, wish)| (*id, *wish)), live, |_| true)
    }

    fn apply(wishes: &mut Wishes, plan: &[Placement]) {
        for step in plan {
            assert_eq!(
                wishes.insert(step.partition, Some(step.to)),
                Some(step.from),
                "{step:?}"
            );
        }
    }

    fn load(wishes: &Wishes, live: &BTreeSet<BrokerId>) -> Vec<usize> {
        live.iter()
            .map(|broker| wishes.values().filter(|wish| **wish == Some(*broker)).count())
            .collect()
    }

    fn brokers(ids: &[u32]) -> BTreeSet<BrokerId> {
        ids.iter().copied().map(BrokerId).collect()
    }

    #[test]
    fn without_live_brokers_nothing_is_planned() {
        let wishes: Wishes = [(PartitionId(1), None), (PartitionId(2), Some(BrokerId(9)))].into();
        assert_eq!(plan(&wishes, &brokers(&[])), []);
    }

    #[test]
    fn a_broker_that_may_come_back_keeps_its_partitions() {
        let wishes: Wishes = [(PartitionId(1), None), (PartitionId(2), Some(BrokerId(9)))].into();
        let pairs = wishes.iter().map(|(id, wish)| (*id, *wish));
        let plan = plan_placement(pairs, &brokers(&[1]), |_| false);
        assert_eq!(
            plan,
            [Placement {
                partition: PartitionId(1),
                from: None,
                to: BrokerId(1)
            }]
        );
    }

    #[test]
    fn a_joining_broker_takes_nothing_from_others() {
        let mut wishes: Wishes = (1..=10).map(|id| (PartitionId(id), None)).collect();
        let first = plan(&wishes, &brokers(&[1]));
        apply(&mut wishes, &first);
        assert_eq!(plan(&wishes, &brokers(&[1, 2])), []);
        wishes.insert(PartitionId(11), None);
        assert_eq!(
            plan(&wishes, &brokers(&[1, 2])).first().map(|step| step.to),
            Some(BrokerId(2))
        );
    }

    proptest! {
        #[test]
        fn a_plan_from_nothing_is_balanced_within_one(partitions in 0_u64..300, live in 1_u32..12) {
            let mut wishes: Wishes = (0..partitions).map(|id| (PartitionId(id), None)).collect();
            let live: BTreeSet<BrokerId> = (1..=live).map(BrokerId).collect();
            let steps = plan(&wishes, &live);
            apply(&mut wishes, &steps);
            let load = load(&wishes, &live);
            prop_assert!(load.iter().max().unwrap() - load.iter().min().unwrap() <= 1, "{load:?}");
        }

        #[test]
        fn every_partition_gets_a_live_broker_and_only_those_move_that_must(
            wishes in prop::collection::btree_map(0_u64..500, prop::option::of(1_u32..8), 0..200),
            live in prop::collection::btree_set(1_u32..12, 1..6),
        ) {
            let before: Wishes =
                wishes.into_iter().map(|(id, wish)| (PartitionId(id), wish.map(BrokerId))).collect();
            let live: BTreeSet<BrokerId> = live.into_iter().map(BrokerId).collect();
            let steps = plan(&before, &live);
            let mut after = before.clone();
            apply(&mut after, &steps);
            for (id, wish) in &after {
                prop_assert!(live.contains(&wish.unwrap()));
                let was = before.get(id).unwrap();
                prop_assert!(was.is_none_or(|was| !live.contains(&was)) || was == wish);
            }
            prop_assert_eq!(plan(&after, &live), Vec::new());
            // Whoever was given something had no more than the others when it was given.
            let load_after = load(&after, &live);
            let least = load_after.iter().min().unwrap();
            for (broker, count) in live.iter().zip(&load_after) {
                let given = steps.iter().any(|step| step.to == *broker);
                prop_assert!(!given || *count <= least + 1, "{broker} has {count}, another {least}");
            }
        }
    }
}
