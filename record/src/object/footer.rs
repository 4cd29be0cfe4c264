//! The directory of an object, and the trailer that says where it is.
//!
//! Every position is checked against the object's length before anyone may use it.

use super::error::ObjectError;
use super::fields::{Fields, verify};
use crate::{Epoch, Offset, PartitionId, SegmentId, SessionId, crc32c};

/// Bytes of the trailer, the last of an object.
pub const TRAILER_LEN: usize = 32;
/// Runs in one object.
pub(super) const RUNS_MAX: usize = 65_536;

const TRAILER_MAGIC: [u8; 4] = *b"FBO1";
const FOOTER_MAGIC: [u8; 4] = *b"FBOF";
const VERSION: u16 = 1;
const TRAILER_CHECKED_LEN: usize = 24;
const FOOTER_HEADER_LEN: usize = 24;
const RUN_LEN: usize = 144;

/// Where the footer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Bytes from the start of the object.
    pub footer_position: u64,
    /// Bytes.
    pub footer_len: u64,
    /// CRC-32C of the footer.
    pub footer_crc32c: u32,
}

impl Trailer {
    /// The trailer's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; TRAILER_LEN] {
        let mut out = Vec::with_capacity(TRAILER_LEN);
        out.extend_from_slice(&self.footer_position.to_le_bytes());
        out.extend_from_slice(&self.footer_len.to_le_bytes());
        out.extend_from_slice(&self.footer_crc32c.to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&0_u16.to_le_bytes());
        out.extend_from_slice(&crc32c(&out).to_le_bytes());
        out.extend_from_slice(&TRAILER_MAGIC);
        let mut trailer = [0; TRAILER_LEN];
        for (to, from) in trailer.iter_mut().zip(out) {
            *to = from;
        }
        trailer
    }

    /// Reads the trailer at the end of `suffix`, the last bytes of an object of `object_len` bytes.
    ///
    /// # Errors
    /// Where that is no trailer, or its footer does not end right before it.
    pub fn decode(suffix: &[u8], object_len: u64) -> Result<Self, ObjectError> {
        let bytes = suffix.last_chunk::<TRAILER_LEN>().ok_or(ObjectError::Truncated {
            what: "object",
            have: object_len.min(suffix.len() as u64),
            need: TRAILER_LEN as u64,
        })?;
        let mut tail = Fields::new("trailer", bytes.get(TRAILER_CHECKED_LEN..).unwrap_or_default());
        let expected = tail.u32()?;
        let found = tail.take()?;
        if found != TRAILER_MAGIC {
            return Err(ObjectError::Magic {
                what: "trailer",
                found,
                expected: TRAILER_MAGIC,
            });
        }
        let checked = bytes.get(..TRAILER_CHECKED_LEN).unwrap_or_default();
        verify("trailer", checked, expected)?;
        let mut fields = Fields::new("trailer", checked);
        let trailer = Self {
            footer_position: fields.u64()?,
            footer_len: fields.u64()?,
            footer_crc32c: fields.u32()?,
        };
        fields.version(VERSION)?;
        fields.zero_u16("trailer flags")?;
        let end = trailer
            .footer_position
            .checked_add(trailer.footer_len)
            .and_then(|end| end.checked_add(TRAILER_LEN as u64));
        if end != Some(object_len) {
            let found = end.unwrap_or(u64::MAX);
            return Err(ObjectError::value(
                "end of the trailer",
                found,
                object_len.to_string(),
            ));
        }
        let most = (FOOTER_HEADER_LEN + RUNS_MAX * RUN_LEN) as u64;
        if trailer.footer_len > most {
            return Err(ObjectError::Count {
                what: "bytes of the footer",
                count: trailer.footer_len,
                max: most,
            });
        }
        Ok(trailer)
    }
}

/// A part of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// Bytes from the start of the object.
    pub position: u64,
    /// Bytes.
    pub len: u64,
    /// CRC-32C.
    pub crc32c: u32,
}

/// What the footer says of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunInfo {
    /// The partition, and the segment that the batches were sealed in.
    pub segment: SegmentId,
    /// The partition's topic, as a UUID's 128 bits.
    pub topic: u128,
    /// First offset.
    pub base: Offset,
    /// End, exclusive.
    pub end: Offset,
    /// Where the batches start in the object.
    pub position: u64,
    /// Bytes of the batches.
    pub len: u64,
    /// Batches.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Base timestamp of the first batch, milliseconds since 1970.
    pub first_timestamp_ms: i64,
    /// Largest timestamp, milliseconds since 1970.
    pub max_timestamp_ms: i64,
    /// CRC-32C of the batches.
    pub crc32c: u32,
    /// Its index.
    pub index: Section,
    /// The partition's state at its end.
    pub state: Section,
}

/// The directory of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// Session of the broker that had it written.
    pub session: SessionId,
    /// The runs, in the order of their positions.
    pub runs: Vec<RunInfo>,
}

