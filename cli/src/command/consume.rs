//! `consume`: the values of a topic's records to standard output, one a line, byte for byte; or the
//! records as JSON, one a line.
//!
//! What has arrived is written as soon as nothing more is ready, so that a reader at the end of a
//! topic sees each record at once and one far behind does not pay a write for each.

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::{ValueEnum, value_parser};
use forebay_client::{
    Client, ConsumeError, ConsumedBatch, Consumer, ConsumerConfig, ConsumerRecord, ErrorCode, Offset,
    StartPosition, UntilEnd,
};
use futures_util::FutureExt as _;
use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::command::Usage;
use crate::connect::connect;
use crate::output::write_error;
use crate::position::parse_position;

/// Written at the latest when this much is gathered.
const WRITE_BYTES: usize = 256 << 10;

/// What to read.
#[derive(Debug, clap::Args)]
pub struct ConsumeArgs {
    /// Name of the topic
    pub topic: String,
    /// Where to begin: earliest, latest, an offset, a time such as 2026-11-20T09:30:00Z, or
    /// milliseconds since 1970 such as 1795167000000ms
    #[arg(long, default_value = "earliest", value_parser = parse_position, value_name = "POSITION")]
    pub from: StartPosition,
    /// Read this partition only
    #[arg(long, short = 'p', value_name = "P")]
    pub partition: Option<u32>,
    /// Stop where the topic ends now, instead of waiting for more
    #[arg(long)]
    pub until_end: bool,
    /// Stop after this many records
    #[arg(long, short = 'n', value_parser = value_parser!(u64).range(1..), value_name = "N")]
    pub max: Option<u64>,
    /// How a record is printed
    #[arg(long, value_enum, default_value_t = Form::Values)]
    pub format: Form,
}

/// How a record is printed, in one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Its value, byte for byte
    #[value(alias = "table")]
    Values,
    /// A JSON object with partition, offset, time, key, value and headers
    Json,
}

/// A record as `--format json` shows it. A field is never renamed: programs read them.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    topic: &'a str,
    partition: u32,
    offset: u64,
    timestamp_ms: i64,
    key: Option<Text<'a>>,
    value: Option<Text<'a>>,
    headers: Vec<ShownHeader<'a>>,
}

#[derive(Debug, Serialize)]
struct ShownHeader<'a> {
    name: Text<'a>,
    value: Option<Text<'a>>,
}

/// Bytes in JSON: a string where they are UTF-8, else an object with their base64.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Text<'a> {
    Utf8(&'a str),
    Binary { base64: String },
}

impl<'a> From<&'a [u8]> for Text<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Utf8(text),
            Err(_binary) => Self::Binary {
                base64: BASE64_STANDARD.encode(bytes),
            },
        }
    }
}

impl<'a> From<&'a ConsumerRecord> for Shown<'a> {
    fn from(record: &'a ConsumerRecord) -> Self {
        let header = |(name, value): (&'a [u8], Option<&'a [u8]>)| ShownHeader {
            name: name.into(),
            value: value.map(Text::from),
        };
        Self {
            topic: &record.topic,
            partition: record.partition,
            offset: record.offset.0,
            timestamp_ms: record.timestamp_ms,
            key: record.key.as_deref().map(Text::from),
            value: record.value.as_deref().map(Text::from),
            headers: record.headers.borrowed().iter().map(header).collect(),
        }
    }
}

/// Reads until the end that was asked for, or for ever.
pub async fn run(args: ConsumeArgs, servers: &[String]) -> anyhow::Result<()> {
    let client = connect(servers).await?;
    let partitions = partitions(&client, &args).await?;
    if let StartPosition::At(offset) = args.from {
        within_bounds(&client, &args.topic, partitions.start, offset).await?;
    }
    let mut consumer = client.consumer(ConsumerConfig::default())?;
    for partition in partitions {
        consumer.assign(&args.topic, partition, args.from).await?;
    }
    let mut values = Values::new(tokio::io::stdout(), args.max, args.format);
    let source = match args.until_end {
        true => Source::UntilEnd(consumer.until_end().await?),
        false => Source::Following(&mut consumer),
    };
    let copied = copy(source, &mut values).await;
    // What came before a failure is the reader's all the same.
    values.write().await?;
    copied
}

