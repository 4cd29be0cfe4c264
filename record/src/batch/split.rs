//! Cutting bytes into the batches they are made of, without copying.
//!
//! A fetch may end within a batch. That shows as [`BatchError::Truncated`], the last item, after
//! all whole batches; every other error ends the cutting too, since no later byte can be trusted
//! to begin a batch.

use bytes::Bytes;

use super::error::BatchError;
use super::header::Header;

/// The first batch of `bytes`, and the bytes after it.
///
/// # Errors
/// As [`Header::parse`].
pub fn split_first(bytes: &Bytes) -> Result<(Header, Bytes, Bytes), BatchError> {
    let header = Header::parse(bytes)?;
    // The header was only parsed because all its bytes are here.
    let mut batch = bytes.clone();
    let rest = batch.split_off(header.len_bytes().min(bytes.len()));
    Ok((header, batch, rest))
}

/// The batches that lie one after the other in some bytes.
#[derive(Debug, Clone)]
pub struct Batches {
    rest: Bytes,
}

impl Batches {
    /// The batches of `bytes`.
    #[must_use]
    pub const fn new(bytes: Bytes) -> Self {
        Self { rest: bytes }
    }
}

impl Iterator for Batches {
    type Item = Result<(Header, Bytes), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match split_first(&self.rest) {
            Ok((header, batch, rest)) => {
                self.rest = rest;
                Some(Ok((header, batch)))
            }
            Err(error) => {
                self.rest.clear();
                Some(Err(error))
            }
        }
    }
}

impl std::iter::FusedIterator for Batches {}
