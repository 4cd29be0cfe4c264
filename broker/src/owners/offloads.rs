//! Copies of sealed segments on their way into the object store, and manifests being written.
//!
//! 1. A partition asks for a copy; it waits here while [`RUNNING_MAX`] others run.
//! 2. A storage node that holds the segment is asked to write the object, under a name made for
//!    this one attempt; where it fails, the next replica is asked, under another name.
//! 3. The object is verified, and the partition told: it commits the range, or not.
//!
//! Every name begins with a metadata revision known when its attempt began, and [`Offloads::floor`]
//! tells the oldest that may still get its first reference: garbage collection goes by it (I21).

use std::collections::{HashMap, VecDeque};

use forebay_meta::model::{Run, Segment};
use forebay_proto::data::replica::{NodeFailure, ToNode, UploadRequest, Uploaded};
use forebay_record::{Generation, NodeId, Offset, PartitionId, SessionId};

use super::calls::Call;
use super::driver::Driver;
use super::message::Command;
use crate::objects::{Names, Objects};
use crate::partition::{Owner, Retention};

/// Copies that run at a time.
const RUNNING_MAX: usize = 4;
/// A storage node that has not written an object after this long counts as silent.
const UPLOAD_TIMEOUT_MS: u64 = 600_000;

/// A copy that waits or runs.
#[derive(Debug)]
struct Copy {
    partition: PartitionId,
    segment: Segment,
    /// What of it.
    piece: (Offset, Offset),
    /// Replicas not asked yet.
    replicas: VecDeque<(NodeId, Generation)>,
    /// The object of the attempt under way.
    object: String,
}

/// The revisions in the names that one partition may still commit: of its newest copy, and of its
/// newest manifest. Neither begins before the one before it is decided, so one of each is enough.
#[derive(Debug, Default)]
struct Promise {
    copy: Option<u64>,
    fold: Option<u64>,
}

/// All copies and manifests of a broker.
#[derive(Debug)]
pub(super) struct Offloads {
    objects: Option<Objects>,
    names: Names,
    waiting: VecDeque<Copy>,
    running: HashMap<u64, Copy>,
    next: u64,
    promised: HashMap<PartitionId, Promise>,
    /// Spreads copies over replicas.
    turn: usize,
}

impl Offloads {
    pub(super) fn new(objects: Option<Objects>, session: SessionId) -> Self {
        Self {
            objects,
            names: Names::new(session),
            waiting: VecDeque::new(),
            running: HashMap::new(),
            next: 0,
            promised: HashMap::new(),
            turn: 0,
        }
    }

    /// Whether there is an object store.
    pub(super) const fn are_possible(&self) -> bool {
        self.objects.is_some()
    }

    /// Newest revision of the metadata store that was seen.
    pub(super) fn revision(&self) -> u64 {
        self.names.revision()
    }

    /// The metadata store was seen at this revision.
    pub(super) fn saw(&self, revision: u64) {
        self.names.saw(revision);
    }
}

impl Driver {
    /// A piece of a sealed segment is to be copied.
    pub(super) fn on_offload(
        &mut self,
        partition: PartitionId,
        segment: Segment,
        piece: (Offset, Offset),
        urged: bool,
    ) {
        self.offloads.turn = self.offloads.turn.wrapping_add(1);
        let mut replicas: VecDeque<_> = segment.replicas.iter().copied().collect();
        let turn = self.offloads.turn % replicas.len().max(1);
        replicas.rotate_left(turn);
        let copy = Copy {
            partition,
            segment,
            piece,
            replicas,
            object: String::new(),
        };
        if urged {
            self.offloads.waiting.push_front(copy);
        } else {
            self.offloads.waiting.push_back(copy);
        }
        self.start_copies();
    }

    fn start_copies(&mut self) {
        while self.offloads.running.len() < RUNNING_MAX
            && let Some(copy) = self.offloads.waiting.pop_front()
        {
            if self.owners.contains_key(&copy.partition) {
                self.copy_from_next(copy);
            }
        }
    }

    /// Asks the next replica that has a session.
    fn copy_from_next(&mut self, mut copy: Copy) {
        let next = loop {
            match copy.replicas.pop_front() {
                Some((node, generation)) if self.is_connected(node, generation) => {
                    break Some((node, generation));
                }
                Some(_) => {}
                None => break None,
            }
        };
        let Some((node, generation)) = next else {
            let (partition, segment) = (copy.partition, copy.segment.id);
            tracing::warn!(%segment, "no storage node could copy a segment into the object store");
            self.settings.metrics.offload_failures.inc();
            self.with_owner(partition, |owner, ctx| owner.on_offloaded(segment, None, ctx));
            return self.start_copies();
        };
        let Some(topic) = self.owners.get(&copy.partition).map(|owner| owner.record().topic) else {
            return self.start_copies();
        };
        let revision = self.offloads.names.revision();
        self.offloads.promised.entry(copy.partition).or_default().copy = Some(revision);
        copy.object = self.offloads.names.data(revision);
        self.offloads.next += 1;
        let key = self.offloads.next;
        let (base, until) = copy.piece;
        let upload = UploadRequest {
            segment: copy.segment.id,
            generation,
            base,
            until,
            topic,
            session: self.settings.records.session,
            object: copy.object.clone(),
        };
        self.offloads.running.insert(key, copy);
        let deadline_ms = self.now_ms + UPLOAD_TIMEOUT_MS;
        let request = self.calls.begin_until(node, Call::Upload(key), deadline_ms);
        self.request(node, ToNode::Upload { request, upload });
    }

