//! The command line of `ingest`, and what cannot be carried out of it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::ValueEnum;
use forebay_runtime::config::{ByteSize, HumanDuration};

use super::cut::{FileName, LongLines, Mode};
use crate::command::Usage;
use crate::command::produce::Codec;
use crate::output::FormatArgs;

/// Smallest and largest full batch.
const BATCH_BYTES: (u64, u64) = (1 << 10, 8 << 20);
/// Most that may be unacknowledged.
const IN_FLIGHT_BYTES_MAX: u64 = 1 << 30;

/// Which partitions an input goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Spread {
    /// Each file to one partition, by the hash of its path: its order is kept
    File,
    /// The batches of each file to all partitions in turn: order is kept within a batch only
    Batch,
}

/// What to do with lines that are not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Utf8 {
    /// Bytes are bytes
    Keep,
    /// The command ends with an error that names the place
    Fail,
}

/// What to send, where to, and how.
#[derive(Debug, clap::Args)]
pub struct IngestArgs {
    /// Files, patterns such as '/var/log/app/*.log', or - for standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<OsString>,
    /// Topic to write to
    #[arg(long, short = 't', value_name = "TOPIC")]
    pub topic: String,

    /// What becomes a record
    #[arg(long, value_enum, default_value_t = Mode::Lines, help_heading = "Records")]
    pub mode: Mode,
    /// Size of the blocks
    #[arg(long, default_value = "64KiB", value_name = "SIZE", help_heading = "Records")]
    pub block_bytes: ByteSize,
    /// Leave out a carriage return before a line feed
    #[arg(long, help_heading = "Records")]
    pub strip_cr: bool,
    /// What happens to a line that fits no batch
    #[arg(long, value_enum, default_value_t = LongLines::Fail, help_heading = "Records")]
    pub long_lines: LongLines,
    /// What happens to a line that is not UTF-8
    #[arg(long, value_enum, default_value_t = Utf8::Keep, help_heading = "Records")]
    pub utf8: Utf8,
    /// Where the path of the file goes
    #[arg(long, value_enum, default_value_t = FileName::None, help_heading = "Records")]
    pub file_name: FileName,

    /// Which partitions an input goes to
    #[arg(long, value_enum, default_value_t = Spread::File, help_heading = "Sending")]
    pub spread: Spread,
    /// Send everything to this partition
    #[arg(
        long,
        short = 'p',
        value_name = "P",
        conflicts_with = "spread",
        help_heading = "Sending"
    )]
    pub partition: Option<u32>,
    /// How batches are compressed
    #[arg(long, value_enum, default_value_t = Codec::None, help_heading = "Sending")]
    pub codec: Codec,
    /// Size of a full batch, before compression
    #[arg(long, default_value = "1MiB", value_name = "SIZE", help_heading = "Sending")]
    pub batch_bytes: ByteSize,
    /// How long lines of a stream or a followed file wait for a batch to fill
    #[arg(long, default_value = "100ms", value_name = "TIME", help_heading = "Sending")]
    pub linger: HumanDuration,
    /// Reading waits while this much is not acknowledged
    #[arg(long, default_value = "16MiB", value_name = "SIZE", help_heading = "Sending")]
    pub in_flight_bytes: ByteSize,

    /// Wait for more at the end, through renaming, truncating and new files, until stopped
    #[arg(long, short = 'f', help_heading = "Following")]
    pub follow: bool,
    /// How long a renamed or removed file must be quiet before it is left
    #[arg(long, default_value = "5s", value_name = "TIME", help_heading = "Following")]
    pub rotate_wait: HumanDuration,
    /// Keep in this file what is acknowledged, and go on from there
    #[arg(long, value_name = "PATH", help_heading = "Following")]
    pub checkpoint: Option<PathBuf>,
    /// Go on from the checkpoint with new numbers, where the service has forgotten those of the last run. What that
    /// run had sent and not seen acknowledged when it was killed may be written twice
    #[arg(long, requires = "checkpoint")]
    pub renumber: bool,
    /// How often the checkpoint is written at least, while something is acknowledged
    #[arg(long, default_value = "1s", value_name = "TIME", help_heading = "Following")]
    pub checkpoint_interval: HumanDuration,

    /// How often a line tells the progress, where standard error is no terminal
    #[arg(long, default_value = "10s", value_name = "TIME", help_heading = "Reporting")]
    pub progress_interval: HumanDuration,
    /// Serve metrics there, under /metrics
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "Reporting")]
    pub metrics_listen: Option<SocketAddr>,
    #[command(flatten)]
    pub format: FormatArgs,
}

impl IngestArgs {
    /// Refuses what cannot be carried out together.
    pub fn check(&self, stdin: bool) -> Result<(), Usage> {
        let refuse = |text: String| Err(Usage(text));
        let batch = self.batch_bytes.as_u64();
        let (least, most) = BATCH_BYTES;
        if batch < least || batch > most {
            return refuse(format!(
                "--batch-bytes {} is not between {} and {}",
                self.batch_bytes,
                ByteSize::bytes(least),
                ByteSize::bytes(most)
            ));
        }
        let in_flight = self.in_flight_bytes.as_u64();
        if in_flight < 2 * batch || in_flight > IN_FLIGHT_BYTES_MAX {
            return refuse(format!(
                "--in-flight-bytes {} is not between two batches of {} and {}",
                self.in_flight_bytes,
                self.batch_bytes,
                ByteSize::bytes(IN_FLIGHT_BYTES_MAX)
            ));
        }
        if self.block_bytes.as_u64() == 0 {
            return refuse("--block-bytes 0: blocks of nothing never end".to_owned());
        }
        if stdin && self.follow {
            return refuse(
                "standard input (-) is read until it ends by itself: it cannot be followed".to_owned(),
            );
        }
        if stdin && self.checkpoint.is_some() {
            return refuse(
                "standard input (-) cannot be read again from where it was: a checkpoint needs files"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: IngestArgs,
    }

    fn check(line: &str, stdin: bool) -> String {
        let words = ["ingest"].into_iter().chain(line.split(' '));
        let args = Line::try_parse_from(words).unwrap().args;
        args.check(stdin).map_or_else(|usage| usage.0, |()| String::new())
    }

    #[test]
    fn what_does_not_go_together_is_refused_by_name() {
        for (line, stdin, wanted) in [
            ("f -t t", false, ""),
            ("- -t t", true, ""),
            (
                "f -t t --batch-bytes 9MiB",
                false,
                "--batch-bytes 9MiB is not between 1KiB and 8MiB",
            ),
            ("f -t t --in-flight-bytes 1MiB", false, "--in-flight-bytes 1MiB"),
            ("f -t t --block-bytes 0", false, "--block-bytes 0"),
            ("- -t t --follow", true, "cannot be followed"),
            ("- -t t --checkpoint c", true, "a checkpoint needs files"),
        ] {
            let found = check(line, stdin);
            assert!(
                found.contains(wanted) && found.is_empty() == wanted.is_empty(),
                "{line}: {found}"
            );
        }
    }
}
