//! A connection to one of the endpoints, replaced by another when it is lost.
//!
//! Endpoints are tried in turn, beginning after the one that failed last. Callers who find the
//! connection gone at the same time make one attempt between them. Nothing is retried here but
//! the connecting itself, once per endpoint; [`Link::call`] repeats what may be repeated.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::v1::ErrorCode;
use forebay_runtime::net::{Connector, for_grpc};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};
use tracing::debug;

use crate::backoff::{Backoff, Spread};
use crate::config::{ClientConfig, ConfigError};
use crate::error::{Refusal, is_transport};

/// Largest message taken: a fetch of 64 MiB and one batch.
pub(crate) const MESSAGE_BYTES_MAX: usize = 72 << 20;

const ENDPOINTS_MAX: usize = 64;
/// One fetch is on its way while one is consumed, so a window holds one whole.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Tells the server to send large frames: fewer, longer writes.
const FRAME_BYTES_MAX: u32 = 1 << 20;
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// One endpoint and why it was of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// As configured.
    pub endpoint: String,
    /// What went wrong.
    pub reason: String,
}

impl std::fmt::Display for Tried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.endpoint, self.reason)
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// A setting cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No endpoint accepted a connection.
    #[error("no endpoint accepts a connection: {}", join(.tried))]
    Unreachable {
        /// All of them, in the order they were tried.
        tried: Vec<Tried>,
    },
}

fn join(tried: &[Tried]) -> String {
    tried
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The endpoints of a client, ready to be dialled.
pub(crate) struct Endpoints {
    named: Vec<(String, Endpoint)>,
    connector: Option<Arc<dyn Connector>>,
    connect_timeout: Duration,
    pub request_timeout: Duration,
    pub retry_timeout: Duration,
}

impl Endpoints {
    pub(crate) fn new(config: &ClientConfig) -> Result<Self, ConfigError> {
        ConfigError::check("endpoints", &config.endpoints.len(), &1, &ENDPOINTS_MAX)?;
        let least = Duration::from_millis(1);
        let most = Duration::from_secs(3600);
        ConfigError::check("connect_timeout", &config.connect_timeout, &least, &most)?;
        ConfigError::check("request_timeout", &config.request_timeout, &least, &most)?;
        ConfigError::check("retry_timeout", &config.retry_timeout, &least, &(most * 24))?;
        let named = config
            .endpoints
            .iter()
            .map(|name| {
                Ok((
                    name.clone(),
                    endpoint(name, config.connect_timeout, config.connector.is_none())?,
                ))
            })
            .collect::<Result<_, ConfigError>>()?;
        Ok(Self {
            named,
            connector: config.connector.clone(),
            connect_timeout: config.connect_timeout,
            request_timeout: config.request_timeout,
            retry_timeout: config.retry_timeout,
        })
    }
}

impl std::fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoints")
            .field("named", &self.named)
            .finish_non_exhaustive()
    }
}

impl Endpoints {
    async fn connect(&self, endpoint: &Endpoint) -> Result<Channel, tonic::transport::Error> {
        match &self.connector {
            Some(connector) => {
                endpoint
                    .connect_with_connector(for_grpc(Arc::clone(connector)))
                    .await
            }
            None => endpoint.connect().await,
        }
    }
}

fn endpoint(name: &str, connect_timeout: Duration, pings: bool) -> Result<Endpoint, ConfigError> {
    let refuse = |reason| ConfigError {
        key: "endpoints",
        reason,
    };
    let uri = if name.contains("://") {
        name.to_owned()
    } else {
        format!("http://{name}")
    };
    let endpoint = Endpoint::from_shared(uri).map_err(|error| refuse(format!("{name:?}: {error}")))?;
    let parsed = endpoint.uri();
    if parsed.scheme_str() != Some("http") || parsed.host().is_none_or(str::is_empty) {
        return Err(refuse(format!("{name:?} is not host:port or http://host:port")));
    }
    let endpoint = endpoint
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(KEEP_ALIVE_EVERY))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX);
    // Their times are the system's, which a simulation must not depend on.
    if !pings {
        return Ok(endpoint);
    }
    Ok(endpoint
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// A connection, and which of the link's connections it is.
#[derive(Debug, Clone)]
pub(crate) struct Connected {
    pub channel: Channel,
    pub generation: u64,
}

/// Whether a request may be repeated when it may have been applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes nothing, or nothing that a repetition would spoil.
    Always,
    /// Only where it was certainly not applied.
    WhenRefused,
}

/// One connection at a time to one of the endpoints.
#[derive(Debug)]
pub(crate) struct Link {
    endpoints: Arc<Endpoints>,
    current: Mutex<Option<Connected>>,
    /// Held while dialling.
    dial: tokio::sync::Mutex<Dial>,
}

#[derive(Debug)]
struct Dial {
    next: usize,
    generation: u64,
}