    /// A storage node wrote an object, or did not.
    pub(super) fn on_uploaded(&mut self, key: u64, node: NodeId, result: Result<Uploaded, NodeFailure>) {
        let Some(copy) = self.offloads.running.get(&key) else {
            return;
        };
        match (result, self.offloads.objects.clone()) {
            (Ok(uploaded), Some(objects)) => {
                let (mailbox, object) = (self.settings.mailbox.clone(), copy.object.clone());
                let partition = copy.partition;
                self.settings.tasks.spawn(format!("verify {object}"), async move {
                    let verified = objects
                        .verify(&object, partition, &uploaded)
                        .await
                        .map(|()| uploaded);
                    // A closed mailbox owns nothing any more.
                    let _ = mailbox.send(Command::Verified(key, verified)).await;
                });
            }
            (Ok(_), None) => {}
            (Err(failure), _) => {
                tracing::debug!(%node, segment = %copy.segment.id, ?failure, "a segment was not copied");
                if let Some(copy) = self.offloads.running.remove(&key) {
                    if failure == NodeFailure::Corrupt {
                        let segment = copy.segment.id;
                        self.with_owner(copy.partition, |owner, ctx| owner.on_damaged(segment, node, ctx));
                    }
                    self.copy_from_next(copy);
                }
            }
        }
    }

    /// An object was read back and is what it should be, or is not.
    pub(super) fn on_verified(&mut self, key: u64, verified: Result<Uploaded, String>) {
        let Some(copy) = self.offloads.running.remove(&key) else {
            return;
        };
        let uploaded = match verified {
            Ok(uploaded) => uploaded,
            Err(reason) => {
                tracing::warn!(segment = %copy.segment.id, object = copy.object, reason, "a copy was not verified");
                return self.copy_from_next(copy);
            }
        };
        let run = Run {
            base: copy.piece.0,
            end: copy.piece.1,
            object: copy.object,
            position: uploaded.position,
            len: uploaded.len,
            crc32c: uploaded.crc32c,
            max_timestamp_ms: uploaded.max_timestamp_ms,
        };
        self.settings.metrics.offloaded_segments.inc();
        self.settings.metrics.offloaded_bytes.inc_by(run.len);
        self.with_owner(copy.partition, |owner, ctx| {
            owner.on_offloaded(copy.segment.id, Some(run), ctx);
        });
        self.start_copies();
    }

    /// A manifest is to be written.
    pub(super) fn on_fold(&mut self, partition: PartitionId, retention: Retention) {
        let Some(record) = self.owners.get(&partition).map(|owner| owner.record().clone()) else {
            return;
        };
        let revision = self.offloads.names.revision();
        self.offloads.promised.entry(partition).or_default().fold = Some(revision);
        let (names, mailbox) = (self.offloads.names.clone(), self.settings.mailbox.clone());
        let objects = self.offloads.objects.clone();
        self.settings.metrics.folds.inc();
        self.settings
            .tasks
            .spawn(format!("fold {partition}"), async move {
                let folded = match objects {
                    Some(objects) => objects.fold(&names, revision, &record, &retention).await,
                    None => Err("there is no object store".to_owned()),
                };
                let folded = folded.inspect_err(|reason| {
                    tracing::warn!(%partition, reason, "the manifest was not written");
                });
                // As above.
                let _ = mailbox
                    .send(Command::Folded(partition, folded.ok().map(Box::new)))
                    .await;
            });
    }

    /// The state at the end of the offloaded past is wanted.
    pub(super) fn on_read_state(&mut self, partition: PartitionId) {
        let Some(record) = self.owners.get(&partition).map(|owner| owner.record().clone()) else {
            return;
        };
        let (objects, mailbox) = (self.offloads.objects.clone(), self.settings.mailbox.clone());
        self.settings
            .tasks
            .spawn(format!("state {partition}"), async move {
                let state = match objects {
                    Some(objects) => objects.state(&record).await,
                    None => Err("there is no object store".to_owned()),
                };
                let state = state.inspect_err(|reason| {
                    tracing::warn!(%partition, reason, "the state of an offloaded partition cannot be read");
                });
                // As above.
                let _ = mailbox
                    .send(Command::ObjectState(partition, state.ok().map(Box::new)))
                    .await;
            });
    }

    /// The revision below which no object gets its first reference from this session any more, none
    /// while the metadata store was never seen. It only rises.
    pub(super) fn publish_floor(&mut self) {
        let owners = &self.owners;
        self.offloads.promised.retain(|partition, _| {
            owners
                .get(partition)
                .is_some_and(|owner| owner.may_name_objects())
        });
        let newest = self.offloads.names.revision();
        let promised = self.offloads.promised.values();
        let oldest = promised
            .flat_map(|promise| promise.copy.into_iter().chain(promise.fold))
            .min();
        let floor = oldest.unwrap_or(newest);
        self.settings.floor.send_if_modified(|published| {
            let rises = floor > *published;
            if rises {
                *published = floor;
            }
            rises
        });
        let lag = owners.values().map(Owner::offload_lag_bytes).sum::<u64>();
        self.settings
            .metrics
            .offload_lag_bytes
            .set(i64::try_from(lag).unwrap_or(i64::MAX));
    }
}
