//! Control calls to brokers and storage nodes: a peer of the same process is called through the
//! service trait that gRPC generates, any other over a gRPC channel behind the same trait.
//!
//! A caller never knows which. Channels connect when first used and reconnect by themselves; at
//! most [`CHANNELS_MAX`] are kept. Deadlines are the caller's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::v1::broker_client::BrokerClient;
use forebay_proto::v1::broker_server::Broker;
use forebay_proto::v1::storage_node_client::StorageNodeClient;
use forebay_proto::v1::storage_node_server::StorageNode;
use forebay_proto::v1::{
    BrokerSummary, DeclareLostPartitionRequest, DeclareLostResponse, DescribePartitionsRequest,
    DescribePartitionsResponse, DrainRequest, DrainResponse, ForceSealPartitionRequest, ForceSealResponse,
    HoldsRequest, HoldsResponse, InitProducerRequest, InitProducerResponse, InventoryRequest,
    InventoryResponse, LocateRequest, LocateResponse, PingRequest, PingResponse, StorageNodeStatus,
    StorageNodeStatusRequest, SummarizeRequest,
};
use forebay_runtime::net::{Addr, Connector, for_grpc};
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// Channels kept at once; when there are more, all are dropped and made anew.
pub const CHANNELS_MAX: usize = 4096;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A `Locate` of a topic with very many partitions is the largest answer.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why a peer cannot be called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The address is none that a call can go to.
    #[error("control address \"{0}\" is none of tcp://host:port, http://host:port, unix:///path")]
    Address(String),
    /// Nobody of this name serves in this process.
    #[error("nobody serves control calls at \"{0}\" in this process")]
    Unknown(String),
}

/// Finds who answers control calls at an address. Clones share what was registered.
#[derive(Clone, Default)]
pub struct Control {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    brokers: Mutex<HashMap<String, Arc<dyn Broker>>>,
    nodes: Mutex<HashMap<String, Arc<dyn StorageNode>>>,
    channels: Mutex<HashMap<String, Channel>>,
    connector: Option<Arc<dyn Connector>>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field(
                "brokers",
                &self.shared.brokers.lock().keys().cloned().collect::<Vec<_>>(),
            )
            .field(
                "nodes",
                &self.shared.nodes.lock().keys().cloned().collect::<Vec<_>>(),
            )
            .finish_non_exhaustive()
    }
}

impl Control {
    /// Knows nobody in this process yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, with channels over connections of a connector's instead of the system's sockets.
    #[must_use]
    pub fn over(connector: Arc<dyn Connector>) -> Self {
        Self {
            shared: Arc::new(Shared {
                connector: Some(connector),
                ..Shared::default()
            }),
        }
    }

    /// Calls to this address go to `broker`, without a socket.
    pub fn register_broker(&self, address: impl Into<String>, broker: Arc<dyn Broker>) {
        self.shared.brokers.lock().insert(address.into(), broker);
    }

    /// Calls to this address go to `node`, without a socket.
    pub fn register_node(&self, address: impl Into<String>, node: Arc<dyn StorageNode>) {
        self.shared.nodes.lock().insert(address.into(), node);
    }

    /// Forgets who was registered at an address.
    pub fn unregister(&self, address: &str) {
        self.shared.brokers.lock().remove(address);
        self.shared.nodes.lock().remove(address);
    }

    /// The broker at an address.
    ///
    /// # Errors
    /// Where no call can go there.
    pub fn broker(&self, address: &str) -> Result<Arc<dyn Broker>, ControlError> {
        if let Some(local) = self.shared.brokers.lock().get(address) {
            return Ok(Arc::clone(local));
        }
        Ok(Arc::new(RemoteBroker {
            channel: self.channel(address)?,
        }))
    }

    /// The storage node at an address.
    ///
    /// # Errors
    /// Where no call can go there.
    pub fn node(&self, address: &str) -> Result<Arc<dyn StorageNode>, ControlError> {
        if let Some(local) = self.shared.nodes.lock().get(address) {
            return Ok(Arc::clone(local));
        }
        Ok(Arc::new(RemoteNode {
            channel: self.channel(address)?,
        }))
    }

    fn channel(&self, address: &str) -> Result<Channel, ControlError> {
        let mut channels = self.shared.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = connect_lazily(address, self.shared.connector.as_ref())?;
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

fn connect_lazily(address: &str, connector: Option<&Arc<dyn Connector>>) -> Result<Channel, ControlError> {
    let unusable = || ControlError::Address(address.to_owned());
    let uri = if address.starts_with("http://") {
        address.to_owned()
    } else {
        match address.parse::<Addr>().map_err(|_| unusable())? {
            Addr::Tcp { host, port } if host.contains(':') => format!("http://[{host}]:{port}"),
            Addr::Tcp { host, port } => format!("http://{host}:{port}"),
            Addr::Unix(path) => format!("unix://{}", path.display()),
            Addr::Mem(name) => return Err(ControlError::Unknown(name)),
        }
    };
    let endpoint = Endpoint::from_shared(uri).map_err(|_| unusable())?;
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
    Ok(match connector {
        // The times of pings are the system's, which a simulation must not depend on.
        Some(connector) => endpoint.connect_with_connector_lazy(for_grpc(Arc::clone(connector))),
        None => endpoint.http2_keep_alive_interval(KEEP_ALIVE).connect_lazy(),
    })
}

/// A broker of another process.
struct RemoteBroker {
    channel: Channel,
}

impl RemoteBroker {
    fn client(&self) -> BrokerClient<Channel> {
        BrokerClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Broker for RemoteBroker {
    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<LocateResponse>, Status> {
        self.client().locate(request).await
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        self.client().ping(request).await
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        self.client().drain(request).await
    }

    async fn force_seal(
        &self,
        request: Request<ForceSealPartitionRequest>,
    ) -> Result<Response<ForceSealResponse>, Status> {
        self.client().force_seal(request).await
    }

    async fn declare_lost(
        &self,
        request: Request<DeclareLostPartitionRequest>,
    ) -> Result<Response<DeclareLostResponse>, Status> {
        self.client().declare_lost(request).await
    }

    async fn describe_partitions(
        &self,
        request: Request<DescribePartitionsRequest>,
    ) -> Result<Response<DescribePartitionsResponse>, Status> {
        self.client().describe_partitions(request).await
    }

    async fn summarize(&self, request: Request<SummarizeRequest>) -> Result<Response<BrokerSummary>, Status> {
        self.client().summarize(request).await
    }

    async fn init_producer(
        &self,
        request: Request<InitProducerRequest>,
    ) -> Result<Response<InitProducerResponse>, Status> {
        self.client().init_producer(request).await
    }
}

/// A storage node of another process.
struct RemoteNode {
    channel: Channel,
}

#[tonic::async_trait]
impl StorageNode for RemoteNode {
    async fn status(
        &self,
        request: Request<StorageNodeStatusRequest>,
    ) -> Result<Response<StorageNodeStatus>, Status> {
        StorageNodeClient::new(self.channel.clone()).status(request).await
    }

    async fn holds(&self, request: Request<HoldsRequest>) -> Result<Response<HoldsResponse>, Status> {
        StorageNodeClient::new(self.channel.clone()).holds(request).await
    }

    async fn inventory(
        &self,
        request: Request<InventoryRequest>,
    ) -> Result<Response<InventoryResponse>, Status> {
        StorageNodeClient::new(self.channel.clone())
            .inventory(request)
            .await
    }
}
