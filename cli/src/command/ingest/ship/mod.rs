//! The shipper: one task that owns all inputs and decides what is next for each.
//!
//! Reading, cutting and compressing happen on blocking threads, a few at a time, each for a turn
//! ([`super::read`]); they hand batches to the producer themselves and tell of it. Here
//! acknowledgements come together, the checkpoint is kept, and files are watched. Before the first
//! batch of an input, and before each batch whose end follows from the time and not from the bytes,
//! the checkpoint is made durable: so another run cuts again what this one may have sent.

mod follow;
mod outcome;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_client::{Compression, DeliveryError, PartitionWriter, Producer, ProducerStamp, RecordMetadata};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::cut::{Cutting, FileName, Mode};
use super::error::IngestError;
use super::input::{Input, Origin, Stage};
use super::keep::Keeper;
use super::metrics::IngestMetrics;
use super::pack::{Event, Outlet};
use super::progress::{Outlook, Progress};
use super::read::{Goal, Source, Turn};
use super::stream::Stream;
use super::tally::Tally;
pub use follow::Following;
use follow::Look;

/// Files read at the same time.
const READERS: usize = 4;
/// Producer ids asked for at the same time.
const NAMING_MAX: usize = 64;
/// Between looks at what is due.
const TICK: Duration = Duration::from_millis(100);
/// How long acknowledgements may be missing before that is told, and between two times.
const TROUBLE_AFTER: Duration = Duration::from_secs(5);
const TROUBLE_EVERY: Duration = Duration::from_secs(30);
/// Asking for a producer id again after it failed.
const NAMING_REST: Duration = Duration::from_secs(1);

/// What does not change during a run.
#[derive(Debug)]
pub struct Settings {
    /// Topic written to.
    pub topic: String,
    /// How to cut.
    pub cutting: Arc<Cutting>,
    /// How to compress.
    pub codec: Compression,
    /// Whether text must be UTF-8.
    pub utf8_only: bool,
    /// How long lines wait for a batch to fill.
    pub linger: Duration,
    /// How long a file that was renamed or removed is watched for late lines.
    pub rotate_wait: Duration,
    /// How long acknowledgements are waited for after a stop.
    pub drain: Duration,
}

/// How a run ended.
#[derive(Debug)]
pub struct Shipped {
    /// What was done.
    pub tally: Tally,
    /// From the beginning to the last acknowledgement.
    pub elapsed: Duration,
    /// Why it ended early, if it did.
    pub failure: Option<IngestError>,
    /// Bytes that were sent and whose acknowledgement was not waited for any longer.
    pub unacknowledged: u64,
}

type Answer = (u64, u64, Result<Option<RecordMetadata>, DeliveryError>);

/// Ships inputs to a topic.
pub struct Shipper {
    settings: Settings,
    producer: Producer,
    writers: BTreeMap<u32, Arc<PartitionWriter>>,
    inputs: BTreeMap<u64, Input>,
    next_input: u64,
    /// The newest input of each path.
    by_path: BTreeMap<PathBuf, u64>,
    ready: VecDeque<u64>,
    /// Turns and streams that are being read.
    reading: usize,
    streaming: usize,
    events: UnboundedReceiver<Event>,
    events_in: UnboundedSender<Event>,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    namings: FuturesUnordered<BoxFuture<'static, (u64, ProducerStamp)>>,
    keeper: Option<Keeper>,
    following: Option<Following>,
    tally: Tally,
    progress: Progress,
    metrics: Option<IngestMetrics>,
    in_flight: u64,
    began: Instant,
    last_answer: Instant,
    next_trouble: Instant,
    failure: Option<IngestError>,
    stop: CancellationToken,
    /// When waiting for acknowledgements ends, once there was a stop.
    drained_by: Option<Instant>,
}

/// What woke the shipper.
enum Woken {
    Event(Event),
    Answer(Answer),
    Named(u64, ProducerStamp),
    Kept(std::io::Result<()>),
    Looked(Look),
    Tick,
    Stop(String),
}

