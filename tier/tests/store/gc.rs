//! Garbage collection: what is needed stays, whatever happens between two reads of a round; the rest
//! goes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use forebay_meta::keys;
use forebay_meta::model::{Partition, Run};
use forebay_meta::record::encode;
use forebay_meta::store::{
    EmbeddedStore, Entry, LeaseError, LeaseId, LeaseKeeper, MetaStore, Op, Page, Range, ReadError, Revision,
    Txn, TxnError, TxnReply, WatchStream,
};
use forebay_proto::stored::{BrokerRecord, PartitionRecord, SegmentRecord};
use forebay_record::{BrokerId, Offset, PartitionId, SessionId};
use forebay_runtime::clock::{ManualClock, SystemClock};
use forebay_runtime::metrics::Metrics;
use forebay_runtime::random::{Random, SeededRandom};
use forebay_runtime::tasks::Tasks;
use forebay_tier::{Bucket, Collector, GcError, GcOptions, Manifests, Names, ObjectKind, Round, StoreError};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::support::{config, list, metric, open};

const GRACE: Duration = Duration::from_secs(3600);

/// A cluster's metadata and its objects.
struct World {
    store: Arc<EmbeddedStore>,
    bucket: Bucket,
    manifests: Manifests,
    names: Names,
    clock: ManualClock,
    metrics: Metrics,
    _folder: tempfile::TempDir,
}

impl World {
    async fn on(bucket: Bucket) -> Self {
        // In memory where the system has such a folder: what is tested is not whether it survives.
        let folder = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let clock = Arc::new(SystemClock::new());
        let store = EmbeddedStore::open(&folder.path().join("meta.redb"), clock, &Tasks::new("test")).await;
        let store = store.unwrap();
        let created = store
            .txn(Txn::new().then(Op::put("/session", "x")))
            .await
            .unwrap();
        Self {
            store: Arc::new(store),
            manifests: Manifests::new(bucket.clone(), 1 << 20),
            bucket,
            names: Names::new(SessionId(created.revision.0)),
            clock: ManualClock::new(0),
            metrics: Metrics::new(),
            _folder: folder,
        }
    }

    async fn new() -> Self {
        Self::on(open(&config("memory://"))).await
    }

    fn collector(&self, options: GcOptions) -> Collector {
        self.collector_on(Arc::clone(&self.store) as Arc<dyn MetaStore>, options)
    }

    fn collector_on(&self, store: Arc<dyn MetaStore>, options: GcOptions) -> Collector {
        let clock = Arc::new(self.clock.clone());
        Collector::new(
            self.bucket.clone(),
            store,
            "c1".to_owned(),
            options,
            clock,
            &self.metrics,
        )
    }

    async fn put(&self, key: String, value: impl Into<bytes::Bytes>) -> Revision {
        let txn = Txn::new().then(Op::put(key, value));
        self.store.txn(txn).await.unwrap().revision
    }

    async fn session(&self, broker: u32, l0_floor: u64) -> Revision {
        let record = BrokerRecord {
            id: broker,
            l0_floor,
            ..BrokerRecord::default()
        };
        self.put(keys::broker(BrokerId(broker)), encode(&record)).await
    }

    async fn record(&self, partition: &Partition) {
        self.put(keys::partition(partition.id), partition.encode()).await;
    }

    /// The revision to which a session's promise may rise when it has nothing under way.
    async fn now(&self) -> Revision {
        self.store.get(keys::CLUSTER).await.unwrap().1
    }

    /// Moves the revision on, so that what has the current one is below the next floor.
    async fn later(&self) {
        self.put("/later".to_owned(), "x").await;
    }

    async fn object(&self, kind: ObjectKind) -> String {
        let name = self.names.next(kind, self.now().await).to_string();
        self.bucket.put(&name, "some bytes".into()).await.unwrap();
        name
    }

    async fn objects(&self) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = list(&self.bucket, "d").await.into_iter().collect();
        names.extend(list(&self.bucket, "m").await);
        names
    }
}

fn options() -> GcOptions {
    GcOptions {
        grace: GRACE,
        ..GcOptions::default()
    }
}

fn run(object: &str, base: u64) -> Run {
    Run {
        base: Offset(base),
        end: Offset(base + 10),
        object: object.to_owned(),
        position: 0,
        len: 10,
        crc32c: 0,
        max_timestamp_ms: 0,
    }
}

fn partition(number: u64) -> Partition {
    Partition::new(PartitionId(number), Uuid::nil(), 0)
}

