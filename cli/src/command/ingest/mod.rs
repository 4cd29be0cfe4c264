//! `ingest`: files, patterns and streams into a topic, once and to the end or followed for ever.
//!
//! 1. [`options`] is the command line, [`patterns`] which files are meant, [`begin`] what is
//!    checked before anything is sent, [`resume`] where each file begins.
//! 2. [`ship`] owns all inputs ([`input`]) and gives them turns at being read.
//! 3. [`read`] and [`stream`] read, on blocking threads; [`cut`] says where records and batches
//!    end, [`pack`] builds the batches and hands them to the producer.
//! 4. Acknowledgements move each input's [`mark`]; [`keep`] decides when [`checkpoint`] is written.
//! 5. [`progress`], [`metrics`] and [`tally`] tell what was done.
//!
//! Promises: what is called acknowledged was acknowledged after fsync on a quorum; the order of a
//! file is kept in its partition; with a checkpoint a run that was killed goes on without losing or
//! repeating a record (docs/ingest.md has the limits). Memory is bounded by `--in-flight-bytes`, a
//! read buffer for each of a few readers, and a few hundred bytes for each input.

mod begin;
mod checkpoint;
mod cut;
mod error;
mod input;
mod keep;
mod mark;
mod metrics;
mod options;
mod pack;
mod patterns;
mod progress;
mod read;
mod resume;
mod ship;
mod source;
mod stream;
mod tally;

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use forebay_client::ProducerConfig;
use forebay_runtime::admin_http::{self, Readiness};
use forebay_runtime::metrics::Metrics;
use forebay_runtime::tasks::{Tasks, shutdown_signal};
use tokio::net::TcpListener;

use self::checkpoint::{Checkpoint, CheckpointFile};
use self::keep::Keeper;
use self::metrics::IngestMetrics;
pub use self::options::IngestArgs;
use self::options::Utf8;
use self::patterns::Patterns;
use self::progress::Progress;
use self::resume::{Plan, Target};
use self::ship::{Following, Settings, Shipped, Shipper};
use self::tally::Summary;
use super::{Interrupted, Usage};
use crate::connect::connect;
use crate::output::counted;

/// How long acknowledgements are waited for after a stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Sends until the inputs end, or until stopped.
pub async fn run(args: IngestArgs, servers: &[String]) -> anyhow::Result<()> {
    let mut patterns = Patterns::parse(&args.files)?;
    args.check(patterns.stdin)?;
    if let Some(path) = &args.checkpoint {
        patterns.pass_over(CheckpointFile::files(path)?);
    }
    begin::raise_open_files();
    let mut inputs = begin::look(&patterns, args.follow)?;
    if let (Some(_), Some((name, _))) = (&args.checkpoint, inputs.streams.first()) {
        return Err(Usage(format!(
            "{name} cannot be read again from where it was: a checkpoint needs files"
        ))
        .into());
    }
    let (file, known) = match &args.checkpoint {
        Some(path) => CheckpointFile::open(path).map(|(file, known)| (Some(file), known))?,
        None => (None, None),
    };
    let client = connect(servers).await?;
    let target = begin::target(&client, &args).await?;
    let elsewhere = match &known {
        Some(known) => begin::compare(&mut inputs.files, known)?,
        None => Vec::new(),
    };
    let plan = resume::plan(&inputs.files, &elsewhere, known.as_ref(), &target, args.follow);
    let plan = plan.map_err(|what| match &args.checkpoint {
        Some(path) => anyhow!("checkpoint {} does not fit: {what}", path.display()),
        None => anyhow!(what),
    })?;
    for warning in &plan.warnings {
        tracing::warn!("{warning}");
    }
    let tasks = Tasks::new("ingest");
    let metrics = match args.metrics_listen {
        Some(address) => Some(serve_metrics(address, &tasks).await?),
        None => None,
    };
    let config = ProducerConfig {
        buffer_bytes_max: args.in_flight_bytes.as_usize(),
        // Batches come ready; this only bounds those that the producer would make itself.
        batch_bytes: 1 << 10,
        ..ProducerConfig::default()
    };
    let producer = client.producer(config).await?;
    let keeper = file.map(|file| {
        let head = Checkpoint {
            cluster: target.cluster.clone(),
            topic: target.topic.clone(),
            topic_id: target.topic_id.clone(),
            inputs: plan.kept.clone(),
        };
        Keeper::new(file, head, args.checkpoint_interval.get())
    });
    let following = args.follow.then(|| Following::new(patterns, target.clone()));
    let progress = Progress::new(args.progress_interval.get());
    let settings = settings(&args, &target);
    let mut shipper = Shipper::new(settings, producer.clone(), keeper, following, progress, metrics);
    add_inputs(&mut shipper, plan, inputs, &elsewhere, &target, args.follow).await?;
    let stopped = || async {
        match shutdown_signal().await {
            Ok(signal) => signal.to_string(),
            Err(error) => format!("signals cannot be waited for ({error})"),
        }
    };
    let shipped = Box::pin(shipper.run(stopped)).await;
    tasks.cancel();
    tasks.wait().await;
    report(&args, shipped, producer.retries().count)
}

