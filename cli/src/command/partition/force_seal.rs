//! `partition force-seal`: gets a partition going again whose takeover waits for storage nodes that are lost,
//! for somebody to choose between replicas that contradict each other, or for what cannot be read.

use anyhow::Context as _;
use forebay_client::Admin;
use forebay_proto::v1;
use serde::Serialize;

use super::{Range, ranges_text};
use crate::command::Usage;
use crate::command::confirm::confirm;
use crate::command::topic::view::{Awaited, awaited_text};
use crate::output::{FormatArgs, grouped};

/// Which partition, and where its log goes on.
#[derive(Debug, clap::Args)]
pub struct ForceSealArgs {
    /// Name of the topic
    pub topic: String,
    /// Number of the partition
    pub partition: u32,
    /// Where the lost range ends and the log goes on; 2^32 above all that is known, if not given. It must
    /// lie above every offset that anybody may have seen
    #[arg(long, value_name = "OFFSET")]
    pub end: Option<u64>,
    /// Where replicas contradict each other: the storage node whose copy is the right one. What others have
    /// instead is given up
    #[arg(long, value_name = "NODE")]
    pub trust: Option<u32>,
    /// Also where the partition might still be taken over without loss
    #[arg(long)]
    pub force: bool,
    /// Only say what would be lost
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}

/// What was done, or would be.
#[derive(Debug, Serialize)]
struct Forced {
    topic: String,
    partition: u32,
    partition_id: u64,
    /// Of the segment that ends.
    epoch: u32,
    seq: u32,
    base: u64,
    /// Highest committed offset that is known.
    committed: u64,
    /// Where the segment ends, and the lost range begins.
    end: u64,
    /// Where the lost range ends, and the log goes on.
    next: u64,
    /// What lies below the end and nobody can read: lost as well.
    lost: Vec<Range>,
    /// The storage node whose copy is taken for the right one.
    trusted: Option<u32>,
    /// Nothing but what is known of producers is given up.
    state_only: bool,
    replicas: Vec<Awaited>,
    /// Why it might be taken over without loss.
    still_possible: Option<String>,
    done: bool,
}

impl Forced {
    fn of(args: &ForceSealArgs, end: v1::ForcedEnd, done: bool) -> Self {
        Self {
            topic: args.topic.clone(),
            partition: args.partition,
            partition_id: end.partition_id,
            epoch: end.epoch,
            seq: end.seq,
            base: end.base,
            committed: end.committed,
            end: end.end,
            next: end.next,
            lost: end.lost.into_iter().map(Range::from).collect(),
            trusted: end.trusted,
            state_only: end.state_only,
            replicas: end.replicas.into_iter().map(Awaited::from).collect(),
            still_possible: (!end.still_possible.is_empty()).then_some(end.still_possible),
            done,
        }
    }
}

/// Ends the open segment by force, or says what that would do.
pub async fn run(args: &ForceSealArgs, admin: &Admin) -> anyhow::Result<()> {
    let name = format!("partition {} of topic {:?}", args.partition, args.topic);
    let planned = admin
        .plan_force_seal(&args.topic, args.partition, args.end, args.trust)
        .await;
    let planned = planned.with_context(|| format!("cannot force-seal {name}"))?;
    let told = Forced::of(args, planned.clone(), false);
    if args.dry_run {
        return args.format.print(&told, render);
    }
    if let Some(why) = told.still_possible.as_ref().filter(|_| !args.force) {
        let what = format!("{name} may still be taken over without loss: {why}; wait, or add --force");
        return Err(Usage(what).into());
    }
    eprintln!("{}", render(&told));
    let warning = if told.state_only {
        format!("what is known of producers of {name} is given up for good")
    } else {
        format!(
            "offsets {} to {} of {name} are given up for good",
            grouped(told.end),
            grouped(told.next)
        )
    };
    confirm(&warning, &args.topic, args.yes)?;
    let done = admin
        .force_seal(&args.topic, args.partition, planned, args.force)
        .await;
    let done = done.with_context(|| format!("cannot force-seal {name}"))?;
    args.format.print(&Forced::of(args, done, true), |done| {
        if done.state_only {
            return format!("{name} is served again, without what was known of its producers");
        }
        format!(
            "{name} is served again: its log goes on at {}, offsets from {} on are declared lost",
            grouped(done.next),
            grouped(done.end)
        )
    })
}

fn render(forced: &Forced) -> String {
    if forced.state_only {
        let mut text = format!(
            "partition {} of topic {} waits for what is known of its producers; no record is lost without it, and \
             a batch that is sent again may be written twice",
            forced.partition, forced.topic
        );
        if let Some(why) = &forced.still_possible {
            text.push_str(&format!("\nit may still be read: {why}"));
        }
        return text;
    }
    let mut text = format!(
        "segment {}.{} of partition {} of topic {}, open from offset {}",
        forced.epoch,
        forced.seq,
        forced.partition,
        forced.topic,
        grouped(forced.base)
    );
    for one in &forced.replicas {
        text.push_str(&format!("\n  {}", awaited_text(one)));
    }
    text.push_str(&format!(
        "\nknown to be committed: up to {}",
        grouped(forced.committed)
    ));
    text.push_str(&format!("\nkept: up to {}", grouped(forced.end)));
    if let Some(trusted) = forced.trusted {
        text.push_str(&format!(
            "\nas storage node {trusted} has it; what others have instead is given up"
        ));
    }
    if !forced.lost.is_empty() {
        text.push_str(&format!("\nlost: damaged offsets {}", ranges_text(&forced.lost)));
    }
    text.push_str(&format!(
        "\nlost: offsets {} to {}, in which there may have been acknowledged records; the log goes on at {}",
        grouped(forced.end),
        grouped(forced.next),
        grouped(forced.next)
    ));
    if let Some(why) = &forced.still_possible {
        text.push_str(&format!("\nit may still be taken over without loss: {why}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn what_is_lost_and_who_is_missing_is_said() {
        let awaited = |node, state: &str, tail| v1::AwaitedNode {
            node,
            generation: 1,
            state: state.to_owned(),
            tail,
            frames: tail.map(|_| 9),
            hash: tail.map(|_| 0xfeed),
            committed: tail.map(|_| 1_200),
        };
        let end = v1::ForcedEnd {
            partition_id: 7,
            epoch: 3,
            seq: 1,
            base: 1_000,
            committed: 1_200,
            end: 1_250,
            next: 4_294_968_546,
            replicas: vec![awaited(1, "ANSWERED", Some(1_250)), awaited(2, "AWAY", None)],
            still_possible: String::new(),
            lost: vec![v1::OffsetRange {
                base: 1_010,
                end: 1_020,
            }],
            trusted: Some(1),
            state_only: false,
        };
        let args = ForceSealArgs {
            topic: "orders".to_owned(),
            partition: 4,
            end: None,
            trust: Some(1),
            force: false,
            dry_run: true,
            yes: false,
            format: FormatArgs {
                format: Format::Table,
            },
        };
        let text = render(&Forced::of(&args, end, false));
        for part in [
            "segment 3.1 of partition 4 of topic orders, open from offset 1,000",
            "storage node 1 (generation 1): answered, has it up to 1,250",
            "storage node 2 (generation 1): away",
            "known to be committed: up to 1,200",
            "9 frames with hash 000000000000feed, told that 1,200 is committed",
            "lost: damaged offsets 1,010 to 1,020",
            "as storage node 1 has it",
            "lost: offsets 1,250 to 4,294,968,546",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }
}
