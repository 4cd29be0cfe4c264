//! From a client's batch to frames at the replicas: duplicates, offset, window, frame.

use bytes::Bytes;
use forebay_proto::data::front::Acks;
use forebay_proto::error::Failure;
use forebay_proto::v1::ErrorCode;
use forebay_record::batch::{self, Header};
use forebay_record::frame::FrameKind;
use forebay_record::state::PartitionState;
use forebay_record::{Epoch, Offset};

use super::action::{Action, Context, Produce};
use super::owner::{Echo, Next, Owner, Pending, Phase, Plan, Staged};
use super::writer::Writer;
use forebay_record::producers::{SequenceError, Verdict};

/// Bytes of batches in one frame before the next is begun.
const FRAME_BYTES_MAX: u64 = 2 << 20;
/// A state frame follows at least this many bytes of data.
const STATE_BYTES_MIN: u64 = 4 << 20;
/// A state frame follows at most this many batches.
const STATE_BATCHES_MAX: u32 = 4096;
/// Answers that wait for an original's commit, over all duplicates of a partition.
const ECHOES_MAX: usize = 1024;

impl Owner {
    /// Takes a batch: gives it an offset, lets it wait, or refuses it. [`Owner::flush`] sends it.
    pub fn on_produce(&mut self, produce: Produce, ctx: &mut Context<'_>) {
        if let Err(failure) = self
            .screen(&produce)
            .and_then(|()| self.fits_nodes(&produce, ctx))
        {
            ctx.out.push(Action::Answer {
                ticket: produce.ticket,
                result: Err(failure),
            });
            return;
        }
        let bytes = produce.batch.len() as u64;
        if !self.waiting.is_empty() || !self.may_admit(ctx) {
            if self.waiting_bytes + bytes > self.config.waiting_bytes_max {
                let id = self.record.id;
                let message = format!(
                    "{id} has {} bytes waiting for storage already",
                    self.waiting_bytes
                );
                let result = Err(Failure::new(ErrorCode::Overloaded, message));
                ctx.out.push(Action::Answer {
                    ticket: produce.ticket,
                    result,
                });
                return;
            }
            self.waiting_bytes += bytes;
            self.waiting.push_back(produce);
            return;
        }
        self.admit(produce, ctx);
    }

    /// Refuses what can be refused without looking at the log.
    fn screen(&self, produce: &Produce) -> Result<(), Failure> {
        let id = self.record.id;
        if matches!(self.phase, Phase::Released | Phase::Resigning) {
            return Err(Failure::new(
                ErrorCode::NotOwner,
                format!("{id} is leaving {}", self.me),
            ));
        }
        if produce.epoch != Epoch(0) && produce.epoch != self.record.epoch {
            let code = if produce.epoch < self.record.epoch {
                ErrorCode::StaleEpoch
            } else {
                ErrorCode::UnknownEpoch
            };
            let message = format!(
                "{id} is at {}, the request names {}",
                self.record.epoch, produce.epoch
            );
            return Err(Failure::new(code, message));
        }
        if produce.batch.len() > self.config.batch_bytes_max {
            let (len, max) = (produce.batch.len(), self.config.batch_bytes_max);
            return Err(Failure::new(
                ErrorCode::BatchTooLarge,
                format!("batch of {len} bytes for {id}, at most {max}"),
            ));
        }
        Ok(())
    }

    /// Refuses a batch that is too large for a journal file of some storage node: a frame that a node
    /// never takes would hold up everything after it.
    fn fits_nodes(&self, produce: &Produce, ctx: &Context<'_>) -> Result<(), Failure> {
        let bytes = produce.batch.len() as u64;
        match ctx.least_frame {
            Some((max, node)) if bytes > max => {
                let id = self.record.id;
                let message = format!(
                    "batch of {bytes} bytes for {id}, at most {max}: the journal files of storage node \
                     {} take no more (its storage.journal_file_bytes)",
                    node.0
                );
                Err(Failure::new(ErrorCode::BatchTooLarge, message))
            }
            _ => Ok(()),
        }
    }

