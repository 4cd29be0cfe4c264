//! What a node answers to brokers and proxies.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use super::*;
use crate::journal::files::frame_bytes_max;
use crate::testing::batch_of_len;

#[tokio::test]
async fn what_is_acknowledged_is_read_back_also_after_a_kill() {
    let world = World::new().await;
    let node = world.start().await;
    assert!(world.readiness.is_ready());
    let mut client = Client::connect(&node).await;
    let mut writer = Writer::new(1, 10);
    let mut frames = client.write(&mut writer, 20).await;
    let end = writer.next.0;
    assert_eq!(
        client.read(Client::read_of(&writer, 10, end)).await,
        Ok(bytes_of(&frames))
    );

    node.kill().await;
    let node = world.start().await;
    assert_eq!((node.generation(), node.boot()), (GENERATION, 2));
    let mut client = Client::connect(&node).await;
    assert_eq!(
        client.read(Client::read_of(&writer, 10, end)).await,
        Ok(bytes_of(&frames))
    );
    frames.extend(client.write(&mut writer, 5).await);
    let end = writer.next.0;
    assert_eq!(
        client.read(Client::read_of(&writer, 10, end)).await,
        Ok(bytes_of(&frames))
    );
    node.shutdown().await;

    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    let middle = client.read(Client::read_of(&writer, 20, end)).await.unwrap();
    let all = bytes_of(&frames);
    assert_eq!(middle, all.slice(all.len() - middle.len()..));
    let base = u64::from_be_bytes(middle[..8].try_into().unwrap());
    assert!((18..=20).contains(&base), "{base}");
    node.shutdown().await;
}

#[tokio::test]
async fn nothing_above_the_committed_offset_is_shown() {
    let world = World::new().await;
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    let mut writer = Writer::new(1, 10);
    let frames = client.write(&mut writer, 4).await;
    assert_eq!(
        client.read(Client::read_of(&writer, 10, 0)).await,
        Err(NodeFailure::Behind(Offset(10)))
    );
    assert_eq!(
        client.read(Client::read_of(&writer, 10, 13)).await,
        Ok(bytes_of(&frames[..2]))
    );
    assert_eq!(
        client.read(Client::read_of(&writer, 13, 13)).await,
        Err(NodeFailure::Behind(Offset(13)))
    );
    assert_eq!(
        client.read(Client::read_of(&writer, 10, 99)).await,
        Ok(bytes_of(&frames))
    );
    // Half a batch is not shown.
    assert_eq!(
        client.read(Client::read_of(&writer, 10, 12)).await,
        Err(NodeFailure::Behind(Offset(10)))
    );
    client
        .send(ToNode::Commit(vec![(writer.segment, Offset(16))]))
        .await;
    client
        .send(ToNode::Confirm {
            request: 1,
            items: vec![(writer.segment, GENERATION)],
        })
        .await;
    assert_eq!(
        client.recv().await,
        FromNode::Confirm {
            request: 1,
            open: vec![true]
        }
    );
    assert_eq!(
        client.read(Client::read_of(&writer, 10, 0)).await,
        Ok(bytes_of(&frames[..3]))
    );
    let foreign = ReadRequest {
        segment: segment(9),
        ..Client::read_of(&writer, 10, 99)
    };
    assert_eq!(client.read(foreign).await, Err(NodeFailure::NotFound));
    node.shutdown().await;

    // The committed offset survives.
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    assert_eq!(
        client.read(Client::read_of(&writer, 10, 0)).await,
        Ok(bytes_of(&frames[..3]))
    );
    node.shutdown().await;
}