/// Garbage goes after the grace, in one of two rounds at least; what is needed or young never does.
pub async fn garbage_goes_after_the_grace_and_nothing_else_does(bucket: Bucket) {
    let world = World::on(bucket).await;
    let (in_recent, in_manifest) = (
        world.object(ObjectKind::Data).await,
        world.object(ObjectKind::Data).await,
    );
    let (garbage, old_root) = (
        world.object(ObjectKind::Data).await,
        world.object(ObjectKind::Manifest).await,
    );
    let deleted = world.object(ObjectKind::Data).await;
    world.bucket.put("d/foreign", "x".into()).await.unwrap();
    world.bucket.put("probe/0", "x".into()).await.unwrap();
    let mut first = partition(1);
    let names = Names::new(SessionId(2));
    let folded = world
        .manifests
        .fold(
            &names,
            world.now().await,
            first.id,
            None,
            &[run(&in_manifest, 0)],
            Offset(0),
        )
        .await
        .unwrap();
    let kept_manifest = list(&world.bucket, "m").await;
    first.manifest = folded;
    first.recent.push(run(&in_recent, 10));
    world.record(&first).await;
    let mut gone = partition(2);
    gone.recent.push(run(&deleted, 0));
    world.record(&gone.delete(1)).await;
    world.later().await;
    world.session(1, world.now().await.0).await;
    let young = world.object(ObjectKind::Data).await;

    let mut collector = world.collector(options());
    let round = collector.round().await.unwrap();
    assert_eq!((round.garbage, round.deleted), (4, 0), "{round:?}");
    assert_eq!(round.marked, 4, "two runs, a page and a root");
    world.clock.advance(GRACE - Duration::from_secs(1));
    assert_eq!(collector.round().await.unwrap().deleted, 0);
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(collector.round().await.unwrap().deleted, 4);
    let mut kept: BTreeSet<String> = [in_recent, in_manifest, young, "d/foreign".to_owned()].into();
    kept.extend(kept_manifest.into_iter().filter(|name| *name != old_root));
    assert_eq!(
        world.objects().await,
        kept,
        "without {garbage}, {old_root}, {deleted}"
    );
    assert!(list(&world.bucket, "probe").await.is_empty());
    assert_eq!(
        metric(&world.metrics, "forebay_object_gc_deleted_objects_total"),
        4
    );
    assert_eq!(collector.round().await.unwrap().garbage, 0);
}

#[tokio::test]
async fn the_least_promise_of_a_live_session_is_the_floor() {
    let world = World::new().await;
    let objects = [world.object(ObjectKind::Data).await, {
        world.later().await;
        world.object(ObjectKind::Data).await
    }];
    let between = world.now().await;
    world.later().await;
    world.session(1, world.now().await.0).await;
    world.session(2, between.0).await;
    world.session(3, 0).await;
    let no_grace = GcOptions {
        grace: Duration::ZERO,
        ..options()
    };
    let mut collector = world.collector(no_grace);
    let round = collector.round().await.unwrap();
    assert_eq!(
        (round.floor, round.garbage),
        (Revision(0), 0),
        "one promises nothing"
    );
    world.session(3, between.0 + 1).await;
    let round = collector.round().await.unwrap();
    assert_eq!((round.floor, round.deleted), (between, 1));
    assert_eq!(world.objects().await, BTreeSet::from([objects[1].clone()]));

    // A chain that may refer to it holds it, whoever lives.
    let delete = Txn::new().then(Op::delete(keys::broker(BrokerId(2))));
    world.store.txn(delete).await.unwrap();
    let mut record = PartitionRecord::from(&partition(1));
    record.chain.push(SegmentRecord {
        epoch: 1,
        seq: 1,
        ack_quorum: 1,
        replicas: vec![Default::default()],
        l0_min_rev: Some(between.0),
        ..SegmentRecord::default()
    });
    world.put(keys::partition(PartitionId(1)), encode(&record)).await;
    let round = collector.round().await.unwrap();
    assert_eq!((round.floor, round.deleted), (between, 0));
    world.record(&partition(1)).await;
    assert_eq!(collector.round().await.unwrap().deleted, 1);
    assert!(world.objects().await.is_empty());
}

