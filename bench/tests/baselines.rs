//! The baselines as a user runs them: real processes, real files, small loads.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use forebay_bench::measure::Measurement;
use forebay_bench::pack::Load;
use forebay_bench::pipe::Pipe;

const PROGRAM: &str = env!("CARGO_BIN_EXE_forebay-bench");
const FILE_BYTES: u64 = 32 << 20;

fn load(batch_bytes: usize, partitions: u32) -> Load {
    Load {
        batch_bytes,
        partitions,
        bytes: 8 << 20,
        warm_up_bytes: 1 << 20,
    }
}

#[test]
fn the_pipe_makes_three_copies_of_every_batch_and_survives_its_clients() {
    let folder = tempfile::tempdir().unwrap();
    let mut pipe = Pipe::start(Path::new(PROGRAM), folder.path(), FILE_BYTES).unwrap();
    for load in [load(16 << 10, 64), load(256 << 10, 3), load(960 << 10, 1)] {
        let counts = pipe.run(&load).unwrap();
        let measured = Measurement::from(&counts);
        assert!(counts.client.bytes >= load.bytes);
        assert!(counts.client.bytes < load.bytes + load.batch_bytes as u64);
        assert!(counts.client.elapsed > Duration::ZERO);
        let written = measured.written_per_byte.unwrap();
        assert!(
            (3.0..4.0).contains(&written),
            "{written} bytes written per byte acknowledged"
        );
        assert!(counts.disk.unwrap().fsyncs >= 3);
        let roles = counts.rss_peak.keys().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(roles, ["broker", "client", "proxy", "storage"]);
    }
    pipe.stop().unwrap();
}

#[test]
fn a_node_holds_the_frames_that_the_broker_made() {
    use forebay_record::frame::{Frame, FrameHeader};

    let folder = tempfile::tempdir().unwrap();
    let mut pipe = Pipe::start(Path::new(PROGRAM), folder.path(), FILE_BYTES).unwrap();
    let sent = pipe
        .run(&Load {
            warm_up_bytes: 0,
            ..load(256 << 10, 1)
        })
        .unwrap()
        .client
        .records;
    pipe.stop().unwrap();
    for node in 1..=3 {
        let bytes =
            bytes::Bytes::from(std::fs::read(folder.path().join(format!("pipe-node-{node}.log"))).unwrap());
        let (mut at, mut frames, mut end) = (0, 0, 0);
        while let Ok(header) = FrameHeader::parse(&bytes[at..]) {
            let frame = Frame::parse(&bytes.slice(at..at + header.frame_len())).unwrap();
            assert_eq!(
                (frame.header.first.0, frame.header.number),
                (end, frames),
                "node {node}"
            );
            end = frame.header.end.0;
            frames += 1;
            at += header.frame_len();
            // A commit ends with padding up to the next block.
            if FrameHeader::parse(&bytes[at..]).is_err() {
                at = at.next_multiple_of(4096);
            }
        }
        assert_eq!(end, sent, "node {node}");
    }
}

#[test]
fn the_disk_loop_reports_what_it_measured_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let status = Command::new(PROGRAM)
        .args([
            "disk-loop",
            "--seconds",
            "0",
            "--commits",
            "16KiB,1MiB",
            "--file-size",
            "32MiB",
            "--dir",
        ])
        .arg(folder.path())
        .arg("--json")
        .arg(&json)
        .status()
        .unwrap();
    assert!(status.success());
    let measured: Vec<Measurement> = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(measured.len(), 2);
}

#[test]
fn a_wrong_size_is_refused_by_name() {
    let output = Command::new(PROGRAM)
        .args(["disk-loop", "--dir", ".", "--commits", "12parsecs"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("12parsecs"), "{text}");
}
