//! The records on their way back: put together in the order they were dealt, and compared.

use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use forebay_client::{Client, ConsumedRecords, ConsumerConfig, ConsumerRecord, StartPosition, UntilEnd};
use forebay_record::Crc32c;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::turns::{self, Turns};
use super::{File, PARTITIONS, TOPIC, Transfer, bar};

/// Compared at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// Reads everything back and compares it with the file, and with what was sent.
pub async fn run(client: &Client, file: &File, sent: &Transfer) -> anyhow::Result<Transfer> {
    let bar = bar("read back", file.bytes);
    let started = Instant::now();
    let mut consumers = Vec::new();
    for partition in 0..PARTITIONS {
        let mut consumer = client.consumer(ConsumerConfig::default())?;
        consumer.assign(TOPIC, partition, StartPosition::Earliest).await?;
        consumers.push(consumer);
    }
    let mut readers = Vec::new();
    for consumer in &mut consumers {
        readers.push(Reader {
            batches: consumer.until_end().await?,
            records: None,
        });
    }
    let mut turns = Turns::new(PARTITIONS);
    let mut comparison = Comparison::new(file.read().await?);
    let mut restored = Vec::with_capacity(BLOCK_BYTES + turns::PIECE_BYTES_MAX);
    let mut records = 0;
    while let Some(reader) = readers.get_mut(turns.partition() as usize)
        && let Some(record) = reader.next().await?
    {
        turns.deal(turns::restore(&record, &mut restored));
        records += 1;
        if restored.len() >= BLOCK_BYTES {
            comparison.take(&restored).await?;
            restored.clear();
            bar.set_position(comparison.bytes);
        }
    }
    comparison.take(&restored).await?;
    let (bytes, crc32c) = comparison.finish().await?;
    for (partition, reader) in readers.iter_mut().enumerate() {
        if let Some(record) = reader.next().await? {
            bail!(
                "partition {partition} has a record too many, at offset {}",
                record.offset.0
            );
        }
    }
    ensure!(
        records == sent.records,
        "{} records were sent and {records} read back",
        sent.records
    );
    ensure!(
        (bytes, crc32c) == (sent.bytes, sent.crc32c),
        "{} bytes with CRC-32C {:08x} were sent, {bytes} with {crc32c:08x} read back: the file changed meanwhile",
        sent.bytes,
        sent.crc32c,
    );
    let seconds = started.elapsed().as_secs_f64();
    bar.finish_and_clear();
    Ok(Transfer {
        records,
        bytes,
        crc32c,
        seconds,
    })
}

/// The records of one partition, one by one.
struct Reader<'a> {
    batches: UntilEnd<'a>,
    records: Option<ConsumedRecords>,
}

impl Reader<'_> {
    async fn next(&mut self) -> anyhow::Result<Option<ConsumerRecord>> {
        loop {
            if let Some(record) = self.records.as_mut().and_then(Iterator::next) {
                return Ok(Some(record?));
            }
            match self.batches.next_batch().await? {
                Some(batch) => self.records = Some(batch.into_iter()),
                None => return Ok(None),
            }
        }
    }
}

/// Compares bytes with those of a file, in order.
struct Comparison<R> {
    file: R,
    expected: Vec<u8>,
    digest: Crc32c,
    /// Bytes that were the same.
    bytes: u64,
}

impl<R: AsyncRead + Unpin> Comparison<R> {
    fn new(file: R) -> Self {
        Self {
            file,
            expected: Vec::new(),
            digest: Crc32c::new(),
            bytes: 0,
        }
    }

    /// Compares the next bytes.
    async fn take(&mut self, found: &[u8]) -> anyhow::Result<()> {
        self.expected.clear();
        let part = (&mut self.file)
            .take(found.len() as u64)
            .read_to_end(&mut self.expected)
            .await;
        part.context("cannot read the file again")?;
        if self.expected != found {
            let same = self
                .expected
                .iter()
                .zip(found)
                .take_while(|(expected, found)| expected == found)
                .count();
            let at = self.bytes + same as u64;
            match (self.expected.get(same), found.get(same)) {
                (Some(expected), Some(found)) => {
                    bail!(
                        "read back differs from the file at byte {at}: {found:#04x} where the file has {expected:#04x}"
                    )
                }
                _ => bail!("read back has more than the {at} bytes of the file"),
            }
        }
        self.digest.update(found);
        self.bytes += found.len() as u64;
        Ok(())
    }

    /// Makes sure that the file has no more; says how many bytes there were, and their CRC-32C.
    async fn finish(mut self) -> anyhow::Result<(u64, u32)> {
        let more = self.file.read_u8().await;
        match more {
            Ok(_) => bail!("read back ends at byte {}, the file goes on", self.bytes),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Ok((self.bytes, self.digest.finish()))
            }
            Err(error) => Err(error).context("cannot read the file again"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    async fn compare(file: &[u8], found: &[&[u8]]) -> Result<(u64, u32), String> {
        let mut comparison = Comparison::new(file);
        for part in found {
            comparison.take(part).await.map_err(|error| error.to_string())?;
        }
        comparison.finish().await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn the_same_bytes_in_other_parts_are_the_same() {
        let expected = Ok((5, forebay_record::crc32c(b"12345")));
        assert_eq!(compare(b"12345", &[b"12", b"", b"345"]).await, expected);
        assert_eq!(compare(b"", &[]).await, Ok((0, forebay_record::crc32c(b""))));
    }

    #[tokio::test]
    async fn each_difference_is_found_where_it_is() {
        let differs = compare(b"12345", &[b"12", b"3x5"]).await.unwrap_err();
        assert_eq!(
            differs,
            "read back differs from the file at byte 3: 0x78 where the file has 0x34"
        );
        let longer = compare(b"12345", &[b"123", b"456"]).await.unwrap_err();
        assert_eq!(longer, "read back has more than the 5 bytes of the file");
        let shorter = compare(b"12345", &[b"1234"]).await.unwrap_err();
        assert_eq!(shorter, "read back ends at byte 4, the file goes on");
    }
}
