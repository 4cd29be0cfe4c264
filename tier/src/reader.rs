//! Reading runs: through a cache, chunk by chunk, every chunk verified on every read.
//!
//! 1. A run's *view*, what the footer says of it and its index, is read once and kept in memory. It must
//!    be what the partition's record or manifest says of the run.
//! 2. Batches are read in blocks of whole chunks, about 1 MiB, through [`BlockCache`].
//! 3. A reader that goes on where it stopped has the next blocks fetched ahead.
//!
//! What is corrupt is read once more, past the cache, before anyone is told. "Not found" means that
//! the caller's plan is stale, never that the log ends there (I23). Memory: the cache, the views, up to
//! [`READ_BYTES_MAX`] per read, and [`AHEAD_MAX`] blocks ahead.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use forebay_meta::model::Run;
use forebay_record::Offset;
use forebay_record::batch::Header;
use forebay_record::object::{Chunk, RunIndex, RunInfo};
use forebay_record::state::PartitionState;
use forebay_runtime::metrics::Metrics;
use tokio::sync::Semaphore;

use crate::bucket::Bucket;
use crate::cache::{BlockCache, BlockKey, Decoded};
use crate::config::CacheConfig;
use crate::error::{OpenError, StoreError};
use crate::tail::Tail;
use crate::verify::{check_chunk, read_state};

/// Most bytes of one answer, but for a first batch that is larger by itself.
pub const READ_BYTES_MAX: u32 = 8 << 20;
/// Blocks fetched ahead at a time, by all readers.
pub const AHEAD_MAX: usize = 16;

/// A block ends with the chunk that brings it to this many bytes.
const BLOCK_BYTES: u64 = 1 << 20;
/// Blocks fetched ahead of one reader.
const AHEAD_BLOCKS: usize = 4;
/// Ends of reads that are remembered to recognise who goes on.
const POSITIONS_MAX: usize = 4096;
/// Part of the cache's memory for views, as a divisor.
const VIEWS_PART: usize = 8;

/// Reads runs. Clones share the cache.
#[derive(Clone)]
pub struct Reader {
    bucket: Bucket,
    blocks: BlockCache,
    views: Decoded<View>,
    ahead: Arc<Semaphore>,
    /// Object, position of the run and offset where some reader stopped.
    positions: foyer::Cache<BlockKey, ()>,
}

/// A run that can be read.
#[derive(Debug)]
struct View {
    object: String,
    info: RunInfo,
    index: RunIndex,
    /// Number of the first chunk of each block.
    blocks: Vec<usize>,
}

impl View {
    fn new(object: &str, info: RunInfo, index: RunIndex) -> Self {
        let mut blocks = Vec::new();
        let mut bytes = BLOCK_BYTES;
        for (number, chunk) in index.chunks().iter().enumerate() {
            if bytes >= BLOCK_BYTES {
                blocks.push(number);
                bytes = 0;
            }
            bytes += u64::from(chunk.len);
        }
        Self {
            object: object.to_owned(),
            info,
            index,
            blocks,
        }
    }

    fn bytes(&self) -> usize {
        size_of_val(self.index.chunks()) + size_of_val(self.blocks.as_slice())
    }

    fn block_of(&self, chunk: usize) -> usize {
        self.blocks
            .partition_point(|first| *first <= chunk)
            .saturating_sub(1)
    }

    /// The chunks of a block, with their numbers.
    fn chunks_of(&self, block: usize) -> impl Iterator<Item = (usize, &Chunk)> {
        let chunks = self.index.chunks();
        let first = self.blocks.get(block).copied().unwrap_or(chunks.len());
        let end = self.blocks.get(block + 1).copied().unwrap_or(chunks.len());
        chunks
            .iter()
            .enumerate()
            .skip(first)
            .take(end.saturating_sub(first))
    }

    fn key(&self, block: usize) -> BlockKey {
        let (mut start, mut len) = (None, 0);
        for (_, chunk) in self.chunks_of(block) {
            start.get_or_insert(chunk.position);
            len += u64::from(chunk.len);
        }
        BlockKey {
            object: self.object.clone(),
            position: self.info.position + start.unwrap_or(0),
            len,
        }
    }

    /// Where a chunk lies in its block.
    fn start_in(&self, block: usize, chunk: &Chunk) -> usize {
        let start = self
            .chunks_of(block)
            .next()
            .map_or(0, |(_, first)| first.position);
        usize::try_from(chunk.position.saturating_sub(start)).unwrap_or(usize::MAX)
    }

