//! One piece of work in a trace, or nothing at all.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use opentelemetry::global::BoxedSpan;
use opentelemetry::trace::{Span as _, Status};
use opentelemetry::{KeyValue, Value};

use super::{TraceContext, before_now};

/// A piece of work. Ends when it is dropped.
///
/// As large as a pointer, which is null where the work is not recorded: then every method does
/// nothing.
#[derive(Default)]
pub struct Span(Option<Box<Kept>>);

struct Kept {
    /// None where only the context is passed on.
    span: Option<BoxedSpan>,
    context: TraceContext,
}

impl Span {
    /// No span.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    pub(super) fn recording(span: BoxedSpan, context: TraceContext) -> Self {
        let span = Some(span);
        Self(Some(Box::new(Kept { span, context })))
    }

    pub(super) fn passing(context: TraceContext) -> Self {
        Self(Some(Box::new(Kept { span: None, context })))
    }

    /// False where nothing is recorded and nothing is passed on.
    #[must_use]
    pub const fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// What names it to its children; none where there is no trace.
    #[must_use]
    pub fn context(&self) -> Option<&TraceContext> {
        self.0.as_ref().map(|kept| &kept.context)
    }

    fn span(&mut self) -> Option<&mut BoxedSpan> {
        self.0.as_mut()?.span.as_mut()
    }

    /// Says something about the work. Numbers are whole ones below 2⁶³.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = self.span() {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// The same for something that is written as text, made only where it is recorded.
    pub fn set_display(&mut self, key: &'static str, value: &dyn fmt::Display) {
        if let Some(span) = self.span() {
            span.set_attribute(KeyValue::new(key, value.to_string()));
        }
    }

    /// The same for a count, an offset or an id.
    pub fn set_number(&mut self, key: &'static str, value: u64) {
        self.set(key, i64::try_from(value).unwrap_or(i64::MAX));
    }

    /// Notes a moment.
    pub fn event(&mut self, name: impl Into<Cow<'static, str>>) {
        if let Some(span) = self.span() {
            span.add_event(name, Vec::new());
        }
    }

    /// Points at a span of the same or another trace.
    pub fn link(&mut self, to: &TraceContext) {
        if let Some(span) = self.span() {
            span.add_link(to.to_otel(), Vec::new());
        }
    }

    /// The work failed.
    pub fn fail(&mut self, why: &dyn fmt::Display) {
        if let Some(span) = self.span() {
            span.set_status(Status::error(why.to_string()));
        }
    }

    /// The work ended so long ago.
    pub fn end_since(mut self, ago: Duration) {
        if let Some(span) = self.span() {
            span.end_with_timestamp(before_now(ago));
        }
    }

    /// A span for log lines that are written during the work: they carry the ids of the trace.
    #[must_use]
    pub fn log(&self) -> tracing::Span {
        match self.context() {
            Some(context) => tracing::error_span!(
                "trace",
                trace_id = context.trace_id_hex(),
                span_id = context.span_id_hex()
            ),
            None => tracing::Span::none(),
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.context() {
            Some(context) => write!(f, "Span({context})"),
            None => f.write_str("Span(none)"),
        }
    }
}