fn settings(args: &IngestArgs, target: &Target) -> Settings {
    Settings {
        topic: target.topic.clone(),
        cutting: target.cutting.clone(),
        codec: args.codec.compression(),
        utf8_only: args.utf8 == Utf8::Fail,
        linger: args.linger.get(),
        rotate_wait: args.rotate_wait.get(),
        drain: DRAIN,
    }
}

async fn add_inputs(
    shipper: &mut Shipper,
    plan: Plan,
    inputs: begin::Inputs,
    elsewhere: &[resume::Present],
    target: &Target,
    follow: bool,
) -> anyhow::Result<()> {
    // A followed file may appear in any of them.
    let partitions = match (target.partition, follow || target.spread_batches) {
        (Some(partition), _) => vec![partition],
        (None, true) => (0..target.partitions).collect(),
        (None, false) => {
            let of_files = plan.starts.iter().flat_map(|start| start.partitions.clone());
            let streams = inputs.streams.iter();
            let of_streams = streams.flat_map(|(name, _)| target.partitions_of(name.as_ref()));
            of_files.chain(of_streams).collect()
        }
    };
    shipper.open_partitions(partitions.into_iter()).await?;
    for start in plan.starts {
        let present = inputs
            .files
            .iter()
            .chain(elsewhere)
            .find(|file| file.id == start.id);
        let size = present.map_or(start.first_size, |file| file.size);
        shipper.add(begin::file_input(start, size, follow)?);
    }
    for (name, file) in inputs.streams {
        shipper.add(begin::stream_input(&name, file, target));
    }
    Ok(())
}

async fn serve_metrics(address: std::net::SocketAddr, tasks: &Tasks) -> anyhow::Result<IngestMetrics> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("--metrics-listen: cannot listen on {address}"))?;
    let metrics = Metrics::new();
    let shown = IngestMetrics::new(&metrics);
    eprintln!("metrics on http://{}/metrics", listener.local_addr()?);
    let ended = tasks.token().cancelled_owned();
    tasks.spawn("metrics", async move {
        let served = admin_http::serve(listener, metrics, Readiness::new(), ended).await;
        if let Err(error) = served {
            tracing::warn!(%error, "metrics are not served any more");
        }
    });
    Ok(shown)
}

/// Tells what was done, and how it ended.
fn report(args: &IngestArgs, shipped: Shipped, retries: u64) -> anyhow::Result<()> {
    let lines = args.mode == cut::Mode::Lines;
    let Shipped {
        tally,
        elapsed,
        failure,
        unacknowledged,
    } = shipped;
    let summary = Summary::new(&tally, &args.topic, lines, elapsed, retries);
    let printed = args.format.print(&summary, Summary::text);
    match failure {
        Some(failure) => Err(failure.into()),
        None if unacknowledged > 0 => Err(Interrupted(format!(
            "{} were sent and not acknowledged: they may or may not be written",
            counted(unacknowledged, "byte")
        ))
        .into()),
        None => printed,
    }
}