    /// True where a batch may be given an offset now; prepares a segment where there is none.
    fn may_admit(&mut self, ctx: &mut Context<'_>) -> bool {
        matches!(self.phase, Phase::Serving)
            && self.undecided_bytes < self.config.window_bytes
            && (self.linked.is_some() || self.next.is_some() || self.prepare(Plan::First, Vec::new(), ctx))
    }

    fn admit(&mut self, produce: Produce, ctx: &mut Context<'_>) {
        let Produce {
            ticket,
            acks,
            deadline_ms,
            batch,
            traced,
            ..
        } = produce;
        match self.place(&batch) {
            Ok(Placed::New { base, end, chunks }) => {
                let bytes = batch.len() as u64;
                self.undecided_bytes += bytes;
                self.staged.push(Staged { end, chunks });
                if traced {
                    ctx.out.push(Action::Placed { ticket, base, end });
                }
                let answer = if acks == Acks::None {
                    ctx.out.push(Action::Answer {
                        ticket,
                        result: Ok(base),
                    });
                    None
                } else {
                    Some((ticket, acks))
                };
                self.pending.push_back(Pending {
                    base,
                    end,
                    bytes,
                    answer,
                    deadline_ms,
                });
            }
            Ok(Placed::Duplicate { base, end }) if end <= self.visible => {
                ctx.out.push(Action::Answer {
                    ticket,
                    result: Ok(base),
                });
            }
            Ok(Placed::Duplicate { base, .. }) if self.echoes.len() < ECHOES_MAX => {
                self.echoes.push(Echo {
                    base,
                    ticket,
                    deadline_ms,
                });
            }
            Ok(Placed::Duplicate { .. }) => {
                let message = format!("{ECHOES_MAX} repetitions wait in {} already", self.record.id);
                ctx.out.push(Action::Answer {
                    ticket,
                    result: Err(Failure::new(ErrorCode::Overloaded, message)),
                });
            }
            Err(failure) => ctx.out.push(Action::Answer {
                ticket,
                result: Err(failure),
            }),
        }
    }

    /// Gives a batch its offset and remembers it.
    fn place(&mut self, batch: &Bytes) -> Result<Placed, Failure> {
        let id = self.record.id;
        let header = Header::parse(batch)
            .map_err(|error| Failure::new(ErrorCode::CorruptBatch, format!("batch for {id}: {error}")))?;
        let count = u64::from(header.record_count());
        if header.len_bytes() != batch.len() || count == 0 {
            let message = format!(
                "batch for {id} has {} bytes of {} and {count} records",
                batch.len(),
                header.len_bytes()
            );
            return Err(Failure::new(ErrorCode::InvalidBatch, message));
        }
        match self.producers.check(&header) {
            Ok(Verdict::Duplicate(base)) => {
                return Ok(Placed::Duplicate {
                    base,
                    end: Offset(base.0 + count),
                });
            }
            Ok(Verdict::New) => {}
            Err(error) => return Err(refuse_sequence(&error, id)),
        }
        let base = self.tail;
        let stamped = base
            .checked_add(count)
            .and_then(|end| Some((end, batch::stamped_prefix(batch, base, self.record.epoch).ok()?)));
        let Some((end, prefix)) = stamped else {
            return Err(Failure::new(
                ErrorCode::Internal,
                format!("{id} has no offsets left after {base}"),
            ));
        };
        self.producers.record(&header, base);
        if self
            .epochs
            .last()
            .is_none_or(|(epoch, _)| *epoch != self.record.epoch)
        {
            self.epochs.push((self.record.epoch, base));
        }
        self.tail = end;
        let chunks = [Bytes::copy_from_slice(&prefix), batch.slice(batch::HEADER_LEN..)];
        self.cache.push(base, end, chunks.clone());
        Ok(Placed::New { base, end, chunks })
    }

