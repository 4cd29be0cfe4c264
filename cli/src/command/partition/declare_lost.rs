//! `partition declare-lost`: says of sealed segments that what no copy has any more does not come back.

use anyhow::Context as _;
use forebay_client::Admin;
use forebay_proto::v1;
use serde::Serialize;

use super::{Range, ranges_text};
use crate::command::Usage;
use crate::command::confirm::confirm;
use crate::command::topic::view::{Awaited, awaited_text};
use crate::output::{FormatArgs, grouped};

/// Which partition.
#[derive(Debug, clap::Args)]
pub struct DeclareLostArgs {
    /// Name of the topic
    pub topic: String,
    /// Number of the partition
    pub partition: u32,
    /// Also where a storage node that is away may come back with it
    #[arg(long)]
    pub force: bool,
    /// Only say what would be declared lost
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
struct Declared {
    topic: String,
    partition: u32,
    segments: Vec<Segment>,
    /// Why some of it may still be found.
    still_possible: Option<String>,
    done: bool,
}

/// A sealed segment that nobody can read all of.
#[derive(Debug, Serialize)]
struct Segment {
    epoch: u32,
    seq: u32,
    base: u64,
    end: u64,
    lost: Vec<Range>,
    replicas: Vec<Awaited>,
}

impl Declared {
    fn of(args: &DeclareLostArgs, found: v1::DeclareLostResponse) -> Self {
        let segment = |one: v1::LostSegment| Segment {
            epoch: one.epoch,
            seq: one.seq,
            base: one.base,
            end: one.end,
            lost: one.lost.into_iter().map(Range::from).collect(),
            replicas: one.replicas.into_iter().map(Awaited::from).collect(),
        };
        Self {
            topic: args.topic.clone(),
            partition: args.partition,
            segments: found.segments.into_iter().map(segment).collect(),
            still_possible: (!found.still_possible.is_empty()).then_some(found.still_possible),
            done: found.done,
        }
    }
}

/// Declares a loss, or says what would be declared.
pub async fn run(args: &DeclareLostArgs, admin: &Admin) -> anyhow::Result<()> {
    let name = format!("partition {} of topic {:?}", args.partition, args.topic);
    let planned = admin.plan_declare_lost(&args.topic, args.partition).await;
    let planned = planned.with_context(|| format!("cannot declare a loss of {name}"))?;
    let segments = planned.segments.clone();
    let told = Declared::of(args, planned);
    if args.dry_run {
        return args.format.print(&told, render);
    }
    if let Some(why) = told
        .still_possible
        .as_ref()
        .filter(|_| !args.force || segments.is_empty())
    {
        let what = format!("not everything of {name} needs to be lost: {why}; wait, or add --force");
        return Err(Usage(what).into());
    }
    eprintln!("{}", render(&told));
    confirm(
        &format!("these offsets of {name} are given up for good"),
        &args.topic,
        args.yes,
    )?;
    let done = admin
        .declare_lost(&args.topic, args.partition, segments, args.force)
        .await;
    let done = done.with_context(|| format!("cannot declare a loss of {name}"))?;
    args.format.print(&Declared::of(args, done), |done| {
        let lost: Vec<_> = done.segments.iter().map(|one| ranges_text(&one.lost)).collect();
        format!("offsets {} of {name} are declared lost", lost.join(", "))
    })
}

fn render(declared: &Declared) -> String {
    let mut lines = Vec::new();
    for one in &declared.segments {
        lines.push(format!(
            "segment {}.{} of partition {} of topic {}, offsets {} to {}",
            one.epoch,
            one.seq,
            declared.partition,
            declared.topic,
            grouped(one.base),
            grouped(one.end)
        ));
        lines.extend(one.replicas.iter().map(|one| format!("  {}", awaited_text(one))));
        lines.push(format!("  lost: offsets {}", ranges_text(&one.lost)));
    }
    if let Some(why) = &declared.still_possible {
        lines.push(format!("not everything needs to be lost: {why}"));
    }
    lines.join("\n")
}
