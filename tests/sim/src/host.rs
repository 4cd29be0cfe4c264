//! Processes of the cluster: each on a host of its own, started again by a supervisor when it ends.
//!
//! The roles are put together as the binary does it, on simulated parts. A process ends as in a
//! crash: its tasks are dropped at their next await, its connections end, its disk keeps what a
//! process or a machine leaves behind.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use forebay::server::asking;
use forebay_broker::{Broker, BrokerConfig, Objects, Parts, partition};
use forebay_meta::cluster::{self, ClusterSettings};
use forebay_meta::controller::Controller;
use forebay_meta::session::{self, Session};
use forebay_proto::data::endpoint::{Dialer, Exchange, Listener, ReplicaProtocol};
use forebay_proto::stored::ProxyRecord;
use forebay_proto::v1::broker_server::BrokerServer;
use forebay_proto::v1::storage_node_server::StorageNodeServer;
use forebay_proxy::{Cold, Control, Deps, Proxy, ProxyConfig};
use forebay_record::BrokerId;
use forebay_runtime::admin_http::Readiness;
use forebay_runtime::clock::Clock;
use forebay_runtime::config::{ByteSize, HumanDuration};
use forebay_runtime::execution::{Execution, Pace};
use forebay_runtime::metrics::Metrics;
use forebay_runtime::random::{Random, SeededRandom};
use forebay_runtime::tasks::Tasks;
use forebay_runtime::trace::Tracer;
use forebay_storage_node::disk::Folders;
use forebay_storage_node::{Config as StorageConfig, Environment, Reformat, StorageNode};
use forebay_tier::{
    Bucket, CacheConfig, Collector, GcOptions, Manifests, ObjectStoreConfig, OpenError, Reader, StoreError,
};
use tokio::sync::mpsc;
use tonic::service::RoutesBuilder;

use crate::network::{DATA, name};
use crate::time::SimClock;
use crate::world::World;

/// Port of gRPC.
pub const GRPC: u16 = 7450;
/// Life of a session without a sign of life.
const SESSION_TTL: Duration = Duration::from_secs(3);

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Keeps segments.
    Storage,
    /// Owns partitions, and is a candidate for the controller.
    Broker,
    /// Serves clients.
    Proxy,
}

/// A host by role and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostId {
    /// What runs there.
    pub role: Role,
    /// From 1; above [`COPIES`] that of a host with a copy of another one's disk.
    pub number: u32,
}

/// Numbers of hosts with copied disks begin behind this one.
const COPIES: u32 = 100;

impl HostId {
    /// The host that gets a copy of this one's disk.
    #[must_use]
    pub const fn copy(self) -> Self {
        Self {
            role: self.role,
            number: COPIES + self.number,
        }
    }

    /// The id that its process has: that of the original, for a copy.
    #[must_use]
    pub const fn process(self) -> u32 {
        self.number % COPIES
    }
}

impl std::fmt::Display for HostId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let role = match self.role {
            Role::Storage => "node",
            Role::Broker => "broker",
            Role::Proxy => "proxy",
        };
        let copy = if self.number > COPIES { "-copy" } else { "" };
        write!(f, "{role}-{}{copy}", self.process())
    }
}

/// What becomes of a storage node's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// It has all that was written.
    None,
    /// The machine lost power: what was not synced is there in part.
    Power,
    /// It is lost, and an empty one takes its place.
    Wipe,
    /// One bit of the journal is another one.
    Rot,
}

/// What is done to a process.
#[derive(Debug, Clone, Copy)]
pub enum Order {
    /// Ends it at once, and starts it again after so long.
    Kill {
        /// What becomes of its disk.
        harm: Harm,
        /// Until it is started again.
        down: Duration,
    },
    /// Stops it in order, and starts it again after so long.
    Stop {
        /// Until it is started again.
        down: Duration,
    },
    /// Ends it at once, and does not start it again.
    Halt,
    /// Starts what was halted.
    Go,
}

