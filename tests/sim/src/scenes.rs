//! Trouble with a plan: short stories in which whom it hits, and when, follows from what the cluster is
//! doing at that moment. Each leads to where one rule of the protocol is all that stands between a
//! record and its loss; random faults get there once in thousands of runs.
//!
//! | scene | what |
//! |-------|------|
//! | divided | an owner is cut off with frames on their way and goes on; another takes over from other replicas; nodes restart; the first one is heard again |
//! | late acknowledgement | replicas that were given up in an ensemble change acknowledge while the change's answer is lost and nobody has the new segment; then the owner ends |
//! | witness | of three replicas one lags, one loses its disk or rots, and one is not heard by the next owner |
//! | full disk | some or all nodes have next to no room for a while |
//! | late link | a broker's object is written, what it tells the metadata store is late, and garbage is collected meanwhile |
//! | copied disk | a storage node's disk is copied, and a process with the copy is started: beside the node, at the same time as it, or in its place with an old copy |
//! | cut at a change | at the moment at which a new segment is linked its owner ends and all its machines lose power |
//!
//! All of it is within what the protocol survives: whatever a scene does, nothing may be lost. What it
//! looks at is the simulation's own view of the records; what it does not find it leaves out.

mod disks;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use forebay_meta::keys;
use forebay_meta::model::Partition;
use forebay_meta::store::WatchKind;
use forebay_proto::stored::ControllerRecord;
use forebay_record::{NodeId, PartitionId, SegmentId};
use forebay_runtime::random::{Random, SeededRandom};
use forebay_tier::ObjectName;

use crate::host::{Harm, Host, HostId, Order, Role, folder};
use crate::network::STORE;
use crate::world::World;

/// How often a scene looks whether it can go on.
const LOOK: Duration = Duration::from_millis(5);
/// A takeover is waited for so long.
const TAKEOVER: Duration = Duration::from_secs(8);

/// One of the stories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scene {
    /// See the module.
    Divided,
    /// See the module.
    LateAck,
    /// See the module.
    Witness,
    /// See the module.
    CutAtChange,
    /// See the module.
    FullDisk,
    /// See the module.
    LateLink,
    /// See the module.
    CopiedDisk,
}

/// All of them.
const ALL: [Scene; 7] = [
    Scene::Divided,
    Scene::LateAck,
    Scene::Witness,
    Scene::CutAtChange,
    Scene::FullDisk,
    Scene::LateLink,
    Scene::CopiedDisk,
];

/// So many of them are short: several have room in a run.
const SHORT: usize = 5;

impl Scene {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Divided => "divided",
            Self::LateAck => "late-ack",
            Self::Witness => "witness",
            Self::CutAtChange => "cut-at-change",
            Self::FullDisk => "full-disk",
            Self::LateLink => "late-link",
            Self::CopiedDisk => "copied-disk",
        }
    }
}

impl std::str::FromStr for Scene {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = ALL.iter().find(|scene| scene.name() == name);
        found.copied().ok_or_else(|| {
            let names: Vec<_> = ALL.iter().map(|scene| scene.name()).collect();
            format!("no scene is called {name:?}: there are {}", names.join(", "))
        })
    }
}

/// What is hit: an owner, and the segment that it writes.
#[derive(Debug, Clone)]
pub struct Target {
    /// Whose segment it is.
    pub partition: PartitionId,
    /// The owner's epoch.
    pub epoch: u32,
    /// Who writes it.
    pub owner: HostId,
    /// The segment.
    pub open: SegmentId,
    /// Hosts of its replicas.
    pub replicas: Vec<HostId>,
}

/// Plays scenes.
pub struct Scenes<'a> {
    world: &'a World,
    hosts: &'a [Host],
    random: SeededRandom,
    /// Which this seed has.
    cast: Vec<Scene>,
}

/// The host of a storage node.
#[must_use]
pub const fn node(id: NodeId) -> HostId {
    HostId {
        role: Role::Storage,
        number: id.0,
    }
}

fn ms(least: u64, most: u64, random: &SeededRandom) -> Duration {
    Duration::from_millis(random.range(least, most))
}

impl<'a> Scenes<'a> {
    /// Scenes for these hosts: none in three of eight seeds, one in as many, in the others all that are short.
    #[must_use]
    pub fn new(world: &'a World, hosts: &'a [Host]) -> Self {
        let random = SeededRandom::stream(world.seed, 0x5ce4e);
        let (short, long) = ALL.split_at(SHORT);
        let cast = match (world.options.scene, random.range(0, 4)) {
            (Some(scene), _) => vec![scene],
            (None, 1) if random.range(0, 2) == 0 => pick(long, &random).into_iter().collect(),
            (None, 0 | 1) => Vec::new(),
            (None, 2) => pick(short, &random).into_iter().collect(),
            (None, _) => short.to_vec(),
        };
        Self {
            world,
            hosts,
            random,
            cast,
        }
    }

