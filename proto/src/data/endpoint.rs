//! Where links come from: a dialer for those who connect, a listener for those who serve.
//!
//! `tcp://` and `unix://` addresses are streams. `mem://` is a role of the same process, found by
//! name in an [`Exchange`] that both were given; the link then hands messages over as they are.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use forebay_runtime::net::{Addr, Connection, Connector, Listener as StreamListener, SystemConnector};
use forebay_runtime::tasks::Tasks;
use tokio::sync::mpsc;

use super::Message;
use super::front::{FromBroker, ToBroker};
use super::link::{self, Link};
use super::replica::{FromNode, ToNode};

/// A protocol: what clients say and what servers answer.
pub trait Protocol: Send + Sync + 'static {
    /// From client to server.
    type Up: Message;
    /// From server to client.
    type Down: Message;
}

/// Spoken with storage nodes.
#[derive(Debug, Clone, Copy)]
pub struct ReplicaProtocol;

impl Protocol for ReplicaProtocol {
    type Up = ToNode;
    type Down = FromNode;
}

/// Spoken with brokers.
#[derive(Debug, Clone, Copy)]
pub struct FrontProtocol;

impl Protocol for FrontProtocol {
    type Up = ToBroker;
    type Down = FromBroker;
}

/// A client's end of a connection.
pub type ClientLink<P> = Link<<P as Protocol>::Up, <P as Protocol>::Down>;
/// A server's end of a connection.
pub type ServerLink<P> = Link<<P as Protocol>::Down, <P as Protocol>::Up>;

/// Connections from one process to itself that wait to be accepted.
const BACKLOG: usize = 64;

type Names<P> = parking_lot::Mutex<HashMap<String, mpsc::Sender<ServerLink<P>>>>;

/// The servers inside this process, by every address under which they are known.
pub struct Exchange<P: Protocol>(Arc<Names<P>>);

impl<P: Protocol> Clone for Exchange<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P: Protocol> Default for Exchange<P> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<P: Protocol> std::fmt::Debug for Exchange<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.lock().keys()).finish()
    }
}

/// Why no connection came to be.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The address is none.
    #[error("address \"{0}\" is none of tcp://host:port, unix:///path, mem://name")]
    Address(String),
    /// Nobody serves this address in this process.
    #[error("nobody serves \"{0}\" in this process")]
    Unknown(String),
    /// The connection failed.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// To where.
        address: String,
        /// Why not.
        source: io::Error,
    },
}

/// Opens connections.
pub struct Dialer<P: Protocol> {
    connector: Arc<dyn Connector>,
    exchange: Exchange<P>,
    tasks: Tasks,
}

impl<P: Protocol> Clone for Dialer<P> {
    fn clone(&self) -> Self {
        Self {
            connector: Arc::clone(&self.connector),
            exchange: self.exchange.clone(),
            tasks: self.tasks.clone(),
        }
    }
}

impl<P: Protocol> std::fmt::Debug for Dialer<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer")
            .field("exchange", &self.exchange)
            .finish_non_exhaustive()
    }
}

impl<P: Protocol> Dialer<P> {
    /// A dialer for this process's own servers and for everything the connector reaches. Tasks
    /// that write to streams are started in `tasks`.
    #[must_use]
    pub fn new(connector: Arc<dyn Connector>, exchange: Exchange<P>, tasks: Tasks) -> Self {
        Self {
            connector,
            exchange,
            tasks,
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// Where the address is none, or nobody accepts there.
    pub async fn dial(&self, address: &str) -> Result<ClientLink<P>, DialError> {
        let local = self.exchange.0.lock().get(address).cloned();
        if let Some(server) = local {
            let (ours, theirs) = link::memory();
            server
                .send(theirs)
                .await
                .map_err(|_| DialError::Unknown(address.to_owned()))?;
            return Ok(ours);
        }
        let parsed: Addr = address
            .parse()
            .map_err(|_| DialError::Address(address.to_owned()))?;
        if matches!(parsed, Addr::Mem(_)) {
            return Err(DialError::Unknown(address.to_owned()));
        }
        let connect = self.connector.connect(&parsed).await;
        let connection = connect.map_err(|source| DialError::Connect {
            address: address.to_owned(),
            source,
        })?;
        Ok(over(connection, address, &self.tasks))
    }
}

fn over<Out: Message, In: Message>(connection: Connection, peer: &str, tasks: &Tasks) -> Link<Out, In> {
    let (read, write) = connection.into_split();
    let (link, writing) = link::over_stream(read, write);
    let name = peer.to_owned();
    tasks.spawn(format!("write to {peer}"), async move {
        if let Err(error) = writing.await {
            tracing::debug!(peer = name, %error, "link ended");
        }
    });
    link
}

/// Accepts connections of one protocol, from this process and from outside.
pub struct Listener<P: Protocol> {
    local: mpsc::Receiver<ServerLink<P>>,
    server: mpsc::Sender<ServerLink<P>>,
    streams: Option<StreamListener>,
    names: Vec<String>,
    exchange: Exchange<P>,
    tasks: Tasks,
}

impl<P: Protocol> std::fmt::Debug for Listener<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl<P: Protocol> Listener<P> {
    /// Serves as `mem://name` within this process, and on a stream address if one is given.
    ///
    /// # Errors
    /// Where the address cannot be bound.
    pub async fn bind(
        name: &str,
        address: Option<&Addr>,
        connector: &SystemConnector,
        exchange: &Exchange<P>,
        tasks: Tasks,
    ) -> io::Result<Self> {
        let streams = match address {
            Some(address) => Some(connector.bind(address).await?),
            None => None,
        };
        let (server, local) = mpsc::channel(BACKLOG);
        let mut listener = Self {
            local,
            server,
            streams,
            names: Vec::new(),
            exchange: exchange.clone(),
            tasks,
        };
        listener.advertise(Addr::mem(name).to_string());
        if listener.streams.is_some() {
            listener.advertise(listener.address()?);
        }
        Ok(listener)
    }

    /// Peers in this process that dial this address come here without a socket.
    pub fn advertise(&mut self, address: String) {
        self.exchange
            .0
            .lock()
            .insert(address.clone(), self.server.clone());
        self.names.push(address);
    }

    /// Where peers outside this process connect, or the name within it.
    ///
    /// # Errors
    /// Where the operating system does not say.
    pub fn address(&self) -> io::Result<String> {
        match &self.streams {
            Some(streams) => Ok(streams.local_addr()?.to_string()),
            None => Ok(self.names.first().cloned().unwrap_or_default()),
        }
    }

    /// The next connection.
    ///
    /// Cancel safety: both sources keep what was not taken.
    ///
    /// # Errors
    /// Where accepting failed; the next call may succeed.
    pub async fn accept(&mut self) -> io::Result<ServerLink<P>> {
        let Some(streams) = &mut self.streams else {
            return self
                .local
                .recv()
                .await
                .ok_or_else(|| io::ErrorKind::NotConnected.into());
        };
        tokio::select! {
            biased;
            Some(link) = self.local.recv() => Ok(link),
            accepted = streams.accept() => {
                let connection = accepted?;
                let peer = connection.peer().name;
                Ok(over(connection, &peer, &self.tasks))
            }
        }
    }
}

impl<P: Protocol> Drop for Listener<P> {
    fn drop(&mut self) {
        let mut served = self.exchange.0.lock();
        for name in &self.names {
            served.remove(name);
        }
    }
}
