//! A metadata store that counts what is asked of it and how that ends.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use forebay_runtime::clock::Clock;
use forebay_runtime::metrics::{Labelled, Metrics};
use futures_util::stream;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use super::{
    Entry, LeaseError, LeaseId, LeaseKeeper, MetaStore, Page, Range, ReadError, Revision, Txn, TxnError,
    TxnReply, WatchStream,
};

/// Passes everything on to another store.
pub struct MeteredStore {
    inner: Arc<dyn MetaStore>,
    clock: Arc<dyn Clock>,
    requests: Labelled<Counter, 2>,
    seconds: Labelled<Histogram, 1>,
    watches: Counter,
    watch_failures: Counter,
}

impl std::fmt::Debug for MeteredStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeteredStore")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl MeteredStore {
    /// Counts what `inner` is asked.
    #[must_use]
    pub fn new(inner: Arc<dyn MetaStore>, clock: Arc<dyn Clock>, metrics: &Metrics) -> Self {
        let scope = metrics.scope("meta");
        Self {
            inner,
            clock,
            requests: scope.counters(
                "requests",
                "Requests to the metadata store, by operation and outcome: ok, conflict (a transaction whose \
                 compares failed), refused, unavailable (nothing was applied), unknown (it may have been)",
                ["operation", "outcome"],
            ),
            seconds: scope.latency_histograms(
                "request_seconds",
                "Time of a request to the metadata store",
                ["operation"],
            ),
            watches: scope.counter(
                "watches",
                "Watches begun; each that ends is begun again from where it was",
            ),
            watch_failures: scope.counter("watch_failures", "Watches that ended with an error"),
        }
    }

    async fn timed<T>(&self, operation: &'static str, call: impl Future<Output = T>) -> T {
        let began = self.clock.monotonic();
        let done = call.await;
        let took = self.clock.monotonic().saturating_sub(began);
        self.seconds.with([operation]).observe(took.as_secs_f64());
        done
    }

    fn count(&self, operation: &'static str, outcome: &'static str) {
        self.requests.with([operation, outcome]).inc();
    }

    async fn read<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, ReadError>>,
    ) -> Result<T, ReadError> {
        let done = self.timed(operation, call).await;
        let outcome = match &done {
            Ok(_) => "ok",
            Err(ReadError::Unavailable(_)) => "unavailable",
            Err(_) => "refused",
        };
        self.count(operation, outcome);
        done
    }

    async fn lease<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, LeaseError>>,
    ) -> Result<T, LeaseError> {
        let done = self.timed(operation, call).await;
        let outcome = match &done {
            Ok(_) => "ok",
            Err(LeaseError::Unavailable(_)) => "unavailable",
            Err(_) => "refused",
        };
        self.count(operation, outcome);
        done
    }
}

#[async_trait]
impl MetaStore for MeteredStore {
    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), ReadError> {
        self.read("get", self.inner.get(key)).await
    }

    async fn get_many(&self, keys: &[String]) -> Result<(Vec<Option<Entry>>, Revision), ReadError> {
        self.read("get_many", self.inner.get_many(keys)).await
    }

    async fn range(&self, range: Range) -> Result<Page, ReadError> {
        self.read("range", self.inner.range(range)).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, TxnError> {
        let done = self.timed("txn", self.inner.txn(txn)).await;
        let outcome = match &done {
            Ok(reply) if reply.succeeded => "ok",
            Ok(_) => "conflict",
            Err(TxnError::Unavailable(_)) => "unavailable",
            Err(TxnError::Unknown(_)) => "unknown",
            Err(_) => "refused",
        };
        self.count("txn", outcome);
        done
    }

    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        self.watches.inc();
        let failures = self.watch_failures.clone();
        let inner = self.inner.watch(prefix, after);
        WatchStream::new(stream::unfold(inner, move |mut inner| {
            let failures = failures.clone();
            async move {
                let batch = inner.next().await?;
                if batch.is_err() {
                    failures.inc();
                }
                Some((batch, inner))
            }
        }))
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseKeeper, LeaseError> {
        self.lease("lease_grant", self.inner.lease_grant(ttl)).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.lease("lease_revoke", self.inner.lease_revoke(lease)).await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use forebay_runtime::clock::SystemClock;
    use forebay_runtime::tasks::Tasks;

    use super::*;
    use crate::store::{Compare, EmbeddedStore, Op};

    #[tokio::test]
    async fn requests_are_counted_by_how_they_end() {
        let folder = tempfile::tempdir().unwrap();
        let (tasks, metrics) = (Tasks::new("test"), Metrics::new());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let path = folder.path().join("m.redb");
        let inner = EmbeddedStore::open(&path, Arc::clone(&clock), &tasks)
            .await
            .unwrap();
        let store = MeteredStore::new(Arc::new(inner), clock, &metrics);
        let put = || {
            Txn::new()
                .when(Compare::absent("/k"))
                .then(Op::put("/k", b"v".to_vec()))
        };
        assert!(store.txn(put()).await.unwrap().succeeded);
        assert!(!store.txn(put()).await.unwrap().succeeded);
        store.get("/k").await.unwrap();
        store.get("no slash").await.unwrap_err();
        let mut watch = store.watch("/", Revision(0));
        watch.next().await.unwrap().unwrap();
        store.close().await;
        store.txn(put()).await.unwrap_err();
        let text = metrics.encode().unwrap();
        for (operation, outcome) in [
            ("txn", "ok"),
            ("txn", "conflict"),
            ("txn", "unavailable"),
            ("get", "ok"),
            ("get", "refused"),
        ] {
            let line =
                format!("forebay_meta_requests_total{{operation=\"{operation}\",outcome=\"{outcome}\"}} 1\n");
            assert!(text.contains(&line), "no {line} in {text}");
        }
        assert!(text.contains("forebay_meta_watches_total 1\n"), "{text}");
        assert!(
            text.contains("forebay_meta_request_seconds_count{operation=\"txn\"} 3\n"),
            "{text}"
        );
        tasks.cancel();
        tasks.wait().await;
    }
}
