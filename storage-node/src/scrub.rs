//! Reading live frames back from the disk to see whether they are what they were.
//!
//! [`Reader::verify`] reads frames that lie close together at once, like any reader and past the page
//! cache like any reader, and hands on nothing but how many bytes it read. A frame that is not right is
//! read a second time by itself before it counts as damaged: what went wrong on the way from the disk
//! is no damage. Bytes that cannot be read at all are damaged too.

use forebay_record::SegmentId;

use crate::damage::Spot;
use crate::index::Entry;
use crate::read::{Reader, check, load, run_len};

/// Bytes that are read at once, but for a larger frame.
const RUN_MAX: u64 = 1 << 20;

impl Reader {
    /// Reads frames back, which must rise by position, and brings up those that are damaged. Returns the
    /// bytes read. Blocks.
    pub(crate) fn verify(&self, frames: &[(SegmentId, Entry)]) -> u64 {
        let mut read = 0;
        let entries: Vec<Entry> = frames.iter().map(|(_, entry)| *entry).collect();
        let (mut rest, mut owners) = (entries.as_slice(), frames);
        while let Some(first) = rest.first().copied() {
            let found = self.table.find(first.position);
            let count = found
                .as_ref()
                .map_or(1, |(_, file_end)| run_len(rest, *file_end, RUN_MAX));
            let (run, after) = rest.split_at(count);
            let (of_run, others) = owners.split_at(count);
            (rest, owners) = (after, others);
            // A file that is gone held nothing any more when it went.
            let Some((file, _)) = found else { continue };
            let end = run
                .last()
                .map_or(first.position, |last| last.position + last.frame_len());
            read += end - first.position;
            let bytes = load(&file, first.position, end).unwrap_or_default();
            for (segment, entry) in of_run {
                let start = usize::try_from(entry.position - first.position).unwrap_or(usize::MAX);
                let len = usize::try_from(entry.frame_len()).unwrap_or(usize::MAX);
                let right = start
                    .checked_add(len)
                    .filter(|end| *end <= bytes.len())
                    .is_some_and(|end| check(*segment, entry, &bytes.slice(start..end)).is_some());
                if !right {
                    self.suspect(*segment, entry);
                }
            }
        }
        read
    }

    /// A frame was not what it should be: brings it up, unless it is right when it is read once more.
    pub(crate) fn suspect(&self, segment: SegmentId, entry: &Entry) {
        if !self.index.has(segment, entry) {
            return;
        }
        let found = self.table.find(entry.position);
        let spot = found.as_ref().map_or_else(Spot::default, |(file, _)| Spot {
            file: file.name(),
            at: entry.position - file.header.start,
        });
        let bytes = found.and_then(|(file, _)| {
            let end = entry.position + entry.frame_len();
            load(&file, entry.position, end).ok()
        });
        if bytes.is_some_and(|bytes| check(segment, entry, &bytes).is_some()) {
            tracing::warn!(%segment, number = entry.number, file = spot.file, at = spot.at,
                "a stored frame was read wrong once, and right a second time");
            return;
        }
        self.damages.found(&self.index, segment, entry, &spot);
    }
}
