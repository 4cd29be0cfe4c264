//! The manifest: which objects hold a partition's past. A root lists pages, a page lists runs.
//!
//! Both are immutable; a change writes new ones, and the record's pointer to the root, with its
//! length and checksum, is the only commit point (I20). Runs rise within a page, pages
//! within a root; between two of them lies nothing but what the record declares lost, which the writer
//! checks. Each part ends with a CRC-32C of all before it, so that it can be judged alone.
//!
//! Root:
//!
//! | bytes | field                                                                             |
//! |-------|-----------------------------------------------------------------------------------|
//! | 0–3   | magic `FBMR`                                                                      |
//! | 4–7   | format version u16, 1; flags u16, zero                                            |
//! | 8–15  | partition                                                                         |
//! | 16–23 | generation: counts the manifest's versions                                        |
//! | 24–27 | pages                                                                             |
//! | 28–   | per page: base u64, end u64, runs u32, bytes of its runs u64, largest timestamp   |
//! |       | i64, length of its object u64, CRC-32C of its object u32, name u16 + bytes        |
//! | last 4| CRC-32C of all before                                                             |
//!
//! Page: magic `FBMP`, version and flags, partition, runs u32; per run base u64, end u64, position u64,
//! bytes u64, largest timestamp i64, CRC-32C u32, name of the object u16 + bytes; CRC-32C.

use super::error::ObjectError;
use super::fields::{Fields, verify};
use crate::{Offset, PartitionId, crc32c};

/// Runs in one page.
pub const PAGE_RUNS_MAX: usize = 4096;
/// Pages in one root.
pub const PAGES_MAX: usize = 65_536;
/// Bytes of an object's name.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes that a page can have at most.
pub const PAGE_BYTES_MAX: usize = PAGE_HEADER_LEN + PAGE_RUNS_MAX * (RUN_LEN_MIN + NAME_BYTES_MAX) + 4;
/// Bytes that a root can have at most.
pub const ROOT_BYTES_MAX: usize = ROOT_HEADER_LEN + PAGES_MAX * (PAGE_REF_LEN_MIN + NAME_BYTES_MAX) + 4;

const ROOT_MAGIC: [u8; 4] = *b"FBMR";
const PAGE_MAGIC: [u8; 4] = *b"FBMP";
const VERSION: u16 = 1;
const ROOT_HEADER_LEN: usize = 28;
const PAGE_HEADER_LEN: usize = 20;
const PAGE_REF_LEN_MIN: usize = 50;
const RUN_LEN_MIN: usize = 46;

/// A range of a partition in one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRun {
    /// First offset.
    pub base: Offset,
    /// End, exclusive.
    pub end: Offset,
    /// The object's name.
    pub object: String,
    /// Where the run starts in the object.
    pub position: u64,
    /// Bytes of the run.
    pub len: u64,
    /// Largest timestamp of its records, milliseconds since 1970.
    pub max_timestamp_ms: i64,
    /// CRC-32C of the run.
    pub crc32c: u32,
}

/// Runs of one partition, in order and not overlapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestPage {
    /// The partition.
    pub partition: PartitionId,
    /// The runs, at least one.
    pub runs: Vec<ManifestRun>,
}

/// What a root says of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRef {
    /// First offset.
    pub base: Offset,
    /// End, exclusive.
    pub end: Offset,
    /// Runs in it.
    pub runs: u32,
    /// Bytes of those runs.
    pub bytes: u64,
    /// Largest timestamp of their records, milliseconds since 1970.
    pub max_timestamp_ms: i64,
    /// Name of the page's object.
    pub object: String,
    /// Bytes of the page's object.
    pub len: u64,
    /// CRC-32C of the page's object.
    pub crc32c: u32,
}

/// The pages of one partition's past, in order and not overlapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRoot {
    /// The partition.
    pub partition: PartitionId,
    /// Counts the versions.
    pub generation: u64,
    /// The pages, at least one.
    pub pages: Vec<PageRef>,
}

