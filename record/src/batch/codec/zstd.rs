//! Zstandard.
//!
//! Frames are decompressed in one go into the bounded buffer, which is at the same time the
//! window, so no frame header can ask for memory of its own however large a window it declares.
//! Where a frame does not say how long its content is, a guess is tried and doubled.

use zstd::bulk;
use zstd::zstd_safe::{self, DCtx};

use super::output::{Fault, Output};

/// `ZSTD_error_dstSize_tooSmall`: part of the library's stable interface. Codes come negated.
const DST_SIZE_TOO_SMALL: usize = 0usize.wrapping_sub(70);
/// First guess of how far records shrink, and the least that is tried.
const RATIO_GUESS: usize = 4;
const ROOM_LEAST: usize = 4096;

pub(super) struct Decoder(DCtx<'static>);

impl Decoder {
    pub(super) fn new() -> Self {
        Self(DCtx::create())
    }

    pub(super) fn decompress(&mut self, stored: &[u8], out: &mut Output<'_>) -> Result<(), Fault> {
        let declared =
            zstd_safe::get_frame_content_size(stored).map_err(|_| Fault::corrupt("not a zstd frame"))?;
        let mut least = match declared.map(usize::try_from) {
            Some(Ok(size)) if size <= out.left() => size,
            Some(_) => return Err(Fault::TooLarge),
            None => ROOM_LEAST.max(stored.len().saturating_mul(RATIO_GUESS)),
        };
        loop {
            let left = out.left();
            let room = out.at_least(least)?;
            let len = room.len();
            match self.0.decompress(room, stored) {
                Ok(written) => {
                    out.advance(written);
                    return Ok(());
                }
                Err(DST_SIZE_TOO_SMALL) if len < left => least = ROOM_LEAST.max(len.saturating_mul(2)),
                Err(DST_SIZE_TOO_SMALL) => return Err(Fault::TooLarge),
                Err(code) => return Err(Fault::corrupt(zstd_safe::get_error_name(code))),
            }
        }
    }
}

pub(in super::super) struct Encoder(bulk::Compressor<'static>);

impl Encoder {
    pub(super) fn new() -> Result<Self, String> {
        bulk::Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL)
            .map(Self)
            .map_err(|error| error.to_string())
    }

    /// Appends a frame with `plain` to `out`.
    pub(super) fn compress(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let start = out.len();
        out.resize(start + zstd_safe::compress_bound(plain.len()), 0);
        let room = out.get_mut(start..).unwrap_or_default();
        let written = self
            .0
            .compress_to_buffer(plain, room)
            .map_err(|error| error.to_string())?;
        out.truncate(start + written);
        Ok(())
    }
}