/// A host, and the way to its supervisor.
#[derive(Debug, Clone)]
pub struct Host {
    /// Which.
    pub id: HostId,
    orders: mpsc::UnboundedSender<Order>,
}

impl Host {
    /// Starts a host's supervisor.
    #[must_use]
    pub fn start(world: &World, id: HostId) -> Self {
        let (orders, received) = mpsc::unbounded_channel();
        let world = world.clone();
        tokio::spawn(async move { supervise(world, id, received).await });
        Self { id, orders }
    }

    /// Does something to its process.
    pub fn order(&self, order: Order) {
        // The supervisor ends with the simulation.
        let _ = self.orders.send(order);
    }
}

/// The folder of a storage node.
#[must_use]
pub fn folder(number: u32) -> PathBuf {
    Path::new("/disks").join(format!("node-{number}"))
}

async fn supervise(world: World, id: HostId, mut orders: mpsc::UnboundedReceiver<Order>) {
    let mut boot = 0_u64;
    // A reformat that was begun has to be repeated until it is done.
    let mut reformatting = false;
    loop {
        boot += 1;
        let tasks = Tasks::new(id.to_string());
        let started = start(&world, id, boot, &tasks);
        // Cancel safety: what a start left unfinished ends with its tasks.
        let order = tokio::select! {
            started = started => match started {
                Ok(running) => {
                    tracing::info!(target: "sim", host = %id, boot, "process runs");
                    world.up(id, &running);
                    let order = tokio::select! {
                        order = orders.recv() => order,
                        reason = tasks.shutdown_requested() => {
                            tracing::info!(target: "sim", host = %id, %reason, "process ends by itself");
                            world.count_exit();
                            Some(Order::Kill {
                                harm: Harm::None,
                                down: Duration::from_millis(500),
                            })
                        }
                    };
                    world.down(id);
                    if let Some(Order::Stop { .. }) = order {
                        running.stop(world.clock.as_ref()).await;
                    }
                    order
                }
                Err(error) => {
                    tracing::info!(target: "sim", host = %id, error = format!("{error:#}"), "process does not start");
                    world.refused(id, &format!("{error:#}"));
                    // What a start that failed may have locked.
                    tasks.abort();
                    if id.role == Role::Storage
                        && (reformatting || world.disks.get(&folder(id.number)).is_none())
                        && boot > 1
                    {
                        let operator = Tasks::new(format!("operator of {id}"));
                        reformatting = !reformat(&world, id, &operator).await;
                        operator.abort();
                    }
                    Some(Order::Kill { harm: Harm::None, down: Duration::from_secs(1) })
                }
            },
            order = orders.recv() => order,
        };
        let Some(order) = order else { return };
        tracing::info!(target: "sim", host = %id, ?order, "process ended");
        tasks.abort();
        world.network.cut(&id.to_string());
        let mut halted = matches!(order, Order::Halt);
        let (harm, down) = match order {
            Order::Kill { harm, down } => (harm, down),
            Order::Stop { down } => (Harm::None, down),
            Order::Halt | Order::Go => (Harm::None, Duration::ZERO),
        };
        if id.role == Role::Storage {
            damage(&world, id, harm);
        }
        tasks.wait().await;
        tokio::time::sleep(down).await;
        // Other orders for a process that is not there are void.
        while let Ok(order) = orders.try_recv() {
            halted = matches!(order, Order::Halt) || (halted && !matches!(order, Order::Go));
        }
        while halted {
            match orders.recv().await {
                Some(order) => halted = !matches!(order, Order::Go),
                None => return,
            }
        }
    }
}

/// What a crash leaves of a disk.
fn damage(world: &World, id: HostId, harm: Harm) {
    let folder = folder(id.number);
    match harm {
        Harm::None => world.disks.process_died(&folder),
        Harm::Power => world.disks.power_lost(&folder, world.random.u64()),
        Harm::Wipe => world.disks.put(&folder, None),
        Harm::Rot => {
            world.disks.process_died(&folder);
            if let Some(at) = world.disks.flip_new_bit(&folder, &world.random) {
                tracing::info!(target: "sim", host = %id, at, "a bit is flipped");
            }
        }
    }
}

