//! What an S3 server's failures and an operator's mistakes come to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use forebay_record::Offset;
use forebay_runtime::clock::SystemClock;
use forebay_runtime::config::{HumanDuration, Secret};
use forebay_runtime::metrics::Metrics;
use forebay_runtime::random::SeededRandom;
use forebay_tier::{Bucket, ObjectStoreConfig, OpenError, StoreError, WriteError};

use crate::contract::ready;
use crate::proxy::{Fault, Proxy};
use crate::support::{
    assert_corrupt, batches, concat, list, metric, name, names, open, open_with, reader, run, s3_config,
    write,
};
use crate::weed::{Weed, weed};

/// A server behind a proxy, and settings with short times.
struct Behind {
    _weed: Arc<Weed>,
    proxy: Proxy,
    config: ObjectStoreConfig,
}

async fn behind(case: &str) -> Behind {
    let weed = weed();
    let proxy = Proxy::start(weed.port()).await;
    let config = ObjectStoreConfig {
        request_timeout: HumanDuration::millis(2000),
        retry_timeout: HumanDuration::millis(2000),
        ..s3_config(&proxy.endpoint(), case)
    };
    ready(&open(&config)).await;
    Behind {
        _weed: weed,
        proxy,
        config,
    }
}

async fn check(bucket: &Bucket) -> Result<(), OpenError> {
    bucket.check("c1", &SeededRandom::new(1)).await
}

/// A rule that does something to the first few requests it is meant for.
fn first(count: u32, fault: Fault, wanted: fn(&str, &str) -> bool) -> impl FnMut(&str, &str) -> Fault + Send {
    let mut left = count;
    move |method, path| {
        if left == 0 || !wanted(method, path) {
            return Fault::Pass;
        }
        left -= 1;
        fault
    }
}

fn any(_: &str, _: &str) -> bool {
    true
}

fn puts(method: &str, _: &str) -> bool {
    method == "PUT"
}

fn gets(method: &str, _: &str) -> bool {
    method == "GET"
}

#[tokio::test]
async fn an_operators_mistakes_are_named_with_what_to_check() {
    let weed = weed();
    let good = s3_config(&weed.endpoint(), "mistakes");
    ready(&open(&good)).await;
    type Mistake = fn(&mut ObjectStoreConfig);
    let mistakes: [(Mistake, &[&str]); 3] = [
        (
            |config| config.url = "s3://nowhere/x".to_owned(),
            &[
                "s3://nowhere/x",
                "NoSuchBucket",
                "bucket does not exist",
                "object_store.url",
            ],
        ),
        (
            |config| config.access_key_id = "stranger".to_owned(),
            &["InvalidAccessKeyId", "object_store.access_key_id"],
        ),
        (
            |config| config.secret_access_key = Some(Secret::new("guess".to_owned())),
            &["SignatureDoesNotMatch", "object_store.secret_access_key"],
        ),
    ];
    for (mistake, says) in mistakes {
        let mut config = good.clone();
        mistake(&mut config);
        let bucket = open(&config);
        let error = check(&bucket).await.unwrap_err();
        assert!(
            matches!(error, OpenError::Store(StoreError::Refused { .. })),
            "{error}"
        );
        let message = error.to_string();
        for part in says.iter().chain([&weed.endpoint().as_str()]) {
            assert!(message.contains(part), "{message}: {part} expected");
        }
        // The other operations say the same, not "not found".
        assert_eq!(bucket.get("d/1", 9).await.unwrap_err().outcome(), "refused");
        assert_eq!(bucket.list("d", |_| {}).await.unwrap_err().outcome(), "refused");
        assert_eq!(
            bucket.delete(&["d/1".to_owned()]).await.unwrap_err().outcome(),
            "refused"
        );
    }

    let without = ObjectStoreConfig {
        access_key_id: String::new(),
        secret_access_key: None,
        ..good.clone()
    };
    let clock = Arc::new(SystemClock::new());
    let opened = Bucket::open(&without, &Metrics::new(), clock.clone(), &|_| None);
    let message = opened.unwrap_err().to_string();
    assert!(
        message.contains("object_store.access_key_id") && message.contains("AWS_ACCESS_KEY_ID"),
        "{message}"
    );
    let environment = |name: &str| match name {
        "AWS_ACCESS_KEY_ID" => Some(crate::weed::ACCESS_KEY.to_owned()),
        "AWS_SECRET_ACCESS_KEY" => Some(crate::weed::SECRET.to_owned()),
        _ => None,
    };
    let opened = Bucket::open(&without, &Metrics::new(), clock, &environment).unwrap();
    check(&opened.unwrap()).await.unwrap();
}

