//! A log file as services write them, the same on every machine: 7 million lines in a GiB.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use forebay_runtime::random::{Random as _, SeededRandom};

const SEED: u64 = 7450;
/// 2026-11-01T00:00:00Z.
const START_MS: u64 = 1_793_491_200_000;

const LEVELS: [&str; 8] = ["INFO", "INFO", "INFO", "INFO", "DEBUG", "DEBUG", "WARN", "ERROR"];
const SERVICES: [&str; 5] = ["checkout", "catalog", "search", "payments", "session-store"];
const METHODS: [&str; 5] = ["GET", "GET", "GET", "POST", "PUT"];
const PATHS: [&str; 6] = [
    "/api/v1/orders",
    "/api/v1/search",
    "/products",
    "/cart/items",
    "/health",
    "/api/v2/sessions/renew",
];
const STATUSES: [u16; 8] = [200, 200, 200, 200, 201, 304, 404, 500];

/// Makes sure that the file is there with at least that many bytes of whole lines; gives its size.
///
/// # Errors
/// Where it cannot be written.
pub fn make(path: &Path, bytes: u64) -> io::Result<u64> {
    if let Ok(found) = std::fs::metadata(path)
        && (bytes..bytes + 512).contains(&found.len())
    {
        return Ok(found.len());
    }
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let (random, mut now_ms, mut written) = (SeededRandom::new(SEED), START_MS, 0);
    let mut line = Vec::with_capacity(512);
    while written < bytes {
        line.clear();
        append_line(&mut line, &random, &mut now_ms)?;
        file.write_all(&line)?;
        written += line.len() as u64;
    }
    file.into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .sync_all()?;
    Ok(written)
}

fn pick<T: Copy + Default>(random: u64, shift: u32, from: &[T]) -> T {
    let at = usize::try_from(random >> shift & 0xff).unwrap_or_default() % from.len().max(1);
    from.get(at).copied().unwrap_or_default()
}

/// Between 100 and 200 bytes.
fn append_line(line: &mut Vec<u8>, random: &SeededRandom, now_ms: &mut u64) -> io::Result<()> {
    let (a, b) = (random.u64(), random.u64());
    *now_ms += a & 3;
    let second = *now_ms / 1000;
    let (hour, minute) = (second / 3600 % 24, second / 60 % 60);
    write!(
        line,
        "2026-11-{:02}T{hour:02}:{minute:02}:{:02}.{:03}Z {} {} request_id={b:016x} method={} path={}/{} status={} duration_us={}",
        1 + second / 86_400 % 28,
        second % 60,
        *now_ms % 1000,
        pick(a, 8, &LEVELS),
        pick(a, 16, &SERVICES),
        pick(a, 24, &METHODS),
        pick(a, 32, &PATHS),
        b % 1_000_000,
        pick(a, 40, &STATUSES),
        a >> 48,
    )?;
    if a & 0x70 == 0 {
        write!(line, " upstream={} retries={}", pick(b, 8, &SERVICES), b & 3)?;
    }
    line.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn lines_look_like_those_of_a_service_and_are_the_same_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
        let size = make(&one, 200_000).unwrap();
        assert_eq!(make(&one, 200_000).unwrap(), size, "it is there");
        make(&two, 200_000).unwrap();
        let text = std::fs::read_to_string(&one).unwrap();
        assert_eq!(text, std::fs::read_to_string(&two).unwrap());
        assert_eq!(text.len() as u64, size);
        assert!(
            text.lines().all(|line| (100..=200).contains(&line.len())),
            "{}",
            text.lines().map(str::len).max().unwrap()
        );
    }
}
