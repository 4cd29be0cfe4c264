//! `forebay-model`: searches the protocol's models and says what it saw.
//!
//! Ends with status 0 only if every scope is right and every mutant is caught. Results go to standard
//! output, progress to standard error.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Parser, Subcommand};
use forebay_model::report::{MutantRow, ScopeRow, mutant_table, scope_table, table, trace_text};
use forebay_model::tables::{Broken, Checked, STATES_MAX, mutants, scopes};
use serde::Serialize;

#[derive(Debug, Parser)]
#[command(
    name = "forebay-model",
    about = "Checks every reachable state of the segment protocol's models."
)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
    /// Print one JSON value instead of tables
    #[arg(long, global = true)]
    json: bool,
    /// Stop a search after as many states
    #[arg(long, global = true, default_value_t = STATES_MAX)]
    states_max: usize,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Name the scopes and the mutants
    List,
    /// Search scopes: nothing may be violated
    Check(CheckArguments),
    /// Search mutants: each must be caught; named ones show how
    Mutants {
        /// Mutants; all without
        names: Vec<String>,
    },
    /// Search the small scopes and all mutants
    All,
}

#[derive(Debug, Args)]
struct CheckArguments {
    /// Scopes; all small ones without
    names: Vec<String>,
    /// Search the large scopes, which take minutes and gigabytes
    #[arg(long, conflicts_with = "names")]
    large: bool,
}

#[derive(Debug, Default, Serialize)]
struct Results {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    scopes: Vec<ScopeRow>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mutants: Vec<MutantRow>,
}

fn main() -> ExitCode {
    match run(&Command::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("forebay-model: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether all is as it must be.
fn run(command: &Command) -> anyhow::Result<bool> {
    let mut results = Results::default();
    let mut traces_wanted = false;
    match &command.verb {
        Verb::List => {
            print(&list(command.json)?)?;
            return Ok(true);
        }
        Verb::Check(check) => {
            let wanted = named(scopes(), &check.names, |checked| checked.name, "scope")?;
            let all = !check.names.is_empty();
            let wanted = wanted
                .into_iter()
                .filter(|checked| all || checked.large == check.large);
            results.scopes = search_scopes(wanted, command.states_max);
        }
        Verb::Mutants { names } => {
            traces_wanted = !names.is_empty();
            let wanted = named(mutants(), names, |broken| broken.name, "mutant")?;
            results.mutants = search_mutants(wanted, command.states_max);
        }
        Verb::All => {
            let small = scopes().into_iter().filter(|checked| !checked.large);
            results.scopes = search_scopes(small, command.states_max);
            results.mutants = search_mutants(mutants(), command.states_max);
        }
    }
    let text = if command.json {
        serde_json::to_string_pretty(&results)?
    } else {
        text(&results, traces_wanted)
    };
    print(&text)?;
    let right = results.scopes.iter().all(|row| row.broken.is_none());
    Ok(right && results.mutants.iter().all(|row| row.caught_by.is_some()))
}

/// Those with the given names, or all.
fn named<T>(all: Vec<T>, names: &[String], name: impl Fn(&T) -> &str, kind: &str) -> anyhow::Result<Vec<T>> {
    if let Some(unknown) = names
        .iter()
        .find(|wanted| !all.iter().any(|one| name(one) == *wanted))
    {
        bail!("there is no {kind} {unknown}; `list` names them all");
    }
    let wanted = |one: &T| names.is_empty() || names.iter().any(|wanted| wanted == name(one));
    Ok(all.into_iter().filter(wanted).collect())
}

fn search_scopes(wanted: impl IntoIterator<Item = Checked>, states_max: usize) -> Vec<ScopeRow> {
    let search = |checked: Checked| {
        eprintln!("checking {}", checked.name);
        let row = ScopeRow::new(&checked, checked.run(states_max));
        eprintln!(
            "{}: {}, {} states in {:.1} s",
            row.scope, row.end, row.states, row.seconds
        );
        row
    };
    wanted.into_iter().map(search).collect()
}

fn search_mutants(wanted: impl IntoIterator<Item = Broken>, states_max: usize) -> Vec<MutantRow> {
    let search = |broken: Broken| {
        eprintln!("breaking {}", broken.name);
        MutantRow::new(&broken, broken.run(states_max))
    };
    wanted.into_iter().map(search).collect()
}

fn text(results: &Results, traces_wanted: bool) -> String {
    let mut parts = Vec::new();
    if !results.scopes.is_empty() {
        parts.push(scope_table(&results.scopes));
    }
    for row in &results.scopes {
        parts.extend(
            row.broken
                .map(|property| trace_text(row.scope, property, &row.trace)),
        );
    }
    if !results.mutants.is_empty() {
        parts.push(mutant_table(&results.mutants));
    }
    for row in results.mutants.iter().filter(|_| traces_wanted) {
        parts.extend(
            row.caught_by
                .map(|property| trace_text(row.mutant, property, &row.trace)),
        );
    }
    parts.join("\n\n")
}

#[derive(Serialize)]
struct Named {
    name: &'static str,
    model: &'static str,
    what: &'static str,
}

fn list(json: bool) -> anyhow::Result<String> {
    let of_scope = |checked: &Checked| Named {
        name: checked.name,
        model: checked.subject.model(),
        what: checked.what,
    };
    let of_mutant = |broken: &Broken| Named {
        name: broken.name,
        model: broken.subject.model(),
        what: broken.what,
    };
    let (all, broken) = (scopes(), mutants());
    let (small, large): (Vec<_>, Vec<_>) = all.iter().partition(|checked| !checked.large);
    let small: Vec<_> = small.into_iter().map(of_scope).collect();
    let large: Vec<_> = large.into_iter().map(of_scope).collect();
    let broken: Vec<_> = broken.iter().map(of_mutant).collect();
    if json {
        let value = serde_json::json!({ "scopes": small, "large_scopes": large, "mutants": broken });
        return Ok(serde_json::to_string_pretty(&value)?);
    }
    let part = |title: &str, rows: &[Named]| {
        let cells = rows
            .iter()
            .map(|row| vec![row.name.to_owned(), row.model.to_owned(), row.what.to_owned()]);
        table(&[title, "MODEL", "WHAT HAPPENS"], &[], cells)
    };
    Ok([
        part("SCOPE", &small),
        part("LARGE SCOPE", &large),
        part("MUTANT", &broken),
    ]
    .join("\n\n"))
}

/// Prints to standard output; a reader that went away had enough.
fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
