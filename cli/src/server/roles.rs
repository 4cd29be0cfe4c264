//! Starts the roles of a process in the order in which they need each other.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use forebay_broker::{Broker, BrokerConfig, Objects, Parts, partition};
use forebay_meta::cluster::Cluster;
use forebay_meta::controller::Controller;
use forebay_meta::session::{self, Session};
use forebay_meta::store::MetaStore;
use forebay_proto::data::endpoint::Listener;
use forebay_proto::stored::ProxyRecord;
use forebay_proto::v1;
use forebay_proto::v1::broker_server::BrokerServer;
use forebay_proto::v1::storage_node_server::StorageNodeServer;
use forebay_proxy::{Cold, Control, Deps, Proxy, ProxyConfig};
use forebay_record::BrokerId;
use forebay_runtime::config::{Layers, effective_toml};
use forebay_runtime::execution::Execution;
use forebay_runtime::grpc::GrpcMetrics;
use forebay_runtime::net::Addr;
use forebay_runtime::trace::Tracer;
use forebay_storage_node::disk::{DirectIo, RealFolders};
use forebay_storage_node::{Config as StorageConfig, Environment, StorageNode};
use forebay_tier::Collector;
use tokio::net::TcpListener;
use tonic::service::RoutesBuilder;
use tonic::transport::server::TcpIncoming;

use super::asking;
use super::config::{Config, Role};
use super::garbage;
use super::process::Process;
use super::running::Running;

/// Life of a proxy's session without a sign of life.
const PROXY_SESSION_TTL: Duration = Duration::from_secs(10);

/// Starts roles as a configuration file, the environment and flags say; their spans go to `tracer`.
///
/// # Errors
/// Where the configuration is wrong, a port is taken, or a role cannot start.
pub async fn start_roles(roles: &[Role], layers: &Layers, tracer: Tracer) -> anyhow::Result<Running> {
    anyhow::ensure!(!roles.is_empty(), "no roles were given");
    let config: Config = layers.load()?;
    start_with(Process::new("forebay", tracer), roles, config, None).await
}

/// Methods of the standard health service, which every process serves.
const HEALTH_METHODS: [&str; 2] = ["grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"];

/// What is known once sockets are bound.
struct Site {
    grpc: TcpListener,
    /// Where other processes find this one's gRPC services.
    control_address: String,
    cluster: Cluster,
    store: Arc<dyn MetaStore>,
    objects: Option<Objects>,
}

pub(super) async fn start_with(
    process: Process,
    roles: &[Role],
    config: Config,
    embedded: Option<&Path>,
) -> anyhow::Result<Running> {
    tracing::info!(roles = %names(roles), config = effective_toml(&config), "starts");
    let admin = bind(config.listen.admin, "listen.admin").await?;
    let grpc = bind(config.listen.grpc, "listen.grpc").await?;
    let (admin_address, grpc_address) = (admin.local_addr()?, grpc.local_addr()?);
    forebay_runtime::process::register(&process.metrics, process.clock.as_ref());
    let servers = process.tasks.group("servers");
    let (metrics, readiness, stop) = (
        process.metrics.clone(),
        process.readiness.clone(),
        servers.token(),
    );
    servers.spawn_critical("admin", async move {
        forebay_runtime::admin_http::serve(admin, metrics, readiness, stop.cancelled_owned()).await
    });
    let store = process.open_store(&config, embedded).await?;
    let cluster = process.join(&config, store.as_ref()).await?;
    anyhow::ensure!(
        !cluster.restoring || roles == [Role::Storage],
        "the metadata store was restored from a backup: only storage nodes run until \
         `forebay metadata raise-incarnation` has finished"
    );
    let control_address = format!("http://{}", advertised(&config, grpc_address));
    let objects = process.open_objects(&config, &cluster).await?;
    let site = Site {
        grpc,
        control_address,
        cluster,
        store,
        objects,
    };
    let control = Control::new();
    let has = |role| roles.contains(&role);

    let storage = if has(Role::Storage) {
        Some(start_storage(&process, &config, &site, &control).await?)
    } else {
        None
    };
    let broker = if has(Role::Broker) {
        Some(start_broker(&process, &config, &site, &control).await?)
    } else {
        None
    };
    // Brokers serve the same produce and fetch as proxies do, by the same code.
    let proxy = if has(Role::Proxy) || has(Role::Broker) {
        let proxy = start_proxy(&process, &config, &site, &control).await?;
        let session = if has(Role::Proxy) {
            Some(register_proxy(&config, &site).await?)
        } else {
            None
        };
        Some((proxy, session))
    } else {
        None
    };
    let controller = has(Role::Controller).then(|| start_controller(&process, &config, &site, &control));
    if let (Some(controller), Some(objects)) = (&controller, &site.objects) {
        let options = garbage::options(config.object_store.gc_grace.get());
        let collector = Collector::new(
            objects.bucket.clone(),
            Arc::clone(&site.store),
            site.cluster.id.clone(),
            options,
            Arc::clone(&process.clock),
            &process.metrics,
        );
        garbage::start(
            &process,
            collector,
            config.object_store.gc_interval.get(),
            controller,
        );
    }

    let mut routes = RoutesBuilder::default();
    if let Some(storage) = &storage {
        routes.add_service(StorageNodeServer::new(storage.control()));
    }
    if let Some(broker) = &broker {
        routes.add_service(BrokerServer::new(broker.control()));
    }
    if let Some((proxy, _)) = &proxy {
        proxy.add_services(&mut routes);
    }
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter
        .set_service_status("", tonic_health::ServingStatus::Serving)
        .await;
    routes.add_service(health);
    // Tools in use speak either version of the reflection service.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    routes.add_service(reflection().build_v1().context("reflection")?);
    routes.add_service(reflection().build_v1alpha().context("reflection")?);
    let methods = v1::methods().into_iter().chain(HEALTH_METHODS.map(str::to_owned));
    let counted = GrpcMetrics::new(&process.metrics, Arc::clone(&process.clock), methods)
        .around(routes.routes().into_axum_router());
    let stop = servers.token();
    // The server's own switch for this does not reach sockets that it is given: without it small
    // answers wait for the acknowledgement of the ones before, 40 ms at a time.
    let incoming = TcpIncoming::from(site.grpc).with_nodelay(Some(true));
    let router = forebay_proxy::tune(tonic::transport::Server::builder()).add_routes(counted.into());
    servers.spawn_critical("grpc", async move {
        router
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await
    });
    Ok(Running {
        grpc: grpc_address,
        admin: admin_address,
        clock: process.clock,
        metrics: process.metrics,
        tasks: process.tasks,
        servers,
        store: site.store,
        controller,
        proxy,
        broker,
        storage,
    })
}