#[tokio::test]
async fn nothing_is_deleted_where_anything_cannot_be_read() {
    let world = World::new().await;
    let needed = world.object(ObjectKind::Data).await;
    let garbage = world.object(ObjectKind::Data).await;
    let mut partition = partition(1);
    let revision = world.now().await;
    let folded = world
        .manifests
        .fold(
            &world.names,
            revision,
            partition.id,
            None,
            &[run(&needed, 0)],
            Offset(0),
        )
        .await;
    partition.manifest = folded.unwrap();
    world.record(&partition).await;
    world.later().await;
    let all = world.objects().await;
    let no_grace = GcOptions {
        grace: Duration::ZERO,
        ..options()
    };
    let mut collector = world.collector(no_grace);

    for key in [keys::broker(BrokerId(1)), keys::partition(PartitionId(2))] {
        world.put(key.clone(), "no record").await;
        let error = collector.round().await.unwrap_err();
        assert!(
            matches!(&error, GcError::Record { key: named, .. } if *named == key),
            "{error}"
        );
        world.store.txn(Txn::new().then(Op::delete(key))).await.unwrap();
    }
    for name in list(&world.bucket, "m").await {
        let good = world.bucket.get(&name, 1 << 20).await.unwrap();
        world.bucket.put(&name, "damaged".into()).await.unwrap();
        let error = collector.round().await.unwrap_err();
        assert!(error.to_string().contains(&name), "{error}");
        world.bucket.delete(std::slice::from_ref(&name)).await.unwrap();
        let error = collector.round().await.unwrap_err();
        assert!(
            matches!(error, GcError::Store(StoreError::NotFound { .. })),
            "{error}"
        );
        world.bucket.put(&name, good).await.unwrap();
    }
    world.bucket.put("cluster", "another".into()).await.unwrap();
    let error = collector.round().await.unwrap_err();
    assert!(error.to_string().contains("another"), "{error}");
    assert_eq!(world.objects().await, all);
    world.bucket.put("cluster", "c1".into()).await.unwrap();
    assert_eq!(collector.round().await.unwrap().deleted, 1);
    assert!(!world.objects().await.contains(&garbage));
    assert_eq!(
        metric(
            &world.metrics,
            "forebay_object_gc_rounds_total{outcome=\"error\"}"
        ),
        7
    );
}

#[tokio::test]
async fn an_object_that_is_needed_again_waits_anew() {
    let world = World::new().await;
    let object = world.object(ObjectKind::Data).await;
    world.later().await;
    let mut collector = world.collector(options());
    assert_eq!(collector.round().await.unwrap().garbage, 1);
    world.clock.advance(GRACE / 2);
    let mut naming = partition(1);
    naming.recent.push(run(&object, 0));
    world.record(&naming).await;
    assert_eq!(collector.round().await.unwrap().garbage, 0);
    world.record(&partition(1)).await;
    world.clock.advance(GRACE / 2);
    assert_eq!(collector.round().await.unwrap().deleted, 0);
    world.clock.advance(GRACE);
    assert_eq!(collector.round().await.unwrap().deleted, 1);
}

/// Bounds on marks, deletes and what waits only cost rounds.
#[tokio::test]
async fn bounds_cost_rounds_and_never_an_object() {
    let world = World::new().await;
    let mut needed = BTreeSet::new();
    for number in 0..6 {
        let mut partition = partition(number);
        for base in 0..5 {
            let object = world.object(ObjectKind::Data).await;
            partition.recent.push(run(&object, base * 10));
            needed.insert(object);
        }
        world.record(&partition).await;
    }
    for _ in 0..40 {
        world.object(ObjectKind::Data).await;
    }
    world.later().await;
    let bounded = GcOptions {
        grace: Duration::ZERO,
        deletes_max: 3,
        marks_max: 8,
        waiting_max: 10,
    };
    let mut collector = world.collector(bounded);
    let mut rounds: Vec<Round> = Vec::new();
    while world.objects().await.len() > needed.len() {
        let round = collector.round().await.unwrap();
        assert!(round.deleted <= 3 && round.marked <= 8, "{round:?}");
        rounds.push(round);
        assert!(rounds.len() < 200, "{rounds:?}");
    }
    assert!(rounds.iter().any(|round| round.split));
    assert_eq!(world.objects().await, needed);
}

/// A live cluster: brokers upload, commit, fold, promise and die between any two reads of a round.
struct Live {
    world: World,
    random: SeededRandom,
    sessions: Vec<Session>,
    next_session: u64,
    next_base: u64,
    partition: Partition,
    /// A defect to be noticed: promises leave out what is under way.
    broken_promises: bool,
}

struct Session {
    broker: u32,
    names: Names,
    /// Uploads whose commit is still to be tried.
    pending: Vec<(String, Revision)>,
}

