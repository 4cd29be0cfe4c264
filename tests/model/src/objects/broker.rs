//! What brokers do with objects: upload under a fresh name, verify, name them in the record.

use super::state::{BROKERS, Broker, Content, OBJECTS, Object, Record, SEGMENTS, State, Task, Upload};
use super::{Mutant, Objects, Step, Steps};

impl Objects {
    pub(super) fn serve(&self, state: &State, index: usize, out: &mut Steps) {
        let broker = state.brokers[index];
        if broker.session
            && broker.epoch == 0
            && self.takeover
            && state.brokers[..index].iter().any(|at| at.epoch != 0)
        {
            let mut next = *state;
            next.brokers[index].epoch = state.record.epoch + 1;
            next.record.epoch += 1;
            Self::changed(&mut next, state.record);
            next.brokers[index].seen = next.revision;
            out.push((Step::Grant { broker: index }, next));
        }
        if broker.session {
            let mut next = *state;
            next.brokers[index].session = false;
            next.revision += 1;
            out.push((Step::SessionEnds { broker: index }, next));
            self.promise(state, index, out);
        }
        match broker.task {
            Task::None if broker.epoch != 0 => self.begin(state, index, out),
            Task::None => {}
            Task::Upload(object) => self.upload(state, index, object, out),
            Task::Sent { object, seen } => self.decide(state, index, object, seen, out),
        }
    }

    /// The record has changed.
    fn changed(state: &mut State, before: Record) {
        state.revision += 1;
        state.record.revision = state.revision;
        state.before = before;
    }

    /// The promise moves up to the oldest upload on its way, or to the newest revision.
    fn promise(&self, state: &State, index: usize, out: &mut Steps) {
        let broker = state.brokers[index];
        let mut floor = state.revision;
        if let Task::Upload(object) | Task::Sent { object, .. } = broker.task
            && !self.breaks(Mutant::PromisePassesUpload)
        {
            floor = state.object(object).revision;
        }
        if floor <= broker.promise {
            return;
        }
        let mut next = *state;
        next.brokers[index].promise = floor;
        next.brokers[index].seen = state.revision;
        out.push((Step::Promise { broker: index, floor }, next));
    }

    /// An owner, or one that takes itself for it, begins with what its record has no object for.
    fn begin(&self, state: &State, index: usize, out: &mut Steps) {
        let record = &state.record;
        for segment in 0..self.segments {
            let named = record.recent[segment].is_some() || state.is_folded(segment);
            if named || !state.on_nodes[segment] {
                continue;
            }
            let content = Content::Run(segment as u8);
            if let Some((next, object, revision)) = self.fresh(state, index, content) {
                let step = Step::UploadRun {
                    broker: index,
                    segment,
                    object,
                    revision,
                };
                out.push((step, next));
            }
            if self.breaks(Mutant::NameUsedTwice) {
                self.take_again(state, index, content, out);
            }
        }
        if record.recent.iter().any(Option::is_some) {
            self.fold(state, index, out);
        }
    }

    fn fresh(&self, state: &State, index: usize, content: Content) -> Option<(State, u8, u8)> {
        if state.used >= self.uploads.min(OBJECTS as u8) {
            return None;
        }
        let mut next = *state;
        let object = state.used;
        let revision = state.brokers[index].seen;
        next.used += 1;
        next.objects[usize::from(object)] = Object {
            upload: Upload::Began,
            revision,
            content,
        };
        next.brokers[index].task = Task::Upload(object);
        Some((next, object, revision))
    }

    fn take_again(&self, state: &State, index: usize, content: Content, out: &mut Steps) {
        for object in (0..state.used).filter(|&object| state.object(object).content == content) {
            let mut next = *state;
            next.brokers[index].task = Task::Upload(object);
            let at = &mut next.objects[usize::from(object)];
            at.upload = Upload::There;
            out.push((
                Step::TakeAgain {
                    broker: index,
                    object,
                },
                next,
            ));
        }
    }

    /// T6: what is recent goes into a manifest under a new name.
    fn fold(&self, state: &State, index: usize, out: &mut Steps) {
        let record = &state.record;
        let mut runs = record.committed;
        for (run, recent) in runs.iter_mut().zip(record.recent) {
            *run = recent.or(*run);
        }
        let content = Content::Manifest(runs);
        if let Some(object) = record.manifest.filter(|_| self.breaks(Mutant::ManifestRewritten)) {
            let mut next = *state;
            next.objects[usize::from(object)].content = content;
            next.brokers[index].task = Task::Upload(object);
            out.push((
                Step::Rewrite {
                    broker: index,
                    object,
                },
                next,
            ));
        } else if let Some((next, object, revision)) = self.fresh(state, index, content) {
            let step = Step::UploadManifest {
                broker: index,
                object,
                revision,
            };
            out.push((step, next));
        }
    }

    fn upload(&self, state: &State, index: usize, object: u8, out: &mut Steps) {
        let there = state.is_there(object);
        if matches!(state.object(object).upload, Upload::Began) {
            let mut next = *state;
            next.objects[usize::from(object)].upload = Upload::There;
            out.push((
                Step::Uploaded {
                    broker: index,
                    object,
                },
                next,
            ));
            // The answer is lost: the broker does not know, and takes another name.
            next.brokers[index].task = Task::None;
            out.push((
                Step::GiveUp {
                    broker: index,
                    object,
                },
                next,
            ));
        }
        if there || self.breaks(Mutant::LinkBeforeVerified) {
            let mut next = *state;
            if state.record.epoch == state.brokers[index].epoch {
                let seen = state.record.revision;
                next.brokers[index].task = Task::Sent { object, seen };
                out.push((
                    Step::Send {
                        broker: index,
                        object,
                        seen,
                    },
                    next,
                ));
            } else {
                // It reads that another owns the partition.
                Self::stop(&mut next.brokers[index]);
                out.push((
                    Step::Refuse {
                        broker: index,
                        object,
                    },
                    next,
                ));
            }
        }
    }

    fn stop(broker: &mut Broker) {
        broker.task = Task::None;
        broker.epoch = u8::MAX;
    }

    /// The metadata store compares, however late: the record's revision and the sender's session.
    fn decide(&self, state: &State, index: usize, object: u8, seen: u8, out: &mut Steps) {
        let session = state.brokers[index].session || self.breaks(Mutant::NoSessionCompare);
        let mut next = *state;
        next.brokers[index].task = Task::None;
        if seen != state.record.revision || !session {
            Self::stop(&mut next.brokers[index]);
            out.push((
                Step::Refuse {
                    broker: index,
                    object,
                },
                next,
            ));
            return;
        }
        match state.object(object).content {
            Content::Run(segment) => next.record.recent[usize::from(segment)] = Some(object),
            Content::Manifest(runs) => {
                next.record.manifest = Some(object);
                next.record.committed = runs;
                next.record.recent = [None; SEGMENTS];
            }
        }
        Self::changed(&mut next, state.record);
        next.brokers[index].seen = next.revision;
        out.push((
            Step::Commit {
                broker: index,
                object,
            },
            next,
        ));
    }

    /// The least that live sessions promise, for the collector.
    pub(super) fn promised(state: &State) -> u8 {
        (0..BROKERS)
            .filter(|&index| state.brokers[index].session)
            .map(|index| state.brokers[index].promise)
            .min()
            .unwrap_or(u8::MAX)
    }
}
