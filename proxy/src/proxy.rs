//! A proxy from start to end.
//!
//! Started: metadata is read, the driver of produces runs, sessions are made when first needed.
//! Stopped, in this order: nothing more is taken in (health says so), what was accepted is
//! finished or its time is over, what is left is answered as unknown or not begun, sessions close.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use forebay_meta::keys;
use forebay_meta::store::{ReadError, Revision, WatchError};
use forebay_meta::topics::{self, TopicChange};
use forebay_proto::v1;
use forebay_proto::v1::admin_server::AdminServer;
use forebay_runtime::admin_http::Component;
use forebay_runtime::clock;
use forebay_runtime::permits::BytePermits;
use forebay_runtime::tasks::Tasks;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::server::NamedService;
use tonic::service::{Routes as ServerRoutes, RoutesBuilder};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::admin::{AdminHandler, Contacts};
use crate::config::{Deps, ProxyConfig};
use crate::core::Core;
use crate::data::DataHandler;
use crate::fetch::Fetcher;
use crate::fetch::catch_up::CatchUp;
use crate::front::service::DataService;
use crate::membership::Membership;
use crate::metrics::ProxyMetrics;
use crate::peer::{Identity, Pool};
use crate::produce::batch::Scratches;
use crate::produce::driver::{Driver, EVENTS_MAX, INTAKE_MAX};
use crate::routes::Routes;

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Members cannot be read.
    #[error("brokers and storage nodes cannot be read")]
    Meta(#[from] ReadError),
    /// The services' descriptors do not parse.
    #[error("reflection descriptors do not parse")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A running proxy. Clones are handles to the same one.
#[derive(Clone)]
pub struct Proxy {
    core: Arc<Core>,
    health: HealthReporter,
    ready: Component,
    contacts: Contacts,
    /// Everything but the intake of streams.
    tasks: Tasks,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy")
            .field("cluster", &self.core.cluster)
            .finish_non_exhaustive()
    }
}

impl Proxy {
    /// Starts a proxy.
    ///
    /// # Errors
    /// Where the metadata store cannot be read.
    pub async fn start(config: ProxyConfig, deps: Deps) -> Result<Self, StartError> {
        let membership = Membership::follow(&deps.meta, &deps.clock, &deps.random, &deps.tasks).await?;
        // No route is known yet, so from here on no change of a topic is missed.
        let (_, seen) = deps.meta.get(keys::CLUSTER).await?;
        let ready = deps.readiness.component("proxy");
        let (core, tasks) = assemble(config, deps, membership);
        follow_topics(&core, seen, &tasks);
        let health = HealthReporter::new();
        for service in ["", DataService::NAME, AdminServer::<AdminHandler>::NAME] {
            health.set_service_status(service, ServingStatus::Serving).await;
        }
        ready.ready();
        Ok(Self {
            core,
            health,
            ready,
            contacts: Contacts::default(),
            tasks,
        })
    }

    /// The `Data` service, with admission of bytes before decoding.
    #[must_use]
    pub fn data_service(&self) -> DataService {
        DataService::new(DataHandler {
            core: Arc::clone(&self.core),
        })
    }

    /// The `Admin` service.
    #[must_use]
    pub fn admin_service(&self) -> AdminServer<AdminHandler> {
        AdminServer::new(AdminHandler {
            core: Arc::clone(&self.core),
            contacts: self.contacts.clone(),
        })
        .max_encoding_message_size(crate::front::MESSAGE_BYTES_MAX)
    }

    /// gRPC health of this proxy's services.
    #[must_use]
    pub fn health_service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.health.clone()))
    }

    /// Adds the `Data` and `Admin` services to a server that has health and reflection already.
    pub fn add_services(&self, routes: &mut RoutesBuilder) {
        routes
            .add_service(self.data_service())
            .add_service(self.admin_service());
    }

    /// All that a server of this proxy alone serves: data, admin, health, reflection.
    ///
    /// # Errors
    /// Where the descriptors do not parse.
    pub fn routes(&self) -> Result<ServerRoutes, StartError> {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
            .build_v1()?;
        let mut routes = RoutesBuilder::default();
        self.add_services(&mut routes);
        routes.add_service(self.health_service()).add_service(reflection);
        Ok(routes.routes())
    }

    /// Stops: intake first, then what was accepted, then sessions. Returns once all is done, or
    /// after the drain timeout once what was left is answered.
    ///
    /// Cancel safety: call again to go on.
    pub async fn shutdown(&self) {
        self.ready.not_ready("stopping");
        for service in ["", DataService::NAME, AdminServer::<AdminHandler>::NAME] {
            self.health
                .set_service_status(service, ServingStatus::NotServing)
                .await;
        }
        self.core.closing.cancel();
        self.core.requests.close();
        self.core.calls.close();
        let limit = self.core.config.drain_timeout;
        if clock::timeout(&*self.core.clock, limit, self.core.calls.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                calls = self.core.calls.len(),
                ?limit,
                "calls are still under way, they are given up"
            );
        }
        self.core.tasks.cancel();
        self.tasks.cancel();
        self.tasks.wait().await;
        self.ready.clone().remove();
    }
}

