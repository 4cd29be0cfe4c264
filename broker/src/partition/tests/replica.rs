//! Replicas that follow the rules which a storage node promises, and the way to them.

use super::*;

#[derive(Default, Clone)]
pub(super) struct Copy {
    pub(super) frames: Vec<Frame>,
    pub(super) fenced: bool,
    pub(super) committed: Offset,
    pub(super) base: Offset,
    pub(super) token: Token,
    /// A part of a copy, or a copy that was given up.
    pub(super) limbo: bool,
    /// It came as a copy of this owner's, and no record was seen to name it.
    pub(super) copied_by: Option<Epoch>,
}

impl Copy {
    pub(super) fn tail(&self) -> Offset {
        self.frames.last().map_or(self.base, |frame| frame.header.end)
    }

    pub(super) fn hash(&self, segment: SegmentId) -> ChainHash {
        self.frames
            .last()
            .map_or(ChainHash::seed(segment), |frame| frame.header.hash())
    }
}

#[derive(Default)]
pub(super) struct Replica {
    pub(super) segments: HashMap<SegmentId, Copy>,
    pub(super) floor: Token,
    pub(super) up: bool,
    /// How often it lost everything.
    pub(super) losses: u32,
    /// It is to be emptied.
    pub(super) leaving: bool,
}

impl Replica {
    pub(super) fn generation(&self) -> Generation {
        Generation(1 + self.losses)
    }
}

pub(super) fn batches(frame: &Frame) -> Vec<(Header, Bytes)> {
    batch::Batches::new(frame.payload_bytes())
        .map(Result::unwrap)
        .collect()
}

pub(super) fn append(replica: &mut Replica, frame: Frame) -> Result<Ack, Refusal> {
    let header = frame.header;
    header.verify(&frame.payload).unwrap();
    let known = replica.segments.contains_key(&header.segment);
    if !known && header.kind != FrameKind::Open {
        return Err(Refusal::UnknownSegment);
    }
    if !known && header.token <= replica.floor {
        return Err(Refusal::Closed);
    }
    let copy = replica.segments.entry(header.segment).or_insert_with(|| Copy {
        base: header.first,
        token: header.token,
        ..Copy::default()
    });
    if copy.fenced {
        return Err(Refusal::Fenced(Epoch(0)));
    }
    let held = u32::try_from(copy.frames.len()).unwrap();
    if header.number > held {
        return Err(Refusal::Gap(held));
    }
    if header.number == held {
        let hash = copy.hash(header.segment);
        assert_eq!(header.prev_hash, hash, "a writer diverged from itself");
        copy.frames.push(frame);
    } else {
        assert_eq!(
            copy.frames[header.number as usize].header.checksum, header.checksum,
            "a writer split differently"
        );
    }
    copy.committed = copy.committed.max(header.committed);
    Ok(Ack {
        segment: header.segment,
        tail: copy.tail(),
        frames: u32::try_from(copy.frames.len()).unwrap(),
    })
}

pub(super) fn headers(replica: &Replica, segment: SegmentId, until: Offset) -> Result<Headers, NodeFailure> {
    let copy = replica.segments.get(&segment).ok_or(NodeFailure::NotFound)?;
    // As storage nodes do: one that lacks the segment's end knows too little of producers.
    if copy.tail() < until {
        return Err(NodeFailure::Behind(copy.tail()));
    }
    let is_state = |frame: &&Frame| {
        matches!(frame.header.kind, FrameKind::Open | FrameKind::State) && frame.header.end <= until
    };
    let state = copy
        .frames
        .iter()
        .rev()
        .find(is_state)
        .ok_or(NodeFailure::NotFound)?;
    let mut headers = Vec::new();
    for frame in copy
        .frames
        .iter()
        .filter(|frame| frame.header.number > state.header.number)
    {
        for (header, batch) in batches(frame) {
            if header.end_offset() <= until {
                headers.extend_from_slice(&batch[..batch::HEADER_LEN]);
            }
        }
    }
    Ok(Headers {
        state_kind: state.header.kind as u8,
        state: state.payload_bytes(),
        state_at: state.header.end,
        headers: Bytes::from(headers),
    })
}

