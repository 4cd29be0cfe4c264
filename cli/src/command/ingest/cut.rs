//! How an input is cut into records, and records into batches: a function of the bytes alone.
//!
//! A run that goes on after a kill must send what may have been written already in the same
//! batches, or the service cannot tell repetitions from new records. So nothing here depends on
//! time or on how bytes arrive; places where a batch ended early are handed in as ends of the
//! input. The rules are part of the checkpoint's format: whoever changes them raises [`RULES`].

use std::fmt;

use clap::ValueEnum;
use forebay_record::batch::HEADER_LEN;
use serde::{Deserialize, Serialize};

/// Number of the rules in this file.
const RULES: u32 = 1;
/// Most that a record takes beside its bytes: lengths, deltas, attributes, counts.
const RECORD_OVERHEAD: usize = 40;

/// What becomes a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Each line, without its line feed
    #[default]
    Lines,
    /// Each block of bytes; put together they are the file
    Blocks,
}

/// What happens to a line that fits no batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LongLines {
    /// The command ends with an error that names it
    #[default]
    Fail,
    /// It is left out and counted
    Skip,
    /// It becomes several records
    Split,
}

/// Where the path of a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileName {
    /// Nowhere
    #[default]
    None,
    /// Into each record's key
    Key,
    /// Into each record's header "file"
    Header,
}

/// Everything that decides where records and batches end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cutting {
    /// [`RULES`] of the program that cut.
    rules: u32,
    /// What becomes a record.
    pub mode: Mode,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Whether a carriage return before a line feed is left out.
    pub strip_cr: bool,
    /// What happens to a line that fits no batch.
    pub long_lines: LongLines,
    /// Where the path goes.
    pub file_name: FileName,
    /// Bytes of a full batch, before compression.
    pub batch_bytes: usize,
    /// Bytes of the largest batch, which one record alone may need.
    pub batch_bytes_max: usize,
}

/// The next step through an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next<'a> {
    /// A record.
    Record {
        /// Its value.
        value: &'a [u8],
        /// Bytes of input that it stands for.
        taken: usize,
        /// Whether a line ends with it.
        ends_line: bool,
    },
    /// Bytes of a line that is left out.
    Skip {
        /// Bytes of input.
        taken: usize,
        /// Whether the line ends there.
        ends_line: bool,
    },
    /// Nothing, before there are more bytes.
    More,
    /// A line is longer than this.
    TooLong {
        /// Largest value.
        max: usize,
    },
}

impl Cutting {
    /// How to cut under these choices; the others are the least surprising ones.
    pub fn new(mode: Mode, block_bytes: usize, batch_bytes: usize, batch_bytes_max: usize) -> Self {
        Self {
            rules: RULES,
            mode,
            block_bytes,
            strip_cr: false,
            long_lines: LongLines::default(),
            file_name: FileName::default(),
            batch_bytes: batch_bytes.min(batch_bytes_max),
            batch_bytes_max,
        }
    }

    /// Largest value that fits a batch beside a path of that many bytes.
    pub fn value_bytes_max(&self, tag_bytes: usize) -> usize {
        self.batch_bytes_max
            .saturating_sub(HEADER_LEN + self.overhead(tag_bytes))
    }

    fn overhead(&self, tag_bytes: usize) -> usize {
        match self.file_name {
            FileName::None => RECORD_OVERHEAD,
            FileName::Key | FileName::Header => RECORD_OVERHEAD + tag_bytes,
        }
    }

    /// Bytes that a batch must have room for, to begin with this value.
    pub fn room_for(&self, value_bytes: usize, tag_bytes: usize) -> usize {
        let least = HEADER_LEN + value_bytes + self.overhead(tag_bytes);
        self.batch_bytes.max(least)
    }

    /// Whether a value still belongs to a batch that has records and so many bytes.
    pub fn fits(&self, batch_bytes: usize, value_bytes: usize, tag_bytes: usize) -> bool {
        batch_bytes + value_bytes + self.overhead(tag_bytes) <= self.batch_bytes
    }

