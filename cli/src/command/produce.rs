//! `produce`: lines from standard input, each as one record.
//!
//! A line that cannot be a record is counted and left out; the others go on. At the end, and at
//! the first Ctrl-C, what was taken is sent and waited for. Nothing is called delivered that was
//! not acknowledged, and nothing failed whose outcome is unknown.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use clap::ValueEnum;
use forebay_client::{
    Acks, Compression, FlushError, Producer, ProducerConfig, ProducerRecord, SendError, TopicProducer,
};
use forebay_runtime::tasks::shutdown_signal;
use serde::Serialize;
use tokio::io::AsyncRead;

use super::Usage;
use crate::connect::connect;
use crate::lines::{End, Lines, Piece};
use crate::output::{Format, FormatArgs, counted, grouped, mib_per_second, print};

/// Longest line that is held in memory; topics allow less.
const LINE_BYTES_MAX: usize = 32 << 20;

/// What to send, and how.
#[derive(Debug, clap::Args)]
pub struct ProduceArgs {
    /// Name of the topic
    pub topic: String,
    /// What comes before this text, where it is first found in a line, is the record's key
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub key_separator: Option<String>,
    /// How batches are compressed
    #[arg(long, value_enum, default_value_t = Codec::None)]
    pub compression: Codec,
    /// When a record counts as delivered
    #[arg(long, value_enum, default_value_t = Level::All)]
    pub acks: Level,
    /// Send everything to this partition
    #[arg(long, short = 'p', value_name = "P")]
    pub partition: Option<u32>,
    #[command(flatten)]
    pub format: FormatArgs,
}

/// How batches are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Codec {
    /// Not at all
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// When a record counts as delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Synced to disk on a quorum
    All,
    /// Synced to disk on the first replica
    #[value(alias = "1")]
    One,
    /// Sent; nothing is waited for
    #[value(alias = "0")]
    None,
}

impl Codec {
    /// As the client names it.
    pub const fn compression(self) -> Compression {
        match self {
            Self::None => Compression::None,
            Self::Gzip => Compression::Gzip,
            Self::Snappy => Compression::Snappy,
            Self::Lz4 => Compression::Lz4,
            Self::Zstd => Compression::Zstd,
        }
    }
}

impl Level {
    const fn acks(self) -> Acks {
        match self {
            Self::All => Acks::All,
            Self::One => Acks::One,
            Self::None => Acks::None,
        }
    }

    const fn meaning(self) -> &'static str {
        match self {
            Self::All => "acknowledged after fsync on a quorum",
            Self::One => "acknowledged after fsync on the first replica",
            Self::None => "sent, none acknowledged",
        }
    }
}

/// Sends until the input ends or Ctrl-C, then waits for what was sent.
pub async fn run(args: ProduceArgs, servers: &[String]) -> anyhow::Result<()> {
    let client = connect(servers).await?;
    let config = ProducerConfig {
        compression: args.compression.compression(),
        acks: args.acks.acks(),
        ..ProducerConfig::default()
    };
    let producer = client.producer(config).await?;
    let topic = producer.topic(&args.topic).await?;
    if let Some(partition) = args
        .partition
        .filter(|&partition| partition >= topic.partitions())
    {
        let (name, count) = (&args.topic, topic.partitions());
        return Err(Usage(format!(
            "topic {name:?} has {count} partitions from 0 on, no partition {partition}"
        ))
        .into());
    }
    if std::io::stdin().is_terminal() {
        eprintln!("each line is a record; Ctrl-D ends the input");
    }
    let started = Instant::now();
    let mut tally = Tally::default();
    let read = tokio::select! {
        read = feed(tokio::io::stdin(), &topic, &args, &mut tally) => read,
        signal = shutdown_signal() => {
            eprintln!("{}: sending what was read so far", signal?);
            Ok(())
        }
    };
    let flushed = flush(producer, tally.taken).await?;
    let report = Report {
        tally,
        flushed,
        acks: args.acks,
        elapsed: started.elapsed(),
    };
    // For people it is news beside the output, for programs it is the output.
    match args.format.format {
        Format::Table => eprintln!("{}", report.text()),
        Format::Json => print(&serde_json::to_string_pretty(&report.summary())?)?,
    }
    read?;
    report.outcome()
}

/// What became of the lines.
#[derive(Debug, Default)]
struct Tally {
    lines: u64,
    /// Records that the producer took, and their bytes.
    taken: u64,
    bytes: u64,
    /// Lines that are not records, by kind.
    refused: BTreeMap<&'static str, Refused>,
}

#[derive(Debug, PartialEq, Eq)]
struct Refused {
    count: u64,
    first: String,
}

impl Tally {
    fn refuse(&mut self, kind: &'static str, reason: &dyn std::fmt::Display) {
        let line = self.lines;
        let refused = self.refused.entry(kind);
        refused
            .or_insert_with(|| Refused {
                count: 0,
                first: format!("line {line}: {reason}"),
            })
            .count += 1;
    }
}

