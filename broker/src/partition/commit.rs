//! From acknowledgements to answers: a frame that a quorum has synced is committed, its produces are
//! answered and its records visible. Nothing is answered before an fsync, nor before the segment's
//! link in the chain is confirmed (I6).

use forebay_proto::data::front::Acks;
use forebay_proto::data::replica::{Ack, Refusal};
use forebay_record::{Generation, NodeId, Offset, SegmentId};
use forebay_runtime::mutant::{self, Mutant};

use super::action::{Action, Context};
use super::owner::{Owner, Plan};
use super::writer::Writer;

/// A node without room is tried again after this long: trims make room from one moment to the next, and on
/// a small cluster there is no other node to go to.
const AVOID_FULL_MS: u64 = 500;
/// A node whose journal failed is tried again after this long.
const AVOID_FAILED_MS: u64 = 5_000;
/// A quiet partition tells its replicas the committed offset this long after it moved.
const ANNOUNCE_MS: u64 = 20;

impl Owner {
    /// Takes a replica's acknowledgement.
    pub fn on_ack(&mut self, node: NodeId, ack: Ack, ctx: &mut Context<'_>) {
        if let Some(writer) = self
            .linked
            .as_mut()
            .filter(|writer| writer.segment.id == ack.segment)
        {
            if writer.on_ack(node, ack, ctx.now_ms) {
                let first = writer.first_tail();
                self.answer_first(first, ctx);
                self.advance(ctx);
            }
        } else if let Some(next) = self
            .next
            .as_mut()
            .filter(|next| next.writer.segment.id == ack.segment)
        {
            if next.writer.on_ack(node, ack, ctx.now_ms) {
                if mutant::is(Mutant::AckBeforeLink) && next.writer.commit(Offset(u64::MAX)) {
                    let committed = next.writer.committed;
                    self.show(committed.max(self.visible), ctx);
                }
                self.store(ctx);
            }
        } else if let Some(at) = self
            .trailing
            .iter()
            .position(|(writer, _)| writer.segment.id == ack.segment)
            && let Some((writer, _)) = self.trailing.get_mut(at)
        {
            writer.on_ack(node, ack, ctx.now_ms);
            if writer.is_complete() {
                self.trailing.swap_remove(at);
            }
        }
    }

    /// Takes a replica's refusal of one frame.
    pub fn on_not_taken(
        &mut self,
        node: NodeId,
        segment: SegmentId,
        refusal: Refusal,
        ctx: &mut Context<'_>,
    ) {
        let in_use = self.writer_mut(segment).is_some();
        if let Refusal::Fenced(by) = refusal {
            if in_use {
                self.release(format!("{segment} is fenced by {by} on {node}"), ctx);
            }
            return;
        }
        let Some(writer) = self.writer_mut(segment) else {
            self.trailing.retain(|(writer, _)| writer.segment.id != segment);
            return;
        };
        match refusal {
            Refusal::Gap(expected) => writer.resend(node, expected, ctx.out),
            Refusal::Closed => {
                // The node's floor has passed the token. Until a newer one is known, another segment
                // would fare no better: the next tick looks again.
                writer.give_up(node);
                let token = writer.segment.token;
                if self.fresh_token(ctx) > token {
                    self.mend(ctx);
                }
            }
            _ => {
                writer.give_up(node);
                let avoided_ms = match refusal {
                    Refusal::NoNewSegments | Refusal::DiskFull => AVOID_FULL_MS,
                    Refusal::Failed => AVOID_FAILED_MS,
                    _ => 0,
                };
                if avoided_ms > 0 {
                    self.avoid.insert(node, ctx.now_ms + avoided_ms);
                }
                self.mend(ctx);
            }
        }
    }

    pub(super) fn writer_mut(&mut self, segment: SegmentId) -> Option<&mut Writer> {
        self.linked
            .as_mut()
            .into_iter()
            .chain(self.next.as_mut().map(|next| &mut next.writer))
            .find(|writer| writer.segment.id == segment)
    }

    /// A node's session came up.
    pub fn on_connected(&mut self, node: NodeId, generation: Generation, ctx: &mut Context<'_>) {
        self.avoid.remove(&node);
        self.survey_again(node, ctx.now_ms);
        self.losses.forget(node);
        self.forget_again(node, ctx);
        let writers = self
            .linked
            .iter_mut()
            .chain(self.next.as_mut().map(|next| &mut next.writer))
            .chain(self.trailing.iter_mut().map(|(writer, _)| writer));
        for writer in writers {
            writer.on_connected(node, generation, ctx.out);
        }
        self.on_nodes_changed(ctx);
    }

    /// The view of the storage nodes changed.
    pub fn on_nodes_changed(&mut self, ctx: &mut Context<'_>) {
        self.mend(ctx);
        self.pump(ctx);
        self.flush(ctx);
    }

    /// Commits what a quorum has, and shows it.
    pub(super) fn advance(&mut self, ctx: &mut Context<'_>) {
        let limit = match self.next.as_ref().map(|next| next.plan) {
            Some(Plan::Roll { end } | Plan::Change { end }) if !mutant::is(Mutant::CommitBeyondEnd) => end,
            _ => Offset(u64::MAX),
        };
        if let Some(writer) = self.linked.as_mut()
            && writer.commit(limit)
        {
            let committed = writer.committed;
            self.show(committed, ctx);
        }
        self.store(ctx);
    }

    /// Makes everything below an offset visible, and answers those who waited for it.
    pub(super) fn show(&mut self, committed: Offset, ctx: &mut Context<'_>) {
        assert!(
            committed >= self.visible,
            "{} would go back from {} to {committed}",
            self.record.id,
            self.visible
        );
        if committed == self.visible {
            return;
        }
        self.visible = committed;
        self.announce_at_ms = Some(ctx.now_ms + ANNOUNCE_MS);
        while let Some(pending) = self.pending.pop_front_if(|pending| pending.end <= committed) {
            self.undecided_bytes -= pending.bytes;
            if let Some((ticket, _)) = pending.answer {
                ctx.out.push(Action::Answer {
                    ticket,
                    result: Ok(pending.base),
                });
            }
        }
        if !self.echoes.is_empty() {
            for echo in self.echoes.extract_if(.., |echo| echo.base < committed) {
                ctx.out.push(Action::Answer {
                    ticket: echo.ticket,
                    result: Ok(echo.base),
                });
            }
        }
        ctx.out.push(Action::Visible(committed));
        self.pump(ctx);
        self.finish_resigning(ctx);
    }

    /// Answers produces that asked for one durable replica only.
    fn answer_first(&mut self, tail: Offset, ctx: &mut Context<'_>) {
        for pending in self.pending.iter_mut().take_while(|pending| pending.end <= tail) {
            if let Some((ticket, _)) = pending.answer.take_if(|(_, acks)| *acks == Acks::One) {
                ctx.out.push(Action::Answer {
                    ticket,
                    result: Ok(pending.base),
                });
            }
        }
    }
}
