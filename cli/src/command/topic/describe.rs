//! `topic describe`.

use anyhow::Context as _;
use forebay_client::Admin;

use super::view::{Offloaded, Partition, Segment, Setting, Topic, awaited_text, recovery_text};
use crate::output::{FormatArgs, bytes, grouped, or_dash, table};

/// Segments of a partition shown in the table: the newest. JSON has all.
const SEGMENTS_SHOWN: usize = 8;
/// Offloaded ranges shown, as above.
const RUNS_SHOWN: usize = 4;
/// Declared gaps shown, as above.
const GAPS_SHOWN: usize = 4;

/// What to describe.
#[derive(Debug, clap::Args)]
pub struct DescribeArgs {
    /// Name of the topic
    pub name: String,
    #[command(flatten)]
    pub format: FormatArgs,
}

/// Describes the topic.
pub async fn run(args: DescribeArgs, admin: &Admin) -> anyhow::Result<()> {
    let topic = admin.describe_topic(&args.name).await;
    let topic = topic.with_context(|| format!("cannot describe topic {:?}", args.name))?;
    args.format.print(&Topic::from(topic), render)
}

fn render(topic: &Topic) -> String {
    let mut text = format!("topic {}, id {}", topic.name, topic.id);
    for Setting {
        key,
        value,
        is_default,
    } in &topic.settings
    {
        let default = if *is_default { "  (default)" } else { "" };
        text.push_str(&format!("\n  {key} = {value}{default}"));
    }
    let header = [
        "PARTITION",
        "OWNER",
        "EPOCH",
        "LOG START",
        "HIGH WATERMARK",
        "BYTES",
        "SEGMENTS, newest first (epoch.seq, offsets, bytes, nodes)",
    ];
    let rows = topic.partitions.iter().flat_map(rows_of);
    text = format!("{text}\n\n{}", table(&header, &[0, 1, 2, 3, 4, 5], rows));
    for one in &topic.partitions {
        if let Some(recovery) = &one.recovery {
            text.push_str(&format!(
                "\npartition {} {}",
                one.partition,
                recovery_text(recovery)
            ));
            for node in &recovery.nodes {
                text.push_str(&format!("\n  {}", awaited_text(node)));
            }
        }
    }
    text
}

/// A row for the partition with its newest segment, and one for each segment before that.
fn rows_of(partition: &Partition) -> Vec<Vec<String>> {
    let size = partition
        .segments
        .iter()
        .fold(0_u64, |size, segment| size.saturating_add(segment.bytes));
    let mut rows = vec![vec![
        partition.partition.to_string(),
        or_dash(partition.owner),
        partition.epoch.to_string(),
        grouped(partition.log_start),
        or_dash(partition.high_watermark.map(grouped)),
        bytes(size),
    ]];
    let mut chain: Vec<String> = partition
        .segments
        .iter()
        .rev()
        .take(SEGMENTS_SHOWN)
        .map(segment)
        .collect();
    let hidden = partition.segments.len() - chain.len();
    if hidden > 0 {
        chain.push(format!("and {} older", grouped(hidden as u64)));
    }
    let runs = partition.offloaded.iter().rev();
    chain.extend(runs.clone().take(RUNS_SHOWN).map(offloaded));
    let hidden = partition.offloaded.len().saturating_sub(RUNS_SHOWN);
    if hidden > 0 {
        chain.push(format!("and {} offloaded before", grouped(hidden as u64)));
    }
    if let Some(manifest) = &partition.manifest {
        chain.push(format!(
            "offloaded up to {}, manifest {} in {}",
            grouped(manifest.end),
            manifest.generation,
            manifest.object
        ));
    }
    chain.extend(partition.gaps.iter().rev().take(GAPS_SHOWN).map(|gap| {
        let (base, end) = (grouped(gap.base), grouped(gap.end));
        format!("declared lost {base}..{end}: {}", gap.reason)
    }));
    if chain.is_empty() {
        chain.push("-".to_owned());
    }
    for (at, line) in chain.into_iter().enumerate() {
        match rows.get_mut(at) {
            Some(row) => row.push(line),
            None => rows.push([vec![String::new(); 6], vec![line]].concat()),
        }
    }
    rows
}

fn segment(segment: &Segment) -> String {
    let nodes: Vec<_> = segment
        .replicas
        .iter()
        .map(|replica| format!("{}:{}", replica.node, replica.generation))
        .collect();
    let end = segment.end.map_or_else(|| "open".to_owned(), grouped);
    format!(
        "{}.{} {}..{end}, {} on {}",
        segment.epoch,
        segment.seq,
        grouped(segment.base),
        bytes(segment.bytes),
        nodes.join(" ")
    )
}

