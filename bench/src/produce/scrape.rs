//! Reads counters off a process's metrics page, and asks whether it is ready.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::process::Process;

const ANSWER_MAX: Duration = Duration::from_secs(10);
const PAGE_BYTES_MAX: u64 = 16 << 20;
const POLL: Duration = Duration::from_millis(20);

/// Waits until a process of the product says that it is ready.
pub fn await_ready(process: &mut Process, address: SocketAddr, within: Duration) -> anyhow::Result<()> {
    retry(process, within, || get(address, "/readyz").map(drop))
}

/// Waits until a process accepts connections.
pub fn await_port(process: &mut Process, address: SocketAddr, within: Duration) -> anyhow::Result<()> {
    retry(process, within, || {
        TcpStream::connect_timeout(&address, ANSWER_MAX)?;
        Ok(())
    })
}

fn retry(
    process: &mut Process,
    within: Duration,
    ask: impl Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + within;
    loop {
        process.check()?;
        match ask() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).context(format!("not ready after {within:?}"));
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// The page of a process's metrics.
pub fn metrics(address: SocketAddr) -> anyhow::Result<String> {
    get(address, "/metrics")
}

/// The sum of a metric's samples over all labels; none where it is not on the page.
pub fn sum(page: &str, name: &str) -> Option<f64> {
    let sample = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labels) => labels.rsplit_once('}')?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.split_ascii_whitespace().next()?.parse::<f64>().ok()
    };
    page.lines().filter_map(sample).reduce(|sum, value| sum + value)
}

fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(PAGE_BYTES_MAX).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("answer without a head")?;
    let status = head.split_ascii_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        bail!("{address}{path} answers {status}: {}", body.trim());
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use super::*;

    #[test]
    fn samples_are_summed_over_labels_and_other_names_left_out() {
        let page = "# TYPE a_bytes counter\na_bytes_total{disk=\"0\"} 5\na_bytes_total{disk=\"}\"} 7 1\n\
                    a_bytes_total_more 100\nb 2.5\n# EOF\n";
        assert_eq!(sum(page, "a_bytes_total"), Some(12.0));
        assert_eq!(sum(page, "b"), Some(2.5));
        assert_eq!(sum(page, "a"), None);
    }
}
