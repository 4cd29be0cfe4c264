//! Folding: a new version of a manifest, with runs added at its end and expired ones gone.
//!
//! Pages that do not change are named again, not written. What is written is read back before the
//! pointer to it is given out. A fold that fails, or whose pointer is never committed, leaves objects
//! that no record names; the next one takes new names (I19, I20).

use bytes::Bytes;
use forebay_meta::model::{ManifestRef, Run};
use forebay_meta::store::Revision;
use forebay_record::object::{ManifestPage, ManifestRoot, ManifestRun, ObjectError, PAGE_RUNS_MAX, PageRef};
use forebay_record::{Offset, PartitionId, crc32c};

use super::{Manifests, from_run};
use crate::error::{StoreError, WriteError};
use crate::names::{Names, ObjectKind};

/// A page of the new version.
enum Draft {
    /// As it was.
    Kept(PageRef),
    /// To be written.
    Changed(Vec<ManifestRun>),
}

impl Manifests {
    /// Writes the version of a manifest that follows `old`: with `runs` after its last, without what
    /// ends at or below `log_start`. None where nothing is left; `old` itself where nothing changes.
    ///
    /// `revision` goes into the names of what is written, see [`Names::next`].
    ///
    /// # Errors
    /// Where `runs` do not continue `old`, or the store fails.
    pub async fn fold(
        &self,
        names: &Names,
        revision: Revision,
        partition: PartitionId,
        old: Option<&ManifestRef>,
        runs: &[Run],
        log_start: Offset,
    ) -> Result<Option<ManifestRef>, WriteError> {
        let old_root = match old {
            Some(old) => Some(self.root(partition, old).await?),
            None => None,
        };
        let pages = old_root.as_ref().map_or(&[][..], |root| root.pages.as_slice());
        let mut drafts = self.keep(partition, pages, log_start).await?;
        let added: Vec<ManifestRun> = runs
            .iter()
            .filter(|run| run.end > log_start)
            .map(from_run)
            .collect();
        self.append(partition, &mut drafts, added).await?;
        if drafts.is_empty() {
            return Ok(None);
        }
        if drafts.len() == pages.len() && drafts.iter().all(|draft| matches!(draft, Draft::Kept(_))) {
            return Ok(old.cloned());
        }
        let mut root = ManifestRoot {
            partition,
            generation: old.map_or(1, |old| old.generation + 1),
            pages: Vec::with_capacity(drafts.len()),
        };
        for draft in drafts {
            root.pages.push(match draft {
                Draft::Kept(page) => page,
                Draft::Changed(runs) => self.write_page(names, revision, partition, runs).await?,
            });
        }
        let name = names.next(ObjectKind::Manifest, revision).to_string();
        let bytes = root.encode().map_err(bad(&name))?;
        let manifest = ManifestRef {
            generation: root.generation,
            end: root.end(),
            len: bytes.len() as u64,
            crc32c: crc32c(&bytes),
            object: name.clone(),
        };
        self.write(&name, bytes).await?;
        Ok(Some(manifest))
    }

    /// The pages without what has expired.
    async fn keep(
        &self,
        partition: PartitionId,
        pages: &[PageRef],
        log_start: Offset,
    ) -> Result<Vec<Draft>, StoreError> {
        let mut drafts = Vec::with_capacity(pages.len() + 1);
        for page in pages.iter().filter(|page| page.end > log_start) {
            if page.base >= log_start {
                drafts.push(Draft::Kept(page.clone()));
                continue;
            }
            let runs = &self.page(partition, page).await?.runs;
            let left: Vec<ManifestRun> = runs.iter().filter(|run| run.end > log_start).cloned().collect();
            drafts.push(if left.len() == runs.len() {
                Draft::Kept(page.clone())
            } else {
                Draft::Changed(left)
            });
        }
        Ok(drafts)
    }

    /// Fills the last page up, then makes new ones.
    async fn append(
        &self,
        partition: PartitionId,
        drafts: &mut Vec<Draft>,
        mut added: Vec<ManifestRun>,
    ) -> Result<(), StoreError> {
        if added.is_empty() {
            return Ok(());
        }
        let last = match drafts.pop() {
            None => None,
            Some(Draft::Changed(runs)) => Some(runs),
            Some(Draft::Kept(page)) if page.runs as usize >= PAGE_RUNS_MAX => {
                drafts.push(Draft::Kept(page));
                None
            }
            Some(Draft::Kept(page)) => Some(self.page(partition, &page).await?.runs.clone()),
        };
        if let Some(mut runs) = last {
            runs.append(&mut added);
            added = runs;
        }
        while !added.is_empty() {
            let later = added.split_off(added.len().min(PAGE_RUNS_MAX));
            drafts.push(Draft::Changed(std::mem::replace(&mut added, later)));
        }
        Ok(())
    }

    async fn write_page(
        &self,
        names: &Names,
        revision: Revision,
        partition: PartitionId,
        runs: Vec<ManifestRun>,
    ) -> Result<PageRef, WriteError> {
        let name = names.next(ObjectKind::Manifest, revision).to_string();
        let page = ManifestPage { partition, runs };
        let bytes = page.encode().map_err(bad(&name))?;
        let page_ref = page.page_ref(name.clone(), &bytes);
        self.write(&name, bytes).await?;
        Ok(page_ref)
    }

    /// Writes an object and reads it back.
    async fn write(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        let bytes = Bytes::from(bytes);
        self.bucket.put(name, bytes.clone()).await?;
        let found = self.bucket.get(name, bytes.len() as u64).await?;
        if found == bytes {
            return Ok(());
        }
        let reason = format!(
            "{} bytes with checksum {:08x} were read back, {} with {:08x} were written",
            found.len(),
            crc32c(&found),
            bytes.len(),
            crc32c(&bytes)
        );
        Err(super::corrupt(&self.bucket, name, reason))
    }
}

fn bad(name: &str) -> impl Fn(ObjectError) -> WriteError {
    let name = name.to_owned();
    move |source| WriteError::Run {
        name: name.clone(),
        source,
    }
}