    /// A chunk's bytes of its block's; none where the block is too short.
    fn slice<'a>(&self, block: usize, chunk: &Chunk, bytes: &'a Bytes) -> &'a [u8] {
        let start = self.start_in(block, chunk);
        bytes
            .get(start..start.saturating_add(chunk.len as usize))
            .unwrap_or_default()
    }
}

impl Reader {
    /// A reader with a cache of its own. A disk cache must not be shared with another process.
    ///
    /// # Errors
    /// Where the cache's folder cannot be used.
    pub async fn open(bucket: Bucket, config: &CacheConfig, metrics: &Metrics) -> Result<Self, OpenError> {
        let views = config.memory_bytes.as_usize() / VIEWS_PART;
        Ok(Self {
            bucket,
            blocks: BlockCache::open(config, metrics).await?,
            views: Decoded::new("views", views),
            ahead: Arc::new(Semaphore::new(AHEAD_MAX)),
            positions: foyer::CacheBuilder::new(POSITIONS_MAX).with_shards(1).build(),
        })
    }

    /// Writes what is only in memory to the disk cache, if there is one.
    pub async fn close(&self) {
        self.blocks.close().await;
    }

    /// Whole batches, from the one that holds `from` on and none that ends after `until`: at most
    /// `max_bytes` or [`READ_BYTES_MAX`], but at least one batch if there is one. The first may begin
    /// below `from`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where the plan is stale; [`StoreError::Corrupt`] names object and chunk,
    /// where nothing good comes before it.
    pub async fn read(
        &self,
        run: &Run,
        from: Offset,
        until: Offset,
        max_bytes: u32,
    ) -> Result<Bytes, StoreError> {
        let until = until.min(run.end);
        if from >= until {
            return Ok(Bytes::new());
        }
        let view = self.view(run).await?;
        let mut taken = Taken::new(from, until, max_bytes.min(READ_BYTES_MAX));
        let first = view.index.chunk_of(from);
        let mut block = view.block_of(first);
        self.start_blocks(&view, block, &taken);
        'blocks: while block < view.blocks.len() {
            let mut bytes = match self.block(&view, block).await {
                Ok(bytes) => bytes,
                // What is good before it is given out; whoever goes on reading meets it again.
                Err(StoreError::Corrupt { .. }) if taken.bytes > 0 => break 'blocks,
                Err(error) => return Err(error),
            };
            for (number, chunk) in view.chunks_of(block).filter(|(number, _)| *number >= first) {
                if chunk.first >= until {
                    break 'blocks;
                }
                if check_chunk(number as u64, chunk, view.slice(block, chunk, &bytes)).is_err() {
                    bytes = self.past_cache(&view, block).await?;
                }
                let start = view.start_in(block, chunk);
                let more = taken.chunk(chunk, &bytes, start);
                if !more.map_err(|reason| self.corrupt(&view, number, &reason))? {
                    break 'blocks;
                }
            }
            block += 1;
        }
        self.read_ahead(run, &view, from, taken.next, block);
        Ok(taken.finish())
    }

    /// Base offset of the first batch from `from` on, in this run, that reaches a time.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub async fn lookup(
        &self,
        run: &Run,
        from: Offset,
        timestamp_ms: i64,
    ) -> Result<Option<Offset>, StoreError> {
        if from >= run.end || run.max_timestamp_ms < timestamp_ms {
            return Ok(None);
        }
        let view = self.view(run).await?;
        let first = view.index.chunk_of(from);
        let chunks = view.index.chunks().iter().enumerate().skip(first);
        for (number, chunk) in chunks.filter(|(_, chunk)| chunk.max_timestamp_ms >= timestamp_ms) {
            let block = view.block_of(number);
            let mut bytes = self.block(&view, block).await?;
            if check_chunk(number as u64, chunk, view.slice(block, chunk, &bytes)).is_err() {
                bytes = self.past_cache(&view, block).await?;
            }
            let mut rest = view.slice(block, chunk, &bytes);
            while !rest.is_empty() {
                let header =
                    Header::parse(rest).map_err(|error| self.corrupt(&view, number, &error.to_string()))?;
                if header.end_offset() > from && header.max_timestamp() >= timestamp_ms {
                    return Ok(Some(header.base_offset()));
                }
                rest = rest.get(header.len_bytes()..).unwrap_or_default();
            }
        }
        Ok(None)
    }

    /// The partition's state at the run's end. Not cached: it is read once, by a takeover.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub async fn state(&self, run: &Run) -> Result<PartitionState, StoreError> {
        let view = self.view(run).await?;
        let read = || read_state(&self.bucket, &view.object, &view.info);
        match read().await {
            Err(StoreError::Corrupt { .. }) => read().await,
            other => other,
        }
    }

    /// What is known of a run, and checked against what the record says of it.
    async fn view(&self, run: &Run) -> Result<Arc<View>, StoreError> {
        let key = BlockKey {
            object: run.object.clone(),
            position: run.position,
            len: run.len,
        };
        let load = || {
            let (bucket, run) = (self.bucket.clone(), run.clone());
            async move {
                let view = match load_view(&bucket, &run).await {
                    Err(StoreError::Corrupt { .. }) => load_view(&bucket, &run).await?,
                    other => other?,
                };
                let bytes = view.bytes();
                Ok((view, bytes))
            }
        };
        let view = self.views.get(&key, load).await?;
        check_view(&self.bucket, &view.info, run)?;
        Ok(view)
    }

    async fn block(&self, view: &Arc<View>, block: usize) -> Result<Bytes, StoreError> {
        let fetch = || fetch_block(self.bucket.clone(), Arc::clone(view), block);
        self.blocks.get(&view.key(block), fetch).await
    }

    /// The cache gave bytes that are not right: from now on it does not.
    async fn past_cache(&self, view: &Arc<View>, block: usize) -> Result<Bytes, StoreError> {
        let key = view.key(block);
        tracing::warn!(
            object = key.object,
            position = key.position,
            "a cached block is corrupt; it is read again from the object store"
        );
        self.blocks.remove(&key);
        fetch_block(self.bucket.clone(), Arc::clone(view), block).await
    }

    /// Has all blocks of a large read fetched at once, rather than one after the other.
    fn start_blocks(&self, view: &Arc<View>, first: usize, taken: &Taken) {
        let mut bytes = 0;
        for block in first..view.blocks.len() {
            let chunk = view.chunks_of(block).next();
            if bytes >= u64::from(taken.max_bytes)
                || chunk.is_none_or(|(_, chunk)| chunk.first >= taken.until)
            {
                return;
            }
            bytes += view.key(block).len;
            // The first one is asked for right away.
            if block > first && !self.start_block(view, block) {
                return;
            }
        }
    }

    fn start_block(&self, view: &Arc<View>, block: usize) -> bool {
        let Ok(permit) = Arc::clone(&self.ahead).try_acquire_owned() else {
            return false;
        };
        let fetch = fetch_block(self.bucket.clone(), Arc::clone(view), block);
        self.blocks.ahead(&view.key(block), permit, fetch);
        true
    }

    /// Where a reader went on at `from` and stopped at `next`: fetches the blocks after `block`.
    fn read_ahead(&self, run: &Run, view: &Arc<View>, from: Offset, next: Offset, block: usize) {
        let position = |offset: Offset| BlockKey {
            object: run.object.clone(),
            position: run.position,
            len: offset.0,
        };
        let goes_on = self.positions.remove(&position(from)).is_some();
        self.positions.insert(position(next), ());
        if !goes_on && from > run.base {
            return;
        }
        for block in (block + 1..view.blocks.len()).take(AHEAD_BLOCKS) {
            if !self.start_block(view, block) {
                return;
            }
        }
    }

    fn corrupt(&self, view: &View, chunk: usize, reason: &str) -> StoreError {
        corrupt(&self.bucket, &view.object, format!("chunk {chunk}: {reason}"))
    }

    /// Puts other bytes in the place of a cached block.
    #[cfg(test)]
    pub(crate) async fn damage_cache(&self, run: &Run) {
        let view = self.view(run).await.unwrap();
        for block in 0..view.blocks.len() {
            let key = view.key(block);
            let bytes = vec![7; usize::try_from(key.len).unwrap()];
            self.blocks.insert(key, bytes.into());
        }
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("bucket", &self.bucket)
            .finish_non_exhaustive()
    }
}

