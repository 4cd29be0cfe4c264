//! Time passes, and ownerships end: what waited too long is answered, what must be told is told, and
//! an owner leaves in order or at once.

use std::collections::BTreeSet;

use forebay_proto::error::Failure;
use forebay_proto::v1::ErrorCode;
use forebay_record::Epoch;
use forebay_record::batch::Header;

use super::action::{Action, Context};
use super::change::sealed;
use super::owner::{Owner, Phase};
use super::writer::Writer;

impl Owner {
    /// Time passes.
    pub fn on_tick(&mut self, ctx: &mut Context<'_>) {
        self.expire(ctx);
        self.retry_recovery(ctx);
        self.give_up_late(ctx);
        self.trailing.retain(|(_, until)| *until > ctx.now_ms);
        if self.announce_at_ms.is_some_and(|at| at <= ctx.now_ms) {
            self.announce_at_ms = None;
            if let Some(writer) = &self.linked {
                writer.announce(ctx.out);
            }
        }
        self.mend(ctx);
        self.roll_for_comfort(ctx);
        self.pump(ctx);
        self.flush(ctx);
        self.finish_resigning(ctx);
        self.tend_past(ctx);
        self.tend_repairs(ctx);
        self.tend_losses(ctx);
    }

    /// True while something here waits, for an answer or for time: the owner is to be ticked often.
    #[must_use]
    pub fn waits(&self) -> bool {
        let settled = |writer: &Writer| writer.is_complete() && !writer.is_degraded();
        !matches!(self.phase, Phase::Serving)
            || self.storing.is_some()
            || self.next.is_some()
            || self.announce_at_ms.is_some()
            || !self.staged.is_empty()
            || !self.pending.is_empty()
            || !self.waiting.is_empty()
            || !self.echoes.is_empty()
            || !self.trailing.is_empty()
            || !self.linked.as_ref().is_none_or(settled)
    }

    /// Answers those whose time is up. What may have been staged is of unknown outcome.
    fn expire(&mut self, ctx: &mut Context<'_>) {
        let (id, now) = (self.record.id, ctx.now_ms);
        let serving = self.is_serving();
        let (code, what) = if serving {
            (
                ErrorCode::NotEnoughReplicas,
                "too few storage nodes took writes in time",
            )
        } else {
            (ErrorCode::Timeout, "its owner was still recovering it")
        };
        let waiting_bytes = &mut self.waiting_bytes;
        // What an idempotent producer sent after a batch that is refused would be out of order.
        let mut refused = BTreeSet::new();
        self.waiting.retain(|produce| {
            let producer = Header::parse_prefix(&produce.batch)
                .ok()
                .and_then(|header| header.producer_id());
            let follows = producer.is_some_and(|producer| refused.contains(&producer));
            if produce.deadline_ms > now && !follows {
                return true;
            }
            refused.extend(producer);
            *waiting_bytes -= produce.batch.len() as u64;
            let failure = Failure::new(code, format!("{id}: {what}"));
            ctx.out.push(Action::Answer {
                ticket: produce.ticket,
                result: Err(failure),
            });
            false
        });
        let late = |deadline_ms: u64| deadline_ms <= now;
        let unknown = || {
            Failure::new(
                ErrorCode::OutcomeUnknown,
                format!("{id}: no quorum answered in time"),
            )
        };
        for pending in self
            .pending
            .iter_mut()
            .filter(|pending| late(pending.deadline_ms))
        {
            if let Some((ticket, _)) = pending.answer.take() {
                ctx.out.push(Action::Answer {
                    ticket,
                    result: Err(unknown()),
                });
            }
        }
        for echo in self.echoes.extract_if(.., |echo| late(echo.deadline_ms)) {
            ctx.out.push(Action::Answer {
                ticket: echo.ticket,
                result: Err(unknown()),
            });
        }
    }

    /// Leaves in order: takes nothing new, commits what it has, seals, and is released.
    pub fn on_resign(&mut self, ctx: &mut Context<'_>) {
        match self.phase {
            Phase::Serving => {
                self.flush(ctx);
                self.phase = Phase::Resigning;
                let failure = Failure::new(
                    ErrorCode::NotOwner,
                    format!("{} is leaving {}", self.record.id, self.me),
                );
                for produce in self.waiting.drain(..) {
                    ctx.out.push(Action::Answer {
                        ticket: produce.ticket,
                        result: Err(failure.clone()),
                    });
                }
                self.waiting_bytes = 0;
                self.finish_resigning(ctx);
            }
            Phase::Recovering(_) => self.release("resigned while recovering".to_owned(), ctx),
            Phase::Resigning | Phase::Released => {}
        }
    }

    /// Leaves at once: neither the metadata store nor a quorum of storage nodes says that this is still
    /// the owner.
    pub fn on_unconfirmed(&mut self, ctx: &mut Context<'_>) {
        self.release("nobody confirms that this broker still owns it".to_owned(), ctx);
    }

    /// The partition's record is at an epoch. Another owner's fence or change tells the same to whoever
    /// writes; one that nobody writes to would own the partition in its memory for ever.
    pub fn on_epoch_seen(&mut self, epoch: Epoch, ctx: &mut Context<'_>) {
        if epoch > self.record.epoch {
            self.release(format!("its record is at {epoch}"), ctx);
        }
    }

    pub(super) fn finish_resigning(&mut self, ctx: &mut Context<'_>) {
        if !matches!(self.phase, Phase::Resigning) || self.storing.is_some() || self.next.is_some() {
            return;
        }
        match &self.linked {
            None => self.release("resigned".to_owned(), ctx),
            Some(writer) if writer.committed == self.tail => {
                let sealed = self
                    .record
                    .seal(writer.committed, sealed(writer.bytes, ctx), None, ctx.nonce);
                self.submit(sealed, ctx);
            }
            Some(_) => {}
        }
    }

    /// Ends the ownership. What waits was never staged; what is pending may be carried by the next
    /// owner, so its outcome is unknown.
    pub(super) fn release(&mut self, why: String, ctx: &mut Context<'_>) {
        if self.is_released() {
            return;
        }
        self.phase = Phase::Released;
        let id = self.record.id;
        let not_owner = Failure::new(
            ErrorCode::NotOwner,
            format!("{} no longer owns {id}: {why}", self.me),
        );
        for produce in self.waiting.drain(..) {
            ctx.out.push(Action::Answer {
                ticket: produce.ticket,
                result: Err(not_owner.clone()),
            });
        }
        let unknown = Failure::new(
            ErrorCode::OutcomeUnknown,
            format!("{} lost {id} before commit: {why}", self.me),
        );
        let pending = self
            .pending
            .drain(..)
            .filter_map(|pending| pending.answer)
            .map(|(ticket, _)| ticket);
        for ticket in pending.chain(self.echoes.drain(..).map(|echo| echo.ticket)) {
            ctx.out.push(Action::Answer {
                ticket,
                result: Err(unknown.clone()),
            });
        }
        self.staged.clear();
        self.next = None;
        self.linked = None;
        self.storing = None;
        ctx.out.push(Action::Released { why });
    }
}
