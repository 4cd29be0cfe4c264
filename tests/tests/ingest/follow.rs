//! Following files through everything that is done to logs.

use crate::support::{Bench, await_that, lines};

/// Follows with a short wait after renaming.
const FOLLOW: [&str; 4] = ["--follow", "--rotate-wait", "300ms", "--linger=10ms"];

#[test]
fn what_is_appended_is_sent_once_its_line_is_whole() {
    let bench = Bench::start(1);
    bench.append("app.log", "first\nsec");
    let args = [&FOLLOW[..], &["app.log"]].concat();
    let running = bench.start_ingest(&args);
    bench.await_text("first\n");
    bench.append("app.log", "ond\nthird\nfour");
    bench.await_text("first\nsecond\nthird\n");
    let (code, _) = running.stop();
    assert_eq!(code, Some(0), "{}", bench.said(&args));
    assert_eq!(
        bench.text(),
        "first\nsecond\nthird\n",
        "the last line is not whole"
    );
}

#[test]
fn a_renamed_file_is_read_to_its_end_before_the_new_one() {
    let bench = Bench::start(1);
    bench.append("app.log", lines(0..500));
    let args = [&FOLLOW[..], &["app.log", "--checkpoint", "c"]].concat();
    let running = bench.start_ingest(&args);
    bench.await_count(500);
    let renamed = |name: &str| std::fs::rename(bench.path("app.log"), bench.path(name)).unwrap();
    renamed("app.log.1");
    // As a writer does that has not reopened it yet: to the old file, the last line without its end.
    bench.append("app.log.1", lines(500..900));
    bench.append("app.log.1", "no line feed");
    bench.append("app.log", lines(900..1_000));
    let first = lines(0..900) + "no line feed\n" + &lines(900..1_000);
    bench.await_text(&first);
    // Again, and the renamed one is gone at once; then the path stays empty for a while.
    bench.append("app.log", lines(1_000..1_100));
    renamed("app.log.2");
    std::fs::remove_file(bench.path("app.log.2")).unwrap();
    let second = first + &lines(1_000..1_100);
    bench.await_text(&second);
    bench.append("app.log", lines(1_100..1_200));
    bench.await_text(&(second + &lines(1_100..1_200)));
    let (code, _) = running.stop();
    assert_eq!(code, Some(0), "{}", bench.said(&args));
}

#[test]
fn a_truncated_file_is_read_from_its_start_and_that_is_told() {
    let bench = Bench::start(1);
    bench.append("app.log", lines(0..500));
    let args = [&FOLLOW[..], &["app.log"]].concat();
    let running = bench.start_ingest(&args);
    bench.await_count(500);
    // As copytruncate does.
    std::fs::copy(bench.path("app.log"), bench.path("copy")).unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(bench.path("app.log"))
        .unwrap();
    file.set_len(0).unwrap();
    bench.append("app.log", lines(500..600));
    bench.await_text(&lines(0..600));
    await_that("a warning", || bench.said(&args).contains("read from its start"));
    // Written anew to more than it had: only its first bytes tell.
    std::fs::write(bench.path("app.log"), lines(600..2_000)).unwrap();
    bench.await_text(&lines(0..2_000));
    let (code, _) = running.stop();
    assert_eq!(code, Some(0), "{}", bench.said(&args));
}

#[test]
fn files_that_come_later_are_found_and_renamed_ones_are_not_sent_again() {
    let bench = Bench::start(1);
    let args = [&FOLLOW[..], &["*.log*", "later.txt"]].concat();
    let running = bench.start_ingest(&args);
    await_that("waiting", || bench.said(&args).contains("waiting for it"));
    bench.append("a.log", lines(0..50));
    bench.await_text(&lines(0..50));
    // The new name matches the pattern too, and it is still written to.
    std::fs::rename(bench.path("a.log"), bench.path("a.log.1")).unwrap();
    bench.append("a.log.1", lines(50..60));
    bench.await_text(&lines(0..60));
    bench.append("a.log", lines(60..100));
    bench.await_text(&lines(0..100));
    bench.append("later.txt", lines(100..150));
    bench.await_text(&lines(0..150));
    let (code, _) = running.stop();
    assert_eq!(code, Some(0), "{}", bench.said(&args));
}
