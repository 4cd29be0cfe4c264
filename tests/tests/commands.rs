//! The binary as a user types it: the README's commands, and what is said when something is wrong.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use forebay_tests::cluster::Cluster;
use forebay_tests::process::Process;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_forebay-under-test"))
}

fn standalone(folder: &Path) -> Process {
    let data = folder.join("data").display().to_string();
    let args = [
        "standalone",
        "--data",
        &data,
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
    ];
    let args: Vec<_> = args
        .into_iter()
        .chain(["--set", "storage.journal_file_bytes=16MiB"])
        .map(str::to_owned)
        .collect();
    Process::start("standalone", binary(), &args, folder).unwrap()
}

/// Runs a client command against a server, with lines on standard input.
fn run(server: &Process, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(binary())
        .args(args)
        .args(["--server", &server.grpc.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn lines(range: std::ops::RangeInclusive<u32>) -> String {
    range.map(|number| format!("{number}\n")).collect()
}

#[test]
fn the_commands_of_the_readme_work() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = standalone(folder.path());
    text(&run(
        &server,
        &["topic", "create", "events", "--partitions", "4"],
        "",
    ));
    text(&run(&server, &["produce", "events"], &lines(1..=1000)));
    let read = text(&run(
        &server,
        &["consume", "events", "--from", "earliest", "--until-end"],
        "",
    ));
    let mut numbers: Vec<u32> = read.lines().map(|line| line.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=1000).collect::<Vec<_>>());
    assert!(text(&run(&server, &["topic", "list"], "")).contains("events"));
    assert!(text(&run(&server, &["topic", "describe", "events"], "")).contains("events"));
    let status = text(&run(&server, &["cluster", "status", "--format", "json"], ""));
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert!(status.to_string().contains("ACTIVE"), "{status}");
    text(&run(&server, &["topic", "delete", "events", "--yes"], ""));
    assert!(!text(&run(&server, &["topic", "list"], "")).contains("events"));
    server.stop().unwrap();
}

#[test]
fn a_standalone_killed_while_lines_come_in_keeps_every_acknowledged_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = standalone(folder.path());
    text(&run(&server, &["topic", "create", "t", "--partitions", "1"], ""));
    text(&run(&server, &["produce", "t"], &lines(1..=5000)));
    server.kill();
    server.restart().unwrap();
    let read = text(&run(
        &server,
        &["consume", "t", "--from", "earliest", "--until-end"],
        "",
    ));
    assert_eq!(read, lines(1..=5000));
    text(&run(&server, &["produce", "t"], &lines(5001..=5010)));
    let read = text(&run(
        &server,
        &["consume", "t", "--from", "4999", "--until-end"],
        "",
    ));
    assert_eq!(read, lines(5000..=5010));
    server.stop().unwrap();
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let output = Command::new(binary())
        .args(["topic", "list", "--server", "127.0.0.1:1"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("127.0.0.1:1") && said.contains("standalone"),
        "{said}"
    );
}

#[test]
fn a_wrong_configuration_key_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("wrong.toml");
    std::fs::write(&config, "[storage]\ndata_dri = \"/nowhere\"\n").unwrap();
    let output = Command::new(binary())
        .args(["serve", "--roles", "storage", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("storage.data_dri") && said.contains("data_dir"),
        "{said}"
    );
}

#[test]
fn etcd_away_at_the_start_is_named() {
    let output = Command::new(binary())
        .args([
            "serve",
            "--roles",
            "broker",
            "--set",
            "metadata.etcd=[\"http://127.0.0.1:1\"]",
        ])
        .args([
            "--set",
            "metadata.start_timeout=1s",
            "--set",
            "listen.grpc=127.0.0.1:0",
        ])
        .args(["--set", "listen.admin=127.0.0.1:0"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("127.0.0.1:1"), "{said}");
}

#[test]
fn a_known_storage_node_without_its_folder_does_not_start() {
    let mut cluster = Cluster::start(binary(), 1, 0).unwrap();
    cluster.nodes[0].kill();
    let data = cluster.folder().join("node1");
    std::fs::rename(&data, cluster.folder().join("unmounted")).unwrap();
    let error = format!("{:#}", cluster.nodes[0].restart().unwrap_err());
    assert!(error.contains(&data.display().to_string()), "{error}");
    std::fs::remove_dir_all(&data).ok();
    std::fs::rename(cluster.folder().join("unmounted"), &data).unwrap();
    cluster.nodes[0].restart().unwrap();
}
