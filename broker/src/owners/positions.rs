//! Positions and plans: where a partition begins and ends, and how to read it.
//!
//! The end is confirmed before it is told: replicas of the open segment must say, after the
//! question arrived, that they are not closed, so many that any newer owner would need one of
//! them. Then no newer owner can have finished before the question, whatever clocks say. Where
//! nothing is open, one linearizable read of the record says the same.

use std::collections::BTreeSet;

use forebay_meta::keys;
use forebay_meta::model::{Partition, Segment};
use forebay_proto::data::front::{FromBroker, PlanManifest, PlanRun, PlanSegment, Position, ReadPlan};
use forebay_proto::data::replica::ToNode;
use forebay_proto::error::Failure;
use forebay_proto::v1::ErrorCode;
use forebay_record::{Epoch, NodeId, Offset, PartitionId};
use forebay_runtime::mutant::{self, Mutant};

use super::calls::{CALL_TIMEOUT_MS, Call, Question, QuestionKind};
use super::driver::Driver;
use super::message::{Command, Outbox};
use crate::metrics::Request;

impl Driver {
    pub(super) fn on_offsets(
        &mut self,
        request: u64,
        partition: PartitionId,
        epoch: Epoch,
        position: Position,
        outbox: Outbox,
    ) {
        let owner = match self.serving(partition, epoch) {
            Ok(owner) => owner,
            Err(failure) => {
                self.settings.metrics.failure(Request::Offsets, failure.code);
                return outbox.send(FromBroker::Offsets {
                    request,
                    result: Err(failure),
                });
            }
        };
        let visible = owner.high_watermark().unwrap_or_default();
        let question = |kind| Question {
            request,
            partition,
            outbox: outbox.clone(),
            deadline_ms: self.now_ms + CALL_TIMEOUT_MS,
            kind,
        };
        match position {
            Position::Earliest => {
                let result = Ok(Some(owner.record().log_start));
                outbox.send(FromBroker::Offsets { request, result });
            }
            Position::Latest => match owner.open_segment() {
                Some((segment, _)) => {
                    let segment = segment.clone();
                    let question = question(QuestionKind::Confirm {
                        high_watermark: visible,
                        needed: usize::from(segment.ack_quorum),
                        confirmed: BTreeSet::new(),
                        pending: segment.replicas.iter().map(|(node, _)| *node).collect(),
                    });
                    self.ask_replicas(&segment, question);
                }
                None => {
                    let question = question(QuestionKind::Record {
                        high_watermark: visible,
                    });
                    self.ask_record(question);
                }
            },
        }
    }

    fn ask_replicas(&mut self, segment: &Segment, question: Question) {
        let key = self.calls.ask(question);
        for (node, generation) in &segment.replicas {
            let request = self.calls.begin(*node, Call::Confirm(key), self.now_ms);
            self.request(
                *node,
                ToNode::Confirm {
                    request,
                    items: vec![(segment.id, *generation)],
                },
            );
        }
    }

    pub(super) fn on_confirm(&mut self, key: u64, node: NodeId, open: bool) {
        let Some(question) = self.calls.question(key) else {
            return;
        };
        let QuestionKind::Confirm {
            high_watermark,
            needed,
            confirmed,
            pending,
        } = &mut question.kind
        else {
            return;
        };
        pending.remove(&node);
        if open {
            confirmed.insert(node);
        }
        let result = if confirmed.len() >= *needed {
            Ok(Some(*high_watermark))
        } else if confirmed.len() + pending.len() < *needed {
            let message = format!(
                "the end of {} cannot be confirmed: too few storage nodes answered",
                question.partition
            );
            Err(Failure::new(ErrorCode::Unavailable, message))
        } else {
            return;
        };
        self.answer_question(key, result);
    }

    fn ask_record(&mut self, question: Question) {
        let partition = question.partition;
        let key = self.calls.ask(question);
        let records = self.settings.records.clone();
        let mailbox = self.settings.mailbox.clone();
        let revision = self.owners.get(&partition).map(|owner| owner.revision());
        self.settings
            .tasks
            .spawn(format!("confirm {partition}"), async move {
                let read = records.store.get(&keys::partition(partition)).await;
                let mine = match read {
                    Ok((Some(entry), _)) => Some(entry.mod_revision.0) == revision,
                    Ok((None, _)) => false,
                    Err(error) => {
                        tracing::debug!(%partition, %error, "the end cannot be confirmed");
                        false
                    }
                };
                // A closed mailbox has nobody who waits.
                let _ = mailbox.send(Command::Confirmed { call: key, mine }).await;
            });
    }

