//! Giving a node's disk up for an empty one: the metadata store learns it before the folder does.

use std::sync::Arc;

use forebay_meta::store::MetaStore;
use forebay_proto::stored::{NodeRecord, NodeState};
use forebay_record::{Generation, NodeId};
use forebay_runtime::clock::{Clock, SystemClock};
use forebay_runtime::config::Validate;
use forebay_runtime::execution::Execution;

use super::start::{StartError, Wiping};
use crate::config::Config;
use crate::disk::{Folders, RealFolders};
use crate::register;

/// Gives a node a new generation and an empty folder, in two steps.
pub struct Reformat {
    config: Config,
    seen: register::Seen,
    record: NodeRecord,
    next: Generation,
    folder: Wiping,
    execution: Execution,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Reformat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reformat")
            .field("record", &self.record)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Reformat {
    /// Locks the folder and looks who it is of: nothing is changed yet.
    ///
    /// # Errors
    /// Where a process uses the folder, it is another node's, or the metadata store does not answer or
    /// does not know the node.
    pub async fn begin(config: &Config, incarnation: u32, meta: &dyn MetaStore) -> Result<Self, StartError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let place = (
            Arc::new(RealFolders) as Arc<dyn Folders>,
            Execution::Threads,
            clock,
        );
        Self::begin_in(config, incarnation, meta, place).await
    }

    /// The same with a folder of any kind.
    ///
    /// # Errors
    /// As [`Reformat::begin`].
    pub async fn begin_in(
        config: &Config,
        incarnation: u32,
        meta: &dyn MetaStore,
        (folders, execution, clock): (Arc<dyn Folders>, Execution, Arc<dyn Clock>),
    ) -> Result<Self, StartError> {
        config.validate()?;
        let seen = register::read(meta, config.node()).await?;
        let record = seen
            .record
            .clone()
            .ok_or_else(|| register::Refused::NeverStarted {
                node: config.node(),
                path: config.data_dir.clone(),
            })?;
        let (next, own) = (register::next_generation(&record, incarnation), config.clone());
        let begin = move || Wiping::begin(&own, &*folders);
        let locked = execution.run(&*clock, begin).await;
        Ok(Self {
            config: config.clone(),
            seen,
            record,
            next,
            folder: locked.map_err(|_| StartError::Interrupted)??,
            execution,
            clock,
        })
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.config.node()
    }

    /// The generation that is given up.
    #[must_use]
    pub fn generation(&self) -> Generation {
        Generation(self.record.generation)
    }

    /// Bytes of the journal in the folder.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.folder.bytes
    }

    /// Everything the node held is gone after this, and its old generation is never answered for again
    /// (I18). The store learns it first. Returns the generation of the next start.
    ///
    /// # Errors
    /// Where the folder cannot be written, or the metadata store does not answer; then the node must be
    /// reformatted again.
    pub async fn finish(self, meta: &dyn MetaStore) -> Result<Generation, StartError> {
        let gone = NodeRecord {
            state: NodeState::Gone as i32,
            lsn_checkpoint: 0,
            ..self.record
        };
        register::register(meta, &self.seen, &gone).await?;
        let folder = self.folder;
        let wiped = self.execution.run(&*self.clock, move || folder.wipe()).await;
        wiped.map_err(|_| StartError::Interrupted)??;
        Ok(self.next)
    }
}
