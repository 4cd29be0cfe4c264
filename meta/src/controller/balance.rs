//! Which partitions a planned move takes to another broker, and why: a pure plan.
//!
//! A partition's weight is half its part of all partitions and half its part of all bytes; where hardly
//! any bytes flow, only the number counts. Two things are planned, each up to a limit:
//!
//! 1. A broker that is drained gives all it has, the heaviest partitions first, to whoever has least.
//! 2. Where the heaviest broker has more than the lightest by [`BEGIN`] of the mean, partitions go
//!    from one to the other until they are within [`END`] of it.
//!
//! Promises: a move never turns an inequality around (the giver keeps at least what the taker then
//! has), so a plan for unchanged loads comes to an end and the next one is empty; what lies between
//! [`END`] and [`BEGIN`] is left alone, so loads that waver move nothing. The same input gives the
//! same plan.

use std::collections::{BTreeMap, BTreeSet};

use forebay_record::{BrokerId, PartitionId};

/// Balancing begins at this part of the mean between two brokers.
pub(super) const BEGIN: f64 = 0.25;
/// And ends here.
const END: f64 = 0.1;
/// Bytes a second of a broker, on average, below which bytes do not count.
const QUIET_BYTES: f64 = 65_536.0;

/// A partition and the broker that is wished for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The partition.
    pub partition: PartitionId,
    /// Where it is.
    pub broker: BrokerId,
    /// Bytes a second that come and go.
    pub bytes_per_s: u64,
    /// It may be moved: no move of it is under way or just over.
    pub movable: bool,
}

/// A planned move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The partition.
    pub partition: PartitionId,
    /// Who hands it over.
    pub from: BrokerId,
    /// Who takes it.
    pub to: BrokerId,
    /// For log and status.
    pub why: String,
}

/// How many moves a plan may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Away from brokers that are drained.
    pub drain: usize,
    /// To balance.
    pub balance: usize,
    /// The last plan to balance had as many moves as it might: this one goes on to the same end.
    pub resumes: bool,
}

/// What a broker has.
#[derive(Debug, Default)]
struct Burden {
    weight: f64,
    /// Partitions that may go, by weight, the lightest first.
    movable: Vec<(f64, PartitionId)>,
}

/// Plans moves. `targets` may get partitions, `draining` shall lose theirs.
pub fn plan_moves(
    held: impl Iterator<Item = Held>,
    targets: &BTreeSet<BrokerId>,
    draining: &BTreeSet<BrokerId>,
    limits: Limits,
) -> Vec<Move> {
    if targets.is_empty() {
        return Vec::new();
    }
    let held: Vec<_> = held
        .filter(|one| targets.contains(&one.broker) || draining.contains(&one.broker))
        .collect();
    let mut burdens = burdens(&held, targets);
    let mut plan = drain(&mut burdens, targets, draining, limits.drain);
    // Nothing is balanced while brokers are being emptied: that changes all that balance goes by.
    if plan.is_empty() && !held.iter().any(|one| draining.contains(&one.broker)) {
        plan.extend(balance(&mut burdens, limits));
    }
    plan
}

fn burdens(held: &[Held], targets: &BTreeSet<BrokerId>) -> BTreeMap<BrokerId, Burden> {
    let count = held.len().max(1) as f64;
    let bytes: f64 = held.iter().map(|one| one.bytes_per_s as f64).sum();
    let quiet = bytes < QUIET_BYTES * targets.len() as f64;
    let mut burdens: BTreeMap<_, _> = targets.iter().map(|id| (*id, Burden::default())).collect();
    for one in held {
        let weight = if quiet {
            1.0 / count
        } else {
            0.5 / count + 0.5 * one.bytes_per_s as f64 / bytes
        };
        let burden = burdens.entry(one.broker).or_default();
        burden.weight += weight;
        if one.movable {
            burden.movable.push((weight, one.partition));
        }
    }
    for burden in burdens.values_mut() {
        burden
            .movable
            .sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
    }
    burdens
}

fn lightest(burdens: &BTreeMap<BrokerId, Burden>, targets: &BTreeSet<BrokerId>) -> Option<BrokerId> {
    targets
        .iter()
        .filter_map(|id| Some((burdens.get(id)?.weight, *id)))
        .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
        .map(|(_, id)| id)
}

