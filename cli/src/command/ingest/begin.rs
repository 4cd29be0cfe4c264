//! Before the first record: every input is looked at, the topic is looked up, and the checkpoint is
//! compared with both. What is wrong is refused here, while nothing is sent.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use forebay_client::{Client, ErrorCode};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::checkpoint::Checkpoint;
use super::cut::{Cutting, Mode};
use super::input::{Input, Origin, Watched};
use super::options::{IngestArgs, Spread};
use super::patterns::{INPUTS_MAX, Patterns};
use super::resume::{Present, Start, Target, is_of};
use super::source::{self, FileId, Fingerprint, Kind};
use crate::command::Usage;
use crate::command::produce::Codec;

/// Longest path of a file.
const PATH_BYTES_MAX: usize = 4096;

/// What there is to read.
#[derive(Debug, Default)]
pub struct Inputs {
    /// Regular files.
    pub files: Vec<Present>,
    /// Pipes and the like, with what they are called.
    pub streams: Vec<(String, File)>,
}

/// Looks at all inputs; one that cannot be read is an error, unless it may still come.
pub fn look(patterns: &Patterns, follow: bool) -> anyhow::Result<Inputs> {
    let sighting = patterns.look();
    for (path, error) in sighting.missing {
        if follow && error.kind() == std::io::ErrorKind::NotFound {
            eprintln!("{path}: {error}; waiting for it");
        } else {
            return Err(error).with_context(|| format!("cannot read {path}"));
        }
    }
    if sighting.too_many > 0 {
        bail!(
            "{} files, {INPUTS_MAX} are allowed",
            INPUTS_MAX + sighting.too_many
        );
    }
    let mut inputs = Inputs::default();
    if patterns.stdin {
        let stdin = std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned()?;
        inputs
            .streams
            .push(("standard input".to_owned(), File::from(stdin)));
    }
    for found in sighting.found {
        let path = found.path.display().to_string();
        let (file, metadata, kind) =
            source::open(&found.path).with_context(|| format!("cannot read {path}"))?;
        match kind {
            Kind::Stream if follow => {
                return Err(Usage(format!("{path} is no regular file: it cannot be followed")).into());
            }
            Kind::Stream => inputs.streams.push((path, file)),
            Kind::File => inputs.files.push(Present {
                path: found.path,
                id: FileId::of(&metadata),
                size: metadata.len(),
                fingerprint: Fingerprint::of(&file).with_context(|| format!("cannot read {path}"))?,
                covered: None,
            }),
        }
    }
    Ok(inputs)
}

/// Compares files with what the checkpoint says they begin with, and looks for those that are not
/// where they were; gives the ones found elsewhere.
pub fn compare(files: &mut [Present], checkpoint: &Checkpoint) -> anyhow::Result<Vec<Present>> {
    let mut elsewhere = Vec::new();
    for entry in &checkpoint.inputs {
        let covers = entry.fingerprint.bytes as usize;
        if let Some(file) = files.iter_mut().find(|file| is_of(entry, file.id, &file.path)) {
            let open = File::open(&file.path);
            let covered = open.and_then(|open| Fingerprint::over(&open, covers));
            file.covered = Some(covered.with_context(|| format!("cannot read {}", file.path.display()))?);
            continue;
        }
        let folder = entry.path.parent().unwrap_or(Path::new("/"));
        let Some(path) = source::find_in(folder, entry.file) else {
            continue;
        };
        // One that cannot be read is as good as gone, and its entry tells so.
        let Ok((open, metadata, Kind::File)) = source::open(&path) else {
            continue;
        };
        elsewhere.push(Present {
            path,
            id: FileId::of(&metadata),
            size: metadata.len(),
            fingerprint: Fingerprint::of(&open)?,
            covered: Some(Fingerprint::over(&open, covers)?),
        });
    }
    Ok(elsewhere)
}

/// Looks the topic up, and settles how to cut for it.
pub async fn target(client: &Client, args: &IngestArgs) -> anyhow::Result<Target> {
    let name = &args.topic;
    let metadata = client.admin().metadata(&[name]).await;
    let metadata = metadata.with_context(|| format!("cannot look up topic {name:?}"))?;
    let found = metadata.topics.into_iter().find(|found| found.name == *name);
    let found = found.with_context(|| format!("topic {name:?} does not exist"))?;
    if let Some(error) = found.error {
        if error.code() == ErrorCode::UnknownTopic {
            bail!("topic {name:?} does not exist; `forebay topic create {name}` makes it");
        }
        bail!("cannot look up topic {name:?}: {}", error.message);
    }
    if let Some(partition) = args.partition.filter(|partition| *partition >= found.partitions) {
        let count = found.partitions;
        return Err(Usage(format!(
            "topic {name:?} has {count} partitions from 0 on, no partition {partition}"
        ))
        .into());
    }
    let cutting = cutting(args, found.batch_bytes_max as usize)?;
    Ok(Target {
        cluster: metadata.cluster,
        topic: found.name,
        topic_id: found.id.iter().map(|byte| format!("{byte:02x}")).collect(),
        partitions: found.partitions,
        partition: args.partition,
        spread_batches: args.spread == Spread::Batch,
        cutting: Arc::new(cutting),
        renumber: args.renumber,
    })
}

fn cutting(args: &IngestArgs, topic_max: usize) -> Result<Cutting, Usage> {
    // What cannot be compressed grows a little, snappy's worst case being a sixth.
    let largest = if args.codec == Codec::None {
        topic_max
    } else {
        topic_max / 6 * 5
    };
    let largest = largest.min(args.in_flight_bytes.as_usize());
    let (block, batch) = (args.block_bytes.as_usize(), args.batch_bytes.as_usize());
    let mut cutting = Cutting::new(args.mode, block, batch, largest);
    cutting.strip_cr = args.strip_cr;
    cutting.long_lines = args.long_lines;
    cutting.file_name = args.file_name;
    let fits = cutting.value_bytes_max(PATH_BYTES_MAX);
    if args.mode == Mode::Blocks && block > fits {
        return Err(Usage(format!(
            "--block-bytes {} is more than the {fits} bytes that a record of topic {:?} may have",
            args.block_bytes, args.topic
        )));
    }
    Ok(cutting)
}

/// The input of a file.
pub fn file_input(start: Start, size: u64, follow: bool) -> anyhow::Result<Input> {
    let name = start.at.display().to_string();
    let file = if follow {
        // Before a turn comes it may be renamed.
        let (file, metadata, _) = source::open(&start.at).with_context(|| format!("cannot read {name}"))?;
        if FileId::of(&metadata) != start.id {
            return Err(anyhow!("{name} was replaced at this moment; start again"));
        }
        Some(Arc::new(file))
    } else {
        None
    };
    let watched = Watched {
        first_size: start.first_size,
        ..Watched::new(start.at, start.id, start.fingerprint, size, file)
    };
    let mut input = Input::new(
        &name,
        start.path,
        Origin::File(watched),
        start.partitions,
        start.mark,
    );
    input.cuts = start.cuts.into();
    input.producer = start.producer;
    Ok(input)
}

/// The input of a stream.
pub fn stream_input(name: &str, file: File, target: &Target) -> Input {
    let path = PathBuf::from(name);
    let partitions = target.partitions_of(&path);
    let mark = super::mark::Mark::start(partitions.len());
    Input::new(name, path, Origin::Stream(Some(file)), partitions, mark)
}

/// Lets this process open as many files as the system allows: each followed file is one.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}
