//! Two partitions whose segments share the floors of three nodes.
//!
//! A node that forgets a segment raises its one floor to that segment's token, whichever partition it
//! was of. An OPEN of the other partition that was not delivered yet may then come too late: the node
//! calls it closed, and the owner prepares another segment with a newer token (decision 0007). What is
//! checked: a node never takes a segment again that it forgot, and from every state each partition can
//! still link a segment, which a token that does not move with the cluster makes impossible.

use std::fmt;

use crate::search::{Model, fingerprint_of};

const NODES: usize = 3;
const PARTITIONS: usize = 2;
const SEGMENTS: usize = 8;
const QUORUM: u32 = 2;

/// A rule of floors and tokens, left out or bent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A token is the revision of the partition's own record.
    TokenOfOwnRecord,
    /// An owner that was told "closed" does not read the metadata again.
    SameTokenAgain,
    /// A node sets its floor to the token of what it forgets, even if that lowers it.
    FloorSet,
    /// A node forgets without a floor.
    NoFloor,
}

/// The model.
#[derive(Debug, Clone, Copy)]
pub struct Floor {
    /// Segments that each partition may prepare.
    pub attempts: [u8; 2],
    /// Segments that the second partition may link; the first links one.
    pub rolls: u8,
    /// The rule that is broken.
    pub mutant: Option<Mutant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Partition {
    /// Revision of its record.
    revision: u8,
    /// Newest revision that its owner has seen.
    seen: u8,
    last_seq: u8,
    attempts: u8,
    links: u8,
    prepared: Option<u8>,
    /// In the chain: the open segment and the sealed one before it.
    open: Option<u8>,
    sealed: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Segment {
    partition: u8,
    seq: u8,
    token: u8,
    /// Nodes that told the owner that it is closed there.
    refused: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Node {
    floor: u8,
    held: u8,
    forgotten: u8,
}

/// The metadata store, the owners and the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    revision: u8,
    partitions: [Partition; PARTITIONS],
    segments: [Segment; SEGMENTS],
    count: u8,
    nodes: [Node; NODES],
}

/// What happens between two states.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "each step is put in words below")]
pub enum Step {
    Prepare {
        partition: usize,
        segment: u8,
        token: u8,
    },
    Open {
        node: usize,
        segment: u8,
    },
    Refuse {
        node: usize,
        segment: u8,
        floor: u8,
    },
    Link {
        partition: usize,
        segment: u8,
    },
    GiveUp {
        partition: usize,
        segment: u8,
    },
    Offload {
        partition: usize,
        segment: u8,
    },
    Trim {
        node: usize,
        segment: u8,
        floor: u8,
    },
    Hear {
        partition: usize,
        revision: u8,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Prepare {
                partition,
                segment,
                token,
            } => {
                write!(
                    f,
                    "the owner of partition {partition} prepares segment {segment} with token {token}"
                )
            }
            Self::Open { node, segment } => write!(f, "node {node} takes the OPEN of segment {segment}"),
            Self::Refuse { node, segment, floor } => {
                write!(
                    f,
                    "node {node}, whose floor is {floor}, refuses segment {segment} as closed"
                )
            }
            Self::Link { partition, segment } => {
                write!(f, "the record of partition {partition} links segment {segment}")
            }
            Self::GiveUp { partition, segment } => write!(
                f,
                "the owner of partition {partition} gives segment {segment} up and reads the metadata again"
            ),
            Self::Offload { partition, segment } => {
                write!(
                    f,
                    "segment {segment} of partition {partition} moves to the object store"
                )
            }
            Self::Trim { node, segment, floor } => {
                write!(f, "node {node} forgets segment {segment}; its floor is {floor}")
            }
            Self::Hear { partition, revision } => {
                write!(
                    f,
                    "the owner of partition {partition} hears of revision {revision}"
                )
            }
        }
    }
}

type Steps = Vec<(Step, State)>;

impl Floor {
    fn breaks(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn own(&self, state: &State, index: usize, out: &mut Steps) {
        let partition = state.partitions[index];
        if partition.seen < state.revision && !self.breaks(Mutant::SameTokenAgain) {
            let mut next = *state;
            next.partitions[index].seen = state.revision;
            let revision = state.revision;
            out.push((
                Step::Hear {
                    partition: index,
                    revision,
                },
                next,
            ));
        }
        if let Some(segment) = partition.sealed {
            let mut next = *state;
            next.partitions[index].sealed = None;
            Self::changed(&mut next, index);
            out.push((
                Step::Offload {
                    partition: index,
                    segment,
                },
                next,
            ));
        }
        match partition.prepared {
            None => self.prepare(state, index, out),
            Some(segment) => self.link_or_give_up(state, index, segment, out),
        }
    }

    fn changed(state: &mut State, index: usize) {
        state.revision += 1;
        state.partitions[index].revision = state.revision;
        state.partitions[index].seen = state.revision;
    }

    fn prepare(&self, state: &State, index: usize, out: &mut Steps) {
        let partition = state.partitions[index];
        let links_max = if index == 0 { 1 } else { self.rolls };
        let full = usize::from(state.count) == SEGMENTS || partition.attempts == self.attempts[index];
        if full || partition.links == links_max || partition.sealed.is_some() {
            return;
        }
        let token = if self.breaks(Mutant::TokenOfOwnRecord) {
            partition.revision
        } else {
            partition.seen
        };
        let mut next = *state;
        let segment = state.count;
        next.segments[usize::from(segment)] = Segment {
            partition: index as u8,
            seq: partition.attempts + 1,
            token,
            refused: 0,
        };
        next.count += 1;
        next.partitions[index].prepared = Some(segment);
        next.partitions[index].attempts += 1;
        let step = Step::Prepare {
            partition: index,
            segment,
            token,
        };
        out.push((step, next));
    }

    fn link_or_give_up(&self, state: &State, index: usize, segment: u8, out: &mut Steps) {
        let of = state.segments[usize::from(segment)];
        let holding = state
            .nodes
            .iter()
            .filter(|node| node.held & 1 << segment != 0)
            .count();
        if holding as u32 >= QUORUM {
            let mut next = *state;
            let partition = &mut next.partitions[index];
            partition.sealed = partition.open;
            partition.open = Some(segment);
            partition.prepared = None;
            partition.links += 1;
            partition.last_seq = of.seq;
            Self::changed(&mut next, index);
            out.push((
                Step::Link {
                    partition: index,
                    segment,
                },
                next,
            ));
        }
        if of.refused.count_ones() >= QUORUM {
            let mut next = *state;
            next.partitions[index].prepared = None;
            if !self.breaks(Mutant::SameTokenAgain) {
                next.partitions[index].seen = state.revision;
            }
            out.push((
                Step::GiveUp {
                    partition: index,
                    segment,
                },
                next,
            ));
        }
    }

    /// The OPEN arrives, perhaps again and perhaps late.
    fn arrive(&self, state: &State, at: usize, segment: u8, out: &mut Steps) {
        let of = state.segments[usize::from(segment)];
        let node = state.nodes[at];
        if node.held & 1 << segment != 0 {
            return;
        }
        let mut next = *state;
        if of.token <= node.floor {
            next.segments[usize::from(segment)].refused |= 1 << at;
            let floor = node.floor;
            out.push((
                Step::Refuse {
                    node: at,
                    segment,
                    floor,
                },
                next,
            ));
        } else {
            next.nodes[at].held |= 1 << segment;
            out.push((Step::Open { node: at, segment }, next));
        }
    }

    fn trim(&self, state: &State, at: usize, segment: u8, out: &mut Steps) {
        let of = state.segments[usize::from(segment)];
        let partition = state.partitions[usize::from(of.partition)];
        let linked = partition.open == Some(segment) || partition.sealed == Some(segment);
        let above = of.seq > partition.last_seq;
        if linked || above || state.nodes[at].held & 1 << segment == 0 {
            return;
        }
        let mut next = *state;
        let node = &mut next.nodes[at];
        node.held &= !(1 << segment);
        node.forgotten |= 1 << segment;
        node.floor = match self.mutant {
            Some(Mutant::FloorSet) => of.token,
            Some(Mutant::NoFloor) => node.floor,
            _ => node.floor.max(of.token),
        };
        let floor = node.floor;
        out.push((
            Step::Trim {
                node: at,
                segment,
                floor,
            },
            next,
        ));
    }
}

impl Model for Floor {
    type State = State;
    type Step = Step;

