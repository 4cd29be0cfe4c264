//! Snappy: blocks in the framing of snappy-java (`xerial`), or one bare block.
//!
//! | bytes | field                                      |
//! |-------|--------------------------------------------|
//! | 0–7   | magic `82 S N A P P Y 00`                  |
//! | 8–11  | version, 1                                 |
//! | 12–15 | least version that can read it, 1          |
//! | 16–   | per block: big endian i32 length, block    |
//!
//! Some writers put the two versions down in little endian, and no reader needs them, so they are
//! skipped unread. The magic cannot begin a bare block: after the length comes a copy of bytes
//! that are not there yet. Every block says how long it gets, which is checked before any memory
//! is taken for it.

use snap::raw;

use super::output::{Fault, Output};

const MAGIC: [u8; 8] = *b"\x82SNAPPY\0";
const VERSIONS: [u8; 8] = [0, 0, 0, 1, 0, 0, 0, 1];
/// What snappy-java puts into one block.
const BLOCK_LEN: usize = 32 << 10;
/// No element of the format gives more than 64 bytes for 3, so a longer claim is a lie.
const EXPANSION_MAX: usize = 22;

pub(super) fn decompress(stored: &[u8], out: &mut Output<'_>) -> Result<(), Fault> {
    let Some(framed) = stored.strip_prefix(&MAGIC) else {
        return block(stored, out);
    };
    let mut rest = framed
        .get(VERSIONS.len()..)
        .ok_or_else(|| Fault::corrupt("ends within the stream header"))?;
    while !rest.is_empty() {
        let (length, after) = rest
            .split_first_chunk()
            .ok_or_else(|| Fault::corrupt("ends within a block length"))?;
        let length = i32::from_be_bytes(*length);
        let (data, after) = usize::try_from(length)
            .ok()
            .and_then(|length| after.split_at_checked(length))
            .ok_or_else(|| Fault::Corrupt(format!("block of {length} bytes in the {} left", after.len())))?;
        block(data, out)?;
        rest = after;
    }
    Ok(())
}

fn block(data: &[u8], out: &mut Output<'_>) -> Result<(), Fault> {
    let length = raw::decompress_len(data).map_err(Fault::corrupt)?;
    if length > out.left() {
        return Err(Fault::TooLarge);
    }
    if length > data.len().saturating_mul(EXPANSION_MAX) {
        return Err(Fault::Corrupt(format!(
            "{length} bytes claimed of a block of {}",
            data.len()
        )));
    }
    let room = out.exactly(length)?;
    let written = raw::Decoder::new()
        .decompress(data, room)
        .map_err(Fault::corrupt)?;
    out.advance(written);
    Ok(())
}

pub(in super::super) struct Encoder {
    encoder: Box<raw::Encoder>,
    block: Vec<u8>,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self {
            encoder: Box::new(raw::Encoder::new()),
            block: Vec::new(),
        }
    }

    /// Appends a framed stream with `plain` to `out`.
    pub(super) fn compress(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let Self { encoder, block } = self;
        block.resize(raw::max_compress_len(BLOCK_LEN), 0);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSIONS);
        for chunk in plain.chunks(BLOCK_LEN) {
            let written = encoder
                .compress(chunk, block)
                .map_err(|error| error.to_string())?;
            out.extend_from_slice(&(written as i32).to_be_bytes());
            out.extend_from_slice(block.get(..written).unwrap_or_default());
        }
        Ok(())
    }
}
