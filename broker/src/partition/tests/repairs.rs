//! The same world where storage nodes lose everything they had, and are emptied: what the record names
//! is copied and replaced while takeovers, trims, offloads and rolls go on.

use super::*;

impl World {
    /// What a replica of the record holds, if it is the same that the record means.
    pub(super) fn held(&self, (node, generation): (NodeId, Generation), segment: SegmentId) -> Option<&Copy> {
        let replica = &self.replicas[&node];
        let copy = replica.segments.get(&segment)?;
        (replica.generation() == generation && !copy.limbo).then_some(copy)
    }

    pub(super) fn survey(
        &self,
        node: NodeId,
        segment: SegmentId,
        generation: Generation,
    ) -> Option<Surveyed> {
        let replica = &self.replicas[&node];
        let copy = replica.segments.get(&segment)?;
        (replica.generation() == generation).then(|| Surveyed {
            sound: !copy.limbo,
            tail: copy.tail(),
        })
    }

    pub(super) fn forget_copy(&mut self, node: NodeId, segment: SegmentId, by: Epoch) {
        let copy = self.replicas.get_mut(&node).unwrap().segments.get_mut(&segment);
        if let Some(copy) = copy.filter(|copy| copy.copied_by == Some(by)) {
            copy.limbo = true;
        }
    }

    /// Copies as a driver and two nodes would, up to a random point. A former owner's copy may still
    /// arrive; nobody hears of it.
    pub(super) fn run_repair(&mut self, owner: u32, repair: &Repair) {
        let whole = self.copy_frames(repair);
        let segment = repair.segment.id;
        if owner == self.incarnation {
            let mut wanted = false;
            self.act(|owner, ctx| wanted = owner.wants_repair(repair, ctx));
            self.act(|owner, ctx| owner.on_repaired(segment, whole && wanted, ctx));
        }
    }

    fn copy_frames(&mut self, repair: &Repair) -> bool {
        let (id, end) = (repair.segment.id, repair.segment.end.unwrap());
        let source = repair.sources.iter().find_map(|(node, generation)| {
            let replica = &self.replicas[node];
            let copy = replica.segments.get(&id)?;
            let can = replica.up && replica.generation() == *generation && copy.tail() >= end;
            can.then(|| copy.frames.clone())
        });
        let Some(frames) = source else { return false };
        let most = usize::try_from(self.random.range(0, 40)).unwrap();
        let (node, generation) = repair.to;
        let replica = self.replicas.get_mut(&node).unwrap();
        let known = replica.segments.contains_key(&id);
        if !replica.up || replica.generation() != generation || (replica.leaving && !known) {
            return false;
        }
        if known && !repair.listed {
            let copy = &replica.segments[&id];
            return copy.copied_by == Some(repair.by) && !copy.limbo;
        }
        let copy = replica.segments.entry(id).or_insert_with(|| Copy {
            base: repair.segment.base,
            token: repair.segment.token,
            limbo: !repair.listed,
            copied_by: (!repair.listed).then_some(repair.by),
            ..Copy::default()
        });
        copy.fenced = true;
        let missing: Vec<_> = frames
            .into_iter()
            .skip(copy.frames.len())
            .filter(|frame| frame.header.end <= end)
            .take(most)
            .collect();
        for frame in missing {
            assert_eq!(frame.header.prev_hash, copy.hash(id), "a copy diverged");
            copy.frames.push(frame);
        }
        let whole = copy.tail() >= end;
        if whole {
            copy.limbo = false;
        }
        whole
    }

    /// True where every segment of the chain is as good as it can be, so that one node may lose
    /// everything without a loss.
    fn is_sound(&self) -> bool {
        let of = |segment: &Segment, end: Offset| {
            segment.replicas.iter().all(|replica| {
                self.held(*replica, segment.id)
                    .is_some_and(|copy| copy.tail() >= end)
            })
        };
        let settled = self.owner.next.is_none() && self.store.is_none() && self.owner.is_serving();
        settled
            && self.record.chain.iter().all(|segment| match segment.end {
                Some(end) => of(segment, end),
                None => segment
                    .replicas
                    .iter()
                    .all(|(node, generation)| self.replicas[node].generation() == *generation),
            })
    }

    /// A node comes back with nothing.
    fn lose(&mut self, node: NodeId) {
        let replica = self.replicas.get_mut(&node).unwrap();
        *replica = Replica {
            up: true,
            losses: replica.losses + 1,
            leaving: replica.leaving,
            ..Replica::default()
        };
        let generation = replica.generation();
        *self.sessions.get_mut(&node).unwrap() += 1;
        let incarnation = self.incarnation;
        self.wires
            .get_mut(&node)
            .unwrap()
            .retain(|one| one.owner != incarnation);
        self.act(|owner, ctx| owner.on_connected(node, generation, ctx));
    }

