//! Everything that is wrong is named, and nothing is sent for it.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Bench, await_that, binary, complaint, lines};

/// Runs with each of these and looks for the words.
fn refused(bench: &Bench, cases: &[(&[&str], &[&str])]) {
    for (args, wanted) in cases {
        let said = complaint(&bench.ingest(args));
        for words in *wanted {
            assert!(said.contains(words), "{args:?}: {words:?} is not in {said}");
        }
    }
}

#[test]
fn inputs_that_cannot_be_read_are_named_before_anything_is_sent() {
    let bench = Bench::start(1);
    bench.write("good.log", lines(0..10));
    std::fs::create_dir(bench.path("folder")).unwrap();
    refused(
        &bench,
        &[
            (&["good.log", "missing.log"], &["/missing.log", "No such file"]),
            (&["good.log", "*.none"], &["/*.none", "no file matches"]),
            (&["good.log", "folder"], &["/folder", "directory"]),
            (&["good.log", "folder", "--follow"], &["/folder", "directory"]),
            (
                &["good.log", "--topic", "nope"],
                &["\"nope\" does not exist", "forebay topic create nope"],
            ),
            (
                &["good.log", "--partition", "7"],
                &["1 partitions", "no partition 7"],
            ),
            (&["-", "--checkpoint", "c"], &["a checkpoint needs files"]),
            (
                &["/dev/null", "--checkpoint", "c"],
                &["/dev/null", "a checkpoint needs files"],
            ),
            (&["-", "--follow"], &["cannot be followed"]),
            (&["good.log", "--batch-bytes", "1GiB"], &["--batch-bytes 1GiB"]),
            (
                &["good.log", "--metrics-listen", "192.0.2.1:1"],
                &["--metrics-listen", "192.0.2.1:1"],
            ),
        ],
    );
    assert_eq!(bench.count(), 0);
}

#[test]
fn a_file_without_permission_is_named() {
    let bench = Bench::start(1);
    let secret = bench.write("secret.log", lines(0..10));
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = bench.command(&["secret.log"]);
    if rustix::process::geteuid().is_root() {
        // Root may read anything: somebody else runs a copy from a place that is open to all.
        std::fs::set_permissions(bench.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let copy = bench.path("forebay");
        if std::fs::hard_link(binary(), &copy).is_err() {
            std::fs::copy(binary(), &copy).unwrap();
        }
        let arguments: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
        command = std::process::Command::new(copy);
        command
            .args(arguments)
            .current_dir(bench.path(""))
            .uid(65_534)
            .gid(65_534);
    }
    let said = complaint(&command.output().unwrap());
    assert!(
        said.contains("/secret.log") && said.contains("Permission denied"),
        "{said}"
    );
}

#[test]
fn lines_that_cannot_be_records_are_named_with_their_place() {
    let bench = Bench::start(1);
    let long = format!("first\n{}\n", "y".repeat(200_000));
    bench.write("long.log", long);
    bench.write("latin.log", b"good\nfa\xe7ade\n".as_slice());
    refused(
        &bench,
        &[
            (
                &["long.log", "--in-flight-bytes", "64KiB", "--batch-bytes", "16KiB"],
                &["/long.log: line 2 (byte 6) is longer than", "--long-lines"],
            ),
            (
                &["latin.log", "--utf8", "fail"],
                &["/latin.log: line 2 is not UTF-8 at byte 7"],
            ),
        ],
    );
}

/// The server is stopped while the file is cut, so that the ingest is certainly in the middle.
#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    let bench = Bench::start(1);
    let size = bench
        .write("app.log", lines(0..100_000))
        .metadata()
        .unwrap()
        .len();
    let signal = |signal| {
        let id = Pid::from_raw(i32::try_from(bench.server.id()).unwrap()).unwrap();
        kill_process(id, signal).unwrap();
    };
    let args = [
        "app.log",
        "--in-flight-bytes=64KiB",
        "--batch-bytes=16KiB",
        "--checkpoint",
        "c",
        "--checkpoint-interval=10ms",
    ];
    let running = bench.start_ingest(&args);
    bench.await_count(1);
    signal(Signal::STOP);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(bench.path("app.log"))
        .unwrap();
    file.set_len(100).unwrap();
    signal(Signal::CONT);
    assert_eq!(running.wait(), Some(1), "{}", bench.said(&args));
    let said = bench.said(&args);
    assert!(said.contains("/app.log: became shorter"), "{said}");
    assert!(
        said.contains("100 bytes are left") && said.contains(&format!("of {size}")),
        "{said}"
    );
    // What was acknowledged is noted all the same.
    let said = complaint(&bench.ingest(&args));
    assert!(said.contains("was truncated since"), "{said}");
}

#[test]
fn a_checkpoint_of_something_else_is_refused_with_what_differs() {
    let bench = Bench::start(1);
    bench.make_topic("u", 1);
    bench.write("app.log", lines(0..1_000));
    bench.write("other.log", lines(0..10));
    bench.ingested(&["app.log", "--checkpoint", "c"]);
    refused(
        &bench,
        &[
            (
                &["app.log", "--checkpoint", "c", "--topic", "u"],
                &["c does not fit", "topic \"t\"", "\"u\""],
            ),
            (
                &["other.log", "--checkpoint", "c"],
                &["none of the inputs", "/app.log"],
            ),
        ],
    );
    // The same name, another file, while the one of the checkpoint has another name.
    std::fs::rename(bench.path("app.log"), bench.path("app.log.1")).unwrap();
    bench.write("app.log", lines(5_000..5_010));
    refused(
        &bench,
        &[(
            &["app.log", "--checkpoint", "c"],
            &["/app.log is another file", "inode", "app.log.1 now: name it too"],
        )],
    );
    std::fs::remove_file(bench.path("app.log.1")).unwrap();
    // Its number may be that of the one that was removed; then its bytes tell.
    refused(
        &bench,
        &[(
            &["app.log", "--checkpoint", "c"],
            &["/app.log", "remove the checkpoint"],
        )],
    );
    assert_eq!(bench.count(), 1_000);
}

#[test]
fn a_checkpoint_of_a_topic_that_was_made_again_is_refused() {
    let bench = Bench::start(1);
    bench.write("app.log", lines(0..10));
    bench.ingested(&["app.log", "--checkpoint", "c"]);
    bench.delete_topic("t");
    bench.make_topic("t", 1);
    // The proxy may still know the old one for a moment.
    await_that("the new topic", || {
        let said = complaint_or_nothing(&bench);
        said.contains("deleted and made again")
    });
}

fn complaint_or_nothing(bench: &Bench) -> String {
    let output = bench.ingest(&["app.log", "--checkpoint", "c"]);
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let bench = Bench::start(1);
    bench.write("app.log", lines(0..10));
    bench.ingested(&["app.log", "--checkpoint", "c"]);
    let good = std::fs::read_to_string(bench.path("c")).unwrap();
    for (bytes, wanted) in [
        (good.replacen("\"line\":10", "\"line\":11", 1), "checksum"),
        (good[..good.len() / 2].to_owned(), "bytes follow its first line"),
        (good.replacen("checkpoint 1 ", "checkpoint 9 ", 1), "version 9"),
        (String::new(), "does not begin with"),
    ] {
        bench.write("c", bytes);
        let said = complaint(&bench.ingest(&["app.log", "--checkpoint", "c"]));
        assert!(
            said.contains(wanted) && said.contains("remove it to start over"),
            "{wanted}: {said}"
        );
    }
    bench.write("c", good);
    assert_eq!(bench.ingested(&["app.log", "--checkpoint", "c"])["records"], 0);
}
