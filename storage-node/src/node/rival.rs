//! Whether another process is this node already.
//!
//! A copy of a disk looks like the disk: its superblock says what the node's record says, while the
//! original goes on and is given what the copy will never have. So before a node starts from another
//! address than its record has, it asks there. Who answers with the recorded boot lives, and keeps the
//! node. Who does not answer is taken for ended, as always: a copy of a disk whose process was cut off,
//! or has ended since, is recognized by what the record knows (see [`crate::register`]).

use std::time::Duration;

use forebay_proto::data::endpoint::{Dialer, ReplicaProtocol};
use forebay_proto::data::replica::{FromNode, Hello, ToNode};
use forebay_proto::stored::{NodeRecord, NodeState};
use forebay_runtime::clock::{Clock, timeout};

use crate::config::Config;
use crate::register::Refused;

/// A process that lives answers within this time.
const ANSWER: Duration = Duration::from_secs(2);

/// The node's start before this one.
pub(super) struct Before<'a> {
    pub cluster: &'a str,
    pub incarnation: u32,
    pub config: &'a Config,
    pub record: Option<&'a NodeRecord>,
}

impl Before<'_> {
    /// Asks where the record says that the node is reached.
    pub(super) async fn refuse_if_it_runs(
        &self,
        dialer: &Dialer<ReplicaProtocol>,
        clock: &dyn Clock,
    ) -> Result<(), Refused> {
        let Some(record) = self.record else { return Ok(()) };
        let elsewhere = !record.data_address.is_empty() && record.data_address != self.config.data_address;
        if record.state() == NodeState::Gone || !elsewhere {
            return Ok(());
        }
        match timeout(clock, ANSWER, self.ask(record, dialer)).await {
            Ok(Some(boot)) if boot == record.boot => Err(Refused::Runs {
                path: self.config.data_dir.clone(),
                node: self.config.node(),
                boot,
                address: record.data_address.clone(),
            }),
            answer => {
                tracing::debug!(node = %self.config.node(), address = record.data_address, ?answer, "the node's last start has ended");
                Ok(())
            }
        }
    }

    /// The boot of the node that answers; none where nobody does, or somebody else.
    async fn ask(&self, record: &NodeRecord, dialer: &Dialer<ReplicaProtocol>) -> Option<u64> {
        let mut link = dialer.dial(&record.data_address).await.ok()?;
        let hello = Hello {
            cluster: self.cluster.to_owned(),
            incarnation: self.incarnation,
            node: self.config.node(),
            peer: format!("{} that starts", self.config.node()),
        };
        link.tx.send(ToNode::Hello(hello)).await.ok()?;
        match link.rx.recv().await.ok()?? {
            FromNode::Welcome {
                node,
                generation,
                boot,
            } if node == self.config.node() && generation.0 == record.generation => Some(boot),
            _ => None,
        }
    }
}
