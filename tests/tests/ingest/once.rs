//! Reading to the end, once.

use std::io::Write as _;
use std::process::Stdio;

use rustix::process::Signal;

use crate::support::{Bench, Running, await_that, lines, summary};

#[test]
fn every_line_is_a_record_in_the_order_of_its_file() {
    let bench = Bench::start(4);
    let text = lines(0..20_000);
    bench.write("app.log", &text);
    for (topic, codec) in [
        ("t", "none"),
        ("g", "gzip"),
        ("s", "snappy"),
        ("l", "lz4"),
        ("z", "zstd"),
    ] {
        if topic != "t" {
            bench.make_topic(topic, 4);
        }
        let told = bench.ingested(&[
            "app.log",
            "--topic",
            topic,
            "--codec",
            codec,
            "--batch-bytes",
            "64KiB",
        ]);
        assert_eq!(told["lines"], 20_000, "{told}");
        assert_eq!(
            (&told["complete"], &told["bytes"]),
            (&true.into(), &text.len().into()),
            "{told}"
        );
        let records = bench.records(topic);
        assert_eq!(records.len(), 1, "one file goes to one partition");
        let (partition, records) = records.into_iter().next().unwrap();
        assert_eq!(
            told["partitions"][partition.to_string()]["next_offset"],
            20_000,
            "{told}"
        );
        let found: Vec<u8> = records
            .iter()
            .flat_map(|record| [record.value.as_deref().unwrap(), b"\n"].concat())
            .collect();
        assert!(found == text.as_bytes(), "{codec}: what came out differs");
    }
}

#[test]
fn bytes_are_bytes_and_a_last_line_needs_no_line_feed() {
    let bench = Bench::start(1);
    bench.write("odd", b"a\r\n\n\xff\xfe\x00\nlast".as_slice());
    bench.ingested(&["odd"]);
    bench.ingested(&["odd", "--strip-cr"]);
    let wanted: [&[u8]; 8] = [
        b"a\r",
        b"",
        b"\xff\xfe\x00",
        b"last",
        b"a",
        b"",
        b"\xff\xfe\x00",
        b"last",
    ];
    assert_eq!(bench.values(), wanted);
    bench.write("nothing", b"");
    assert_eq!(bench.ingested(&["nothing"])["records"], 0);
}

#[test]
fn blocks_put_together_are_the_file() {
    let bench = Bench::start(3);
    let file: Vec<u8> = (0..700_001_u32)
        .map(|at| (at.wrapping_mul(at) >> 7) as u8)
        .collect();
    bench.write("image", &file);
    let told = bench.ingested(&["image", "--mode", "blocks", "--block-bytes", "10000B"]);
    assert_eq!(
        (&told["records"], &told["lines"]),
        (&71.into(), &serde_json::Value::Null),
        "{told}"
    );
    assert!(bench.values().concat() == file);
}

#[test]
fn standard_input_and_pipes_are_sent_as_they_come() {
    let bench = Bench::start(1);
    let args = ["-", "--linger", "20ms", "--format", "json"];
    let mut child = bench.command(&args).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"first\nsecond\nthi").unwrap();
    // While the input is open: the linger is over, the third line is not.
    bench.await_text("first\nsecond\n");
    input.write_all(b"rd\nlast").unwrap();
    drop(input);
    let told = summary(child.wait_with_output().unwrap());
    assert_eq!(told["lines"], 4, "{told}");
    assert_eq!(bench.text(), "first\nsecond\nthird\nlast\n");
    // A pipe by its name.
    bench.ingested(&["/dev/stdin"]);
}

#[test]
fn patterns_lead_to_files_and_a_header_tells_which() {
    let bench = Bench::start(4);
    for (name, from) in [("a.log", 0), ("b.log", 100), ("c.txt", 200)] {
        bench.write(name, lines(from..from + 50));
    }
    let told = bench.ingested(&["*.log", "a.log", "--file-name", "header"]);
    assert_eq!(
        (&told["files"], &told["lines"]),
        (&2.into(), &100.into()),
        "{told}"
    );
    for (name, from) in [("a.log", 0), ("b.log", 100)] {
        let path = bench.path(name).display().to_string();
        let records = bench.records("t").into_values().flatten();
        let of_file: String = records
            .filter(|record| {
                let (key, value) = record.headers.iter().next().unwrap();
                key == "file" && value.is_some_and(|value| value == path.as_bytes())
            })
            .map(|record| String::from_utf8(record.value.unwrap().to_vec()).unwrap() + "\n")
            .collect();
        assert_eq!(of_file, lines(from..from + 50));
    }
    bench.ingested(&["c.txt", "--file-name", "key", "--partition", "3"]);
    let records = bench.records("t");
    let keyed = records[&3].iter().filter(|record| record.key.is_some()).count();
    assert_eq!(keyed, 50);
}

