//! A network that exists only inside the process: names instead of hosts, pipes instead of
//! sockets.
//!
//! Nothing is global: two networks never see each other's names, so two clusters run in one test.
//! [`MemNetwork::sever`] breaks the connections to a name without a word, as a cut cable does.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::connection::{Connection, MemStream};
use super::pipe::{Severer, pipe};
use super::{Addr, Connector, failure};

/// Connections that wait to be accepted; a further one waits until there is room.
const BACKLOG_MAX: usize = 128;

/// A handle to one in-process network; clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemNetwork {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    endpoints: HashMap<String, Endpoint>,
}

#[derive(Debug)]
struct Endpoint {
    id: u64,
    backlog: mpsc::Sender<Connection>,
    /// Both directions of every connection of which an end is still open.
    connections: Vec<[Severer; 2]>,
}

impl MemNetwork {
    /// A network without any names.
    pub fn new() -> Self {
        Self::default()
    }

    /// Breaks every open connection to `name`: both ends get a reset, bytes in flight are lost.
    /// The listener stays. Returns how many connections were broken.
    pub fn sever(&self, name: &str) -> usize {
        let mut connections = match self.state.lock().endpoints.get_mut(name) {
            Some(endpoint) => std::mem::take(&mut endpoint.connections),
            None => return 0,
        };
        connections.retain(is_open);
        connections.iter().flatten().for_each(Severer::sever);
        connections.len()
    }

    pub(super) fn bind(&self, name: &str) -> io::Result<MemListener> {
        let mut state = self.state.lock();
        if state.endpoints.contains_key(name) {
            let addr = Addr::mem(name);
            return Err(failure("bind", &addr, io::ErrorKind::AddrInUse.into()));
        }
        let id = state.next_id;
        state.next_id += 1;
        let (backlog, waiting) = mpsc::channel(BACKLOG_MAX);
        state.endpoints.insert(
            name.to_owned(),
            Endpoint {
                id,
                backlog,
                connections: Vec::new(),
            },
        );
        Ok(MemListener {
            network: self.clone(),
            name: name.to_owned(),
            id,
            waiting,
        })
    }

    pub(super) async fn connect_name(&self, name: &str) -> io::Result<Connection> {
        let refused = || {
            failure(
                "connect to",
                &Addr::mem(name),
                io::ErrorKind::ConnectionRefused.into(),
            )
        };
        let (there_reader, here_writer) = pipe();
        let (here_reader, there_writer) = pipe();
        let backlog = {
            let mut state = self.state.lock();
            let endpoint = state.endpoints.get_mut(name).ok_or_else(refused)?;
            endpoint.connections.retain(is_open);
            endpoint
                .connections
                .push([there_reader.severer(), here_reader.severer()]);
            endpoint.backlog.clone()
        };
        let stream = |reader, writer| {
            Connection::Mem(MemStream {
                name: name.to_owned(),
                reader,
                writer,
            })
        };
        let there = stream(there_reader, there_writer);
        backlog.send(there).await.map_err(|_| refused())?;
        Ok(stream(here_reader, here_writer))
    }
}

fn is_open(pipes: &[Severer; 2]) -> bool {
    pipes.iter().any(Severer::is_open)
}

impl Connector for MemNetwork {
    fn connect<'a>(&'a self, addr: &'a Addr) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            match addr {
                Addr::Mem(name) => self.connect_name(name).await,
                Addr::Tcp { .. } | Addr::Unix(_) => {
                    Err(failure("connect to", addr, io::ErrorKind::Unsupported.into()))
                }
            }
        })
    }
}

#[derive(Debug)]
pub(super) struct MemListener {
    network: MemNetwork,
    name: String,
    id: u64,
    waiting: mpsc::Receiver<Connection>,
}

impl MemListener {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) async fn accept(&mut self) -> io::Result<Connection> {
        // The network holds a sender for as long as this listener is registered.
        self.waiting
            .recv()
            .await
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for MemListener {
    fn drop(&mut self) {
        let mut state = self.network.state.lock();
        if state
            .endpoints
            .get(&self.name)
            .is_some_and(|endpoint| endpoint.id == self.id)
        {
            state.endpoints.remove(&self.name);
        }
    }
}
