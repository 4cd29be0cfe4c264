//! A history in memory and as lines of JSON, one event each.
//!
//! A history only grows. Its file's line N is the event that a violation calls N.

use std::io::{BufRead, Read as _, Write};

use crate::event::{Entry, Event};

/// Longest line that is taken for an event.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// Why a history cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file cannot be written or read.
    #[error("line {line} of the history: {error}")]
    Io {
        /// Line, from 1.
        line: u64,
        /// Why.
        error: std::io::Error,
    },
    /// A line is no event.
    #[error("line {line} of the history is no event: {error}")]
    Format {
        /// Line, from 1.
        line: u64,
        /// Why.
        error: serde_json::Error,
    },
    /// A line is longer than an event can be.
    #[error("line {line} of the history has more than {LINE_BYTES_MAX} bytes")]
    Length {
        /// Line, from 1.
        line: u64,
    },
}

/// Everything noted of one run, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    entries: Vec<Entry>,
}

impl History {
    /// A history of nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: Vec::new() }
    }

    /// Notes an event.
    pub fn push(&mut self, at: u64, event: Event) {
        self.entries.push(Entry { at, event });
    }

    /// All events in the order in which they were noted.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Writes one line for each event.
    ///
    /// # Errors
    /// Where the writer does.
    pub fn write_to(&self, mut to: impl Write) -> Result<(), HistoryError> {
        for (line, entry) in (1..).zip(&self.entries) {
            let mut text = serde_json::to_vec(entry).map_err(|error| HistoryError::Format { line, error })?;
            text.push(b'\n');
            to.write_all(&text)
                .map_err(|error| HistoryError::Io { line, error })?;
        }
        to.flush().map_err(|error| HistoryError::Io {
            line: self.entries.len() as u64,
            error,
        })
    }

    /// Reads what [`History::write_to`] wrote.
    ///
    /// # Errors
    /// With the line that is no event, or where the reader fails.
    pub fn read_from(mut from: impl BufRead) -> Result<Self, HistoryError> {
        let mut history = Self::new();
        let mut text = Vec::new();
        for line in 1.. {
            text.clear();
            let taken = from
                .by_ref()
                .take(LINE_BYTES_MAX)
                .read_until(b'\n', &mut text)
                .map_err(|error| HistoryError::Io { line, error })?;
            if taken == 0 {
                break;
            }
            if taken as u64 == LINE_BYTES_MAX && text.last() != Some(&b'\n') {
                return Err(HistoryError::Length { line });
            }
            let entry =
                serde_json::from_slice(&text).map_err(|error| HistoryError::Format { line, error })?;
            history.entries.push(entry);
        }
        Ok(history)
    }
}

impl Extend<Entry> for History {
    fn extend<T: IntoIterator<Item = Entry>>(&mut self, entries: T) {
        self.entries.extend(entries);
    }
}

impl FromIterator<Entry> for History {
    fn from_iter<T: IntoIterator<Item = Entry>>(entries: T) -> Self {
        Self {
            entries: entries.into_iter().collect(),
        }
    }
}
