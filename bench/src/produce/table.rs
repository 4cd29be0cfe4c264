//! The report as people read it: one table for each cell, one for the goals.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::report::{Bound, Cell, Report, Series};
use crate::measure::{CLIENT, Measurement};

/// Roles in the order that a batch passes them; others follow by name.
const ROLES: [&str; 6] = [CLIENT, "standalone", "proxy", "broker", "storage", "etcd"];

/// Medians of a cell, and its ratios.
pub fn cell(cell: &Cell) -> String {
    let mut rows = plain(&[
        "",
        "MiB/s",
        "p50 / p99 / p99.9 ms",
        "CPU-s/GiB",
        "of which",
        "written/byte",
        "zeroed/byte",
        "fsync/s",
        "peak MiB",
    ]);
    for series in &cell.series {
        if let Some(median) = &series.median {
            rows.add_row(row(series, median));
        }
    }
    let mut ratios = String::new();
    for ratio in &cell.ratios {
        let rounds = ratio
            .rounds
            .iter()
            .map(|value| format!("{value:.2}"))
            .collect::<Vec<_>>()
            .join(" ");
        let median = ratio
            .median
            .map_or_else(|| "–".to_owned(), |median| format!("{median:.2}"));
        ratios += &format!(
            "\n{} of {}, {}: {median} (rounds {rounds})",
            ratio.subject,
            ratio.yardstick,
            ratio.figure.name()
        );
    }
    let rounds = cell
        .series
        .iter()
        .map(|series| series.rounds.len())
        .max()
        .unwrap_or(0);
    format!("\n{}, medians of {rounds} rounds\n{rows}{ratios}", cell.title())
}

/// One measurement by itself.
pub fn single(name: &str, measured: &Measurement) -> String {
    format!(
        "{name}: {:.0} MiB/s, p50 / p99 / p99.9 {} ms, {:.2} CPU-s/GiB ({}), {} written/byte, {} fsync/s, peak {} MiB",
        measured.mib_per_s,
        latencies(measured),
        measured.cpu_s_per_gib_total,
        by_role(&measured.cpu_s_per_gib, 2),
        number(measured.written_per_byte, 3),
        number(measured.fsyncs_per_s, 0),
        by_role(&measured.rss_peak_mib, 0),
    )
}

/// What was asked for and what was found.
pub fn goals(report: &Report) -> String {
    let mut rows = plain(&["goal", "bound", "found", ""]);
    for goal in &report.goals {
        let bound = match goal.bound {
            Bound::AtLeast(bound) => format!("≥ {bound}"),
            Bound::AtMost(bound) => format!("≤ {bound}"),
        };
        let verdict = match goal.met() {
            Some(true) => "met",
            Some(false) => "missed",
            None => "not measured",
        };
        rows.add_row([
            goal.what.clone(),
            bound,
            number(goal.found, 2),
            verdict.to_owned(),
        ]);
    }
    format!(
        "\n{} CPUs, Linux {}\n{rows}",
        report.machine.cpus, report.machine.kernel
    )
}

fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn row(series: &Series, median: &Measurement) -> [String; 9] {
    [
        format!("{}, {}", series.subject, series.operation.name()),
        format!("{:.0}", median.mib_per_s),
        latencies(median),
        format!("{:.2}", median.cpu_s_per_gib_total),
        by_role(&median.cpu_s_per_gib, 2),
        number(median.written_per_byte, 3),
        number(median.zeroed_per_byte, 2),
        number(median.fsyncs_per_s, 0),
        by_role(&median.rss_peak_mib, 0),
    ]
}

fn latencies(measured: &Measurement) -> String {
    let ms = |micros: u64| format!("{:.2}", micros as f64 / 1000.0);
    measured.latency_us.map_or_else(
        || "–".to_owned(),
        |latency| format!("{} / {} / {}", ms(latency.p50), ms(latency.p99), ms(latency.p999)),
    )
}

fn by_role(values: &BTreeMap<String, f64>, digits: usize) -> String {
    let known = ROLES.iter().filter_map(|role| values.get_key_value(*role));
    let others = values.iter().filter(|(role, _)| !ROLES.contains(&role.as_str()));
    let parts = known
        .chain(others)
        .map(|(role, value)| format!("{role} {value:.digits$}"))
        .collect::<Vec<_>>();
    if parts.is_empty() {
        "–".to_owned()
    } else {
        parts.join(", ")
    }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}
