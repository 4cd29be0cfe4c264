//! Watching files: what is new, what grew, what was renamed, truncated or removed.
//!
//! Every now and then a look is taken on a blocking thread, at the paths and at the files that are
//! open; what it saw is compared with what is known. Files are known by identity, so a renamed one
//! stays the same input. One that no path leads to any more is read to its end through its open
//! descriptor, watched for late lines for a while, and then left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tracing::warn;

use super::Shipper;
use crate::command::ingest::input::{Input, Origin, Stage, Watched};
use crate::command::ingest::mark::Mark;
use crate::command::ingest::patterns::{Found, Patterns, Sighting};
use crate::command::ingest::resume::Target;
use crate::command::ingest::source::{self, FileId, Fingerprint, Kind};

/// Between looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What is followed.
#[derive(Debug)]
pub struct Following {
    patterns: Arc<Patterns>,
    target: Target,
    looking: Option<JoinHandle<Look>>,
    last: Option<Instant>,
    /// Files that cannot be read, which was told.
    refused: BTreeSet<PathBuf>,
    too_many_told: bool,
}

/// What a look saw.
#[derive(Debug)]
pub struct Look {
    sighting: Sighting,
    /// Sizes of open files, by input.
    sizes: BTreeMap<u64, u64>,
}

impl Following {
    /// Follows these.
    pub fn new(patterns: Patterns, target: Target) -> Self {
        Self {
            patterns: Arc::new(patterns),
            target,
            looking: None,
            last: None,
            refused: BTreeSet::new(),
            too_many_told: false,
        }
    }

    /// Begins a look, if it is time for one.
    pub fn look(&mut self, now: Instant, open: impl Iterator<Item = (u64, Arc<File>)>) {
        if self.looking.is_some()
            || self
                .last
                .is_some_and(|last| now.duration_since(last) < LOOK_EVERY)
        {
            return;
        }
        self.last = Some(now);
        let (patterns, open): (_, Vec<_>) = (self.patterns.clone(), open.collect());
        self.looking = Some(tokio::task::spawn_blocking(move || {
            // Paths first: a file that was renamed in between is still open.
            let sighting = patterns.look();
            let size = |file: &File| file.metadata().map(|metadata| metadata.len());
            let sizes = open.iter().filter_map(|(id, file)| Some((*id, size(file).ok()?)));
            Look {
                sighting,
                sizes: sizes.collect(),
            }
        }));
    }

    /// Waits for the look under way; for ever where there is none.
    ///
    /// Cancel safety: the look goes on, and is waited for by the next call.
    pub async fn looked(&mut self) -> Look {
        let Some(looking) = &mut self.looking else {
            return std::future::pending().await;
        };
        let look = looking.await;
        self.looking = None;
        look.unwrap_or_else(|_| Look {
            sighting: Sighting::default(),
            sizes: BTreeMap::new(),
        })
    }
}

impl Shipper {
    pub(super) fn on_look(&mut self, look: Look) {
        let now = Instant::now();
        let Look { sighting, sizes } = look;
        let seen: BTreeSet<FileId> = sighting.found.iter().map(|found| found.id).collect();
        let known: BTreeSet<FileId> = self
            .inputs
            .values()
            .filter_map(|input| Some(input.watched()?.id))
            .collect();
        for (id, input) in &mut self.inputs {
            let Origin::File(watched) = &mut input.origin else {
                continue;
            };
            watched.gone = !seen.contains(&watched.id);
            let Some(size) = sizes.get(id).copied() else {
                continue;
            };
            if size != watched.size {
                watched.changed = now;
            }
            if size < input.read.position && matches!(input.stage, Stage::Idle) {
                let unread = watched.size.saturating_sub(input.read.position);
                warn!(
                    file = %input.name, read_bytes = input.read.position, size_bytes = size, unread_bytes = unread,
                    "file was truncated, it is read from its start; unread bytes of the old content are lost"
                );
                input.stage = Stage::Replaced;
            }
            if size > input.read.position && watched.caught_up != Some(size) {
                watched.unread_since.get_or_insert(now);
            }
            watched.size = size;
        }
        if sighting.too_many > 0
            && let Some(following) = &mut self.following
            && !std::mem::replace(&mut following.too_many_told, true)
        {
            warn!(
                files = sighting.too_many,
                "too many files at once, these are left out for now"
            );
        }
        for found in sighting.found {
            if !known.contains(&found.id) {
                self.on_new_file(found);
            }
        }
        self.advance_all();
    }

    fn on_new_file(&mut self, found: Found) {
        let Some(following) = &mut self.following else {
            return;
        };
        let opened = source::open(&found.path).and_then(|(file, metadata, kind)| {
            let print = Fingerprint::of(&file)?;
            Ok((file, metadata, kind, print))
        });
        let (file, metadata, print) = match opened {
            Ok((file, metadata, Kind::File, print)) => (file, metadata, print),
            Ok(_) => return,
            // Gone since it was seen.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => {
                if following.refused.insert(found.path.clone()) {
                    warn!(file = %found.path.display(), %error, "a new file cannot be read, it is tried again");
                }
                return;
            }
        };
        following.refused.remove(&found.path);
        let partitions = following.target.partitions_of(&found.path);
        let mark = Mark::start(partitions.len());
        let name = found.path.display().to_string();
        let (id, size) = (FileId::of(&metadata), metadata.len());
        let watched = Watched::new(found.path.clone(), id, print, size, Some(Arc::new(file)));
        self.add(Input::new(
            &name,
            found.path,
            Origin::File(watched),
            partitions,
            mark,
        ));
    }

    /// Whether an input that was read to the end has something to be read.
    pub(super) fn is_due(&self, input: &Input, now: Instant) -> bool {
        let (Some(watched), Some(_)) = (input.watched(), &self.following) else {
            return false;
        };
        if watched.size < input.read.position {
            return false;
        }
        let unread = watched.size - input.read.position;
        let waited = watched.unread_since.map(|since| now.duration_since(since));
        let full = waited.is_some() && unread >= self.settings.cutting.batch_bytes as u64;
        // A look is as late as a short linger is long.
        let lingered = waited.is_some_and(|waited| waited + LOOK_EVERY > self.settings.linger);
        let left = watched.gone && now.duration_since(watched.changed) >= self.settings.rotate_wait;
        full || lingered || left
    }

    /// Begins an input anew, whose file did.
    pub(super) fn restart(&mut self, id: u64) -> bool {
        let Some(input) = self.inputs.get_mut(&id) else {
            return false;
        };
        let Some(file) = input.watched().and_then(|watched| watched.file.clone()) else {
            return false;
        };
        let looked = file
            .metadata()
            .and_then(|metadata| Ok((Fingerprint::of(&file)?, metadata.len())));
        match looked {
            Ok((print, size)) => {
                input.begin_anew(print, size, Instant::now());
                true
            }
            Err(error) => {
                let name = input.name.to_string();
                let source = error.into();
                self.fail(crate::command::ingest::error::IngestError::Input { name, source });
                false
            }
        }
    }
}