    /// A frame of a sealed segment is found to be damaged on a node.
    fn rot(&mut self, node: NodeId) {
        let id = self.record.chain.iter().find_map(|segment| {
            let end = segment.end?;
            let (of, others): (Vec<_>, Vec<_>) = segment.replicas.iter().partition(|(of, _)| *of == node);
            // Enough is left to heal from, whatever comes next.
            let whole = |one: &&(NodeId, Generation)| {
                self.replicas[&one.0].up
                    && self
                        .held(**one, segment.id)
                        .is_some_and(|copy| copy.tail() >= end)
            };
            (!of.is_empty() && others.iter().all(whole)).then_some(segment.id)
        });
        let Some(id) = id else { return };
        let replica = self.replicas.get_mut(&node).unwrap();
        let Some(copy) = replica.segments.get_mut(&id).filter(|_| replica.up) else {
            return;
        };
        let kept = self.random.range(0, copy.frames.len() as u64);
        copy.frames.truncate(usize::try_from(kept).unwrap());
        copy.limbo = true;
        self.rotted += 1;
        self.act(|owner, ctx| owner.on_damaged(id, node, ctx));
    }

    fn disturb(&mut self) {
        let nodes: Vec<_> = self.replicas.keys().copied().collect();
        let node = nodes[usize::try_from(self.random.range(0, nodes.len() as u64)).unwrap()];
        match self.random.range(0, 4) {
            0 if self.replicas[&node].up && self.is_sound() => self.lose(node),
            2 => self.rot(node),
            1 => {
                let others = self.replicas.iter().filter(|(id, _)| **id != node);
                let leaving = others.filter(|(_, replica)| replica.leaving).count();
                let replica = self.replicas.get_mut(&node).unwrap();
                if replica.leaving || leaving == 0 {
                    replica.leaving = !replica.leaving;
                    self.act(|owner, ctx| owner.on_nodes_changed(ctx));
                }
            }
            _ => self.pass(600),
        }
    }

    /// Lets repair come to its end.
    fn heal(&mut self) {
        for _ in 0..2_000 {
            let empty = |node: &NodeId| !self.replicas[node].leaving;
            let away = self
                .record
                .chain
                .iter()
                .all(|segment| segment.replicas.iter().all(|(node, _)| empty(node)));
            if self.is_sound() && away {
                return;
            }
            self.pass(1_100);
            for node in self.replicas.keys().copied().collect::<Vec<_>>() {
                for _ in 0..20 {
                    self.deliver(node);
                }
                // What was replaced is in nobody's way.
                self.trim(node);
            }
            self.newest += 1;
            self.heard = self.newest;
            for _ in 0..20 {
                self.run_errand();
                self.settle_store();
            }
            if self.owner.is_released() {
                self.take_over();
            }
        }
        panic!("not everything is repaired: {:#?}", self.record.chain);
    }
}

fn run(seed: u64, offload: bool) -> (usize, usize, usize) {
    let mut world = World::new(seed, 5, 3, 2, false);
    let config = Config {
        offload,
        repair_after_ms: 3_000,
        segment_bytes: 1_500,
        ..world.owner.config.clone()
    };
    world.owner.configure(&config);
    for _ in 0..2_500 {
        if world.random.range(0, 12) == 0 {
            world.disturb();
        } else {
            world.step();
        }
        if world.owner.is_released() {
            world.take_over();
        }
    }
    world.quiesce();
    world.heal();
    world.quiesce();
    let log = world.read_log();
    for (offset, value) in &world.acknowledged {
        assert_eq!(
            log.get(offset),
            Some(value),
            "seed {seed}: acknowledged at {offset} and lost"
        );
    }
    (world.acknowledged.len(), world.repaired, world.rotted)
}

#[test]
fn nothing_is_lost_where_nodes_lose_everything_and_every_segment_gets_its_copies_back() {
    let (mut acknowledged, mut repaired, mut rotted) = (0, 0, 0);
    for seed in 5_000..5_150 {
        let (more, copies, damages) = run(seed, false);
        acknowledged += more;
        repaired += copies;
        rotted += damages;
    }
    assert!(rotted > 20, "only {rotted} replicas were damaged");
    assert!(
        acknowledged > 2_000,
        "only {acknowledged} batches were acknowledged"
    );
    assert!(repaired > 250, "only {repaired} replicas were repaired");
}

#[test]
fn a_topic_that_is_offloaded_is_repaired_by_that() {
    for seed in 6_000..6_060 {
        run(seed, true);
    }
}

#[test]
fn a_loss_without_a_copy_stays_visible_and_is_not_tried_for_ever() {
    let mut world = World::new(9, 4, 3, 2, false);
    let config = Config {
        offload: false,
        segment_bytes: 100,
        ..world.owner.config.clone()
    };
    world.owner.configure(&config);
    while world.record.chain.len() < 3 {
        world.produce();
        world.quiesce();
    }
    let segment = world.record.chain[0].clone();
    for (node, _) in &segment.replicas {
        world.lose(*node);
    }
    let mut asked = 0;
    for _ in 0..200 {
        world.pass(1_100);
        asked += world
            .errands
            .iter()
            .filter(|(_, errand)| matches!(errand, Errand::Repair(one) if one.segment.id == segment.id))
            .count();
        for _ in 0..20 {
            world.run_errand();
            world.settle_store();
        }
    }
    let endangered = world.owner.endangered();
    assert!(endangered.lost >= 1, "{endangered:?}");
    assert_eq!(asked, 0, "there is nobody to copy from");
}