impl Footer {
    /// The footer's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FOOTER_HEADER_LEN + self.runs.len() * RUN_LEN);
        out.extend_from_slice(&FOOTER_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&0_u16.to_le_bytes());
        out.extend_from_slice(&self.session.0.to_le_bytes());
        let count = u32::try_from(self.runs.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&0_u32.to_le_bytes());
        for run in &self.runs {
            put_run(&mut out, run);
        }
        out
    }

    /// Reads the footer that a trailer points to.
    ///
    /// # Errors
    /// Where the checksum is wrong, or a run does not lie within the object.
    pub fn decode(bytes: &[u8], trailer: &Trailer) -> Result<Self, ObjectError> {
        verify("footer", bytes, trailer.footer_crc32c)?;
        let mut fields = Fields::new("footer", bytes);
        fields.head(FOOTER_MAGIC, VERSION)?;
        let session = SessionId(fields.u64()?);
        let count = fields.count("runs in a footer", RUNS_MAX, RUN_LEN)?;
        fields.zero_u32("footer header")?;
        let mut runs: Vec<RunInfo> = Vec::with_capacity(count);
        let mut position = 0;
        for _ in 0..count {
            let run = take_run(&mut fields)?;
            check_run(&run, position, trailer.footer_position)?;
            position = run.position.saturating_add(run.len);
            runs.push(run);
        }
        fields.finish()?;
        Ok(Self { session, runs })
    }

    /// The run of a partition that starts at an offset.
    #[must_use]
    pub fn run(&self, partition: PartitionId, base: Offset) -> Option<&RunInfo> {
        self.runs
            .iter()
            .find(|run| run.segment.partition == partition && run.base == base)
    }
}

fn put_run(out: &mut Vec<u8>, run: &RunInfo) {
    out.extend_from_slice(&run.segment.partition.0.to_le_bytes());
    out.extend_from_slice(&run.topic.to_be_bytes());
    out.extend_from_slice(&run.segment.epoch.0.to_le_bytes());
    out.extend_from_slice(&run.segment.seq.to_le_bytes());
    for number in [
        run.base.0,
        run.end.0,
        run.position,
        run.len,
        run.batches,
        run.records,
    ] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&run.first_timestamp_ms.to_le_bytes());
    out.extend_from_slice(&run.max_timestamp_ms.to_le_bytes());
    for section in [run.index, run.state] {
        out.extend_from_slice(&section.position.to_le_bytes());
        out.extend_from_slice(&section.len.to_le_bytes());
    }
    for checksum in [run.crc32c, run.index.crc32c, run.state.crc32c] {
        out.extend_from_slice(&checksum.to_le_bytes());
    }
    out.extend_from_slice(&0_u32.to_le_bytes());
}

fn take_run(fields: &mut Fields<'_>) -> Result<RunInfo, ObjectError> {
    let partition = PartitionId(fields.u64()?);
    let topic = u128::from_be_bytes(fields.take()?);
    let epoch = Epoch(fields.u32()?);
    let seq = fields.u32()?;
    let [base, end, position, len] = [fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?];
    let [batches, records] = [fields.u64()?, fields.u64()?];
    let [first_timestamp_ms, max_timestamp_ms] = [fields.i64()?, fields.i64()?];
    let [index_position, index_len] = [fields.u64()?, fields.u64()?];
    let [state_position, state_len] = [fields.u64()?, fields.u64()?];
    let [crc32c, index_crc32c, state_crc32c] = [fields.u32()?, fields.u32()?, fields.u32()?];
    fields.zero_u32("number of aborted transactions")?;
    Ok(RunInfo {
        segment: SegmentId {
            partition,
            epoch,
            seq,
        },
        topic,
        base: Offset(base),
        end: Offset(end),
        position,
        len,
        batches,
        records,
        first_timestamp_ms,
        max_timestamp_ms,
        crc32c,
        index: Section {
            position: index_position,
            len: index_len,
            crc32c: index_crc32c,
        },
        state: Section {
            position: state_position,
            len: state_len,
            crc32c: state_crc32c,
        },
    })
}

/// Refuses a run that is empty, lies before `start`, or reaches into the footer with any part.
fn check_run(run: &RunInfo, start: u64, footer: u64) -> Result<(), ObjectError> {
    if run.base >= run.end {
        let least = format!("more than {}", run.base);
        return Err(ObjectError::value("end of a run", run.end.0, least));
    }
    if run.position < start || run.len == 0 {
        let least = format!("at least {start}, and bytes");
        return Err(ObjectError::value("position of a run", run.position, least));
    }
    let parts = [
        ("end of a run's batches", run.position, run.len),
        ("end of a run's index", run.index.position, run.index.len),
        ("end of a run's state", run.state.position, run.state.len),
    ];
    for (what, position, len) in parts {
        let end = position.saturating_add(len);
        if end > footer {
            return Err(ObjectError::value(
                what,
                end,
                format!("at most the footer's {footer}"),
            ));
        }
    }
    Ok(())
}
