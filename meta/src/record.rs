//! How a stored message becomes a value of the metadata store.
//!
//! | bytes | field                                  |
//! |-------|----------------------------------------|
//! | 0–1   | magic `FM`                             |
//! | 2     | format version, 1                      |
//! | 3     | zero                                   |
//! | 4–7   | CRC-32C of the message, little endian  |
//! | 8–    | the message, protobuf                  |

use bytes::{BufMut, Bytes, BytesMut};
use forebay_record::crc32c;

const PREFIX_LEN: usize = 8;

/// Why a stored value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Too short or without the magic.
    #[error("not a metadata record: {0} bytes")]
    Magic(usize),
    /// A later format.
    #[error("metadata record format version {0} is not supported")]
    Version(u8),
    /// Damaged.
    #[error("metadata record checksum {found:08x}, computed {computed:08x}")]
    Checksum {
        /// As stored.
        found: u32,
        /// As the bytes give it.
        computed: u32,
    },
    /// Not the message expected.
    #[error("metadata record does not parse: {0}")]
    Message(String),
}

/// The value that stores a message.
#[must_use]
pub fn encode(message: &impl prost::Message) -> Bytes {
    let body = message.encode_to_vec();
    let mut out = BytesMut::with_capacity(PREFIX_LEN + body.len());
    out.extend_from_slice(b"FM");
    out.put_u8(1);
    out.put_u8(0);
    out.put_u32_le(crc32c(&body));
    out.extend_from_slice(&body);
    out.freeze()
}

/// Reads the message of a value.
///
/// # Errors
/// Where the value is foreign, of a later version, damaged, or another message.
pub fn decode<M: prost::Message + Default>(value: &[u8]) -> Result<M, RecordError> {
    let (Some([b'F', b'M', version, 0, c0, c1, c2, c3]), Some(body)) =
        (value.first_chunk::<PREFIX_LEN>(), value.get(PREFIX_LEN..))
    else {
        return Err(RecordError::Magic(value.len()));
    };
    if *version != 1 {
        return Err(RecordError::Version(*version));
    }
    let found = u32::from_le_bytes([*c0, *c1, *c2, *c3]);
    let computed = crc32c(body);
    if found != computed {
        return Err(RecordError::Checksum { found, computed });
    }
    M::decode(body).map_err(|error| RecordError::Message(error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use forebay_proto::stored::BrokerRecord;

    #[test]
    fn any_flipped_byte_of_a_record_is_found() {
        let record = BrokerRecord {
            id: 7,
            data_address: "tcp://a:1".into(),
            ..Default::default()
        };
        let value = encode(&record);
        assert_eq!(decode::<BrokerRecord>(&value).unwrap(), record);
        for at in 0..value.len() {
            let mut damaged = value.to_vec();
            damaged[at] ^= 0x40;
            assert!(decode::<BrokerRecord>(&damaged).is_err(), "byte {at}");
        }
    }
}
