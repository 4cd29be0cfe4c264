//! Finding the first batch that reaches a time, piece by piece of a plan: in the object store, or at
//! a segment's storage nodes.
//!
//! Any replica that has the whole range may answer. One that does not, or is behind, sends the
//! question to the next; it never means that there is no such batch (I15).

use std::sync::Arc;

use bytes::Bytes;
use forebay_proto::data::front::{PlanManifest, PlanRun, PlanSegment, ReadPlan};
use forebay_proto::data::replica::{FromNode, ReadRequest, ToNode};
use forebay_proto::error::Failure;
use forebay_proto::v1::ErrorCode;
use forebay_record::{Generation, NodeId, Offset, PartitionId};
use forebay_runtime::clock;

use super::catch_up::{CatchUp, NODE_TIMEOUT};
use crate::routes::Owner;

/// A part of a partition that is searched on its own.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Piece<'a> {
    /// Ranges in objects that the manifest lists.
    Manifest(&'a PlanManifest),
    /// A range in an object.
    Run(&'a PlanRun),
    /// A segment on storage nodes.
    Segment(&'a PlanSegment),
}

impl Piece<'_> {
    /// The first offset after it.
    pub(crate) const fn end(&self) -> Offset {
        match self {
            Self::Manifest(manifest) => manifest.end,
            Self::Run(run) => run.end,
            Self::Segment(segment) => segment.until,
        }
    }
}

/// The pieces of a plan, the oldest first.
pub(crate) fn pieces(plan: &ReadPlan) -> impl Iterator<Item = Piece<'_>> {
    let manifest = plan.manifest.iter().map(Piece::Manifest);
    let runs = plan.runs.iter().map(Piece::Run);
    manifest
        .chain(runs)
        .chain(plan.segments.iter().map(Piece::Segment))
}

impl CatchUp {
    /// How to read a partition from its beginning, as its owner says now.
    pub(crate) async fn plan(&self, owner: &Owner, partition: PartitionId) -> Result<Arc<ReadPlan>, Failure> {
        self.ask(owner, partition, Offset(0)).await
    }

    /// The first whole batch of a piece that has something at or after `from` and reaches a time;
    /// none where there is no such batch in the piece.
    pub(crate) async fn batch_reaching(
        &self,
        partition: PartitionId,
        piece: Piece<'_>,
        from: Offset,
        timestamp_ms: i64,
    ) -> Result<Option<Bytes>, Failure> {
        match piece {
            Piece::Manifest(manifest) => {
                let cold = self.cold(partition)?;
                cold.manifest_batch_reaching(partition, manifest, from, timestamp_ms)
                    .await
            }
            Piece::Run(run) => {
                let cold = self.cold(partition)?;
                cold.run_batch_reaching(partition, run, from, timestamp_ms).await
            }
            Piece::Segment(segment) => match self.lookup(segment, from, timestamp_ms).await? {
                Some(base) => self.read_segment(segment, base.max(from), 1).await.map(Some),
                None => Ok(None),
            },
        }
    }

    /// Base offset of the first batch of a segment that has something at or after `from` and
    /// reaches a time; none where there is no such batch below the segment's bound.
    async fn lookup(
        &self,
        segment: &PlanSegment,
        from: Offset,
        timestamp_ms: i64,
    ) -> Result<Option<Offset>, Failure> {
        let mut reasons = String::new();
        for &(node, generation) in &segment.replicas {
            match self
                .lookup_at(segment, node, generation, from, timestamp_ms)
                .await
            {
                Ok(found) => return Ok(found),
                Err(why) => reasons.push_str(&format!("; storage node {node}: {why}")),
            }
        }
        let what = format!(
            "segment {} cannot be searched from {from} at {} replicas{reasons}",
            segment.segment,
            segment.replicas.len()
        );
        Err(Failure::new(ErrorCode::Unavailable, what))
    }

    async fn lookup_at(
        &self,
        segment: &PlanSegment,
        node: NodeId,
        generation: Generation,
        from: Offset,
        timestamp_ms: i64,
    ) -> Result<Option<Offset>, String> {
        let view = self.membership.now();
        let record = view.nodes.get(&node).ok_or("not registered")?;
        let address: Arc<str> = record.data_address.as_str().into();
        let read = ReadRequest {
            segment: segment.segment,
            generation,
            from,
            until: segment.until,
            max_bytes: 0,
        };
        let asking = async {
            let session = self.nodes.session(node, &address).await?;
            let lookup = |request| ToNode::Lookup {
                request,
                read,
                timestamp_ms,
            };
            session.request(lookup).await
        };
        let answer = clock::timeout(&*self.clock, NODE_TIMEOUT, asking).await;
        match answer.map_err(|elapsed| elapsed.to_string())? {
            Ok(FromNode::Lookup { result, .. }) => result.map_err(|failure| format!("{failure:?}")),
            Ok(_) => Err("answered something else".to_owned()),
            Err(failure) => Err(failure.message),
        }
    }
}
