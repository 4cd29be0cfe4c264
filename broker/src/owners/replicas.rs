//! The storage nodes as the owners' task knows them: who is connected, what goes to them, and to
//! which partition, call or copy belongs what they say.

use forebay_proto::data::replica::{FromNode, NodeFailure, ToNode};
use forebay_proto::stored::{NodeRecord, NodeState};
use forebay_record::{Generation, NodeId, PartitionId, SegmentId};

use super::calls::{Call, Sent};
use super::driver::Driver;
use crate::nodes::{NodeEvent, NodeSession};
use crate::partition::{Context, NodeView, Owner, least_frame};

/// A storage node as the driver knows it.
pub(super) struct Node {
    view: NodeView,
    session: Option<NodeSession>,
}

impl Driver {
    pub(super) fn is_connected(&self, node: NodeId, generation: Generation) -> bool {
        self.views
            .get(&node)
            .is_some_and(|view| view.connected && view.generation == generation)
    }

    pub(super) fn append(&self, node: NodeId, message: ToNode) {
        if let Some(session) = self.nodes.get(&node).and_then(|node| node.session.as_ref()) {
            // A session that just ended loses it; the next one gets it again.
            let _ = session.append.send(message);
        }
    }

    pub(super) fn request(&self, node: NodeId, message: ToNode) {
        if let Some(session) = self.nodes.get(&node).and_then(|node| node.session.as_ref()) {
            // As above: the call times out and is made again.
            let _ = session.request.send(message);
        }
    }

    pub(super) fn on_node(&mut self, event: NodeEvent) {
        match event {
            NodeEvent::Known(record) => self.on_node_known(&record),
            NodeEvent::Forgotten(node) => self.on_node_forgotten(node),
            NodeEvent::Up {
                node,
                generation,
                session,
            } => {
                if let Some(known) = self.nodes.get_mut(&node) {
                    known.session = Some(session);
                    known.view.connected = true;
                    known.view.generation = generation;
                    self.views.insert(node, known.view.clone());
                }
                self.each_owner(|owner, ctx| owner.on_connected(node, generation, ctx));
            }
            NodeEvent::Down(node) => {
                if let Some(known) = self.nodes.get_mut(&node) {
                    known.session = None;
                    known.view.connected = false;
                    self.views.insert(node, known.view.clone());
                }
                for sent in self.calls.fail(Some(node), self.now_ms) {
                    self.on_call_failed(sent);
                }
                self.each_owner(|owner, ctx| owner.on_nodes_changed(ctx));
            }
            NodeEvent::Said(node, message) => self.on_said(node, message),
        }
    }

    fn on_node_forgotten(&mut self, node: NodeId) {
        self.nodes.remove(&node);
        if self.views.remove(&node).is_some() {
            self.least_frame = least_frame(&self.views);
            for sent in self.calls.fail(Some(node), self.now_ms) {
                self.on_call_failed(sent);
            }
            self.each_owner(|owner, ctx| owner.on_nodes_changed(ctx));
        }
    }

    fn on_node_known(&mut self, record: &NodeRecord) {
        let id = NodeId(record.id);
        if record.state() == NodeState::Gone {
            // An operator said so: nothing that it had comes back.
            return self.on_node_forgotten(id);
        }
        let known = self.nodes.entry(id).or_insert_with(|| Node {
            view: NodeView {
                generation: Generation(record.generation),
                zone: String::new(),
                usable: false,
                connected: false,
                leaving: false,
                frame_bytes_max: None,
                heard_ms: 0,
            },
            session: None,
        });
        known.view.zone.clone_from(&record.zone);
        known.view.usable = record.state() == NodeState::Active;
        known.view.leaving = record.state() == NodeState::Draining;
        known.view.frame_bytes_max = (record.frame_bytes_max > 0).then_some(record.frame_bytes_max);
        if known.session.is_none() {
            known.view.generation = Generation(record.generation);
        }
        self.views.insert(id, known.view.clone());
        self.least_frame = least_frame(&self.views);
    }

