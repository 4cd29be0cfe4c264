//! Copies sealed segments into the object store, when their owner asks.
//!
//! The owner chose the object's name and verifies what this wrote; nothing here touches metadata, and a
//! copy that fails or is given up leaves an object that no record names. Only what lies below the
//! sealed end is copied (I14), read and checked frame by frame like any other read. The state at the
//! end of the run is computed from the segment's own OPEN frame and its batch headers, as its owner
//! computed it for the segment that followed.
//!
//! A copy ends with the session that asked for it; then, as after any failure, the parts that were sent
//! are given up.

use std::sync::Arc;

use bytes::Bytes;
use forebay_proto::data::replica::{
    FromNode, HeadersRequest, NodeFailure, ReadRequest, UploadRequest, Uploaded,
};
use forebay_record::batch::Header;
use forebay_record::frame::FrameKind;
use forebay_record::producers::Producers;
use forebay_record::state::{OpenPayload, PartitionState};
use forebay_record::{Offset, SessionId};
use forebay_runtime::clock::Clock;
use forebay_runtime::execution::Execution;
use forebay_runtime::tasks::Tasks;
use forebay_tier::{Bucket, ObjectKind, ObjectName, RunStart, RunWriter, WriteError};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::outbox::Outbox;

use crate::metrics::UploadMetrics;
use crate::read::Reader;

/// Copies at a time; one that comes beyond is refused, so that its owner asks another replica.
const RUNNING_MAX: usize = 4;
/// Bytes read at a time.
const READ_BYTES: u32 = 4 << 20;

/// Copies segments of one node.
pub(crate) struct Uploads {
    bucket: Option<Bucket>,
    reader: Reader,
    execution: Execution,
    clock: Arc<dyn Clock>,
    running: Arc<Semaphore>,
    metrics: UploadMetrics,
    tasks: Tasks,
}

/// Why a copy ended.
#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error("{0:?}")]
    Node(NodeFailure),
    #[error("{0}")]
    Content(String),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("this node has no object store: object_store.url is empty")]
    NoStore,
    #[error("\"{object}\" is no name of data that session {session} may have written")]
    Name { object: String, session: SessionId },
    #[error("the session that asked for it has ended")]
    Given,
}

impl From<NodeFailure> for UploadError {
    fn from(failure: NodeFailure) -> Self {
        Self::Node(failure)
    }
}

impl UploadError {
    const fn failure(&self) -> NodeFailure {
        match self {
            Self::Node(failure) => *failure,
            Self::Content(_) => NodeFailure::Corrupt,
            Self::Write(_) | Self::NoStore | Self::Name { .. } => NodeFailure::ObjectStore,
            Self::Given => NodeFailure::Failed,
        }
    }
}

impl Uploads {
    pub(crate) fn new(
        bucket: Option<Bucket>,
        (reader, execution, clock): (Reader, Execution, Arc<dyn Clock>),
        metrics: UploadMetrics,
        tasks: Tasks,
    ) -> Self {
        Self {
            bucket,
            reader,
            execution,
            clock,
            running: Arc::new(Semaphore::new(RUNNING_MAX)),
            metrics,
            tasks,
        }
    }

    /// Begins to copy one segment, or refuses; the answer goes into the outbox. The copy is given up
    /// when `gone` is cancelled.
    pub(crate) fn begin(
        self: &Arc<Self>,
        request: u64,
        upload: UploadRequest,
        outbox: &Arc<Outbox>,
        gone: &CancellationToken,
    ) {
        let Ok(running) = Arc::clone(&self.running).try_acquire_owned() else {
            let result = Err(NodeFailure::Overloaded);
            return outbox.push(FromNode::Uploaded { request, result }, None);
        };
        let (uploads, outbox, gone) = (Arc::clone(self), Arc::clone(outbox), gone.clone());
        self.tasks.spawn("upload", async move {
            let result = uploads.run(&upload, &gone).await;
            drop(running);
            outbox.push(FromNode::Uploaded { request, result }, None);
        });
    }

    async fn run(&self, upload: &UploadRequest, gone: &CancellationToken) -> Result<Uploaded, NodeFailure> {
        self.metrics.running.inc();
        let result = self.copy(upload, gone).await;
        self.metrics.running.dec();
        match result {
            Ok(uploaded) => {
                self.metrics.segments.inc();
                self.metrics.bytes.inc_by(uploaded.object_len);
                Ok(uploaded)
            }
            Err(error) => {
                self.metrics.failures.inc();
                tracing::warn!(segment = %upload.segment, object = upload.object, %error, "a segment was not copied");
                Err(error.failure())
            }
        }
    }

    async fn copy(&self, upload: &UploadRequest, gone: &CancellationToken) -> Result<Uploaded, UploadError> {
        let bucket = self.bucket.as_ref().ok_or(UploadError::NoStore)?;
        check_name(upload)?;
        let mut state = State::at_base(self.state(upload).await?);
        let start = RunStart {
            topic: upload.topic,
            segment: upload.segment,
            base: upload.base,
            session: upload.session,
        };
        // Cancel safety: nothing was sent yet.
        let mut writer = tokio::select! {
            writer = RunWriter::start(bucket, &upload.object, start) => writer,
            () = gone.cancelled() => return Err(UploadError::Given),
        };
        // Cancel safety: the writer is given up afterwards, whatever part of it was sent.
        let copied = tokio::select! {
            copied = self.copy_batches(upload, &mut writer, &mut state) => copied,
            () = gone.cancelled() => Err(UploadError::Given),
        };
        match copied {
            Ok(()) => Ok(writer.finish(state.at(upload.until), upload.until).await?),
            Err(error) => {
                writer.abort().await;
                Err(error)
            }
        }
    }

