//! The cluster's metadata: where it is kept, what it says, and who places partitions.
//!
//! [`store`] is the seam to etcd or the embedded store; [`keys`] and [`record`] are the bytes in
//! it; [`model`] is the partition record as a value with its changes. On top of them: what the
//! [`cluster`] is, [`counter`]s for ids, [`topics`] and where they are ([`locate`]), the
//! [`session`]s of processes, what an operator wants of [`storage`]
//! nodes, and the [`controller`].

pub mod cluster;
pub mod controller;
pub mod counter;
mod failure;
#[cfg(test)]
mod faults;
pub mod keys;
pub mod locate;
pub mod model;
pub mod record;
pub mod restore;
pub mod session;
pub mod storage;
pub mod store;
pub mod topics;

pub use failure::MetaFailure;