/// The state that headers after a state lead to, as a node computes it for an object.
pub(super) fn state_at(found: &Headers) -> PartitionState {
    let (mut state, headers) = crate::partition::takeover::state_of(found).unwrap();
    let mut producers = Producers::from_entries(state.producers);
    for header in &headers {
        producers.record(header, header.base_offset());
        if let Some(epoch) = header.leader_epoch()
            && state.epochs.last().is_none_or(|(last, _)| *last < epoch)
        {
            state.epochs.push((epoch, header.base_offset()));
        }
    }
    state.producers = producers.snapshot_below(Offset(u64::MAX));
    state
}

impl World {
    /// Delivers the oldest message on one wire, and its reply if its sender still listens.
    pub(super) fn deliver(&mut self, node: NodeId) {
        let Some(InFlight {
            owner,
            session,
            action,
        }) = self.wires.get_mut(&node).unwrap().pop_front()
        else {
            return;
        };
        let replica = self.replicas.get_mut(&node).unwrap();
        if !replica.up && owner == self.incarnation {
            return;
        }
        let listens = owner == self.incarnation && session == self.sessions[&node];
        match action {
            Action::Append {
                frame, generation, ..
            } => {
                let segment = frame.header.segment;
                let reply = if generation == replica.generation() {
                    append(replica, frame)
                } else {
                    Err(Refusal::WrongGeneration(replica.generation()))
                };
                if listens {
                    match reply {
                        Ok(ack) => self.act(|owner, ctx| {
                            owner.on_ack(node, ack, ctx);
                            owner.flush(ctx);
                        }),
                        Err(refusal) => {
                            self.act(|owner, ctx| owner.on_not_taken(node, segment, refusal, ctx))
                        }
                    }
                }
            }
            Action::Commit {
                segment, committed, ..
            } => {
                if let Some(copy) = replica.segments.get_mut(&segment) {
                    copy.committed = copy.committed.max(committed);
                }
            }
            Action::Fence { item, .. } if item.generation != replica.generation() => {
                let state = FencedState {
                    segment: item.segment,
                    authoritative: false,
                    tail: item.base,
                    committed: item.base,
                    frames: 0,
                    hash: ChainHash::seed(item.segment),
                };
                if listens {
                    self.act(|owner, ctx| owner.on_fenced(node, state, ctx));
                }
            }
            Action::Fence { item, .. } => {
                let copy = replica.segments.entry(item.segment).or_insert_with(|| Copy {
                    base: item.base,
                    token: item.token,
                    ..Copy::default()
                });
                copy.fenced = true;
                let state = FencedState {
                    segment: item.segment,
                    authoritative: !copy.limbo,
                    tail: copy.tail(),
                    committed: copy.committed,
                    frames: u32::try_from(copy.frames.len()).unwrap(),
                    hash: copy.hash(item.segment),
                };
                if listens {
                    self.act(|owner, ctx| owner.on_fenced(node, state, ctx));
                }
            }
            Action::ReadFrames { request, .. } => {
                let count = 1 + usize::try_from(self.random.range(0, 4)).unwrap();
                let held = replica.segments.get(&request.segment);
                let frames = held
                    .filter(|_| request.generation == replica.generation())
                    .map(|copy| {
                        let wanted = copy.frames.iter();
                        let wanted = wanted.filter(|frame| frame.header.end > request.from);
                        wanted.take(count).cloned().collect::<Vec<_>>()
                    })
                    .ok_or(NodeFailure::NotFound);
                if listens {
                    self.act(|owner, ctx| owner.on_frames(node, request.segment, frames, ctx));
                }
            }
            Action::ReadHeaders { request, .. } => {
                let result = if request.generation == replica.generation() {
                    headers(replica, request.segment, request.until)
                } else {
                    Err(NodeFailure::WrongGeneration(replica.generation()))
                };
                if listens {
                    self.act(|owner, ctx| owner.on_headers(node, request.segment, result, ctx));
                }
            }
            _ => unreachable!(),
        }
    }
}
