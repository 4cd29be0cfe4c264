//! The embedded store in memory: the present, the recent past, and the leases.
//!
//! The past is a list of changes, each with what was before it. A read at an earlier revision
//! takes the present and undoes; a watch walks forward. The list is bounded by count and bytes,
//! and forgets whole revisions from its old end, never a part of one.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::RANGE_ENTRIES_MAX;
use crate::store::error::{BadRequest, ReadError};
use crate::store::types::{Entry, LeaseId, Page, Range, Revision, WatchEvent, WatchKind};

/// Changes kept for watches and pinned reads.
const HISTORY_CHANGES_MAX: usize = 65_536;
/// Bytes that those may hold.
const HISTORY_BYTES_MAX: usize = 64 << 20;
/// What a change costs beside its keys and values.
const CHANGE_OVERHEAD_BYTES: usize = 256;
/// Leases alive at once.
const LEASES_MAX: usize = 65_536;
/// Events in one batch, unless one revision has more.
const BATCH_EVENTS_MAX: usize = 1000;

/// One key's step at one revision.
#[derive(Debug, Clone)]
pub(in crate::store) struct Change {
    pub(in crate::store) revision: Revision,
    pub(in crate::store) key: String,
    pub(in crate::store) before: Option<Entry>,
    pub(in crate::store) after: Option<Entry>,
}

impl Change {
    fn bytes(&self) -> usize {
        let held = |entry: &Option<Entry>| entry.as_ref().map_or(0, |entry| entry.value.len());
        CHANGE_OVERHEAD_BYTES + self.key.len() + held(&self.before) + held(&self.after)
    }

    fn event(&self) -> WatchEvent {
        let kind = match &self.after {
            Some(entry) => WatchKind::Put(entry.clone()),
            None => WatchKind::Delete {
                key: self.key.clone(),
            },
        };
        WatchEvent {
            revision: self.revision,
            kind,
        }
    }
}

struct Lease {
    ttl: Duration,
    lost: CancellationToken,
}

/// What a watch finds behind its position.
pub(in crate::store) enum Found {
    /// Events up to and including a revision; perhaps none.
    Events(Vec<WatchEvent>, Revision),
    /// The position is forgotten; this is the first revision that is not.
    Compacted(Revision),
}

/// Everything that reads are answered from.
pub(in crate::store) struct State {
    entries: BTreeMap<String, Entry>,
    revision: Revision,
    history: VecDeque<Change>,
    history_bytes: usize,
    /// All changes above this are in `history`.
    floor: Revision,
    leases: BTreeMap<LeaseId, Lease>,
}

impl State {
    pub(in crate::store) fn new(entries: BTreeMap<String, Entry>, revision: Revision) -> Self {
        Self {
            entries,
            revision,
            history: VecDeque::new(),
            history_bytes: 0,
            floor: revision,
            leases: BTreeMap::new(),
        }
    }

    pub(in crate::store) fn revision(&self) -> Revision {
        self.revision
    }

    pub(in crate::store) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(in crate::store) fn range(&self, range: &Range) -> Result<Page, ReadError> {
        let at = range.at.unwrap_or(self.revision);
        if at > self.revision {
            return Err(BadRequest::FutureRevision {
                current: self.revision,
            }
            .into());
        }
        if at < self.floor {
            return Err(ReadError::Compacted { at: self.floor });
        }
        let limit = range.limit.min(RANGE_ENTRIES_MAX);
        let mut found = self.past(range, at);
        let entries: Vec<Entry> = found.by_ref().take(limit).cloned().collect();
        let more = found.next().is_some();
        Ok(Page {
            entries,
            revision: at,
            more,
        })
    }

