//! Batches and the largest frame that storage nodes take: what is refused, how frames are cut, where
//! larger ones are carried.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use forebay_proto::error::Failure;
use forebay_proto::v1::{ErrorCode, RetryClass};
use forebay_record::frame::FrameKind;
use forebay_record::{NodeId, Offset};

use super::action::{Action, NodeView, Nodes};
use super::case::{Serving, three_nodes};
use super::owner::Config;

/// Nodes 1, 2 and 3, of which the second has small files.
fn nodes_with_a_small_one() -> Nodes {
    let mut nodes = three_nodes();
    for (node, bytes) in [(1, 9_000), (2, 1_000)] {
        nodes.get_mut(&NodeId(node)).unwrap().frame_bytes_max = Some(bytes);
    }
    nodes
}

fn answers(actions: &[Action]) -> Vec<(u64, Result<Offset, Failure>)> {
    let of = |action: &Action| match action {
        Action::Answer { ticket, result } => Some((ticket.0, result.clone())),
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

/// Bytes of batches in each frame with records that is sent to a node.
fn frames(actions: &[Action], to: u32) -> Vec<usize> {
    let of = |action: &Action| match action {
        Action::Append { node, frame, .. } if *node == NodeId(to) && frame.header.kind == FrameKind::Data => {
            Some(frame.header.payload_len as usize)
        }
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

#[test]
fn a_batch_that_some_node_cannot_take_is_refused_at_once_and_holds_nothing_up() {
    let mut case = Serving::new(nodes_with_a_small_one(), Config::default());
    let actions = case.produce(&[300, 1_001, 1_000]);
    let [(2, Err(failure))] = &answers(&actions)[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(
        (failure.code, failure.retry()),
        (ErrorCode::BatchTooLarge, RetryClass::Reject)
    );
    for part in ["1001", "1000", "storage node 2", "storage.journal_file_bytes"] {
        assert!(failure.message.contains(part), "{part}: {}", failure.message);
    }
    assert_eq!(frames(&actions, 2), [300, 1_000]);
    assert_eq!(case.owner.tail(), Offset(2));
}

#[test]
fn nodes_that_say_nothing_set_no_limit() {
    let mut case = Serving::new(three_nodes(), Config::default());
    assert_eq!(frames(&case.produce(&[100_000]), 1), [100_000]);
}

#[test]
fn the_topics_own_limit_is_named_where_it_is_exceeded_as_well() {
    let config = Config {
        batch_bytes_max: 2_000,
        ..Config::default()
    };
    let mut case = Serving::new(nodes_with_a_small_one(), config);
    let failure = answers(&case.produce(&[2_001])).remove(0).1.unwrap_err();
    assert_eq!(failure.code, ErrorCode::BatchTooLarge);
    assert!(failure.message.contains("at most 2000"), "{}", failure.message);
}

#[test]
fn batches_that_come_together_go_in_frames_that_every_node_takes() {
    let mut case = Serving::new(nodes_with_a_small_one(), Config::default());
    let actions = case.produce(&[400, 400, 400, 600, 1_000, 200]);
    assert_eq!(frames(&actions, 1), [800, 1_000, 1_000, 200]);
}

#[test]
fn a_batch_that_waited_is_refused_where_a_smaller_node_came_meanwhile() {
    let config = Config {
        window_bytes: 100,
        ..Config::default()
    };
    let mut case = Serving::new(three_nodes(), config);
    let actions = case.produce(&[200, 5_000, 300]);
    assert_eq!((frames(&actions, 1), answers(&actions).len()), (vec![200], 0));
    case.nodes = nodes_with_a_small_one();
    case.stored();
    let acks = [1, 2].map(|node| {
        let segment = case.owner.open_segment().unwrap().0.id;
        let ack = forebay_proto::data::replica::Ack {
            segment,
            frames: 2,
            tail: Offset(1),
        };
        (NodeId(node), ack)
    });
    let mut actions = Vec::new();
    for (node, ack) in acks {
        actions.extend(case.act(|owner, ctx| owner.on_ack(node, ack, ctx)));
    }
    actions.extend(case.act(|owner, ctx| owner.flush(ctx)));
    let answers = answers(&actions);
    let codes: Vec<_> = answers
        .iter()
        .map(|(ticket, result)| (*ticket, result.as_ref().map_err(|failure| failure.code).copied()))
        .collect();
    assert!(codes.contains(&(1, Ok(Offset(0)))), "{codes:?}");
    assert!(codes.contains(&(2, Err(ErrorCode::BatchTooLarge))), "{codes:?}");
    assert_eq!(frames(&actions, 1), [300]);
}

#[test]
fn a_carried_frame_goes_only_to_nodes_that_take_it() {
    let mut case = Serving::new(three_nodes(), Config::default());
    assert_eq!(frames(&case.produce(&[5_000]), 3), [5_000]);
    case.stored();
    let view = case.nodes[&NodeId(3)].clone();
    for (node, bytes) in [(4, Some(1_000)), (5, None), (6, Some(5_000))] {
        let frame_bytes_max = bytes;
        case.nodes.insert(
            NodeId(node),
            NodeView {
                frame_bytes_max,
                ..view.clone()
            },
        );
    }
    for node in [1, 2] {
        case.nodes.get_mut(&NodeId(node)).unwrap().connected = false;
    }
    let actions = case.act(|owner, ctx| owner.on_nodes_changed(ctx));
    for node in [3, 5, 6] {
        assert_eq!(frames(&actions, node), [5_000], "node {node}");
    }
    assert!(frames(&actions, 4).is_empty());
}
