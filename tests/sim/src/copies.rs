//! Copies of disks: what a snapshot, a backup or a careless operator puts into another machine.
//!
//! A copy is a host of its own with the storage node's id and the bytes that the disk had at some moment.
//! At last it goes: the one of the two disks that the node's record names is put into the original's
//! place, as an operator would who looked which one the node runs on, and the other one is thrown away.

use std::time::Duration;

use forebay_meta::keys;
use forebay_proto::stored::NodeRecord;
use forebay_record::NodeId;
use forebay_storage_node::disk::fault::FaultDisk;

use crate::host::{Harm, Host, HostId, Order, folder};
use crate::network::DATA;
use crate::world::World;

/// What a process asked of the metadata store is done within this time, or never.
const UNDER_WAY: Duration = Duration::from_secs(5);

/// The record of the node that a storage host runs.
#[must_use]
pub fn record(world: &World, node: HostId) -> Option<NodeRecord> {
    let entries = world.store.entries(&keys::node(NodeId(node.process())));
    let entry = entries.first()?;
    forebay_meta::record::decode(&entry.value).ok()
}

/// Starts a host with a copy of another one's disk.
pub fn start(world: &World, original: HostId, disk: FaultDisk) {
    let copy = original.copy();
    tracing::info!(target: "sim", host = %copy, "a copy of the disk is started");
    world.disks.put(&folder(copy.number), Some(disk));
    world.add_copy(Host::start(world, copy));
}

/// Ends all copies that nobody has ended yet; each is gone some seconds later.
pub fn retire(world: &World, hosts: &[Host]) {
    for copy in world.retiring() {
        let original = hosts
            .iter()
            .find(|host| host.id.copy() == copy.id)
            .map(|host| (host.id, host.clone()));
        if let Some((id, original)) = original {
            let world = world.clone();
            tokio::spawn(async move { retire_one(&world, &copy, id, &original).await });
        }
    }
}

async fn retire_one(world: &World, copy: &Host, id: HostId, original: &Host) {
    copy.order(Order::Halt);
    tokio::time::sleep(UNDER_WAY).await;
    let is_copy = record(world, id).is_some_and(|record| record.data_address == address(copy.id));
    tracing::info!(target: "sim", host = %copy.id, is_copy, "one of both disks is thrown away");
    let disk = world.disks.get(&folder(copy.id.number));
    world.disks.put(&folder(copy.id.number), None);
    if let Some(disk) = disk.filter(|_| is_copy) {
        world.disks.put(&folder(id.number), Some(disk.image()));
        // It may run on its own disk still, and not know that it is not the node any more.
        original.order(Order::Kill {
            harm: Harm::None,
            down: Duration::from_millis(100),
        });
    }
    world.remove_copy(copy.id);
}

fn address(host: HostId) -> String {
    format!("tcp://{host}:{DATA}")
}