    /// The range's entries as they were, in key order.
    fn past<'a>(&'a self, range: &'a Range, at: Revision) -> impl Iterator<Item = &'a Entry> {
        let first: Bound<&str> = match &range.start_after {
            Some(key) => Bound::Excluded(key),
            None => Bound::Included(&range.prefix),
        };
        let prefix = range.prefix.as_str();
        // The oldest change after the revision says what the key was at the revision.
        let mut undone: BTreeMap<&str, Option<&Entry>> = BTreeMap::new();
        for change in self.since(at).filter(|change| change.key.starts_with(prefix)) {
            undone.entry(&change.key).or_insert(change.before.as_ref());
        }
        let behind_start: Vec<(&str, Option<&Entry>)> = undone
            .range::<str, _>((first, Bound::Unbounded))
            .map(|(key, was)| (*key, *was))
            .collect();
        let mut was = behind_start.into_iter().peekable();
        let mut is = self
            .entries
            .range::<str, _>((first, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .peekable();
        std::iter::from_fn(move || {
            loop {
                let order = match (is.peek(), was.peek()) {
                    (None, None) => return None,
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (Some((present, _)), Some((past, _))) => present.as_str().cmp(past),
                };
                if order == Ordering::Less {
                    return is.next().map(|(_, entry)| entry);
                }
                if order == Ordering::Equal {
                    is.next();
                }
                // Absent at the revision: goes on with the next key.
                if let Some((_, Some(entry))) = was.next() {
                    return Some(entry);
                }
            }
        })
    }

    fn since(&self, revision: Revision) -> impl Iterator<Item = &Change> {
        let first = self.history.partition_point(|change| change.revision <= revision);
        self.history.range(first..)
    }

    /// What a watch has not seen yet.
    pub(in crate::store) fn events(&self, prefix: &str, after: Revision) -> Found {
        if after < self.floor {
            return Found::Compacted(Revision(self.floor.0.saturating_add(1)));
        }
        let mut events: Vec<WatchEvent> = Vec::new();
        for change in self.since(after).filter(|change| change.key.starts_with(prefix)) {
            if let Some(last) = events.last().map(|event| event.revision)
                && events.len() >= BATCH_EVENTS_MAX
                && last != change.revision
            {
                return Found::Events(events, last);
            }
            events.push(change.event());
        }
        Found::Events(events, self.revision.max(after))
    }

    /// Makes durable changes visible. Returns the leases that ended, to be told.
    pub(in crate::store) fn advance(
        &mut self,
        revision: Revision,
        changes: Vec<Change>,
        ended: &BTreeSet<LeaseId>,
    ) -> Vec<CancellationToken> {
        for change in changes {
            match &change.after {
                Some(entry) => self.entries.insert(change.key.clone(), entry.clone()),
                None => self.entries.remove(&change.key),
            };
            self.history_bytes += change.bytes();
            self.history.push_back(change);
        }
        self.revision = revision;
        self.forget();
        ended
            .iter()
            .filter_map(|id| self.leases.remove(id))
            .map(|lease| lease.lost)
            .collect()
    }

    fn forget(&mut self) {
        while self.history.len() > HISTORY_CHANGES_MAX || self.history_bytes > HISTORY_BYTES_MAX {
            let Some(oldest) = self.history.front().map(|change| change.revision) else {
                return;
            };
            while self
                .history
                .front()
                .is_some_and(|change| change.revision == oldest)
            {
                if let Some(change) = self.history.pop_front() {
                    self.history_bytes -= change.bytes();
                }
            }
            self.floor = oldest;
        }
    }

    /// Registers a lease; the error is the limit.
    pub(in crate::store) fn grant(
        &mut self,
        id: LeaseId,
        ttl: Duration,
        lost: CancellationToken,
    ) -> Result<(), usize> {
        if self.leases.len() >= LEASES_MAX {
            return Err(LEASES_MAX);
        }
        self.leases.insert(id, Lease { ttl, lost });
        Ok(())
    }

    /// Time to live of a lease that is alive.
    pub(in crate::store) fn ttl(&self, id: LeaseId) -> Option<Duration> {
        self.leases.get(&id).map(|lease| lease.ttl)
    }

    /// Keys that hang on a lease. Looks at every entry: leases end rarely.
    pub(in crate::store) fn leased(&self, id: LeaseId) -> impl Iterator<Item = &str> {
        self.entries
            .values()
            .filter(move |entry| entry.lease == Some(id))
            .map(|entry| entry.key.as_str())
    }

    /// Every entry, and the revision.
    #[cfg(any(test, feature = "simulation"))]
    pub(in crate::store) fn image(&self) -> crate::store::Image {
        crate::store::Image::new(self.entries.clone(), self.revision)
    }

    /// Ends all leases at once, as closing the store does.
    pub(in crate::store) fn end_leases(&mut self) -> Vec<CancellationToken> {
        std::mem::take(&mut self.leases)
            .into_values()
            .map(|lease| lease.lost)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::super::plan::Plan;
    use super::*;
    use crate::store::types::{Op, Txn};

    fn put(state: &mut State, key: &str, bytes: usize) {
        let mut plan = Plan::new(state);
        plan.txn(&Txn::new().then(Op::put(key, vec![7_u8; bytes])))
            .unwrap();
        let done = plan.finish();
        state.advance(done.revision, done.changes, &done.ended);
    }

    #[test]
    fn history_is_bounded_and_its_lost_end_is_compacted() {
        let mut state = State::new(BTreeMap::new(), Revision(0));
        let value = 1 << 20;
        for n in 0..100 {
            put(&mut state, &format!("/k/{n:03}"), value);
        }
        assert!(state.history_bytes <= HISTORY_BYTES_MAX);
        assert!(state.floor > Revision(0));
        let floor = state.floor;
        assert!(matches!(
            state.events("/k/", Revision(floor.0 - 1)),
            Found::Compacted(at) if at == Revision(floor.0 + 1)
        ));
        let Found::Events(events, upto) = state.events("/k/", floor) else {
            panic!("the floor itself is not compacted");
        };
        assert_eq!(
            events.first().map(|event| event.revision),
            Some(Revision(floor.0 + 1))
        );
        assert_eq!(upto, state.revision());
        let past = state.range(&Range::new("/k/").at(floor)).unwrap();
        assert_eq!(past.entries.len(), usize::try_from(floor.0).unwrap());
        let too_old = state.range(&Range::new("/k/").at(Revision(floor.0 - 1)));
        assert_eq!(too_old, Err(ReadError::Compacted { at: floor }));
    }

    #[test]
    fn a_large_backlog_is_cut_between_revisions() {
        let mut state = State::new(BTreeMap::new(), Revision(0));
        for _ in 0..40 {
            let mut plan = Plan::new(&state);
            let mut txn = Txn::new();
            for key in 0..60 {
                txn = txn.then(Op::put(format!("/k/{key}"), "x"));
            }
            plan.txn(&txn).unwrap();
            let done = plan.finish();
            state.advance(done.revision, done.changes, &done.ended);
        }
        let (mut after, mut seen) = (Revision(0), 0);
        while after < state.revision() {
            let Found::Events(events, upto) = state.events("/k/", after) else {
                panic!("nothing is forgotten here");
            };
            assert_eq!(events.len() % 60, 0, "a revision was cut in two");
            assert!(upto > after);
            (after, seen) = (upto, seen + events.len());
        }
        assert_eq!(seen, 40 * 60);
    }
}
