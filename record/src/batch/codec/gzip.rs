//! Gzip: one member, RFC 1952 around a raw deflate stream, RFC 1951.
//!
//! The member is taken apart here so that the inflater's state can be kept between batches and
//! its output written straight into the bounded buffer.

use std::io::Write;

use flate2::write::GzEncoder;
use flate2::{Compression, Crc, Decompress, FlushDecompress, Status};

use super::output::{Fault, Output};

const MAGIC_DEFLATE: [u8; 3] = [0x1f, 0x8b, 8];
/// Modification time, extra flags and operating system.
const SKIPPED: usize = 6;
const HAS_CRC: u8 = 1 << 1;
const HAS_EXTRA: u8 = 1 << 2;
const HAS_NAME: u8 = 1 << 3;
const HAS_COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;
/// First guess of how far records shrink, and the least that is handed to the inflater.
const RATIO_GUESS: usize = 4;
const ROOM_LEAST: usize = 4096;

pub(super) struct Decoder(Decompress);

impl Decoder {
    pub(super) fn new() -> Self {
        Self(Decompress::new(false))
    }

    pub(super) fn decompress(&mut self, member: &[u8], out: &mut Output<'_>) -> Result<(), Fault> {
        let deflated = skip_header(member).ok_or_else(|| Fault::corrupt("bad gzip header"))?;
        let trailer = self.inflate(deflated, out)?;
        let trailer: &[u8; 8] = trailer
            .try_into()
            .map_err(|_| Fault::corrupt(format!("{} bytes of trailer, expected 8", trailer.len())))?;
        let [c0, c1, c2, c3, l0, l1, l2, l3] = *trailer;
        let mut crc = Crc::new();
        crc.update(out.written());
        let found = (crc.sum(), crc.amount());
        let stored = (
            u32::from_le_bytes([c0, c1, c2, c3]),
            u32::from_le_bytes([l0, l1, l2, l3]),
        );
        if found == stored {
            Ok(())
        } else {
            Err(Fault::Corrupt(format!(
                "checksum and length {:#010x}, {} in the trailer, {:#010x}, {} of the content",
                stored.0, stored.1, found.0, found.1
            )))
        }
    }

    /// Inflates one stream and returns the bytes after it.
    fn inflate<'a>(&mut self, mut input: &'a [u8], out: &mut Output<'_>) -> Result<&'a [u8], Fault> {
        let Self(inflater) = self;
        inflater.reset(false);
        loop {
            let (consumed, produced) = (inflater.total_in(), inflater.total_out());
            // At the limit the stream may still end, but not give another byte.
            let mut beyond = [0u8; 1];
            let room = match out.left() {
                0 => beyond.as_mut_slice(),
                _ => out.at_least(ROOM_LEAST.max(input.len().saturating_mul(RATIO_GUESS)))?,
            };
            let status = inflater
                .decompress(input, room, FlushDecompress::None)
                .map_err(Fault::corrupt)?;
            let consumed = (inflater.total_in() - consumed) as usize;
            let produced = (inflater.total_out() - produced) as usize;
            input = input.get(consumed..).unwrap_or_default();
            if produced > out.left() {
                return Err(Fault::TooLarge);
            }
            out.advance(produced);
            match status {
                Status::StreamEnd => return Ok(input),
                Status::Ok | Status::BufError if consumed == 0 && produced == 0 => {
                    return Err(Fault::corrupt("deflate stream ends early"));
                }
                Status::Ok | Status::BufError => {}
            }
        }
    }
}

/// The bytes after the header of a gzip member.
fn skip_header(member: &[u8]) -> Option<&[u8]> {
    let (flags, rest) = member.strip_prefix(&MAGIC_DEFLATE)?.split_first()?;
    let mut rest = rest.get(SKIPPED..)?;
    if flags & RESERVED != 0 {
        return None;
    }
    if flags & HAS_EXTRA != 0 {
        let (len, after) = rest.split_first_chunk()?;
        rest = after.get(usize::from(u16::from_le_bytes(*len))..)?;
    }
    for text in [HAS_NAME, HAS_COMMENT] {
        if flags & text != 0 {
            let end = rest.iter().position(|byte| *byte == 0)?;
            rest = rest.get(end + 1..)?;
        }
    }
    if flags & HAS_CRC != 0 {
        rest = rest.get(2..)?;
    }
    Some(rest)
}

/// Appends a member with `plain` to `out`.
pub(super) fn compress(plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let mut encoder = GzEncoder::new(out, Compression::default());
    encoder
        .write_all(plain)
        .and_then(|()| encoder.finish())
        .map(|_| ())
        .map_err(|error| error.to_string())
}