    pub(super) fn each_owner(&mut self, act: impl Fn(&mut Owner, &mut Context<'_>)) {
        let partitions: Vec<_> = self.owners.keys().copied().collect();
        for partition in partitions {
            self.with_owner(partition, &act);
        }
    }

    fn on_said(&mut self, node: NodeId, message: FromNode) {
        if let Some(view) = self.views.get_mut(&node) {
            view.heard_ms = self.now_ms;
        }
        match message {
            FromNode::Acks { acks, queue_delay_us } => {
                self.settings
                    .metrics
                    .node_queue_delay
                    .observe(f64::from(queue_delay_us) / 1e6);
                for ack in acks {
                    self.with_owner(ack.segment.partition, |owner, ctx| owner.on_ack(node, ack, ctx));
                    self.touched.insert(ack.segment.partition);
                }
            }
            FromNode::NotTaken {
                segment,
                number,
                refusal,
            } => {
                self.refusals.tell(node, segment, number, refusal, self.now_ms);
                self.settings.metrics.refused(refusal);
                self.with_owner(segment.partition, |owner, ctx| {
                    owner.on_not_taken(node, segment, refusal, ctx)
                });
                self.touched.insert(segment.partition);
            }
            FromNode::Fenced { request, states } => {
                self.calls.end(request);
                for state in states {
                    self.with_owner(state.segment.partition, |owner, ctx| {
                        owner.on_fenced(node, state, ctx)
                    });
                }
            }
            FromNode::Frames { request, result } => match self.calls.end(request) {
                Some(Sent {
                    call: Call::Frames(partition, segment),
                    ..
                }) => {
                    self.with_owner(partition, |owner, ctx| {
                        owner.on_frames(node, segment, result, ctx)
                    });
                }
                Some(Sent {
                    call: Call::Sealed(key),
                    ..
                }) => self.on_sealed(key, node, result),
                _ => {}
            },
            FromNode::Surveyed { request, found } => {
                if let Some(Sent {
                    call: Call::Survey(segments),
                    ..
                }) = self.calls.end(request)
                {
                    self.on_surveyed(node, segments, found);
                }
            }
            FromNode::Missing { request, result } => {
                if let Some(Sent {
                    call: Call::Missing(partition, segment),
                    ..
                }) = self.calls.end(request)
                {
                    self.with_owner(partition, |owner, ctx| {
                        owner.on_missing(node, segment, result, ctx)
                    });
                }
            }
            FromNode::Copied { request, result } => {
                if let Some(Sent {
                    call: Call::Copy(key),
                    ..
                }) = self.calls.end(request)
                {
                    self.on_copied(key, node, result);
                }
            }
            FromNode::Headers { request, result } => {
                if let Some(Sent {
                    call: Call::Headers(partition, segment),
                    ..
                }) = self.calls.end(request)
                {
                    self.with_owner(partition, |owner, ctx| {
                        owner.on_headers(node, segment, result, ctx)
                    });
                }
            }
            FromNode::Confirm { request, open } => match self.calls.end(request) {
                Some(Sent {
                    call: Call::Confirm(question),
                    ..
                }) => self.on_confirm(question, node, open.first().copied().unwrap_or(false)),
                Some(Sent {
                    call: Call::Standing(asked_ms, segments),
                    ..
                }) => self.on_standing(node, asked_ms, &segments, &open),
                _ => {}
            },
            FromNode::Uploaded { request, result } => {
                if let Some(Sent {
                    call: Call::Upload(key),
                    ..
                }) = self.calls.end(request)
                {
                    self.on_uploaded(key, node, result);
                }
            }
            FromNode::Urge(segments) => {
                for segment in segments {
                    self.with_owner(segment.partition, |owner, ctx| owner.on_urged(segment, ctx));
                }
            }
            FromNode::Damaged(segments) => {
                for segment in segments {
                    self.with_owner(segment.partition, |owner, ctx| {
                        owner.on_damaged(segment, node, ctx);
                    });
                }
            }
            FromNode::Welcome { .. }
            | FromNode::Refused(_)
            | FromNode::Read { .. }
            | FromNode::Lookup { .. } => {
                tracing::warn!(%node, "storage node sent what nobody asked for");
            }
        }
    }

    pub(super) fn on_call_failed(&mut self, sent: Sent) {
        let node = sent.node;
        match sent.call {
            // The partitions' own timers repeat fences.
            Call::Fence => {}
            Call::Frames(partition, segment) => self.fail_frames(partition, node, segment),
            Call::Headers(partition, segment) => {
                self.with_owner(partition, |owner, ctx| {
                    owner.on_headers(node, segment, Err(NodeFailure::Failed), ctx)
                });
            }
            Call::Confirm(question) => self.on_confirm(question, node, false),
            Call::Upload(key) => self.on_uploaded(key, node, Err(NodeFailure::Failed)),
            // Asked again by the partitions' own timers.
            Call::Survey(_) => {}
            // As above, by this task's own.
            Call::Standing(..) => {}
            Call::Missing(partition, segment) => {
                self.with_owner(partition, |owner, ctx| {
                    owner.on_missing(node, segment, Err(NodeFailure::Failed), ctx)
                });
            }
            Call::Sealed(key) => self.on_sealed(key, node, Err(NodeFailure::Failed)),
            Call::Copy(key) => self.on_copied(key, node, Err(NodeFailure::Failed)),
        }
    }

    fn fail_frames(&mut self, partition: PartitionId, node: NodeId, segment: SegmentId) {
        self.with_owner(partition, |owner, ctx| {
            owner.on_frames(node, segment, Err(NodeFailure::Failed), ctx)
        });
    }
}