    /// The next step through `rest`; `ended` where the input ends after it, `skipping` inside a
    /// line that is left out, `value_max` being the largest value.
    #[inline]
    pub fn next<'a>(&self, rest: &'a [u8], ended: bool, skipping: bool, value_max: usize) -> Next<'a> {
        match self.mode {
            Mode::Lines => self.next_line(rest, ended, skipping, value_max),
            Mode::Blocks => self.next_block(rest, ended),
        }
    }

    fn next_block<'a>(&self, rest: &'a [u8], ended: bool) -> Next<'a> {
        let value = match rest.get(..self.block_bytes) {
            Some(block) => block,
            None if ended && !rest.is_empty() => rest,
            None => return Next::More,
        };
        Next::Record {
            value,
            taken: value.len(),
            ends_line: false,
        }
    }

    #[inline]
    fn next_line<'a>(&self, rest: &'a [u8], ended: bool, skipping: bool, value_max: usize) -> Next<'a> {
        if skipping {
            return skip(rest);
        }
        // With its carriage return a line of the largest size is one longer.
        let longest = value_max + usize::from(self.strip_cr);
        let window = rest.get(..=longest).unwrap_or(rest);
        let (line, taken, ends_line) = match memchr::memchr(b'\n', window) {
            Some(at) => (window.get(..at).unwrap_or_default(), at + 1, true),
            None if rest.len() > longest => return self.on_long_line(rest, value_max),
            None if ended && !rest.is_empty() => (rest, rest.len(), false),
            None => return Next::More,
        };
        let value = match line.strip_suffix(b"\r") {
            Some(stripped) if self.strip_cr && ends_line => stripped,
            _ => line,
        };
        if value.len() > value_max {
            return self.on_long_line(rest, value_max);
        }
        Next::Record {
            value,
            taken,
            ends_line,
        }
    }

    fn on_long_line<'a>(&self, rest: &'a [u8], value_max: usize) -> Next<'a> {
        match self.long_lines {
            LongLines::Fail => Next::TooLong { max: value_max },
            LongLines::Skip => skip(rest),
            LongLines::Split => Next::Record {
                value: rest.get(..value_max).unwrap_or(rest),
                taken: value_max.min(rest.len()),
                ends_line: false,
            },
        }
    }

    /// What another cutting does otherwise, in words; empty where they are the same.
    pub fn differences(&self, other: &Self) -> String {
        let mut found = Vec::new();
        let mut compare = |name: &str, ours: &dyn fmt::Debug, theirs: &dyn fmt::Debug| {
            let (ours, theirs) = (format!("{ours:?}"), format!("{theirs:?}"));
            if ours != theirs {
                found.push(format!(
                    "{name} was {} and is {}",
                    ours.to_lowercase(),
                    theirs.to_lowercase()
                ));
            }
        };
        compare("the version of the rules", &self.rules, &other.rules);
        compare("--mode", &self.mode, &other.mode);
        compare("--block-bytes", &self.block_bytes, &other.block_bytes);
        compare("--strip-cr", &self.strip_cr, &other.strip_cr);
        compare("--long-lines", &self.long_lines, &other.long_lines);
        compare("--file-name", &self.file_name, &other.file_name);
        compare("--batch-bytes", &self.batch_bytes, &other.batch_bytes);
        compare("the largest batch", &self.batch_bytes_max, &other.batch_bytes_max);
        found.join(", ")
    }
}

fn skip<'a>(rest: &[u8]) -> Next<'a> {
    match memchr::memchr(b'\n', rest) {
        Some(at) => Next::Skip {
            taken: at + 1,
            ends_line: true,
        },
        None if rest.is_empty() => Next::More,
        None => Next::Skip {
            taken: rest.len(),
            ends_line: false,
        },
    }
}

#[cfg(test)]
#[path = "cut_tests.rs"]
mod tests;
