//! A few seeds on every change; thousands are for `./dev sim --seeds N`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use forebay_sim::run::Outcome;

/// Seeds tried on every change.
const SEEDS: std::ops::Range<u64> = 1..5;
const SECONDS: u64 = 8;

/// Runs a seed in a process of its own, as the command does.
fn run(seed: u64, seconds: u64, more: &[&str]) -> Outcome {
    let output = Command::new(env!("CARGO_BIN_EXE_forebay-sim"))
        .args(["--child", "--level", "debug"])
        .args(["--seed", &seed.to_string(), "--seconds", &seconds.to_string()])
        .args(more)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| {
        panic!(
            "seed {seed} said {last:?}: {error}\n{}",
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

/// Runs seeds on both processors, and gives those that failed.
fn failed(seeds: &[(u64, u64)]) -> Vec<Outcome> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((seed, seconds)) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run(*seed, *seconds, &[]);
                    assert!(outcome.acked > 0, "seed {seed} wrote nothing");
                    if !outcome.violations.is_empty() {
                        failed.lock().unwrap().push(outcome);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap()
}

#[test]
fn what_clients_saw_in_some_seeds_of_trouble_is_right() {
    let seeds: Vec<_> = SEEDS.map(|seed| (seed, SECONDS)).collect();
    let failed = failed(&seeds);
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn seeds_that_found_something_once_find_nothing_more() {
    let pinned = include_str!("../pinned.txt");
    let lines = pinned.lines().filter(|line| !line.starts_with('#'));
    let seeds: Vec<_> = lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let mut number = || words.next().unwrap().parse().unwrap();
            (number(), number())
        })
        .collect();
    assert!(!seeds.is_empty());
    let failed = failed(&seeds);
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn a_seed_gives_the_same_log_twice_and_another_seed_another_one() {
    let first = run(3, SECONDS, &[]);
    assert!(first.log.0 > 100, "{first:?}");
    assert_eq!(run(3, SECONDS, &[]).log, first.log);
    assert_ne!(run(4, SECONDS, &[]).log, first.log);
}

#[test]
fn a_rule_that_is_broken_is_noticed() {
    // Those that a seed or two notice; `./dev sim --mutants` tries all.
    for mutant in ["i01-epoch-kept", "i04-ack-before-sync", "i08-tail-dropped"] {
        let noticed = (1..4).find(|seed| {
            let outcome = run(*seed, 25, &["--mutant", mutant]);
            !outcome.violations.is_empty()
        });
        assert!(noticed.is_some(), "nothing noticed {mutant}");
    }
}