/// Three nodes, three replicas, one segment sealed: the world, and that segment.
fn three_nodes(nodes: u32) -> (World, Segment) {
    let mut world = World::new(11, nodes, 3, 2, false);
    let config = Config {
        offload: false,
        segment_bytes: 100,
        ..world.owner.config.clone()
    };
    world.owner.configure(&config);
    while world.record.chain.len() < 3 {
        world.produce();
        world.quiesce();
    }
    for _ in 0..10 {
        world.pass(1_100);
        world.quiesce();
        for _ in 0..20 {
            world.run_errand();
        }
    }
    let segment = world.record.chain[0].clone();
    (world, segment)
}

/// The repair that is asked for next.
fn asked(world: &mut World) -> Option<Repair> {
    for _ in 0..40 {
        world.pass(1_100);
        let found = world.errands.iter().find_map(|(_, errand)| match errand {
            Errand::Repair(repair) => Some((**repair).clone()),
            _ => None,
        });
        if found.is_some() {
            world
                .errands
                .retain(|(_, errand)| !matches!(errand, Errand::Repair(_)));
            return found;
        }
    }
    None
}

#[test]
fn a_damaged_replica_heals_where_it_is_and_not_for_ever_where_another_node_can_take_it() {
    for nodes in [3, 4] {
        let (mut world, segment) = three_nodes(nodes);
        let (node, generation) = segment.replicas[1];
        for incident in 0..5 {
            world.act(|owner, ctx| owner.on_damaged(segment.id, node, ctx));
            let repair = asked(&mut world).expect("a repair");
            let here = repair.to == (node, generation);
            assert_eq!(repair.lost, (node, generation));
            assert_eq!(repair.listed, here);
            assert!(!here || !repair.sources.contains(&(node, generation)));
            assert!(!repair.sources.is_empty());
            assert_eq!(
                here,
                nodes == 3 || incident < 3,
                "{nodes} nodes, incident {incident}"
            );
            if !here {
                break;
            }
            world.act(|owner, ctx| {
                assert!(owner.wants_repair(&repair, ctx));
                owner.on_repaired(segment.id, true, ctx);
            });
            assert_eq!(world.owner.endangered().under_replicated, 0);
            world.pass(700_000);
        }
    }
}

#[test]
fn an_open_segment_with_a_damaged_replica_is_ended() {
    let (mut world, _) = three_nodes(3);
    world.produce();
    world.quiesce();
    let open = world.record.open().unwrap().clone();
    let node = open.replicas[0].0;
    world.act(|owner, ctx| owner.on_damaged(open.id, node, ctx));
    for _ in 0..20 {
        world.pass(1_100);
        world.quiesce();
    }
    let still = world.record.open().is_some_and(|one| one.id == open.id);
    assert!(!still, "{:#?}", world.record.chain);
}

/// Empties a node as a drain does. No node with a whole copy looks at the record meanwhile.
fn empty(world: &mut World, node: NodeId) {
    world.replicas.get_mut(&node).unwrap().leaving = true;
    world.act(|owner, ctx| owner.on_nodes_changed(ctx));
    for _ in 0..1_000 {
        let names = |segment: &Segment| segment.generation_of(node).is_some();
        if !world.record.chain.iter().any(names) {
            return;
        }
        world.pass(1_100);
        for node in world.replicas.keys().copied().collect::<Vec<_>>() {
            for _ in 0..20 {
                world.deliver(node);
            }
            let mut held = world.replicas[&node].segments.values();
            if held.all(|copy| copy.copied_by.is_none() || copy.limbo) {
                world.trim(node);
            }
        }
        world.run_errand();
        world.settle_store();
    }
    panic!("{node} is not empty: {:#?}", world.record.chain);
}

#[test]
fn a_copy_that_was_named_and_replaced_before_its_node_looked_is_not_kept_to_be_named_yet() {
    for away in [false, true] {
        let (mut world, segment) = three_nodes(6);
        let epoch = world.record.epoch;
        empty(&mut world, segment.replicas[0].0);
        let copied = world.record.chain[0].replicas.iter();
        let mut copied = copied.filter(|one| !segment.replicas.contains(one));
        let (node, generation) = *copied.next().expect("a copy elsewhere");
        let held = &world.replicas[&node].segments[&segment.id];
        assert_eq!((held.copied_by, held.limbo), (Some(epoch), false));
        if away {
            world.toggle(node);
        }
        empty(&mut world, node);
        if away {
            world.trim(node);
            assert!(
                world.held((node, generation), segment.id).is_some(),
                "nobody could tell it"
            );
            world.toggle(node);
        }
        world.trim(node);
        assert_eq!(world.record.epoch, epoch, "nobody else has taken over");
        assert!(
            world.held((node, generation), segment.id).is_none(),
            "still there, away: {away}"
        );
    }
}
