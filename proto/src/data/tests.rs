//! Any bytes on a data socket: messages survive the round trip, and nothing else gets in.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use bytes::{Bytes, BytesMut};
use forebay_record::frame::{ChainHash, Frame, FrameKind, FrameSpec};
use forebay_record::{Epoch, Generation, NodeId, Offset, PartitionId, SegmentId, SessionId, Token};
use forebay_runtime::trace::TraceContext;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use super::front::{
    Acks, Fetched, FromBroker, PlanManifest, PlanRun, PlanSegment, Produce, ReadPlan, ToBroker,
};
use super::link::{self, LinkError};
use super::replica::{
    Ack, Copied, CopyRequest, FenceItem, FencedState, FromNode, Headers, Hello, Missing, MissingRequest,
    NodeFailure, Refusal, SealedRequest, Surveyed, ToNode, UploadRequest, Uploaded,
};
use super::{ENVELOPE_LEN, MESSAGE_LEN_MAX, Message, WireError};
use crate::error::Failure;
use crate::v1::ErrorCode;

fn bytes_of(message: &impl Message) -> Bytes {
    let (head, chunks) = message.encode().finish();
    let mut whole = BytesMut::from(&head[..]);
    chunks.iter().for_each(|chunk| whole.extend_from_slice(chunk));
    whole.freeze()
}

fn decode<M: Message>(bytes: &Bytes) -> Result<M, WireError> {
    let id = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
    M::decode(bytes[4], id, bytes.slice(ENVELOPE_LEN..))
}

fn segment() -> SegmentId {
    SegmentId {
        partition: PartitionId(7),
        epoch: Epoch(2),
        seq: 9,
    }
}

fn frame(payload: Vec<u8>) -> Frame {
    let spec = FrameSpec {
        kind: FrameKind::Data,
        batches: 1,
        segment: segment(),
        token: Token(4),
        first: Offset(10),
        end: Offset(12),
        prev_hash: ChainHash(5),
        number: 3,
        committed: Offset(10),
    };
    Frame::new(spec, vec![Bytes::from(payload)]).unwrap()
}

fn to_node(payload: Vec<u8>) -> Vec<ToNode> {
    let copied = payload.clone();
    let hello = Hello {
        cluster: "c".into(),
        incarnation: 3,
        node: NodeId(2),
        peer: "broker b1".into(),
    };
    let fence = FenceItem {
        segment: segment(),
        generation: Generation(1),
        token: Token(4),
        base: Offset(10),
        by: Epoch(3),
    };
    vec![
        ToNode::Hello(hello),
        ToNode::Append {
            generation: Generation(6),
            frame: frame(payload),
        },
        ToNode::Commit(vec![(segment(), Offset(11))]),
        ToNode::Fence {
            request: 8,
            items: vec![fence, fence],
        },
        ToNode::Confirm {
            request: 9,
            items: vec![(segment(), Generation(1))],
        },
        ToNode::Survey {
            request: 11,
            items: vec![(segment(), Generation(1))],
        },
        ToNode::Missing {
            request: 12,
            missing: MissingRequest {
                segment: segment(),
                generation: Generation(1),
                until: Some(Offset(9)),
            },
        },
        ToNode::Sealed {
            request: 12,
            sealed: SealedRequest {
                segment: segment(),
                generation: Generation(1),
                number: 7,
                until: Offset(12),
                max_bytes: 9,
            },
        },
        ToNode::Copy {
            request: 13,
            copy: Box::new(CopyRequest {
                segment: segment(),
                generation: Generation(1),
                token: Token(4),
                base: Offset(10),
                until: Offset(12),
                by: Epoch(9),
                listed: true,
                frames: vec![frame(copied), frame(vec![])],
            }),
        },
        ToNode::ForgetCopy {
            segment: segment(),
            by: Epoch(9),
        },
        ToNode::Upload {
            request: 10,
            upload: UploadRequest {
                segment: segment(),
                generation: Generation(1),
                base: Offset(10),
                until: Offset(12),
                topic: uuid::Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
                session: SessionId(77),
                object: "d/3f/0000000000000012/000000000000004d-9".into(),
            },
        },
    ]
}

