//! The HTTP side of a process for those who run it: `/metrics`, `/livez` and `/readyz`.
//!
//! `/readyz` says whether to send work here, `/livez` whether to restart the process: a node that
//! cannot write any more but still serves reads is not ready for writes and not dead either. The
//! answers are made from what components last said about themselves; no request makes anyone work.
//! It is meant for the network of the operators, not for the open one.

mod readiness;

use std::future::Future;
use std::io;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, OPENMETRICS_CONTENT_TYPE};

pub use readiness::{Component, Readiness};

/// How long requests that are under way at the shutdown may take.
const GRACE: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Shown {
    metrics: Metrics,
    readiness: Readiness,
}

/// Serves until `shutdown` completes, and then for at most two seconds longer.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    readiness: Readiness,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(on_metrics))
        .route("/livez", get(on_livez))
        .route("/readyz", get(on_readyz))
        .with_state(Shown { metrics, readiness });
    let stopping = CancellationToken::new();
    let signal = {
        let stopping = stopping.clone();
        async move {
            shutdown.await;
            stopping.cancel();
        }
    };
    let serving = axum::serve(listener, router)
        .with_graceful_shutdown(signal)
        .into_future();
    // A peer that sent half a request must not hold up the end of the process.
    let too_long = async {
        stopping.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = serving => result,
        () = too_long => Ok(()),
    }
}

async fn on_metrics(State(shown): State<Shown>) -> Response {
    match shown.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS_CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("metrics: {error}\n")).into_response(),
    }
}

async fn on_livez(State(shown): State<Shown>) -> Response {
    verdict(shown.readiness.dead())
}

async fn on_readyz(State(shown): State<Shown>) -> Response {
    verdict(shown.readiness.not_ready())
}

/// 200, or 503 with one line for each thing that is wrong.
fn verdict(wrong: Vec<String>) -> Response {
    if wrong.is_empty() {
        return (StatusCode::OK, "ok\n").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, wrong.join("\n") + "\n").into_response()
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::*;

    struct Server {
        addr: SocketAddr,
        metrics: Metrics,
        readiness: Readiness,
        stop: oneshot::Sender<()>,
        serving: JoinHandle<io::Result<()>>,
    }

    async fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (metrics, readiness) = (Metrics::new(), Readiness::new());
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve(listener, metrics.clone(), readiness.clone(), async {
            stopped.await.unwrap();
        }));
        Server {
            addr,
            metrics,
            readiness,
            stop,
            serving,
        }
    }

    async fn get(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn is(answer: &str, status: &str, body: &str) -> bool {
        answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.ends_with(&format!("\r\n\r\n{body}"))
    }

    #[tokio::test]
    async fn metrics_are_served_with_their_content_type() {
        let server = start().await;
        server.metrics.counter("appends", "Appends").inc();
        let answer = get(server.addr, "/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            answer.contains(&format!("content-type: {OPENMETRICS_CONTENT_TYPE}\r\n")),
            "{answer}"
        );
        assert!(answer.contains("forebay_appends_total 1\n"), "{answer}");
    }

    #[tokio::test]
    async fn readyz_lists_what_is_not_ready() {
        let server = start().await;
        let journal = server.readiness.component("journal");
        let meta = server.readiness.component("meta");
        let answer = get(server.addr, "/readyz").await;
        assert!(
            is(&answer, "503", "journal: starting\nmeta: starting\n"),
            "{answer}"
        );
        journal.ready();
        meta.not_ready("no leader for 3s");
        let answer = get(server.addr, "/readyz").await;
        assert!(is(&answer, "503", "meta: no leader for 3s\n"), "{answer}");
        meta.ready();
        let answer = get(server.addr, "/readyz").await;
        assert!(is(&answer, "200", "ok\n"), "{answer}");
    }

    #[tokio::test]
    async fn livez_is_well_until_a_component_is_dead() {
        let server = start().await;
        let journal = server.readiness.component("journal 3");
        let answer = get(server.addr, "/livez").await;
        assert!(is(&answer, "200", "ok\n"), "{answer}");
        journal.dead("fsync failed");
        let answer = get(server.addr, "/livez").await;
        assert!(is(&answer, "503", "journal 3: fsync failed\n"), "{answer}");
        let answer = get(server.addr, "/readyz").await;
        assert!(is(&answer, "503", "journal 3: fsync failed\n"), "{answer}");
    }

    #[tokio::test]
    async fn an_unknown_path_is_not_found() {
        let server = start().await;
        assert!(get(server.addr, "/").await.starts_with("HTTP/1.1 404"));
    }

    #[tokio::test]
    async fn serving_ends_at_the_shutdown() {
        let server = start().await;
        assert!(get(server.addr, "/livez").await.starts_with("HTTP/1.1 200"));
        server.stop.send(()).unwrap();
        server.serving.await.unwrap().unwrap();
        assert!(TcpStream::connect(server.addr).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_request_does_not_hold_up_the_shutdown() {
        let server = start().await;
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(b"GET /livez HT").await.unwrap();
        // An answer to a later connection shows that the first one was taken up.
        get(server.addr, "/livez").await;
        server.stop.send(()).unwrap();
        let limit = GRACE + Duration::from_secs(5);
        tokio::time::timeout(limit, server.serving)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}