/// What an operator does about a node whose disk is lost. Says whether it is done.
async fn reformat(world: &World, id: HostId, tasks: &Tasks) -> bool {
    let clock: Arc<dyn Clock> = world.clock.clone();
    let host = id.to_string();
    let store = world
        .store
        .client(world.network.wire(&host), tasks.group("operator"));
    let config = StorageConfig {
        data_dir: folder(id.number),
        node_id: id.number,
        journal_file_bytes: ByteSize::mib(1),
        ..StorageConfig::default()
    };
    let place = (
        Arc::new(world.disks.clone()) as Arc<dyn Folders>,
        Execution::Simulated(Arc::new(AtOnce)),
        clock,
    );
    let done = match Reformat::begin_in(&config, 1, &*store, place).await {
        Ok(reformat) => reformat.finish(&*store).await,
        Err(error) => Err(error),
    };
    match done {
        Ok(generation) => {
            tracing::info!(target: "sim", host = %id, %generation, "reformatted");
            true
        }
        Err(error) => {
            tracing::info!(target: "sim", host = %id, %error, "not reformatted yet");
            false
        }
    }
}

/// Work that takes no time.
struct AtOnce;

impl Pace for AtOnce {
    fn next(&self) -> Duration {
        Duration::ZERO
    }
}

/// What a process consists of; dropped, it is gone.
pub struct Running {
    /// Of a storage host.
    pub node: Option<StorageNode>,
    /// Of a broker host.
    pub broker: Option<Broker>,
    controller: Option<Controller>,
    proxy: Option<(Proxy, Session)>,
    /// Its wall clock can be made wrong.
    pub clock: SimClock,
}

impl Running {
    async fn stop(mut self, clock: &dyn Clock) {
        if let Some(controller) = self.controller.take() {
            controller.shutdown().await;
        }
        if let Some((proxy, session)) = self.proxy.take() {
            proxy.shutdown().await;
            if let Err(error) = session.close().await {
                tracing::debug!(%error, "the proxy's session was not closed");
            }
        }
        if let Some(broker) = self.broker.take() {
            broker.shutdown(clock, Duration::from_secs(10)).await;
        }
        if let Some(node) = self.node.take() {
            node.shutdown().await;
        }
    }
}

/// How long disks take.
struct DiskPace {
    random: SeededRandom,
    world: World,
    host: HostId,
}

impl Pace for DiskPace {
    fn next(&self) -> Duration {
        let slow = self.world.disk_slowness(self.host);
        Duration::from_micros(self.random.range(80, 400) * slow)
    }
}

