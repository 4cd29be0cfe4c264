//! Spans of the work on one batch or fetch, across processes.
//!
//! 1. A [`Tracer`] begins spans. Whether a trace is recorded is decided once, where it begins
//!    ([`Tracer::root`]); everybody else goes by that ([`Tracer::child`]).
//! 2. A [`Span`] that is not recorded is a null pointer: code carries it along and sets attributes
//!    without asking, and pays nothing.
//! 3. A [`TraceContext`] names a span to those who are to have it as their parent, in record
//!    headers, gRPC metadata and messages between processes.
//! 4. [`scope`] lends a context to everything that one future does, [`current`] tells it.
//!
//! A span may sit in a process that does not export: then it only passes its parent's context on,
//! so that a trace is whole wherever it is recorded at all.

mod context;
mod span;

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Span as _, SpanBuilder, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, InstrumentationScope, global};

pub use context::{STATE_LEN_MAX, TRACEPARENT, TRACEPARENT_LEN, TRACESTATE, TraceContext};
pub use opentelemetry::Value;
pub use opentelemetry::trace::SpanKind;
pub use span::Span;

/// Begins spans. Clones share the exporter; the default one records nothing.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

struct Inner {
    tracer: global::BoxedTracer,
    roots: Roots,
}

/// Who decides whether a trace that begins here is recorded.
enum Roots {
    /// The provider's own sampler.
    Sampler,
    /// One of so many by a cheap draw, before anything is made.
    Share { threshold: u64, draws: AtomicU64 },
}

impl Tracer {
    /// Records nothing.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// Spans go to a provider, whose sampler decides which traces are recorded.
    pub fn new(provider: &impl global::ObjectSafeTracerProvider) -> Self {
        Self::with(provider, Roots::Sampler)
    }

    /// Spans go to a provider that samples every trace without a parent; only this share of them
    /// is begun, from 0 to 1.
    pub fn with_share(provider: &impl global::ObjectSafeTracerProvider, share: f64, seed: u64) -> Self {
        // The cast saturates: 1.0 is every draw.
        let threshold = (share.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
        let draws = AtomicU64::new(seed);
        Self::with(provider, Roots::Share { threshold, draws })
    }

    fn with(provider: &impl global::ObjectSafeTracerProvider, roots: Roots) -> Self {
        let scope = InstrumentationScope::builder("forebay")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        let tracer = global::BoxedTracer::new(provider.boxed_tracer(scope));
        Self(Some(Arc::new(Inner { tracer, roots })))
    }

    /// Whether spans are recorded here at all.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a trace, or decides that this one is not recorded.
    #[must_use]
    pub fn root<N: Into<Cow<'static, str>>>(&self, kind: SpanKind, name: impl FnOnce() -> N) -> Span {
        match &self.0 {
            Some(inner) if inner.roots.draw() => {
                let builder = SpanBuilder::from_name(name()).with_kind(kind);
                inner.start(builder, &Context::new())
            }
            _ => Span::none(),
        }
    }

    /// Begins a span below another one. One that is not sampled has none below it.
    #[must_use]
    pub fn child<N: Into<Cow<'static, str>>>(
        &self,
        parent: Option<&TraceContext>,
        kind: SpanKind,
        name: impl FnOnce() -> N,
    ) -> Span {
        self.child_since(parent, kind, Duration::ZERO, name)
    }

    /// The same for one that began so long ago.
    #[must_use]
    pub fn child_since<N: Into<Cow<'static, str>>>(
        &self,
        parent: Option<&TraceContext>,
        kind: SpanKind,
        ago: Duration,
        name: impl FnOnce() -> N,
    ) -> Span {
        let Some(parent) = parent.filter(|parent| parent.is_sampled()) else {
            return Span::none();
        };
        let Some(inner) = &self.0 else {
            return Span::passing(parent.clone());
        };
        let mut builder = SpanBuilder::from_name(name()).with_kind(kind);
        if !ago.is_zero() {
            builder = builder.with_start_time(before_now(ago));
        }
        inner.start(
            builder,
            &Context::new().with_remote_span_context(parent.to_otel()),
        )
    }

    /// Begins a span below a parent if one is named, else begins a trace.
    #[must_use]
    pub fn begin<N: Into<Cow<'static, str>>>(
        &self,
        parent: Option<&TraceContext>,
        kind: SpanKind,
        name: impl FnOnce() -> N,
    ) -> Span {
        match parent {
            Some(_) => self.child(parent, kind, name),
            None => self.root(kind, name),
        }
    }
}

impl Inner {
    fn start(&self, builder: SpanBuilder, parent: &Context) -> Span {
        let span = self.tracer.build_with_context(builder, parent);
        let context = TraceContext::from_otel(span.span_context());
        match context.filter(TraceContext::is_sampled) {
            Some(context) => Span::recording(span, context),
            None => Span::none(),
        }
    }
}