impl ManifestRun {
    fn put(&self, out: &mut Vec<u8>) {
        for number in [self.base.0, self.end.0, self.position, self.len] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.max_timestamp_ms.to_le_bytes());
        out.extend_from_slice(&self.crc32c.to_le_bytes());
        put_name(out, &self.object);
    }

    fn take(fields: &mut Fields<'_>) -> Result<Self, ObjectError> {
        let [base, end, position, len] = [fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?];
        Ok(Self {
            base: Offset(base),
            end: Offset(end),
            position,
            len,
            max_timestamp_ms: fields.i64()?,
            crc32c: fields.u32()?,
            object: fields.name("object of a run")?,
        })
    }
}

impl ManifestPage {
    /// What a root says of this page once it is written under a name.
    #[must_use]
    pub fn page_ref(&self, object: String, encoded: &[u8]) -> PageRef {
        PageRef {
            base: self.runs.first().map_or(Offset(0), |run| run.base),
            end: self.runs.last().map_or(Offset(0), |run| run.end),
            runs: u32::try_from(self.runs.len()).unwrap_or(u32::MAX),
            bytes: self.runs.iter().fold(0, |sum, run| sum.saturating_add(run.len)),
            max_timestamp_ms: self
                .runs
                .iter()
                .map(|run| run.max_timestamp_ms)
                .max()
                .unwrap_or(i64::MIN),
            object,
            len: encoded.len() as u64,
            crc32c: crc32c(encoded),
        }
    }

    /// The page's bytes.
    ///
    /// # Errors
    /// Where the page would not be readable: no runs or too many, overlapping, a bad name.
    pub fn encode(&self) -> Result<Vec<u8>, ObjectError> {
        self.check()?;
        let mut out = Vec::with_capacity(PAGE_HEADER_LEN + self.runs.len() * 128);
        put_head(&mut out, PAGE_MAGIC, self.partition);
        put_count(&mut out, self.runs.len());
        for run in &self.runs {
            run.put(&mut out);
        }
        out.extend_from_slice(&crc32c(&out).to_le_bytes());
        Ok(out)
    }

    /// Reads a page.
    ///
    /// # Errors
    /// Where the bytes are damaged, of another version, or runs overlap.
    pub fn decode(bytes: &[u8]) -> Result<Self, ObjectError> {
        let mut fields = Fields::new("manifest page", checked("manifest page", bytes)?);
        fields.head(PAGE_MAGIC, VERSION)?;
        let partition = PartitionId(fields.u64()?);
        let count = fields.count("runs in a manifest page", PAGE_RUNS_MAX, RUN_LEN_MIN)?;
        let mut runs = Vec::with_capacity(count);
        for _ in 0..count {
            runs.push(ManifestRun::take(&mut fields)?);
        }
        fields.finish()?;
        let page = Self { partition, runs };
        page.check()?;
        Ok(page)
    }

    fn check(&self) -> Result<(), ObjectError> {
        check_count("runs in a manifest page", self.runs.len(), PAGE_RUNS_MAX)?;
        rising(self.runs.iter().map(|run| (run.base, run.end)))?;
        self.runs.iter().try_for_each(|run| check_name(&run.object))
    }
}

impl ManifestRoot {
    /// First offset.
    #[must_use]
    pub fn base(&self) -> Offset {
        self.pages.first().map_or(Offset(0), |page| page.base)
    }

    /// End of what it covers, exclusive.
    #[must_use]
    pub fn end(&self) -> Offset {
        self.pages.last().map_or(Offset(0), |page| page.end)
    }