impl Live {
    async fn act(&mut self) {
        let world = &self.world;
        match self.random.range(0, 12) {
            0 | 1 if self.sessions.len() < 3 => {
                let id = self.next_session;
                self.next_session += 1;
                let revision = world.session(id as u32, 0).await;
                self.sessions.push(Session {
                    broker: id as u32,
                    names: Names::new(SessionId(revision.0)),
                    pending: Vec::new(),
                });
            }
            2..=4 => {
                let Some(session) = pick(&self.random, &mut self.sessions) else {
                    return;
                };
                // The revision is known when the upload begins; the promise was never higher.
                let revision = world.now().await;
                let name = session.names.next(ObjectKind::Data, revision).to_string();
                world.bucket.put(&name, "x".into()).await.unwrap();
                session.pending.push((name, revision));
            }
            5..=7 => {
                let Some(session) = pick(&self.random, &mut self.sessions) else {
                    return;
                };
                if session.pending.is_empty() {
                    return;
                }
                let at = self.random.range(0, session.pending.len() as u64) as usize;
                let (name, _) = session.pending.remove(at);
                self.partition.recent.push(run(&name, self.next_base));
                self.next_base += 10;
                world.record(&self.partition).await;
            }
            8 => {
                let Some(session) = pick(&self.random, &mut self.sessions) else {
                    return;
                };
                let base = self.partition.recent.first().map_or(0, |run| run.base.0);
                let log_start = Offset(base + self.random.range(0, 3) * 10);
                let folded = world
                    .manifests
                    .fold(
                        &session.names,
                        world.now().await,
                        self.partition.id,
                        self.partition.manifest.as_ref(),
                        &self.partition.recent,
                        log_start,
                    )
                    .await
                    .unwrap();
                if self.random.range(0, 4) > 0 {
                    self.partition.manifest = folded;
                    self.partition.recent.clear();
                    world.record(&self.partition).await;
                }
            }
            9 | 10 => {
                let Some(session) = pick(&self.random, &mut self.sessions) else {
                    return;
                };
                let now = world.now().await;
                let pending = session.pending.iter().map(|(_, revision)| *revision).min();
                let floor = pending.filter(|_| !self.broken_promises).unwrap_or(now).min(now);
                world.session(session.broker, floor.0).await;
            }
            11 if !self.sessions.is_empty() => {
                let at = self.random.range(0, self.sessions.len() as u64) as usize;
                let session = self.sessions.remove(at);
                let key = keys::broker(BrokerId(session.broker));
                world.store.txn(Txn::new().then(Op::delete(key))).await.unwrap();
            }
            _ => world.later().await,
        }
    }

    /// Objects that the record names and that are not there.
    async fn missing(&self) -> Vec<String> {
        let there = self.world.objects().await;
        let mut named: Vec<String> = self
            .partition
            .recent
            .iter()
            .map(|run| run.object.clone())
            .collect();
        if let Some(manifest) = &self.partition.manifest {
            named.push(manifest.object.clone());
            let fresh = Manifests::new(self.world.bucket.clone(), 1 << 20);
            match fresh
                .runs_from(self.partition.id, manifest, Offset(0), 1 << 20)
                .await
            {
                Ok(runs) => named.extend(runs.into_iter().map(|run| run.object)),
                Err(error) => named.push(error.to_string()),
            }
        }
        named.retain(|name| !there.contains(name));
        named
    }
}

fn pick<'a>(random: &SeededRandom, sessions: &'a mut [Session]) -> Option<&'a mut Session> {
    let at = random.range(0, sessions.len() as u64) as usize;
    sessions.get_mut(at)
}

/// The metadata store, in front of whose every read the cluster goes on.
struct Going {
    inner: Arc<EmbeddedStore>,
    live: Arc<tokio::sync::Mutex<Live>>,
    going: AtomicBool,
    reads: Mutex<u32>,
}

impl std::fmt::Debug for Going {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Going")
    }
}

