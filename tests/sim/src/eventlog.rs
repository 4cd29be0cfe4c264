//! Everything that a run does, line by line, and one number for all of it.
//!
//! Each line is one event of `tracing` with its simulated time. Two runs of a seed give the same
//! lines; the digest says so without keeping them.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// Alarms that are kept.
const ALARMS_MAX: usize = 20;
/// What a line says that tells of a broken invariant.
const ALARMS: [&str; 4] = [
    "panicked",
    "contradicts its segment",
    "damaged record",
    "replicas contradict",
];

/// What becomes of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// None.
    None,
    /// Each is printed at once.
    Print,
}

/// The log of one run. Clones are handles to the same one.
#[derive(Clone)]
pub struct EventLog {
    state: Arc<Mutex<State>>,
    level: Level,
}

struct State {
    origin: Option<Instant>,
    keep: Keep,
    count: u64,
    digest: u64,
    alarms: Vec<String>,
}

impl EventLog {
    /// An empty log of events up to a level.
    #[must_use]
    pub fn new(level: Level, keep: Keep) -> Self {
        let state = State {
            origin: None,
            keep,
            count: 0,
            digest: 0xcbf2_9ce4_8422_2325,
            alarms: Vec::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            level,
        }
    }

    /// Counts time from now on. Call within the runtime.
    pub fn begin(&self) {
        self.state.lock().origin = Some(Instant::now());
    }

    /// Lines so far, and a number that depends on every byte of them.
    #[must_use]
    pub fn digest(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.count, state.digest)
    }

    /// Lines that say that something happened that never should.
    #[must_use]
    pub fn alarms(&self) -> Vec<String> {
        self.state.lock().alarms.clone()
    }

    /// Adds a line.
    pub fn line(&self, text: &str) {
        let mut state = self.state.lock();
        let at = state.origin.map_or(0, |origin| origin.elapsed().as_micros());
        let line = format!("{:>10}.{:06} {text}", at / 1_000_000, at % 1_000_000);
        state.count += 1;
        // FNV-1a.
        for byte in line.bytes() {
            state.digest = (state.digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let alarming = ALARMS.iter().any(|alarm| text.contains(alarm));
        if alarming && state.alarms.len() < ALARMS_MAX {
            state.alarms.push(line.clone());
        }
        if state.keep == Keep::Print {
            println!("{line}");
        }
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.rest, " {}={value:?}", field.name())
        };
    }
}

impl Subscriber for EventLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target().starts_with("forebay") || metadata.target() == "sim";
        metadata.is_event() && ours && *metadata.level() <= self.level
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let (level, target) = (metadata.level(), metadata.target());
        self.line(&format!("{level} {target}: {}{}", fields.message, fields.rest));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
