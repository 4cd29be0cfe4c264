//! The network as a constructor argument: an [`Addr`] goes in, a byte stream comes out.
//!
//! 1. [`Addr`] is parsed from the configuration.
//! 2. [`SystemConnector::bind`] gives a [`Listener`], whose `accept` gives [`Connection`]s.
//! 3. A [`Connector`] gives the other end; roles hold an `Arc<dyn Connector>` and never know
//!    whether the peer is a process away or a pipe away.
//! 4. A [`Connection`] is used whole or split into halves that two tasks own.
//!
//! Every error names the address. Time limits are the caller's.

mod addr;
mod channel;
mod connection;
mod listener;
mod mem;
mod pipe;
#[cfg(test)]
mod tests;

use std::io;

use futures_util::future::BoxFuture;
use tokio::net::{TcpStream, UnixStream};

pub use addr::{Addr, ParseAddrError};
pub use channel::for_grpc;
pub use connection::{Connection, MemStream, PeerInfo, ReadHalf, WriteHalf};
pub use listener::Listener;
pub use mem::MemNetwork;
pub use pipe::{PipeReader, PipeWriter};

/// Opens connections.
pub trait Connector: Send + Sync + 'static {
    /// Connects to `addr`. Dropping the future gives up the attempt.
    fn connect<'a>(&'a self, addr: &'a Addr) -> BoxFuture<'a, io::Result<Connection>>;
}

/// Real sockets, and one in-process network for `mem://`. Clones share that network.
#[derive(Debug, Clone, Default)]
pub struct SystemConnector {
    mem: MemNetwork,
}

impl SystemConnector {
    /// A connector whose `mem://` names live in `mem`.
    pub fn new(mem: MemNetwork) -> Self {
        Self { mem }
    }

    /// Starts to listen at `addr`.
    pub async fn bind(&self, addr: &Addr) -> io::Result<Listener> {
        Listener::bind(addr, &self.mem).await
    }
}

impl Connector for SystemConnector {
    fn connect<'a>(&'a self, addr: &'a Addr) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            let connected = match addr {
                Addr::Tcp { host, port } => connect_tcp(host, *port).await,
                Addr::Unix(path) => UnixStream::connect(path).await.map(Connection::Unix),
                Addr::Mem(name) => return self.mem.connect_name(name).await,
            };
            connected.map_err(|error| failure("connect to", addr, error))
        })
    }
}

async fn connect_tcp(host: &str, port: u16) -> io::Result<Connection> {
    let stream = TcpStream::connect((host, port)).await?;
    // A small frame must not wait for the acknowledgement of the one before it.
    stream.set_nodelay(true)?;
    Ok(Connection::Tcp(stream))
}

fn failure(verb: &str, addr: &Addr, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{verb} {addr}: {error}"))
}