/// Makes records of lines until the input ends.
///
/// Cancel safety: when this is dropped before it is ready, the tally counts what was taken.
async fn feed<R: AsyncRead + Unpin>(
    input: R,
    topic: &TopicProducer,
    args: &ProduceArgs,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let mut lines = Lines::new(input, LINE_BYTES_MAX);
    // The rest of a line that was refused for its length.
    let mut skipping = false;
    while lines.fill().await.context("cannot read standard input")? {
        let mut pieces = lines.pieces();
        for piece in pieces.by_ref() {
            let is_rest = std::mem::replace(&mut skipping, piece.end == End::Cut);
            if is_rest {
                continue;
            }
            tally.lines += 1;
            let (key, value) = match parts(piece, args.key_separator.as_deref()) {
                Ok(parts) => parts,
                Err(refusal) => {
                    tally.refuse(refusal.kind(), &refusal);
                    continue;
                }
            };
            let record = ProducerRecord {
                partition: args.partition,
                key,
                value: Some(value),
                ..ProducerRecord::default()
            };
            match topic.enqueue(record).await {
                Ok(()) => {
                    tally.taken += 1;
                    tally.bytes += (key.map_or(0, <[u8]>::len) + value.len()) as u64;
                }
                // The service took nothing for as long as a record may wait: nor will it the next.
                Err(error @ (SendError::Closed | SendError::NoRoom { .. })) => {
                    return Err(anyhow!(
                        "line {} and those after it were not sent: {error}",
                        tally.lines
                    ));
                }
                Err(error) => tally.refuse(kind(&error), &error),
            }
        }
        let taken = pieces.taken();
        lines.consume(taken);
    }
    Ok(())
}

/// Why a line is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum LineError {
    #[error("longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    #[error("the key separator {0:?} is not in it")]
    NoSeparator(String),
}

impl LineError {
    const fn kind(&self) -> &'static str {
        match self {
            Self::TooLong => "line too long",
            Self::NoSeparator(_) => "no key",
        }
    }
}

/// The key and the value in a line.
fn parts<'a>(piece: Piece<'a>, separator: Option<&str>) -> Result<(Option<&'a [u8]>, &'a [u8]), LineError> {
    if piece.end == End::Cut {
        return Err(LineError::TooLong);
    }
    let Some(separator) = separator else {
        return Ok((None, piece.bytes));
    };
    let at = memchr::memmem::find(piece.bytes, separator.as_bytes());
    let split = at.and_then(|at| Some((piece.bytes.get(..at)?, piece.bytes.get(at + separator.len()..)?)));
    let (key, value) = split.ok_or_else(|| LineError::NoSeparator(separator.to_owned()))?;
    Ok((Some(key), value))
}

const fn kind(error: &SendError) -> &'static str {
    match error {
        SendError::Closed => "producer closed",
        SendError::Topic { .. } => "topic",
        SendError::UnknownPartition { .. } => "no such partition",
        SendError::RecordTooLarge { .. } => "record too large",
        SendError::NoRoom { .. } => "no room in memory",
        SendError::Build(_) => "not a record",
        SendError::TooManyTopics { .. } => "too many topics",
    }
}

/// Waits for what was taken; a second signal ends that.
async fn flush(producer: Producer, taken: u64) -> anyhow::Result<Result<(), FlushError>> {
    tokio::select! {
        flushed = producer.close() => Ok(flushed),
        signal = shutdown_signal() => Err(anyhow!(
            "{} while waiting for acknowledgements: of {} taken it is not known which were written",
            signal?,
            counted(taken, "record"),
        )),
    }
}

/// The same as `--format json` shows it. A field is never renamed: programs read them.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    /// Read.
    lines: u64,
    /// Records that were delivered at the level asked for.
    delivered: u64,
    /// Records certainly not written.
    failed: u64,
    /// Records that may have been written.
    unknown: u64,
    /// Lines that could not be records.
    refused: u64,
    /// Bytes of keys and values that were taken.
    bytes: u64,
    seconds: f64,
    first_error: Option<String>,
    first_refused: Option<&'a str>,
}

/// What is said at the end.
#[derive(Debug)]
struct Report {
    tally: Tally,
    flushed: Result<(), FlushError>,
    acks: Level,
    elapsed: Duration,
}

impl Report {
    /// Records certainly not written, and those that may have been, of the ones taken.
    fn lost(&self) -> (u64, u64) {
        self.flushed
            .as_ref()
            .err()
            .map_or((0, 0), |error| (error.failed, error.unknown))
    }

