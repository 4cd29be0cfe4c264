//! A network of hosts by name: delays, partitions of either direction, stalls, and bytes that are
//! still on their way when their sender is long dead.
//!
//! A connection is a pair of pipes with a relay for each direction. A relay delivers in order, each
//! piece after a delay of its own; while the direction is blocked it holds what it has, as TCP does.
//! When a host is cut off for good its connections end at once, at the other end too; or, as when
//! the machine is gone, without a word.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_meta::store::Wire;
use forebay_runtime::net::{Addr, Connection, Connector, Listener, MemNetwork, SystemConnector};
use forebay_runtime::random::{Random, SeededRandom};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Port of the data protocol.
pub const DATA: u16 = 7451;
/// The metadata store's host.
pub const STORE: &str = "etcd";
/// Pieces in flight in one direction of a connection.
const PIECES_MAX: usize = 64;
const PIECE_BYTES: usize = 16 << 10;
/// A dial that is not answered gives up.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long messages take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delays {
    /// Shortest, in µs.
    pub least_us: u64,
    /// Usual spread above it, in µs.
    pub spread_us: u64,
    /// One message in so many takes much longer; never where 0.
    pub slow_one_in: u64,
    /// How much longer, in µs, at most.
    pub slow_us: u64,
}

impl Default for Delays {
    fn default() -> Self {
        Self {
            least_us: 150,
            spread_us: 400,
            slow_one_in: 200,
            slow_us: 60_000,
        }
    }
}

/// The network. Clones are handles to the same one.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    mem: MemNetwork,
    random: SeededRandom,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    delays: Delays,
    /// Directions in which nothing passes, from and to.
    blocked: BTreeSet<(String, String)>,
    /// Hosts that neither send nor receive, as a process that is stopped.
    stalled: BTreeSet<String>,
    /// Hosts whose messages to the store take so much longer.
    late: BTreeMap<String, Duration>,
    /// One message in so many between a host and the store is lost.
    store_loss_one_in: u64,
    /// Hosts that hear no news of keys with a prefix, though the store answers them.
    withheld: BTreeSet<(String, &'static str)>,
    relays: BTreeMap<u64, Relay>,
    next: u64,
}

/// Both directions of a connection.
struct Relay {
    from: String,
    to: String,
    there: AbortHandle,
    back: AbortHandle,
    /// What its dialler sent arrives after the dialler's end too.
    lingers: bool,
}

impl Relay {
    fn between(&self, one: &str, other: &str) -> bool {
        (self.from == one && self.to == other) || (self.from == other && self.to == one)
    }

    fn end(&self) {
        self.there.abort();
        self.back.abort();
    }
}

