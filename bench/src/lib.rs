//! Programs that measure Forebay, and the baselines that it is measured against.
//!
//! [`disk_loop`] is the ceiling of one disk, [`pipe`] the least that a replicated write costs, and
//! [`produce`] runs both beside the product, in turns, and compares them round by round; [`ingest`]
//! does so with the product's log shipper and the bare loop. [`budget`] watches the disks of a cluster
//! that offloads. [`failover`] kills brokers and storage
//! nodes under load.

pub mod budget;
mod disk;
pub mod disk_loop;
pub mod failover;
pub mod ingest;
pub mod measure;
pub mod pack;
pub mod pipe;
mod process;
pub mod produce;
