//! What must hold in every state of the log model.
//!
//! The first ones are what users see: what was acknowledged or read stays, as it was, where readers
//! look for it. The others are rules whose violation would only be seen later (`Log::rules`): a mutant
//! that leaves such a rule out is run without them, so that what catches it is the harm.

use super::Log;
use super::state::{Link, OPEN, State, members};

pub const TWO_VALUES: &str = "two values visible at one offset";
pub const GAP_SHOWN: &str = "an offset visible before the ones below it";
const UNCOMMITTED_SERVED: &str = "a storage node serves what is not committed";
const NO_COPY: &str = "an acknowledged entry has no copy left";
const ONE_COPY: &str = "an acknowledged entry does not survive the loss of one disk";
const NOWHERE: &str = "an acknowledged entry lies in no segment of the chain";
const OBJECT_DIFFERS: &str = "the object store holds what was never committed";
const SEALED_UNCOMMITTED: &str = "an entry below a sealed end was never committed";
const CHAIN_BROKEN: &str = "the chain has a gap, or an open segment inside";
const TOKENS_KEPT: &str = "tokens do not rise along the chain";
const FORGOTTEN_OPEN: &str = "a segment that was forgotten is above the floor";
const WINDOW_PASSED: &str = "more appended and not committed than the window";

impl Log {
    pub(super) fn broken_property(&self, state: &State) -> Option<&'static str> {
        state
            .broken
            .or_else(|| self.served(state))
            .or_else(|| Self::archived(state))
            .or_else(|| Self::found(state))
            .or_else(|| {
                state
                    .record
                    .chain()
                    .iter()
                    .find_map(|link| Self::kept(state, link))
            })
            .or_else(|| self.rules(state))
    }

    /// Readers may ask any node, by any view of the chain.
    fn served(&self, state: &State) -> Option<&'static str> {
        for node in &state.nodes {
            for (id, held) in node.held.iter().enumerate().filter(|(_, held)| held.present) {
                let base = state.segments[id].base;
                for (offset, &value) in (base..held.committed).zip(held.entries.as_slice()) {
                    if state.visible.get(offset) != Some(value) {
                        return Some(UNCOMMITTED_SERVED);
                    }
                }
            }
        }
        None
    }

    fn archived(state: &State) -> Option<&'static str> {
        let archived = &state.record.archived;
        let right = state.visible.as_slice().starts_with(archived.as_slice());
        (!right).then_some(OBJECT_DIFFERS)
    }

    /// Every visible offset is in the object store or in a link.
    fn found(state: &State) -> Option<&'static str> {
        let covers = |link: &Link, offset| link.base <= offset && offset < link.end;
        let missing = (state.record.archived.len()..state.visible.len())
            .any(|offset| !state.record.chain().iter().any(|link| covers(link, offset)));
        missing.then_some(NOWHERE)
    }

    /// Every visible entry of a linked segment has a copy, one more than disks that may yet be lost.
    fn kept(state: &State, link: &Link) -> Option<&'static str> {
        let end = if link.end == OPEN {
            state.visible.len()
        } else {
            link.end
        };
        for offset in link.base..end {
            let Some(value) = state.visible.get(offset) else {
                return Some(SEALED_UNCOMMITTED);
            };
            let mut copies = 0;
            for node in members(&link.replicas) {
                let held = state.replica(node, link.segment);
                if state.nodes[node].generation != link.replicas[node] || held.synced <= offset - link.base {
                    continue;
                }
                if held.entries.get(offset - link.base) != Some(value) {
                    return Some(TWO_VALUES);
                }
                copies += 1;
            }
            if copies == 0 {
                return Some(NO_COPY);
            }
            if copies + state.losses < 2 {
                return Some(ONE_COPY);
            }
        }
        None
    }

    fn rules(&self, state: &State) -> Option<&'static str> {
        if !self.rules {
            return None;
        }
        let mut end = state.record.archived.len();
        let mut token = 0;
        for link in state.record.chain() {
            if end != link.base {
                return Some(CHAIN_BROKEN);
            }
            let of = &state.segments[usize::from(link.segment)];
            if of.token <= token {
                return Some(TOKENS_KEPT);
            }
            (end, token) = (link.end, of.token);
        }
        if end != OPEN {
            return Some(CHAIN_BROKEN);
        }
        for node in &state.nodes {
            for id in 0..state.segment_count {
                let segment = &state.segments[usize::from(id)];
                if node.forgotten & 1 << id != 0 && node.floor < segment.token {
                    return Some(FORGOTTEN_OPEN);
                }
                let held = &node.held[usize::from(id)];
                let undecided = (segment.base + held.entries.len()).saturating_sub(held.committed);
                if held.present && undecided > self.scope.window {
                    return Some(WINDOW_PASSED);
                }
            }
        }
        None
    }
}
