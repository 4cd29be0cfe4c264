//! The file's lines on their way in.

use std::iter;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use forebay_client::{Client, ProducerConfig, SendError, TopicProducer};
use forebay_record::Crc32c;

use super::turns::{self, PIECE_BYTES_MAX, Turns};
use super::{File, TOPIC, Transfer, bar};
use crate::lines::{Lines, Pieces};

/// Sends the file. Each record of the answer was acknowledged after fsync.
pub async fn run(client: &Client, file: &File) -> anyhow::Result<Transfer> {
    // A file does not trickle: batches may wait until they are full.
    let config = ProducerConfig {
        linger: Duration::from_millis(50),
        ..ProducerConfig::default()
    };
    let producer = client.producer(config).await?;
    let topic = producer.topic(TOPIC).await?;
    let bar = bar("ingest", file.bytes);
    let started = Instant::now();
    let mut lines = Lines::new(file.read().await?, PIECE_BYTES_MAX);
    let mut turns = Turns::new(topic.partitions());
    let mut digest = Crc32c::new();
    let (mut records, mut bytes) = (0, 0);
    while lines
        .fill()
        .await
        .with_context(|| format!("cannot read {}", file.path.display()))?
    {
        let mut pieces = lines.pieces();
        records += send(&topic, &mut pieces, &mut turns).await?;
        let taken = pieces.taken();
        digest.update(lines.unconsumed().get(..taken).unwrap_or_default());
        lines.consume(taken);
        bytes += taken as u64;
        bar.set_position(bytes);
    }
    producer.close().await?;
    let seconds = started.elapsed().as_secs_f64();
    bar.finish_and_clear();
    Ok(Transfer {
        records,
        bytes,
        crc32c: digest.finish(),
        seconds,
    })
}

/// Deals the pieces to the partitions; says how many there were.
async fn send(topic: &TopicProducer, pieces: &mut Pieces<'_>, turns: &mut Turns) -> Result<u64, SendError> {
    let mut sent = 0;
    loop {
        let partition = turns.partition();
        let run = iter::from_fn(|| {
            if turns.partition() != partition {
                return None;
            }
            let piece = pieces.next()?;
            turns.deal(piece.input_bytes());
            Some(turns::record(piece))
        });
        match topic.enqueue_all(partition, run).await? {
            0 => return Ok(sent),
            records => sent += records,
        }
    }
}
