//! What the tests are made with: real processes on loopback, and a record of what was promised.
//!
//! [`etcd`] and [`process`] start what a user would start, on ports of the system's choice and in
//! temporary folders, and end it by process id. [`cluster`] is a whole Forebay of them. [`load`]
//! writes numbered records, remembers every answer, and compares it with what is read afterwards.
//! [`command`] is the command line as a user types it. [`gate`] is a way to a server that can be shut.
//! [`collector`] takes the traces that processes export. [`service`] is for those who break things: a
//! program that is killed, paused and started again without anybody waiting for it.

pub mod cluster;
pub mod collector;
pub mod command;
pub mod etcd;
pub mod gate;
pub mod load;
pub mod process;
pub mod service;
