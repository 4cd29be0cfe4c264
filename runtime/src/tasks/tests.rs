#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::io;
use std::time::Duration;

use tokio::sync::oneshot;

use super::*;

const SOON: Duration = Duration::from_secs(5);

/// A task that ends when it is told to.
fn obedient(tasks: &Tasks, name: &str) -> JoinHandle<()> {
    let token = tasks.token();
    tasks.spawn(name, async move { token.cancelled().await })
}

#[tokio::test]
async fn running_tasks_are_listed_by_full_name_until_they_end() {
    let root = Tasks::new("broker");
    let sessions = root.group("sessions");
    obedient(&root, "tick");
    obedient(&sessions, "n1");
    assert_eq!(root.running(), ["broker/sessions/n1", "broker/tick"]);
    assert_eq!(sessions.running(), ["broker/sessions/n1"]);
    sessions.cancel();
    sessions.wait().await;
    assert_eq!(root.running(), ["broker/tick"]);
    assert!(!root.is_cancelled());
    root.cancel();
    root.wait().await;
    assert!(root.running().is_empty());
}

#[tokio::test]
async fn waiting_for_a_group_waits_for_the_groups_below_even_when_their_handles_are_gone() {
    let root = Tasks::new("root");
    let (release, released) = oneshot::channel::<()>();
    root.group("a").group("b").spawn("leaf", async move {
        released.await.unwrap();
    });
    assert_eq!(root.running(), ["root/a/b/leaf"]);
    let waiting = tokio::spawn({
        let root = root.clone();
        async move { root.wait().await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    release.send(()).unwrap();
    tokio::time::timeout(SOON, waiting).await.unwrap().unwrap();
}

#[tokio::test]
async fn cancelling_a_root_reaches_every_group_made_before_or_after() {
    let root = Tasks::new("root");
    let before = root.group("before");
    obedient(&before, "t");
    root.cancel();
    let after = root.group("after");
    obedient(&after, "t");
    tokio::time::timeout(SOON, root.wait()).await.unwrap();
}

#[tokio::test]
async fn a_panic_ends_only_its_own_task() {
    let root = Tasks::new("root");
    root.spawn("bad", async { panic!("boom") });
    tokio::time::timeout(SOON, root.wait()).await.unwrap();
    assert_eq!(root.shutdown_reason(), None);
    assert!(!root.is_cancelled());
}

#[tokio::test]
async fn an_error_of_a_critical_task_requests_shutdown_with_its_sources() {
    #[derive(Debug, thiserror::Error)]
    #[error("journal 3 stopped")]
    struct Stopped(#[source] io::Error);

    let root = Tasks::new("node");
    let journal = root.group("journal");
    journal.spawn_critical("writer", async { Err(Stopped(io::Error::other("no space"))) });
    let reason = tokio::time::timeout(SOON, root.shutdown_requested())
        .await
        .unwrap();
    assert_eq!(
        reason.to_string(),
        "task node/journal/writer failed: journal 3 stopped: no space"
    );
    root.request_shutdown("too late");
    assert_eq!(root.shutdown_reason(), Some(reason));
}

#[tokio::test]
async fn a_panic_of_a_critical_task_requests_shutdown() {
    let root = Tasks::new("node");
    root.spawn_critical("loop", async {
        if root_is_on_fire() {
            panic!("boom {}", 7);
        }
        Ok::<(), io::Error>(())
    });
    let reason = tokio::time::timeout(SOON, root.shutdown_requested())
        .await
        .unwrap();
    assert_eq!(reason.to_string(), "task node/loop failed: panicked: boom 7");
}

fn root_is_on_fire() -> bool {
    true
}

#[tokio::test]
async fn a_critical_task_that_ends_well_requests_nothing() {
    let root = Tasks::new("node");
    root.spawn_critical("once", async { Ok::<(), io::Error>(()) });
    root.wait().await;
    assert_eq!(root.shutdown_reason(), None);
    root.request_shutdown("asked");
    assert_eq!(
        root.shutdown_requested().await,
        ShutdownReason::Requested("asked".to_owned())
    );
}

#[tokio::test]
async fn two_roots_do_not_see_each_other() {
    let (one, two) = (Tasks::new("one"), Tasks::new("two"));
    one.request_shutdown("stop");
    one.cancel();
    assert_eq!(two.shutdown_reason(), None);
    assert!(!two.is_cancelled());
}

#[tokio::test]
async fn abort_ends_tasks_that_do_not_listen() {
    let root = Tasks::new("node");
    let deaf = root.group("deaf").spawn("t", std::future::pending());
    root.spawn("t", std::future::pending());
    root.abort();
    tokio::time::timeout(SOON, root.wait()).await.unwrap();
    assert!(deaf.await.unwrap_err().is_cancelled());
    assert!(root.running().is_empty());
    let late = root.group("late").spawn("t", std::future::pending());
    assert!(late.await.unwrap_err().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn stages_run_in_order_and_each_waits_for_the_one_before() {
    let root = Tasks::new("node");
    let (intake, workers) = (root.group("intake"), root.group("workers"));
    let log = Arc::new(Mutex::new(Vec::new()));
    for (group, name, delay_ms) in [(&intake, "intake", 30), (&workers, "workers", 10)] {
        let (token, log) = (group.token(), Arc::clone(&log));
        group.spawn("t", async move {
            token.cancelled().await;
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            log.lock().push(name);
        });
    }
    let flushed = Arc::clone(&log);
    shutdown_ordered([
        Stage::cancel("stop intake", SOON, [intake]),
        Stage::cancel("drain", SOON, [workers]),
        Stage::run("flush", SOON, async move {
            flushed.lock().push("flush");
            Ok::<(), io::Error>(())
        }),
        Stage::cancel("leave", SOON, [root]),
    ])
    .await
    .unwrap();
    assert_eq!(*log.lock(), ["intake", "workers", "flush"]);
}

#[tokio::test(start_paused = true)]
async fn a_missed_deadline_names_the_tasks_and_later_stages_still_run() {
    let root = Tasks::new("node");
    let intake = root.group("intake");
    intake.spawn("stuck-1", std::future::pending());
    intake.spawn("stuck-2", std::future::pending());
    obedient(&intake, "good");
    let (flushed, was_flushed) = oneshot::channel();
    let error = shutdown_ordered([
        Stage::cancel("stop intake", SOON, [intake]),
        Stage::run("flush", SOON, async move {
            flushed.send(()).unwrap();
            Err(io::Error::other("disk gone"))
        }),
        Stage::run("leave", SOON, std::future::pending::<Result<(), io::Error>>()),
    ])
    .await
    .unwrap_err();
    was_flushed.await.unwrap();
    assert_eq!(
        error.to_string(),
        "shutdown was not clean; \
         stop intake: still running after 5s: node/intake/stuck-1, node/intake/stuck-2; \
         flush: failed: disk gone; \
         leave: still running after 5s: leave"
    );
}

#[tokio::test(start_paused = true)]
async fn a_wait_stage_does_not_cancel() {
    let root = Tasks::new("node");
    obedient(&root, "busy");
    let error = shutdown_ordered([Stage::wait("drain", SOON, [root.clone()])])
        .await
        .unwrap_err();
    assert_eq!(error.stages.len(), 1);
    assert!(!root.is_cancelled());
    shutdown_ordered([Stage::cancel("leave", SOON, [root.clone()])])
        .await
        .unwrap();
}