fn from_node(payload: Vec<u8>) -> Vec<FromNode> {
    let state = FencedState {
        segment: segment(),
        authoritative: true,
        tail: Offset(12),
        committed: Offset(11),
        frames: 4,
        hash: ChainHash(77),
    };
    let bytes = Bytes::from(payload.clone());
    vec![
        FromNode::Acks {
            acks: vec![Ack {
                segment: segment(),
                tail: Offset(12),
                frames: 4,
            }],
            queue_delay_us: 5,
        },
        FromNode::NotTaken {
            segment: segment(),
            number: 3,
            refusal: Refusal::Gap(2),
        },
        FromNode::Fenced {
            request: 1,
            states: vec![state],
        },
        FromNode::Read {
            request: 2,
            result: Ok(bytes.clone()),
        },
        FromNode::Read {
            request: 2,
            result: Err(NodeFailure::Behind(Offset(6))),
        },
        FromNode::Frames {
            request: 3,
            result: Ok(vec![frame(payload), frame(vec![])]),
        },
        FromNode::Headers {
            request: 4,
            result: Ok(Headers {
                state_kind: 9,
                state: bytes.clone(),
                state_at: Offset(1),
                headers: bytes,
            }),
        },
        FromNode::Lookup {
            request: 5,
            result: Ok(None),
        },
        FromNode::Confirm {
            request: 6,
            open: vec![true, false],
        },
        FromNode::Uploaded {
            request: 7,
            result: Ok(Uploaded {
                object_len: 1 << 33,
                position: 0,
                len: 99,
                crc32c: 5,
                max_timestamp_ms: -1,
                footer_crc32c: 6,
            }),
        },
        FromNode::Uploaded {
            request: 8,
            result: Err(NodeFailure::ObjectStore),
        },
        FromNode::Surveyed {
            request: 9,
            found: vec![
                None,
                Some(Surveyed {
                    sound: true,
                    tail: Offset(12),
                }),
            ],
        },
        FromNode::Missing {
            request: 10,
            result: Ok(Missing {
                tail: Offset(12),
                ranges: vec![(Offset(3), Offset(4)), (Offset(7), Offset(9))],
            }),
        },
        FromNode::Copied {
            request: 10,
            result: Ok(Copied {
                frames: 4,
                tail: Offset(12),
            }),
        },
        FromNode::Copied {
            request: 10,
            result: Err(NodeFailure::Held),
        },
        FromNode::Copied {
            request: 11,
            result: Err(NodeFailure::TooLarge(655_272)),
        },
        FromNode::Urge(vec![segment(), segment()]),
        FromNode::Damaged(vec![segment(), segment()]),
    ]
}

fn from_broker(payload: Vec<u8>) -> Vec<FromBroker> {
    let failure = Failure::new(ErrorCode::NotOwner, "b2 owns p7");
    let batches = if payload.is_empty() {
        vec![]
    } else {
        vec![Bytes::from(payload)]
    };
    let fetched = Fetched {
        high_watermark: Offset(9),
        log_start: Offset(1),
        batches,
        behind: false,
    };
    let planned = PlanSegment {
        segment: segment(),
        base: Offset(1),
        until: Offset(9),
        sealed: true,
        replicas: vec![(NodeId(1), Generation(2))],
    };
    let plan = ReadPlan {
        epoch: Epoch(2),
        log_start: Offset(1),
        high_watermark: Offset(9),
        manifest: Some(PlanManifest {
            object: "m/00/1/2-3".into(),
            generation: 4,
            end: Offset(1),
            len: 5,
            crc32c: 6,
        }),
        runs: vec![PlanRun {
            base: Offset(1),
            end: Offset(3),
            object: "d/00/1/2-3".into(),
            position: 7,
            len: 8,
            crc32c: 9,
            max_timestamp_ms: 10,
        }],
        segments: vec![planned],
        gaps: vec![(Offset(3), Offset(4))],
    };
    vec![
        FromBroker::Produced {
            request: 1,
            result: Ok(Offset(5)),
        },
        FromBroker::Produced {
            request: 1,
            result: Err(failure.clone()),
        },
        FromBroker::Fetched {
            request: 2,
            partitions: vec![Ok(fetched.clone()), Err(failure), Ok(fetched)],
        },
        FromBroker::Plan {
            request: 3,
            result: Ok(plan),
        },
        FromBroker::Leaving,
    ]
}

fn produce(payload: Vec<u8>) -> ToBroker {
    ToBroker::Produce(Produce {
        request: 4,
        partition: PartitionId(7),
        epoch: Epoch(2),
        acks: Acks::All,
        deadline_ms: 30_000,
        batch: Bytes::from(payload),
    })
}