#[tokio::test]
async fn nothing_that_listens_is_unavailable_in_time() {
    let gone = {
        let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap().port()
    };
    let config = ObjectStoreConfig {
        retry_timeout: HumanDuration::millis(300),
        request_timeout: HumanDuration::millis(500),
        ..s3_config(&format!("http://127.0.0.1:{gone}"), "x")
    };
    let started = Instant::now();
    let error = check(&open(&config)).await.unwrap_err();
    assert!(
        matches!(error, OpenError::Store(StoreError::Unavailable { .. })),
        "{error}"
    );
    assert!(error.to_string().contains(&config.endpoint), "{error}");
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_store_that_is_busy_for_a_moment_costs_time_only() {
    let behind = behind("busy").await;
    let metrics = Metrics::new();
    let bucket = open_with(&behind.config, &metrics);
    behind.proxy.rule(first(3, Fault::Refuse(503, "SlowDown"), any));
    bucket.put("d/1", "x".into()).await.unwrap();
    behind.proxy.rule(first(2, Fault::AnswerLost, any));
    bucket.put("d/2", "y".into()).await.unwrap();
    behind.proxy.rule(first(1, Fault::Cut, gets));
    assert_eq!(bucket.get("d/2", 9).await.unwrap(), "y");
    behind
        .proxy
        .rule(first(1, Fault::Slow(Duration::from_millis(300)), any));
    assert_eq!(bucket.head("d/2").await.unwrap(), 1);
    assert_eq!(
        metric(
            &metrics,
            "forebay_object_store_requests_total{op=\"put\",outcome=\"ok\"}"
        ),
        2
    );
}

#[tokio::test]
async fn a_store_that_stays_away_is_unavailable_within_the_time_limit() {
    let behind = behind("away").await;
    let config = ObjectStoreConfig {
        retry_timeout: HumanDuration::millis(400),
        request_timeout: HumanDuration::millis(400),
        ..behind.config.clone()
    };
    let metrics = Metrics::new();
    let bucket = open_with(&config, &metrics);
    for fault in [
        Fault::Refuse(503, "SlowDown"),
        Fault::Refuse(429, "TooManyRequests"),
        Fault::Hang,
        Fault::AnswerLost,
    ] {
        behind.proxy.rule(move |_, _| fault);
        let started = Instant::now();
        let names = ["d/1".to_owned()];
        let failures = [
            bucket.put("d/1", "x".into()).await.unwrap_err(),
            bucket.get("d/1", 9).await.unwrap_err(),
            bucket.head("d/1").await.unwrap_err(),
            bucket.list("d", |_| {}).await.unwrap_err(),
            bucket.delete(&names).await.unwrap_err(),
        ];
        for error in failures {
            assert_eq!(error.outcome(), "unavailable", "{fault:?}: {error}");
        }
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "{fault:?}: {:?}",
            started.elapsed()
        );
    }
    let unavailable = "forebay_object_store_requests_total{op=\"put\",outcome=\"unavailable\"}";
    assert_eq!(metric(&metrics, unavailable), 4);
}

/// The object is there, and nobody knows: the caller tries again, with another name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_whose_answer_is_lost_is_unavailable_and_tried_with_a_new_name() {
    let behind = behind("lost").await;
    let bucket = open(&behind.config);
    let names = names();
    let (one, two) = (name(&names), name(&names));
    behind.proxy.rule(|method, _| {
        if puts(method, "") {
            Fault::AnswerLost
        } else {
            Fault::Pass
        }
    });
    let small = batches(0, 2, 1, 100);
    let error = write(&bucket, &one, 0, &small, 2).await.unwrap_err();
    assert!(
        matches!(error, WriteError::Store(StoreError::Unavailable { .. })),
        "{error}"
    );
    behind.proxy.rule(|_, _| Fault::Pass);
    let written = write(&bucket, &two, 0, &small, 2).await.unwrap();
    assert_eq!(
        bucket.head(&one).await.unwrap(),
        written.object_len,
        "it was applied"
    );
    assert_eq!(list(&bucket, "d").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_multipart_upload_survives_or_fails_as_a_whole() {
    let behind = behind("parts").await;
    let bucket = open(&behind.config);
    let names = names();
    let large = batches(0, 12, 1, 1 << 20);
    let completes: fn(&str, &str) -> bool = |method, path| method == "POST" && path.contains("uploadId");
    let parts: fn(&str, &str) -> bool = |method, path| method == "PUT" && path.contains("partNumber");
    // A part is tried again; so is the completion, whose first try was done.
    for (fault, completion) in [
        (Fault::Refuse(503, "SlowDown"), false),
        (Fault::AnswerLost, false),
        (Fault::AnswerLost, true),
        (Fault::ErrorAfter, true),
    ] {
        let wanted = if completion { completes } else { parts };
        let object = name(&names);
        behind.proxy.rule(first(1, fault, wanted));
        match write(&bucket, &object, 0, &large, 12).await {
            Ok(written) => assert_eq!(bucket.head(&object).await.unwrap(), written.object_len),
            // Whether it was done is not known; a new name is.
            Err(WriteError::Store(StoreError::Unavailable { .. })) if completion => {}
            Err(error) => panic!("{fault:?}: {error}"),
        }
    }
    let object = name(&names);
    let aborts = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&aborts);
    behind.proxy.rule(move |method, path| {
        seen.fetch_add(u32::from(method == "DELETE"), Ordering::Relaxed);
        let part = method == "PUT" && path.contains("partNumber=2");
        if part {
            Fault::Refuse(403, "AccessDenied")
        } else {
            Fault::Pass
        }
    });
    let error = write(&bucket, &object, 0, &large, 12).await.unwrap_err();
    assert!(
        matches!(error, WriteError::Store(StoreError::Refused { .. })),
        "{error}"
    );
    assert_eq!(aborts.load(Ordering::Relaxed), 1, "its parts are given back");
    assert_eq!(bucket.head(&object).await.unwrap_err().outcome(), "not_found");
}