    fn start(&self) -> State {
        let partition = Partition {
            revision: 1,
            seen: 1,
            ..Partition::default()
        };
        State {
            revision: 1,
            partitions: [partition; PARTITIONS],
            segments: [Segment::default(); SEGMENTS],
            count: 0,
            nodes: [Node::default(); NODES],
        }
    }

    fn steps(&self, state: &State, out: &mut Steps) {
        for index in 0..PARTITIONS {
            self.own(state, index, out);
        }
        for segment in 0..state.count {
            for node in 0..NODES {
                self.arrive(state, node, segment, out);
                self.trim(state, node, segment, out);
            }
        }
    }

    /// Nodes are alike: any order of them is the same state.
    fn fingerprint(&self, state: &State) -> u64 {
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        let in_order = |order: [usize; NODES]| {
            let mut renamed = *state;
            renamed.nodes = order.map(|node| state.nodes[node]);
            for segment in &mut renamed.segments {
                let refused = segment.refused;
                segment.refused = order
                    .iter()
                    .fold(0, |bits, &node| bits << 1 | (refused >> node & 1));
            }
            fingerprint_of(&renamed)
        };
        orders.into_iter().map(in_order).fold(u64::MAX, u64::min)
    }

    fn violation(&self, state: &State) -> Option<&'static str> {
        let again = |node: &Node| node.held & node.forgotten != 0;
        if state.nodes.iter().any(again) {
            return Some("a node takes a segment again that it forgot");
        }
        let copies = |segment: u8| {
            state
                .nodes
                .iter()
                .filter(|node| node.held & 1 << segment != 0)
                .count()
        };
        let lost = |partition: &Partition| partition.open.is_some_and(|open| copies(open) < QUORUM as usize);
        state
            .partitions
            .iter()
            .any(lost)
            .then_some("a linked segment is not on a quorum")
    }

    /// The first partition has its segment.
    fn is_goal(&self, state: &State) -> bool {
        state.partitions[0].open.is_some()
    }
}