fn offloaded(range: &Offloaded) -> String {
    format!(
        "offloaded {}..{}, {} in {}",
        grouped(range.base),
        grouped(range.end),
        bytes(range.bytes),
        range.object
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use forebay_proto::v1;

    use super::*;

    fn described() -> Topic {
        let replica = |node| v1::ReplicaDescription { node, generation: 1 };
        let segment = |seq, base, end| v1::SegmentDescription {
            epoch: 3,
            seq,
            base,
            end,
            replicas: vec![replica(1), replica(4)],
            bytes: 1 << 20,
        };
        let full = v1::PartitionDescription {
            partition: 0,
            partition_id: 17,
            epoch: 3,
            owner: 2,
            log_start: 0,
            high_watermark: Some(2_500),
            segments: vec![segment(1, 0, Some(1_000)), segment(2, 1_000, None)],
            ..Default::default()
        };
        let idle = v1::PartitionDescription {
            partition: 1,
            partition_id: 18,
            ..Default::default()
        };
        Topic::from(v1::TopicDescription {
            name: "clicks".to_owned(),
            id: bytes::Bytes::from_static(&[7; 16]).to_vec().into(),
            config: [("retention.ms".to_owned(), "1".to_owned())].into(),
            partitions: vec![full, idle],
            settings: vec![v1::TopicSetting {
                key: "retention.ms".to_owned(),
                value: "1".to_owned(),
                is_default: false,
            }],
        })
    }

    #[test]
    fn partitions_are_rows_and_segments_follow_newest_first() {
        let text = render(&described());
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[0],
            ["topic", "clicks,", "id", "07070707-0707-0707-0707-070707070707"]
        );
        assert_eq!(lines[1], ["retention.ms", "=", "1"]);
        assert_eq!(
            lines[4],
            [
                "0",
                "2",
                "3",
                "0",
                "2,500",
                "2.0",
                "MiB",
                "3.2",
                "1,000..open,",
                "1.0",
                "MiB",
                "on",
                "1:1",
                "4:1"
            ]
        );
        assert_eq!(lines[5], ["3.1", "0..1,000,", "1.0", "MiB", "on", "1:1", "4:1"]);
        assert_eq!(lines[6], ["1", "-", "0", "0", "-", "0", "B", "-"]);
        assert_eq!(lines.len(), 7);
    }

    #[test]
    fn a_long_chain_is_shortened_to_its_newest() {
        let mut topic = described();
        let segment = topic.partitions[0].segments[0].clone();
        topic.partitions[0].segments = vec![segment; 12];
        let text = render(&topic);
        assert_eq!(text.matches(" on 1:1").count(), SEGMENTS_SHOWN);
        assert!(text.contains("and 4 older"), "{text}");
    }

    #[test]
    fn a_partition_that_recovers_says_for_whom_it_waits_and_what_is_lost_is_listed() {
        let partition = v1::PartitionDescription {
            partition: 3,
            recovery: Some(v1::RecoveryDescription {
                step: "FENCING".to_owned(),
                waits_for: "storage nodes n2, n3: 1 of 2 needed have closed p17/e3.2".to_owned(),
                nodes: Vec::new(),
                for_ms: 61_500,
            }),
            gaps: vec![v1::GapDescription {
                base: 10,
                end: 4_294_967_306,
                reason: "sealed by force".to_owned(),
            }],
            ..Default::default()
        };
        let mut topic = described();
        topic.partitions = vec![Partition::from(partition)];
        let text = render(&topic);
        assert!(
            text.contains("partition 3 recovers since 61 s: waits for storage nodes n2, n3: 1 of 2"),
            "{text}"
        );
        assert!(
            text.contains("declared lost 10..4,294,967,306: sealed by force"),
            "{text}"
        );
    }

    #[test]
    fn json_has_an_owner_only_where_there_is_one() {
        let json = serde_json::to_value(described()).unwrap();
        assert_eq!(json["name"], "clicks");
        assert_eq!(json["partitions"][0]["owner"], 2);
        assert_eq!(json["partitions"][0]["segments"][0]["end"], 1_000);
        assert_eq!(
            json["partitions"][0]["segments"][1]["end"],
            serde_json::Value::Null
        );
        assert_eq!(json["partitions"][0]["segments"][1]["replicas"][1]["node"], 4);
        assert_eq!(json["partitions"][1]["owner"], serde_json::Value::Null);
        assert_eq!(json["partitions"][1]["high_watermark"], serde_json::Value::Null);
    }
}