impl Shipper {
    /// A shipper without inputs.
    pub fn new(
        settings: Settings,
        producer: Producer,
        keeper: Option<Keeper>,
        following: Option<Following>,
        progress: Progress,
        metrics: Option<IngestMetrics>,
    ) -> Self {
        let (events_in, events) = unbounded_channel();
        let now = Instant::now();
        Self {
            settings,
            producer,
            writers: BTreeMap::new(),
            inputs: BTreeMap::new(),
            next_input: 0,
            by_path: BTreeMap::new(),
            ready: VecDeque::new(),
            reading: 0,
            streaming: 0,
            events,
            events_in,
            answers: FuturesUnordered::new(),
            namings: FuturesUnordered::new(),
            keeper,
            following,
            tally: Tally::default(),
            progress,
            metrics,
            in_flight: 0,
            began: now,
            last_answer: now,
            next_trouble: now,
            failure: None,
            stop: CancellationToken::new(),
            drained_by: None,
        }
    }

    /// Takes an input over; it begins once those of the same path that came before are over.
    pub fn add(&mut self, mut input: Input) {
        if let Origin::File(_) = input.origin {
            input.after = self.by_path.insert(input.path.clone(), self.next_input);
        }
        self.tally.files += 1;
        self.inputs.insert(self.next_input, input);
        self.next_input += 1;
    }

    /// Ships until the inputs end or `stopped` says so; a second stop does not wait for
    /// acknowledgements.
    pub async fn run<F: Future<Output = String>>(mut self, mut stopped: impl FnMut() -> F) -> Shipped {
        let mut signal = Box::pin(stopped());
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.advance_all();
        while !self.is_over() {
            let woken = tokio::select! {
                biased;
                why = &mut signal => Woken::Stop(why),
                Some(event) = self.events.recv() => Woken::Event(event),
                Some(answer) = self.answers.next(), if !self.answers.is_empty() => Woken::Answer(answer),
                Some((input, id)) = self.namings.next(), if !self.namings.is_empty() => Woken::Named(input, id),
                kept = async { match &mut self.keeper {
                    Some(keeper) => keeper.finished().await,
                    None => std::future::pending().await,
                } } => Woken::Kept(kept),
                look = async { match &mut self.following {
                    Some(following) => following.looked().await,
                    None => std::future::pending().await,
                } } => Woken::Looked(look),
                _ = ticks.tick() => Woken::Tick,
            };
            match woken {
                Woken::Event(event) => self.on_event(event),
                Woken::Answer((input, number, outcome)) => self.on_answer(input, number, outcome),
                Woken::Named(input, id) => self.on_named(input, id),
                Woken::Kept(kept) => self.on_kept(kept),
                Woken::Looked(look) => self.on_look(look),
                Woken::Tick => self.on_tick(),
                Woken::Stop(why) => {
                    signal = Box::pin(stopped());
                    self.on_stop(&why);
                }
            }
            self.start_turns();
            self.keep();
        }
        self.finish().await
    }

    fn is_over(&self) -> bool {
        match self.drained_by {
            Some(by) => (self.is_quiet() && self.answers.is_empty()) || Instant::now() >= by,
            None => {
                self.following.is_none() && self.inputs.values().all(|one| matches!(one.stage, Stage::Done))
            }
        }
    }

    fn is_quiet(&self) -> bool {
        self.reading == 0 && self.streaming == 0 && self.events.is_empty()
    }

    fn on_stop(&mut self, why: &str) {
        if self.drained_by.is_some() {
            eprintln!("{why}: not waiting for acknowledgements any longer");
            self.drained_by = Some(Instant::now());
            return;
        }
        eprintln!("{why}: reading ends, waiting for acknowledgements");
        self.begin_to_stop();
    }

    /// No more reading; what was sent is waited for, but not for ever.
    fn begin_to_stop(&mut self) {
        self.stop.cancel();
        let by = Instant::now() + self.settings.drain;
        self.drained_by.get_or_insert(by);
    }

    fn fail(&mut self, failure: IngestError) {
        self.failure.get_or_insert(failure);
        self.begin_to_stop();
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        if let Some(following) = &mut self.following
            && !self.stop.is_cancelled()
        {
            let open = self.inputs.iter().filter_map(|(id, input)| {
                let file = input.watched()?.file.clone()?;
                Some((*id, file))
            });
            following.look(now, open);
        }
        self.advance_all();
        self.tell_trouble(now);
        let outlook = Outlook {
            left: self.bytes_left(),
            in_flight: self.in_flight,
        };
        self.progress.show(&self.tally, outlook, now);
        if let Some(metrics) = &self.metrics {
            metrics.show(&self.tally, self.producer.retries().count, self.in_flight);
            let live = self
                .inputs
                .values()
                .filter(|one| !matches!(one.stage, Stage::Done));
            metrics.show_lags(live.map(|one| (one.name.as_ref(), one.lag_bytes())));
            let written = self.keeper.as_ref().and_then(Keeper::written);
            let age = written.map_or(0.0, |at| now.duration_since(at).as_secs_f64());
            metrics.show_checkpoint_age(age);
        }
    }

