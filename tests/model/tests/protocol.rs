//! Small scopes are right to the last state, and every mutant is caught.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeSet;

use forebay_model::log::{Log, Mutant, Scope};
use forebay_model::report::trace_text;
use forebay_model::search::{End, Search};
use forebay_model::tables::{Subject, mutants, scopes};

/// More than any small scope has: passing it means that a scope has grown beyond its budget.
const STATES_MAX: usize = 2_500_000;

#[test]
fn small_scopes_are_exhausted_without_a_violation() {
    for checked in scopes().into_iter().filter(|checked| !checked.large) {
        let outcome = checked.run(STATES_MAX);
        let (states, depth, took) = (outcome.states, outcome.depth, outcome.took);
        println!("{}: {states} states, depth {depth}, {took:.1?}", checked.name);
        match outcome.end {
            End::Exhausted => {}
            End::Bounded => panic!("{} has more than {STATES_MAX} states", checked.name),
            End::Violated { property, trace } => panic!("{}", trace_text(checked.name, property, &trace)),
        }
    }
}

#[test]
fn every_mutant_is_caught() {
    for broken in mutants() {
        let outcome = broken.run(STATES_MAX);
        let (states, depth) = (outcome.states, outcome.depth);
        let End::Violated { property, trace } = outcome.end else {
            panic!(
                "{} is not caught in {states} states: {:?}",
                broken.name, outcome.end
            );
        };
        println!("{}: {property}, depth {depth}, {states} states", broken.name);
        assert_eq!(trace.len(), depth, "{}", broken.name);
    }
}

#[test]
fn every_invariant_has_a_mutant() {
    let broken: BTreeSet<String> = mutants().iter().map(|broken| broken.rule()).collect();
    for number in 1..=24 {
        assert!(broken.contains(&format!("I{number}")), "I{number} has no mutant");
    }
}

/// The scope of a mutant is right as soon as the rule is kept: it is the rule that is missing.
#[test]
fn scopes_of_mutants_are_right_with_the_rule() {
    for broken in mutants() {
        let subject = match broken.subject {
            Subject::Log(model) => Subject::Log(Log {
                mutant: None,
                rules: true,
                ..model
            }),
            Subject::Floor(mut model) => {
                model.mutant = None;
                Subject::Floor(model)
            }
            Subject::Objects(mut model) => {
                model.mutant = None;
                Subject::Objects(model)
            }
        };
        // As far as the mutant had to go.
        let states_max = broken.run(STATES_MAX).states;
        let outcome = subject.run(Search {
            states_max,
            owed: None,
        });
        if let End::Violated { property, trace } = outcome.end {
            panic!("{}", trace_text(broken.name, property, &trace));
        }
    }
}

/// Rules that are checked for themselves, too, do catch what breaks them.
#[test]
fn rules_catch_what_breaks_them() {
    let trim = Scope {
        trim: true,
        ..Scope::BASE
    };
    let broken = [
        (
            Mutant::NoFloor,
            trim,
            "a segment that was forgotten is above the floor",
        ),
        (
            Mutant::BaseBeyondSealedEnd,
            Scope::BASE,
            "the chain has a gap, or an open segment inside",
        ),
        (
            Mutant::TokensDoNotRise,
            Scope::BASE,
            "tokens do not rise along the chain",
        ),
    ];
    for (mutant, scope, expected) in broken {
        let model = Log {
            scope,
            mutant: Some(mutant),
            rules: true,
        };
        let outcome = Search {
            states_max: STATES_MAX,
            owed: None,
        }
        .run(&model);
        let End::Violated { property, .. } = outcome.end else {
            panic!("{mutant:?} is not caught");
        };
        assert_eq!(property, expected, "{mutant:?}");
    }
}
