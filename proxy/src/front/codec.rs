//! Decodes produce requests whose decoded form stays within a multiple of their bytes.
//!
//! An empty record takes two bytes on the wire and a hundred in memory, so a message of the
//! largest size could become gigabytes. A look at the lengths alone, before anything is built,
//! adds up what the structure will take.

use bytes::Buf;
use forebay_proto::error::Failure;
use forebay_proto::v1::{ErrorCode, Header, PartitionProduce, ProduceRequest, ProduceResponse, Record};
use prost::Message as _;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// What the structure of one request may take, apart from its bytes.
pub(crate) const STRUCTURE_BYTES_MAX: usize = 16 << 20;

const BUFFERS: (usize, usize) = (32 << 10, 64 << 10);

/// Of produce calls.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ProduceCodec;

impl Codec for ProduceCodec {
    type Encode = ProduceResponse;
    type Decode = ProduceRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for ProduceCodec {
    type Item = ProduceResponse;
    type Error = Status;

    fn encode(&mut self, item: ProduceResponse, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(out)
            .map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(1 << 10, BUFFERS.1)
    }
}

impl Decoder for ProduceCodec {
    type Item = ProduceRequest;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<ProduceRequest>, Status> {
        let refused = |what: String| Status::from(Failure::new(ErrorCode::InvalidRequest, what));
        // A message is one contiguous buffer; were it not, its decoded size could not be told.
        let bytes = src.chunk();
        if bytes.len() != src.remaining() {
            return Err(Status::internal("message is not contiguous"));
        }
        let structure =
            structure_bytes(bytes).ok_or_else(|| refused("produce request does not parse".to_owned()))?;
        if structure > STRUCTURE_BYTES_MAX {
            return Err(refused(format!(
                "produce request's records take {structure} bytes beside their content, {STRUCTURE_BYTES_MAX} are allowed"
            )));
        }
        ProduceRequest::decode(src)
            .map(Some)
            .map_err(|error| refused(format!("produce request does not parse: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFERS.0, BUFFERS.1)
    }
}

/// Memory that partitions, records and headers will take, or none where the lengths make no sense.
fn structure_bytes(request: &[u8]) -> Option<usize> {
    const PARTITIONS: u64 = 4;
    const RECORDS: u64 = 4;
    const RECORD: u64 = 1;
    const HEADER: u64 = 4;
    let mut sum = 0;
    each(request, PARTITIONS, &mut |partition| {
        sum += size_of::<PartitionProduce>();
        each(partition, RECORDS, &mut |records| {
            each(records, RECORD, &mut |record| {
                sum += size_of::<Record>();
                each(record, HEADER, &mut |_| {
                    sum += size_of::<Header>();
                    Some(())
                })
            })
        })
    })?;
    // Vectors grow by doubling, and hold old and new while they do.
    Some(sum.saturating_mul(3))
}

/// Visits the length-delimited fields of one number.
fn each(mut bytes: &[u8], number: u64, visit: &mut dyn FnMut(&[u8]) -> Option<()>) -> Option<()> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        match key & 7 {
            0 => {
                varint(&mut bytes)?;
            }
            1 => bytes = bytes.get(8..)?,
            2 => {
                let len = usize::try_from(varint(&mut bytes)?).ok()?;
                let (field, rest) = bytes.split_at_checked(len)?;
                bytes = rest;
                if key >> 3 == number {
                    visit(field)?;
                }
            }
            5 => bytes = bytes.get(4..)?,
            // Groups: no field of ours has ever been one, and what is in them would go uncounted.
            _ => return None,
        }
    }
    Some(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use bytes::Bytes;
    use forebay_proto::v1::Records;
    use forebay_proto::v1::partition_produce::Data;

    use super::*;

    fn request(records: usize, headers: usize) -> Vec<u8> {
        let record = Record {
            headers: vec![Header::default(); headers],
            ..Record::default()
        };
        let records = Records {
            records: vec![record; records],
            compression: 0,
        };
        let partition = PartitionProduce {
            topic: "t".into(),
            partition: 1,
            data: Some(Data::Records(records)),
            ..PartitionProduce::default()
        };
        ProduceRequest {
            request_id: 7,
            acks: 1,
            timeout_ms: 5,
            partitions: vec![partition],
        }
        .encode_to_vec()
    }

    #[test]
    fn structure_is_counted_without_decoding() {
        let counted = structure_bytes(&request(10, 3)).unwrap();
        let expected = size_of::<PartitionProduce>() + 10 * size_of::<Record>() + 30 * size_of::<Header>();
        assert_eq!(counted, 3 * expected);
    }

    #[test]
    fn a_million_empty_records_are_counted_beyond_the_limit() {
        let bytes = request(1_000_000, 0);
        assert!(bytes.len() < 3 << 20);
        assert!(structure_bytes(&bytes).unwrap() > STRUCTURE_BYTES_MAX);
    }

    #[test]
    fn a_batch_costs_nothing_beyond_its_partition() {
        let batch = Data::Batch(Bytes::from(vec![0xff; 1 << 20]));
        let partition = PartitionProduce {
            topic: "t".into(),
            partition: 1,
            data: Some(batch),
            ..PartitionProduce::default()
        };
        let bytes = ProduceRequest {
            partitions: vec![partition],
            ..ProduceRequest::default()
        }
        .encode_to_vec();
        assert_eq!(structure_bytes(&bytes), Some(3 * size_of::<PartitionProduce>()));
    }

    #[test]
    fn groups_and_cut_fields_are_refused() {
        assert_eq!(structure_bytes(&[0x0b]), None);
        let whole = request(2, 0);
        assert_eq!(structure_bytes(&whole[..whole.len() - 1]), None);
        assert_eq!(structure_bytes(&[0xff; 20]), None);
    }
}