fn corrupt(bucket: &Bucket, object: &str, reason: String) -> StoreError {
    StoreError::Corrupt {
        place: bucket.place().to_owned(),
        name: object.to_owned(),
        reason,
    }
}

async fn load_view(bucket: &Bucket, run: &Run) -> Result<View, StoreError> {
    let tail = Tail::read(bucket, &run.object).await?;
    let found = tail.footer.runs.iter().find(|info| info.position == run.position);
    let Some(info) = found else {
        let reason = format!("it has no run at byte {}", run.position);
        return Err(corrupt(bucket, &run.object, reason));
    };
    check_view(bucket, info, run)?;
    let index = tail.index(bucket, &run.object, info).await?;
    Ok(View::new(&run.object, *info, index))
}

/// Refuses an object that is not the one which the record was written for.
fn check_view(bucket: &Bucket, info: &RunInfo, run: &Run) -> Result<(), StoreError> {
    let found = (info.base, info.end, info.len, info.crc32c);
    let expected = (run.base, run.end, run.len, run.crc32c);
    if found == expected {
        return Ok(());
    }
    let show = |(base, end, len, crc): (Offset, Offset, u64, u32)| {
        format!("{base} to {end}, {len} bytes, checksum {crc:08x}")
    };
    let reason = format!(
        "its run at byte {} is {}; {} expected",
        run.position,
        show(found),
        show(expected)
    );
    Err(corrupt(bucket, &run.object, reason))
}