    /// Plays one of this seed's scenes. False where it has none.
    pub async fn play(&self, lost: &Cell<bool>) -> bool {
        let Some(scene) = pick(&self.cast, &self.random) else {
            return false;
        };
        tokio::time::sleep(ms(50, 1_500, &self.random)).await;
        let Some(target) = self.target() else {
            return true;
        };
        tracing::info!(target: "sim", ?scene, ?target, "scene");
        match scene {
            Scene::Divided => self.divided(target).await,
            Scene::LateAck => self.late_ack(&target).await,
            Scene::Witness => self.witness(&target, lost).await,
            Scene::CutAtChange => self.cut_at_change(&target).await,
            Scene::FullDisk => self.full_disk().await,
            Scene::LateLink => self.late_link().await,
            Scene::CopiedDisk => self.copied_disk(&target).await,
        }
        self.world.network.unblock_all();
        self.world.network.release_news();
        tracing::info!(target: "sim", ?scene, "scene ends");
        true
    }

    // ---- what there is -----------------------------------------------------------------------

    fn record(&self, partition: PartitionId) -> Option<Partition> {
        let entries = self.world.store.entries(&keys::partition(partition));
        entries
            .first()
            .and_then(|entry| Partition::decode(&entry.value).ok())
    }

    /// A partition that is being written, whose owner is not the controller where that can be had: one that
    /// is cut off would take everybody else for dead.
    #[must_use]
    pub fn target(&self) -> Option<Target> {
        let mut records = self.world.records();
        let leader = self.leader();
        let led = |record: &Partition| record.owner.map(|owner| owner.0) == leader;
        if records.iter().any(|record| !led(record)) {
            records.retain(|record| !led(record));
        }
        let targets: Vec<_> = records
            .iter()
            .filter_map(|record| self.target_of(record))
            .collect();
        pick(&targets, &self.random)
    }

    fn target_of(&self, record: &Partition) -> Option<Target> {
        let open = record.open()?;
        let owner = HostId {
            role: Role::Broker,
            number: record.owner?.0,
        };
        self.world.running().contains(&owner).then(|| Target {
            partition: record.id,
            epoch: record.epoch.0,
            owner,
            open: open.id,
            replicas: open.replicas.iter().map(|(id, _)| node(*id)).collect(),
        })
    }

    /// The broker that is the controller.
    fn leader(&self) -> Option<u32> {
        let entries = self.world.store.entries(keys::CONTROLLER);
        let record: ControllerRecord = forebay_meta::record::decode(&entries.first()?.value).ok()?;
        let host = record.id.split("broker-").nth(1)?;
        host.split(':').next()?.parse().ok()
    }

    fn all(&self, role: Role) -> Vec<HostId> {
        let hosts = self.hosts.iter().map(|host| host.id);
        hosts.filter(|id| id.role == role).collect()
    }

    fn others(&self, owner: HostId) -> Vec<HostId> {
        let mut brokers = self.all(Role::Broker);
        brokers.retain(|id| *id != owner);
        brokers
    }

    fn order(&self, id: HostId, order: Order) {
        if let Some(host) = self.hosts.iter().find(|host| host.id == id) {
            host.order(order);
        }
    }

    fn chance(&self, one_in: u64) -> bool {
        self.random.range(0, one_in) == 0
    }

    fn apart(&self, one: HostId, other: HostId) {
        let (one, other) = (one.to_string(), other.to_string());
        self.world.network.block(&one, &other);
        self.world.network.block(&other, &one);
    }

    fn together(&self, one: HostId, other: HostId) {
        let (one, other) = (one.to_string(), other.to_string());
        self.world.network.unblock(&one, &other);
        self.world.network.unblock(&other, &one);
    }

