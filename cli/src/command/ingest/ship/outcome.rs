//! What came of reading and sending: events of the readers, answers of the service, the end.

use std::time::Instant;

use forebay_client::{DeliveryError, RecordMetadata};
use forebay_proto::v1::ErrorCode;

use super::{Shipped, Shipper};
use crate::command::ingest::checkpoint::Entry;
use crate::command::ingest::error::{IngestError, InputError};
use crate::command::ingest::input::{Input, Origin, Stage};
use crate::command::ingest::keep::Keeper;
use crate::command::ingest::pack::{Event, Passed, Ready};
use crate::command::ingest::read::{TurnDone, TurnEnd};

impl Shipper {
    pub(super) fn on_event(&mut self, event: Event) {
        match event {
            Event::Sent {
                input,
                passed,
                delivery,
            } => self.on_sent(input, passed, delivery),
            Event::TurnEnded { input, ended } => {
                self.on_turn_ended(input, ended);
                self.advance(input);
            }
        }
    }

    fn on_sent(&mut self, id: u64, passed: Passed, delivery: Option<forebay_client::Delivery>) {
        let Some(input) = self.inputs.get_mut(&id) else {
            return;
        };
        self.tally.on_read(&passed);
        self.in_flight += passed.bytes;
        let number = input.on_sent(passed);
        self.answers.push(Box::pin(async move {
            let outcome = match delivery {
                Some(delivery) => delivery.await.map(Some),
                None => Ok(None),
            };
            (id, number, outcome)
        }));
    }

    fn on_turn_ended(&mut self, id: u64, ended: Result<TurnDone, InputError>) {
        let Some(input) = self.inputs.get_mut(&id) else {
            return;
        };
        let is_stream = matches!(input.origin, Origin::Stream(_));
        let running = if is_stream {
            &mut self.streaming
        } else {
            &mut self.reading
        };
        *running = running.saturating_sub(1);
        let done = match ended {
            Ok(done) => done,
            Err(source) => {
                let name = input.name.to_string();
                input.stage = Stage::Idle;
                return self.fail(IngestError::Input { name, source });
            }
        };
        input.read = done.mark;
        let name = input.name.clone();
        let read_to = input.read.position;
        let seen = input.watched().map_or(0, |watched| watched.size);
        if let Some(watched) = input.watched_mut() {
            watched.fingerprint = done.fingerprint;
        }
        match done.end {
            TurnEnd::More => {
                input.stage = Stage::Ready;
                self.ready.push_back(id);
            }
            TurnEnd::Stopped => input.stage = Stage::Idle,
            TurnEnd::CaughtUp { last, size } => {
                if let Some(watched) = input.watched_mut() {
                    watched.caught_up = Some(size);
                }
                input.stage = next_stage(input);
                if let Some(last) = last {
                    self.plan(id, last);
                }
            }
            TurnEnd::Replaced { size } => {
                let unread = seen.saturating_sub(read_to);
                tracing::warn!(
                    file = %name, read_bytes = read_to, size_bytes = size, unread_bytes = unread,
                    "file was truncated or written anew, it is read from its start; unread bytes of the old content are lost"
                );
                input.stage = Stage::Replaced;
            }
        }
    }

    /// Sees to it that the end of a batch is durable before the batch is sent.
    fn plan(&mut self, id: u64, last: Ready) {
        let Some(input) = self.inputs.get_mut(&id) else {
            return;
        };
        let number = match &mut self.keeper {
            Some(keeper) => {
                input.cuts.push_back(last.passed.end.position);
                keeper.request()
            }
            None => 0,
        };
        input.stage = Stage::Planning(number, last);
    }

    /// Sends the batch whose end is durable now.
    pub(super) fn send_planned(&mut self, id: u64) -> bool {
        let Some(input) = self.inputs.get_mut(&id) else {
            return false;
        };
        let next = next_stage(input);
        let name = input.name.to_string();
        let Stage::Planning(_, last) = std::mem::replace(&mut input.stage, next) else {
            return false;
        };
        match last.write() {
            Ok((passed, delivery)) => self.on_sent(id, passed, delivery),
            Err(source) => self.fail(IngestError::Input { name, source }),
        }
        true
    }

