//! The proxy: the only address that clients see. It keeps nothing but caches.
//!
//! `front` admits requests by bytes before it decodes them; `produce` checks each batch once
//! and brings it to its owner in order; `fetch` reads owners' tails and, for what is older,
//! storage nodes; `offsets`, `data` and `admin` answer the rest. `membership` and
//! `routes` know where to ask, `peer` holds the sessions, `control` makes control calls.

mod admin;
mod config;
mod control;
mod core;
mod data;
mod fetch;
mod front;
mod membership;
mod metrics;
mod offsets;
mod peer;
mod produce;
mod proxy;
mod routes;
#[cfg(test)]
mod tests;

pub use admin::AdminHandler;
pub use config::{Deps, ProxyConfig};
pub use control::{CHANNELS_MAX, Control, ControlError};
pub use fetch::ANSWER_BYTES_MAX;
pub use fetch::cold::Cold;
pub use front::MESSAGE_BYTES_MAX;
pub use front::service::DataService;
pub use produce::stream::AnswerStream;
pub use proxy::{Proxy, StartError};

use std::time::Duration;

use tonic::transport::Server;

const FRAME_BYTES: u32 = 1 << 20;
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const STREAMS_PER_CONNECTION: u32 = 1024;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Sets up a gRPC server for batches of hundreds of KiB: large frames and windows.
#[must_use]
pub fn tune(server: Server) -> Server {
    server
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
}
