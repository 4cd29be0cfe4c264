//! A running process: where it listens, and its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_broker::Broker;
use forebay_meta::controller::Controller;
use forebay_meta::session::Session;
use forebay_meta::store::MetaStore;
use forebay_proxy::Proxy;
use forebay_runtime::clock::Clock;
use forebay_runtime::metrics::Metrics;
use forebay_runtime::tasks::Tasks;
use forebay_storage_node::StorageNode;

/// How long a role may take to finish what it accepted.
const ROLE_DEADLINE: Duration = Duration::from_secs(10);
/// How long everything else may take to end.
const TASKS_DEADLINE: Duration = Duration::from_secs(5);

/// A running process.
pub struct Running {
    pub(super) grpc: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Metrics,
    pub(super) tasks: Tasks,
    pub(super) servers: Tasks,
    pub(super) store: Arc<dyn MetaStore>,
    pub(super) controller: Option<Controller>,
    pub(super) proxy: Option<(Proxy, Option<Session>)>,
    pub(super) broker: Option<Broker>,
    pub(super) storage: Option<StorageNode>,
}

impl Running {
    /// Where gRPC is served.
    #[must_use]
    pub const fn grpc_address(&self) -> SocketAddr {
        self.grpc
    }

    /// Where metrics and health are served.
    #[must_use]
    pub const fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// What the process counts.
    #[must_use]
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Waits until something in the process asks for its end; why.
    pub async fn wait_for_shutdown_request(&self) -> String {
        self.tasks.shutdown_requested().await.to_string()
    }

    /// Stops the roles, those that clients see first.
    ///
    /// # Errors
    /// Where tasks are still running after their time, by name.
    pub async fn shutdown(self) -> anyhow::Result<()> {
        // While everything still serves, and before a controller that may lead is gone.
        if let Some(broker) = &self.broker {
            broker.hand_over(self.clock.as_ref(), ROLE_DEADLINE).await;
        }
        if let Some(controller) = self.controller {
            controller.shutdown().await;
        }
        if let Some((proxy, session)) = self.proxy {
            proxy.shutdown().await;
            if let Some(session) = session
                && let Err(error) = session.close().await
            {
                tracing::warn!(%error, "the proxy's session was not closed; it will expire");
            }
        }
        self.servers.cancel();
        if let Some(broker) = self.broker {
            broker.shutdown(self.clock.as_ref(), ROLE_DEADLINE).await;
        }
        if let Some(storage) = self.storage {
            storage.shutdown().await;
        }
        self.store.close().await;
        self.tasks.cancel();
        let ended =
            forebay_runtime::clock::timeout(self.clock.as_ref(), TASKS_DEADLINE, self.tasks.wait()).await;
        anyhow::ensure!(
            ended.is_ok(),
            "still running after {TASKS_DEADLINE:?}: {}",
            self.tasks.running().join(", ")
        );
        Ok(())
    }
}