    fn bytes_left(&self) -> Option<u64> {
        let streams = self
            .inputs
            .values()
            .any(|one| matches!(one.origin, Origin::Stream(_)));
        (!streams).then(|| self.inputs.values().map(Input::lag_bytes).sum())
    }

    /// Says now and then that nothing is acknowledged, and why.
    fn tell_trouble(&mut self, now: Instant) {
        if self.answers.is_empty() && self.namings.is_empty() {
            self.last_answer = now;
            return;
        }
        if now.duration_since(self.last_answer) < TROUBLE_AFTER || now < self.next_trouble {
            return;
        }
        self.next_trouble = now + TROUBLE_EVERY;
        let waited = now.duration_since(self.last_answer).as_secs();
        let reason = self.producer.retries().last;
        let reason = reason.as_deref().unwrap_or("no answer yet");
        warn!(
            seconds = waited,
            bytes = self.in_flight,
            reason,
            "nothing is acknowledged, still trying"
        );
    }

    fn advance_all(&mut self) {
        let ids: Vec<_> = self.inputs.keys().copied().collect();
        for id in ids {
            self.advance(id);
        }
        self.start_turns();
        self.keep();
    }

    /// Takes an input as far as it can go now.
    fn advance(&mut self, id: u64) {
        loop {
            let now = Instant::now();
            let stopped = self.stop.is_cancelled();
            let Some(input) = self.inputs.get(&id) else { return };
            let durable = |number| {
                self.keeper
                    .as_ref()
                    .is_none_or(|keeper| keeper.is_durable(number))
            };
            let moved = match &input.stage {
                Stage::Waiting => !stopped && self.may_begin(input) && self.name(id),
                Stage::Registering(number) => {
                    let begins = !stopped && durable(*number);
                    begins && self.make_ready(id)
                }
                Stage::Planning(number, _) => {
                    let begins = !stopped && durable(*number);
                    begins && self.send_planned(id)
                }
                Stage::Idle => !stopped && self.is_due(input, now) && self.make_ready(id),
                Stage::Ending => input.is_settled() && self.end(id),
                Stage::Replaced => !stopped && input.is_settled() && self.restart(id),
                Stage::Naming | Stage::Ready | Stage::Reading | Stage::Done => false,
            };
            if !moved {
                return;
            }
        }
    }

    /// Whether the input before this one of the same path is over, or quiet under another name.
    fn may_begin(&self, input: &Input) -> bool {
        let before = input.after.and_then(|id| self.inputs.get(&id));
        before.is_none_or(|before| match (&before.stage, before.watched()) {
            (Stage::Done, _) => true,
            (Stage::Idle, Some(watched)) => {
                let quiet = watched.changed.elapsed() >= self.settings.rotate_wait;
                before.is_settled() && quiet && watched.caught_up == Some(watched.size)
            }
            _ => false,
        })
    }

    /// Asks for a producer id, unless there is one.
    fn name(&mut self, id: u64) -> bool {
        if self.namings.len() >= NAMING_MAX {
            return false;
        }
        let Some(input) = self.inputs.get_mut(&id) else {
            return false;
        };
        if input.producer.is_some() {
            return self.register(id);
        }
        input.stage = Stage::Naming;
        let producer = self.producer.clone();
        self.namings.push(Box::pin(async move {
            loop {
                match producer.new_producer_id().await {
                    Ok(stamp) => return (id, stamp),
                    Err(refusal) => {
                        warn!(%refusal, "no producer id, asking again");
                        tokio::time::sleep(NAMING_REST).await;
                    }
                }
            }
        }));
        false
    }

    fn on_named(&mut self, id: u64, stamp: ProducerStamp) {
        if let Some(input) = self.inputs.get_mut(&id) {
            input.producer = Some(stamp);
            self.register(id);
            self.advance(id);
        }
        // Another may ask now.
        let waiting = self
            .inputs
            .range(id..)
            .find(|(_, one)| matches!(one.stage, Stage::Waiting));
        if let Some(next) = waiting.map(|(id, _)| *id) {
            self.advance(next);
        }
    }