/// Reads a block from the store, once more where a chunk is not right.
async fn fetch_block(bucket: Bucket, view: Arc<View>, block: usize) -> Result<Bytes, StoreError> {
    let key = view.key(block);
    let mut again = true;
    loop {
        let range = key.position..key.position + key.len;
        let bytes = bucket.get_range(&view.object, range).await?;
        let wrong = view.chunks_of(block).find_map(|(number, chunk)| {
            check_chunk(number as u64, chunk, view.slice(block, chunk, &bytes)).err()
        });
        match wrong {
            None => return Ok(bytes),
            Some(reason) if again => {
                tracing::warn!(object = view.object, reason, "read again");
                again = false;
            }
            Some(reason) => return Err(corrupt(&bucket, &view.object, reason)),
        }
    }
}

/// What a read has taken so far.
struct Taken {
    from: Offset,
    until: Offset,
    max_bytes: u32,
    /// Blocks, and what of them belongs to the answer.
    pieces: Vec<(Bytes, Range<usize>)>,
    bytes: usize,
    /// End of the last batch taken.
    next: Offset,
}

impl Taken {
    const fn new(from: Offset, until: Offset, max_bytes: u32) -> Self {
        Self {
            from,
            until,
            max_bytes,
            pieces: Vec::new(),
            bytes: 0,
            next: from,
        }
    }

    /// Takes what belongs to the answer of a verified chunk that lies at `start` in `block`; false
    /// where the answer ends in it.
    fn chunk(&mut self, chunk: &Chunk, block: &Bytes, start: usize) -> Result<bool, String> {
        let max = self.max_bytes as usize;
        let len = chunk.len as usize;
        if chunk.first >= self.from && chunk.end <= self.until && self.bytes + len <= max {
            self.take(block, start..start + len);
            self.next = chunk.end;
            return Ok(true);
        }
        let batches = block.get(start..start + len).unwrap_or_default();
        let (mut first, mut at, mut whole) = (None, 0, true);
        while let Some(rest) = batches.get(at..).filter(|rest| !rest.is_empty()) {
            let header = Header::parse(rest).map_err(|error| error.to_string())?;
            if header.end_offset() > self.from {
                let so_far = self.bytes + (at - *first.get_or_insert(at));
                let full = so_far > 0 && so_far + header.len_bytes() > max;
                if header.end_offset() > self.until || full {
                    whole = false;
                    break;
                }
                self.next = header.end_offset();
            }
            at += header.len_bytes();
        }
        let first = first.unwrap_or(at);
        self.take(block, start + first..start + at);
        Ok(whole)
    }

    fn take(&mut self, block: &Bytes, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        self.bytes += range.len();
        match self.pieces.last_mut() {
            Some((last, taken)) if last.as_ptr() == block.as_ptr() && taken.end == range.start => {
                taken.end = range.end;
            }
            _ => self.pieces.push((block.clone(), range)),
        }
    }

    /// The answer: a part of a cached block where one holds all of it, else a copy.
    fn finish(self) -> Bytes {
        if let [(block, range)] = self.pieces.as_slice() {
            return block.slice(range.clone());
        }
        let mut all = BytesMut::with_capacity(self.bytes);
        for (block, range) in &self.pieces {
            all.extend_from_slice(block.get(range.clone()).unwrap_or_default());
        }
        all.freeze()
    }
}

#[cfg(test)]
mod tests;
