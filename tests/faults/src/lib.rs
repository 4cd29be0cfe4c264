//! Real faults: a cluster of separate processes under load, broken on purpose, and a history of it all.
//!
//! 1. [`plan`] draws the faults of a round from a seed, never more at a time than a quorum survives.
//! 2. [`site`] starts etcd, storage nodes, brokers and proxies, where it can each in a network
//!    namespace of its own ([`network`]), and starts again what ends.
//! 3. [`load`] writes and reads throughout, [`chain`] follows the records; [`recorder`] notes it.
//! 4. [`inject`] does and undoes the faults; [`round`] ties it together, heals all, waits until every
//!    partition takes records again, reads everything and has the history checked.

pub mod abilities;
pub mod chain;
pub mod inject;
pub mod load;
pub mod network;
pub mod plan;
pub mod recorder;
pub mod round;
pub mod site;