    /// Sends what was given offsets since the last call, as few frames.
    pub fn flush(&mut self, ctx: &mut Context<'_>) {
        if self.staged.is_empty() {
            return;
        }
        let staged = std::mem::take(&mut self.staged);
        let least = ctx.least_frame.map_or(u64::MAX, |(max, _)| max);
        let bytes_max = FRAME_BYTES_MAX.min(least);
        let Some(writer) = newest(&mut self.next, &mut self.linked) else {
            return self.release("batches were staged without a segment".to_owned(), ctx);
        };
        let mut payload = Vec::with_capacity(staged.len() * 2);
        let (mut batches, mut bytes, mut end) = (0, 0, writer.tail);
        let mut result = Ok(());
        for one in staged {
            let len = one.chunks.iter().map(Bytes::len).sum::<usize>() as u64;
            if batches > 0 && bytes + len > bytes_max {
                let full = std::mem::take(&mut payload);
                result = result.and(writer.append(FrameKind::Data, batches, end, full, ctx.now_ms, ctx.out));
                (batches, bytes) = (0, 0);
            }
            batches += 1;
            bytes += len;
            end = one.end;
            payload.extend(one.chunks);
        }
        result = result.and(writer.append(FrameKind::Data, batches, end, payload, ctx.now_ms, ctx.out));
        if let Err(error) = result {
            return self.release(format!("a frame cannot be made: {error}"), ctx);
        }
        self.checkpoint(ctx);
        self.roll_if_full(ctx);
    }

    /// Writes a state frame where enough was written since the last, in proportion to its size.
    fn checkpoint(&mut self, ctx: &mut Context<'_>) {
        let state_len = self.producers.count() as u64 * 64;
        let Some(writer) = newest(&mut self.next, &mut self.linked) else {
            return;
        };
        if writer.bytes_since_state < STATE_BYTES_MIN.max(16 * state_len)
            && writer.batches_since_state < STATE_BATCHES_MAX
        {
            return;
        }
        let state = PartitionState {
            epochs: self.epochs.clone(),
            producers: self.producers.snapshot_below(writer.tail),
        };
        let end = writer.tail;
        let payload = vec![Bytes::from(state.encode())];
        if let Err(error) = writer.append(FrameKind::State, 0, end, payload, ctx.now_ms, ctx.out) {
            self.release(format!("a state cannot be written: {error}"), ctx);
        }
    }

    /// Gives waiting batches their offsets as far as the window allows. The caller flushes.
    pub(super) fn pump(&mut self, ctx: &mut Context<'_>) {
        while !self.waiting.is_empty() && self.may_admit(ctx) {
            let Some(produce) = self.waiting.pop_front() else {
                break;
            };
            self.waiting_bytes -= produce.batch.len() as u64;
            // A smaller storage node may have come meanwhile.
            match self.fits_nodes(&produce, ctx) {
                Ok(()) => self.admit(produce, ctx),
                Err(failure) => ctx.out.push(Action::Answer {
                    ticket: produce.ticket,
                    result: Err(failure),
                }),
            }
        }
    }

    /// True where produces wait for the partition to be served.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

/// The segment that new frames go to: the one being prepared, else the open one.
fn newest<'a>(next: &'a mut Option<Next>, linked: &'a mut Option<Writer>) -> Option<&'a mut Writer> {
    next.as_mut().map(|next| &mut next.writer).or(linked.as_mut())
}

/// What became of a batch.
enum Placed {
    New {
        base: Offset,
        end: Offset,
        chunks: [Bytes; 2],
    },
    Duplicate {
        base: Offset,
        end: Offset,
    },
}

fn refuse_sequence(error: &SequenceError, id: forebay_record::PartitionId) -> Failure {
    let code = match error {
        SequenceError::Fenced { .. } => ErrorCode::FencedProducer,
        SequenceError::OutOfOrder { .. } => ErrorCode::OutOfOrderSequence,
        SequenceError::Unknown { .. } => ErrorCode::UnknownProducer,
        SequenceError::Repeated { .. } => ErrorCode::DuplicateSequence,
    };
    Failure::new(code, format!("{id}: {error}"))
}
