//! What all parts of one simulation share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use forebay_history::{Event, History, Value};
use forebay_meta::keys;
use forebay_meta::model::Partition;
use forebay_meta::store::SimulatedStore;
use forebay_runtime::clock::Clock;
use forebay_runtime::random::{Random, SeededRandom};
use forebay_runtime::tasks::Tasks;
use forebay_storage_node::StorageNode;
use parking_lot::Mutex;

use crate::disks::Disks;
use crate::host::{Host, HostId, Running};
use crate::network::Network;
use crate::objects::Objects;
use crate::retention::{Allowed, Limit};
use crate::scenes::Scene;
use crate::time::SimClock;

/// The size of a simulated cluster and its load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Storage nodes.
    pub nodes: u32,
    /// Brokers, which are controllers too.
    pub brokers: u32,
    /// Proxies.
    pub proxies: u32,
    /// Partitions of the topic that is written.
    pub partitions: u32,
    /// Producers.
    pub producers: u32,
    /// Readers at the tail.
    pub readers: u32,
    /// Simulated seconds of load and faults.
    pub seconds: u64,
    /// Files of one storage node, in MiB.
    pub disk_budget_mib: u64,
    /// Recent batches kept by a broker.
    pub tail_cache_bytes: u64,
    /// Nothing is broken.
    pub calm: bool,
    /// Sealed segments go to the object store.
    pub offload: bool,
    /// At the end the metadata store is put back to the middle of the run: everybody must refuse, until an
    /// operator raises the incarnation.
    pub restore: bool,
    /// At the end a segment loses two of its three replicas for good, and an operator ends it by force.
    pub quorum_lost: bool,
    /// What the topic keeps, where there is such a limit.
    pub retention: Option<Limit>,
    /// How long garbage of the object store stays.
    pub garbage_grace: Duration,
    /// How often it is looked for.
    pub garbage_every: Duration,
    /// Only this scene is played, again and again; where none is given, the seed says which.
    pub scene: Option<Scene>,
}

impl Options {
    /// The size of a seed's cluster: half of them have an object store and little disk.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let random = SeededRandom::stream(seed, 0x512e);
        let offload = random.range(0, 2) == 0;
        let mut options = Self {
            nodes: u32::try_from(random.range(3, 6)).unwrap_or(4),
            brokers: u32::try_from(random.range(2, 4)).unwrap_or(3),
            partitions: u32::try_from(random.range(1, 5)).unwrap_or(3),
            producers: u32::try_from(random.range(1, 4)).unwrap_or(3),
            disk_budget_mib: if offload { 32 } else { 256 },
            offload,
            restore: random.range(0, 8) == 0,
            ..Self::default()
        };
        options.garbage_every = Duration::from_millis(random.range(100, 1_500));
        options.garbage_grace = Duration::from_millis(random.range(50, 600));
        let (lost, limited) = (random.range(0, 8) == 0, random.range(0, 3) == 0);
        let most = random.range(256 << 10, 6 << 20);
        if options.restore {
            // A backup is of use as long as objects stay that it names.
            options.garbage_grace = Duration::from_secs(24 * 3600);
        } else {
            options.quorum_lost = lost;
            let limit = match random.range(0, 2) {
                0 => Limit::Bytes(most),
                _ => Limit::Time(Duration::from_millis(random.range(1_000, 15_000))),
            };
            options.retention = limited.then_some(limit);
        }
        options
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 4,
            brokers: 3,
            proxies: 2,
            partitions: 3,
            producers: 3,
            readers: 2,
            seconds: 30,
            disk_budget_mib: 256,
            tail_cache_bytes: 64 << 10,
            calm: false,
            offload: false,
            restore: false,
            quorum_lost: false,
            retention: None,
            garbage_grace: Duration::from_millis(500),
            garbage_every: Duration::from_secs(2),
            scene: None,
        }
    }
}

/// What happened to processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Ends {
    /// Processes that ended by themselves.
    pub exits: u64,
    /// Starts that were refused.
    pub refusals: u64,
}

/// See the module. Clones are handles to the same simulation.
#[derive(Clone)]
pub struct World {
    /// What everything follows from.
    pub seed: u64,
    /// Its size.
    pub options: Arc<Options>,
    /// Right time.
    pub clock: Arc<SimClock>,
    /// For decisions of the simulation itself.
    pub random: Arc<SeededRandom>,
    /// Between all hosts.
    pub network: Network,
    /// Metadata.
    pub store: SimulatedStore,
    /// Disks of storage nodes.
    pub disks: Disks,
    /// Where sealed segments go.
    pub objects: Objects,
    shared: Arc<Mutex<Shared>>,
}

/// Whether somebody is about to end a host with a copied disk.
struct Retiring(bool);

/// A process that runs.
struct Up {
    clock: SimClock,
    node: Option<StorageNode>,
}

#[derive(Default)]
struct Shared {
    history: History,
    up: BTreeMap<HostId, Up>,
    slow_disks: BTreeMap<HostId, u64>,
    refusals: Vec<String>,
    ends: Ends,
    /// Hosts with copies of other hosts' disks.
    copies: BTreeMap<HostId, (Host, Retiring)>,
    allowed: Allowed,
}

