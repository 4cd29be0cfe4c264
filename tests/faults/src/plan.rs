//! Which faults a round has, drawn from its seed.
//!
//! The same seed, length and abilities give the same plan. A fault is added only where, at any
//! moment, no more is away than a quorum survives: one storage node, one etcd member, one broker and
//! one proxy at a time; a power cut stands alone; and only one disk of a round loses bytes. No order
//! of faults within these bounds may lose an acknowledged record.

use std::fmt;

use forebay_runtime::random::{Random, SeededRandom};

use crate::abilities::Abilities;

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A member of etcd.
    Etcd,
    /// A storage node.
    Storage,
    /// A broker, which is a controller too.
    Broker,
    /// A proxy.
    Proxy,
}

impl Kind {
    /// How many of them a cluster has.
    #[must_use]
    pub const fn count(self) -> u8 {
        match self {
            Self::Etcd | Self::Broker => 3,
            Self::Storage => 4,
            Self::Proxy => 2,
        }
    }
}

/// All kinds.
pub const KINDS: [Kind; 4] = [Kind::Etcd, Kind::Storage, Kind::Broker, Kind::Proxy];

/// One process of the cluster; numbers of a kind start at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// What it is.
    pub kind: Kind,
    /// Which of these.
    pub number: u8,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Etcd => "etcd",
            Kind::Storage => "node",
            Kind::Broker => "broker",
            Kind::Proxy => "proxy",
        };
        write!(f, "{kind}{}", self.number)
    }
}

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Killed, and started again at the end.
    Kill(Target),
    /// Stopped in the middle of whatever it does, and continued at the end.
    Pause(Target),
    /// The member that leads etcd is paused.
    PauseLeader,
    /// Hears and reaches nobody.
    Isolate(Target),
    /// What one sends does not arrive at the other; the other way it does.
    Cut(Target, Target),
    /// A share of what it is sent does not arrive, percent.
    Lose(Target, u8),
    /// The storage node's next fdatasync fails.
    FailSync(u8),
    /// The file system of the storage node is full.
    FillDisk(u8),
    /// The storage node loses its folder, and a new node takes its place.
    WipeDisk(u8),
    /// A bit of the storage node's journal flips while it is down.
    FlipBit(u8),
    /// All members of etcd are killed at once, and stay away for longer than sessions live.
    NoEtcd,
    /// All but the proxies are killed at once.
    PowerCut,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(target) => write!(f, "kill {target}"),
            Self::Pause(target) => write!(f, "pause {target}"),
            Self::PauseLeader => f.write_str("pause etcd-leader"),
            Self::Isolate(target) => write!(f, "isolate {target}"),
            Self::Cut(from, to) => write!(f, "cut {from}->{to}"),
            Self::Lose(target, percent) => write!(f, "lose {percent}% {target}"),
            Self::FailSync(number) => write!(f, "eio node{number}"),
            Self::FillDisk(number) => write!(f, "full node{number}"),
            Self::WipeDisk(number) => write!(f, "wipe node{number}"),
            Self::FlipBit(number) => write!(f, "flip node{number}"),
            Self::NoEtcd => f.write_str("no etcd"),
            Self::PowerCut => f.write_str("power cut"),
        }
    }
}

impl Fault {
    /// The kinds of which one is away meanwhile.
    #[must_use]
    pub fn occupies(&self) -> Vec<Kind> {
        match self {
            Self::Kill(target) | Self::Pause(target) | Self::Isolate(target) | Self::Lose(target, _) => {
                vec![target.kind]
            }
            Self::Cut(from, to) => vec![from.kind, to.kind],
            Self::PauseLeader | Self::NoEtcd => vec![Kind::Etcd],
            Self::FailSync(_) | Self::FillDisk(_) | Self::WipeDisk(_) | Self::FlipBit(_) => {
                vec![Kind::Storage]
            }
            Self::PowerCut => KINDS.to_vec(),
        }
    }

    /// Whether bytes that were synced are gone afterwards.
    #[must_use]
    pub const fn loses_bytes(&self) -> bool {
        matches!(self, Self::WipeDisk(_) | Self::FlipBit(_))
    }
}

/// A fault and when, milliseconds from the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// When it begins.
    pub at_ms: u64,
    /// When it is undone.
    pub until_ms: u64,
    /// What.
    pub fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:.1}-{:.1}s",
            self.fault,
            self.at_ms as f64 / 1e3,
            self.until_ms as f64 / 1e3
        )
    }
}

/// Time between two faults of one kind of process: those that were away look for each other.
const BETWEEN_MS: u64 = 1_500;
/// Longest pause.
const PAUSE_MS_MAX: u64 = 20_000;

/// The faults of a round of so many milliseconds, in the order of their beginning.
#[must_use]
pub fn plan(seed: u64, length_ms: u64, abilities: Abilities) -> Vec<Planned> {
    let random = SeededRandom::new(seed);
    // About one each second and a half is tried; those that are too much at a time are left out.
    let tries = 2 + length_ms / 1_500;
    let mut planned: Vec<Planned> = Vec::new();
    for _ in 0..tries {
        let at_ms = random.range(0, length_ms * 3 / 4);
        let fault = draw(&random, abilities);
        let shorter = length_ms.saturating_sub(at_ms);
        let longest = match fault {
            Fault::Pause(_) | Fault::PauseLeader | Fault::NoEtcd => PAUSE_MS_MAX,
            Fault::PowerCut | Fault::WipeDisk(_) | Fault::FlipBit(_) => 2_000,
            _ => 8_000,
        };
        let for_ms = random.range(300, longest.min(shorter).max(301));
        let new = Planned {
            at_ms,
            until_ms: at_ms + for_ms,
            fault,
        };
        if planned.iter().all(|other| may_both(other, &new)) {
            planned.push(new);
        }
    }
    planned.sort_by_key(|one| one.at_ms);
    planned
}