    pub(super) fn on_answer(
        &mut self,
        id: u64,
        number: u64,
        outcome: Result<Option<RecordMetadata>, DeliveryError>,
    ) {
        self.last_answer = Instant::now();
        let Some(input) = self.inputs.get_mut(&id) else {
            return;
        };
        let written = match outcome {
            Ok(written) => written,
            Err(source) => {
                let (from, to) = input.stretch(number);
                let name = input.name.to_string();
                let forgotten = self.keeper.is_some() && is_forgotten(&source);
                return self.fail(if forgotten {
                    IngestError::Forgotten {
                        name,
                        from,
                        to,
                        source,
                    }
                } else {
                    IngestError::Delivery {
                        name,
                        from,
                        to,
                        source,
                    }
                });
            }
        };
        if let Some(written) = written {
            let records = input.records(number);
            self.tally.on_batch(written.partition, records, written.offset);
        }
        for passed in input.on_written(number) {
            self.in_flight = self.in_flight.saturating_sub(passed.bytes);
            self.tally.on_acknowledged(&passed);
        }
        if let Some(keeper) = &mut self.keeper {
            keeper.touch();
        }
        self.advance(id);
    }

    pub(super) fn on_kept(&mut self, kept: std::io::Result<()>) {
        match kept {
            Ok(()) => self.advance_all(),
            Err(source) => {
                let path = self.keeper.as_ref().map(Keeper::path).unwrap_or_default();
                self.keeper = None;
                self.fail(IngestError::Checkpoint { path, source });
            }
        }
    }

    /// An input is over: all of it is acknowledged.
    pub(super) fn end(&mut self, id: u64) -> bool {
        let following = self.following.is_some();
        if let Some(input) = self.inputs.get_mut(&id) {
            input.stage = Stage::Done;
            if let Some(watched) = input.watched_mut() {
                watched.file = None;
            }
        }
        if following {
            // No path leads to it any more: nothing of it is needed.
            self.inputs.remove(&id);
            self.by_path.retain(|_, newest| *newest != id);
        }
        let waiting = self.inputs.iter().filter(|(_, one)| one.after == Some(id));
        let waiting: Vec<_> = waiting.map(|(id, _)| *id).collect();
        for next in waiting {
            self.advance(next);
        }
        if let Some(keeper) = &mut self.keeper {
            keeper.touch();
        }
        false
    }

    /// What the checkpoint says of the inputs. At the end of a run nothing more is sent: what is
    /// all acknowledged is settled.
    pub(super) fn entries(&self, last: bool) -> Vec<Entry> {
        let entries = self.inputs.values().filter_map(|input| {
            let mut entry = input.entry(&self.settings.cutting)?;
            if last && input.is_settled() {
                entry.settled = true;
                entry.cuts.clear();
            }
            Some(entry)
        });
        entries.collect()
    }

    /// Writes the last checkpoint and tells what was done.
    pub(super) async fn finish(mut self) -> Shipped {
        let elapsed = match self.following {
            Some(_) => self.began.elapsed(),
            None => self.last_answer.saturating_duration_since(self.began),
        };
        // A batch that was planned and is not sent now never was.
        for input in self.inputs.values_mut() {
            if let Stage::Planning(..) = input.stage {
                input.stage = Stage::Idle;
            }
        }
        let entries = self.entries(self.is_quiet());
        if let Some(keeper) = self.keeper.take() {
            let path = keeper.path();
            if let Err(source) = keeper.finish(entries).await {
                self.failure
                    .get_or_insert(IngestError::Checkpoint { path, source });
            }
        }
        self.progress.finish();
        let unacknowledged = self.inputs.values().map(Input::bytes_in_flight).sum();
        Shipped {
            tally: self.tally,
            elapsed,
            failure: self.failure,
            unacknowledged,
        }
    }
}

/// Whether the service refused a batch because it knows nothing of who sends it.
fn is_forgotten(error: &DeliveryError) -> bool {
    let refusal = match error {
        DeliveryError::Refused { refusal, .. } | DeliveryError::OutcomeUnknown { refusal, .. } => refusal,
        _ => return false,
    };
    refusal.code == ErrorCode::UnknownProducer
}

/// What follows once everything that is there was read.
fn next_stage(input: &Input) -> Stage {
    match input.watched() {
        Some(watched) if !watched.ending => Stage::Idle,
        _ => Stage::Ending,
    }
}