proptest! {
    #[test]
    fn messages_survive_the_round_trip(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        for message in to_node(payload.clone()) {
            prop_assert_eq!(decode::<ToNode>(&bytes_of(&message)).unwrap(), message);
        }
        for message in from_node(payload.clone()) {
            prop_assert_eq!(decode::<FromNode>(&bytes_of(&message)).unwrap(), message);
        }
        for message in from_broker(payload.clone()) {
            prop_assert_eq!(decode::<FromBroker>(&bytes_of(&message)).unwrap(), message);
        }
        for message in [produce(payload), ToBroker::Goodbye] {
            prop_assert_eq!(decode::<ToBroker>(&bytes_of(&message)).unwrap(), message);
        }
    }

    #[test]
    fn any_message_survives_with_a_trace_context_and_is_as_long_without_one(
        payload in prop::collection::vec(any::<u8>(), 1..300),
        ids in prop::array::uniform16(1_u8..),
        state in "[a-z=,]{0,40}",
    ) {
        let context = TraceContext::new(ids, [7; 8], 1, &state).unwrap();
        for message in to_node(payload.clone()) {
            let alone = bytes_of(&message);
            prop_assert_eq!(alone[4] & 0x20, 0);
            let traced = ToNode::Traced(Box::new((context.clone(), message)));
            let bytes = bytes_of(&traced);
            prop_assert_eq!(bytes.len(), alone.len() + 29 + state.len());
            prop_assert_eq!(decode::<ToNode>(&bytes).unwrap(), traced);
        }
        let traced = ToBroker::Traced(Box::new((context, produce(payload))));
        prop_assert_eq!(decode::<ToBroker>(&bytes_of(&traced)).unwrap(), traced);
    }

    #[test]
    fn arbitrary_bodies_never_panic(kind in any::<u8>(), id in any::<u64>(), body in prop::collection::vec(any::<u8>(), 0..300)) {
        let body = Bytes::from(body);
        let _ = ToNode::decode(kind, id, body.clone());
        let _ = FromNode::decode(kind, id, body.clone());
        let _ = ToBroker::decode(kind, id, body.clone());
        let _ = FromBroker::decode(kind, id, body);
    }

    #[test]
    fn a_cut_message_is_refused(at in any::<prop::sample::Index>()) {
        for message in from_node(vec![1; 40]) {
            // What a read returns has no length of its own: the envelope's length ends it.
            if matches!(message, FromNode::Read { .. } | FromNode::Headers { .. }) {
                continue;
            }
            let whole = bytes_of(&message);
            let cut = ENVELOPE_LEN + at.index(whole.len() - ENVELOPE_LEN);
            prop_assert!(decode::<FromNode>(&whole.slice(..cut)).is_err(), "{message:?} cut at {cut}");
        }
    }
}

async fn receive(bytes: &[u8]) -> Result<Option<ToNode>, LinkError> {
    let (ours, mut theirs) = tokio::io::duplex(1 << 16);
    let (read, write) = tokio::io::split(ours);
    let (mut link, _writing) = link::over_stream::<FromNode, ToNode>(read, write);
    theirs.write_all(bytes).await.unwrap();
    theirs.shutdown().await.unwrap();
    link.rx.recv().await
}

const PREAMBLE: [u8; 8] = *b"FBDP\x01\0\x01\0";

#[test]
fn a_trace_context_without_ids_is_refused() {
    let mut body = vec![0; 29];
    body.extend_from_slice(&[1; 40]);
    let refused = ToBroker::decode(2 | 0x20, 1, Bytes::from(body));
    assert!(
        matches!(
            refused,
            Err(WireError::Value {
                field: "trace id",
                ..
            })
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_stream_of_something_else_is_refused_by_its_first_bytes() {
    let error = receive(b"GET / HTTP/1.1\r\n\r\n").await.unwrap_err();
    assert!(
        matches!(error, LinkError::Wire(WireError::Preamble(_))),
        "{error:?}"
    );
    let wrong_protocol = receive(b"FBDP\x01\0\x02\0").await.unwrap_err();
    assert!(
        matches!(wrong_protocol, LinkError::Wire(WireError::Preamble(_))),
        "{wrong_protocol:?}"
    );
}

#[tokio::test]
async fn a_length_over_the_limit_is_refused_before_anything_is_allocated() {
    let mut bytes = PREAMBLE.to_vec();
    bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    bytes.extend_from_slice(&[2, 1, 0, 0]);
    bytes.extend_from_slice(&[0; 8]);
    let error = receive(&bytes).await.unwrap_err();
    let expected = WireError::TooLong {
        len: u32::MAX as usize,
        max: MESSAGE_LEN_MAX,
    };
    assert!(
        matches!(&error, LinkError::Wire(found) if *found == expected),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_connection_that_ends_inside_a_message_is_told_from_one_that_ends_after_it() {
    let mut bytes = PREAMBLE.to_vec();
    bytes.extend_from_slice(&bytes_of(&to_node(vec![]).remove(0)));
    assert!(matches!(receive(&bytes).await, Ok(Some(ToNode::Hello(_)))));
    bytes.truncate(bytes.len() - 1);
    assert!(matches!(receive(&bytes).await, Err(LinkError::Cut)));
    assert!(matches!(receive(&PREAMBLE).await, Ok(None)));
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_stays_and_a_silent_one_ends() {
    let (a, b) = tokio::io::duplex(1 << 16);
    let (read, write) = tokio::io::split(a);
    let (mut near, near_writing) = link::over_stream::<ToNode, FromNode>(read, write);
    let (read, write) = tokio::io::split(b);
    let (mut far, far_writing) = link::over_stream::<FromNode, ToNode>(read, write);
    let writing = tokio::spawn(near_writing);
    let far_writing = tokio::spawn(far_writing);
    let quiet = tokio::time::timeout(link::SILENCE_MAX * 5, near.rx.recv()).await;
    assert!(quiet.is_err(), "keep-alives held it: {quiet:?}");
    near.tx.send(to_node(vec![]).remove(0)).await.unwrap();
    assert!(matches!(far.rx.recv().await, Ok(Some(ToNode::Hello(_)))));
    far_writing.abort();
    let silent = near.rx.recv().await;
    assert!(
        matches!(silent, Err(LinkError::Silent(_)) | Ok(None)),
        "{silent:?}"
    );
    writing.abort();
}