fn shift(burdens: &mut BTreeMap<BrokerId, Burden>, weight: f64, from: BrokerId, to: BrokerId) {
    if let Some(giver) = burdens.get_mut(&from) {
        giver.weight -= weight;
    }
    if let Some(taker) = burdens.get_mut(&to) {
        taker.weight += weight;
    }
}

fn drain(
    burdens: &mut BTreeMap<BrokerId, Burden>,
    targets: &BTreeSet<BrokerId>,
    draining: &BTreeSet<BrokerId>,
    limit: usize,
) -> Vec<Move> {
    let mut plan = Vec::new();
    for from in draining {
        while plan.len() < limit {
            let heaviest = burdens.get_mut(from).and_then(|burden| burden.movable.pop());
            let (Some((weight, partition)), Some(to)) = (heaviest, lightest(burdens, targets)) else {
                break;
            };
            shift(burdens, weight, *from, to);
            plan.push(Move {
                partition,
                from: *from,
                to,
                why: format!("broker {} is drained", from.0),
            });
        }
    }
    plan
}

fn balance(burdens: &mut BTreeMap<BrokerId, Burden>, limits: Limits) -> Vec<Move> {
    let mut plan = Vec::new();
    let total: f64 = burdens.values().map(|burden| burden.weight).sum();
    let mean = total / burdens.len().max(1) as f64;
    let part = |weight: f64| 100.0 * weight / total.max(f64::MIN_POSITIVE);
    let before: BTreeMap<_, _> = burdens
        .iter()
        .map(|(id, burden)| (*id, part(burden.weight)))
        .collect();
    while plan.len() < limits.balance {
        let weights = || burdens.iter().map(|(id, burden)| (burden.weight, *id));
        let heaviest = weights().max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        let lightest = weights().min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let (Some((most, from)), Some((least, to))) = (heaviest, lightest) else {
            break;
        };
        let enough = if plan.is_empty() && !limits.resumes {
            BEGIN
        } else {
            END
        };
        if most - least <= enough * mean {
            break;
        }
        let Some(giver) = burdens.get_mut(&from) else {
            break;
        };
        // The heaviest that does not turn the two around; a hair of room for sums of fractions.
        let fits = giver
            .movable
            .partition_point(|(weight, _)| *weight <= (most - least) / 2.0 + 1e-9);
        let Some(at) = fits.checked_sub(1) else { break };
        let (weight, partition) = giver.movable.remove(at);
        shift(burdens, weight, from, to);
        let share = |id| before.get(&id).copied().unwrap_or_default();
        let why = format!(
            "broker {} had {:.0} % of the load, broker {} had {:.0} %",
            from.0,
            share(from),
            to.0,
            share(to)
        );
        plan.push(Move {
            partition,
            from,
            to,
            why,
        });
    }
    plan
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        drain: 64,
        balance: 16,
        resumes: false,
    };

    type Loads = BTreeMap<PartitionId, (BrokerId, u64)>;

    fn plan(loads: &Loads, targets: &[u32], draining: &[u32]) -> Vec<Move> {
        plan_within(loads, targets, draining, LIMITS)
    }

    fn plan_within(loads: &Loads, targets: &[u32], draining: &[u32], limits: Limits) -> Vec<Move> {
        let held = loads.iter().map(|(id, (broker, bytes))| Held {
            partition: *id,
            broker: *broker,
            bytes_per_s: *bytes,
            movable: true,
        });
        plan_moves(held, &brokers(targets), &brokers(draining), limits)
    }

    fn brokers(ids: &[u32]) -> BTreeSet<BrokerId> {
        ids.iter().copied().map(BrokerId).collect()
    }

    fn apply(loads: &mut Loads, plan: &[Move]) {
        for one in plan {
            let held = loads.get_mut(&one.partition).unwrap();
            assert_eq!(held.0, one.from, "{one:?}");
            held.0 = one.to;
        }
    }

    fn count(loads: &Loads, broker: u32) -> usize {
        loads.values().filter(|(at, _)| at.0 == broker).count()
    }

    fn all_at(broker: u32, partitions: u64, bytes: impl Fn(u64) -> u64) -> Loads {
        (0..partitions)
            .map(|id| (PartitionId(id), (BrokerId(broker), bytes(id))))
            .collect()
    }

    /// Rounds until nothing is moved any more.
    fn settle(loads: &mut Loads, targets: &[u32]) -> usize {
        let mut limits = LIMITS;
        for round in 0..200 {
            let moves = plan_within(loads, targets, &[], limits);
            limits.resumes = moves.len() == limits.balance;
            if moves.is_empty() {
                return round;
            }
            apply(loads, &moves);
        }
        usize::MAX
    }

    #[test]
    fn a_broker_that_joins_gets_its_part_in_bounded_steps() {
        let mut loads = all_at(1, 100, |_| 0);
        assert_eq!(plan(&loads, &[1, 2], &[]).len(), LIMITS.balance);
        assert!(settle(&mut loads, &[1, 2]) < 10);
        assert!((45..=55).contains(&count(&loads, 2)), "{}", count(&loads, 2));
    }

    #[test]
    fn bytes_count_beside_the_number() {
        // As many partitions each, and all the bytes at the first broker.
        let mut loads = all_at(1, 20, |_| 1 << 20);
        loads.extend((20..40).map(|id| (PartitionId(id), (BrokerId(2), 0))));
        assert!(settle(&mut loads, &[1, 2]) < 10);
        let bytes = |broker| {
            let at = |(id, _): &&(BrokerId, u64)| id.0 == broker;
            loads
                .values()
                .filter(at)
                .map(|(_, bytes)| bytes >> 20)
                .sum::<u64>()
        };
        assert!(bytes(2) >= 5, "{} and {}", bytes(1), bytes(2));
    }

    #[test]
    fn one_partition_with_all_the_load_is_not_passed_around() {
        let mut loads = all_at(1, 1, |_| 100 << 20);
        assert_eq!(settle(&mut loads, &[1, 2, 3]), 0);
    }

    #[test]
    fn a_drained_broker_gives_everything_and_gets_nothing() {
        let mut loads = all_at(1, 150, |id| id << 10);
        let mut rounds = 0;
        while count(&loads, 1) > 0 {
            let moves = plan(&loads, &[2, 3], &[1]);
            assert!(!moves.is_empty() && moves.len() <= LIMITS.drain);
            apply(&mut loads, &moves);
            rounds += 1;
        }
        assert_eq!(rounds, 3);
        assert!((60..=90).contains(&count(&loads, 2)), "{}", count(&loads, 2));
        assert!(plan(&loads, &[2, 3], &[1]).is_empty());
    }

    #[test]
    fn without_anybody_to_take_them_nothing_is_moved() {
        assert_eq!(plan(&all_at(1, 5, |_| 0), &[], &[1]), []);
    }

    proptest! {
        #[test]
        fn any_loads_settle_and_then_nothing_moves(
            bytes in prop::collection::vec(0_u64..8 << 20, 1..120),
            targets in 1_u32..6,
        ) {
            let mut loads: Loads = (0..)
                .zip(&bytes)
                .map(|(id, bytes)| (PartitionId(id), (BrokerId(1), *bytes)))
                .collect();
            let targets: Vec<u32> = (1..=targets).collect();
            prop_assert!(settle(&mut loads, &targets) < 100);
            prop_assert_eq!(plan(&loads, &targets, &[]), Vec::new());
        }

        #[test]
        fn loads_that_waver_by_a_tenth_move_nothing_once_settled(
            bytes in prop::collection::vec(1_u64 << 20..4 << 20, 60..120),
            noise in prop::collection::vec(90_u64..=110, 120 * 20),
        ) {
            let mut loads: Loads = (0..)
                .zip(&bytes)
                .map(|(id, bytes)| (PartitionId(id), (BrokerId(1), *bytes)))
                .collect();
            prop_assert!(settle(&mut loads, &[1, 2, 3]) < 100);
            for round in noise.chunks(120) {
                let wavering: Loads = loads
                    .iter()
                    .zip(round)
                    .map(|((id, (broker, bytes)), part)| (*id, (*broker, bytes * part / 100)))
                    .collect();
                prop_assert_eq!(plan(&wavering, &[1, 2, 3], &[]), Vec::new());
            }
        }
    }
}
