//! `topic offsets`: where partitions begin and end, or what lies at a place or a time.

use anyhow::Context as _;
use forebay_client::{Admin, ErrorCode, FoundOffset, Offset, StartPosition};
use serde::Serialize;

use crate::command::Usage;
use crate::output::{FormatArgs, grouped, or_dash, table};
use crate::position::parse_place;
use forebay_runtime::time::rfc3339;

/// What to look up.
#[derive(Debug, clap::Args)]
pub struct OffsetsArgs {
    /// Name of the topic
    pub topic: String,
    /// This partition only
    #[arg(long, short = 'p', value_name = "P")]
    pub partition: Option<u32>,
    /// earliest, latest, or the first record at or after a time: 2026-11-20T09:30:00Z, 10min (so
    /// long ago), or milliseconds since 1970. Without it, where each partition begins and ends
    #[arg(long, value_parser = parse_place, value_name = "PLACE")]
    pub at: Option<StartPosition>,
    #[command(flatten)]
    pub format: FormatArgs,
}

/// Where a partition begins and ends, as `--format json` shows it.
#[derive(Debug, Serialize)]
struct Bounds {
    partition: u32,
    earliest: Option<u64>,
    latest: Option<u64>,
}

/// What lies at a place, as `--format json` shows it.
#[derive(Debug, Serialize)]
struct Found {
    partition: u32,
    /// None where no record is at or after the time.
    offset: Option<u64>,
    /// Timestamp of the record, where one was sought by time.
    timestamp_ms: Option<i64>,
}

/// Looks the offsets up.
pub async fn run(args: OffsetsArgs, admin: &Admin) -> anyhow::Result<()> {
    let partitions = partitions(&args, admin).await?;
    let ask = async |place: StartPosition| {
        let wanted = partitions.clone().map(|one| (args.topic.clone(), one, place));
        let found = admin.list_offsets(wanted.collect()).await;
        found.with_context(|| format!("cannot look up offsets of topic {:?}", args.topic))
    };
    match args.at {
        Some(place) => {
            let found: Vec<Found> = ask(place).await?.into_iter().map(Found::from).collect();
            args.format.print(&found, |found| render_found(found))
        }
        None => {
            let earliest = ask(StartPosition::Earliest).await?;
            let latest = ask(StartPosition::Latest).await?;
            let pairs = earliest.into_iter().zip(latest);
            let bounds: Vec<Bounds> = pairs.map(Bounds::from).collect();
            args.format.print(&bounds, |bounds| render_bounds(bounds))
        }
    }
}

/// The partitions asked for, all of which exist.
async fn partitions(args: &OffsetsArgs, admin: &Admin) -> anyhow::Result<std::ops::Range<u32>> {
    let topic = &args.topic;
    let metadata = admin
        .metadata(&[topic])
        .await
        .with_context(|| format!("cannot look up topic {topic:?}"))?;
    let found = metadata.topics.into_iter().find(|found| found.name == *topic);
    let found = found.with_context(|| format!("topic {topic:?} does not exist"))?;
    match found.error {
        Some(error) if error.code() == ErrorCode::UnknownTopic => {
            anyhow::bail!("topic {topic:?} does not exist")
        }
        Some(error) => anyhow::bail!("cannot look up topic {topic:?}: {}", error.message),
        None => {}
    }
    let count = found.partitions;
    match args.partition {
        Some(partition) if partition >= count => Err(Usage(format!(
            "topic {topic:?} has {count} partitions from 0 on, no partition {partition}"
        ))
        .into()),
        Some(partition) => Ok(partition..partition + 1),
        None => Ok(0..count),
    }
}

impl From<FoundOffset> for Found {
    fn from(found: FoundOffset) -> Self {
        Self {
            partition: found.partition,
            offset: found.offset.map(Offset::get),
            timestamp_ms: found.timestamp_ms,
        }
    }
}

impl From<(FoundOffset, FoundOffset)> for Bounds {
    fn from((earliest, latest): (FoundOffset, FoundOffset)) -> Self {
        Self {
            partition: earliest.partition,
            earliest: earliest.offset.map(Offset::get),
            latest: latest.offset.map(Offset::get),
        }
    }
}

fn render_found(found: &[Found]) -> String {
    let rows = found.iter().map(|one| {
        vec![
            one.partition.to_string(),
            or_dash(one.offset.map(grouped)),
            or_dash(one.timestamp_ms.map(rfc3339)),
        ]
    });
    table(&["PARTITION", "OFFSET", "TIMESTAMP"], &[0, 1], rows)
}

fn render_bounds(bounds: &[Bounds]) -> String {
    let rows = bounds.iter().map(|one| {
        let records = one
            .latest
            .zip(one.earliest)
            .map(|(latest, earliest)| latest.saturating_sub(earliest));
        vec![
            one.partition.to_string(),
            or_dash(one.earliest.map(grouped)),
            or_dash(one.latest.map(grouped)),
            or_dash(records.map(grouped)),
        ]
    });
    table(
        &["PARTITION", "EARLIEST", "LATEST", "RECORDS"],
        &[0, 1, 2, 3],
        rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_after_everything_has_no_offset() {
        let found = [
            Found {
                partition: 0,
                offset: Some(1_200),
                timestamp_ms: Some(1_700_000_000_123),
            },
            Found {
                partition: 1,
                offset: None,
                timestamp_ms: None,
            },
        ];
        assert_eq!(
            render_found(&found),
            "PARTITION  OFFSET  TIMESTAMP\n        0   1,200  2023-11-14T22:13:20.123Z\n        1       -  -"
        );
    }

    #[test]
    fn bounds_say_how_many_records_are_between_them() {
        let bounds = [Bounds {
            partition: 3,
            earliest: Some(10),
            latest: Some(1_010),
        }];
        assert_eq!(
            render_bounds(&bounds),
            "PARTITION  EARLIEST  LATEST  RECORDS\n        3        10   1,010    1,000"
        );
    }
}
