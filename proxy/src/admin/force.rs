//! What an operator decides about one partition: ending an open segment that lost its quorum, and declaring
//! losses of sealed ones. Found by topic and number, done by the partition's owner.

use std::fmt::Display;
use std::time::Duration;

use forebay_meta::topics;
use forebay_proto::error::Failure;
use forebay_proto::v1::{
    DeclareLostPartitionRequest, DeclareLostRequest, DeclareLostResponse, ErrorCode,
    ForceSealPartitionRequest, ForceSealRequest, ForceSealResponse,
};
use forebay_record::PartitionId;
use forebay_runtime::clock;
use tonic::{Request, Response, Status};

use super::AdminHandler;
use super::topic::live_owner;

/// The owner loads the producers' state and changes the record meanwhile.
const FORCE_TIMEOUT: Duration = Duration::from_secs(25);

/// A partition and where its owner is.
struct Owned {
    name: String,
    partition: PartitionId,
    address: String,
}

impl Owned {
    fn away(&self, code: ErrorCode, why: &dyn Display) -> Failure {
        Failure::new(
            code,
            format!("the owner of {}, at {}: {why}", self.name, self.address),
        )
    }
}

impl AdminHandler {
    async fn found(&self, topic: &str, partition: u32) -> Result<Owned, Failure> {
        let found = topics::get(&*self.core.meta, topic).await?;
        let partitions = topics::partitions(&*self.core.meta, &found).await?;
        let Some(record) = partitions.iter().find(|one| one.number == partition) else {
            let what = format!(
                "topic {topic} has {} partitions, no partition {partition}",
                partitions.len()
            );
            return Err(Failure::new(ErrorCode::UnknownPartition, what));
        };
        let view = self.core.membership.now();
        let owner = live_owner(&view, record).and_then(|owner| view.brokers.get(&owner));
        let name = format!("partition {partition} of {topic}");
        let Some(broker) = owner else {
            let what = format!("{name} has no owner now: a broker must take it first");
            return Err(Failure::new(ErrorCode::Unavailable, what));
        };
        Ok(Owned {
            name,
            partition: record.id,
            address: broker.record.control_address.clone(),
        })
    }

    /// Asks the owner; `does` where that changes something.
    async fn ask_found<T>(
        &self,
        owned: &Owned,
        does: bool,
        asking: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match clock::timeout(&*self.core.clock, FORCE_TIMEOUT, asking).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(Failure::from(status)),
            Err(elapsed) if does => Err(owned.away(ErrorCode::OutcomeUnknown, &elapsed)),
            Err(elapsed) => Err(owned.away(ErrorCode::Unavailable, &elapsed)),
        }
    }

    pub(super) async fn force_end(&self, request: ForceSealRequest) -> Result<ForceSealResponse, Failure> {
        let owned = self.found(&request.topic, request.partition).await?;
        let service = self.core.control.broker(&owned.address);
        let service = service.map_err(|error| owned.away(ErrorCode::Unavailable, &error))?;
        let does = request.expected.is_some();
        let forcing = service.force_seal(Request::new(ForceSealPartitionRequest {
            partition_id: owned.partition.0,
            next: request.next,
            force: request.force,
            expected: request.expected,
            trust: request.trust,
        }));
        let answer = self.ask_found(&owned, does, forcing).await?;
        if answer.done {
            tracing::warn!(partition = owned.name, end = ?answer.end, "a segment was ended by force");
            self.core.routes.forget(&request.topic);
        }
        Ok(answer)
    }

    pub(super) async fn declare(&self, request: DeclareLostRequest) -> Result<DeclareLostResponse, Failure> {
        let owned = self.found(&request.topic, request.partition).await?;
        let service = self.core.control.broker(&owned.address);
        let service = service.map_err(|error| owned.away(ErrorCode::Unavailable, &error))?;
        let does = !request.expected.is_empty();
        let declaring = service.declare_lost(Request::new(DeclareLostPartitionRequest {
            partition_id: owned.partition.0,
            force: request.force,
            expected: request.expected,
        }));
        let answer = self.ask_found(&owned, does, declaring).await?;
        if answer.done {
            tracing::warn!(partition = owned.name, segments = ?answer.segments, "a loss was declared");
            self.core.routes.forget(&request.topic);
        }
        Ok(answer)
    }
}