impl Network {
    /// A network whose delays follow from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            inner: Arc::new(Inner {
                mem: MemNetwork::new(),
                random: SeededRandom::stream(seed, 0x0e7),
                state: Mutex::default(),
                changed: watch::Sender::new(0),
            }),
        }
    }

    /// Listens on a port of a host.
    ///
    /// # Errors
    /// Where somebody does already.
    pub async fn bind(&self, host: &str, port: u16) -> io::Result<Listener> {
        self.binder().bind(&name(host, port)).await
    }

    /// Binds names of this network, for listeners that bind themselves to a [`name`].
    #[must_use]
    pub fn binder(&self) -> SystemConnector {
        SystemConnector::new(self.inner.mem.clone())
    }

    /// What a host connects through.
    #[must_use]
    pub fn connector(&self, host: &str) -> Arc<dyn Connector> {
        Arc::new(Dialing {
            network: self.clone(),
            host: host.to_owned(),
        })
    }

    /// The way between a host and the metadata store.
    #[must_use]
    pub fn wire(&self, host: &str) -> Arc<dyn Wire> {
        Arc::new(StoreWire {
            network: self.clone(),
            host: host.to_owned(),
        })
    }

    /// Sets delays.
    pub fn set_delays(&self, delays: Delays) {
        self.inner.state.lock().delays = delays;
    }

    /// Loses one message in so many between hosts and the store; none where 0.
    pub fn lose_store_messages(&self, one_in: u64) {
        self.inner.state.lock().store_loss_one_in = one_in;
    }

    /// Lets every message of a host to the store arrive so much later; zero ends it.
    pub fn delay_store(&self, host: &str, by: Duration) {
        let mut state = self.inner.state.lock();
        state.late.remove(host);
        if !by.is_zero() {
            state.late.insert(host.to_owned(), by);
        }
    }

    /// Lets nothing pass from one host to another.
    pub fn block(&self, from: &str, to: &str) {
        self.change(|state| {
            state.blocked.insert((from.to_owned(), to.to_owned()));
        });
    }

    /// Lets pass again what [`Network::block`] holds back in this direction.
    pub fn unblock(&self, from: &str, to: &str) {
        self.change(|state| {
            state.blocked.remove(&(from.to_owned(), to.to_owned()));
        });
    }

    /// Lets everything pass that [`Network::block`] holds back.
    pub fn unblock_all(&self) {
        self.change(|state| state.blocked.clear());
    }

    /// Lets a host hear no news of keys with this prefix, which it watches.
    pub fn withhold_news(&self, host: &str, prefix: &'static str) {
        self.change(|state| {
            state.withheld.insert((host.to_owned(), prefix));
        });
    }

    /// Lets everybody hear all news again, and be heard at once.
    pub fn release_news(&self) {
        self.change(|state| {
            state.withheld.clear();
            state.late.clear();
        });
    }

    /// Whether everything passes everywhere, in the usual time.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        let state = self.inner.state.lock();
        state.delays == Delays::default()
            && state.blocked.is_empty()
            && state.stalled.is_empty()
            && state.withheld.is_empty()
            && state.late.is_empty()
            && state.store_loss_one_in == 0
    }

    /// Stops a host from sending and receiving.
    pub fn stall(&self, host: &str) {
        self.change(|state| {
            state.stalled.insert(host.to_owned());
        });
    }

    /// Lets it go on.
    pub fn resume(&self, host: &str) {
        self.change(|state| {
            state.stalled.remove(host);
        });
    }

    /// Ends every connection of a host, whose process died. Frames that it sent to storage nodes are still
    /// on their way.
    pub fn cut(&self, host: &str) {
        let mut state = self.inner.state.lock();
        for relay in state.relays.values() {
            if relay.from == host && relay.lingers {
                relay.back.abort();
            } else if relay.from == host || relay.to == host {
                relay.end();
            }
        }
        state.relays.retain(|_, relay| !relay.there.is_finished());
    }

    /// Ends every connection between two hosts, as a firewall does that forgot them.
    pub fn sever(&self, one: &str, other: &str) {
        let state = self.inner.state.lock();
        let between = state.relays.values().filter(|relay| relay.between(one, other));
        between.for_each(Relay::end);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.inner.state.lock());
        self.inner.changed.send_modify(|count| *count += 1);
    }

    fn passes(&self, from: &str, to: &str) -> bool {
        let state = self.inner.state.lock();
        !state.stalled.contains(from)
            && !state.stalled.contains(to)
            && !state.blocked.contains(&(from.to_owned(), to.to_owned()))
    }

    /// Waits until the direction is open.
    async fn opened(&self, from: &str, to: &str) {
        let mut changed = self.inner.changed.subscribe();
        while !self.passes(from, to) {
            // The network keeps the sender.
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn delay(&self) -> Duration {
        let delays = self.inner.state.lock().delays;
        let random = &self.inner.random;
        let mut us = delays.least_us + random.range(0, delays.spread_us.max(1));
        if delays.slow_one_in > 0 && random.range(0, delays.slow_one_in) == 0 {
            us += random.range(0, delays.slow_us.max(1));
        }
        Duration::from_micros(us)
    }

    /// Takes as long as a message from one host to another, and longer while nothing passes.
    pub async fn travel(&self, from: &str, to: &str) {
        tokio::time::sleep(self.delay()).await;
        self.opened(from, to).await;
    }

    async fn connect(&self, from: &str, host: &str, port: u16) -> io::Result<Connection> {
        let dial = async {
            tokio::time::sleep(self.delay()).await;
            self.opened(from, host).await;
            let far = self.inner.mem.connect(&name(host, port)).await?;
            tokio::time::sleep(self.delay()).await;
            self.opened(host, from).await;
            let number = {
                let mut state = self.inner.state.lock();
                state.next += 1;
                state.next
            };
            let here = Addr::mem(format!("pair-{number}"));
            let mut listener = self.binder().bind(&here).await?;
            let (near, theirs) = tokio::join!(self.inner.mem.connect(&here), listener.accept());
            self.relay(number, from, (host, port), theirs?, far);
            near
        };
        match tokio::time::timeout(DIAL_TIMEOUT, dial).await {
            Ok(dialled) => dialled,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn relay(&self, number: u64, from: &str, (to, port): (&str, u16), near: Connection, far: Connection) {
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        let way = |from: &str, to: &str| Way {
            network: self.clone(),
            from: from.to_owned(),
            to: to.to_owned(),
        };
        let there = tokio::spawn(way(from, to).carry(near_read, far_write));
        let back = tokio::spawn(way(to, from).carry(far_read, near_write));
        let relay = Relay {
            from: from.to_owned(),
            to: to.to_owned(),
            there: there.abort_handle(),
            back: back.abort_handle(),
            lingers: port == DATA && from.starts_with("broker"),
        };
        let mut state = self.inner.state.lock();
        state
            .relays
            .retain(|_, relay| !relay.there.is_finished() || !relay.back.is_finished());
        state.relays.insert(number, relay);
    }
}

/// Where a port of a host is bound.
#[must_use]
pub fn name(host: &str, port: u16) -> Addr {
    Addr::mem(format!("{host}.{port}"))
}

struct Dialing {
    network: Network,
    host: String,
}

impl Connector for Dialing {
    fn connect<'a>(&'a self, addr: &'a Addr) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            match addr {
                Addr::Tcp { host, port } => self.network.connect(&self.host, host, *port).await,
                Addr::Mem(_) | Addr::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
            }
        })
    }
}