impl Roots {
    fn draw(&self) -> bool {
        match self {
            Self::Sampler => true,
            Self::Share { threshold, draws } => {
                // SplitMix64: a counter, mixed.
                let mut mixed = draws.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
                mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                *threshold == u64::MAX || (mixed ^ (mixed >> 31)) < *threshold
            }
        }
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_on() { "Tracer(on)" } else { "Tracer(off)" })
    }
}

/// The wall time of something that happened so long ago. Spans of several machines are laid next
/// to each other, so that they need it; nothing is decided by it.
fn before_now(ago: Duration) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(ago).unwrap_or(now)
}

tokio::task_local! {
    static CURRENT: Option<Box<TraceContext>>;
}

/// Runs a future whose requests belong to a span. Tasks that it starts do not.
pub async fn scope<F: Future>(context: Option<&TraceContext>, future: F) -> F::Output {
    match context {
        Some(context) => CURRENT.scope(Some(Box::new(context.clone())), future).await,
        None => future.await,
    }
}

/// The context of the innermost [`scope`].
#[must_use]
pub fn current() -> Option<Box<TraceContext>> {
    CURRENT.try_with(Clone::clone).ok().flatten()
}

/// The context of the application's own current span, as OpenTelemetry knows it.
#[must_use]
pub fn ambient() -> Option<TraceContext> {
    Context::map_current(|context| {
        context
            .has_active_span()
            .then(|| TraceContext::from_otel(context.span().span_context()))
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter};
    use parking_lot::Mutex;

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Finished(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Finished {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().extend(batch);
            Ok(())
        }
    }

    fn provider(sampler: Sampler) -> (SdkTracerProvider, Finished) {
        let exporter = Finished::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .with_sampler(Sampler::ParentBased(Box::new(sampler)))
            .build();
        (provider, exporter)
    }

    #[test]
    fn a_child_has_its_parents_trace_and_a_name_is_made_only_for_what_is_recorded() {
        let (provider, exporter) = provider(Sampler::AlwaysOn);
        let tracer = Tracer::new(&provider);
        let mut root = tracer.root(SpanKind::Producer, || "publish");
        root.set("forebay.offset", 7);
        let context = root.context().unwrap().clone();
        let child = tracer.child_since(
            Some(&context),
            SpanKind::Server,
            Duration::from_millis(5),
            || "append",
        );
        assert_eq!(child.context().unwrap().trace_id(), context.trace_id());
        drop(child);
        drop(root);
        let spans = exporter.0.lock().clone();
        assert_eq!(spans.len(), 2);
        assert_eq!(spans[0].parent_span_id.to_bytes(), context.span_id());
        assert!(spans[0].end_time.duration_since(spans[0].start_time).unwrap() >= Duration::from_millis(5));
        let off = Tracer::off().root(SpanKind::Internal, || -> &'static str { unreachable!() });
        assert!(off.context().is_none());
    }

    #[test]
    fn a_parent_that_is_not_sampled_has_no_recorded_children() {
        let (provider, exporter) = provider(Sampler::AlwaysOn);
        let parent = TraceContext::new([1; 16], [2; 8], 0, "").unwrap();
        let child = Tracer::new(&provider).begin(Some(&parent), SpanKind::Server, || "append");
        assert!(child.context().is_none());
        drop(child);
        assert!(exporter.0.lock().is_empty());
    }

    #[test]
    fn a_process_that_does_not_export_passes_the_context_on() {
        let parent = TraceContext::new([1; 16], [2; 8], 1, "a=b").unwrap();
        let child = Tracer::off().child(Some(&parent), SpanKind::Server, || "append");
        assert_eq!(child.context(), Some(&parent));
    }

    #[test]
    fn a_share_of_the_traces_is_begun() {
        let (provider, exporter) = provider(Sampler::AlwaysOn);
        for (share, least, most) in [(0.0, 0, 0), (0.1, 60, 140), (1.0, 1000, 1000)] {
            exporter.0.lock().clear();
            let tracer = Tracer::with_share(&provider, share, 42);
            for _ in 0..1000 {
                drop(tracer.root(SpanKind::Internal, || "one"));
            }
            let begun = exporter.0.lock().len();
            assert!((least..=most).contains(&begun), "{begun} of 1000 at {share}");
        }
    }

    #[tokio::test]
    async fn a_scope_lends_its_context_to_what_runs_in_it() {
        let context = TraceContext::new([1; 16], [2; 8], 1, "").unwrap();
        assert_eq!(current(), None);
        let inside = scope(Some(&context), async { current() }).await;
        assert_eq!(inside.as_deref(), Some(&context));
        assert_eq!(current(), None);
    }
}
