//! A sealed batch under other numbers.
//!
//! Needed only when an idempotent producer takes a new id or closes a hole: a batch that was
//! certainly not applied is then sent under numbers that were not known when it was sealed. It is
//! decoded and built again, so that only the record crate knows the layout.

use bytes::Bytes;
use forebay_record::batch::{BatchError, BuildError, Builder, Limits, ProducerStamp, decode};

/// Why a batch cannot be built again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RenumberError {
    #[error(transparent)]
    Decode(#[from] BatchError),
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// The same records under these numbers.
pub(crate) fn renumber(batch: &Bytes, stamp: Option<ProducerStamp>) -> Result<Bytes, RenumberError> {
    // The batch is our own, so what it inflates to is what it was made from.
    let limits = Limits {
        batch_bytes_max: batch.len(),
        decompressed_bytes_max: i32::MAX as usize,
        allow_control: false,
    };
    let decoded = decode(batch, &limits)?;
    let header = *decoded.header();
    let mut builder = Builder::new(header.codec(), batch.len());
    for record in decoded.records() {
        let record = record?;
        let headers: Vec<_> = record.headers.iter().collect();
        builder.append(record.timestamp_ms(&header), record.key, record.value, &headers)?;
    }
    Ok(builder.finish(stamp)?)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use forebay_record::ProducerId;
    use forebay_record::batch::{Codec, Header};

    use super::*;

    #[test]
    fn only_the_numbers_change() {
        for codec in Codec::ALL {
            let stamp = |id, sequence| {
                Some(ProducerStamp {
                    id: ProducerId(id),
                    epoch: 0,
                    sequence,
                })
            };
            let build = |stamp| {
                let mut builder = Builder::new(codec, 1024);
                let headers: [(&[u8], Option<&[u8]>); 2] = [(b"h", Some(b"1")), (b"h", None)];
                builder.append(5, Some(b"k"), Some(b"v"), &headers).unwrap();
                builder.append(3, None, None, &headers[..0]).unwrap();
                builder.finish(stamp).unwrap()
            };
            let renumbered = renumber(&build(stamp(1, 77)), stamp(2, 0)).unwrap();
            assert_eq!(renumbered, build(stamp(2, 0)), "{codec}");
            assert_eq!(Header::parse(&renumbered).unwrap().producer(), stamp(2, 0));
        }
    }
}