#[tokio::test]
async fn a_fence_is_kept_over_a_kill_and_opens_frames_to_recovery() {
    let world = World::new().await;
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    let (mut writer, unknown) = (Writer::new(1, 10), Writer::new(2, 10));
    let frames = client.write(&mut writer, 5).await;
    assert_eq!(
        client.frames(&writer, 10).await,
        Err(NodeFailure::Behind(writer.next))
    );
    let state = client.fence(&writer).await;
    assert!(state.authoritative);
    assert_eq!(
        (state.tail, state.frames, state.hash),
        (writer.next, 5, writer.hash)
    );
    let state = client.fence(&unknown).await;
    assert_eq!(
        (state.authoritative, state.tail, state.frames),
        (true, Offset(10), 0)
    );

    node.kill().await;
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    client.append(writer.clone().data(1)).await;
    client.append(unknown.clone().open()).await;
    for (segment, number) in [(writer.segment, 5), (unknown.segment, 0)] {
        let refusal = Refusal::Fenced(Epoch(9));
        assert_eq!(
            client.recv().await,
            FromNode::NotTaken {
                segment,
                number,
                refusal
            }
        );
    }
    assert_eq!(client.frames(&writer, 10).await.unwrap(), frames[1..]);
    assert_eq!(client.frames(&writer, 14).await.unwrap(), frames[2..]);
    let status = node.status();
    assert_eq!(
        (
            status.segments_open,
            status.segments_fenced,
            status.segments_limbo
        ),
        (0, 2, 0)
    );
    node.shutdown().await;
}

#[tokio::test]
async fn state_and_headers_are_given_from_the_last_state_on() {
    let world = World::new().await;
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    let mut writer = Writer::new(1, 10);
    client.write(&mut writer, 3).await;
    let state = writer.state();
    client.append(state.clone()).await;
    let data = [writer.data(2), writer.data(4)];
    for frame in &data {
        client.append(frame.clone()).await;
    }
    client.acked(&writer).await;
    let mut ask = async |until: u64| {
        let headers = HeadersRequest {
            segment: writer.segment,
            generation: GENERATION,
            until: Offset(until),
        };
        client.send(ToNode::Headers { request: 8, headers }).await;
        match client.recv().await {
            FromNode::Headers { request: 8, result } => result,
            other => panic!("{other:?}"),
        }
    };
    // What a producer wrote last may be in what this replica lacks.
    let beyond = ask(writer.next.0 + 1).await;
    assert_eq!(beyond, Err(NodeFailure::Behind(writer.next)));
    let all = ask(writer.next.0).await.unwrap();
    assert_eq!(
        (all.state_kind, all.state_at, all.state),
        (9, Offset(16), state.payload_bytes())
    );
    let expected: Vec<u8> = data
        .iter()
        .flat_map(|frame| frame.payload_bytes().slice(..61))
        .collect();
    assert_eq!(all.headers, expected);
    let some = ask(18).await.unwrap();
    assert_eq!(
        (some.state_at, some.headers),
        (Offset(16), Bytes::copy_from_slice(&expected[..61]))
    );
    let early = ask(15).await.unwrap();
    assert_eq!(
        (early.state_kind, early.state_at, early.headers.len()),
        (1, Offset(10), 2 * 61)
    );
    node.shutdown().await;
}