impl Link {
    /// A link that is not connected yet.
    pub(crate) fn new(endpoints: Arc<Endpoints>) -> Self {
        Self {
            endpoints,
            current: Mutex::new(None),
            dial: tokio::sync::Mutex::new(Dial {
                next: 0,
                generation: 0,
            }),
        }
    }

    pub(crate) const fn endpoints(&self) -> &Arc<Endpoints> {
        &self.endpoints
    }

    /// The connection, made now if there is none.
    pub(crate) async fn connected(&self) -> Result<Connected, ConnectError> {
        if let Some(connected) = self.current.lock().clone() {
            return Ok(connected);
        }
        let mut dial = self.dial.lock().await;
        // Someone else may have connected while this one waited.
        if let Some(connected) = self.current.lock().clone() {
            return Ok(connected);
        }
        let named = &self.endpoints.named;
        let start = dial.next % named.len().max(1);
        let mut tried = Vec::new();
        for (place, (name, endpoint)) in named.iter().enumerate().cycle().skip(start).take(named.len()) {
            // The endpoint's own limit covers the socket; this one the exchange of settings too.
            let reason = match timeout(self.endpoints.connect_timeout, self.endpoints.connect(endpoint)).await
            {
                Ok(Ok(channel)) => {
                    dial.next = place + 1;
                    dial.generation += 1;
                    let connected = Connected {
                        channel,
                        generation: dial.generation,
                    };
                    debug!(endpoint = %name, "connected");
                    *self.current.lock() = Some(connected.clone());
                    return Ok(connected);
                }
                Ok(Err(error)) => innermost(&error),
                Err(_) => format!("no connection within {:?}", self.endpoints.connect_timeout),
            };
            debug!(endpoint = %name, %reason, "endpoint does not accept a connection");
            tried.push(Tried {
                endpoint: name.clone(),
                reason,
            });
        }
        Err(ConnectError::Unreachable { tried })
    }

    /// Gives up a connection that failed, unless it has been replaced already.
    pub(crate) fn lost(&self, generation: u64) {
        let mut current = self.current.lock();
        if current
            .as_ref()
            .is_some_and(|connected| connected.generation == generation)
        {
            *current = None;
        }
    }

    /// Makes a call, and repeats it as `repeat` allows until the retry timeout has passed.
    pub(crate) async fn call<T, C, F>(&self, repeat: Repeat, call: C) -> Result<T, Refusal>
    where
        C: Fn(Channel) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let until = Instant::now() + self.endpoints.retry_timeout;
        let mut spread = Spread::seeded();
        let mut failures = 0;
        loop {
            let refusal = match self.call_once(self.endpoints.request_timeout, &call).await {
                Ok(answer) => return Ok(answer),
                Err(refusal) => refusal,
            };
            failures += 1;
            let delay = Backoff::DEFAULT.delay(failures, spread.next());
            let repeatable = refusal.is_retriable() || (refusal.is_unknown() && repeat == Repeat::Always);
            if !repeatable || Instant::now() + delay >= until {
                return Err(refusal);
            }
            debug!(%refusal, failures, "call is repeated");
            sleep(delay).await;
        }
    }

    /// Makes a call once, at most for that long.
    pub(crate) async fn call_once<T, C, F>(&self, limit: Duration, call: &C) -> Result<T, Refusal>
    where
        C: Fn(Channel) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        // Without a connection nothing was sent, so nothing was applied.
        let Connected { channel, generation } = self
            .connected()
            .await
            .map_err(|error| Refusal::new(ErrorCode::Unavailable, error.to_string()))?;
        match timeout(limit, call(channel)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => {
                if is_transport(&status) {
                    self.lost(generation);
                }
                Err(status.into())
            }
            Err(_) => {
                self.lost(generation);
                Err(Refusal::new(
                    ErrorCode::OutcomeUnknown,
                    format!("no answer within {limit:?}"),
                ))
            }
        }
    }
}

/// The cause at the bottom: the layers above it only say that something failed.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use super::*;

    #[test]
    fn endpoints_are_host_and_port_with_or_without_a_scheme() {
        assert!(Endpoints::new(&ClientConfig::new(["127.0.0.1:7450", "http://[::1]:7450"])).is_ok());
        for wrong in ["", "ftp://host:1", "http://", "a b:1"] {
            let error = Endpoints::new(&ClientConfig::new([wrong])).unwrap_err();
            assert_eq!(error.key, "endpoints", "{wrong:?}: {error}");
        }
        let none: [&str; 0] = [];
        assert!(Endpoints::new(&ClientConfig::new(none)).is_err());
    }

    #[tokio::test]
    async fn a_failed_connect_names_every_endpoint_tried() {
        // Bound and dropped, so nobody listens there.
        let port = || {
            std::net::TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
        };
        let (a, b) = (port().to_string(), port().to_string());
        let endpoints = Endpoints::new(&ClientConfig::new([a.as_str(), b.as_str()])).unwrap();
        let error = Link::new(Arc::new(endpoints))
            .connected()
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(&a) && error.contains(&b), "{error}");
    }
}