    /// The root's bytes.
    ///
    /// # Errors
    /// Where the root would not be readable: no pages or too many, overlapping, a bad name.
    pub fn encode(&self) -> Result<Vec<u8>, ObjectError> {
        self.check()?;
        let mut out = Vec::with_capacity(ROOT_HEADER_LEN + self.pages.len() * 128);
        put_head(&mut out, ROOT_MAGIC, self.partition);
        out.extend_from_slice(&self.generation.to_le_bytes());
        put_count(&mut out, self.pages.len());
        for page in &self.pages {
            out.extend_from_slice(&page.base.0.to_le_bytes());
            out.extend_from_slice(&page.end.0.to_le_bytes());
            out.extend_from_slice(&page.runs.to_le_bytes());
            out.extend_from_slice(&page.bytes.to_le_bytes());
            out.extend_from_slice(&page.max_timestamp_ms.to_le_bytes());
            out.extend_from_slice(&page.len.to_le_bytes());
            out.extend_from_slice(&page.crc32c.to_le_bytes());
            put_name(&mut out, &page.object);
        }
        out.extend_from_slice(&crc32c(&out).to_le_bytes());
        Ok(out)
    }

    /// Reads a root.
    ///
    /// # Errors
    /// Where the bytes are damaged, of another version, or pages overlap.
    pub fn decode(bytes: &[u8]) -> Result<Self, ObjectError> {
        let mut fields = Fields::new("manifest root", checked("manifest root", bytes)?);
        fields.head(ROOT_MAGIC, VERSION)?;
        let partition = PartitionId(fields.u64()?);
        let generation = fields.u64()?;
        let count = fields.count("pages in a manifest root", PAGES_MAX, PAGE_REF_LEN_MIN)?;
        let mut pages = Vec::with_capacity(count);
        for _ in 0..count {
            pages.push(PageRef {
                base: Offset(fields.u64()?),
                end: Offset(fields.u64()?),
                runs: fields.u32()?,
                bytes: fields.u64()?,
                max_timestamp_ms: fields.i64()?,
                len: fields.u64()?,
                crc32c: fields.u32()?,
                object: fields.name("object of a manifest page")?,
            });
        }
        fields.finish()?;
        let root = Self {
            partition,
            generation,
            pages,
        };
        root.check()?;
        Ok(root)
    }

    fn check(&self) -> Result<(), ObjectError> {
        check_count("pages in a manifest root", self.pages.len(), PAGES_MAX)?;
        rising(self.pages.iter().map(|page| (page.base, page.end)))?;
        for page in &self.pages {
            check_name(&page.object)?;
            check_count("runs in a manifest page", page.runs as usize, PAGE_RUNS_MAX)?;
            if page.len > PAGE_BYTES_MAX as u64 {
                return Err(ObjectError::Count {
                    what: "bytes of a manifest page",
                    count: page.len,
                    max: PAGE_BYTES_MAX as u64,
                });
            }
        }
        Ok(())
    }
}

fn put_head(out: &mut Vec<u8>, magic: [u8; 4], partition: PartitionId) {
    out.extend_from_slice(&magic);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&0_u16.to_le_bytes());
    out.extend_from_slice(&partition.0.to_le_bytes());
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(&u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend_from_slice(name.as_bytes());
}

/// What a part's last four bytes are the checksum of.
fn checked<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], ObjectError> {
    let (body, stored) = bytes.split_last_chunk::<4>().ok_or(ObjectError::Truncated {
        what,
        have: bytes.len() as u64,
        need: 4,
    })?;
    verify(what, body, u32::from_le_bytes(*stored))?;
    Ok(body)
}

fn check_count(what: &'static str, count: usize, max: usize) -> Result<(), ObjectError> {
    if count == 0 || count > max {
        return Err(ObjectError::Count {
            what,
            count: count as u64,
            max: max as u64,
        });
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), ObjectError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(ObjectError::Name("object of a manifest"));
    }
    Ok(())
}

fn rising(ranges: impl Iterator<Item = (Offset, Offset)>) -> Result<(), ObjectError> {
    let mut next = None;
    for (base, end) in ranges {
        if let Some(expected) = next
            && base < expected
        {
            return Err(ObjectError::Gap {
                found: base,
                expected,
            });
        }
        if end <= base {
            let least = format!("more than {base}");
            return Err(ObjectError::value("end of a manifest's range", end.0, least));
        }
        next = Some(end);
    }
    Ok(())
}