#[test]
fn batches_may_take_turns_in_all_partitions() {
    let bench = Bench::start(4);
    bench.write("app.log", lines(0..5_000));
    bench.ingested(&["app.log", "--spread", "batch", "--batch-bytes", "16KiB"]);
    let records = bench.records("t");
    assert_eq!(records.len(), 4);
    let mut all: Vec<_> = records
        .into_values()
        .flatten()
        .map(|record| record.value.unwrap())
        .collect();
    all.sort_unstable();
    let found: Vec<u8> = all
        .iter()
        .flat_map(|value| [value, b"\n".as_slice()].concat())
        .collect();
    assert!(found == lines(0..5_000).as_bytes());
}

#[test]
fn long_lines_are_left_out_or_split_as_told() {
    let bench = Bench::start(1);
    let long = "y".repeat(200_000);
    let text = format!("before\n{long}\nafter\n{long}");
    bench.write("long", &text);
    // In so little memory no record can be larger.
    let small = [
        "long",
        "--in-flight-bytes",
        "64KiB",
        "--batch-bytes",
        "16KiB",
        "--long-lines",
    ];
    let told = bench.ingested(&[&small[..], &["skip"]].concat());
    assert_eq!(
        (&told["lines"], &told["skipped_lines"]),
        (&2.into(), &2.into()),
        "{told}"
    );
    assert_eq!(bench.text(), "before\nafter\n");
    let told = bench.ingested(&[&small[..], &["split"]].concat());
    assert_eq!(told["bytes"], text.len(), "{told}");
    let values = bench.values().split_off(2);
    assert!(values.iter().all(|value| value.len() <= 64 << 10));
    assert_eq!(values.concat(), text.replace('\n', "").as_bytes());
}

#[test]
fn a_server_that_goes_away_and_comes_back_is_waited_for() {
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut bench = Bench::listening(1, &address.to_string());
    bench.append("app.log", lines(0..1_000));
    let args = ["app.log", "--follow"];
    let running = bench.start_ingest(&args);
    bench.await_count(1_000);
    bench.server.kill();
    bench.append("app.log", lines(1_000..2_000));
    bench.server.restart().unwrap();
    bench.await_text(&lines(0..2_000));
    let (code, _) = running.stop();
    assert_eq!(code, Some(0), "{}", bench.said(&args));
}

#[test]
fn a_stop_waits_for_what_was_sent_and_metrics_tell_how_far_it_is() {
    let bench = Bench::start(1);
    bench.append("app.log", lines(0..100));
    let args = [
        "app.log",
        "--follow",
        "--metrics-listen",
        "127.0.0.1:0",
        "--format",
        "json",
    ];
    let running = bench.start_ingest(&args);
    bench.await_count(100);
    let mut address = None;
    await_that("the address of the metrics", || {
        let said = bench.said(&args);
        let rest = said.split_once("metrics on http://");
        address = rest
            .and_then(|(_, rest)| rest.split_once("/metrics"))
            .map(|(at, _)| at.to_owned());
        address.is_some()
    });
    let mut page = String::new();
    await_that("100 records in the metrics", || {
        page = scrape(address.as_deref().unwrap());
        page.contains("forebay_ingest_acknowledged_records_total 100\n")
    });
    let bytes = lines(0..100).len();
    assert!(
        page.contains(&format!("forebay_ingest_acknowledged_bytes_total {bytes}\n")),
        "{page}"
    );
    assert!(page.contains("forebay_ingest_lag_bytes{input=\""), "{page}");
    let (code, said) = running.stop();
    assert_eq!(code, Some(0), "{}", bench.said(&args));
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&told["lines"], &told["complete"]),
        (&100.into(), &true.into()),
        "{told}"
    );
}

fn scrape(address: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
    answer
}

#[test]
fn a_second_stop_does_not_wait_and_says_what_is_open() {
    let bench = Bench::start(1);
    bench.write("app.log", lines(0..20_000));
    let stopped = |signal| {
        let id = i32::try_from(bench.server.id()).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(id).unwrap(), signal).unwrap();
    };
    let args = ["app.log", "--follow", "--progress-interval", "100ms"];
    let running: Running = bench.start_ingest(&args);
    bench.await_count(20_000);
    stopped(Signal::STOP);
    bench.append("app.log", lines(0..100));
    let in_flight = format!("{:.1} KiB in flight", lines(0..100).len() as f64 / 1024.0);
    await_that("bytes in flight", || bench.said(&args).contains(&in_flight));
    running.signal(Signal::INT);
    await_that("the stop", || {
        bench.said(&args).contains("waiting for acknowledgements")
    });
    running.signal(Signal::INT);
    let code = running.wait();
    stopped(Signal::CONT);
    assert_eq!(code, Some(130), "{}", bench.said(&args));
    assert!(
        bench.said(&args).contains("may or may not be written"),
        "{}",
        bench.said(&args)
    );
}
