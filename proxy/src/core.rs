//! What all calls of a proxy share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use forebay_meta::store::MetaStore;
use forebay_proto::error::Failure;
use forebay_proto::v1::ErrorCode;
use forebay_runtime::clock::Clock;
use forebay_runtime::permits::BytePermits;
use forebay_runtime::random::Random;
use forebay_runtime::tasks::Tasks;
use forebay_runtime::trace::Tracer;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::config::ProxyConfig;
use crate::control::Control;
use crate::fetch::Fetcher;
use crate::membership::Membership;
use crate::metrics::ProxyMetrics;
use crate::produce::batch::Scratches;
use crate::produce::driver::Submitted;
use crate::routes::Routes;

pub(crate) struct Core {
    pub config: ProxyConfig,
    pub cluster: String,
    pub meta: Arc<dyn MetaStore>,
    pub membership: Membership,
    pub control: Control,
    pub routes: Routes,
    pub fetcher: Fetcher,
    pub batches: mpsc::Sender<Submitted>,
    pub scratches: Scratches,
    /// Bytes of requests.
    pub requests: BytePermits,
    pub streams: Arc<Semaphore>,
    pub sources: AtomicU64,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub metrics: ProxyMetrics,
    pub tracer: Tracer,
    /// Of the intake of streams.
    pub tasks: Tasks,
    /// Cancelled when no more is taken in.
    pub closing: CancellationToken,
    /// Calls under way.
    pub calls: TaskTracker,
}

/// A call under way: a shutdown waits for it.
pub(crate) struct Call {
    core: Arc<Core>,
    operation: &'static str,
    started: Duration,
    _token: TaskTrackerToken,
}

impl Core {
    /// Begins a call.
    ///
    /// # Errors
    /// Once the proxy is stopping.
    pub(crate) fn begin(self: &Arc<Self>, operation: &'static str) -> Result<Call, Failure> {
        // In this order: a call that a shutdown does not see sees the shutdown.
        let token = self.calls.token();
        if self.closing.is_cancelled() {
            return Err(stopping());
        }
        self.metrics.request(operation);
        Ok(Call {
            core: Arc::clone(self),
            operation,
            started: self.clock.monotonic(),
            _token: token,
        })
    }

    /// A number that no other stream or unary call has.
    pub(crate) fn source(&self) -> u64 {
        self.sources.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs something that only reads until it is done or the proxy stops.
    pub(crate) async fn until_closing<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.closing.cancelled() => Err(stopping()),
        }
    }
}

pub(crate) fn stopping() -> Failure {
    Failure::new(ErrorCode::ShuttingDown, "the proxy is stopping")
}

impl Call {
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Counts a failure of the whole call.
    pub(crate) fn failed(&self, failure: Failure) -> tonic::Status {
        self.core.metrics.failure(failure.code);
        failure.into()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let took = self.core.clock.monotonic().saturating_sub(self.started);
        self.core.metrics.answered(self.operation, took.as_secs_f64());
    }
}
