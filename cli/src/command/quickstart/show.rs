//! What the quickstart says.

use std::net::SocketAddr;
use std::path::Path;

use super::{TOPIC, Transfer};
use crate::output::{bytes, counted, grouped, mib_per_second};

/// The file that is sent.
pub fn file(path: &Path, size: u64, made_up: bool) -> String {
    let kind = if made_up {
        ", an access log made up for this"
    } else {
        ""
    };
    format!(
        "file      {}, {} ({} bytes{kind})",
        path.display(),
        bytes(size),
        grouped(size)
    )
}

/// What went in.
pub fn sent(sent: &Transfer) -> String {
    format!(
        "ingest    {}, {} in {:.2} s, each acknowledged after fsync",
        mib_per_second(sent.bytes, sent.seconds),
        counted(sent.records, "record"),
        sent.seconds,
    )
}

/// What came out, once it was compared.
pub fn read(read: &Transfer) -> String {
    format!(
        "read back {}, {} in {:.2} s, through the proxy\n\
         verified  all {} bytes are the same as in the file, in the same order, CRC-32C {:08x}",
        mib_per_second(read.bytes, read.seconds),
        counted(read.records, "record"),
        read.seconds,
        grouped(read.bytes),
        read.crc32c,
    )
}

/// Commands that work now.
pub fn next_steps(program: &str, grpc: SocketAddr, admin: SocketAddr, usual: bool) -> String {
    let server = if usual {
        String::new()
    } else {
        format!(" --server {grpc}")
    };
    let mut text =
        "\nThe server runs until Ctrl-C; then its folder is removed. In another terminal:\n".to_owned();
    for command in commands() {
        let (before, after) = command.split_once("forebay ").unwrap_or_default();
        text.push_str(&format!("\n  {before}{program} {after}{server}"));
    }
    text.push_str(&format!("\n  curl http://{admin}/metrics\n"));
    text
}

fn commands() -> [String; 6] {
    [
        "forebay topic list".to_owned(),
        format!("forebay topic describe {TOPIC}"),
        format!("forebay consume {TOPIC} --from earliest --max 5"),
        format!("forebay consume {TOPIC} --from latest"),
        format!("echo 'hello, lake' | forebay produce {TOPIC}"),
        "forebay cluster status".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser as _;

    use super::*;

    #[test]
    fn every_command_shown_is_one_that_parses() {
        let (grpc, admin) = (
            "127.0.0.1:4711".parse().unwrap(),
            "127.0.0.1:4712".parse().unwrap(),
        );
        for usual in [true, false] {
            let text = next_steps("bin/forebay", grpc, admin, usual);
            let shown: Vec<&str> = text
                .lines()
                .filter_map(|line| Some(line.split_once("bin/forebay ")?.1))
                .collect();
            assert_eq!(shown.len(), commands().len());
            for line in shown {
                let words = std::iter::once("forebay").chain(line.split_whitespace());
                crate::Cli::try_parse_from(words).unwrap();
                assert_eq!(line.ends_with("--server 127.0.0.1:4711"), !usual);
            }
        }
    }

    #[test]
    fn speeds_and_counts_can_be_read() {
        let transfer = Transfer {
            records: 600_000,
            bytes: 100 << 20,
            crc32c: 0xab,
            seconds: 0.5,
        };
        assert_eq!(
            sent(&transfer),
            "ingest    200.0 MiB/s, 600,000 records in 0.50 s, each acknowledged after fsync"
        );
        assert!(
            read(&transfer).ends_with(
                "104,857,600 bytes are the same as in the file, in the same order, CRC-32C 000000ab"
            )
        );
        let file = file(Path::new("a.log"), 2048, true);
        assert_eq!(
            file,
            "file      a.log, 2.0 KiB (2,048 bytes, an access log made up for this)"
        );
    }
}