/// The partitions to read, all of which exist.
async fn partitions(client: &Client, args: &ConsumeArgs) -> anyhow::Result<std::ops::Range<u32>> {
    let topic = &args.topic;
    let metadata = client
        .admin()
        .metadata(&[topic])
        .await
        .with_context(|| format!("cannot look up topic {topic:?}"))?;
    let found = metadata.topics.into_iter().find(|found| found.name == *topic);
    let found = found.with_context(|| format!("topic {topic:?} does not exist"))?;
    if let Some(error) = found.error {
        if error.code() == ErrorCode::UnknownTopic {
            anyhow::bail!("topic {topic:?} does not exist");
        }
        anyhow::bail!("cannot look up topic {topic:?}: {}", error.message);
    }
    Ok(chosen(topic, found.partitions, args.partition, args.from)?)
}

/// Refuses an offset that does not exist. Left to itself, reading up to the end would take one
/// beyond it for one at the end.
async fn within_bounds(client: &Client, topic: &str, partition: u32, offset: Offset) -> anyhow::Result<()> {
    let bounds =
        [StartPosition::Earliest, StartPosition::Latest].map(|end| (topic.to_owned(), partition, end));
    let found = client.admin().list_offsets(bounds.to_vec()).await?;
    let [start, end] = [0, 1].map(|at| found.get(at).and_then(|bound| bound.offset).unwrap_or_default());
    anyhow::ensure!(
        start <= offset && offset <= end,
        "offset {} of {topic}/{partition} is out of range: {} to {} are there",
        offset.0,
        start.0,
        end.0
    );
    Ok(())
}

fn chosen(
    topic: &str,
    count: u32,
    partition: Option<u32>,
    from: StartPosition,
) -> Result<std::ops::Range<u32>, Usage> {
    match partition {
        Some(partition) if partition >= count => Err(Usage(format!(
            "topic {topic:?} has {count} partitions from 0 on, no partition {partition}"
        ))),
        Some(partition) => Ok(partition..partition + 1),
        None if count > 1 && matches!(from, StartPosition::At(_)) => Err(Usage(format!(
            "an offset is a place in one partition: topic {topic:?} has {count}, add --partition"
        ))),
        None => Ok(0..count),
    }
}

enum Source<'a> {
    Following(&'a mut Consumer),
    UntilEnd(UntilEnd<'a>),
}

impl Source<'_> {
    /// Cancel safety: when this is dropped before it is ready, nothing is lost.
    async fn next(&mut self) -> Result<Option<ConsumedBatch>, ConsumeError> {
        match self {
            Self::Following(consumer) => consumer.next_batch().await.map(Some),
            Self::UntilEnd(until_end) => until_end.next_batch().await,
        }
    }
}

async fn copy<W: AsyncWrite + Unpin>(mut source: Source<'_>, values: &mut Values<W>) -> anyhow::Result<()> {
    loop {
        let ready = source.next().now_or_never();
        let next = match ready {
            Some(next) => next?,
            None => {
                values.write().await?;
                source.next().await?
            }
        };
        let Some(batch) = next else { return Ok(()) };
        for record in batch {
            if !values.push(&record?).await? {
                return Ok(());
            }
        }
    }
}

/// Records on their way out.
struct Values<W> {
    out: W,
    form: Form,
    gathered: Vec<u8>,
    left: Option<u64>,
}

impl<W: AsyncWrite + Unpin> Values<W> {
    const fn new(out: W, max: Option<u64>, form: Form) -> Self {
        Self {
            out,
            form,
            gathered: Vec::new(),
            left: max,
        }
    }

    /// Takes a record; false when it was the last one wanted. One without a value is an empty line,
    /// or has `null` in JSON.
    async fn push(&mut self, record: &ConsumerRecord) -> anyhow::Result<bool> {
        match self.form {
            Form::Values => {
                let value = record.value.as_deref().unwrap_or_default();
                self.gathered.extend_from_slice(value);
            }
            Form::Json => serde_json::to_writer(&mut self.gathered, &Shown::from(record))?,
        }
        self.gathered.push(b'\n');
        if self.gathered.len() >= WRITE_BYTES {
            self.write().await?;
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
        }
        Ok(self.left != Some(0))
    }

