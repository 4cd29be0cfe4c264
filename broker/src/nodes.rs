//! Sessions with the storage nodes: who they are, and a pipelined connection to each.
//!
//! The metadata store says which nodes exist. Each gets two links: one for appends, in order, and
//! one for requests, so that a fence or a read never waits behind data. A session counts once the
//! node has said that it is the node and the generation that its record names; it ends with either
//! link, and the next one is dialled with a growing pause.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use forebay_meta::store::{MetaStore, WatchKind, scan};
use forebay_meta::{keys, record};
use forebay_proto::data::endpoint::{ClientLink, Dialer, ReplicaProtocol};
use forebay_proto::data::link::LinkSender;
use forebay_proto::data::replica::{FromNode, Hello, ToNode};
use forebay_proto::stored::{NodeRecord, NodeState};
use forebay_record::{Generation, NodeId};
use forebay_runtime::clock::Clock;
use forebay_runtime::tasks::Tasks;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::owners::Command;

/// Nodes that a cluster may have.
const NODES_MAX: usize = 65_536;
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// Queues messages for one node.
///
/// The queue is not bounded by itself: what is in it is bounded by the windows of the partitions
/// that send, and a node that falls behind them is cut off.
#[derive(Debug, Clone)]
pub struct NodeSession {
    /// For appends and committed offsets.
    pub append: mpsc::UnboundedSender<ToNode>,
    /// For everything that is answered once.
    pub request: mpsc::UnboundedSender<ToNode>,
}

/// What happened to a node.
#[derive(Debug)]
pub enum NodeEvent {
    /// Its record is new or has changed.
    Known(Box<NodeRecord>),
    /// Its record is gone.
    Forgotten(NodeId),
    /// A session is up.
    Up {
        /// The node.
        node: NodeId,
        /// Its generation.
        generation: Generation,
        /// To talk to it.
        session: NodeSession,
    },
    /// The session is over.
    Down(NodeId),
    /// It said something.
    Said(NodeId, FromNode),
}

/// What connecting to nodes takes.
#[derive(Clone)]
pub struct Nodes {
    /// Where the records are.
    pub store: Arc<dyn MetaStore>,
    /// To connect.
    pub dialer: Dialer<ReplicaProtocol>,
    /// Cluster id.
    pub cluster: String,
    /// Cluster incarnation.
    pub incarnation: u32,
    /// This process's name, for the node's log.
    pub peer: String,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where sessions run.
    pub tasks: Tasks,
    /// Where events go: the owners' mailbox.
    pub events: mpsc::Sender<Command>,
}

impl Nodes {
    /// Follows the nodes' records and keeps a session with each, until the group is cancelled.
    pub async fn run(self) {
        let mut sessions: HashMap<NodeId, (NodeRecord, CancellationToken)> = HashMap::new();
        let token = self.tasks.token();
        while !token.is_cancelled() {
            tokio::select! {
                biased;
                () = token.cancelled() => break,
                () = self.follow(&mut sessions) => {}
            }
            tokio::select! {
                () = token.cancelled() => break,
                () = self.clock.sleep(PAUSE_MAX) => {}
            }
        }
        for (_, stop) in sessions.values() {
            stop.cancel();
        }
    }

