//! The raw framed pipe: the way a batch takes through a cluster, with everything left out that
//! is not moving bytes, checking them and making them durable.
//!
//! | stage  | process | does                                                                  |
//! |--------|---------|-----------------------------------------------------------------------|
//! | client | own     | packs 1 KiB records into batches, keeps a bounded window in flight    |
//! | proxy  | own     | checks each batch's checksum, forwards it                             |
//! | broker | own     | gives offsets, makes the frame, sends it to three nodes, answers at two |
//! | node   | three   | checks the frame, commits everything queued with one write and flush  |
//!
//! No index, no metadata, no routing, no retries: a failure ends the run. One connection per
//! hop, TCP on loopback, one thread per process and one more for a node's disk. It has its own
//! framing on purpose: a slower link of the product must not make its own yardstick slower.
//! Records and frames are the product's, so the bytes that reach a disk are the same.

mod broker;
mod client;
mod control;
mod node;
mod proxy;
mod topology;
mod wire;

pub use broker::Broker;
pub use client::Client;
pub(crate) use control::{await_end, await_line, say};
pub use node::Node;
pub use proxy::Proxy;
pub use topology::{Pipe, load_arguments};