/// Forgets the route of each topic that changes, so that more partitions, other limits, a deletion
/// and a new topic of an old name show within moments. Ends the process only where the store went
/// back in time (I24).
fn follow_topics(core: &Arc<Core>, after: Revision, tasks: &Tasks) {
    let (meta, clock, routes) = (
        Arc::clone(&core.meta),
        Arc::clone(&core.clock),
        core.routes.clone(),
    );
    let token = tasks.token();
    let forget = move |change: TopicChange| {
        routes.forget(&change.name);
        std::future::ready(())
    };
    tasks.spawn_critical("watch topics", async move {
        tokio::select! {
            () = token.cancelled() => Ok(()),
            ended = topics::follow(meta, clock, after, forget) => match ended {
                Ok(never) => match never {},
                Err(WatchError::Closed) => Ok(()),
                Err(error) => Err(error),
            },
        }
    });
}

/// Puts the parts together and starts the driver.
pub(crate) fn assemble(config: ProxyConfig, deps: Deps, membership: Membership) -> (Arc<Core>, Tasks) {
    let Deps {
        cluster,
        incarnation,
        meta,
        fronts,
        nodes,
        cold,
        control,
        clock,
        random,
        metrics,
        tracer,
        readiness: _,
        tasks,
    } = deps;
    ProxyMetrics::memory(&metrics, config.memory_bytes / 2);
    let metrics = ProxyMetrics::new(&metrics, config.topic_metrics_max);
    let identity = Identity {
        cluster: cluster.clone(),
        incarnation,
        name: config.name.clone(),
    };
    let (events, broker_events) = mpsc::channel(EVENTS_MAX);
    let (batches, intake) = mpsc::channel(INTAKE_MAX);
    let sessions = tasks.group("sessions");
    let pool = |tasks: &Tasks| (Arc::clone(&clock), Arc::clone(&random), tasks.clone());
    let (pool_clock, pool_random, pool_tasks) = pool(&sessions);
    let fronts = Pool::new(
        fronts,
        identity.clone(),
        Some(events),
        pool_clock,
        pool_random,
        pool_tasks,
    );
    let (pool_clock, pool_random, pool_tasks) = pool(&sessions);
    let nodes = Pool::new(nodes, identity, None, pool_clock, pool_random, pool_tasks);
    let routes = Routes::new(
        membership.clone(),
        control.clone(),
        Arc::clone(&clock),
        Arc::clone(&random),
        metrics.clone(),
        sessions.clone(),
    );
    let catch_up = CatchUp::new(
        fronts.clone(),
        nodes,
        membership.clone(),
        Arc::clone(&clock),
        Arc::clone(&random),
        metrics.clone(),
        cold,
    );
    let catch_up = catch_up.in_zone(&config.zone);
    let driver = Driver {
        intake,
        events: broker_events,
        pool: fronts.clone(),
        routes: routes.clone(),
        clock: Arc::clone(&clock),
        random: Arc::clone(&random),
        metrics: metrics.clone(),
        token: tasks.token(),
    };
    tasks.spawn("produce driver", driver.run());
    let half = config.memory_bytes / 2;
    let fetcher = Fetcher {
        routes: routes.clone(),
        fronts,
        catch_up,
        permits: BytePermits::new(half),
        clock: Arc::clone(&clock),
        metrics: metrics.clone(),
    };
    let core = Core {
        streams: Arc::new(Semaphore::new(config.streams_max)),
        config,
        cluster,
        meta,
        membership,
        control,
        routes,
        fetcher,
        batches,
        scratches: Scratches::default(),
        requests: BytePermits::new(half),
        sources: AtomicU64::new(1),
        clock,
        random,
        metrics,
        tracer,
        tasks: tasks.group("streams"),
        closing: CancellationToken::new(),
        calls: TaskTracker::new(),
    };
    (Arc::new(core), tasks)
}
