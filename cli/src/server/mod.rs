//! Puts roles together into a process.
//!
//! 1. [`config`]: what the process is told.
//! 2. [`start_roles`] opens the metadata store, joins the cluster, and starts the roles in the order
//!    in which they need each other: storage, broker, proxy, controller.
//! 3. Roles of one process meet in exchanges: they call each other without a socket, by the same
//!    protocol that they speak over one.
//! 4. [`Running::shutdown`] stops them in the opposite order, each finishing what it accepted.

pub mod asking;
pub mod config;
mod garbage;
mod process;
mod roles;
mod running;
mod standalone;

pub use config::{Config, Role};
pub use process::{Process, open_etcd};
pub use roles::start_roles;
pub use running::Running;
pub use standalone::{StandaloneOptions, start_standalone};
