//! A log file that looks like one of a busy web shop, the same on every machine.

use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use forebay_runtime::random::{Random as _, SeededRandom};

use super::bar;
use forebay_runtime::time::{civil, days_since_1970};

const SEED: u64 = 7450;
const WRITE_BYTES: usize = 1 << 20;

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
const USERS: [&str; 6] = ["-", "-", "-", "ada", "grace", "edsger"];
const PATHS: [&str; 8] = [
    "/",
    "/products",
    "/products/{}",
    "/products/{}/reviews",
    "/cart",
    "/api/v1/orders/{}",
    "/api/v1/search?q=lake+{}",
    "/assets/app.{}.js",
];
const METHODS: [&str; 8] = ["GET", "GET", "GET", "GET", "GET", "POST", "PUT", "HEAD"];
const STATUSES: [u16; 12] = [200, 200, 200, 200, 200, 200, 201, 204, 302, 304, 404, 500];
const REFERERS: [&str; 4] = [
    "-",
    "https://shop.example/",
    "https://shop.example/products",
    "https://search.example/?q=shop",
];
const AGENTS: [&str; 5] = [
    "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
    "curl/8.14.1",
    "shop-crawler/2.3 (+https://search.example/bot)",
];

/// Writes at least that many bytes of whole lines; gives the path back.
pub async fn make(path: PathBuf, bytes: u64) -> anyhow::Result<PathBuf> {
    let written = tokio::task::spawn_blocking(move || write(&path, bytes).map(|()| path)).await?;
    written.context("cannot write the log file")
}

fn write(path: &std::path::Path, bytes: u64) -> io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    let bar = bar("generate", bytes);
    let mut lines = AccessLog::new(SEED);
    let mut block = Vec::with_capacity(WRITE_BYTES + 1024);
    let mut written = 0;
    while written < bytes {
        block.clear();
        while block.len() < WRITE_BYTES && written + (block.len() as u64) < bytes {
            lines.append(&mut block)?;
        }
        file.write_all(&block)?;
        written += block.len() as u64;
        bar.set_position(written);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Lines of an access log, without end.
struct AccessLog {
    random: SeededRandom,
    /// Milliseconds since 1970.
    now_ms: u64,
}

impl AccessLog {
    fn new(seed: u64) -> Self {
        let start = days_since_1970(2026, 11, 1).unsigned_abs() * 86_400_000;
        Self {
            random: SeededRandom::new(seed),
            now_ms: start,
        }
    }

    fn pick<T: Copy + Default>(&self, from: &[T]) -> T {
        let at = self.random.range(0, from.len() as u64);
        usize::try_from(at)
            .ok()
            .and_then(|at| from.get(at))
            .copied()
            .unwrap_or_default()
    }

    /// Appends a line in the combined log format, and how long the request took.
    fn append(&mut self, block: &mut Vec<u8>) -> io::Result<()> {
        let random = self.random.u64();
        self.now_ms += random % 7;
        let time = civil(i64::try_from(self.now_ms / 1000).unwrap_or(i64::MAX));
        let month = usize::try_from(time.month - 1)
            .ok()
            .and_then(|month| MONTHS.get(month))
            .copied()
            .unwrap_or("-");
        let status = self.pick(&STATUSES);
        let (a, b, c) = (random >> 8 & 0xff, random >> 16 & 0xff, random >> 24 & 0xff);
        write!(
            block,
            "10.{a}.{b}.{c} - {} [{:02}/{month}/{:04}:{:02}:{:02}:{:02} +0000] \"{} ",
            self.pick(&USERS),
            time.day,
            time.year,
            time.hour,
            time.minute,
            time.second,
            self.pick(&METHODS),
        )?;
        let path = self.pick(&PATHS);
        match path.split_once("{}") {
            Some((before, after)) => write!(block, "{before}{}{after}", random >> 32 & 0xf_ffff)?,
            None => block.extend_from_slice(path.as_bytes()),
        }
        let (sent, micros) = (self.random.range(0, 60_000), self.random.range(300, 2_000_000));
        writeln!(
            block,
            " HTTP/1.1\" {status} {sent} \"{}\" \"{}\" {}.{:06}",
            self.pick(&REFERERS),
            self.pick(&AGENTS),
            micros / 1_000_000,
            micros % 1_000_000,
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn lines_look_like_those_of_a_web_server() {
        let mut block = Vec::new();
        let mut log = AccessLog::new(SEED);
        (0..1000).for_each(|_| log.append(&mut block).unwrap());
        let text = String::from_utf8(block).unwrap();
        assert_eq!(text.lines().count(), 1000);
        for line in text.lines() {
            assert!(
                line.starts_with("10.") && line.contains(" [01/Nov/2026:00:00:0"),
                "{line}"
            );
            let quoted: Vec<&str> = line.split('"').collect();
            assert_eq!(quoted.len(), 7, "{line}");
            assert!(quoted[1].ends_with(" HTTP/1.1") && !line.contains("{}"), "{line}");
            let status: u16 = quoted[2].split_whitespace().next().unwrap().parse().unwrap();
            assert!(STATUSES.contains(&status), "{line}");
        }
    }

    #[tokio::test]
    async fn the_file_is_as_long_as_asked_and_always_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let first = make(folder.path().join("a"), 3 << 20).await.unwrap();
        let second = make(folder.path().join("b"), 3 << 20).await.unwrap();
        let (first, second) = (std::fs::read(first).unwrap(), std::fs::read(second).unwrap());
        assert!(first == second);
        assert!(first.len() >= 3 << 20 && first.len() < (3 << 20) + 1024 && first.ends_with(b"\n"));
    }
}