impl World {
    /// A world of one seed. Call within a paused runtime.
    #[must_use]
    pub fn new(seed: u64, options: Options) -> Self {
        let clock = Arc::new(SimClock::new());
        let of_store: Arc<dyn Clock> = clock.clone();
        let network = Network::new(seed);
        Self {
            seed,
            options: Arc::new(options),
            random: Arc::new(SeededRandom::stream(seed, 0xfab)),
            objects: Objects::new(seed, network.clone()),
            network,
            store: SimulatedStore::new(of_store, Tasks::new("etcd")),
            clock,
            disks: Disks::new(),
            shared: Arc::default(),
        }
    }

    /// Notes an event.
    pub fn note(&self, event: Event) {
        let now = self.clock.monotonic();
        let at = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let mut shared = self.shared.lock();
        if let Some(limit) = self.options.retention
            && let Some(allowed) = shared.allowed.on_event(&event, limit, now)
        {
            shared.history.push(at, allowed);
        }
        shared.history.push(at, event);
    }

    /// How long a record is that is noted next.
    pub fn note_len(&self, value: Value, bytes: u64) {
        self.shared.lock().allowed.note_len(value, bytes);
    }

    /// All partitions' records, now. A damaged one raises an alarm where chains are watched.
    #[must_use]
    pub fn records(&self) -> Vec<Partition> {
        let entries = self.store.entries(keys::PARTITIONS);
        let decoded = entries.iter().map(|entry| Partition::decode(&entry.value));
        decoded.filter_map(Result::ok).collect()
    }

    /// A host with a copied disk is there.
    pub fn add_copy(&self, copy: Host) {
        self.shared.lock().copies.insert(copy.id, (copy, Retiring(false)));
    }

    /// It is not any more.
    pub fn remove_copy(&self, copy: HostId) {
        self.shared.lock().copies.remove(&copy);
    }

    /// Whether there are hosts with copied disks.
    #[must_use]
    pub fn has_copies(&self) -> bool {
        !self.shared.lock().copies.is_empty()
    }

    /// Hosts with copied disks that nobody has asked for yet: whoever does ends them.
    #[must_use]
    pub fn retiring(&self) -> Vec<Host> {
        let mut shared = self.shared.lock();
        let copies = shared.copies.values_mut();
        let new = copies
            .filter_map(|(host, retiring)| (!std::mem::replace(&mut retiring.0, true)).then(|| host.clone()));
        new.collect()
    }

    /// Everything noted.
    #[must_use]
    pub fn history(&self) -> History {
        self.shared.lock().history.clone()
    }

    /// A process runs.
    pub fn up(&self, host: HostId, running: &Running) {
        let up = Up {
            clock: running.clock.clone(),
            node: running.node.clone(),
        };
        self.shared.lock().up.insert(host, up);
    }

    /// It does no longer.
    pub fn down(&self, host: HostId) {
        // Dropped behind the lock.
        let gone = self.shared.lock().up.remove(&host);
        drop(gone);
    }

    /// Which processes run.
    #[must_use]
    pub fn running(&self) -> Vec<HostId> {
        self.shared.lock().up.keys().copied().collect()
    }

    /// Storage nodes that run, by number.
    #[must_use]
    pub fn storage_nodes(&self) -> Vec<(u32, StorageNode)> {
        let shared = self.shared.lock();
        let nodes = shared
            .up
            .iter()
            .filter_map(|(host, up)| Some((host.number, up.node.clone()?)));
        nodes.collect()
    }

    /// Makes the wall clock of a process jump, where no limit goes by it.
    pub fn jump_clock(&self, host: HostId, by_ms: i64) {
        if matches!(self.options.retention, Some(Limit::Time(_))) {
            return;
        }
        if let Some(up) = self.shared.lock().up.get(&host) {
            up.clock.jump(by_ms);
        }
    }

    /// Makes a host's disk so many times slower.
    pub fn slow_disk(&self, host: HostId, times: u64) {
        self.shared.lock().slow_disks.insert(host, times);
    }

    /// How many times slower a host's disk is.
    #[must_use]
    pub fn disk_slowness(&self, host: HostId) -> u64 {
        self.shared.lock().slow_disks.get(&host).copied().unwrap_or(1)
    }

    /// A process ended by itself.
    pub fn count_exit(&self) {
        self.shared.lock().ends.exits += 1;
    }

    /// A start was refused.
    pub fn refused(&self, host: HostId, why: &str) {
        let mut shared = self.shared.lock();
        shared.ends.refusals += 1;
        let text = format!("{host}: {why}");
        if shared.refusals.last() != Some(&text) {
            shared.refusals.push(text);
        }
    }

    /// Counts of ends, and why starts were refused.
    #[must_use]
    pub fn ends(&self) -> (Ends, Vec<String>) {
        let shared = self.shared.lock();
        (shared.ends, shared.refusals.clone())
    }

    /// The zone of a host: there are three.
    #[must_use]
    pub fn zone(&self, host: HostId) -> String {
        format!("z{}", host.process() % 3)
    }
}
