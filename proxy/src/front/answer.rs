//! A fetch response as the body of an HTTP response, with every batch as the slice it came in.
//!
//! A generated encoder would copy all batches into one buffer, twice. Here the message's fields
//! are written around the batches: small ones are copied next to their fields, large ones are
//! frames of their own that go to the socket as they are. The bytes admitted for the answer are
//! given back when the body is gone.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use forebay_proto::v1::{Error, PartitionFetched};
use forebay_record::Offset;
use http_body::{Body as HttpBody, Frame};
use prost::Message as _;
use prost::encoding::{encode_varint, encoded_len_varint};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};

use super::Admitted;
use crate::fetch::FetchAnswer;

/// Batches below this are copied: a frame of their own would cost more.
const COPIED_MAX: usize = 4 << 10;
/// `partitions` of the response and `batches` of a partition, length-delimited.
const PARTITIONS_KEY: u8 = 1 << 3 | 2;
const BATCHES_KEY: u8 = 5 << 3 | 2;
const GRPC_HEADER_LEN: usize = 5;

struct AnswerBody {
    frames: VecDeque<Bytes>,
    trailers: bool,
    _admitted: Option<Admitted>,
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(data) = self.frames.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if !std::mem::take(&mut self.trailers) {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

/// The response that carries an answer.
pub(crate) fn response(answer: FetchAnswer) -> Response<Body> {
    let FetchAnswer { partitions, admitted } = answer;
    let mut parts = Vec::with_capacity(partitions.len());
    let mut total = 0;
    for one in partitions {
        let batches_len: usize = one.batches.iter().map(Bytes::len).sum();
        let head = PartitionFetched {
            topic: one.topic,
            partition: one.partition,
            high_watermark: one.high_watermark.0,
            log_start: one.log_start.0,
            batches: Bytes::new(),
            error: one.failure.map(Error::from),
            skip_to: one.skip_to.map(Offset::get),
        };
        let batches_field = if batches_len == 0 {
            0
        } else {
            1 + encoded_len_varint(batches_len as u64) + batches_len
        };
        let len = head.encoded_len() + batches_field;
        total += 1 + encoded_len_varint(len as u64) + len;
        parts.push((head, len, batches_len, one.batches));
    }
    let mut frames = VecDeque::new();
    let mut buffer = BytesMut::with_capacity(GRPC_HEADER_LEN + 64 * parts.len());
    buffer.put_u8(0);
    // The cap on answers keeps this far below 4 GiB.
    buffer.put_u32(u32::try_from(total).unwrap_or(u32::MAX));
    for (head, len, batches_len, batches) in parts {
        buffer.put_u8(PARTITIONS_KEY);
        encode_varint(len as u64, &mut buffer);
        head.encode_raw(&mut buffer);
        if batches_len > 0 {
            buffer.put_u8(BATCHES_KEY);
            encode_varint(batches_len as u64, &mut buffer);
        }
        for batch in batches {
            if batch.len() < COPIED_MAX {
                buffer.put(batch);
            } else {
                if !buffer.is_empty() {
                    frames.push_back(buffer.split().freeze());
                }
                frames.push_back(batch);
            }
        }
    }
    if !buffer.is_empty() {
        frames.push_back(buffer.freeze());
    }
    let body = AnswerBody {
        frames,
        trailers: true,
        _admitted: admitted,
    };
    let mut response = Response::new(Body::new(body));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use forebay_proto::error::Failure;
    use forebay_proto::v1::{ErrorCode, FetchResponse};
    use futures_util::future::poll_fn;

    use super::*;
    use crate::fetch::PartitionAnswer;

    fn partition(number: u32, batches: &[usize], failure: Option<Failure>) -> PartitionAnswer {
        PartitionAnswer {
            topic: "orders".into(),
            partition: number,
            high_watermark: Offset(70),
            log_start: Offset(3),
            batches: batches
                .iter()
                .map(|len| Bytes::from(vec![*len as u8; *len]))
                .collect(),
            skip_to: None,
            failure,
        }
    }

    #[tokio::test]
    async fn the_body_is_the_message_that_a_generated_decoder_reads() {
        let failure = Failure::new(ErrorCode::OffsetOutOfRange, "offset 9");
        let partitions = vec![
            partition(0, &[10, 5000, 20, 9000, 9001], None),
            partition(1, &[], Some(failure)),
            partition(2, &[7], None),
        ];
        let mut body = response(FetchAnswer {
            partitions,
            admitted: None,
        })
        .into_body();
        let (mut bytes, mut status) = (Vec::new(), None);
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            match frame.unwrap().into_data() {
                Ok(data) => bytes.extend_from_slice(&data),
                Err(other) => {
                    status = Some(other.into_trailers().unwrap().get("grpc-status").unwrap().clone())
                }
            }
        }
        assert_eq!(status.unwrap(), "0");
        assert_eq!(bytes[0], 0);
        assert_eq!(
            u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize,
            bytes.len() - 5
        );
        let read = FetchResponse::decode(&bytes[5..]).unwrap();
        assert_eq!(read.partitions.len(), 3);
        assert_eq!(read.partitions[0].batches.len(), 10 + 5000 + 20 + 9000 + 9001);
        assert_eq!(
            &read.partitions[0].batches[..11],
            [vec![10; 10], vec![5000_u32 as u8]].concat()
        );
        assert_eq!(
            read.partitions[1].error.as_ref().unwrap().code(),
            ErrorCode::OffsetOutOfRange
        );
        assert_eq!(
            (read.partitions[2].high_watermark, read.partitions[2].log_start),
            (70, 3)
        );
    }
}
