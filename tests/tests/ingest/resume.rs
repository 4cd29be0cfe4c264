//! Going on after kill -9, with a checkpoint: nothing lost, nothing twice.

use crate::support::{Bench, Running, await_that, complaint, lines};

/// Kills the ingest once the topic has that many records.
fn kill_at(bench: &Bench, running: Running, records: u64) {
    bench.await_count(records);
    running.kill();
}

fn differences(found: &str, wanted: &str) -> (usize, usize) {
    let mut counts = std::collections::BTreeMap::<&str, (usize, usize)>::new();
    for line in found.lines() {
        counts.entry(line).or_default().0 += 1;
    }
    for line in wanted.lines() {
        counts.entry(line).or_default().1 += 1;
    }
    let lost = counts
        .values()
        .map(|(found, wanted)| wanted.saturating_sub(*found));
    let twice = counts
        .values()
        .map(|(found, wanted)| found.saturating_sub(*wanted));
    (lost.sum(), twice.sum())
}

/// Three kills while a file is read; the checkpoint is always behind what was written.
fn kills(bench: &Bench, args: &[&str], total: u32, sorted: bool) {
    let text = lines(0..total);
    bench.write("app.log", &text);
    for kill in 1..=3 {
        let running = bench.start_ingest(args);
        kill_at(bench, running, u64::from(total) * kill / 5);
    }
    let last = bench.ingested(args);
    assert_eq!(last["complete"], true, "{last}");
    let found = bench.text();
    let (lost, twice) = differences(&found, &text);
    println!("three kills, {args:?}: {lost} lost, {twice} twice of {total}");
    assert_eq!((lost, twice), (0, 0));
    assert!(sorted || found == text, "the order differs");
    let again = bench.ingested(args);
    assert_eq!(again["records"], 0, "nothing is left: {again}");
}

#[test]
fn three_kills_lose_and_repeat_nothing() {
    let bench = Bench::start(2);
    let small = ["app.log", "--checkpoint", "c", "--batch-bytes", "16KiB"];
    kills(&bench, &small, 60_000, false);
}

#[test]
fn three_kills_lose_and_repeat_nothing_with_batches_in_all_partitions() {
    let bench = Bench::start(3);
    let spread = [
        "app.log",
        "--checkpoint",
        "c",
        "--batch-bytes=16KiB",
        "--spread",
        "batch",
        "--codec=lz4",
    ];
    kills(&bench, &spread, 60_000, true);
}

/// The story: a followed file is cut where it ends at the moment. The batch is written, the ingest
/// is killed before it notes that, and the file has grown when it starts again: cut in another
/// place, the new lines would pass for a repetition and be lost.
#[test]
fn a_followed_file_that_grew_while_nobody_looked_is_cut_as_before() {
    let bench = Bench::start(1);
    // The checkpoint is written when it must be only.
    let args = [
        "app.log",
        "--follow",
        "--checkpoint",
        "c",
        "--checkpoint-interval",
        "1h",
    ];
    let mut written = 0;
    for round in 0..6 {
        let running = bench.start_ingest(&args);
        for part in 1..=3 {
            let end = written + 7 * part + round;
            bench.append("app.log", lines(written..end));
            written = end;
            bench.await_count(written.into());
        }
        running.kill();
        bench.append("app.log", lines(written..written + 5));
        written += 5;
    }
    let running = bench.start_ingest(&args);
    bench.await_text(&lines(0..written));
    let (code, _) = running.stop();
    assert_eq!(code, Some(0), "{}", bench.said(&args));
    bench.await_text(&lines(0..written));
}

/// The story: the machine restarts while logs are rotated, so the file of the checkpoint has another
/// name, and its own name belongs to a new file.
#[test]
fn a_file_that_was_renamed_while_nobody_looked_is_finished_first() {
    let bench = Bench::start(1);
    bench.append("app.log", lines(0..300));
    let args = [
        "app.log",
        "--follow",
        "--rotate-wait",
        "200ms",
        "--checkpoint",
        "c",
    ];
    let running = bench.start_ingest(&args);
    kill_at(&bench, running, 300);
    bench.append("app.log", lines(300..400));
    std::fs::rename(bench.path("app.log"), bench.path("app.log.1")).unwrap();
    bench.append("app.log", lines(400..500));
    let running = bench.start_ingest(&args);
    bench.await_text(&lines(0..500));
    let (code, _) = running.stop();
    assert_eq!(code, Some(0), "{}", bench.said(&args));
    bench.await_text(&lines(0..500));
}

#[test]
fn a_file_that_grew_goes_on_where_it_ended() {
    let bench = Bench::start(1);
    let args = ["app.log", "--checkpoint", "c"];
    bench.append("app.log", lines(0..100));
    bench.ingested(&args);
    bench.append("app.log", lines(100..150));
    assert_eq!(bench.ingested(&args)["lines"], 50);
    // After an end in order other options are no danger.
    bench.append("app.log", lines(150..200));
    let other = [&args[..], &["--batch-bytes", "4KiB", "--codec", "zstd"]].concat();
    assert_eq!(bench.ingested(&other)["lines"], 50);
    assert_eq!(bench.text(), lines(0..200));
}

#[test]
fn after_a_kill_other_ends_of_batches_are_refused() {
    let bench = Bench::start(1);
    bench.write("app.log", lines(0..50_000));
    let args = ["app.log", "--checkpoint", "c", "--batch-bytes", "16KiB"];
    let running = bench.start_ingest(&args);
    kill_at(&bench, running, 1_000);
    for (more, wanted) in [
        (["--batch-bytes", "32KiB"], "--batch-bytes was 16384 and is 32768"),
        (["--mode", "blocks"], "--mode was lines and is blocks"),
    ] {
        let args = [&["app.log", "--checkpoint", "c"][..], &more].concat();
        let said = complaint(&bench.ingest(&args));
        assert!(
            said.contains(wanted) && said.contains("use the same options"),
            "{said}"
        );
    }
    bench.ingested(&args);
    assert_eq!(bench.text(), lines(0..50_000));
}

#[test]
fn a_checkpoint_has_one_ingest_at_a_time() {
    let bench = Bench::start(1);
    bench.write("app.log", lines(0..10));
    let running = bench.start_ingest(&["app.log", "--follow", "--checkpoint", "c"]);
    await_that("the lock", || bench.path("c").exists());
    let said = complaint(&bench.ingest(&["app.log", "--checkpoint", "c"]));
    assert!(said.contains("in use by another ingest"), "{said}");
    running.stop();
}