async fn start(world: &World, id: HostId, boot: u64, tasks: &Tasks) -> anyhow::Result<Running> {
    let host = id.to_string();
    let stream = u64::from(id.number) << 32 | (id.role as u64) << 48 | boot;
    let random: Arc<dyn Random> = Arc::new(SeededRandom::stream(world.seed, stream));
    let sim_clock = world.clock.of_process();
    let clock: Arc<dyn Clock> = Arc::new(sim_clock.clone());
    let store = world
        .store
        .client(world.network.wire(&host), tasks.group("metadata"));
    let settings = ClusterSettings {
        cluster_id: None,
        replicas: 3,
        ack_quorum: 2,
    };
    let cluster = cluster::join(&*store, &settings, random.as_ref()).await?;
    let connector = world.network.connector(&host);
    let control = Control::over(Arc::clone(&connector));
    let control_address = format!("http://{host}:{GRPC}");
    let metrics = Metrics::new();
    let readiness = Readiness::new();
    let mut running = Running {
        node: None,
        broker: None,
        controller: None,
        proxy: None,
        clock: sim_clock,
    };
    let objects = if world.options.offload {
        Some(open_objects(world, &host, &cluster.id, &random, &clock, &metrics).await?)
    } else {
        None
    };
    let mut routes = RoutesBuilder::default();
    let binder = world.network.binder();
    let data = name(&host, DATA);
    let data_address = format!("tcp://{host}:{DATA}");
    match id.role {
        Role::Storage => {
            let group = tasks.group("storage");
            let mut listener: Listener<ReplicaProtocol> =
                Listener::bind(&host, Some(&data), &binder, &Exchange::default(), group.clone()).await?;
            let config = StorageConfig {
                data_dir: folder(id.number),
                node_id: id.process(),
                journal_file_bytes: ByteSize::mib(1),
                commit_bytes_max: ByteSize::kib(256),
                disk_budget_bytes: ByteSize::mib(world.options.disk_budget_mib),
                zone: world.zone(id),
                data_address,
                control_address: control_address.clone(),
                trim_grace: HumanDuration::secs(2),
                // Every other seed reads everything back again and again.
                scrub_interval: HumanDuration::secs(if world.seed.is_multiple_of(2) { 5 } else { 21_600 }),
                ..StorageConfig::default()
            };
            let pace = DiskPace {
                random: SeededRandom::stream(world.seed, stream ^ 0xd15c),
                world: world.clone(),
                host: id,
            };
            let environment = Environment {
                cluster_id: cluster.id.clone(),
                incarnation: cluster.incarnation,
                restoring: cluster.restoring,
                meta: Arc::clone(&store),
                bucket: objects.as_ref().map(|objects| objects.bucket.clone()),
                clock: Arc::clone(&clock),
                random: Arc::clone(&random),
                metrics: metrics.clone(),
                tracer: Tracer::off(),
                readiness: readiness.clone(),
                tasks: group.clone(),
                dialer: Dialer::new(Arc::clone(&connector), Exchange::default(), group.clone()),
                folders: Arc::new(world.disks.clone()),
                execution: Execution::Simulated(Arc::new(pace)),
            };
            let node = StorageNode::start(config, environment).await?;
            routes.add_service(StorageNodeServer::new(node.control()));
            let (serving, sessions) = (node.clone(), group.clone());
            group.spawn("accept", async move {
                loop {
                    match listener.accept().await {
                        Ok(link) => {
                            let node = serving.clone();
                            sessions.spawn("session", async move { node.serve(link).await });
                        }
                        Err(error) => {
                            tracing::warn!(%error, "a session was not accepted");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    }
                }
            });
            running.node = Some(node);
        }
        Role::Broker => {
            let group = tasks.group("broker");
            let listener =
                Listener::bind(&host, Some(&data), &binder, &Exchange::default(), group.clone()).await?;
            let config = BrokerConfig {
                id: BrokerId(id.number),
                zone: world.zone(id),
                data_address,
                control_address: control_address.clone(),
                session_ttl: SESSION_TTL,
                tail_cache_bytes: world.options.tail_cache_bytes,
                repair_bytes_per_second: 8 << 20,
                partition: partition::Config {
                    replicas: usize::from(cluster.replicas),
                    ack_quorum: cluster.ack_quorum,
                    repair_after_ms: 4_000,
                    ..partition::Config::default()
                },
            };
            let parts = Parts {
                objects: objects.clone(),
                cluster: cluster.id.clone(),
                incarnation: cluster.incarnation,
                store: Arc::clone(&store),
                nodes: Dialer::new(Arc::clone(&connector), Exchange::default(), group.clone()),
                clock: Arc::clone(&clock),
                random: Arc::clone(&random),
                metrics: metrics.clone(),
                tracer: Tracer::off(),
                tasks: group,
            };
            let broker = Broker::start(config, parts, listener).await?;
            routes.add_service(BrokerServer::new(broker.control()));
            running.broker = Some(broker);
            let controller = Controller::start(
                Arc::clone(&store),
                control_address.clone(),
                Arc::clone(&clock),
                Arc::clone(&random),
                asking::probes(&control, &clock),
                asking::holders(&control),
                asking::balancing(&control, true),
                tasks,
                &metrics,
            );
            if let Some(objects) = &objects {
                let collector = Collector::new(
                    objects.bucket.clone(),
                    Arc::clone(&store),
                    cluster.id.clone(),
                    GcOptions {
                        grace: world.options.garbage_grace,
                        ..GcOptions::default()
                    },
                    Arc::clone(&clock),
                    &metrics,
                );
                collect(collector, &controller, tasks, world.options.garbage_every);
            }
            running.controller = Some(controller);
        }
        Role::Proxy => {}
    }
    if matches!(id.role, Role::Proxy | Role::Broker) {
        let group = tasks.group("proxy");
        let dial = |name: &str| group.group(name);
        let deps = Deps {
            cluster: cluster.id.clone(),
            incarnation: cluster.incarnation,
            meta: Arc::clone(&store),
            fronts: Dialer::new(Arc::clone(&connector), Exchange::default(), dial("fronts")),
            nodes: Dialer::new(Arc::clone(&connector), Exchange::default(), dial("nodes")),
            cold: objects.clone().map(|objects| Cold {
                reader: objects.reader,
                manifests: objects.manifests,
            }),
            control: control.clone(),
            clock: Arc::clone(&clock),
            random: Arc::clone(&random),
            metrics: metrics.clone(),
            tracer: Tracer::off(),
            readiness: readiness.clone(),
            tasks: group.clone(),
        };
        let config = ProxyConfig {
            name: format!("proxy {control_address}"),
            memory_bytes: 64 << 20,
            ..ProxyConfig::default()
        };
        let proxy = Proxy::start(config, deps).await?;
        proxy.add_services(&mut routes);
        if id.role == Role::Proxy {
            let record = ProxyRecord {
                id: host.clone(),
                address: control_address.clone(),
                zone: world.zone(id),
            };
            let session = session::register_proxy(Arc::clone(&store), &record, SESSION_TTL).await?;
            running.proxy = Some((proxy, session));
        }
    }
    let listener = world
        .network
        .bind(&host, GRPC)
        .await
        .with_context(|| format!("{host} cannot listen"))?;
    let router = tonic::transport::Server::builder().add_routes(routes.routes());
    tasks.spawn_critical("grpc", async move {
        router.serve_with_incoming(listener.incoming()).await
    });
    Ok(running)
}

async fn open_objects(
    world: &World,
    host: &str,
    cluster: &str,
    random: &Arc<dyn Random>,
    clock: &Arc<dyn Clock>,
    metrics: &Metrics,
) -> anyhow::Result<Objects> {
    let bucket = Bucket::over(
        world.objects.of_host(host),
        "simulated".to_owned(),
        &ObjectStoreConfig::default(),
        metrics,
        Arc::clone(clock),
    );
    match bucket.check(cluster, random.as_ref()).await {
        Ok(()) | Err(OpenError::Store(StoreError::Unavailable { .. })) => {}
        Err(error) => return Err(error.into()),
    }
    let cache = CacheConfig {
        memory_bytes: ByteSize::mib(1),
        ..CacheConfig::default()
    };
    Ok(Objects {
        reader: Reader::open(bucket.clone(), &cache, metrics).await?,
        manifests: Manifests::new(bucket.clone(), 1 << 20),
        bucket,
        random: Arc::clone(random),
    })
}

/// Collects garbage where the controller leads.
fn collect(mut collector: Collector, controller: &Controller, tasks: &Tasks, every: Duration) {
    let status = controller.subscribe();
    tasks.spawn("garbage", async move {
        loop {
            tokio::time::sleep(every).await;
            if !status.borrow().leader {
                continue;
            }
            match collector.round().await {
                Ok(round) if round.deleted > 0 => {
                    tracing::info!(target: "sim", deleted = round.deleted, "garbage collected");
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(target: "sim", %error, "garbage was not collected"),
            }
        }
    });
}