    /// Sees to it that the checkpoint knows the input before anything of it is sent.
    fn register(&mut self, id: u64) -> bool {
        let number = self.keeper.as_mut().map_or(0, Keeper::request);
        if let Some(input) = self.inputs.get_mut(&id) {
            input.stage = Stage::Registering(number);
        }
        true
    }

    fn make_ready(&mut self, id: u64) -> bool {
        let Some(input) = self.inputs.get_mut(&id) else {
            return false;
        };
        input.stage = Stage::Ready;
        self.ready.push_back(id);
        false
    }

    fn start_turns(&mut self) {
        while self.reading < READERS && !self.stop.is_cancelled() {
            let Some(id) = self.ready.pop_front() else { return };
            if let Err(failure) = self.start_turn(id) {
                self.fail(failure);
            }
        }
    }

    fn start_turn(&mut self, id: u64) -> Result<(), IngestError> {
        let Some(outlet) = self.outlet(id) else {
            return Ok(());
        };
        let Some(input) = self.inputs.get_mut(&id) else {
            return Ok(());
        };
        input.stage = Stage::Reading;
        let (mark, cuts) = (input.read.clone(), input.cuts.clone());
        let watched = match &mut input.origin {
            Origin::File(watched) => watched,
            Origin::Stream(file) => {
                let file = file
                    .take()
                    .ok_or_else(|| IngestError::Other("stream read twice".to_owned()))?;
                let linger = self.settings.linger;
                let stream = Stream { file, linger, outlet };
                // A thread of its own: it may read for ever.
                let started = std::thread::Builder::new().name("ingest-stream".to_owned());
                let started = started.spawn(move || stream.run());
                started.map_err(|error| IngestError::Other(format!("no thread to read with: {error}")))?;
                self.streaming += 1;
                return Ok(());
            }
        };
        let left = watched.gone && watched.changed.elapsed() >= self.settings.rotate_wait;
        watched.ending = self.following.is_none() || left;
        let goal = if watched.ending {
            Goal::End(watched.size)
        } else {
            Goal::Now
        };
        let source = match &watched.file {
            Some(file) => Source::Open(file.clone()),
            None => Source::Path(watched.at.clone(), watched.id),
        };
        watched.unread_since = None;
        let turn = Turn {
            source,
            cuts: cuts.into_iter().filter(|cut| *cut > mark.position).collect(),
            mark,
            goal,
            fingerprint: watched.fingerprint,
            outlet,
        };
        self.reading += 1;
        let _detached: JoinHandle<()> = tokio::task::spawn_blocking(move || turn.run());
        Ok(())
    }

    fn outlet(&self, id: u64) -> Option<Outlet> {
        use std::os::unix::ffi::OsStrExt as _;
        let input = self.inputs.get(&id)?;
        let tag: &[u8] = match self.settings.cutting.file_name {
            FileName::None => &[],
            FileName::Key | FileName::Header => input.path.as_os_str().as_bytes(),
        };
        let writers = input.partitions.iter().map(|one| self.writers.get(one).cloned());
        Some(Outlet {
            input: id,
            tag: tag.into(),
            cutting: self.settings.cutting.clone(),
            codec: self.settings.codec,
            utf8_only: self.settings.utf8_only && self.settings.cutting.mode == Mode::Lines,
            writers: writers.collect::<Option<_>>()?,
            producer: input.producer?,
            events: self.events_in.clone(),
            stop: self.stop.clone(),
            runtime: Handle::current(),
        })
    }

    /// Makes the writers of partitions, where there are none yet.
    pub async fn open_partitions(&mut self, partitions: impl Iterator<Item = u32>) -> anyhow::Result<()> {
        for partition in partitions {
            if !self.writers.contains_key(&partition) {
                let writer = self
                    .producer
                    .partition_writer(&self.settings.topic, partition)
                    .await?;
                self.writers.insert(partition, Arc::new(writer));
            }
        }
        Ok(())
    }

    fn keep(&mut self) {
        let now = Instant::now();
        if self.keeper.as_ref().is_some_and(|keeper| keeper.is_due(now)) {
            let entries = self.entries(false);
            if let Some(keeper) = &mut self.keeper {
                keeper.begin(entries, now);
            }
        }
    }
}