/// One direction of a connection.
struct Way {
    network: Network,
    from: String,
    to: String,
}

impl Way {
    async fn carry(self, mut read: impl AsyncRead + Unpin, mut write: impl AsyncWrite + Unpin) {
        let (tx, mut rx) = mpsc::channel::<(Instant, Bytes)>(PIECES_MAX);
        let reading = async {
            let mut buffer = vec![0; PIECE_BYTES];
            loop {
                let len = match read.read(&mut buffer).await {
                    Ok(len) if len > 0 => len,
                    Ok(_) | Err(_) => break,
                };
                let due = Instant::now() + self.network.delay();
                let piece = Bytes::copy_from_slice(buffer.get(..len).unwrap_or_default());
                if tx.send((due, piece)).await.is_err() {
                    break;
                }
            }
            drop(tx);
        };
        let writing = async {
            while let Some((due, piece)) = rx.recv().await {
                tokio::time::sleep_until(due).await;
                self.network.opened(&self.from, &self.to).await;
                if write.write_all(&piece).await.is_err() || write.flush().await.is_err() {
                    rx.close();
                    return;
                }
            }
            // An end is a message too.
            tokio::time::sleep(self.network.delay()).await;
            self.network.opened(&self.from, &self.to).await;
            // The peer may be gone already.
            let _ = write.shutdown().await;
        };
        tokio::join!(reading, writing);
    }
}

struct StoreWire {
    network: Network,
    host: String,
}

impl StoreWire {
    fn fate(&self, from: &str, to: &str) -> Option<Duration> {
        if !self.network.passes(from, to) {
            return None;
        }
        let loss = self.network.inner.state.lock().store_loss_one_in;
        if loss > 0 && self.network.inner.random.range(0, loss) == 0 {
            return None;
        }
        Some(self.network.delay())
    }
}

impl Wire for StoreWire {
    fn there(&self) -> Option<Duration> {
        let late = self.network.inner.state.lock().late.get(&self.host).copied();
        Some(self.fate(&self.host, STORE)? + late.unwrap_or_default())
    }

    fn back(&self) -> Option<Duration> {
        self.fate(STORE, &self.host)
    }

    fn news(&self, prefix: &str) -> Option<Duration> {
        let withheld = {
            let state = self.network.inner.state.lock();
            let mut of_host = state.withheld.iter().filter(|(host, _)| *host == self.host);
            of_host.any(|(_, held)| prefix.starts_with(held))
        };
        if withheld { None } else { self.back() }
    }
}