#[tokio::test]
async fn bytes_damaged_on_their_way_are_read_again_once() {
    let behind = behind("flip").await;
    let bucket = open(&behind.config);
    let object = name(&names());
    let all = batches(0, 3, 2, 500);
    let written = write(&bucket, &object, 0, &all, 6).await.unwrap();
    let run = run(&object, 0, 6, &written);
    // First the object's end, then its batches.
    for skip in [0, 1] {
        for (times, is_read) in [(1, true), (2, false)] {
            let mut seen = 0;
            behind.proxy.rule(move |method, _| {
                if method != "GET" {
                    return Fault::Pass;
                }
                seen += 1;
                if seen > skip && seen <= skip + times {
                    Fault::Flip
                } else {
                    Fault::Pass
                }
            });
            let found = reader(&bucket)
                .await
                .read(&run, Offset(0), Offset(6), 1 << 20)
                .await;
            if is_read {
                assert_eq!(found.unwrap(), concat(&all));
            } else {
                assert_corrupt(found, &object, &["expected"]);
            }
        }
    }
}

#[tokio::test]
async fn a_store_that_refuses_deletes_can_be_used() {
    let behind = behind("keep").await;
    let metrics = Metrics::new();
    let bucket = open_with(&behind.config, &metrics);
    let refuse = |method: &str, path: &str| {
        let delete = method == "DELETE" || (method == "POST" && path.contains("?delete"));
        if delete {
            Fault::Refuse(403, "AccessDenied")
        } else {
            Fault::Pass
        }
    };
    behind.proxy.rule(refuse);
    check(&bucket).await.unwrap();
    assert_eq!(metric(&metrics, "forebay_object_store_deletes_refused"), 1);
    crate::gc::refused_deletes_are_no_failure(bucket.clone(), || behind.proxy.rule(|_, _| Fault::Pass)).await;
    assert_eq!(metric(&metrics, "forebay_object_store_deletes_refused"), 0);
    assert!(
        list(&bucket, "probe").await.is_empty(),
        "collected like any garbage"
    );
}

#[tokio::test]
async fn a_list_that_fails_ends_a_round_of_collection() {
    let behind = behind("list").await;
    let bucket = open(&behind.config);
    behind.proxy.rule(|method, path| {
        let list = method == "GET" && path.contains("list-type");
        if list {
            Fault::Refuse(503, "SlowDown")
        } else {
            Fault::Pass
        }
    });
    crate::gc::a_failed_list_deletes_nothing(bucket).await;
}

/// Certificates are needed for TLS only: the same test again, on a machine that has none.
#[test]
fn a_store_without_tls_needs_no_certificates_on_the_machine() {
    const CHILD: &str = "FOREBAY_TEST_NO_CERTIFICATES";
    let open_and_check = || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let weed = weed();
            let bucket = open(&s3_config(&weed.endpoint(), "certificates"));
            ready(&bucket).await;
            check(&bucket).await.unwrap();
            let tls = ObjectStoreConfig {
                endpoint: "https://127.0.0.1:1".to_owned(),
                ..s3_config("", "x")
            };
            let clock = Arc::new(SystemClock::new());
            let opened = Bucket::open(&tls, &Metrics::new(), clock, &|_| None);
            let message = opened.unwrap_err().to_string();
            assert!(message.contains("ca-certificates"), "{message}");
        });
    };
    if std::env::var_os(CHILD).is_some() {
        return open_and_check();
    }
    let none = tempfile::tempdir().unwrap();
    let empty = none.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "faults::a_store_without_tls_needs_no_certificates_on_the_machine",
        ])
        .env(CHILD, "1")
        .env("SSL_CERT_FILE", &empty)
        .env("SSL_CERT_DIR", none.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}
