//! A whole cluster in one thread, on a simulated network, disk, metadata store and clock, from one
//! seed.
//!
//! The roles and the clients are the real ones; only what lies under them is simulated. A run's
//! [`run::Outcome`] says what the history checker found, and a digest of everything that happened:
//! the same seed gives the same digest.

#![allow(clippy::expect_used)]

pub mod copies;
pub mod disks;
pub mod entropy;
pub mod eventlog;
pub mod faults;
pub mod host;
pub mod load;
pub mod loss;
pub mod network;
pub mod objects;
pub mod rest;
pub mod restore;
pub mod retention;
pub mod run;
pub mod scenes;
pub mod time;
pub mod world;
