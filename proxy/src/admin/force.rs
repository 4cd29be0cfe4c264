//! Ending an open segment that lost its quorum: found by topic and number, done by the partition's owner.

use std::time::Duration;

use forebay_meta::topics;
use forebay_proto::error::Failure;
use forebay_proto::v1::{ErrorCode, ForceSealPartitionRequest, ForceSealRequest, ForceSealResponse};
use forebay_runtime::clock;
use tonic::Request;

use super::AdminHandler;
use super::topic::live_owner;

/// The owner loads the producers' state and changes the record meanwhile.
const FORCE_TIMEOUT: Duration = Duration::from_secs(25);

impl AdminHandler {
    pub(super) async fn force_end(&self, request: ForceSealRequest) -> Result<ForceSealResponse, Failure> {
        let ForceSealRequest {
            topic,
            partition,
            next,
            force,
            expected,
        } = request;
        let found = topics::get(&*self.core.meta, &topic).await?;
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
        let Some(broker) = owner else {
            let what =
                format!("partition {partition} of {topic} has no owner now: a broker must take it first");
            return Err(Failure::new(ErrorCode::Unavailable, what));
        };
        let address = &broker.record.control_address;
        let does = expected.is_some();
        let away = |why: &dyn std::fmt::Display, sent: bool| {
            let code = if does && sent {
                ErrorCode::OutcomeUnknown
            } else {
                ErrorCode::Unavailable
            };
            Failure::new(
                code,
                format!("the owner of partition {partition} of {topic}, at {address}: {why}"),
            )
        };
        let service = self
            .core
            .control
            .broker(address)
            .map_err(|error| away(&error, false))?;
        let forcing = service.force_seal(Request::new(ForceSealPartitionRequest {
            partition_id: record.id.0,
            next,
            force,
            expected,
        }));
        let answer = match clock::timeout(&*self.core.clock, FORCE_TIMEOUT, forcing).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(Failure::from(status)),
            Err(elapsed) => return Err(away(&elapsed, true)),
        };
        if answer.done {
            tracing::warn!(topic, partition, end = ?answer.end, "a segment was ended by force");
            self.core.routes.forget(&topic);
        }
        Ok(answer)
    }
}