    /// One scan and the watch after it; returns when either fails.
    async fn follow(&self, sessions: &mut HashMap<NodeId, (NodeRecord, CancellationToken)>) {
        let (entries, revision) = match scan(self.store.as_ref(), keys::NODES, NODES_MAX).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "storage nodes cannot be listed");
                return;
            }
        };
        let mut listed = Vec::with_capacity(entries.len());
        for entry in &entries {
            if let Some(node) = keys::node_of(&entry.key) {
                listed.push(node);
                self.on_record(node, &entry.value, sessions).await;
            }
        }
        let gone: Vec<_> = sessions
            .keys()
            .filter(|node| !listed.contains(node))
            .copied()
            .collect();
        for node in gone {
            self.on_gone(node, sessions).await;
        }
        let mut watch = self.store.watch(keys::NODES, revision);
        while let Some(batch) = watch.next().await {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    tracing::info!(%error, "watch of storage nodes begins anew");
                    return;
                }
            };
            for event in batch.events {
                let Some(node) = keys::node_of(event.key()) else {
                    continue;
                };
                match event.kind {
                    WatchKind::Put(entry) => self.on_record(node, &entry.value, sessions).await,
                    WatchKind::Delete { .. } => self.on_gone(node, sessions).await,
                }
            }
        }
    }

    async fn on_record(
        &self,
        node: NodeId,
        value: &[u8],
        sessions: &mut HashMap<NodeId, (NodeRecord, CancellationToken)>,
    ) {
        let record: NodeRecord = match record::decode(value) {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(%node, %error, "a storage node's record is damaged");
                return;
            }
        };
        self.tell(NodeEvent::Known(Box::new(record.clone()))).await;
        if record.state() == NodeState::Gone {
            if let Some((_, stop)) = sessions.remove(&node) {
                stop.cancel();
            }
            return;
        }
        let same = sessions.get(&node).is_some_and(|(known, _)| {
            (known.boot, known.generation, &known.data_address)
                == (record.boot, record.generation, &record.data_address)
        });
        if let Some((known, stop)) = sessions.get_mut(&node) {
            if same {
                *known = record;
                return;
            }
            stop.cancel();
        }
        let stop = self.tasks.token().child_token();
        sessions.insert(node, (record.clone(), stop.clone()));
        let this = self.clone();
        self.tasks.spawn(format!("node {node}"), async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => this.tell(NodeEvent::Down(node)).await,
                () = this.keep_session(node, &record) => {}
            }
        });
    }

    async fn on_gone(&self, node: NodeId, sessions: &mut HashMap<NodeId, (NodeRecord, CancellationToken)>) {
        if let Some((_, stop)) = sessions.remove(&node) {
            stop.cancel();
        }
        self.tell(NodeEvent::Forgotten(node)).await;
    }

    async fn tell(&self, event: NodeEvent) {
        // A closed mailbox means that the broker is going away.
        let _ = self.events.send(Command::Node(event)).await;
    }

    async fn keep_session(&self, node: NodeId, record: &NodeRecord) {
        let mut pause = PAUSE_MIN;
        loop {
            match self.session(node, record).await {
                Ok(()) => pause = PAUSE_MIN,
                Err(reason) => {
                    tracing::debug!(%node, address = record.data_address, reason, "no session with storage node");
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
            self.clock.sleep(pause).await;
        }
    }

    /// One session, from dialling to its end. An error means that it never came up.
    async fn session(&self, node: NodeId, record: &NodeRecord) -> Result<(), String> {
        let (mut appends, generation) = self.greet(node, record).await?;
        let (mut requests, _) = self.greet(node, record).await?;
        let (append, append_queue) = mpsc::unbounded_channel();
        let (request, request_queue) = mpsc::unbounded_channel();
        tracing::info!(%node, %generation, "session with storage node is up");
        self.tell(NodeEvent::Up {
            node,
            generation,
            session: NodeSession { append, request },
        })
        .await;
        let (append_tx, request_tx) = (appends.tx.clone(), requests.tx.clone());
        let ended = tokio::select! {
            biased;
            ended = self.listen(node, &mut appends) => ended,
            ended = self.listen(node, &mut requests) => ended,
            () = forward(append_queue, &append_tx) => "append link closed".to_owned(),
            () = forward(request_queue, &request_tx) => "request link closed".to_owned(),
        };
        tracing::info!(%node, reason = ended, "session with storage node ended");
        self.tell(NodeEvent::Down(node)).await;
        Ok(())
    }

    async fn greet(
        &self,
        node: NodeId,
        record: &NodeRecord,
    ) -> Result<(ClientLink<ReplicaProtocol>, Generation), String> {
        let greeting = async {
            let mut link = self
                .dialer
                .dial(&record.data_address)
                .await
                .map_err(|error| error.to_string())?;
            let hello = Hello {
                cluster: self.cluster.clone(),
                incarnation: self.incarnation,
                node,
                peer: self.peer.clone(),
            };
            link.tx
                .send(ToNode::Hello(hello))
                .await
                .map_err(|error| error.to_string())?;
            match link.rx.recv().await.map_err(|error| error.to_string())? {
                Some(FromNode::Welcome {
                    node: found,
                    generation,
                    boot,
                }) if found == node && generation.0 == record.generation && boot == record.boot => {
                    Ok((link, generation))
                }
                Some(FromNode::Welcome {
                    node: found,
                    generation,
                    boot,
                }) => Err(format!(
                    "{found} {generation} boot {boot} answered, {node} g{} boot {} is registered",
                    record.generation, record.boot
                )),
                Some(FromNode::Refused(reason)) => Err(reason),
                Some(_) => Err("it spoke before its welcome".to_owned()),
                None => Err("it closed the connection".to_owned()),
            }
        };
        forebay_runtime::clock::timeout(self.clock.as_ref(), HELLO_TIMEOUT, greeting)
            .await
            .unwrap_or_else(|elapsed| Err(format!("no welcome: {elapsed}")))
    }

    async fn listen(&self, node: NodeId, link: &mut ClientLink<ReplicaProtocol>) -> String {
        loop {
            match link.rx.recv().await {
                Ok(Some(message)) => self.tell(NodeEvent::Said(node, message)).await,
                Ok(None) => return "closed by the node".to_owned(),
                Err(error) => return error.to_string(),
            }
        }
    }
}

async fn forward(mut queue: mpsc::UnboundedReceiver<ToNode>, link: &LinkSender<ToNode>) {
    while let Some(message) = queue.recv().await {
        if link.send(message).await.is_err() {
            return;
        }
    }
}
