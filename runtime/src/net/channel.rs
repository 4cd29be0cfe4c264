//! A [`Connector`] in the form in which gRPC channels take one.

use std::future::Future;
use std::io;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use tonic::transport::Uri;
use tower::Service;

use super::{Addr, Connection, Connector};

/// Connects a gRPC channel through `connector`: the host and port of its URI are an [`Addr::Tcp`].
pub fn for_grpc(
    connector: Arc<dyn Connector>,
) -> impl Service<Uri, Response = TokioIo<Connection>, Error = io::Error, Future: Future + Send>
+ Clone
+ Send
+ 'static {
    tower::service_fn(move |uri: Uri| {
        let connector = Arc::clone(&connector);
        async move {
            let Some(host) = uri.host() else {
                let what = format!("{uri} names no host");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            };
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let addr = Addr::tcp(host, uri.port_u16().unwrap_or(80));
            connector.connect(&addr).await.map(TokioIo::new)
        }
    })
}
