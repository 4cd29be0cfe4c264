//! Reads little-endian fields of one named part without ever reaching past its end.

use super::error::ObjectError;
use crate::crc32c;

/// A place in a part's bytes.
pub(super) struct Fields<'a> {
    what: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub(super) const fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes, at: 0 }
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], ObjectError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let chunk = rest.first_chunk::<N>().ok_or(ObjectError::Truncated {
            what: self.what,
            have: self.bytes.len() as u64,
            need: (self.at + N) as u64,
        })?;
        self.at += N;
        Ok(*chunk)
    }

    pub(super) fn u16(&mut self) -> Result<u16, ObjectError> {
        self.take().map(u16::from_le_bytes)
    }
    pub(super) fn u32(&mut self) -> Result<u32, ObjectError> {
        self.take().map(u32::from_le_bytes)
    }
    pub(super) fn u64(&mut self) -> Result<u64, ObjectError> {
        self.take().map(u64::from_le_bytes)
    }
    pub(super) fn i64(&mut self) -> Result<i64, ObjectError> {
        self.take().map(i64::from_le_bytes)
    }

    /// Takes the magic, the version and flags of which none is known.
    pub(super) fn head(&mut self, expected: [u8; 4], version: u16) -> Result<(), ObjectError> {
        let found = self.take()?;
        if found != expected {
            return Err(ObjectError::Magic {
                what: self.what,
                found,
                expected,
            });
        }
        self.version(version)?;
        self.zero_u16("flags")
    }

    pub(super) fn version(&mut self, expected: u16) -> Result<(), ObjectError> {
        match self.u16()? {
            version if version == expected => Ok(()),
            version => Err(ObjectError::Version {
                what: self.what,
                version,
            }),
        }
    }

    pub(super) fn zero_u16(&mut self, what: &'static str) -> Result<(), ObjectError> {
        match self.u16()? {
            0 => Ok(()),
            found => Err(ObjectError::value(what, found.into(), "0")),
        }
    }

    pub(super) fn zero_u32(&mut self, what: &'static str) -> Result<(), ObjectError> {
        match self.u32()? {
            0 => Ok(()),
            found => Err(ObjectError::value(what, found.into(), "0")),
        }
    }

    /// A count that is within its bound and whose elements can fit into what is left.
    pub(super) fn count(
        &mut self,
        what: &'static str,
        bound: usize,
        element_len: usize,
    ) -> Result<usize, ObjectError> {
        let count = self.u32()? as usize;
        let max = bound.min(self.bytes.len().saturating_sub(self.at) / element_len.max(1));
        if count > max {
            return Err(ObjectError::Count {
                what,
                count: count as u64,
                max: max as u64,
            });
        }
        Ok(count)
    }

    /// A text after its length.
    pub(super) fn name(&mut self, what: &'static str) -> Result<String, ObjectError> {
        let len = usize::from(self.u16()?);
        let end = self.at + len;
        let bytes = self.bytes.get(self.at..end).ok_or(ObjectError::Truncated {
            what: self.what,
            have: self.bytes.len() as u64,
            need: end as u64,
        })?;
        self.at = end;
        match std::str::from_utf8(bytes) {
            Ok(name) if !name.is_empty() && len <= super::NAME_BYTES_MAX => Ok(name.to_owned()),
            _ => Err(ObjectError::Name(what)),
        }
    }

    pub(super) fn finish(self) -> Result<(), ObjectError> {
        match self.bytes.len().saturating_sub(self.at) {
            0 => Ok(()),
            more => Err(ObjectError::value("bytes after the end", more as u64, "0")),
        }
    }
}

/// Refuses bytes whose checksum is another.
pub(super) fn verify(what: &'static str, bytes: &[u8], expected: u32) -> Result<(), ObjectError> {
    match crc32c(bytes) {
        found if found == expected => Ok(()),
        found => Err(ObjectError::Checksum {
            what,
            found,
            expected,
        }),
    }
}
