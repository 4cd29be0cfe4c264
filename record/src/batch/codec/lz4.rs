//! LZ4: one frame of the LZ4 frame format, version 1.6.
//!
//! | bytes   | field                                                                      |
//! |---------|----------------------------------------------------------------------------|
//! | 0–3     | magic `0x184d2204`, little endian like the rest                            |
//! | 4       | flags: bits 7–6 version 1, 5 blocks are independent, 4 block checksums,    |
//! |         | 3 content size, 2 content checksum, 1 zero, 0 dictionary                   |
//! | 5       | bits 6–4 largest block: 4 64 KiB, 5 256 KiB, 6 1 MiB, 7 4 MiB; others zero |
//! | 8 bytes | content size, if flagged                                                   |
//! | 1 byte  | second byte of the xxHash-32 of the bytes from the flags to here           |
//! | blocks  | u32 length, top bit: stored plain; data; u32 xxHash-32, if flagged         |
//! | 4 bytes | zero: end                                                                  |
//! | 4 bytes | xxHash-32 of the content, if flagged                                       |
//!
//! The frame is walked here and only blocks go to the library, so each is written straight into
//! the bounded buffer. A linked block looks back into what is already there.

use std::io::Write;

use lz4_flex::block::{DecompressError, decompress_into_with_dict};
use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use twox_hash::XxHash32;

use super::output::{Fault, Output};

const MAGIC: u32 = 0x184d_2204;
const VERSION_BITS: u8 = 0b1100_0000;
const VERSION: u8 = 0b0100_0000;
const INDEPENDENT: u8 = 1 << 5;
const BLOCK_CHECKSUMS: u8 = 1 << 4;
const CONTENT_SIZE: u8 = 1 << 3;
const CONTENT_CHECKSUM: u8 = 1 << 2;
const RESERVED: u8 = 1 << 1;
const DICTIONARY: u8 = 1;
const BLOCK_SIZE_BITS: u8 = 0b0111_0000;
const STORED_PLAIN: u32 = 1 << 31;
const XXHASH_SEED: u32 = 0;
/// How far back a linked block may look.
const WINDOW_LEN: usize = 64 << 10;
/// A block cannot give more than 255 bytes for each of its own.
const EXPANSION_MAX: usize = 255;

/// What the frame's descriptor says.
struct Frame {
    flags: u8,
    block_len_max: usize,
    content_size: Option<u64>,
}

pub(super) fn decompress(stored: &[u8], out: &mut Output<'_>) -> Result<(), Fault> {
    let mut rest = stored;
    let frame = Frame::read(&mut rest)?;
    if frame.content_size.is_some_and(|size| size > out.left() as u64) {
        return Err(Fault::TooLarge);
    }
    loop {
        match u32::from_le_bytes(*take(&mut rest)?) {
            0 => break,
            length => frame.block(length, &mut rest, out)?,
        }
    }
    if let Some(size) = frame.content_size
        && size != out.written().len() as u64
    {
        return Err(Fault::Corrupt(format!(
            "content of {} bytes, {size} declared",
            out.written().len()
        )));
    }
    if frame.flags & CONTENT_CHECKSUM != 0 {
        check_hash(out.written(), &mut rest)?;
    }
    match rest.len() {
        0 => Ok(()),
        extra => Err(Fault::Corrupt(format!("{extra} bytes after the frame"))),
    }
}

impl Frame {
    fn read(rest: &mut &[u8]) -> Result<Self, Fault> {
        let magic = u32::from_le_bytes(*take(rest)?);
        if magic != MAGIC {
            return Err(Fault::Corrupt(format!(
                "magic {magic:#010x}, expected {MAGIC:#010x}"
            )));
        }
        let descriptor = *rest;
        let [flags, sizes] = *take(rest)?;
        if flags & VERSION_BITS != VERSION || flags & (RESERVED | DICTIONARY) != 0 {
            return Err(Fault::Corrupt(format!("unsupported frame flags {flags:#04x}")));
        }
        let block_len_max = match (sizes & BLOCK_SIZE_BITS) >> 4 {
            size @ 4..=7 if sizes & !BLOCK_SIZE_BITS == 0 => (64 << 10) << (2 * (size - 4)),
            _ => {
                return Err(Fault::Corrupt(format!("unsupported block size {sizes:#04x}")));
            }
        };
        let content_size = match flags & CONTENT_SIZE {
            0 => None,
            _ => Some(u64::from_le_bytes(*take(rest)?)),
        };
        let described = descriptor.len() - rest.len();
        let descriptor = descriptor.get(..described).unwrap_or_default();
        let [stored] = *take(rest)?;
        let [_, computed, ..] = XxHash32::oneshot(XXHASH_SEED, descriptor).to_le_bytes();
        if stored != computed {
            return Err(Fault::Corrupt(format!(
                "header checksum {stored:#04x}, computed {computed:#04x}"
            )));
        }
        Ok(Self {
            flags,
            block_len_max,
            content_size,
        })
    }

    fn block(&self, length: u32, rest: &mut &[u8], out: &mut Output<'_>) -> Result<(), Fault> {
        let len = (length & !STORED_PLAIN) as usize;
        let split = rest.split_at_checked(len).filter(|_| len <= self.block_len_max);
        let (data, after) = split.ok_or_else(|| {
            Fault::Corrupt(format!(
                "block of {len} bytes, {} left, {} allowed",
                rest.len(),
                self.block_len_max
            ))
        })?;
        *rest = after;
        if self.flags & BLOCK_CHECKSUMS != 0 {
            check_hash(data, rest)?;
        }
        if length & STORED_PLAIN != 0 {
            out.exactly(len)?.copy_from_slice(data);
            out.advance(len);
            return Ok(());
        }
        let most = self.block_len_max.min(len.saturating_mul(EXPANSION_MAX));
        let (written, room) = out.written_and_room(most)?;
        let window = match self.flags & INDEPENDENT {
            0 => written
                .get(written.len().saturating_sub(WINDOW_LEN)..)
                .unwrap_or_default(),
            _ => &[],
        };
        let limited = room.len() < most;
        let produced = decompress_into_with_dict(data, room, window).map_err(|error| match error {
            DecompressError::OutputTooSmall { .. } if limited => Fault::TooLarge,
            error => Fault::corrupt(error),
        })?;
        out.advance(produced);
        Ok(())
    }
}

fn check_hash(data: &[u8], rest: &mut &[u8]) -> Result<(), Fault> {
    let stored = u32::from_le_bytes(*take(rest)?);
    let computed = XxHash32::oneshot(XXHASH_SEED, data);
    if stored == computed {
        Ok(())
    } else {
        Err(Fault::Corrupt(format!(
            "checksum {stored:#010x}, computed {computed:#010x}"
        )))
    }
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [u8; N], Fault> {
    let (taken, after) = rest
        .split_first_chunk()
        .ok_or_else(|| Fault::Corrupt(format!("{N} bytes expected, {} left", rest.len())))?;
    *rest = after;
    Ok(taken)
}

/// Appends a frame with `plain` to `out`. Its blocks are independent: Kafka's own reader knows no
/// others.
pub(super) fn compress(plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let info = FrameInfo::new()
        .block_mode(BlockMode::Independent)
        .block_size(BlockSize::Max64KB);
    let mut encoder = FrameEncoder::with_frame_info(info, out);
    encoder.write_all(plain).map_err(|error| error.to_string())?;
    encoder.finish().map(|_| ()).map_err(|error| error.to_string())
}
