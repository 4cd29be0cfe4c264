//! Which of the oldest runs have expired, by age or by size, as Kafka decides it for segments.
//!
//! Only whole runs, only the oldest, only what is in the object store. By size a run goes while what
//! is left without it is still at least the limit; by age while its largest timestamp is older. A run
//! whose records carry no timestamp never goes by age, and neither does what follows it.

use forebay_meta::model::{ManifestRef, Run};
use forebay_record::{Offset, PartitionId};

use super::Manifests;
use crate::error::StoreError;

/// What a topic keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// Age in milliseconds after which records may go; none keeps them.
    pub ms: Option<u64>,
    /// Bytes of the partition beyond which its oldest may go; none sets no bound.
    pub bytes: Option<u64>,
}

/// What retention looks at in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunSpan {
    /// End, exclusive.
    pub end: Offset,
    /// Bytes.
    pub len: u64,
    /// Largest timestamp, milliseconds since 1970; negative for none.
    pub max_timestamp_ms: i64,
}

impl From<&Run> for RunSpan {
    fn from(run: &Run) -> Self {
        Self {
            end: run.end,
            len: run.len,
            max_timestamp_ms: run.max_timestamp_ms,
        }
    }
}

/// Goes over runs from the oldest on and notes how many expire.
#[derive(Debug)]
struct Plan {
    retention: Retention,
    now_ms: i64,
    /// Bytes from the current run on.
    left: u64,
    log_start: Option<Offset>,
    /// Whether age has met a run that stays; size goes on.
    old_done: bool,
}

impl Plan {
    const fn new(retention: Retention, total_bytes: u64, now_ms: i64) -> Self {
        Self {
            retention,
            now_ms,
            left: total_bytes,
            log_start: None,
            old_done: false,
        }
    }

    /// Takes the next run; false where it stays, and so does all after it.
    fn run(&mut self, run: &RunSpan) -> bool {
        let without = self.left.saturating_sub(run.len);
        let large = self.retention.bytes.is_some_and(|bytes| without >= bytes);
        let old = !self.old_done && self.is_old(run);
        self.old_done |= !old;
        if !large && !old {
            return false;
        }
        self.left = without;
        self.log_start = Some(run.end);
        true
    }

    fn is_old(&self, run: &RunSpan) -> bool {
        let Some(ms) = self.retention.ms else { return false };
        let age_ms = self.now_ms.saturating_sub(run.max_timestamp_ms);
        run.max_timestamp_ms >= 0 && u64::try_from(age_ms).is_ok_and(|age_ms| age_ms > ms)
    }
}

/// The log start that retention allows: the end of the last of `runs` that expires, none where none
/// does. `runs` are all offloaded runs from the log start on, oldest first; `tail_bytes` counts what
/// comes after them and is not offloaded.
#[must_use]
pub fn plan_retention(
    retention: Retention,
    runs: &[RunSpan],
    tail_bytes: u64,
    now_ms: i64,
) -> Option<Offset> {
    let total = runs
        .iter()
        .fold(tail_bytes, |sum, run| sum.saturating_add(run.len));
    let mut plan = Plan::new(retention, total, now_ms);
    for run in runs {
        if !plan.run(run) {
            break;
        }
    }
    plan.log_start
}

/// What is known of a partition's log when its retention is planned.
#[derive(Debug, Clone, Copy)]
pub struct Log<'a> {
    /// The partition.
    pub partition: PartitionId,
    /// First offset kept so far.
    pub log_start: Offset,
    /// Its manifest.
    pub manifest: Option<&'a ManifestRef>,
    /// Offloaded ranges after the manifest.
    pub recent: &'a [Run],
    /// Bytes of what is not offloaded.
    pub tail_bytes: u64,
}

impl Manifests {
    /// As [`plan_retention`], reading only those pages of the manifest that hold what expires.
    ///
    /// # Errors
    /// As [`Manifests::root`].
    pub async fn plan_retention(
        &self,
        log: Log<'_>,
        retention: Retention,
        now_ms: i64,
    ) -> Result<Option<Offset>, StoreError> {
        if retention == Retention::default() {
            return Ok(None);
        }
        let root = match log.manifest {
            Some(manifest) => Some(self.root(log.partition, manifest).await?),
            None => None,
        };
        let kept = |end: Offset| end > log.log_start;
        let pages = || {
            let pages = root.iter().flat_map(|root| &root.pages);
            pages.filter(|page| kept(page.end))
        };
        let mut total = log.tail_bytes;
        for page in pages() {
            // Of the page that the log starts in, only a part counts.
            let bytes = if kept(page.base) || page.base == log.log_start {
                page.bytes
            } else {
                let page = self.page(log.partition, page).await?;
                page.runs
                    .iter()
                    .filter(|run| kept(run.end))
                    .map(|run| run.len)
                    .sum()
            };
            total = total.saturating_add(bytes);
        }
        let recent = || log.recent.iter().filter(|run| kept(run.end));
        total = recent().fold(total, |sum, run| sum.saturating_add(run.len));

        let mut plan = Plan::new(retention, total, now_ms);
        for page in pages() {
            let page = self.page(log.partition, page).await?;
            for run in page.runs.iter().filter(|run| kept(run.end)) {
                let span = RunSpan {
                    end: run.end,
                    len: run.len,
                    max_timestamp_ms: run.max_timestamp_ms,
                };
                if !plan.run(&span) {
                    return Ok(plan.log_start);
                }
            }
        }
        for run in recent() {
            if !plan.run(&run.into()) {
                break;
            }
        }
        Ok(plan.log_start)
    }
}
