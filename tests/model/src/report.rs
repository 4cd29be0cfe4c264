//! What the command prints: aligned tables for people, JSON for programs.

use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::search::{End, Outcome};
use crate::tables::{Broken, Checked};

/// The outcome of one scope.
#[derive(Debug, Serialize)]
pub struct ScopeRow {
    /// The scope.
    pub scope: &'static str,
    /// `exhausted`, `bounded` or `violated`.
    pub end: &'static str,
    /// The property that is broken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<&'static str>,
    /// A shortest way to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<String>,
    /// Different states.
    pub states: usize,
    /// Steps between them.
    pub transitions: u64,
    /// Steps to the furthest.
    pub depth: usize,
    /// Whether liveness was checked too.
    pub liveness: bool,
    /// Time taken.
    pub seconds: f64,
}

/// The outcome of one mutant.
#[derive(Debug, Serialize)]
pub struct MutantRow {
    /// The mutant.
    pub mutant: &'static str,
    /// The rule that it breaks.
    pub rule: String,
    /// The model.
    pub model: &'static str,
    /// The property that catches it; none if nothing does.
    pub caught_by: Option<&'static str>,
    /// Steps to the violation.
    pub depth: usize,
    /// States seen before it.
    pub states: usize,
    /// Time taken.
    pub seconds: f64,
    /// A shortest way to the harm.
    pub trace: Vec<String>,
}

fn seconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 1000.0).round() / 1000.0
}

impl ScopeRow {
    /// The row of a search.
    #[must_use]
    pub fn new(checked: &Checked, outcome: Outcome) -> Self {
        let (end, broken, trace) = match outcome.end {
            End::Exhausted => ("exhausted", None, Vec::new()),
            End::Bounded => ("bounded", None, Vec::new()),
            End::Violated { property, trace } => ("violated", Some(property), trace),
        };
        Self {
            scope: checked.name,
            end,
            broken,
            trace,
            states: outcome.states,
            transitions: outcome.transitions,
            depth: outcome.depth,
            liveness: checked.owed,
            seconds: seconds(outcome.took),
        }
    }
}

impl MutantRow {
    /// The row of a search.
    #[must_use]
    pub fn new(broken: &Broken, outcome: Outcome) -> Self {
        let (caught_by, trace) = match outcome.end {
            End::Exhausted | End::Bounded => (None, Vec::new()),
            End::Violated { property, trace } => (Some(property), trace),
        };
        Self {
            mutant: broken.name,
            rule: broken.rule(),
            model: broken.subject.model(),
            caught_by,
            depth: outcome.depth,
            states: outcome.states,
            seconds: seconds(outcome.took),
            trace,
        }
    }
}

/// A table of scopes.
#[must_use]
pub fn scope_table(rows: &[ScopeRow]) -> String {
    let header = [
        "SCOPE",
        "END",
        "LIVENESS",
        "STATES",
        "TRANSITIONS",
        "DEPTH",
        "SECONDS",
    ];
    let cells = rows.iter().map(|row| {
        let liveness = if row.liveness { "checked" } else { "-" };
        vec![
            row.scope.to_owned(),
            row.end.to_owned(),
            liveness.to_owned(),
            row.states.to_string(),
            row.transitions.to_string(),
            row.depth.to_string(),
            format!("{:.2}", row.seconds),
        ]
    });
    table(&header, &[3, 4, 5, 6], cells)
}

/// A table of mutants.
#[must_use]
pub fn mutant_table(rows: &[MutantRow]) -> String {
    let header = [
        "MUTANT",
        "RULE",
        "MODEL",
        "CAUGHT BY",
        "DEPTH",
        "STATES",
        "SECONDS",
    ];
    let cells = rows.iter().map(|row| {
        vec![
            row.mutant.to_owned(),
            row.rule.clone(),
            row.model.to_owned(),
            row.caught_by.unwrap_or("NOTHING").to_owned(),
            row.depth.to_string(),
            row.states.to_string(),
            format!("{:.2}", row.seconds),
        ]
    });
    table(&header, &[4, 5, 6], cells)
}

/// A table without lines, numbers to the right where `right` says so.
pub fn table(header: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for &index in right {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// A trace, one numbered step a line.
#[must_use]
pub fn trace_text(title: &str, property: &str, trace: &[String]) -> String {
    let mut text = format!("{title}: {property}\n");
    for (number, step) in trace.iter().enumerate() {
        text.push_str(&format!("  {:>2}  {step}\n", number + 1));
    }
    text
}
