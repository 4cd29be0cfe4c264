//! The handle that everything else is made from.

use std::sync::Arc;

use crate::admin::Admin;
use crate::config::{ClientConfig, ConfigError};
use crate::consumer::{Consumer, ConsumerConfig};
use crate::link::{ConnectError, Endpoints, Link};
use crate::producer::{Producer, ProducerConfig, ProducerError};
use crate::trace::Tracer;

/// A connection to the service. Cheap to clone; clones share it.
///
/// Each producer and each consumer has a connection of its own, so that none waits behind
/// another's data.
#[derive(Debug, Clone)]
pub struct Client {
    link: Arc<Link>,
    tracer: Tracer,
}

impl Client {
    /// Connects to the first endpoint that accepts.
    ///
    /// # Errors
    /// A setting is wrong, or no endpoint accepts: the error names all that were tried.
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        let link = Link::new(Arc::new(Endpoints::new(&config)?));
        link.connected().await?;
        Ok(Self {
            link: Arc::new(link),
            tracer: config.tracer,
        })
    }

    /// Topics, offsets and the state of the cluster.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(self.link.clone())
    }

    /// Starts a producer.
    ///
    /// # Errors
    /// A setting is wrong, or an idempotent producer got no id.
    pub async fn producer(&self, config: ProducerConfig) -> Result<Producer, ProducerError> {
        let link = Link::new(self.link.endpoints().clone());
        Producer::start(link, config, self.tracer.clone()).await
    }

    /// A consumer without partitions; assign it some.
    ///
    /// # Errors
    /// A setting is wrong.
    pub fn consumer(&self, config: ConsumerConfig) -> Result<Consumer, ConfigError> {
        let link = Link::new(self.link.endpoints().clone());
        Consumer::new(link, config, self.tracer.clone())
    }
}