/// Whether a quorum survives both.
fn may_both(one: &Planned, other: &Planned) -> bool {
    if one.fault.loses_bytes() && other.fault.loses_bytes() {
        return false;
    }
    // One small disk is made for each round.
    if matches!((one.fault, other.fault), (Fault::FillDisk(first), Fault::FillDisk(second)) if first != second)
    {
        return false;
    }
    let apart = one.until_ms + BETWEEN_MS <= other.at_ms || other.until_ms + BETWEEN_MS <= one.at_ms;
    let both = other.fault.occupies();
    apart || !one.fault.occupies().iter().any(|kind| both.contains(kind))
}

fn draw(random: &SeededRandom, abilities: Abilities) -> Fault {
    loop {
        let any = |kinds: &[Kind]| {
            let index = usize::try_from(random.range(0, kinds.len() as u64)).unwrap_or(0);
            let kind = kinds.get(index).copied().unwrap_or(Kind::Broker);
            Target {
                kind,
                number: number(random, kind),
            }
        };
        let fault = match random.range(0, 25) {
            0..=2 => Fault::Kill(any(&[Kind::Broker])),
            3..=4 => Fault::Kill(any(&[Kind::Storage])),
            5 => Fault::Kill(any(&[Kind::Proxy, Kind::Etcd])),
            6..=7 => Fault::Pause(any(&[Kind::Broker])),
            8..=9 => Fault::Pause(any(&[Kind::Storage, Kind::Proxy])),
            10 => Fault::PauseLeader,
            11 => Fault::FailSync(number(random, Kind::Storage)),
            12 => Fault::FillDisk(number(random, Kind::Storage)),
            13 => Fault::WipeDisk(number(random, Kind::Storage)),
            14 => Fault::FlipBit(number(random, Kind::Storage)),
            15 => Fault::PowerCut,
            16..=17 => Fault::Isolate(any(&KINDS)),
            18..=19 => Fault::Lose(any(&KINDS), u8::try_from(random.range(5, 60)).unwrap_or(5)),
            20 => Fault::NoEtcd,
            _ => {
                let pairs = [
                    (Kind::Broker, Kind::Storage),
                    (Kind::Storage, Kind::Broker),
                    (Kind::Broker, Kind::Etcd),
                    (Kind::Etcd, Kind::Broker),
                    (Kind::Proxy, Kind::Broker),
                    (Kind::Broker, Kind::Proxy),
                    (Kind::Etcd, Kind::Etcd),
                ];
                let index = usize::try_from(random.range(0, pairs.len() as u64)).unwrap_or(0);
                let (from, to) = pairs.get(index).copied().unwrap_or((Kind::Broker, Kind::Storage));
                Fault::Cut(any(&[from]), any(&[to]))
            }
        };
        let possible = match fault {
            Fault::Isolate(_) | Fault::Lose(..) => abilities.network,
            Fault::Cut(from, to) => abilities.network && from != to,
            Fault::FailSync(_) => abilities.syscalls,
            Fault::FillDisk(_) => abilities.mounts,
            _ => true,
        };
        if possible {
            return fault;
        }
    }
}

fn number(random: &SeededRandom, kind: Kind) -> u8 {
    u8::try_from(random.range(1, u64::from(kind.count()) + 1)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Abilities = Abilities {
        network: true,
        syscalls: true,
        mounts: true,
    };

    #[test]
    fn a_seed_gives_the_same_plan_again_and_others_give_others() {
        assert_eq!(plan(7, 30_000, ALL), plan(7, 30_000, ALL));
        assert_ne!(plan(7, 30_000, ALL), plan(8, 30_000, ALL));
    }

    #[test]
    fn no_plan_takes_more_away_than_a_quorum_survives() {
        for seed in 0..2_000 {
            let planned = plan(seed, 30_000, ALL);
            assert!(!planned.is_empty(), "seed {seed} has no fault");
            let losing = planned.iter().filter(|one| one.fault.loses_bytes()).count();
            assert!(losing <= 1, "seed {seed} loses {losing} disks: {planned:?}");
            for moment in (0..31_000).step_by(100) {
                let now = |one: &&Planned| (one.at_ms..one.until_ms).contains(&moment);
                let mut away: Vec<_> = planned
                    .iter()
                    .filter(now)
                    .flat_map(|one| {
                        let mut kinds = one.fault.occupies();
                        kinds.dedup();
                        kinds
                    })
                    .collect();
                let all = away.len();
                away.sort_unstable();
                away.dedup();
                assert_eq!(all, away.len(), "seed {seed} at {moment} ms: {planned:?}");
            }
        }
    }

    #[test]
    fn what_the_machine_cannot_do_is_never_planned() {
        for seed in 0..500 {
            for one in plan(seed, 30_000, Abilities::default()) {
                let named = one.fault.to_string();
                for word in ["isolate", "cut", "lose", "eio", "full"] {
                    assert!(!named.starts_with(word), "seed {seed}: {named}");
                }
            }
        }
    }

    #[test]
    fn every_fault_is_drawn_by_some_seed() {
        let all: Vec<_> = (0..300)
            .flat_map(|seed| plan(seed, 30_000, ALL))
            .map(|one| one.fault.to_string())
            .collect();
        for word in [
            "kill broker",
            "kill node",
            "kill proxy",
            "kill etcd",
            "pause broker",
            "pause node",
            "pause etcd-leader",
            "isolate",
            "cut",
            "lose",
            "eio",
            "full",
            "wipe",
            "flip",
            "no etcd",
            "power cut",
        ] {
            assert!(all.iter().any(|fault| fault.starts_with(word)), "{word}");
        }
    }
}