    pub(super) fn on_record_confirmed(&mut self, key: u64, mine: bool) {
        let Some(Question {
            kind: QuestionKind::Record { high_watermark },
            partition,
            ..
        }) = self.calls.question(key)
        else {
            return;
        };
        let (high_watermark, partition) = (*high_watermark, *partition);
        let result = if mine {
            Ok(Some(high_watermark))
        } else {
            let message = format!(
                "the end of {partition} cannot be confirmed: its record has changed or cannot be read"
            );
            Err(Failure::new(ErrorCode::Unavailable, message))
        };
        self.answer_question(key, result);
    }

    fn answer_question(&mut self, key: u64, result: Result<Option<Offset>, Failure>) {
        if let Some(question) = self.calls.answered(key) {
            if let Err(failure) = &result {
                self.settings.metrics.failure(Request::Offsets, failure.code);
            }
            question.outbox.send(FromBroker::Offsets {
                request: question.request,
                result,
            });
        }
    }

    pub(super) fn plan(
        &self,
        partition: PartitionId,
        epoch: Epoch,
        from: Offset,
    ) -> Result<ReadPlan, Failure> {
        let (owner, high_watermark) = self.readable(partition, epoch, from)?;
        let record = owner.record();
        Ok(ReadPlan {
            epoch: record.epoch,
            log_start: record.log_start,
            high_watermark,
            manifest: plan_manifest(record, from),
            runs: plan_runs(record, from),
            segments: plan_segments(record, from, high_watermark),
            gaps: plan_gaps(record, from),
        })
    }
}

/// The manifest, where a reader from that offset on needs it.
fn plan_manifest(record: &Partition, from: Offset) -> Option<PlanManifest> {
    let manifest = record.manifest.as_ref().filter(|manifest| manifest.end > from)?;
    Some(PlanManifest {
        object: manifest.object.clone(),
        generation: manifest.generation,
        end: manifest.end,
        len: manifest.len,
        crc32c: manifest.crc32c,
    })
}

/// Listed ranges that hold records at or after an offset.
fn plan_runs(record: &Partition, from: Offset) -> Vec<PlanRun> {
    let wanted = record.recent.iter().filter(|run| run.end > from);
    wanted
        .map(|run| PlanRun {
            base: run.base,
            end: run.end,
            object: run.object.clone(),
            position: run.position,
            len: run.len,
            crc32c: run.crc32c,
            max_timestamp_ms: run.max_timestamp_ms,
        })
        .collect()
}

/// Up to where a segment may be read: its sealed end, or what is visible.
fn shown(end: Option<Offset>, visible: Offset) -> Offset {
    match end {
        Some(end) if mutant::is(Mutant::CommittedOfAnother) => end.max(visible),
        Some(end) => end,
        None if mutant::is(Mutant::UncommittedRead) => Offset(visible.0.saturating_add(1_000)),
        None => visible,
    }
}

/// Ranges declared lost that end after an offset.
fn plan_gaps(record: &Partition, from: Offset) -> Vec<(Offset, Offset)> {
    let wanted = record.gaps.iter().filter(|gap| gap.end > from);
    wanted.map(|gap| (gap.base, gap.end)).collect()
}

/// Segments that hold visible records at or after an offset. The bound of the open one is its
/// owner's statement about this segment, and about no other (I13). A segment of which something was
/// declared lost is told in pieces.
fn plan_segments(record: &Partition, from: Offset, visible: Offset) -> Vec<PlanSegment> {
    let pieces = record.chain.iter().flat_map(|segment| {
        let until = shown(segment.end, visible);
        let pieces = record.pieces(segment.base, until);
        pieces.into_iter().map(move |piece| (segment, piece))
    });
    pieces
        .map(|(segment, (base, until))| PlanSegment {
            segment: segment.id,
            base,
            until,
            sealed: segment.end.is_some(),
            replicas: segment.replicas.clone(),
        })
        .filter(|segment| segment.until > from && segment.until > segment.base)
        .collect()
}
