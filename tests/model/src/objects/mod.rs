//! Two sealed segments on their way into the object store: uploads, the transactions that name
//! objects, manifests, sessions that end under a broker that goes on, trim, garbage collection, and a
//! reader with an old plan.
//!
//! Time is etcd's revision, which moves with every change of a record or a session. An object's name
//! holds a revision that its uploader knew when it began. Promises (`l0_floor`) are written without
//! moving the revision, which makes fewer revisions differ and so leaves less to chance.
//!
//! 1. `broker`: grant, upload, promise, the transactions, fold.
//! 2. `collector`: the rounds of garbage collection.
//! 3. `state`: what there is, and what must hold.

mod broker;
mod collector;
mod state;
mod step;

pub use state::State;
pub use step::Step;

use crate::search::{Model, fingerprint_of};
use state::{Content, Object, Place, Record, Upload};

/// A rule of objects, left out or bent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A transaction compares the record's revision, not the sender's session.
    NoSessionCompare,
    /// Nodes forget a segment when its object is written, before the record names it.
    TrimBeforeLink,
    /// The record names an object whose upload has not ended.
    LinkBeforeVerified,
    /// A retry takes an object under its old name.
    NameUsedTwice,
    /// A manifest is written over the one before.
    ManifestRewritten,
    /// The collector does not look at promises.
    PromisesIgnored,
    /// The collector reads the records first, sessions after them.
    RecordsReadFirst,
    /// The collector does not look into manifests.
    ManifestNotFollowed,
    /// A promise passes an upload that is on its way.
    PromisePassesUpload,
    /// The collector deletes what no record names, of whatever age.
    UnmarkedIsGarbage,
    /// "Not found" is taken for the end of the log.
    NotFoundIsTheEnd,
    /// The collector takes an answer older than what it has seen.
    OlderAnswerTaken,
}

/// The model.
#[derive(Debug, Clone, Copy)]
pub struct Objects {
    /// Sealed segments, at most two.
    pub segments: usize,
    /// Whether somebody reads.
    pub reader: bool,
    /// Uploads that may be begun, of manifests too.
    pub uploads: u8,
    /// Rounds of garbage collection.
    pub rounds: u8,
    /// Whether a second broker takes the partition over.
    pub takeover: bool,
    /// The rule that is broken.
    pub mutant: Option<Mutant>,
}

type Steps = Vec<(Step, State)>;

impl Objects {
    fn breaks(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Nodes read the record and drop what it says is in the object store.
    fn trim(&self, state: &State, out: &mut Steps) {
        for segment in 0..self.segments {
            let early = self.breaks(Mutant::TrimBeforeLink) && state.is_uploaded(segment);
            if state.on_nodes[segment]
                && (state.record.recent[segment].is_some() || state.is_folded(segment) || early)
            {
                let mut next = *state;
                next.on_nodes[segment] = false;
                out.push((Step::Trim { segment }, next));
            }
        }
    }

    /// A reader of the first segment: plans by the record, reads by its plan.
    fn read(&self, state: &State, out: &mut Steps) {
        let mut planned = *state;
        planned.plan = Some(state.place_of(0));
        if planned.plan != state.plan {
            out.push((Step::Plan, planned));
        }
        let Some(plan) = state.plan else { return };
        let found = match plan {
            Place::Nodes => state.on_nodes[0],
            Place::Object(object) => state.is_there(object),
        };
        if found {
            return;
        }
        let mut next = *state;
        if self.breaks(Mutant::NotFoundIsTheEnd) {
            next.broken = Some("a reader is told that the log ends below its end");
        } else {
            next.plan = None;
        }
        out.push((Step::NotFound, next));
    }
}

impl Model for Objects {
    type State = State;
    type Step = Step;

    fn start(&self) -> State {
        State::start()
    }

    fn steps(&self, state: &State, out: &mut Steps) {
        if state.broken.is_some() {
            return;
        }
        for broker in 0..state::BROKERS {
            self.serve(state, broker, out);
        }
        self.collect(state, out);
        self.trim(state, out);
        if self.reader {
            self.read(state, out);
        }
    }

    fn fingerprint(&self, state: &State) -> u64 {
        let mut state = *state;
        if !self.breaks(Mutant::OlderAnswerTaken) {
            state.before = Record::default();
        }
        // What is deleted is never looked at again, unless its name is.
        for object in &mut state.objects {
            if matches!(object.upload, Upload::Deleted) && !self.breaks(Mutant::NameUsedTwice) {
                *object = Object {
                    revision: 0,
                    content: Content::Run(0),
                    ..*object
                };
            }
        }
        fingerprint_of(&state)
    }

    fn violation(&self, state: &State) -> Option<&'static str> {
        state.broken_property()
    }
}
