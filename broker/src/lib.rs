//! The broker: owns partitions, assigns offsets, replicates, answers tail reads; keeps nothing.
//!
//! [`assignments`] takes partitions that the controller wishes here; [`owners`] is the task that
//! owns them; [`partition`] is what owning one means, as a state machine; [`nodes`] are the
//! sessions with storage nodes; [`objects`] is the object store; [`front`] the connections of proxies; [`service`] the control calls.

mod assignments;
mod broker;
mod changes;
mod config;
mod describe;
mod front;
mod metrics;
mod nodes;
mod objects;
mod owners;
pub mod partition;
mod registration;
mod service;
mod store;

pub use broker::{Broker, Parts};
pub use config::BrokerConfig;
pub use objects::Objects;
pub use service::Control;