    async fn copy_batches(
        &self,
        upload: &UploadRequest,
        writer: &mut RunWriter,
        state: &mut State,
    ) -> Result<(), UploadError> {
        let mut from = upload.base;
        while from < upload.until {
            let batches = self.read(upload, from).await?;
            let (end, len) = state
                .take(&batches, from, upload.until)
                .map_err(UploadError::Content)?;
            writer.write(batches.slice(..len)).await?;
            from = end;
        }
        Ok(())
    }

    async fn read(&self, upload: &UploadRequest, from: Offset) -> Result<Bytes, UploadError> {
        let request = ReadRequest {
            segment: upload.segment,
            generation: upload.generation,
            from,
            until: upload.until,
            max_bytes: READ_BYTES,
        };
        let reader = self.reader.clone();
        let held = self.reader.index.get(upload.segment);
        let tail = held.map_or(upload.base, |segment| segment.tail());
        match self.off_thread(move || reader.read(&request)).await {
            // It is held, and yet not readable to its end.
            Err(NodeFailure::Behind(_)) if tail >= upload.until => Err(UploadError::Content(format!(
                "the batch at {from} reaches beyond the sealed end {}",
                upload.until
            ))),
            read => Ok(read?),
        }
    }

    /// Reads of the journal block.
    async fn off_thread<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, NodeFailure> + Send + 'static,
    ) -> Result<T, NodeFailure> {
        match self.execution.run(&*self.clock, read).await {
            Ok(result) => result,
            Err(error) => {
                tracing::error!(%error, "a read for a copy ended early");
                Err(NodeFailure::Failed)
            }
        }
    }

    /// The state at the segment's base, from its OPEN frame. A piece of a segment of which something was
    /// declared lost begins with what is left to be known.
    async fn state(&self, upload: &UploadRequest) -> Result<PartitionState, UploadError> {
        let held = self.reader.index.get(upload.segment);
        if held.is_some_and(|segment| segment.is_limbo() || segment.base() < upload.base) {
            let (segment, generation, base) = (upload.segment, upload.generation, upload.base);
            let reader = self.reader.clone();
            return Ok(self
                .off_thread(move || reader.salvage(segment, generation, base))
                .await?);
        }
        let request = HeadersRequest {
            segment: upload.segment,
            generation: upload.generation,
            until: upload.base,
        };
        let reader = self.reader.clone();
        let found = self.off_thread(move || reader.headers(&request)).await?;
        if found.state_kind != FrameKind::Open as u8 {
            let what = format!("its first frame is of kind {}, OPEN expected", found.state_kind);
            return Err(UploadError::Content(what));
        }
        OpenPayload::decode(&found.state)
            .map(|open| open.state)
            .map_err(|error| UploadError::Content(error.to_string()))
    }
}

/// The object must be one that only the asking session writes.
fn check_name(upload: &UploadRequest) -> Result<(), UploadError> {
    let named = ObjectName::parse(&upload.object);
    let right = named.is_some_and(|name| name.kind == ObjectKind::Data && name.session == upload.session);
    if right {
        return Ok(());
    }
    Err(UploadError::Name {
        object: upload.object.clone(),
        session: upload.session,
    })
}

/// The partition's state while its batches pass.
struct State {
    producers: Producers,
    state: PartitionState,
}

impl State {
    fn at_base(mut state: PartitionState) -> Self {
        Self {
            producers: Producers::from_entries(std::mem::take(&mut state.producers)),
            state,
        }
    }

    /// Takes batches that begin at `from`, up to the sealed end: an owner that lost the partition may
    /// have committed more here than the next one sealed. Where they end, and their bytes.
    fn take(&mut self, batches: &[u8], from: Offset, until: Offset) -> Result<(Offset, usize), String> {
        let (mut rest, mut next) = (batches, from);
        while !rest.is_empty() && next < until {
            let header = Header::parse(rest).map_err(|error| format!("a batch at {next}: {error}"))?;
            if header.base_offset() != next {
                return Err(format!(
                    "a batch begins at {}, {next} expected",
                    header.base_offset()
                ));
            }
            if header.end_offset() > until {
                return Err(format!(
                    "a batch ends at {}, beyond the sealed end {until}",
                    header.end_offset()
                ));
            }
            self.producers.record(&header, next);
            if let Some(epoch) = header.leader_epoch()
                && self.state.epochs.last().is_none_or(|(last, _)| *last < epoch)
            {
                self.state.epochs.push((epoch, next));
            }
            next = header.end_offset();
            rest = rest.get(header.len_bytes()..).unwrap_or_default();
        }
        if next <= from {
            return Err(format!("nothing was read at {from}"));
        }
        Ok((next, batches.len() - rest.len()))
    }

    fn at(mut self, end: Offset) -> PartitionState {
        self.state.producers = self.producers.snapshot_below(end);
        self.state
    }
}
