//! Proving that an object is what its writer said, before anything depends on it (I19).
//!
//! Length by HEAD; trailer and footer by a read of the object's end, equal by checksum to what the
//! writer made; the index, consistent with the footer; the partition's state; and one chunk, chosen
//! at random, read back. Memory: one index and one chunk.

use forebay_record::object::{Chunk, RunInfo};
use forebay_record::state::PartitionState;
use forebay_record::{PartitionId, crc32c};
use forebay_runtime::random::Random;

use crate::bucket::Bucket;
use crate::error::StoreError;
use crate::run_writer::Written;
use crate::tail::Tail;

/// Verifies an object with one run of `partition`, as its writer described it.
///
/// # Errors
/// [`StoreError::Corrupt`] names what differs; otherwise as the store answers.
pub async fn verify(
    bucket: &Bucket,
    name: &str,
    partition: PartitionId,
    written: &Written,
    random: &dyn Random,
) -> Result<RunInfo, StoreError> {
    let corrupt = |reason: String| StoreError::Corrupt {
        place: bucket.place().to_owned(),
        name: name.to_owned(),
        reason,
    };
    let differs = |what: &str, found: u64, expected: u64| {
        if found == expected {
            Ok(())
        } else {
            Err(corrupt(format!("its {what} is {found}, {expected} expected")))
        }
    };
    differs("length", bucket.head(name).await?, written.object_len)?;
    let tail = Tail::read(bucket, name).await?;
    differs("length", tail.object_len, written.object_len)?;
    if tail.trailer.footer_crc32c != written.footer_crc32c {
        return Err(corrupt(format!(
            "its footer has checksum {:08x}, {:08x} was written",
            tail.trailer.footer_crc32c, written.footer_crc32c
        )));
    }
    let run = match tail.footer.runs.as_slice() {
        [run] if run.segment.partition == partition => *run,
        runs => {
            let reason = format!("it has {} runs, one of {partition} expected", runs.len());
            return Err(corrupt(reason));
        }
    };
    differs("run's position", run.position, written.position)?;
    differs("run's length", run.len, written.len)?;
    differs("run's checksum", u64::from(run.crc32c), u64::from(written.crc32c))?;
    if run.max_timestamp_ms != written.max_timestamp_ms {
        return Err(corrupt(format!(
            "its largest timestamp is {}, {} expected",
            run.max_timestamp_ms, written.max_timestamp_ms
        )));
    }
    let index = tail.index(bucket, name, &run).await?;
    read_state(bucket, name, &run).await?;
    let chosen = random.range(0, index.chunks().len() as u64);
    if let Some(chunk) = usize::try_from(chosen).ok().and_then(|n| index.chunks().get(n)) {
        let start = run.position + chunk.position;
        let bytes = bucket
            .get_range(name, start..start + u64::from(chunk.len))
            .await?;
        check_chunk(chosen, chunk, &bytes).map_err(corrupt)?;
    }
    Ok(run)
}

/// Reads the state at a run's end.
pub(crate) async fn read_state(
    bucket: &Bucket,
    name: &str,
    run: &RunInfo,
) -> Result<PartitionState, StoreError> {
    let corrupt = |reason: String| StoreError::Corrupt {
        place: bucket.place().to_owned(),
        name: name.to_owned(),
        reason,
    };
    let state = run.state;
    if state.len > STATE_BYTES_MAX {
        return Err(corrupt(format!(
            "its state has {} bytes, at most {STATE_BYTES_MAX} are possible",
            state.len
        )));
    }
    let bytes = bucket
        .get_range(name, state.position..state.position + state.len)
        .await?;
    let found = crc32c(&bytes);
    if found != state.crc32c {
        return Err(corrupt(format!(
            "its state has checksum {found:08x}, {:08x} expected",
            state.crc32c
        )));
    }
    PartitionState::decode(&bytes).map_err(|error| corrupt(error.to_string()))
}

/// More than the largest state that can be encoded.
const STATE_BYTES_MAX: u64 = 4 << 20;

/// Says what is wrong with a chunk's bytes.
pub(crate) fn check_chunk(number: u64, chunk: &Chunk, bytes: &[u8]) -> Result<(), String> {
    let found = crc32c(bytes);
    if found == chunk.crc32c && bytes.len() == chunk.len as usize {
        return Ok(());
    }
    Err(format!(
        "chunk {number} at byte {} of its run ({} to {}) has checksum {found:08x}, {:08x} expected",
        chunk.position, chunk.first, chunk.end, chunk.crc32c
    ))
}
