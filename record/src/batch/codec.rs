//! The four compressions, each bounded in what it writes and in what its input makes it allocate.
//!
//! Decompression goes into a caller's [`Scratch`]: one output buffer and the decoders' state, both
//! kept from batch to batch. No decoder has a window of its own beside that output, so the limit
//! on the output is the limit on memory. One stream holds all records; bytes after its end are
//! refused, because clients disagree on whether to read them.
//!
//! Compression is for producers and takes the default level of each codec.

mod gzip;
mod lz4;
mod output;
mod snappy;
mod zstd;

use std::fmt;

use super::error::BatchError;
use output::{Fault, Output};

/// How the records of a batch are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Codec {
    /// Not at all.
    #[default]
    None,
    /// One gzip member.
    Gzip,
    /// Snappy blocks in the framing of snappy-java; one bare block is read too.
    Snappy,
    /// One LZ4 frame.
    Lz4,
    /// Zstandard frames.
    Zstd,
}

impl Codec {
    /// All codecs.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The number in the attributes of a batch.
    #[must_use]
    pub const fn id(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    /// The codec with this number.
    #[must_use]
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            0 => Some(Self::None),
            1 => Some(Self::Gzip),
            2 => Some(Self::Snappy),
            3 => Some(Self::Lz4),
            4 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The name that Kafka's configuration uses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Memory for decompressing batches one after the other.
///
/// Holds on to the largest output it has seen, at most the largest limit it was used with, and to
/// the state of each decoder that was needed (32 KiB for gzip, about 160 KiB for zstd). A new one
/// holds nothing.
#[derive(Default)]
pub struct Scratch {
    output: Vec<u8>,
    gzip: Option<gzip::Decoder>,
    zstd: Option<zstd::Decoder>,
}

impl Scratch {
    /// Holds nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            output: Vec::new(),
            gzip: None,
            zstd: None,
        }
    }

    /// Decompresses `stored` to at most `max` bytes.
    pub(super) fn decompress<'a>(
        &'a mut self,
        codec: Codec,
        stored: &'a [u8],
        max: usize,
    ) -> Result<&'a [u8], BatchError> {
        let mut output = Output::new(&mut self.output, max);
        let outcome = match codec {
            Codec::None => return Ok(stored),
            Codec::Gzip => self
                .gzip
                .get_or_insert_with(gzip::Decoder::new)
                .decompress(stored, &mut output),
            Codec::Snappy => snappy::decompress(stored, &mut output),
            Codec::Lz4 => lz4::decompress(stored, &mut output),
            Codec::Zstd => self
                .zstd
                .get_or_insert_with(zstd::Decoder::new)
                .decompress(stored, &mut output),
        };
        match outcome {
            Ok(()) => Ok(output.into_written()),
            Err(Fault::TooLarge) => Err(BatchError::DecompressedTooLarge { codec, max }),
            Err(Fault::Corrupt(reason)) => Err(BatchError::Corrupt { codec, reason }),
        }
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scratch")
            .field("output_bytes", &self.output.len())
            .finish_non_exhaustive()
    }
}

/// State for compressing batches one after the other with one codec.
pub(super) enum Compressor {
    None,
    Gzip,
    Snappy(snappy::Encoder),
    Lz4,
    Zstd(zstd::Encoder),
}

impl Compressor {
    pub(super) fn new(codec: Codec) -> Result<Self, String> {
        Ok(match codec {
            Codec::None => Self::None,
            Codec::Gzip => Self::Gzip,
            Codec::Snappy => Self::Snappy(snappy::Encoder::new()),
            Codec::Lz4 => Self::Lz4,
            Codec::Zstd => Self::Zstd(zstd::Encoder::new()?),
        })
    }

    /// Appends the compressed form of `plain` to `out`.
    pub(super) fn compress(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        match self {
            Self::None => {
                out.extend_from_slice(plain);
                Ok(())
            }
            Self::Gzip => gzip::compress(plain, out),
            Self::Snappy(encoder) => encoder.compress(plain, out),
            Self::Lz4 => lz4::compress(plain, out),
            Self::Zstd(encoder) => encoder.compress(plain, out),
        }
    }
}
