//! Zig-zag varints: at most 5 bytes for 32 bits, at most 10 for 64.
//!
//! Reading is bounded by the slice it walks and never indexes. One and two byte varints, nearly
//! all of a batch, are read without a loop. Longer encodings than needed are accepted, as Kafka
//! does; encodings with bits beyond the type are refused, where Kafka would drop those bits.

use bytes::{BufMut, BytesMut};

use super::error::{Field, RecordFault};

const CONTINUES: u8 = 0x80;
const VARINT_BITS: u32 = 32;
const VARLONG_BITS: u32 = 64;

/// A place in bytes that are being read.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    #[inline(always)]
    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    #[inline(always)]
    pub(super) fn byte(&mut self, field: Field) -> Result<u8, RecordFault> {
        let (first, rest) = self.rest.split_first().ok_or(RecordFault::Ended { field })?;
        self.rest = rest;
        Ok(*first)
    }

    /// A signed 32-bit varint.
    #[inline(always)]
    pub(super) fn varint(&mut self, field: Field) -> Result<i32, RecordFault> {
        let raw = match self.short() {
            Some(raw) => raw,
            // Bits above 32 are refused by the loop, so nothing is cut off here.
            None => self.long(VARINT_BITS, field)? as u32,
        };
        Ok((raw >> 1) as i32 ^ -((raw & 1) as i32))
    }

    /// A signed 64-bit varint.
    #[inline(always)]
    pub(super) fn varlong(&mut self, field: Field) -> Result<i64, RecordFault> {
        let raw = match self.short() {
            Some(raw) => u64::from(raw),
            None => self.long(VARLONG_BITS, field)?,
        };
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// A varint of one or two bytes, if that is what comes next.
    #[inline(always)]
    fn short(&mut self) -> Option<u32> {
        match self.rest {
            [first, rest @ ..] if *first < CONTINUES => {
                self.rest = rest;
                Some(u32::from(*first))
            }
            [first, second, rest @ ..] if *second < CONTINUES => {
                self.rest = rest;
                Some(u32::from(*first & !CONTINUES) | u32::from(*second) << 7)
            }
            _ => None,
        }
    }

    #[cold]
    fn long(&mut self, bits: u32, field: Field) -> Result<u64, RecordFault> {
        let mut value = 0u64;
        let mut shift = 0u32;
        loop {
            let byte = self.byte(field)?;
            let part = u64::from(byte & !CONTINUES);
            if shift >= bits || part >> (bits - shift).min(7) != 0 {
                return Err(RecordFault::Varint { field });
            }
            value |= part << shift;
            if byte < CONTINUES {
                return Ok(value);
            }
            shift += 7;
        }
    }

    /// The next `length` bytes; a negative length is refused.
    #[inline(always)]
    pub(super) fn take(&mut self, length: i32, field: Field) -> Result<&'a [u8], RecordFault> {
        let split = usize::try_from(length)
            .ok()
            .and_then(|length| self.rest.split_at_checked(length));
        let (taken, rest) = split.ok_or(RecordFault::Length {
            field,
            length,
            left: self.rest.len(),
        })?;
        self.rest = rest;
        Ok(taken)
    }

    /// A length and as many bytes, where −1 is null.
    #[inline(always)]
    pub(super) fn nullable(&mut self, field: Field) -> Result<Option<&'a [u8]>, RecordFault> {
        match self.varint(field)? {
            -1 => Ok(None),
            length => self.take(length, field).map(Some),
        }
    }
}

/// Bytes that `value` takes as a varint of either width.
#[inline]
pub(super) const fn encoded_len(value: i64) -> usize {
    let bits = VARLONG_BITS - zigzag(value).leading_zeros();
    if bits == 0 { 1 } else { bits.div_ceil(7) as usize }
}

/// Appends `value`; a value that fits 32 bits gives the bytes of a 32-bit varint.
#[inline]
pub(super) fn write(out: &mut BytesMut, value: i64) {
    let mut raw = zigzag(value);
    while raw >= u64::from(CONTINUES) {
        out.put_u8(raw as u8 | CONTINUES);
        raw >>= 7;
    }
    out.put_u8(raw as u8);
}

const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use super::*;
    use proptest::prelude::*;

    const FIELD: Field = Field::Value;

    fn encoded(value: i64) -> BytesMut {
        let mut out = BytesMut::new();
        write(&mut out, value);
        out
    }

    #[test]
    fn known_values_have_known_bytes() {
        let cases: [(i64, &[u8]); 8] = [
            (0, &[0]),
            (-1, &[1]),
            (63, &[126]),
            (-64, &[127]),
            (64, &[0x80, 1]),
            (8191, &[0xfe, 0x7f]),
            (i64::from(i32::MAX), &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (i64::from(i32::MIN), &[0xff, 0xff, 0xff, 0xff, 0x0f]),
        ];
        for (value, bytes) in cases {
            assert_eq!(&encoded(value)[..], bytes, "{value}");
        }
        assert_eq!(encoded(i64::MIN).len(), 10);
    }

    #[test]
    fn bits_beyond_the_type_are_refused() {
        let too_many_bits = [0xff, 0xff, 0xff, 0xff, 0x1f];
        assert_eq!(
            Reader::new(&too_many_bits).varint(FIELD),
            Err(RecordFault::Varint { field: FIELD })
        );
        let too_many_bytes = [0x80, 0x80, 0x80, 0x80, 0x80, 0x00];
        assert_eq!(
            Reader::new(&too_many_bytes).varint(FIELD),
            Err(RecordFault::Varint { field: FIELD })
        );
        let mut long = [0xff; 10];
        long[9] = 0x02;
        assert_eq!(
            Reader::new(&long).varlong(FIELD),
            Err(RecordFault::Varint { field: FIELD })
        );
        long[9] = 0x01;
        assert_eq!(Reader::new(&long).varlong(FIELD), Ok(i64::MIN));
    }

    #[test]
    fn a_cut_varint_is_refused() {
        for length in 0..4 {
            assert_eq!(
                Reader::new(&[0x80; 4][..length]).varint(FIELD),
                Err(RecordFault::Ended { field: FIELD })
            );
        }
    }

    #[test]
    fn an_overlong_zero_is_accepted_like_kafka_does() {
        let mut reader = Reader::new(&[0x80, 0x80, 0x00, 7]);
        assert_eq!(reader.varint(FIELD), Ok(0));
        assert_eq!(reader.rest(), [7]);
    }

    proptest! {
        #[test]
        fn varlongs_round_trip(value in any::<i64>(), shift in 0u32..64) {
            let value = value >> shift;
            let bytes = encoded(value);
            prop_assert_eq!(bytes.len(), encoded_len(value));
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.varlong(FIELD), Ok(value));
            prop_assert!(reader.rest().is_empty());
        }

        #[test]
        fn varints_round_trip(value in any::<i32>(), shift in 0u32..32) {
            let value = value >> shift;
            let bytes = encoded(i64::from(value));
            prop_assert!(bytes.len() <= 5);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.varint(FIELD), Ok(value));
            prop_assert!(reader.rest().is_empty());
        }
    }
}