/// As many as the partitions of a broker that is lost.
#[tokio::test]
async fn a_thousand_takeovers_at_once_are_all_answered() {
    let world = World::new().await;
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    let mut writer = Writer::new(1, 10);
    let written = client.write(&mut writer, 3).await;
    client.fence(&writer).await;
    let (segment, generation) = (writer.segment, GENERATION);
    for request in 0..1_000 {
        let headers = HeadersRequest {
            segment,
            generation,
            until: writer.next,
        };
        client.send(ToNode::Headers { request, headers }).await;
        let frames = FramesRequest {
            segment,
            generation,
            from: Offset(10),
            max_bytes: 8 << 20,
        };
        client.send(ToNode::Frames { request, frames }).await;
    }
    let (mut headers, mut frames) = (0, 0);
    while headers + frames < 2_000 {
        match client.recv().await {
            FromNode::Headers { result, .. } => {
                assert_eq!(result.unwrap().state_at, Offset(10));
                headers += 1;
            }
            FromNode::Frames { result, .. } => {
                assert_eq!(result.unwrap(), written[1..]);
                frames += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((headers, frames), (1_000, 1_000));
    node.shutdown().await;
}

#[tokio::test]
async fn a_time_is_looked_up_among_what_is_visible() {
    let world = World::new().await;
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    let mut writer = Writer::new(1, 10);
    client.append(writer.open()).await;
    let batches = [batch(10, 3, 500), batch(13, 2, 900), batch(15, 1, 700)];
    client
        .append(writer.data_of(batches.map(Bytes::from).to_vec(), 3, 16))
        .await;
    client
        .append(writer.data_of(vec![batch(16, 4, 2000).into()], 1, 20))
        .await;
    client.acked(&writer).await;
    let mut ask = async |from, until, timestamp_ms| {
        let read = Client::read_of(&writer, from, until);
        client
            .send(ToNode::Lookup {
                request: 9,
                read,
                timestamp_ms,
            })
            .await;
        match client.recv().await {
            FromNode::Lookup { request: 9, result } => result,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ask(10, 20, 0).await, Ok(Some(Offset(10))));
    assert_eq!(ask(10, 20, 501).await, Ok(Some(Offset(13))));
    assert_eq!(ask(10, 20, 901).await, Ok(Some(Offset(16))));
    assert_eq!(ask(10, 16, 901).await, Ok(None));
    assert_eq!(ask(10, 20, 2001).await, Ok(None));
    assert_eq!(ask(15, 20, 600).await, Ok(Some(Offset(15))));
    // More is visible than this replica has: only another one can say that there is nothing.
    assert_eq!(ask(10, 25, 901).await, Ok(Some(Offset(16))));
    assert_eq!(ask(10, 25, 2001).await, Err(NodeFailure::Behind(Offset(20))));
    node.shutdown().await;
}

#[tokio::test]
async fn two_sessions_write_two_segments_and_see_only_their_own_acknowledgements() {
    let world = World::new().await;
    let node = world.start().await;
    let mut work = tokio::task::JoinSet::new();
    for seq in [1, 2] {
        let node = node.clone();
        work.spawn(async move {
            let mut client = Client::connect(&node).await;
            let mut writer = Writer::new(seq, 10);
            let mut frames = Vec::new();
            for round in 1..20 {
                frames.extend(client.write(&mut writer, round).await);
            }
            let end = writer.next.0;
            assert_eq!(
                client.read(Client::read_of(&writer, 10, end)).await,
                Ok(bytes_of(&frames))
            );
        });
    }
    while let Some(done) = work.join_next().await {
        done.unwrap();
    }
    node.shutdown().await;
}

#[tokio::test]
async fn refusals_name_what_is_expected() {
    let world = World::new().await;
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    let mut writer = Writer::new(1, 10);
    client.write(&mut writer, 2).await;
    let mut ahead = writer.clone();
    let _skipped = ahead.data(1);
    client.append(ahead.data(1)).await;
    let not_taken = |number, refusal| FromNode::NotTaken {
        segment: segment(1),
        number,
        refusal,
    };
    assert_eq!(client.recv().await, not_taken(3, Refusal::Gap(2)));
    let frame = writer.clone().data(1);
    client
        .send(ToNode::Append {
            generation: Generation(7),
            frame,
        })
        .await;
    assert_eq!(
        client.recv().await,
        not_taken(2, Refusal::WrongGeneration(GENERATION))
    );
    client.append(Writer::new(4, 10).data(1)).await;
    let unknown = FromNode::NotTaken {
        segment: segment(4),
        number: 0,
        refusal: Refusal::UnknownSegment,
    };
    assert_eq!(client.recv().await, unknown);
    let garbage = writer
        .clone()
        .data_of(vec![Bytes::from_static(&[0; 80])], 1, writer.next.0 + 1);
    client.append(garbage).await;
    assert_eq!(client.recv().await, not_taken(2, Refusal::Malformed));
    // All of that left the session and the segment as they were.
    client.write(&mut writer, 3).await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_frame_is_taken_up_to_what_the_nodes_record_says_whatever_the_file_has_left() {
    let world = World::new().await;
    let node = world.start().await;
    let max = usize::try_from(node.record().frame_bytes_max).unwrap();
    assert_eq!(max, frame_bytes_max(1 << 20));
    let mut client = Client::connect(&node).await;
    let mut writer = Writer::new(1, 10);
    client.write(&mut writer, 1).await;
    let body = max - batch_of_len(10, 1, 0, 0).len();
    for _ in 0..3 {
        client.append(writer.clone().data_of_len(1, body + 1)).await;
        let not_taken = FromNode::NotTaken {
            segment: writer.segment,
            number: writer.number,
            refusal: Refusal::Malformed,
        };
        assert_eq!(client.recv().await, not_taken);
        let frame = writer.data_of_len(1, body);
        assert_eq!(frame.header.payload_len as usize, max);
        client.append(frame).await;
        client.acked(&writer).await;
    }
    node.shutdown().await;
}

#[tokio::test]
async fn a_damaged_frame_ends_the_session_and_is_not_stored() {
    let world = World::new().await;
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    let mut writer = Writer::new(1, 10);
    client.write(&mut writer, 2).await;
    let mut frame = writer.clone().data(2);
    frame.header.checksum ^= 1;
    client.append(frame).await;
    assert!(
        tokio::time::timeout(DEADLINE, client.link.rx.recv())
            .await
            .unwrap()
            .unwrap()
            .is_none()
    );
    let mut client = Client::connect(&node).await;
    assert_eq!(client.fence(&writer).await.frames, 2);
    node.shutdown().await;
}

#[tokio::test]
async fn a_greeting_for_somebody_else_is_refused_with_both_values() {
    let world = World::new().await;
    let node = world.start().await;
    for (cluster, id, expected) in [
        ("x", NODE, "cluster \"c\", not \"x\""),
        ("c", NodeId(8), "n3, not n8"),
    ] {
        let mut client = Client::greet(&node, cluster, id).await;
        let FromNode::Refused(reason) = client.recv().await else {
            panic!("not refused")
        };
        assert!(reason.contains(expected), "{reason}");
    }
    node.shutdown().await;
}

#[tokio::test]
async fn a_dead_journal_is_reported_and_reads_go_on() {
    let world = World::new().await;
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    let mut writer = Writer::new(1, 10);
    let frames = client.write(&mut writer, 3).await;
    node.inner
        .queue
        .push_own(Message::StopWriting("medium error".to_owned()))
        .unwrap();
    let known = writer.clone();
    client.append(writer.data(1)).await;
    let refusal = Refusal::Failed;
    assert_eq!(
        client.recv().await,
        FromNode::NotTaken {
            segment: segment(1),
            number: 3,
            refusal
        }
    );
    assert_eq!(
        client.read(Client::read_of(&known, 10, 99)).await,
        Ok(bytes_of(&frames))
    );
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while world.readiness.dead().is_empty() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "nobody said that the journal is dead"
        );
        tokio::task::yield_now().await;
    }
    assert_eq!(node.status().failure, "medium error");
    assert!(!world.readiness.is_ready());
    let asked = tokio::time::timeout(DEADLINE, world.tasks.shutdown_requested()).await;
    let reason = asked
        .expect("the process goes on with a dead journal")
        .to_string();
    assert!(reason.contains("medium error"), "{reason}");
    node.shutdown().await;
    assert_eq!(world.start().await.status().failure, "");
}

#[tokio::test]
async fn a_frame_too_large_for_a_file_is_refused_and_takes_no_room() {
    let world = World::new().await;
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    let mut writer = Writer::new(1, 10);
    client.write(&mut writer, 2).await;
    client.append(writer.clone().data_of_len(1, 700 << 10)).await;
    let refusal = Refusal::Malformed;
    assert_eq!(
        client.recv().await,
        FromNode::NotTaken {
            segment: segment(1),
            number: 2,
            refusal
        }
    );
    // Larger than a commit, but not than half a file.
    let frame = writer.data_of_len(1, 400 << 10);
    client.append(frame.clone()).await;
    client.acked(&writer).await;
    let read = client.read(Client::read_of(&writer, 13, 99)).await.unwrap();
    assert_eq!(read, frame.payload_bytes());
    assert_eq!(node.status().journal_files, 1);
    node.shutdown().await;
}
