//! How a client reaches the service, and how a wrong setting is refused.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use forebay_runtime::net::Connector;
use forebay_runtime::trace::Tracer;

/// How to reach the service, and how long to wait for it.
#[derive(Clone)]
pub struct ClientConfig {
    /// Proxies, as `http://host:port` or `host:port`. Tried in turn; at least one, at most 64.
    pub endpoints: Vec<String>,
    /// How long one endpoint may take to accept a connection.
    pub connect_timeout: Duration,
    /// How long one request may take.
    pub request_timeout: Duration,
    /// How long a request that may be repeated is repeated in all.
    pub retry_timeout: Duration,
    /// Begins the spans of records that are sent and received; off by default.
    pub tracer: Tracer,
    /// Opens the connections, instead of the system's sockets; whether one is alive is then for it to
    /// know, no pings are sent.
    pub connector: Option<Arc<dyn Connector>>,
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("endpoints", &self.endpoints)
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("retry_timeout", &self.retry_timeout)
            .finish_non_exhaustive()
    }
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:7450".to_owned()],
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            retry_timeout: Duration::from_secs(60),
            tracer: Tracer::off(),
            connector: None,
        }
    }
}

impl ClientConfig {
    /// The defaults with these endpoints.
    #[must_use]
    pub fn new<I: IntoIterator<Item = S>, S: Into<String>>(endpoints: I) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct ConfigError {
    /// Name of the field.
    pub key: &'static str,
    /// What is wrong with its value.
    pub reason: String,
}

impl ConfigError {
    /// Refuses a value that is not within bounds, both of which are allowed.
    pub(crate) fn check<T: PartialOrd + std::fmt::Debug>(
        key: &'static str,
        value: &T,
        least: &T,
        most: &T,
    ) -> Result<(), Self> {
        if value < least || value > most {
            return Err(Self {
                key,
                reason: format!("{value:?} is not between {least:?} and {most:?}"),
            });
        }
        Ok(())
    }
}