    async fn until(&self, most: Duration, mut is: impl FnMut() -> bool) -> bool {
        let begin = tokio::time::Instant::now();
        while !is() {
            if begin.elapsed() >= most {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        true
    }

    /// Waits until somebody else owns the partition and has ended what the target wrote.
    async fn taken_over(&self, target: &Target, most: Duration) -> bool {
        let taken = self
            .until(most, || {
                self.record(target.partition).is_some_and(|record| {
                    let open = record.open().map(|segment| segment.id);
                    record.epoch.0 > target.epoch && open.is_none_or(|id| id.epoch.0 > target.epoch)
                })
            })
            .await;
        tracing::info!(target: "sim", taken, "another owner is waited for");
        taken
    }

    // ---- scenes ------------------------------------------------------------------------------

    async fn divided(&self, mut target: Target) {
        let (network, owner) = (&self.world.network, target.owner);
        let me = owner.to_string();
        let mut late = BTreeSet::new();
        if !self.chance(3) {
            late = self.late_nodes(&target);
            late.iter().for_each(|id| network.block(&me, &id.to_string()));
            let begun = target.open;
            let mut found = None;
            self.until(Duration::from_millis(3_500), || {
                found = self
                    .record(target.partition)
                    .and_then(|record| self.target_of(&record))
                    .filter(|now| {
                        now.owner == owner
                            && now.open != begun
                            && late.iter().any(|id| now.replicas.contains(id))
                    });
                found.is_some()
            })
            .await;
            if let Some(found) = found {
                target = found;
            }
        }
        // Nobody but clients and the metadata store hears it; what is on its way to nodes stays there.
        let spared: Vec<HostId> = target
            .replicas
            .iter()
            .copied()
            .filter(|id| !late.contains(id))
            .collect();
        let silent = if self.chance(4) {
            None
        } else {
            pick(&spared, &self.random)
        };
        let reaches_silent = silent.is_some() && self.chance(2);
        if !self.chance(3) {
            network.withhold_news(&me, keys::WISHES);
        }
        self.others(owner)
            .into_iter()
            .for_each(|other| self.apart(owner, other));
        for id in self.all(Role::Storage) {
            if Some(id) == silent {
                self.others(owner)
                    .into_iter()
                    .for_each(|other| self.apart(id, other));
            }
            if Some(id) != silent || !reaches_silent {
                self.apart(owner, id);
            }
        }
        self.taken_over(&target, TAKEOVER).await;
        tokio::time::sleep(ms(0, 4_000, &self.random)).await;
        if self.chance(2) {
            self.restart_nodes().await;
        }
        // Those that would tell it that it is over are heard last.
        let told: Vec<HostId> = if self.chance(4) {
            Vec::new()
        } else if late.is_empty() {
            pick(&target.replicas, &self.random).into_iter().collect()
        } else {
            spared.into_iter().filter(|id| Some(*id) != silent).collect()
        };
        for id in self.all(Role::Storage) {
            if !told.contains(&id) {
                self.together(owner, id);
            }
        }
        tokio::time::sleep(ms(200, 2_500, &self.random)).await;
    }

    /// Nodes that will lack the first frame of the next segment: those that the present one is not on, and
    /// at most one that it is on, so that it still commits.
    fn late_nodes(&self, target: &Target) -> BTreeSet<HostId> {
        let nodes = self.all(Role::Storage);
        let (inside, outside): (Vec<_>, Vec<_>) =
            nodes.into_iter().partition(|id| target.replicas.contains(id));
        let mut late: BTreeSet<_> = outside.into_iter().take(2).collect();
        if late.len() < 2 && (late.is_empty() || self.chance(2)) {
            late.extend(pick(&inside, &self.random));
        }
        late
    }

    /// Some of the storage nodes restart, most with their machine; waits until they run again.
    async fn restart_nodes(&self) {
        let down = ms(50, 400, &self.random);
        for id in self.all(Role::Storage) {
            if !self.chance(4) {
                let harm = if self.chance(3) { Harm::None } else { Harm::Power };
                self.order(id, Order::Kill { harm, down });
            }
        }
        tokio::time::sleep(down + Duration::from_millis(50)).await;
        let all = self.all(Role::Storage);
        self.until(Duration::from_secs(3), || {
            let running = self.world.running();
            all.iter().all(|id| running.contains(id))
        })
        .await;
        tokio::time::sleep(ms(0, 500, &self.random)).await;
    }

    async fn late_ack(&self, target: &Target) {
        let (network, owner) = (&self.world.network, target.owner);
        let me = owner.to_string();
        let [a, b, rest @ ..] = target.replicas.as_slice() else {
            return;
        };
        let given_up = [*a, *b];
        // They have the frames, and the owner does not know it.
        given_up.iter().for_each(|id| network.block(&id.to_string(), &me));
        tokio::time::sleep(ms(20, 400, &self.random)).await;
        // Nobody gets the next segment, and the answer to its link is lost.
        for id in self.all(Role::Storage) {
            if !given_up.contains(&id) {
                network.block(&me, &id.to_string());
            }
        }
        if !self.chance(4) {
            network.block(STORE, &me);
        }
        for id in given_up {
            network.sever(&me, &id.to_string());
            network.unblock(&id.to_string(), &me);
        }
        tokio::time::sleep(ms(300, 2_500, &self.random)).await;
        self.order(
            owner,
            Order::Kill {
                harm: Harm::None,
                down: ms(2_000, 5_000, &self.random),
            },
        );
        // They may have got it as replicas that fill the set; the next owner does without them.
        for id in given_up {
            self.others(owner)
                .into_iter()
                .for_each(|other| self.apart(id, other));
        }
        let some_other = self.all(Role::Storage).len() > 3 && !rest.is_empty();
        let most = if some_other { 5_000 } else { 1_000 };
        self.taken_over(target, Duration::from_millis(most)).await;
    }

    async fn witness(&self, target: &Target, lost: &Cell<bool>) {
        let (network, owner) = (&self.world.network, target.owner);
        let mut replicas = target.replicas.clone();
        let mut next = || {
            let at = usize::try_from(self.random.range(0, replicas.len().max(1) as u64)).unwrap_or_default();
            (at < replicas.len()).then(|| replicas.swap_remove(at))
        };
        let (Some(harmed), Some(lagging), Some(silent)) = (next(), next(), next()) else {
            return;
        };
        self.world.disks.mark(&folder(harmed.number));
        network.block(&owner.to_string(), &lagging.to_string());
        tokio::time::sleep(ms(100, 1_500, &self.random)).await;
        let harm = match self.random.range(0, 5) {
            0 | 1 if !lost.replace(true) => Harm::Wipe,
            2 | 3 if !lost.replace(true) => Harm::Rot,
            _ => Harm::Power,
        };
        self.others(owner)
            .into_iter()
            .for_each(|other| self.apart(silent, other));
        let down = ms(50, 600, &self.random);
        self.order(harmed, Order::Kill { harm, down });
        let harm = Harm::None;
        let down = ms(4_000, 8_000, &self.random);
        self.order(owner, Order::Kill { harm, down });
        // With the disk's loss it ends only once the silent one is heard.
        let most = ms(3_000, 6_000, &self.random);
        self.taken_over(target, most).await;
    }

    async fn cut_at_change(&self, target: &Target) {
        let takeover = self.chance(2);
        if !self.chance(3) {
            let times = self.random.range(5, 100);
            for id in self.all(Role::Storage) {
                self.world.slow_disk(id, times);
            }
        }
        let mut changes = self
            .world
            .store
            .follow(keys::PARTITIONS, self.world.store.revision());
        let down = ms(50, 2_000, &self.random);
        if takeover {
            let harm = Harm::None;
            self.order(target.owner, Order::Kill { harm, down });
        }
        let linked = async {
            while let Some(Ok(batch)) = changes.next().await {
                for event in batch.events {
                    let WatchKind::Put(entry) = &event.kind else {
                        continue;
                    };
                    let Ok(record) = Partition::decode(&entry.value) else {
                        continue;
                    };
                    let new = record.open().is_some_and(|open| open.id != target.open);
                    let whose = takeover == (record.epoch.0 > target.epoch);
                    if record.id == target.partition && new && whose {
                        return Some(record);
                    }
                }
            }
            None
        };
        let found = tokio::time::timeout(TAKEOVER, linked).await.ok().flatten();
        if let Some(target) = found.and_then(|record| self.target_of(&record)) {
            tracing::info!(target: "sim", segment = %target.open, "cut at its link");
            let harm = Harm::Power;
            self.order(target.owner, Order::Kill { harm, down });
            for id in self.all(Role::Storage) {
                self.order(id, Order::Kill { harm, down });
            }
            tokio::time::sleep(down).await;
        }
        for id in self.all(Role::Storage) {
            self.world.slow_disk(id, 1);
        }
    }
}

impl Scenes<'_> {
    /// Between an object and its first mention in a record the object looks like garbage; only what its
    /// session promises keeps it.
    async fn late_link(&self) {
        let before = self.world.objects.names();
        let mut found = None;
        self.until(Duration::from_secs(6), || {
            let names = self.world.objects.names();
            found = names.difference(&before).find_map(|name| self.writer(name));
            found.is_some()
        })
        .await;
        let Some(writer) = found.filter(|writer| Some(writer.number) != self.leader()) else {
            return;
        };
        tracing::info!(target: "sim", %writer, "has written an object");
        // Its session stays alive for as long as its renewals are not that late.
        let late = ms(700, 2_100, &self.random);
        self.world.network.delay_store(&writer.to_string(), late);
        tokio::time::sleep(late).await;
    }

    /// The broker whose session gave an object its name, where it lives.
    fn writer(&self, name: &str) -> Option<HostId> {
        let session = ObjectName::parse(name)?.session;
        let entries = self.world.store.entries(keys::BROKERS);
        let entry = entries
            .iter()
            .find(|entry| entry.create_revision.0 == session.0)?;
        let number = keys::broker_of(&entry.key)?.0;
        let role = Role::Broker;
        Some(HostId { role, number })
    }
}

fn pick<T: Clone>(among: &[T], random: &SeededRandom) -> Option<T> {
    let at = usize::try_from(random.range(0, among.len() as u64)).ok()?;
    among.get(at).cloned()
}