fn names(roles: &[Role]) -> String {
    roles
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

async fn bind(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {key} = {address}"))
}

/// `host:port` under which others reach a bound address.
fn advertised(config: &Config, bound: SocketAddr) -> String {
    match advertised_host(config) {
        Some(host) if host.contains(':') => format!("[{host}]:{}", bound.port()),
        Some(host) => format!("{host}:{}", bound.port()),
        None => bound.to_string(),
    }
}

/// The host that others reach; an IPv6 address without its brackets.
fn advertised_host(config: &Config) -> Option<&str> {
    let host = config.listen.advertised_host.as_deref()?;
    Some(host.trim_start_matches('[').trim_end_matches(']'))
}

/// The same for an address of the data protocol.
fn advertised_data(config: &Config, bound: &str) -> String {
    match (bound.parse::<Addr>(), advertised_host(config)) {
        (Ok(Addr::Tcp { port, .. }), Some(host)) => Addr::tcp(host, port).to_string(),
        _ => bound.to_owned(),
    }
}

fn data_address(key: &str, value: &str) -> anyhow::Result<Option<Addr>> {
    // Standalone roles meet inside the process and need no socket.
    if value.is_empty() {
        return Ok(None);
    }
    let address = value
        .parse()
        .with_context(|| format!("{key} = \"{value}\" is no address"))?;
    Ok(Some(address))
}

async fn start_storage(
    process: &Process,
    config: &Config,
    site: &Site,
    control: &Control,
) -> anyhow::Result<StorageNode> {
    let section = &config.storage;
    let address = data_address("storage.data_listen", &section.data_listen)?;
    let tasks = process.tasks.group("storage");
    let name = format!("node-{}", section.id);
    let mut listener = Listener::bind(
        &name,
        address.as_ref(),
        &process.connector,
        &process.nodes,
        tasks.clone(),
    )
    .await
    .with_context(|| format!("cannot listen on storage.data_listen = {}", section.data_listen))?;
    let data_address = advertised_data(config, &listener.address()?);
    listener.advertise(data_address.clone());
    let node_config = StorageConfig {
        data_dir: section.data_dir.clone(),
        node_id: section.id,
        journal_file_bytes: section.journal_file_bytes,
        commit_bytes_max: section.commit_bytes_max,
        direct_io: if section.direct_io {
            DirectIo::Auto
        } else {
            DirectIo::Off
        },
        disk_budget_bytes: section.disk_budget_bytes,
        trim_grace: section.trim_grace,
        scrub_interval: section.scrub_interval,
        scrub_rate: section.scrub_rate,
        zone: config.listen.zone.clone(),
        data_address,
        control_address: site.control_address.clone(),
    };
    let environment = Environment {
        cluster_id: site.cluster.id.clone(),
        incarnation: site.cluster.incarnation,
        restoring: site.cluster.restoring,
        meta: Arc::clone(&site.store),
        bucket: site.objects.as_ref().map(|objects| objects.bucket.clone()),
        clock: Arc::clone(&process.clock),
        random: Arc::clone(&process.random),
        metrics: process.metrics.clone(),
        tracer: process.tracer.clone(),
        readiness: process.readiness.clone(),
        tasks: tasks.clone(),
        dialer: process.node_dialer(),
        folders: Arc::new(RealFolders),
        execution: Execution::Threads,
    };
    let node = StorageNode::start(node_config, environment).await?;
    control.register_node(site.control_address.clone(), Arc::new(node.control()));
    let (serving, sessions, clock) = (node.clone(), tasks.clone(), Arc::clone(&process.clock));
    let stop = tasks.token();
    tasks.spawn("accept", async move {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(link) => {
                    let (node, stop) = (serving.clone(), sessions.token());
                    sessions.spawn("session", async move {
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = node.serve(link) => {}
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a session was not accepted");
                    clock.sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(node)
}

async fn start_broker(
    process: &Process,
    config: &Config,
    site: &Site,
    control: &Control,
) -> anyhow::Result<Broker> {
    let section = &config.broker;
    let address = data_address("broker.data_listen", &section.data_listen)?;
    let tasks = process.tasks.group("broker");
    let id = match section.id {
        0 => session::allocate_broker_id(site.store.as_ref())
            .await
            .context("no broker id was handed out")?,
        id => BrokerId(id),
    };
    let name = format!("broker-{}", id.0);
    let mut listener = Listener::bind(
        &name,
        address.as_ref(),
        &process.connector,
        &process.fronts,
        tasks.clone(),
    )
    .await
    .with_context(|| format!("cannot listen on broker.data_listen = {}", section.data_listen))?;
    let data_address = advertised_data(config, &listener.address()?);
    listener.advertise(data_address.clone());
    let broker_config = BrokerConfig {
        id,
        zone: config.listen.zone.clone(),
        data_address,
        control_address: site.control_address.clone(),
        session_ttl: section.session_ttl.get(),
        tail_cache_bytes: section.tail_cache_bytes.as_u64(),
        repair_bytes_per_second: section.repair_bytes_per_second.as_u64(),
        partition: partition::Config {
            replicas: usize::from(site.cluster.replicas),
            ack_quorum: site.cluster.ack_quorum,
            repair_after_ms: section.repair_after.as_millis(),
            ..partition::Config::default()
        },
    };
    let parts = Parts {
        objects: site.objects.clone(),
        cluster: site.cluster.id.clone(),
        incarnation: site.cluster.incarnation,
        store: Arc::clone(&site.store),
        nodes: process.node_dialer(),
        clock: Arc::clone(&process.clock),
        random: Arc::clone(&process.random),
        metrics: process.metrics.clone(),
        tracer: process.tracer.clone(),
        tasks,
    };
    let ready = process.readiness.component(name);
    let broker = Broker::start(broker_config, parts, listener).await?;
    ready.ready();
    control.register_broker(site.control_address.clone(), Arc::new(broker.control()));
    Ok(broker)
}

async fn start_proxy(
    process: &Process,
    config: &Config,
    site: &Site,
    control: &Control,
) -> anyhow::Result<Proxy> {
    let proxy_config = ProxyConfig {
        zone: config.listen.zone.clone(),
        name: format!("proxy {}", site.control_address),
        memory_bytes: config.proxy.memory_bytes.as_u64(),
        decompressed_bytes_max: config.proxy.decompressed_bytes_max.as_usize(),
        topic_metrics_max: config.proxy.topic_metrics_max,
        ..ProxyConfig::default()
    };
    let deps = Deps {
        cluster: site.cluster.id.clone(),
        incarnation: site.cluster.incarnation,
        meta: Arc::clone(&site.store),
        fronts: process.front_dialer(),
        nodes: process.node_dialer(),
        cold: site.objects.clone().map(|objects| Cold {
            reader: objects.reader,
            manifests: objects.manifests,
        }),
        control: control.clone(),
        clock: Arc::clone(&process.clock),
        random: Arc::clone(&process.random),
        metrics: process.metrics.clone(),
        tracer: process.tracer.clone(),
        readiness: process.readiness.clone(),
        tasks: process.tasks.group("proxy"),
    };
    Ok(Proxy::start(proxy_config, deps).await?)
}

async fn register_proxy(config: &Config, site: &Site) -> anyhow::Result<Session> {
    let id = match config.proxy.id.as_str() {
        "" => site
            .control_address
            .trim_start_matches("http://")
            .replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-"),
        id => id.to_owned(),
    };
    let record = ProxyRecord {
        id,
        address: site.control_address.clone(),
        zone: config.listen.zone.clone(),
    };
    Ok(session::register_proxy(Arc::clone(&site.store), &record, PROXY_SESSION_TTL).await?)
}

fn start_controller(process: &Process, config: &Config, site: &Site, control: &Control) -> Controller {
    let controller = Controller::start(
        Arc::clone(&site.store),
        site.control_address.clone(),
        Arc::clone(&process.clock),
        Arc::clone(&process.random),
        asking::probes(control, &process.clock),
        asking::holders(control),
        asking::balancing(control, config.controller.rebalance),
        &process.tasks,
        &process.metrics,
    );
    // A candidate is as ready as the leader: either does all it is there for.
    process.readiness.component("controller").ready();
    controller
}
