//! What commands print: tables for people, JSON for programs, numbers that can be read.
//!
//! Standard output carries results only; everything else goes to standard error. A reader that
//! goes away, as `head` does, ends the command without a complaint.

use std::io::{self, Write as _};

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one JSON value, whose field names stay.
    Json,
}

/// The choice of a format.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct FormatArgs {
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

impl FormatArgs {
    /// Prints a result in the chosen form.
    pub fn print<T: Serialize>(self, value: &T, table: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        match self.format {
            Format::Table => print(&table(value)),
            Format::Json => print(&serde_json::to_string_pretty(value)?),
        }
    }
}

/// Nobody reads standard output any more. Not a failure: the reader had enough.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("nobody reads standard output")]
pub struct ReaderGone;

/// Prints text and a line feed to standard output.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(write_error)
}

/// What a failed write to standard output means.
pub fn write_error(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return ReaderGone.into();
    }
    anyhow::Error::new(error).context("cannot write to standard output")
}

/// A table without lines, one row a line, numbers to the right where `right` says so.
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

/// A value, or a dash where there is none.
pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Digits in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number and what it counts, in the singular where it is 1.
pub fn counted(number: u64, thing: &str) -> String {
    format!(
        "{} {thing}{}",
        grouped(number),
        if number == 1 { "" } else { "s" }
    )
}

/// Bytes with the unit that suits them, to one decimal.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut chosen = "KiB";
    for unit in UNITS.into_iter().skip(1) {
        // What would be printed as 1024.0 belongs to the next unit.
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        chosen = unit;
    }
    format!("{value:.1} {chosen}")
}

/// MiB in a second; none where no time passed.
pub fn mib_per_second(count: u64, seconds: f64) -> String {
    if seconds <= 0.0 {
        return "- MiB/s".to_owned();
    }
    format!("{:.1} MiB/s", count as f64 / f64::from(1 << 20) / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_units_fit() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(
            (counted(1, "line"), counted(0, "line")),
            ("1 line".to_owned(), "0 lines".to_owned())
        );
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(100 << 20), "100.0 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(mib_per_second(3 << 20, 2.0), "1.5 MiB/s");
        assert_eq!(mib_per_second(1, 0.0), "- MiB/s");
    }

    #[test]
    fn a_table_has_a_line_for_each_row_and_aligns_numbers() {
        let rows = [
            vec!["a".to_owned(), "1".to_owned()],
            vec!["bcd".to_owned(), "1,000".to_owned()],
        ];
        let text = table(&["NAME", "COUNT"], &[1], rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines, ["NAME  COUNT", "a         1", "bcd   1,000"]);
    }

    #[test]
    fn only_a_closed_pipe_is_a_reader_that_left() {
        assert!(write_error(io::ErrorKind::BrokenPipe.into()).is::<ReaderGone>());
        assert!(!write_error(io::ErrorKind::StorageFull.into()).is::<ReaderGone>());
    }
}
