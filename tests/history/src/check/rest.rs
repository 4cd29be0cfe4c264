//! The log's beginning (H8), copies (H7), and what disks and the object store hold (H10).

use super::{Checker, Place, Position};
use crate::event::{Event, Value};
use crate::history::History;
use crate::report::Rule;
use crate::rules::Retention;

impl Checker<'_> {
    pub(super) fn on_log_start(&mut self, at: Position, partition: u64, offset: u64) {
        let allowed = self.log(partition).retention_until;
        if self.rules.retention == Retention::AsNoted && offset > allowed {
            let what = format!("the log starts at {offset}, retention allows {allowed}");
            self.violated(Rule::H8, Place::at(partition, offset), &[at], what);
        }
    }

    pub(super) fn finish_copies(&mut self, history: &History) {
        for (at, entry) in (1..).zip(history.entries()) {
            if let Event::Copy {
                source,
                partition,
                from,
                values,
            } = &entry.event
            {
                for (offset, value) in (*from..).zip(values) {
                    self.check_copy(at, source, Place::at(*partition, offset), *value);
                }
            }
        }
    }

    fn check_copy(&mut self, at: Position, source: &str, place: Place, value: Value) {
        let (Some(partition), Some(offset)) = (place.partition, place.offset) else {
            return;
        };
        match self.log(partition).slots.get(&offset).copied() {
            None => {
                let what = format!(
                    "{source} holds {}, and no reader was given anything here",
                    self.tell(value)
                );
                self.violated(Rule::H7, place, &[at], what);
            }
            Some(slot) if slot.value != value => {
                let what = format!(
                    "{source} holds {}, readers were given {}",
                    self.tell(value),
                    self.tell(slot.value)
                );
                let first = if slot.read > 0 { slot.read } else { slot.acked };
                self.violated(Rule::H7, place, &[first, at], what);
            }
            Some(_) => {}
        }
    }

    pub(super) fn on_node_held(&mut self, at: Position, node: u64, bytes: u64, bytes_max: u64) {
        if bytes > bytes_max {
            let what = format!("node {node} holds {bytes} bytes, the chains leave it {bytes_max}");
            self.violated(Rule::H10, Place::default(), &[at], what);
        }
    }

    pub(super) fn on_object(&mut self, at: Position, object: &str, referenced: bool, present: bool) {
        if referenced && !present {
            let what = format!("object {object} is referred to and is not there");
            self.violated(Rule::H10, Place::default(), &[at], what);
        } else if present && !referenced && !self.rules.garbage_allowed {
            let what = format!("object {object} is there and nothing refers to it");
            self.violated(Rule::H10, Place::default(), &[at], what);
        }
    }
}
