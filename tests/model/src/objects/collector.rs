//! A round of garbage collection: sessions, then records, then deletions one by one. Anything can
//! happen between two of these steps.

use super::state::{OBJECTS, Round, State, Upload};
use super::{Mutant, Objects, Step, Steps};

impl Objects {
    pub(super) fn collect(&self, state: &State, out: &mut Steps) {
        match state.round {
            Round::Idle if state.rounds == self.rounds => {}
            Round::Idle if self.breaks(Mutant::RecordsReadFirst) => {
                let marks = state.marks_of(&state.record, true);
                self.go(state, Round::MarksOnly { marks }, Step::Marks { old: false }, out);
            }
            Round::Idle => {
                let floor = self.floor(state);
                let read_at = state.revision;
                self.go(state, Round::Floor { floor, read_at }, Step::Floor { floor }, out);
            }
            Round::MarksOnly { marks } => {
                let floor = self.floor(state);
                self.go(state, Round::Delete { floor, marks }, Step::Floor { floor }, out);
            }
            Round::Floor { floor, read_at } => self.mark(state, floor, read_at, out),
            Round::Delete { floor, marks } => self.delete(state, floor, marks, out),
        }
    }

    fn go(&self, state: &State, round: Round, step: Step, out: &mut Steps) {
        let mut next = *state;
        next.round = round;
        out.push((step, next));
    }

    fn floor(&self, state: &State) -> u8 {
        let ignored = self.breaks(Mutant::PromisesIgnored);
        let promised = if ignored { u8::MAX } else { Self::promised(state) };
        state.revision.min(promised)
    }

    fn mark(&self, state: &State, floor: u8, read_at: u8, out: &mut Steps) {
        let follow = !self.breaks(Mutant::ManifestNotFollowed);
        let marks = state.marks_of(&state.record, follow);
        self.go(
            state,
            Round::Delete { floor, marks },
            Step::Marks { old: false },
            out,
        );
        // A store that went back shows what was before; a revision below the one seen gives it away.
        let older = state.record.revision > 1 && state.record.revision <= read_at;
        if older && self.breaks(Mutant::OlderAnswerTaken) {
            let marks = state.marks_of(&state.before, follow);
            self.go(
                state,
                Round::Delete { floor, marks },
                Step::Marks { old: true },
                out,
            );
        }
    }

    fn delete(&self, state: &State, floor: u8, marks: u8, out: &mut Steps) {
        for object in 0..OBJECTS as u8 {
            let at = state.object(object);
            let young = at.revision >= floor && !self.breaks(Mutant::UnmarkedIsGarbage);
            if !matches!(at.upload, Upload::There) || young || marks & 1 << object != 0 {
                continue;
            }
            let mut next = *state;
            next.objects[usize::from(object)].upload = Upload::Deleted;
            out.push((Step::Delete { object }, next));
        }
        let mut next = *state;
        next.round = Round::Idle;
        next.rounds += 1;
        out.push((Step::EndRound, next));
    }
}