    /// Writes what is gathered.
    async fn write(&mut self) -> anyhow::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let written = self.out.write_all(&self.gathered).await;
        self.gathered.clear();
        match written {
            Ok(()) => self.out.flush().await.map_err(write_error),
            Err(error) => Err(write_error(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use forebay_client::OwnedHeaders;

    use super::*;
    use crate::output::ReaderGone;

    fn record(value: &[u8]) -> ConsumerRecord {
        ConsumerRecord {
            topic: "t".into(),
            partition: 3,
            offset: Offset(7),
            timestamp_ms: 9,
            key: None,
            value: Some(value.to_vec().into()),
            trace: None,
            headers: OwnedHeaders::default(),
        }
    }

    #[tokio::test]
    async fn a_record_in_json_is_one_line_whatever_is_in_it() {
        let mut values = Values::new(Vec::new(), None, Form::Json);
        let keyed = ConsumerRecord {
            key: Some(b"\xff\x00".to_vec().into()),
            ..record(b"a\n\"b\"")
        };
        let empty = ConsumerRecord {
            value: None,
            ..record(b"")
        };
        assert!(values.push(&keyed).await.unwrap() && values.push(&empty).await.unwrap());
        values.write().await.unwrap();
        let text = String::from_utf8(values.out).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(
            lines,
            [
                serde_json::json!({
                    "topic": "t", "partition": 3, "offset": 7, "timestamp_ms": 9,
                    "key": {"base64": "/wA="}, "value": "a\n\"b\"", "headers": []
                }),
                serde_json::json!({
                    "topic": "t", "partition": 3, "offset": 7, "timestamp_ms": 9,
                    "key": null, "value": null, "headers": []
                }),
            ]
        );
    }

    #[tokio::test]
    async fn values_are_lines_of_the_same_bytes() {
        let mut values = Values::new(Vec::new(), None, Form::Values);
        for value in [b"a\r".as_slice(), b"", b"\xff\n"] {
            assert!(values.push(&record(value)).await.unwrap());
        }
        assert!(values.out.is_empty());
        values.write().await.unwrap();
        assert_eq!(values.out, b"a\r\n\n\xff\n\n");
    }

    #[tokio::test]
    async fn no_more_than_the_wanted_number_is_taken() {
        let mut values = Values::new(Vec::new(), Some(2), Form::Values);
        assert!(values.push(&record(b"1")).await.unwrap());
        assert!(!values.push(&record(b"2")).await.unwrap());
    }

    #[tokio::test]
    async fn much_is_written_without_being_told_to() {
        let mut values = Values::new(Vec::new(), None, Form::Values);
        values.push(&record(&vec![b'x'; WRITE_BYTES])).await.unwrap();
        assert_eq!(values.out.len(), WRITE_BYTES + 1);
    }

    #[tokio::test]
    async fn a_reader_that_left_is_told_from_a_failure() {
        let (out, reader) = tokio::io::duplex(64);
        drop(reader);
        let mut values = Values::new(out, None, Form::Values);
        values.push(&record(b"x")).await.unwrap();
        assert!(values.write().await.unwrap_err().is::<ReaderGone>());
        // The end of the command writes what is left: nothing is.
        values.write().await.unwrap();
    }

    #[test]
    fn an_offset_needs_its_partition() {
        let at = StartPosition::At(Offset(3));
        assert_eq!(chosen("t", 4, None, StartPosition::Earliest).unwrap(), 0..4);
        assert_eq!(chosen("t", 4, Some(3), at).unwrap(), 3..4);
        assert_eq!(chosen("t", 1, None, at).unwrap(), 0..1);
        assert!(chosen("t", 4, None, at).unwrap_err().0.contains("--partition"));
        assert!(
            chosen("t", 4, Some(4), at)
                .unwrap_err()
                .0
                .contains("no partition 4")
        );
    }
}
