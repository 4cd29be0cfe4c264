//! How the controller asks brokers and storage nodes: whether they live, what they have, what it weighs.

use std::sync::Arc;
use std::time::Duration;

use forebay_meta::controller::{Balancing, Holders, ProbeError, Probes};
use forebay_proto::v1;
use forebay_proxy::Control;
use forebay_record::{BrokerId, PartitionId};
use forebay_runtime::clock::Clock;

/// Who fails a ping is asked once more after this long.
const REFUSED_AGAIN: Duration = Duration::from_millis(50);

/// How the controller pings brokers, and the leader among controllers.
#[must_use]
pub fn probes(control: &Control, clock: &Arc<dyn Clock>) -> Probes {
    let (to_brokers, to_leader) = (control.clone(), control.clone());
    let (broker_clock, leader_clock) = (Arc::clone(clock), Arc::clone(clock));
    Probes {
        broker: Arc::new(move |id, address| {
            let (control, clock) = (to_brokers.clone(), Arc::clone(&broker_clock));
            Box::pin(async move { twice(&*clock, || ping(&control, id, &address)).await })
        }),
        leader: Arc::new(move |address| {
            let (control, clock) = (to_leader.clone(), Arc::clone(&leader_clock));
            Box::pin(async move { twice(&*clock, || answers(&control, &address)).await })
        }),
    }
}

/// A connection that has just ended, or a full backlog, looks the same as a process that is gone: only
/// the second time it is one.
async fn twice<F: Future<Output = Result<(), ProbeError>>>(
    clock: &dyn Clock,
    ping: impl Fn() -> F,
) -> Result<(), ProbeError> {
    match ping().await {
        Ok(()) => Ok(()),
        Err(_) => {
            clock.sleep(REFUSED_AGAIN).await;
            ping().await
        }
    }
}

async fn ping(control: &Control, id: BrokerId, address: &str) -> Result<(), ProbeError> {
    let broker = control.broker(address).map_err(|_| ProbeError::Refused)?;
    match broker.ping(tonic::Request::new(v1::PingRequest {})).await {
        // Another broker at the address: the one that was there before has ended.
        Ok(answer) if answer.get_ref().broker != id.0 => Err(ProbeError::Refused),
        Ok(_) => Ok(()),
        Err(status) if status.code() == tonic::Code::Unavailable => Err(ProbeError::Refused),
        Err(_) => Err(ProbeError::Timeout),
    }
}

/// Whether a process answers calls, be it that it serves no broker. Only a connection that its machine
/// refuses says that it is gone: who is cut off himself must not think so of a leader.
async fn answers(control: &Control, address: &str) -> Result<(), ProbeError> {
    let process = control.broker(address).map_err(|_| ProbeError::Timeout)?;
    match process.ping(tonic::Request::new(v1::PingRequest {})).await {
        Err(status) if is_refused(&status) => Err(ProbeError::Refused),
        Err(status) if status.code() != tonic::Code::Unimplemented => Err(ProbeError::Timeout),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn is_refused(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return error.kind() == std::io::ErrorKind::ConnectionRefused;
        }
        cause = error.source();
    }
    false
}

/// How the controller asks brokers how much their partitions have.
#[must_use]
pub fn balancing(control: &Control, rebalance: bool) -> Balancing {
    let control = control.clone();
    let weigh = Arc::new(move |address: String| {
        let control = control.clone();
        let asking = async move {
            let broker = control.broker(&address).map_err(|_| ProbeError::Refused)?;
            let request = tonic::Request::new(v1::DescribePartitionsRequest::default());
            let answer = broker.describe_partitions(request).await;
            let owned = answer.map_err(|_| ProbeError::Timeout)?.into_inner().partitions;
            let weight =
                |one: v1::OwnedPartition| Some((PartitionId(one.partition_id), one.bytes_per_second?));
            Ok(owned.into_iter().filter_map(weight).collect())
        };
        Box::pin(asking) as futures_util::future::BoxFuture<'static, _>
    });
    Balancing { weigh, rebalance }
}

/// How the controller asks brokers and storage nodes what they have left of deleted partitions.
#[must_use]
pub fn holders(control: &Control) -> Holders {
    let ids = |partitions: Vec<PartitionId>| partitions.into_iter().map(PartitionId::get).collect();
    let (to_brokers, to_nodes) = (control.clone(), control.clone());
    Holders {
        brokers: Arc::new(move |address, partitions| {
            let (control, partition_ids) = (to_brokers.clone(), ids(partitions));
            Box::pin(async move {
                let broker = control.broker(&address).map_err(|_| ProbeError::Refused)?;
                let request = tonic::Request::new(v1::DescribePartitionsRequest { partition_ids });
                let answer = broker.describe_partitions(request).await;
                let owned = answer.map_err(|_| ProbeError::Timeout)?.into_inner().partitions;
                Ok(owned
                    .into_iter()
                    .map(|one| PartitionId(one.partition_id))
                    .collect())
            })
        }),
        nodes: Arc::new(move |address, partitions| {
            let (control, partition_ids) = (to_nodes.clone(), ids(partitions));
            Box::pin(async move {
                let node = control.node(&address).map_err(|_| ProbeError::Refused)?;
                let request = tonic::Request::new(v1::HoldsRequest { partition_ids });
                let answer = node.holds(request).await;
                let held = answer
                    .map_err(|_| ProbeError::Timeout)?
                    .into_inner()
                    .partition_ids;
                Ok(held.into_iter().map(PartitionId).collect())
            })
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use forebay_runtime::clock::SystemClock;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_leader_is_gone_where_its_address_refuses_and_not_where_it_says_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address_of = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let address = address_of(&listener);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let ask = |address: &str| (probes(&Control::new(), &clock).leader)(address.to_owned());
        let closing = tokio::spawn(async move {
            loop {
                drop(listener.accept().await.unwrap());
            }
        });
        assert_eq!(ask(&address).await, Err(ProbeError::Timeout), "ends connections");
        closing.abort();
        assert!(closing.await.unwrap_err().is_cancelled());
        assert_eq!(ask(&address).await, Err(ProbeError::Refused));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = address_of(&listener);
        let (health, service) = tonic_health::server::health_reporter();
        drop(health);
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let serving = tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        assert_eq!(ask(&address).await, Ok(()), "serves no broker");
        serving.abort();
    }
}