#[async_trait]
impl MetaStore for Going {
    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), ReadError> {
        self.inner.get(key).await
    }
    async fn get_many(&self, keys: &[String]) -> Result<(Vec<Option<Entry>>, Revision), ReadError> {
        self.inner.get_many(keys).await
    }
    async fn range(&self, range: Range) -> Result<Page, ReadError> {
        if self.going.load(Ordering::Relaxed) {
            *self.reads.lock() += 1;
            let mut live = self.live.lock().await;
            for _ in 0..live.random.range(0, 8) {
                live.act().await;
            }
        }
        let page = self.inner.range(range).await;
        if self.going.load(Ordering::Relaxed) {
            let mut live = self.live.lock().await;
            for _ in 0..live.random.range(0, 8) {
                live.act().await;
            }
        }
        page
    }
    async fn txn(&self, txn: Txn) -> Result<TxnReply, TxnError> {
        self.inner.txn(txn).await
    }
    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        self.inner.watch(prefix, after)
    }
    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseKeeper, LeaseError> {
        self.inner.lease_grant(ttl).await
    }
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.inner.lease_revoke(lease).await
    }
    async fn close(&self) {
        self.inner.close().await;
    }
}

/// Runs rounds without grace against a live cluster; what its record names and is gone, and how much
/// was deleted.
async fn live_rounds(seed: u64, broken_promises: bool) -> (Vec<String>, u64) {
    let world = World::new().await;
    let (store, clock) = (Arc::clone(&world.store), world.clock.clone());
    let (bucket, metrics) = (world.bucket.clone(), world.metrics.clone());
    let live = Arc::new(tokio::sync::Mutex::new(Live {
        world,
        random: SeededRandom::new(seed),
        sessions: Vec::new(),
        next_session: 1,
        next_base: 0,
        partition: partition(1),
        broken_promises,
    }));
    let going = Arc::new(Going {
        inner: store,
        live: Arc::clone(&live),
        going: AtomicBool::new(true),
        reads: Mutex::new(0),
    });
    let no_grace = GcOptions {
        grace: Duration::ZERO,
        ..options()
    };
    let store = Arc::clone(&going) as Arc<dyn MetaStore>;
    let mut collector = Collector::new(
        bucket,
        store,
        "c1".to_owned(),
        no_grace,
        Arc::new(clock),
        &metrics,
    );
    let mut deleted = 0;
    for _ in 0..12 {
        // A manifest that was replaced and collected meanwhile ends a round; the next one goes on.
        if let Ok(round) = collector.round().await {
            deleted += round.deleted;
        }
        let missing = live.lock().await.missing().await;
        if !missing.is_empty() {
            return (missing, deleted);
        }
    }
    assert!(*going.reads.lock() >= 24);
    (Vec::new(), deleted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_live_cluster_names_is_never_deleted() {
    let mut deleted = 0;
    for seed in 0..20 {
        let (missing, count) = live_rounds(seed, false).await;
        assert!(missing.is_empty(), "seed {seed}: {missing:?}");
        deleted += count;
    }
    assert!(deleted > 50, "{deleted}: garbage was collected meanwhile");
}

/// The proof that the test above would notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_breaks_its_promise_loses_objects() {
    for seed in 0..60 {
        if !live_rounds(seed, true).await.0.is_empty() {
            return;
        }
    }
    panic!("no object was lost");
}

/// Deletes that are refused are tried again in later rounds.
pub async fn refused_deletes_are_no_failure(bucket: Bucket, allow: impl FnOnce()) {
    let world = World::on(bucket).await;
    let garbage = world.object(ObjectKind::Data).await;
    world.later().await;
    let no_grace = GcOptions {
        grace: Duration::ZERO,
        ..options()
    };
    let mut collector = world.collector(no_grace);
    for _ in 0..2 {
        let round = collector.round().await.unwrap();
        assert!(
            round.refused && round.deleted == 0 && round.garbage >= 1,
            "{round:?}"
        );
    }
    assert!(world.objects().await.contains(&garbage));
    assert_eq!(
        metric(
            &world.metrics,
            "forebay_object_gc_rounds_total{outcome=\"refused\"}"
        ),
        2
    );
    allow();
    let round = collector.round().await.unwrap();
    assert_eq!(round.deleted, round.garbage, "{round:?}");
    assert!(world.objects().await.is_empty());
}

/// A list that is not complete is no list.
pub async fn a_failed_list_deletes_nothing(bucket: Bucket) {
    let world = World::on(bucket.clone()).await;
    let garbage = world.object(ObjectKind::Data).await;
    world.later().await;
    let no_grace = GcOptions {
        grace: Duration::ZERO,
        ..options()
    };
    let error = world.collector(no_grace).round().await.unwrap_err();
    assert!(
        matches!(error, GcError::Store(StoreError::Unavailable { .. })),
        "{error}"
    );
    assert_eq!(bucket.head(&garbage).await.unwrap(), 10);
}