    fn summary(&self) -> Summary<'_> {
        let (failed, unknown) = self.lost();
        Summary {
            lines: self.tally.lines,
            delivered: self.tally.taken.saturating_sub(failed + unknown),
            failed,
            unknown,
            refused: self.tally.refused.values().map(|refused| refused.count).sum(),
            bytes: self.tally.bytes,
            seconds: self.elapsed.as_secs_f64(),
            first_error: self.flushed.as_ref().err().map(|error| error.first.to_string()),
            first_refused: self
                .tally
                .refused
                .values()
                .map(|refused| refused.first.as_str())
                .next(),
        }
    }

    fn text(&self) -> String {
        let (failed, unknown) = self.lost();
        let delivered = self.tally.taken.saturating_sub(failed + unknown);
        let seconds = self.elapsed.as_secs_f64();
        let mut text = format!(
            "{} {}; {} in {seconds:.2} s, {}",
            counted(delivered, "record"),
            self.acks.meaning(),
            counted(self.tally.bytes, "byte"),
            mib_per_second(self.tally.bytes, seconds),
        );
        for (kind, Refused { count, first }) in &self.tally.refused {
            text.push_str(&format!(
                "\n{} not sent, {kind}; the first: {first}",
                counted(*count, "line")
            ));
        }
        if let Err(error) = &self.flushed {
            if failed > 0 {
                text.push_str(&format!("\n{} not written", counted(failed, "record")));
            }
            if unknown > 0 {
                text.push_str(&format!(
                    "\n{} of unknown outcome: they may have been written",
                    counted(unknown, "record")
                ));
            }
            text.push_str(&format!("\nthe first error: {}", error.first));
        }
        text
    }

    fn outcome(&self) -> anyhow::Result<()> {
        let (failed, unknown) = self.lost();
        let refused: u64 = self.tally.refused.values().map(|refused| refused.count).sum();
        if failed + refused == 0 && unknown == 0 {
            return Ok(());
        }
        let lines = counted(self.tally.lines, "line");
        let (failed, unknown) = (grouped(failed + refused), grouped(unknown));
        Err(anyhow!(
            "of {lines} read, {failed} failed and {unknown} ended with an unknown outcome"
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use forebay_client::DeliveryError;

    use super::*;

    fn line(bytes: &[u8]) -> Piece<'_> {
        Piece {
            bytes,
            end: End::LineFeed,
        }
    }

    #[test]
    fn a_key_ends_at_the_first_separator() {
        assert_eq!(parts(line(b"a:b:c"), None), Ok((None, b"a:b:c".as_slice())));
        assert_eq!(
            parts(line(b"a:b:c"), Some(":")),
            Ok((Some(b"a".as_slice()), b"b:c".as_slice()))
        );
        assert_eq!(
            parts(line(b"\xff::"), Some("::")),
            Ok((Some(b"\xff".as_slice()), b"".as_slice()))
        );
        assert_eq!(
            parts(line(b"a"), Some(":")),
            Err(LineError::NoSeparator(":".to_owned()))
        );
        assert_eq!(
            parts(
                Piece {
                    bytes: b"a",
                    end: End::Cut
                },
                None
            ),
            Err(LineError::TooLong)
        );
        assert_eq!(
            parts(
                Piece {
                    bytes: b"a",
                    end: End::Input
                },
                None
            ),
            Ok((None, b"a".as_slice()))
        );
    }

    fn report(tally: Tally, flushed: Result<(), FlushError>) -> Report {
        Report {
            tally,
            flushed,
            acks: Level::All,
            elapsed: Duration::from_secs(2),
        }
    }

    #[test]
    fn all_delivered_is_a_success() {
        let report = report(
            Tally {
                lines: 1_000,
                taken: 1_000,
                bytes: 2 << 20,
                ..Tally::default()
            },
            Ok(()),
        );
        assert_eq!(
            report.text(),
            "1,000 records acknowledged after fsync on a quorum; 2,097,152 bytes in 2.00 s, 1.0 MiB/s"
        );
        report.outcome().unwrap();
    }

    #[test]
    fn each_kind_of_failure_is_counted_and_fails_the_command() {
        let mut tally = Tally {
            lines: 7,
            taken: 10,
            ..Tally::default()
        };
        tally.refuse("no key", &"not in it");
        tally.lines = 9;
        tally.refuse("no key", &"not in it either");
        let first = DeliveryError::Dropped {
            topic: "t".into(),
            partition: 3,
        };
        let report = report(
            tally,
            Err(FlushError {
                failed: 2,
                unknown: 1,
                first,
            }),
        );
        let text = report.text();
        for words in [
            "7 records acknowledged",
            "2 lines not sent, no key; the first: line 7: not in it",
            "2 records not written",
            "1 record of unknown outcome: they may have been written",
            "the first error: producer dropped before a batch for t/3",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert_eq!(
            report.outcome().unwrap_err().to_string(),
            "of 9 lines read, 4 failed and 1 ended with an unknown outcome"
        );
        let json = serde_json::to_value(report.summary()).unwrap();
        assert_eq!(
            [
                &json["lines"],
                &json["delivered"],
                &json["failed"],
                &json["unknown"],
                &json["refused"]
            ],
            [9, 7, 2, 1, 2]
        );
        assert_eq!(json["first_refused"], "line 7: not in it");
    }

    #[test]
    fn an_unknown_outcome_alone_fails_the_command() {
        let first = DeliveryError::Dropped {
            topic: "t".into(),
            partition: 0,
        };
        let report = report(
            Tally::default(),
            Err(FlushError {
                failed: 0,
                unknown: 1,
                first,
            }),
        );
        assert!(report.outcome().is_err());
    }
}
